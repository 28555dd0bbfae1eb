"""The pins of a node's datapath: its maps and links on bpffs, and how one set of maps follows another.

Owns the folder ``<pins>/v2``: ``maps/<name>-<layout>`` are what the programs use, ``links/<name>/<hook>`` where they
hang. What ``core.datapath.pins`` plans is made beside, in ``next/``: each map there is a second pin of one that is
taken over, or new. When the programs have been switched, :meth:`Pins.promote` puts the folder in the place of ``maps/``
by a rename and removes what the former programs used. So whatever is in ``maps/`` is what they use, however an upgrade
ended.

Versions before this one pinned under ``<pins>/v<hash of all layouts>``: such a folder with links in it is what runs. It
is taken over and goes with the switch. (They look for others' links in ``<pins>/v*``, so going back to one works, too.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from linux import bpf
from services.dataplane.core.datapath import pins as core
from services.dataplane.core.datapath.maps import MAPS, MapSpec
from services.dataplane.core.datapath.pins import LAYOUTS_BEFORE, Pinned, Plan, parse_pin_name, pin_name
from services.dataplane.datapath.maps import check_shape
from services.dataplane.datapath.tables import create

ROOT = "v2"


class Pins:
    """One node's pins. Blocking."""

    def __init__(self, pins: Path) -> None:
        root = pins / ROOT
        self.links = root / "links"
        self._maps, self._next, self._last = root / "maps", root / "next", root / "last"
        self._pins = pins

    def path(self, spec: MapSpec) -> Path:
        """Where a map of this version is pinned: until the switch, beside those that the programs use."""
        return (self._next if self._next.is_dir() else self._maps) / pin_name(spec)

    def open(self, sizes: Mapping[str, int]) -> tuple[dict[str, int], Plan]:
        """Descriptors of all maps by name, taken over or made as the plan says. Programs that run go on with theirs;
        :meth:`promote` is to be called when they have been switched.

        Raises BpfError (ENOMEM), LayoutMismatch.
        """
        self.links.mkdir(parents=True, exist_ok=True)
        self._finish_promotion()
        former = self._former()
        now = _survey(self._maps) if former is None else _survey(former / "maps", LAYOUTS_BEFORE.get(former.name[1:]))
        running = any(self.links.iterdir()) or (former is not None and has_links(former))
        plan = core.plan(
            {name: one for name, (_, one) in now.items()},
            {name: one for name, (_, one) in _survey(self._next).items()},
            sizes,
            running=running,
        )
        if plan.is_upgrade or former is not None:
            descriptors = self._stage(plan, {name: path for name, (path, _) in now.items()})
        else:
            descriptors = opened_maps(self._pins)
        self._take_links()
        return descriptors, plan

    def promote(self) -> None:
        """The programs use the new maps now: their pins take the place of the old ones, which go."""
        if self._next.is_dir():
            if self._maps.is_dir():
                self._maps.rename(self._last)
            self._next.rename(self._maps)
        self._finish_promotion()
        for folder in self._others():
            remove_pins(folder)

    def _finish_promotion(self) -> None:
        if self._last.is_dir():
            if not self._maps.is_dir():
                self._next.rename(self._maps)
            remove_pins(self._last)

    def _stage(self, plan: Plan, now: Mapping[str, Path]) -> dict[str, int]:
        """The folder ``next`` as planned; what else is in it goes."""
        self._next.mkdir(exist_ok=True)
        wanted = {pin_name(spec) for spec in MAPS if spec.name not in plan.made}
        for pin in self._next.iterdir():
            if pin.name not in wanted:
                pin.unlink()
        descriptors = {}
        for spec in MAPS:
            pin = self._next / pin_name(spec)
            if spec.name in plan.begun:
                descriptors[spec.name] = _open(spec, pin)
                continue
            taken = spec.name in plan.taken
            fd = descriptors[spec.name] = _open(spec, now[spec.name]) if taken else create(spec, plan.made[spec.name])
            pin.unlink(missing_ok=True)
            bpf.pin(fd, pin)
        return descriptors

    def _take_links(self) -> None:
        """Links that versions before this one have pinned."""
        for folder in self._others():
            for old in sorted((folder / "links").glob("*")):
                mine = self.links / old.name
                mine.mkdir(exist_ok=True)
                for pin in old.iterdir():
                    pin.rename(mine / pin.name)
                old.rmdir()

    def _former(self) -> Path | None:
        """The folder of a version before this one whose maps the programs use; None when they use those in ``maps``.

        What nobody uses is removed here: then the answer is the same when the links have been taken.
        """
        others = self._others()
        if running := [folder for folder in others if has_links(folder)]:
            chosen = max(running, key=lambda folder: len(list((folder / "links").iterdir())))
            if self._maps.is_dir():
                remove_pins(self._maps)
            for folder in others:
                if folder not in running:
                    remove_pins(folder)
            return chosen
        return None if self._maps.is_dir() or not others else others[0]

    def _others(self) -> list[Path]:
        return [path for path in sorted(self._pins.glob("v*")) if path.name != ROOT]


def opened_maps(pins: Path) -> dict[str, int]:
    """Descriptors of the maps that programs of this version use, by name. Raises BpfError ENOENT, LayoutMismatch."""
    return {spec.name: _open(spec, pins / ROOT / "maps" / pin_name(spec)) for spec in MAPS}


def has_links(folder: Path) -> bool:
    """Whether programs hang under a folder of pins."""
    return any((folder / "links").glob("*"))


def remove_pins(folder: Path) -> None:
    """Removes every pin under a folder and the folder. Links that have no other holder are detached by it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()


def _open(spec: MapSpec, path: Path) -> int:
    fd = bpf.pinned(path)
    info = bpf.map_info(fd)
    check_shape(spec, info.kind, info.key_size, info.value_size, info.entries)
    return fd


def _survey(folder: Path, layouts: Mapping[str, str] | None = None) -> dict[str, tuple[Path, Pinned]]:
    """The maps of a folder by name. ``layouts``: theirs, where pins' names do not tell; None: unknown."""
    found = {}
    for path in sorted(folder.glob("am_*")):
        name, layout = parse_pin_name(path.name)
        if path.name.endswith("-new"):
            path.unlink()  # a copy that had not taken the place of its map
            continue
        fd = bpf.pinned(path)
        info = bpf.map_info(fd)
        os.close(fd)
        found[name] = (path, Pinned(layout or (layouts or {}).get(name, ""), info.entries, info.id))
    return found
