"""Acknowledgements of the whole cluster: up to which point of ``endpoints`` every live node's maps follow.

A node is live while its Node is Ready: one that is cut off stops counting when Kubernetes says so. One that is live and
acknowledges nothing, or another incarnation of the bucket, leaves no such point; nodes then reuse addresses by time
alone. Whose an acknowledgement is, its key says. A false one with a great number makes no other node's greater.

Nodes follow this for addresses of their own blocks; of kept addresses and whole blocks :class:`Departed` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from proto.addresses import AcknowledgedEndpoints
from proto.objects import Node
from proto.policy import Ack

K = TypeVar("K")
NOTHING = AcknowledgedEndpoints(epoch="", sequence=0)


def acknowledged_by_all(nodes: Iterable[Node], acks: Mapping[str, Ack]) -> AcknowledgedEndpoints:
    """The least that a live node has acknowledged; ``acks`` by the node whose key each was written with."""
    found = [acks.get(node.name) for node in nodes if node.ready]
    acknowledged = [ack for ack in found if ack is not None and ack.endpoints_epoch]
    epochs = {ack.endpoints_epoch for ack in acknowledged}
    if len(acknowledged) < len(found) or len(epochs) != 1:
        return NOTHING
    return AcknowledgedEndpoints(epoch=epochs.pop(), sequence=min(ack.endpoints for ack in acknowledged))


@dataclass(slots=True)
class Departed(Generic[K]):
    """What has rested for its time, and waits until every live node has acknowledged what ``endpoints`` was by then.

    At most ``most`` wait for a node that is behind: past that those that have waited longest are freed by time alone.
    """

    most: int
    _epoch: str = ""
    _rested_at: dict[K, int] = field(default_factory=dict)
    """The last sequence of ``endpoints`` when it was first found to have rested."""

    def known_to_all(
        self, rested: Iterable[K], last: AcknowledgedEndpoints, acknowledged: AcknowledgedEndpoints
    ) -> tuple[K, ...]:
        """Those that may be freed. ``last``: the epoch and last sequence of ``endpoints``, read after ``rested`` was
        found. Where no acknowledgement of this epoch is known, all of them.
        """
        before = self._rested_at if last.epoch == self._epoch else {}
        self._epoch = last.epoch
        self._rested_at = {one: before.get(one, last.sequence) for one in rested}
        if not last.epoch or acknowledged.epoch != last.epoch:
            return tuple(self._rested_at)
        behind = [one for one, at in self._rested_at.items() if at > acknowledged.sequence]
        withheld = frozenset(sorted(behind, key=self._rested_at.__getitem__)[-self.most :])
        return tuple(one for one in self._rested_at if one not in withheld)
