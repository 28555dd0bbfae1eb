"""Which address pools may be used: IPPools judged once, each fault one sentence with its remedy.

Owns the judgement of ``IPPool`` objects. A pool that is not fit to be used gives nothing away; addresses already given
from it stay where they are. Of two pools that overlap, the one that has blocks already goes on, else the one whose name
comes first; the other is refused, so an edit can never put one address into two pools. Source: Calico's IPPool
reference (blockSize 20-32 and 116-128, nodeSelector, disabled). Selectors are the part of Calico's language that pools
use: ``all()``, ``has(key)``, ``!has(key)``, ``key == 'value'``, ``key != 'value'``, ``key in {'a', 'b'}``,
``key not in {…}``, joined by ``&&``; anything else is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

from kit.prefixes import overlap
from proto.net import Network
from proto.objects import IPPool, Node

LARGEST_BLOCK = {4: 20, 6: 116}
"""Shortest prefix of a block by family: 4,096 addresses."""

Labels = Mapping[str, str]
Matches = Callable[[Labels], bool]


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool that may be used."""

    name: str
    cidr: Network
    block_size: int
    """Prefix length of its blocks."""
    enabled: bool
    """New blocks and claims may be taken from it."""
    selects: Matches = field(compare=False)
    """Whether a node with these labels may hold a block of it."""

    def takes(self, node: Node) -> bool:
        """Whether this node may hold a block of the pool."""
        return self.selects(dict(node.labels))


@dataclass(frozen=True, slots=True)
class Pools:
    """All pools that are sound, in order of name, and what is wrong with the others."""

    sound: tuple[Pool, ...] = ()
    problems: tuple[str, ...] = ()

    def enabled(self, family: int) -> tuple[Pool, ...]:
        """Pools of a family that new blocks are taken from, in order of preference."""
        return tuple(pool for pool in self.sound if pool.enabled and pool.cidr.version == family)

    def of(self, network: Network) -> Pool | None:
        """The sound pool that a block, or an address as a /32 or /128, lies in."""
        return next((pool for pool in self.sound if _within(network, pool.cidr)), None)


def judge_pools(pools: Iterable[IPPool], in_use: Set[str] = frozenset()) -> Pools:
    """Sound pools and problems. ``in_use`` names the pools that have blocks: they are not displaced by new ones."""
    sound: list[Pool] = []
    problems: list[str] = []
    for candidate in sorted(pools, key=lambda pool: (pool.name not in in_use, pool.name)):
        judged = _judge(candidate, sound)
        if isinstance(judged, str):
            problems.append(judged)
        else:
            sound.append(judged)
    return Pools(tuple(sorted(sound, key=lambda pool: pool.name)), tuple(sorted(problems)))


def _judge(pool: IPPool, sound: list[Pool]) -> Pool | str:
    family = pool.cidr.version
    longest, shortest = pool.cidr.max_prefixlen, LARGEST_BLOCK[family]
    if not shortest <= pool.block_size <= longest:
        return (
            f"IPPool {pool.name}: spec.blockSize {pool.block_size} is outside {shortest}-{longest} "
            f"for IPv{family}; choose one within"
        )
    if pool.block_size < pool.cidr.prefixlen:
        return (
            f"IPPool {pool.name}: spec.cidr {pool.cidr} is smaller than one block (/{pool.block_size}); "
            f"give it a larger cidr, or a spec.blockSize of at least {pool.cidr.prefixlen}"
        )
    other = next((known for known in sound if overlap(known.cidr, pool.cidr)), None)
    if other is not None:
        return (
            f"IPPool {pool.name}: spec.cidr {pool.cidr} overlaps {other.cidr} of IPPool {other.name}; "
            "change or delete one of the two"
        )
    selects = parse_selector(pool.node_selector)
    if isinstance(selects, str):
        return f"IPPool {pool.name}: spec.nodeSelector {selects}"
    return Pool(pool.name, pool.cidr, pool.block_size, not pool.disabled, selects)


_KEY = r"([A-Za-z0-9](?:[-A-Za-z0-9_./]{0,250}[A-Za-z0-9])?)"
_COMPARED = re.compile(rf"{_KEY}\s*(==|!=)\s*(?:'([^']*)'|\"([^\"]*)\")")
_HAS = re.compile(rf"(!?)\s*has\(\s*{_KEY}\s*\)")
_MEMBER = re.compile(rf"{_KEY}\s+(in|not in)\s*\{{([^{{}}]*)\}}")
_QUOTED = re.compile(r"\s*(?:'([^']*)'|\"([^\"]*)\")\s*")
_MAX_SELECTOR = 4096


def parse_selector(text: str) -> Matches | str:
    """A node selector as a predicate on labels, or what is wrong with it as the end of a sentence."""
    if len(text) > _MAX_SELECTOR:
        return f"is {len(text)} characters long; at most {_MAX_SELECTOR} are read"
    terms: list[Matches] = []
    for part in (text or "all()").split("&&"):
        term = _term(part.strip())
        if term is None:
            return (
                f"{text!r} is not understood at {part.strip()!r}; use all(), has(key), key == 'value', "
                "key in {'a', 'b'}, their negations, and &&"
            )
        terms.append(term)
    return lambda labels: all(term(labels) for term in terms)


def _term(text: str) -> Matches | None:
    if text in ("all()", ""):
        return lambda _: True
    if match := _HAS.fullmatch(text):
        negated, key = match.groups()
        return lambda labels: (key in labels) is not bool(negated)
    if match := _COMPARED.fullmatch(text):
        key, operator, single, double = match.groups()
        value = single if single is not None else double
        return lambda labels: (labels.get(key) == value) is (operator == "==")
    if match := _MEMBER.fullmatch(text):
        key, operator, inner = match.groups()
        values = _values(inner)
        return None if values is None else lambda labels: (labels.get(key) in values) is (operator == "in")
    return None


def _values(text: str) -> frozenset[str | None] | None:
    parts = [_QUOTED.fullmatch(part) for part in text.split(",")]
    if not all(parts):
        return None
    return frozenset(part[1] if part[1] is not None else part[2] for part in parts if part)


def _within(network: Network, pool: Network) -> bool:
    return network.version == pool.version and network.prefixlen >= pool.prefixlen and network.network_address in pool
