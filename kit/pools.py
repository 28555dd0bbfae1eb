"""Address pools: which IPPools give addresses to pods, judged once, each fault one sentence with its remedy.

Whoever acts on pools asks here (``ipam`` that gives blocks, a node that asks for one, ``cluster`` that writes the
condition), so all say the same. Promises: a pool that asks for what the mesh does not do gives no new blocks and says
why; addresses already given from any pool stay where they are. Of pools that overlap one gives: the one that has blocks
already, else one that would give at all, else the one whose name comes first; so an edit can never put one address into
two pools. A disabled pool without blocks stands in nobody's way.

Which nodes a pool is for, ``kit.node_selectors`` reads. Source: Calico's IPPool reference (blockSize 20-32 and 116-128,
nodeSelector, disabled, allowedUses, assignmentMode) and the reasons of its condition Allocatable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from itertools import pairwise

from kit.models import HOST_GW, SERVED, Model, wishes
from kit.node_selectors import Labels, Matches, parse_selector
from kit.prefixes import overlap
from proto.addresses import PoolVerdict
from proto.net import Network
from proto.objects import IPPool, Node

LARGEST_BLOCK = {4: 20, 6: 116}
"""Shortest prefix of a block by family: 4,096 addresses."""

OK = "OK"
DISABLED = "PoolDisabled"
OVERLAP = "CIDROverlap"
BAD_BLOCK_SIZE = "InvalidBlockSize"
BAD_SELECTOR = "InvalidNodeSelector"
UNSUPPORTED = "UnsupportedField"
"""A field asks for what the mesh does not do."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool that can have blocks."""

    name: str
    cidr: Network
    block_size: int
    """Prefix length of its blocks."""
    enabled: bool
    """New blocks and claims may be taken from it."""
    automatic: bool
    """Pods that ask for no certain address are given its; False: only those that ask (``assignmentMode: Manual``)."""
    selects: Matches = field(compare=False)
    """Whether a node with these labels may hold a block of it."""

    def takes(self, node: Node) -> bool:
        """Whether this node may hold a block of the pool."""
        return self.selects(dict(node.labels))


@dataclass(frozen=True, slots=True)
class Pools:
    """All pools, judged."""

    sound: tuple[Pool, ...] = ()
    """Those that share no address with each other, in order of name."""
    overlapping: tuple[Pool, ...] = ()
    """Those that share addresses with a sound one: they give nothing, and may have blocks from before."""
    verdicts: tuple[PoolVerdict, ...] = ()
    """One for each IPPool, in order of name."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one sentence for each refused pool."""
        return tuple(verdict.sentence for verdict in self.verdicts if verdict.refused)

    def enabled(self, family: int) -> tuple[Pool, ...]:
        """Pools of a family that new blocks are taken from, in order of preference."""
        return tuple(pool for pool in self.sound if pool.enabled and pool.automatic and pool.cidr.version == family)

    def of(self, network: Network) -> Pool | None:
        """The pool that a block, or an address as a /32 or /128, lies in; of several the sound one."""
        return next((pool for pool in (*self.sound, *self.overlapping) if within(network, pool.cidr)), None)


def within(network: Network, range_: Network) -> bool:
    """Whether every address of ``network`` lies in ``range_``."""
    return network.prefixlen >= range_.prefixlen and overlap(network, range_)


def any_overlap(pools: Iterable[IPPool]) -> bool:
    """Whether two of the pools share an address, so that it matters which of them have blocks."""
    # Of networks in order of first address and length, two that overlap have one next to the other that overlaps too.
    ordered = sorted((pool.cidr.version, int(pool.cidr.network_address), pool.cidr.prefixlen) for pool in pools)
    bits = {4: 32, 6: 128}
    return any(
        version == other and second - first < 1 << (bits[version] - length)
        for (version, first, length), (other, second, _) in pairwise(ordered)
    )


