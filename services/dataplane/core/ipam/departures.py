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


@dataclass(slots=True)
class Departures:
    """Of one node's freed addresses."""

    acknowledged: AcknowledgedEndpoints = NOTHING
    """By every live node."""
    _epoch: str = ""
    _listed: int = 0
    _left: dict[Address, tuple[float, int]] = field(default_factory=dict)
    """Freed address → when it was freed, and the sequence by which its endpoint was gone."""

    def observe(
        self, freed: Mapping[Address, float], published: Set[Address], epoch: str, listed: int, sequence: int
    ) -> None:
        """What the view shows: ``published`` stand in slots of this node at ``sequence`` of ``epoch``.

        ``listed`` counts the lists of the view: sequences of before one say nothing after it.
        """
        known = self._left if (epoch, listed) == (self._epoch, self._listed) else {}
        self._epoch, self._listed = epoch, listed
        self._left = {}
        for address, at in freed.items():
            if address not in published:
                before = known.get(address)
                self._left[address] = before if before is not None and before[0] == at else (at, sequence)

    def is_known_to_all(self, address: Address, freed_at: float) -> bool:
        """Whether every live node has acknowledged that the pod is gone which had the address until then."""
        left = self._left.get(address)
        by_all = self.acknowledged
        return left is not None and left[0] == freed_at and by_all.epoch == self._epoch and by_all.sequence >= left[1]
