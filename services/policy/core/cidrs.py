"""CIDR sets: addresses that one namespace's policies name by ipBlock, as prefixes with the set of rules they are in.

A datapath can look an address up once, not once for each ipBlock. The ipBlocks of one rule are one *area*. Every CIDR
and every exception is a prefix, and prefixes either lie in one another or apart: so within a prefix, but for the longer
ones in it, all addresses are in the same areas. That set of areas has a number: a 64-bit hash of its members, the same
in every replica and for ever, 0 for the empty set. The longest prefix that holds an address says its number, and a rule
with ipBlocks names each number whose set has its area. There are never more prefixes than were written.

Each namespace has a partition of its own: what one tenant writes neither cuts nor rewrites another's rules.

The kernel keeps both families in one trie of 16 bytes with IPv4 mapped to ``::ffff:0:0/96`` (RFC 4291, 2.5.5.2). An
IPv6 ipBlock that covers this range, such as ``::/0``, must not let IPv4 in: the range is excepted from each of them.

Costs: sorting, one sweep with a stack, and one step for each pair of a set and a member of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, shake_256
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from kit.prefixes import overlap
from proto.net import Address, Network
from proto.objects import IPBlock
from proto.policy import CidrSet

_MAPPED = IPv6Network("::ffff:0:0/96")
_HOLE = int(_MAPPED.network_address), 96, 0
"""As an entry: first address, length, mark of the empty set."""
_BITS = {4: 32, 6: 128}
_MARK_BYTES = 128
"""Of an area's mark. A set's mark is the sum of its members', so that sweeping adds and takes away; at 1,024 bits
nobody finds two sets with one sum (Wagner's generalized birthday, as in LtHash)."""
_WRAP = (1 << 8 * _MARK_BYTES) - 1

_NO_LIMIT = 1 << 62

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
        return address.version == self.cidr.version and _within(spans(self), int(address))


def canonical(block: IPBlock) -> Block:
    """The block with its exceptions put in order; exceptions of the other family can never apply and are left out."""
    kept = {network for network in block.excepted if network.version == block.cidr.version}
    return Block(block.cidr, tuple(sorted((n for n in kept if overlap(n, block.cidr)), key=_span)))


def _span(network: Network) -> Span:
    return int(network.network_address), int(network.broadcast_address)


def _holes(block: Block) -> Iterator[Network]:
    yield from block.excepted
    if block.cidr.version == 6 and overlap(block.cidr, _MAPPED):
        yield _MAPPED


def spans(block: Block) -> tuple[Span, ...]:
    """What is left of the block after its exceptions, as disjoint ascending ranges."""
    first, last = _span(block.cidr)
    left: list[Span] = []
    for hole_first, hole_last in sorted(map(_span, _holes(block))):
        if hole_first > first:
            left.append((first, min(hole_first - 1, last)))
        first = max(first, hole_last + 1)
        if first > last:
            break
    if first <= last:
        left.append((first, last))
    return tuple(span for span in left if span[0] <= span[1])


def _within(ranges: Sequence[Span], value: int) -> bool:
    index = bisect_right(ranges, value, key=_first) - 1
    return index >= 0 and value <= ranges[index][1]


def _first(span: Span) -> int:
    return span[0]


@dataclass(frozen=True, slots=True)
class Area:
    """The ipBlocks of one rule: an address is in it when any of them holds it."""

    text: str
    """Canonical texts of the blocks, sorted, one a line: equal for equal meaning of spelling."""
    blocks: tuple[Block, ...] = field(compare=False)

    @property
    def mark(self) -> int:
        """What this area adds to the mark of a set."""
        return int.from_bytes(shake_256(self.text.encode()).digest(_MARK_BYTES), "big")

    def holds(self, address: Address) -> bool:
        """Whether any block holds the address."""
        return any(block.holds(address) for block in self.blocks)


def area_of(blocks: Iterable[IPBlock]) -> Area:
    """The area of a rule that names these blocks, in any order."""
    by_text = {block.text: block for block in map(canonical, blocks)}
    return Area("\n".join(sorted(by_text)), tuple(by_text[text] for text in sorted(by_text)))


def set_number(members: Iterable[Area]) -> int:
    """Number of a set of areas: 64-bit hash of the sum of their marks, never 0 unless the set is empty."""
    distinct = set(members)
    return _number(sum(area.mark for area in distinct) & _WRAP, len(distinct))


def _number(mark: int, count: int) -> int:
    if not count:
        return 0
    return int.from_bytes(blake2b(mark.to_bytes(_MARK_BYTES, "big"), digest_size=8).digest(), "big") or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """What a namespace's areas make of the address space, and for each area the numbers of the sets that it is in."""

    prefixes: tuple[CidrSet, ...] = ()
    """Sorted by family, address and length. The longest one that holds an address counts; one with number 0 is a hole
    in that around it."""
    numbers_by_area: Mapping[Area, frozenset[int]] = field(default_factory=dict)
    clashes: tuple[int, ...] = ()
    """Numbers that two different sets share: refused, nothing carries them, so they allow nothing."""
    memberships: int = 0
    """Pairs of a set and an area in it: what the rules of the namespace hold together."""
    digest: str = ""
    """Of the prefixes."""


class TooMuchOverlap(ValueError):
    """More pairs of a set and a member than were allowed."""


class _Edge:
    """One prefix, and the areas whose count of blocks changes inside it."""

    __slots__ = ("begun", "ended", "last")

    def __init__(self, last: int) -> None:
        self.last = last
        self.begun: list[Block] = []
        self.ended: list[Block] = []


class _Sweep:
    """Which areas hold the place that the sweep is at; entering and leaving prefixes are each other's inverse."""

    def __init__(self, areas: Iterable[Area], most: int) -> None:
        self.areas_of: dict[int, list[Area]] = {}
        self._marks: dict[Area, int] = {}
        self._blocks: dict[Area, int] = {}
        self._on: dict[int, int] = {}
        self._mark = 0
        self._most = most
        self.members: dict[int, frozenset[Area]] = {}
        """By mark, of every set that was met."""
        self.memberships = 0
        for area in areas:
            self._marks[area] = area.mark
            for block in area.blocks:
                self.areas_of.setdefault(id(block), []).append(area)

    @property
    def mark(self) -> int:
        """Mark of the set here, remembered with its members; 0 for the empty set."""
        if not self._blocks:
            return 0
        if self._mark not in self.members:
            self.memberships += len(self._blocks)
            if self.memberships > self._most:
                raise TooMuchOverlap(f"more than {self._most} pairs")
            self.members[self._mark] = frozenset(self._blocks)
        return self._mark

    def switch(self, block: Block, *, on: bool) -> bool:
        """The block holds this place from here on, or no longer; False when that was so already."""
        if self._on.get(id(block), 0) == on:
            return False
        self._on[id(block)] = on
        for area in self.areas_of[id(block)]:
            count = self._blocks.get(area, 0) + (1 if on else -1)
            if not count:
                del self._blocks[area]
            else:
                self._blocks[area] = count
            if count == on:  # the first block of the area that holds this place, or the last that did
                self._mark = (self._mark + (self._marks[area] if on else -self._marks[area])) & _WRAP
        return True


class _Open(NamedTuple):
    """A prefix that the sweep is in, what it changed, and the mark of its entry (or that around it)."""

    last: int
    switched: tuple[Block, ...]
    ended: tuple[Block, ...]
    entry_mark: int


def partition(areas: Iterable[Area], most: int = _NO_LIMIT) -> Partition:
    """Sets of all ``areas``; the same for any order of them. Raises TooMuchOverlap beyond ``most`` memberships."""
    distinct = sorted(set(areas), key=lambda area: area.text)
    entries: list[tuple[int, int, int, int]] = []
    sweep = _Sweep(distinct, most)
    for version in (4, 6):
        entries += [(version, *entry) for entry in _swept(version, distinct, sweep)]
    if any(version == 4 and length == 0 for version, _, length, _ in entries):
        # In the kernel's trie that is the same key as the hole in IPv6, and says more.
        entries = [entry for entry in entries if entry != (6, *_HOLE)]
    marks_by_number: dict[int, list[int]] = {}
    for mark, members in sweep.members.items():
        marks_by_number.setdefault(_number(mark, len(members)), []).append(mark)
    clashes = frozenset(number for number, marks in marks_by_number.items() if len(marks) > 1)
    numbers = {mark: 0 if number in clashes else number for number, marks in marks_by_number.items() for mark in marks}
    numbers[0] = 0
    numbers_by_area: dict[Area, set[int]] = {area: set() for area in distinct}
    for mark, members in sweep.members.items():
        if numbers[mark]:
            for area in members:
                numbers_by_area[area].add(numbers[mark])
    digest = blake2b(digest_size=16)
    prefixes = []
    for version, first, length, mark in entries:
        number = numbers[mark]
        prefixes.append(CidrSet(prefix=_network(version, first, length), number=number))
        digest.update(b"%d %d %d %d\n" % (version, first, length, number))
    return Partition(
        prefixes=tuple(prefixes),
        numbers_by_area={area: frozenset(held) for area, held in numbers_by_area.items()},
        clashes=tuple(sorted(clashes)),
        memberships=sweep.memberships,
        digest=digest.hexdigest() if prefixes else "",
    )


def _swept(version: int, areas: Iterable[Area], sweep: _Sweep) -> list[tuple[int, int, int]]:
    """First address, length and mark of each prefix whose set is another than that around it, in order."""
    edges = _edges(version, {id(block): block for area in areas for block in area.blocks}.values())
    entries: list[tuple[int, int, int]] = []
    stack: list[_Open] = []

    def leave() -> None:
        gone = stack.pop()
        for block in gone.ended:
            sweep.switch(block, on=True)
        for block in gone.switched:
            sweep.switch(block, on=False)

    for first, length in sorted(edges):
        edge = edges[first, length]
        while stack and stack[-1].last < first:
            leave()
        switched = tuple(block for block in edge.begun if sweep.switch(block, on=True))
        ended = tuple(block for block in edge.ended if sweep.switch(block, on=False))
        enclosing, mark = stack[-1].entry_mark if stack else 0, sweep.mark
        if mark != enclosing:
            entries.append((first, length, mark))
        stack.append(_Open(edge.last, switched, ended, mark))
    while stack:
        leave()
    return entries


def _edges(version: int, blocks: Iterable[Block]) -> dict[Span, _Edge]:
    """Every prefix of these blocks by first address and length."""
    edges: dict[Span, _Edge] = {}

    def edge(network: Network) -> _Edge:
        key = int(network.network_address), network.prefixlen
        found = edges.get(key)
        if found is None:
            found = edges[key] = _Edge(int(network.broadcast_address))
        return found

    for block in blocks:
        holes = [*_holes(block)] if block.cidr.version == version else []
        if block.cidr.version != version or any(hole.prefixlen <= block.cidr.prefixlen for hole in holes):
            continue  # an exception that holds the whole CIDR leaves nothing
        edge(block.cidr).begun.append(block)
        for hole in holes:
            edge(hole).ended.append(block)
    return edges


def _network(version: int, first: int, length: int) -> Network:
    return IPv4Network((first, length)) if version == 4 else IPv6Network((first, length))


def numbers_within(prefixes: Iterable[CidrSet], areas: Iterable[Area]) -> dict[Area, frozenset[int]]:
    """For each area the numbers of another partition whose every address lies inside the area.

    Nodes go on with the partition they have until every shard's lines for the next one are there, so lines are needed
    for both. Only prefixes and numbers of the older one are known, not its members; a number that also lies outside
    the area, even in part, is left out: never more is allowed than the area allows.
    """
    distinct = set(areas)
    old = tuple(prefixes)
    inside: dict[int, frozenset[Area]] = {}
    for version in (4, 6):
        bounds = _bounds(version, distinct)
        for first, last, number in _pieces(_own(version, old)):
            index = bisect_right(bounds, first, key=_start) - 1
            while number and index < len(bounds) and bounds[index].first <= last:
                members = bounds[index].areas
                inside[number] = inside[number] & members if number in inside else members
                index += 1
    found: dict[Area, set[int]] = {area: set() for area in distinct}
    for number, enclosing_areas in inside.items():
        for area in enclosing_areas:
            found[area].add(number)
    return {area: frozenset(numbers) for area, numbers in found.items()}


class _Nested(NamedTuple):
    first: int
    length: int
    last: int
    number: int


class _Bound(NamedTuple):
    first: int
    areas: frozenset[Area]


def _start(bound: _Bound) -> int:
    return bound.first


def _own(version: int, prefixes: Iterable[CidrSet]) -> list[_Nested]:
    found = {entry.prefix: entry.number for entry in prefixes if entry.prefix.version == version}
    if version == 6:
        found.setdefault(_MAPPED, 0)  # left out where 0.0.0.0/0 has its key: to IPv6 a hole all the same
    return sorted(_Nested(*_span_and_length(prefix), number) for prefix, number in found.items())


def _span_and_length(network: Network) -> tuple[int, int, int]:
    return int(network.network_address), network.prefixlen, int(network.broadcast_address)


def _pieces(nested: Iterable[_Nested]) -> Iterator[tuple[int, int, int]]:
    """Disjoint ranges with their numbers, ascending: each prefix without the longer ones in it."""
    stack: list[_Nested] = []
    at = 0

    def leave() -> Iterator[tuple[int, int, int]]:
        nonlocal at
        gone = stack.pop()
        if at <= gone.last:
            yield at, gone.last, gone.number
            at = gone.last + 1

    for one in nested:
        while stack and stack[-1].last < one.first:
            yield from leave()
        if stack and at < one.first:
            yield at, one.first - 1, stack[-1].number
        at = one.first
        stack.append(one)
    while stack:
        yield from leave()


def _bounds(version: int, areas: Collection[Area]) -> list[_Bound]:
    """Ascending places from which on, up to the next, exactly these areas hold every address; the first is 0."""
    sweep = _Sweep(areas, _NO_LIMIT)
    bits = _BITS[version]
    nested = [
        _Nested(first, length, first + (1 << bits - length) - 1, mark)
        for first, length, mark in _swept(version, areas, sweep)
    ]
    sweep.members[0] = frozenset()
    bounds: list[_Bound] = []
    at = 0
    for first, last, mark in _pieces(nested):
        if first > at:
            bounds.append(_Bound(at, frozenset()))
        bounds.append(_Bound(first, sweep.members[mark]))
        at = last + 1
    if at >> bits == 0:
        bounds.append(_Bound(at, frozenset()))
    return bounds


def number_of(prefixes: Iterable[CidrSet], address: Address) -> int:
    """Number of the set that holds the address (a linear scan: for explaining, not for packets).

    A mapped IPv4 address is looked up as what it is, as the kernel does.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    holding = [entry for entry in prefixes if entry.prefix.version == address.version and address in entry.prefix]
    return max(holding, key=lambda entry: entry.prefix.prefixlen).number if holding else 0
