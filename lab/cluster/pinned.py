"""BPF objects behind a lab's pins: which there are, and whether they still exist once the pins are gone.

A map, program or link lives as long as anything holds it: a pin, a descriptor, an attachment. So the proof that a lab
left none is not that its pins are gone but that the kernel no longer knows their ids. By ``linux.bpf``.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from linux import bpf


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BpfObject:
    """`kind`: map, prog or link. `number`: the kernel's id, given once."""

    kind: str
    number: int
    pin: str


def behind(pins: Iterable[Path]) -> set[BpfObject]:
    """The objects of `pins`; one that cannot be opened (gone meanwhile) is left out."""
    found = set()
    for pin in pins:
        try:
            descriptor = bpf.pinned(pin)
        except OSError:
            continue
        try:
            kind, number = bpf.identify(descriptor)
        except OSError:
            continue
        finally:
            os.close(descriptor)
        found.add(BpfObject(kind=kind, number=number, pin=str(pin)))
    return found


def exists(one: BpfObject) -> bool:
    """Whether the kernel still knows it; when it does not say, it may."""
    try:
        return bpf.exists(one.kind, one.number)
    except OSError:
        return True
