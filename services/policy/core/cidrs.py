"""CIDR sets: all addresses that policies name by ipBlock, cut into disjoint prefixes of equal membership.

A datapath can look an address up once, not once for each ipBlock. So the address space is cut wherever an ipBlock or
one of its exceptions begins or ends; each piece belongs to a fixed set of ipBlocks, and that set has a number: a 64-bit
hash of its sorted members, the same in every replica and for ever, 0 for the empty set. A rule on an ipBlock becomes
one line for each set that holds it.

The kernel keeps both families in one trie of 16 bytes with IPv4 mapped to ``::ffff:0:0/96`` (RFC 4291, 2.5.5.2). An
IPv6 ipBlock that covers this range, such as ``::/0``, must not let IPv4 in: the range is cut out of every IPv6 block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, IPv6Network, summarize_address_range

from kit.prefixes import overlap
from proto.net import Address, Network
from proto.objects import IPBlock
from proto.policy import CidrSet

_MAPPED = IPv6Network("::ffff:0:0/96")

Span = tuple[int, int]
"""First and last address as integers, both included."""


@dataclass(frozen=True, slots=True)
class Block:
    """An ipBlock in canonical form: equal for equal meaning of spelling, whatever order its exceptions came in."""

    cidr: Network
    excepted: tuple[Network, ...] = ()
    """Sorted, without repeats, only those that overlap ``cidr``."""

    @property
    def text(self) -> str:
        """Canonical text, what set numbers are computed from: ``10.0.0.0/8!10.1.0.0/16!10.2.0.0/16``."""
        return "!".join(map(str, (self.cidr, *self.excepted)))

    def holds(self, address: Address) -> bool:
        """Whether the address is in the CIDR and in none of the exceptions."""
        value = int(address)
        return address.version == self.cidr.version and any(first <= value <= last for first, last in spans(self))


def canonical(block: IPBlock) -> Block:
    """The block with its exceptions put in order; exceptions of the other family can never apply and are left out."""
    kept = {network for network in block.excepted if network.version == block.cidr.version}
    return Block(block.cidr, tuple(sorted((n for n in kept if overlap(n, block.cidr)), key=_span)))


def _span(network: Network) -> Span:
    return int(network.network_address), int(network.broadcast_address)


def spans(block: Block) -> tuple[Span, ...]:
    """What is left of the block after its exceptions, as disjoint ascending ranges."""
    first, last = _span(block.cidr)
    holes = [_span(network) for network in block.excepted]
    if block.cidr.version == 6:
        holes.append(_span(_MAPPED))
    left: list[Span] = []
    for hole_first, hole_last in sorted(holes):
        if hole_first > first:
            left.append((first, min(hole_first - 1, last)))
        first = max(first, hole_last + 1)
        if first > last:
            break
    if first <= last:
        left.append((first, last))
    return tuple(span for span in left if span[0] <= span[1])


def set_number(members: Iterable[Block]) -> int:
    """Number of a set of blocks: 64-bit hash of its sorted canonical texts, never 0 unless the set is empty."""
    texts = sorted(block.text for block in members)
    if not texts:
        return 0
    number = int.from_bytes(blake2b("\n".join(texts).encode(), digest_size=8).digest(), "big")
    return number or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The cut address space, and for each block the numbers of the sets that hold it."""

    prefixes: tuple[CidrSet, ...] = ()
    """Disjoint, sorted by family and address; what lies in no block is not listed."""
    numbers_by_block: Mapping[Block, frozenset[int]] = field(default_factory=dict)
    clashes: tuple[int, ...] = ()
    """Numbers that two different sets share: refused, nothing carries them, so they allow nothing."""


def partition(blocks: Iterable[Block]) -> Partition:
    """Cut the address space by all ``blocks``; the same for any order of them."""
    wanted = frozenset(blocks)
    pieces: list[tuple[int, Span, frozenset[Block]]] = []
    for version in (4, 6):
        family = [block for block in wanted if block.cidr.version == version]
        pieces += [(version, span, members) for span, members in _sweep(family)]
    members_by_number: dict[int, set[frozenset[Block]]] = {}
    for members in {members for _, _, members in pieces}:
        members_by_number.setdefault(set_number(members), set()).add(members)
    clashes = frozenset(number for number, sets in members_by_number.items() if len(sets) > 1)
    numbers: dict[frozenset[Block], int] = {}
    numbers_by_block: dict[Block, set[int]] = {block: set() for block in wanted}
    for number, sets in members_by_number.items():
        if number in clashes:
            continue
        (members,) = sets
        numbers[members] = number
        for block in members:
            numbers_by_block[block].add(number)
    return Partition(
        prefixes=tuple(
            CidrSet(prefix=network, number=numbers[members])
            for version, span, members in pieces
            if members in numbers
            for network in _networks(version, span)
        ),
        numbers_by_block={block: frozenset(held) for block, held in numbers_by_block.items()},
        clashes=tuple(sorted(clashes)),
    )


def _sweep(blocks: Sequence[Block]) -> list[tuple[Span, frozenset[Block]]]:
    """Elementary ranges with the set of blocks that hold them; neighbours of equal membership are one range."""
    starts: dict[int, list[Block]] = {}
    ends: dict[int, list[Block]] = {}
    for block in blocks:
        for first, last in spans(block):
            starts.setdefault(first, []).append(block)
            ends.setdefault(last + 1, []).append(block)
    active: set[Block] = set()
    pieces: list[tuple[Span, frozenset[Block]]] = []
    begun = 0
    for edge in sorted(starts.keys() | ends.keys()):
        if active:
            members = frozenset(active)
            if pieces and pieces[-1][1] == members and pieces[-1][0][1] == begun - 1:
                begun = pieces.pop()[0][0]
            pieces.append(((begun, edge - 1), members))
        active.difference_update(ends.get(edge, ()))
        active.update(starts.get(edge, ()))
        begun = edge
    return pieces


def _networks(version: int, span: Span) -> Iterable[Network]:
    first, last = span
    if version == 4:
        return summarize_address_range(IPv4Address(first), IPv4Address(last))
    return summarize_address_range(IPv6Address(first), IPv6Address(last))


def numbers_within(prefixes: Iterable[CidrSet], blocks: Iterable[Block]) -> dict[Block, frozenset[int]]:
    """For each block the numbers of another partition whose every prefix lies wholly inside the block.

    Nodes go on with the partition they have until every shard's lines for the next one are there, so lines are needed
    for both. Only prefixes and numbers of the older one are known, not its members; a number that also lies outside
    the block, even in part, is left out: never more is allowed than the block allows.
    """
    areas: dict[int, list[tuple[int, Span]]] = {}
    for entry in prefixes:
        areas.setdefault(entry.number, []).append((entry.prefix.version, _span(entry.prefix)))
    areas.pop(0, None)
    return {
        block: frozenset(number for number, area in areas.items() if _inside(area, block.cidr.version, spans(block)))
        for block in blocks
    }


def _inside(area: Sequence[tuple[int, Span]], version: int, ranges: Sequence[Span]) -> bool:
    return all(
        own == version and any(begin <= first and last <= end for begin, end in ranges) for own, (first, last) in area
    )


def number_of(prefixes: Iterable[CidrSet], address: Address) -> int:
    """Number of the set that holds the address (a linear scan: for explaining, not for packets)."""
    return next(
        (entry.number for entry in prefixes if entry.prefix.version == address.version and address in entry.prefix), 0
    )
