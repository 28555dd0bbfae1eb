"""What has to become of an UPDATE by RFC 7606, judged by its parts before they are put together.

A case is made of parts, so whoever makes it knows where everything begins and ends; the judge looks at no message, and
shares no code with what reads them. Rules stand as the RFCs say them, attribute by attribute.
"""

from __future__ import annotations

from dataclasses import dataclass, field

IPV4, IPV6 = 1, 2
BITS = {IPV4: 32, IPV6: 128}
WELL_KNOWN, TRANSITIVE, NON_TRANSITIVE = "well-known", "optional transitive", "optional non-transitive"
KINDS = {
    1: WELL_KNOWN,
    2: WELL_KNOWN,
    3: WELL_KNOWN,
    4: NON_TRANSITIVE,
    5: WELL_KNOWN,
    6: WELL_KNOWN,
    7: TRANSITIVE,
    8: TRANSITIVE,
    9: NON_TRANSITIVE,
    10: NON_TRANSITIVE,
    16: TRANSITIVE,
    17: TRANSITIVE,
    18: TRANSITIVE,
    32: TRANSITIVE,
}
"""Attributes that this speaker understands, MP_REACH_NLRI and MP_UNREACH_NLRI aside."""


@dataclass(frozen=True)
class Part:
    """An attribute."""

    flags: int
    code: int
    value: bytes


@dataclass(frozen=True)
class Reach:
    flags: int
    family: int
    """AFI; the SAFI is 1."""
    next_hop: bytes
    entries: tuple[bytes, ...]
    """Prefixes as they stand: a length, and octets, as many as it takes or not."""


@dataclass(frozen=True)
class Unreach:
    flags: int
    family: int
    entries: tuple[bytes, ...]


@dataclass(frozen=True)
class Case:
    external: bool
    four_octets: bool
    families: frozenset[int]
    extended_next_hop: bool
    parts: tuple[Part, ...]
    reach: Reach | None = None
    unreach: Unreach | None = None
    entries: tuple[bytes, ...] = ()
    withdrawn: tuple[bytes, ...] = ()
    overrun: int | None = None
    """Type code of an attribute at the end that is longer than all; 0: it has no whole header."""


@dataclass
class Verdict:
    subcodes: set[int] = field(default_factory=set)
    """Of the NOTIFICATION 3/x, any of which is right; empty: the session goes on."""
    withdraws: set[int] = field(default_factory=set)
    """Attributes whose faults withdraw."""
    discards: set[int] = field(default_factory=set)
    """Attributes that are left out, or prefixes of them ignored."""
    passed_on: set[int] = field(default_factory=set)
    reachable: set[tuple[int, bytes]] = field(default_factory=set)
    unreachable: set[tuple[int, bytes]] = field(default_factory=set)


def judge(case: Case) -> Verdict:
    verdict = Verdict()
    subcodes = attributes(case, verdict)
    announced = multiprotocol(case, verdict)
    announced |= plain(case, verdict)
    nothing_reachable = not case.entries and (case.reach is None or not case.reach.entries)
    foreign = case.reach is not None and case.reach.family not in case.families
    others = bool(case.parts) or case.overrun is not None or case.reach is not None
    if verdict.withdraws and others and nothing_reachable and not foreign:
        verdict.subcodes |= subcodes  # RFC 7606 5.2
    if verdict.subcodes:
        return verdict
    if verdict.withdraws:
        verdict.unreachable |= announced
    else:
        verdict.reachable = announced
    return verdict


def attributes(case: Case, verdict: Verdict) -> set[int]:
    """Judge all attributes; the subcodes of what withdraws."""
    seen: set[int] = set()
    subcodes: set[int] = set()
    for part in case.parts:
        known = KINDS.get(part.code)
        if known is None and not part.flags & 0x80:
            verdict.subcodes.add(2)
        elif part.code in seen:
            verdict.discards.add(part.code)
        elif known is None:
            if part.flags & 0x40:
                verdict.passed_on.add(part.code)
        elif not flags_fit(known, part.flags):
            verdict.withdraws.add(part.code)
            subcodes.add(4)
        else:
            outcome = value_of(part.code, part.value, case)
            if outcome == "discard":
                verdict.discards.add(part.code)
            elif outcome:
                verdict.withdraws.add(part.code)
                subcodes.add(int(outcome))
        seen.add(part.code)
    if case.overrun is not None:
        verdict.withdraws.add(case.overrun)
        subcodes.add(5)
    if case.reach is not None and case.reach.family in case.families:
        if case.reach.flags & 0xE0 != 0x80:
            verdict.withdraws.add(14)
            subcodes.add(4)
        if case.reach.entries and len(case.reach.next_hop) in (4, 16, 32) and not is_host(case.reach.next_hop):
            verdict.withdraws.add(14)
    if case.unreach is not None and case.unreach.flags & 0xE0 != 0x80:
        verdict.withdraws.add(15)
        subcodes.add(4)
    reach = case.reach is not None and case.reach.family in case.families and bool(case.reach.entries)
    there = bool(case.entries) and IPV4 in case.families
    if reach or there:
        wanted = {1, 2} | ({3} if there else set()) | (set() if case.external else {5})
        verdict.withdraws |= wanted - seen
    return subcodes


