"""Address pools: what one may be by itself (on reading it) and beside the others (overlaps).

Promises one sentence with a remedy for each fault. The API server refuses most of the first sort already (the CRD's
rules); manifests read from a file, and pools of another's CRD, meet them here. A pool that overlaps an older one is the
one at fault: the older keeps working.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from proto.objects import IPPool
from services.cluster.core.malformed import Wrong
from services.cluster.core.parts import network
from services.cluster.core.shapes import IPPoolShape

DEFAULT_BLOCK: Mapping[int, int] = {4: 26, 6: 122}
BLOCK_RANGE: Mapping[int, tuple[int, int]] = {4: (20, 32), 6: (116, 128)}
"""Shortest and longest prefix of a block, as Calico has them."""

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
        raise Wrong("spec.vxlanMode", "is in use beside ipipMode", "set one of them to Never")
    block = spec.block_size or DEFAULT_BLOCK[cidr.version]
    low, high = BLOCK_RANGE[cidr.version]
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
    )


def overlaps(pools: Iterable[IPPool]) -> dict[str, str]:
    """Pool name → one sentence, for each enabled pool that overlaps another enabled one.

    Both are named: which one came first cannot be told from their values, and a person has to choose.
    """
    enabled = sorted((pool for pool in pools if not pool.disabled), key=lambda p: (p.cidr.version, p.cidr, p.name))
    faults: dict[str, str] = {}
    widest: IPPool | None = None
    for pool in enabled:
        # Sorted by first address and then length, a pool can only overlap the one that reaches furthest so far.
        if widest is not None and widest.cidr.version == pool.cidr.version and widest.cidr.overlaps(pool.cidr):
            for one, other in ((pool, widest), (widest, pool)):
                faults.setdefault(one.name, _overlap(one, other))
        else:
            widest = pool
    return faults


def _overlap(pool: IPPool, other: IPPool) -> str:
    return (
        f"IPPool {pool.name}: spec.cidr: {pool.cidr} overlaps {other.cidr} of IPPool {other.name}; "
        "disable one of them or choose another range"
    )
