"""Departures: at which point of ``endpoints`` each freed address was no more on the bus as its former pod's.

Owns the answer to "does every live node know that the former pod has left?": ``ipam`` publishes what all have
acknowledged. It is found from what is there, not remembered from the deletion, so a restart, or a bus made anew, ends
with the same answer: what is freed, and stands in no slot of this node, has left by the sequence that the view has
reached. That is late at times and never early for longer than a write of our own is on its way, which no address that
rests can feel. Where nothing is known the answer is no, and the address is given last of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from proto.addresses import AcknowledgedEndpoints
from proto.net import Address

NOTHING = AcknowledgedEndpoints(epoch="", sequence=0)


@dataclass(frozen=True, slots=True)
class _Left:
    """When an address was freed, and the sequence by which its endpoint was gone."""

    freed_at: float
    sequence: int
    before: bool
    """It was gone before we looked: by which sequence is not known, only that it was by this one."""


@dataclass(slots=True)
class Departures:
    """Of one node's freed addresses."""

    acknowledged: AcknowledgedEndpoints = NOTHING
    """By every live node."""
    _epoch: str = ""
    _listed: int = 0
    _left: dict[Address, _Left] = field(default_factory=dict)

    def observe(
        self, freed: Mapping[Address, float], published: Set[Address], epoch: str, listed: int, sequence: int
    ) -> None:
        """What the view shows: ``published`` stand in slots of this node at ``sequence`` of ``epoch``.

        ``listed`` counts the lists of the view: sequences of before one say nothing after it.
        """
        begins = (epoch, listed) != (self._epoch, self._listed)
        known = {} if begins else self._left
        self._epoch, self._listed = epoch, listed
        self._left = {}
        for address, at in freed.items():
            if address not in published:
                left = known.get(address)
                same = left is not None and left.freed_at == at
                self._left[address] = left if left is not None and same else _Left(at, sequence, begins)

    def is_known_to_all(self, address: Address, freed_at: float) -> bool:
        """Whether every live node has acknowledged that the pod is gone which had the address until then."""
        left = self._left.get(address)
        return left is not None and left.freed_at == freed_at and self._is_reached(left.sequence)

    def is_withheld(self, address: Address, freed_at: float) -> bool:
        """Whether a live node is known to be behind the leaving of that pod. Where nothing is known, time alone counts:
        after a start, or while a live node has acknowledged nothing of this epoch.
        """
        left = self._left.get(address)
        watched = left is not None and left.freed_at == freed_at and not left.before
        return watched and self.acknowledged.epoch == self._epoch and not self.is_known_to_all(address, freed_at)

    def _is_reached(self, sequence: int) -> bool:
        return self.acknowledged.epoch == self._epoch and self.acknowledged.sequence >= sequence