def flags_fit(kind: str, flags: int) -> bool:
    """RFC 4271 4.3: the Partial bit is for optional transitive attributes alone."""
    optional, transitive, partial = bool(flags & 0x80), bool(flags & 0x40), bool(flags & 0x20)
    if kind == WELL_KNOWN:
        return not optional and transitive and not partial
    if kind == NON_TRANSITIVE:
        return optional and not transitive and not partial
    return optional and transitive


def value_of(code: int, value: bytes, case: Case) -> str:
    """``""`` for one that is right, ``discard``, or the subcode of an error that withdraws."""
    size = len(value)
    if code == 1:
        return "5" if size != 1 else "6" if value[0] > 2 else ""
    if code == 2:
        return "" if path_fits(value, 4 if case.four_octets else 2, confederation=not case.external) else "11"
    if code == 3:
        if case.reach is not None and not (case.entries and IPV4 in case.families):
            return ""  # RFC 4760 3: not looked at
        return "5" if size != 4 else "" if is_host(value) else "8"
    if code == 4:
        return "" if size == 4 else "5"
    if code in (5, 9, 10) and case.external:
        return "discard"
    if code == 5:
        return "" if size == 4 else "5"
    if code == 6:
        return "discard" if value else ""
    if code in (7, 18):
        width = 4 if case.four_octets or code == 18 else 2
        useless = case.four_octets and code == 18
        return "discard" if useless or size != width + 4 or not any(value[:width]) else ""
    if code == 9:
        return "" if size == 4 else "9"
    if code == 17:
        return "discard" if case.four_octets or not path_fits(value, 4, confederation=True) else ""
    entry = {8: 4, 10: 4, 16: 8, 32: 12}[code]
    return "" if size and size % entry == 0 else "9"


def path_fits(value: bytes, width: int, *, confederation: bool) -> bool:
    """RFC 7606 7.2, RFC 5065 5, RFC 7607."""
    while value:
        if len(value) < 2:
            return False
        kind, count, rest = value[0], value[1], value[2:]
        numbers, value = rest[: count * width], rest[count * width :]
        if kind not in ((1, 2, 3, 4) if confederation else (1, 2)) or not count or len(numbers) < count * width:
            return False
        if any(not any(numbers[at : at + width]) for at in range(0, len(numbers), width)):
            return False
    return True


def is_host(hop: bytes) -> bool:
    """A next hop is an address that a host can have."""
    if len(hop) == 4:
        return hop[0] not in (0, 127) and hop[0] < 224
    if len(hop) == 32 and not any(hop[:16]):
        return hop[16] == 0xFE and hop[17] & 0xC0 == 0x80
    return hop[0] != 0xFF and (any(hop[:15]) or hop[15] > 1)


def multiprotocol(case: Case, verdict: Verdict) -> set[tuple[int, bytes]]:
    """Judge both multiprotocol attributes; the prefixes that one of them announces."""
    found: set[tuple[int, bytes]] = set()
    if case.unreach is not None:
        if case.unreach.family in case.families:
            verdict.unreachable |= entries(case.unreach.family, case.unreach.entries, verdict)
        elif case.unreach.entries or case.unreach.family not in BITS:
            verdict.discards.add(15)
    if case.reach is not None:
        if case.reach.family not in case.families:
            verdict.discards.add(14)
            return found
        sizes = {16, 32} if case.reach.family == IPV6 else {4, 16, 32} if case.extended_next_hop else {4}
        if len(case.reach.next_hop) not in sizes:
            verdict.subcodes.add(9)
        found = entries(case.reach.family, case.reach.entries, verdict)
    return found


def plain(case: Case, verdict: Verdict) -> set[tuple[int, bytes]]:
    """Judge the prefixes outside of attributes; those that are announced."""
    if IPV4 in case.families:
        verdict.unreachable |= entries(IPV4, case.withdrawn, verdict)
        return entries(IPV4, case.entries, verdict)
    if case.withdrawn or case.entries:
        verdict.discards.add(0)
    return set()


def entries(family: int, found: tuple[bytes, ...], verdict: Verdict) -> set[tuple[int, bytes]]:
    """The prefixes in canonical form."""
    result: set[tuple[int, bytes]] = set()
    for entry in found:
        length = entry[0]
        if length > BITS[family] or len(entry) != 1 + (length + 7) // 8:
            verdict.subcodes.add(10)
            continue
        number = int.from_bytes(entry[1:], "big")
        spare = 8 * (len(entry) - 1) - length
        result.add((family, bytes((length,)) + (number >> spare << spare).to_bytes(len(entry) - 1, "big")))
    return result