def judge_pools(pools: Iterable[IPPool], in_use: Set[str] = frozenset(), served: Mapping[str, Model] = SERVED) -> Pools:
    """All pools judged. ``in_use`` names those that have blocks: they are not displaced by new ones. ``served``: the
    models that the mesh can do.
    """
    alone = [(pool, *_judge(pool, served)) for pool in sorted(pools, key=lambda pool: pool.name)]
    verdicts = {pool.name: verdict for pool, _, verdict in alone}
    sound: list[Pool] = []
    overlapping: list[Pool] = []
    able = [judged for _, judged, _ in alone if judged is not None]
    for judged in sorted(able, key=lambda pool: (pool.name not in in_use, not pool.enabled, pool.name)):
        other = next((known for known in sound if overlap(known.cidr, judged.cidr)), None)
        if other is None:
            sound.append(judged)
            continue
        overlapping.append(_closed(judged))
        if verdicts[judged.name].allocatable:
            verdicts[judged.name] = _overlaps(judged, other)
    return Pools(
        tuple(sorted(sound, key=lambda pool: pool.name)),
        tuple(sorted(overlapping, key=lambda pool: pool.name)),
        tuple(verdicts.values()),
    )


def _judge(pool: IPPool, served: Mapping[str, Model]) -> tuple[Pool | None, PoolVerdict]:
    """A pool by itself; None for one that can have no block at all."""
    selects = parse_selector(pool.node_selector)
    verdict = _sized(pool)
    if verdict is not None:
        return None, verdict
    if isinstance(selects, str):
        problem, _, remedy = selects.rpartition("; ")
        verdict = PoolVerdict(pool.name, BAD_SELECTOR, f"spec.nodeSelector {problem}", remedy)
    elif pool.disabled:
        verdict = PoolVerdict(pool.name, DISABLED)
    else:
        verdict = _unsupported(pool, served) or PoolVerdict(pool.name, OK)
    able = Pool(
        name=pool.name,
        cidr=pool.cidr,
        block_size=pool.block_size,
        enabled=verdict.allocatable,
        automatic=pool.assignment_mode == "Automatic",
        selects=_nothing if isinstance(selects, str) else selects,
    )
    return able, verdict


def _sized(pool: IPPool) -> PoolVerdict | None:
    family = pool.cidr.version
    longest, shortest = pool.cidr.max_prefixlen, LARGEST_BLOCK[family]
    if not shortest <= pool.block_size <= longest:
        problem = f"spec.blockSize {pool.block_size} is outside {shortest}-{longest} for IPv{family}"
        return PoolVerdict(pool.name, BAD_BLOCK_SIZE, problem, "choose one within")
    if pool.block_size < pool.cidr.prefixlen:
        problem = f"spec.cidr {pool.cidr} is smaller than one block (/{pool.block_size})"
        remedy = f"give it a larger cidr, or a spec.blockSize of at least {pool.cidr.prefixlen}"
        return PoolVerdict(pool.name, BAD_BLOCK_SIZE, problem, remedy)
    return None


def _unsupported(pool: IPPool, served: Mapping[str, Model]) -> PoolVerdict | None:
    """Why a pool cannot be honoured whole; it is then not used at all, since any other use is not what was asked."""
    for wish in wishes(pool):
        if wish.model not in served:
            word = wish.model.upper()
            problem = f"spec.{wish.field} {wish.mode}: pod packets cannot travel in {word} yet, only as they are"
            return PoolVerdict(
                pool.name,
                UNSUPPORTED,
                f"{problem} ({HOST_GW.name})",
                f"set spec.{wish.field} to Never if the nodes are on one L2 network",
            )
    if pool.namespace_selector.strip() not in ("", "all()"):
        problem = f"spec.namespaceSelector {pool.namespace_selector!r}: a pool cannot be kept for namespaces yet"
        return PoolVerdict(pool.name, UNSUPPORTED, problem, "remove spec.namespaceSelector, or disable the pool")
    if pool.allowed_uses and ("Workload" not in pool.allowed_uses or "LoadBalancer" in pool.allowed_uses):
        problem = f"spec.allowedUses {', '.join(pool.allowed_uses)}: addresses are given to pods alone"
        remedy = "write [Workload], or disable the pool"
        return PoolVerdict(pool.name, UNSUPPORTED, problem, remedy)
    return None


def _overlaps(pool: Pool, other: Pool) -> PoolVerdict:
    problem = f"spec.cidr {pool.cidr} overlaps {other.cidr} of IPPool {other.name}, which is used"
    return PoolVerdict(pool.name, OVERLAP, problem, "delete one of the two, and choose another range for it")


def _closed(pool: Pool) -> Pool:
    return Pool(pool.name, pool.cidr, pool.block_size, enabled=False, automatic=False, selects=pool.selects)


def _nothing(_: Labels) -> bool:
    return False
