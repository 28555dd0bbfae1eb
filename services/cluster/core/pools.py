"""Address pools: what one may be by itself (on reading it), and the condition that tells what becomes of it.

Promises one sentence with a remedy for each fault. The API server refuses most of them already (the CRD's rules);
pools of another's CRD meet them here. What only shows beside other pools, or asks for
what the mesh does not do, is judged by ``kit.pools`` and written as the pool's condition ``Allocatable``, with Calico's
type and reasons; a condition that says so already is not written again.

Source: crd.projectcalico.org/v1 IPPoolStatus; meta/v1 Condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from kit.pools import LARGEST_BLOCK
from proto.addresses import PoolVerdict
from proto.annotations import MODEL
from proto.objects import IPPool, Kind
from services.cluster.core.malformed import Wrong, quote
from services.cluster.core.parts import network
from services.cluster.core.shapes import IPPoolShape, IPPoolStatus, Metadata, PoolCondition, Shape

CONDITION = "Allocatable"
UNREADABLE = "Invalid"
"""Reason of a pool that cannot be understood at all."""
MAX_MESSAGE = 1024

DEFAULT_BLOCK: Mapping[int, int] = {4: 26, 6: 122}

Mode = Literal["Never", "Always", "CrossSubnet"]


def ip_pool(shape: IPPoolShape) -> IPPool:
    """crd.projectcalico.org/v1 IPPool; raises :class:`Wrong`."""
    spec = shape.spec
    cidr = network(spec.cidr, "spec.cidr", strict=True)
    ipip: Mode = spec.ipip_mode or "Never"
    vxlan: Mode = spec.vxlan_mode or "Never"
    if ipip != "Never" and cidr.version == 6:
        raise Wrong("spec.ipipMode", "IPIP carries IPv4 only", "use vxlanMode for an IPv6 pool")
    if ipip != "Never" and vxlan != "Never":
        raise Wrong("spec.vxlanMode", f"{vxlan} is in use beside ipipMode {ipip}", "set one of them to Never")
    model = _model(shape.metadata)
    if model and (ipip != "Never" or vxlan != "Never"):
        field, mode = ("ipipMode", ipip) if ipip != "Never" else ("vxlanMode", vxlan)
        problem = f"{model} is asked for beside spec.{field} {mode}"
        raise Wrong(f"metadata.annotations[{MODEL}]", problem, f"set spec.{field} to Never, or remove the annotation")
    block = spec.block_size or DEFAULT_BLOCK[cidr.version]
    low, high = LARGEST_BLOCK[cidr.version], cidr.max_prefixlen
    if not low <= block <= high:
        raise Wrong("spec.blockSize", f"{block} is out of range", f"use {low} to {high} for IPv{cidr.version}")
    if cidr.prefixlen > block:
        remedy = f"widen cidr to /{block} or more, or raise blockSize"
        raise Wrong("spec.cidr", f"{cidr} is smaller than one block (/{block})", remedy)
    return IPPool(
        name=shape.metadata.name,
        cidr=cidr,
        block_size=block,
        ipip_mode=ipip,
        vxlan_mode=vxlan,
        nat_outgoing=bool(spec.nat_outgoing),
        disabled=bool(spec.disabled),
        node_selector=spec.node_selector or "all()",
        namespace_selector=spec.namespace_selector or "",
        allowed_uses=tuple(spec.allowed_uses or ()),
        assignment_mode=spec.assignment_mode or "Automatic",
        model=model,
        disable_bgp_export=bool(spec.disable_bgp_export),
    )


def _model(metadata: Metadata) -> Literal["", "auto"]:
    """What the annotation asks for."""
    asked = (metadata.annotations or {}).get(MODEL, "")
    if asked == "auto":
        return "auto"
    if asked:
        remedy = "write auto, or remove it and use ipipMode, vxlanMode or FelixConfiguration's wireguardEnabled"
        raise Wrong(f"metadata.annotations[{MODEL}]", f"{quote(asked)} is no model that can be asked for here", remedy)
    return ""


class _Meta(Shape, frozen=True):
    generation: int = 0


class _Written(Shape, frozen=True):
    metadata: _Meta
    status: IPPoolStatus | None = None


def condition(verdict: PoolVerdict, raw: bytes, now: str) -> PoolCondition | None:
    """The condition to write on a pool that the API served as ``raw``; ``None`` when it says so already.

    ``now`` is RFC 3339; it is the time of transition where the status changes. A status that cannot be read is none.
    """
    try:
        there = msgspec.json.decode(raw, type=_Written)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        there = _Written(metadata=_Meta())
    listed = (there.status and there.status.conditions) or ()
    found = next((one for one in listed if one.type == CONDITION), None)
    status = "True" if verdict.allocatable else "False"
    wanted = PoolCondition(
        type=CONDITION,
        status=status,
        reason=verdict.reason,
        message=_message(verdict),
        last_transition_time=found.last_transition_time if found and found.status == status else now,
        observed_generation=there.metadata.generation,
    )
    return None if wanted == found else wanted


def _message(verdict: PoolVerdict) -> str:
    if verdict.refused:
        return f"{verdict.problem}; {verdict.remedy}"[:MAX_MESSAGE]
    return "gives addresses to pods" if verdict.allocatable else "spec.disabled is true: no new blocks or addresses"


def condition_path(kind: Kind, name: str) -> str:
    """Where it is applied; ``kind``: how the API has the pool."""
    return f"{kind.api}/{kind.plural}/{name}/status"


def condition_body(kind: Kind, name: str, wanted: PoolCondition) -> Mapping[str, Any]:
    """Server-side apply body."""
    return {
        "apiVersion": kind.api_version,
        "kind": "IPPool",
        "metadata": {"name": name},
        "status": {"conditions": [msgspec.to_builtins(wanted)]},
    }
