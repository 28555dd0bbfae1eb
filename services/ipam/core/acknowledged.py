"""Acknowledgements of the whole cluster: up to which point of ``endpoints`` every live node's maps follow.

A node is live while its Node is Ready: one that is cut off stops counting when Kubernetes says so. One that is live and
acknowledges nothing, or another incarnation of the bucket, leaves no such point; nodes then reuse addresses by time
alone. Whose an acknowledgement is, its key says. A false one with a great number makes no other node's greater.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from proto.addresses import AcknowledgedEndpoints
from proto.objects import Node
from proto.policy import Ack

NOTHING = AcknowledgedEndpoints(epoch="", sequence=0)


def acknowledged_by_all(nodes: Iterable[Node], acks: Mapping[str, Ack]) -> AcknowledgedEndpoints:
    """The least that a live node has acknowledged; ``acks`` by the node whose key each was written with."""
    found = [acks.get(node.name) for node in nodes if node.ready]
    acknowledged = [ack for ack in found if ack is not None and ack.endpoints_epoch]
    epochs = {ack.endpoints_epoch for ack in acknowledged}
    if len(acknowledged) < len(found) or len(epochs) != 1:
        return NOTHING
    return AcknowledgedEndpoints(epoch=epochs.pop(), sequence=min(ack.endpoints for ack in acknowledged))
