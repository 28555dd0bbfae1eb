"""Pins as another version would have left them."""

from __future__ import annotations

import os
from pathlib import Path

from linux import bpf
from services.dataplane.core.datapath.maps import MAPS
from services.dataplane.core.datapath.pins import LAYOUTS_BEFORE, Source, parse_pin_name

BEFORE = next(iter(LAYOUTS_BEFORE))
"""The hash of all layouts of the last version that had one."""
LATER = frozenset(spec.name for spec in MAPS) - LAYOUTS_BEFORE[BEFORE].keys()
"""Maps that it did not have."""
UNFILLED = frozenset({Source.TUNNELS, Source.SERVICES})
"""What those are filled from before this version's programs run: tunnels, and the key by which backends are chosen."""
REPLACED = LATER | {"am_scratch"}
"""Maps that are made when this version follows it."""
OTHER = "0" * 12
"""A layout that no map has."""


def pins_of(folder: Path) -> dict[str, Path]:
    """Maps by name."""
    return {parse_pin_name(pin.name)[0]: pin for pin in (folder / "v2" / "maps").iterdir()}


def change(folder: Path, *names: str) -> None:
    """As if the version before had had other records in these maps."""
    for name in names:
        pin = pins_of(folder)[name]
        pin.rename(pin.with_name(f"{name}-{OTHER}"))


def as_before(folder: Path, layouts: str) -> None:
    """The pins as versions wrote them that had one hash for all layouts."""
    former = folder / f"v{layouts}"
    former.mkdir()
    (former / "maps").mkdir()
    for name, pin in pins_of(folder).items():
        if name in LATER:
            pin.unlink()
        else:
            pin.rename(former / "maps" / name)
    (folder / "v2" / "links").rename(former / "links")
    (folder / "v2" / "maps").rmdir()
    (folder / "v2").rmdir()


def ids(folder: Path) -> dict[str, int]:
    """Kernel ids of the maps in use."""
    found = {}
    for name, pin in pins_of(folder).items():
        fd = bpf.pinned(pin)
        found[name] = bpf.map_info(fd).id
        os.close(fd)
    return found
