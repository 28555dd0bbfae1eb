"""Kinds that an API server may have under a second group: one set of objects to the mesh, under one key.

Calico's users write ``projectcalico.org/v3``, its storage is ``crd.projectcalico.org/v1``; the fields are the same.
With Calico's API server the two are one object; with the kinds of airmesh alone each is kept for itself. So promises:
an object counts whichever way it is written; of two with one name that differ, the first spelling counts, and the
other is told; nothing is taken for gone while one of the two groups has not been listed (a group that is not there
has nothing).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from proto.objects import (
    KIND_OF,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    CalicoNodeStatus,
    FelixConfiguration,
    IPPool,
    Kind,
)
from services.cluster.core.cache import Cache, Known
from services.cluster.core.diff import Name

_V3 = "/apis/projectcalico.org/v3"
AGAIN: tuple[Kind, ...] = (
    Kind("projectcalico.org", "felixconfiguration", _V3, "felixconfigurations", FelixConfiguration),
    Kind("projectcalico.org", "ippool", _V3, "ippools", IPPool),
    Kind("projectcalico.org", "bgpconfiguration", _V3, "bgpconfigurations", BGPConfiguration),
    Kind("projectcalico.org", "bgppeer", _V3, "bgppeers", BGPPeer),
    Kind("projectcalico.org", "bgpfilter", _V3, "bgpfilters", BGPFilter),
    Kind("projectcalico.org", "caliconodestatus", _V3, "caliconodestatuses", CalicoNodeStatus),
)
"""How the API has some kinds of ``proto.objects.KINDS`` once more; mirrored under the key of these."""
NAME_TAKEN = "NameTaken"
"""Reason of an object that does not count since another has its name."""


def label(kind: Kind) -> str:
    """A name that tells the two spellings apart."""
    return kind.kind if kind is KIND_OF[kind.type] else f"{kind.kind}.{kind.group}"


class Together:
    """Two caches of one kind, read as one by the mirror; ``absent``: whether the API server lacks that one's group."""

    def __init__(self, first: Cache, second: Cache, absent: Callable[[Cache], bool]) -> None:
        self.first = first
        self.second = second
        self._absent = absent
        self.kind = first.kind
        self.known: Mapping[Name, Known] = ChainMap(first.known, second.known)

    @property
    def lists(self) -> int:
        """Whole lists that have come; 0 while it is not known what either has."""
        both = self.first, self.second
        waiting = any(not cache.lists and not self._absent(cache) for cache in both)
        return 0 if waiting else sum(cache.lists for cache in both)

    def take_dirty(self) -> frozenset[Name]:
        """Names that changed in either since the last call."""
        return self.first.take_dirty() | self.second.take_dirty()

    def shadowed(self) -> Iterator[Name]:
        """Names of the second that do not count, since the first has another object of that name."""
        for name, known in self.second.known.items():
            other = self.first.known.get(name)
            if other is not None and other.value != known.value:
                yield name

    def why_shadowed(self) -> str:
        """What is said of one of them, without its name."""
        return f"one of this name is there as {self.first.kind.api_version} too, which counts; delete one of the two"


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of all kinds, and how they belong together."""

    every: list[Cache]
    first: dict[type, Cache]
    """By type: of a kind that the API may have twice the spelling that counts first."""
    together: dict[type, Together]
    """Of such a kind both."""
