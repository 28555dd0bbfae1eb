"""What is written back to a Node: its NetworkUnavailable condition and the blocks that it holds.

Owns the rule that a silence says nothing: only a node's own word (its ``acks`` entry) moves the condition, and only a
``not ready`` that has lasted moves it to True, since the scheduler keeps pods away from such a node. Blocks are written
when, and only when, the whole truth about them is known; ``ipam`` rebuilds from them what a dead node held.

Source: k8s.io/api core/v1 NodeNetworkUnavailable; kube-controller-manager taints by it. Units: seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from proto.addresses import Block
from proto.annotations import BLOCKS
from proto.policy import Ack
from services.cluster.core.parts import annotation
from services.cluster.core.shapes import Condition, NodeShape

CONDITION = "NetworkUnavailable"
READY_REASON = "AirmeshReady"
NOT_READY_REASON = "AirmeshNotReady"
GRACE = 30.0
"""How long a node must have said that it is not ready before others are told."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a Node says now."""

    status: str = ""
    """Status of the condition, empty when it has none."""
    reason: str = ""
    blocks: str = ""


def written(raw: bytes) -> Written:
    """What stands on a Node as the API served it. Raises msgspec.MsgspecError."""
    shape = msgspec.json.decode(raw, type=NodeShape)
    conditions = (shape.status and shape.status.conditions) or ()
    found = next((condition for condition in conditions if condition.type == CONDITION), None)
    return Written(
        status=found.status if found else "",
        reason=(found.reason or "") if found else "",
        blocks=annotation(shape.metadata, BLOCKS),
    )


def condition(ack: Ack | None, unready_for: float, there: Written) -> Condition | None:
    """The condition to write, or ``None`` when nothing is to be said. ``unready_for``: seconds of ``ready`` False."""
    if ack is None:
        return None
    if ack.ready:
        wanted = Condition(type=CONDITION, status="False", reason=READY_REASON)
    elif unready_for >= GRACE:
        wanted = Condition(type=CONDITION, status="True", reason=NOT_READY_REASON)
    else:
        return None
    return None if (there.status, there.reason) == (wanted.status, wanted.reason) else wanted


def condition_body(node: str, wanted: Condition, now: str) -> Mapping[str, Any]:
    """Server-side apply body for ``/status``. ``now`` is RFC 3339, UTC."""
    ready = wanted.status == "False"
    message = "airmesh carries this node's pods" if ready else "airmesh on this node says that it is not ready"
    entry = {
        "type": wanted.type,
        "status": wanted.status,
        "reason": wanted.reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "status": {"conditions": [entry]}}


def blocks_by_node(blocks: Iterable[Block]) -> dict[str, str]:
    """Node → the annotation's text: its blocks in order, joined by commas."""
    held: dict[str, list[Block]] = {}
    for block in blocks:
        held.setdefault(block.node, []).append(block)
    return {
        node: ",".join(str(b.cidr) for b in sorted(own, key=lambda b: (b.cidr.version, b.cidr)))
        for node, own in held.items()
    }


def blocks_body(node: str, text: str, version: str) -> Mapping[str, Any]:
    """Server-side apply body; no text gives the annotation up. ``version`` is the Node's: after another's write the API
    server refuses it (409 Conflict), so that who was asleep takes back no annotation that a node already gives from.
    """
    annotations = {BLOCKS: text} if text else {}
    meta = {"name": node, "resourceVersion": version, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta}
