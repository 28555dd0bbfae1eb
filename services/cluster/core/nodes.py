"""What is written back to a Node: its NetworkUnavailable condition, the taint of a new one, the blocks that it holds.

Owns the rule that a silence says nothing: only a node's own word (its ``acks`` entry) moves the condition, and only a
``not ready`` that has lasted moves it to True, since the scheduler keeps pods away from such a node. Blocks are written
when, and only when, the whole truth about them is known; ``ipam`` rebuilds from them what a dead node held.

A new node is one of which we have never written that it is ready: it has the taint until it says so. One that was ready
once never gets it again; of that one the condition speaks.

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
TAINT = "node.airmesh.io/agent-not-ready"
"""Key of the taint (NoSchedule) that keeps pods away from a node that has no network yet. A kubelet that registers
with it (``--register-with-taints``) leaves no moment without."""
GRACE = 30.0
"""How long a node must have said that it is not ready before others are told."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a Node says now."""

    status: str = ""
    """Status of the condition, empty when it has none."""
    reason: str = ""
    blocks: str = ""
    tainted: bool = False
    """It has :data:`TAINT`."""


def written(raw: bytes) -> Written:
    """What stands on a Node as the API served it. Raises msgspec.MsgspecError."""
    shape = msgspec.json.decode(raw, type=NodeShape)
    conditions = (shape.status and shape.status.conditions) or ()
    found = next((condition for condition in conditions if condition.type == CONDITION), None)
    return Written(
        status=found.status if found else "",
        reason=(found.reason or "") if found else "",
        blocks=annotation(shape.metadata, BLOCKS),
        tainted=any(taint.key == TAINT for taint in (shape.spec and shape.spec.taints) or ()),
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


def taint(ack: Ack | None, there: Written, *, new_nodes: bool) -> bool | None:
    """Whether the taint has to be put on (True) or taken off (False); ``None`` when it is as it should be.

    ``new_nodes``: it is put on nodes that have never been ready. It is taken off whoever put it on.
    """
    if ack is not None and ack.ready:
        return False if there.tainted else None
    new = there.reason not in (READY_REASON, NOT_READY_REASON)
    return True if new_nodes and new and not there.tainted else None


def taints_body(raw: bytes, *, on: bool) -> Mapping[str, Any]:
    """JSON merge patch (RFC 7386) of a Node as the API served it: its taints with or without ours.

    The list is one value to the API, so the patch holds for this very version of the object alone (else 409).
    """
    node = msgspec.json.decode(raw)
    others = [one for one in node.get("spec", {}).get("taints") or () if one["key"] != TAINT]
    taints = [*others, *([{"key": TAINT, "effect": "NoSchedule"}] if on else [])]
    return {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": taints or None}}


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
