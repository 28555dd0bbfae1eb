"""Path attributes of UPDATE messages, read, and what becomes of those that are wrong (RFC 4271 5 and 6.3, RFC 7606).

``READERS`` is the table of what is understood: by attribute type code its flags, and what reads its value into a
``Draft``. MP_REACH_NLRI and MP_UNREACH_NLRI hold prefixes and are not among them: ``codec.multiprotocol`` cuts them out
before. Wrong flags, a wrong length and a wrong value withdraw the prefixes unless RFC 7606 7 has the attribute left
out; only an attribute that claims to be well-known and is not ends the session. What is optional and not understood is
handed on when it is transitive, and dropped when it is not, whatever stands in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address
from struct import iter_unpack, unpack

from proto.net import Address
from services.routing.core.bgp.codec.errors import ErrorCode, Malformed, MessageError, UpdateError, ignored
from services.routing.core.bgp.codec.paths import EXTERNAL_KINDS, KINDS, NUMBERS, joined, read_path
from services.routing.core.bgp.values import (
    AS_TRANS,
    Aggregator,
    AttributeFault,
    Attributes,
    Origin,
    Segment,
    UnknownAttribute,
    attributes_of,
)

OPTIONAL, TRANSITIVE, PARTIAL, EXTENDED_LENGTH = 0x80, 0x40, 0x20, 0x10
WELL_KNOWN = (OPTIONAL | TRANSITIVE | PARTIAL, TRANSITIVE)
"""Flags that are looked at, and what they have to be (RFC 4271 4.3)."""
NON_TRANSITIVE = (OPTIONAL | TRANSITIVE | PARTIAL, OPTIONAL)
OPTIONAL_TRANSITIVE = (OPTIONAL | TRANSITIVE, OPTIONAL | TRANSITIVE)
ORIGIN, AS_PATH, NEXT_HOP, MED, LOCAL_PREF, ATOMIC_AGGREGATE, AGGREGATOR, COMMUNITIES = range(1, 9)
ORIGINATOR_ID, CLUSTER_LIST = 9, 10
MP_REACH, MP_UNREACH, EXTENDED_COMMUNITIES, AS4_PATH, AS4_AGGREGATOR, LARGE_COMMUNITIES = 14, 15, 16, 17, 18, 32
NAMES = {
    ORIGIN: "ORIGIN",
    AS_PATH: "AS_PATH",
    NEXT_HOP: "NEXT_HOP",
    MED: "MULTI_EXIT_DISC",
    LOCAL_PREF: "LOCAL_PREF",
    ATOMIC_AGGREGATE: "ATOMIC_AGGREGATE",
    AGGREGATOR: "AGGREGATOR",
    COMMUNITIES: "COMMUNITIES",
    ORIGINATOR_ID: "ORIGINATOR_ID",
    CLUSTER_LIST: "CLUSTER_LIST",
    MP_REACH: "MP_REACH_NLRI",
    MP_UNREACH: "MP_UNREACH_NLRI",
    EXTENDED_COMMUNITIES: "EXTENDED COMMUNITIES",
    AS4_PATH: "AS4_PATH",
    AS4_AGGREGATOR: "AS4_AGGREGATOR",
    LARGE_COMMUNITIES: "LARGE_COMMUNITY",
}
MESSAGE = 0
"""Stands for the attribute type code where a fault is the message's own; no attribute has it."""
NextHops = tuple[Address, Address | None]
"""The next hop, and the link-local one beside it (RFC 2545)."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """A fault, and the NOTIFICATION for it where it cannot be borne."""

    fault: AttributeFault
    subcode: UpdateError
    content: bytes

    def error(self) -> MessageError:
        """What ends the session."""
        return MessageError(ErrorCode.UPDATE, self.subcode, self.fault.reason, self.content)


class Draft:
    """Attributes while they are read."""

    origin = Origin.INCOMPLETE
    as_path: tuple[Segment, ...] = ()
    as_path4: tuple[Segment, ...] | None = None
    next_hop: Address | None = None
    med: int | None = None
    local_pref: int | None = None
    atomic_aggregate = False
    aggregator: Aggregator | None = None
    aggregator4: Aggregator | None = None
    communities: tuple[int, ...] = ()
    extended_communities: tuple[bytes, ...] = ()
    large_communities: tuple[tuple[int, int, int], ...] = ()
    originator_id: IPv4Address | None = None
    cluster_list: tuple[IPv4Address, ...] = ()
    unknown: tuple[UnknownAttribute, ...] = ()

    def __init__(self, *, four_octets: bool, external: bool, multiprotocol: bool) -> None:
        self.width = 4 if four_octets else 2
        """Octets of an AS number in AS_PATH and AGGREGATOR."""
        self.external = external
        self.multiprotocol = multiprotocol
        """The next hop is that of MP_REACH_NLRI, and NEXT_HOP is not looked at (RFC 4760 3)."""
        self.seen: set[int] = set()
        self.flaws: dict[int, Flaw] = {}
        """By attribute type code the worst: a message of copies of one attribute has one."""

    def read(self, raw: bytes) -> None:
        """Read all attributes; faults are noted. Raises ``MessageError`` 3/2 for an unknown well-known one."""
        at, stop, seen = 0, len(raw), self.seen
        while at < stop:
            begun, extended = at, raw[at] & EXTENDED_LENGTH
            at += 4 if extended else 3
            if at > stop:
                self.fault(MESSAGE, raw[begun:], _overrun("the last attribute has no length"))
                return
            flags, code = raw[begun], raw[begun + 1]
            end = at + (raw[at - 2] << 8 | raw[at - 1] if extended else raw[at - 1])
            if end > stop:
                self.fault(code, raw[begun:], _overrun(f"{name(code)} is longer than all attributes"))
                return
            reader = READERS.get(code)
            try:
                if reader is None:
                    self.not_understood(flags, code, raw[at:end], raw[begun:end])
                elif code in seen:
                    raise ignored(f"{name(code)} is there twice")
                else:
                    seen.add(code)
                    mask, wanted, read = reader
                    if flags & mask != wanted:
                        raise _wrong_flags(flags, code)
                    read(self, raw[at:end])
            except Malformed as wrong:
                self.fault(code, raw[begun:end], wrong)
            at = end

    def not_understood(self, flags: int, code: int, value: bytes, attribute: bytes) -> None:
        """Keep an attribute of unknown type if it goes on to others (RFC 4271 5 and 9)."""
        if not flags & OPTIONAL:
            reason = f"attribute {code} is said to be well-known, and is not known"
            raise MessageError(ErrorCode.UPDATE, UpdateError.UNRECOGNIZED_WELL_KNOWN, reason, attribute)
        if code in self.seen:
            raise ignored(f"{name(code)} is there twice")
        self.seen.add(code)
        if flags & TRANSITIVE:
            self.unknown += (UnknownAttribute(OPTIONAL | TRANSITIVE | PARTIAL, code, value),)

    def fault(self, code: int, attribute: bytes, wrong: Malformed) -> None:
        """Note what is wrong."""
        if wrong.withdrawn or code not in self.flaws:
            fault = AttributeFault(code, wrong.reason, wrong.withdrawn)
            self.flaws[code] = Flaw(fault, wrong.subcode, attribute)

    def require(self) -> None:
        """Note which attributes are missing that reachable prefixes must have (RFC 7606 3 d)."""
        wanted = REQUIRED[self.external, self.multiprotocol]
        if not wanted <= self.seen:
            for code in sorted(wanted - self.seen):
                missing = Malformed(UpdateError.MISSING_WELL_KNOWN, f"{name(code)} is missing")
                self.fault(code, bytes((code,)), missing)

    def attributes(self, next_hops: NextHops | None) -> Attributes:
        """What was read, with the next hop of MP_REACH_NLRI where that is the one."""
        aggregator, as_path = self.aggregator, self.as_path
        if self.width == 2:
            as_path, aggregator = self.in_four_octets()
        next_hop, link_local = (self.next_hop, None) if next_hops is None else next_hops
        return attributes_of(
            self.origin,
            as_path,
            next_hop,
            link_local,
            self.med,
            self.local_pref,
            self.atomic_aggregate,
            aggregator,
            self.communities,
            self.extended_communities,
            self.large_communities,
            self.originator_id,
            self.cluster_list,
            tuple(sorted(self.unknown, key=lambda one: one.code)) if self.unknown else (),
        )

    def in_four_octets(self) -> tuple[tuple[Segment, ...], Aggregator | None]:
        """AS path and aggregator of a peer with two-octet numbers (RFC 6793 4.2.3).

        Where AGGREGATOR is not AS_TRANS, somebody made the route after AS4_AGGREGATOR and AS4_PATH were written.
        """
        path, aggregator = self.as_path, self.aggregator
        if self.aggregator4 is not None and aggregator is not None:
            if aggregator.asn != AS_TRANS:
                return path, aggregator
            aggregator = self.aggregator4
        return (path if self.as_path4 is None else joined(path, self.as_path4)), aggregator


def name(code: int) -> str:
    """An attribute's name, or its type code."""
    return NAMES.get(code, f"attribute {code}")


def _overrun(reason: str) -> Malformed:
    """RFC 7606 4: attributes and their whole length disagree."""
    return Malformed(UpdateError.ATTRIBUTE_LENGTH, reason)


def _wrong_flags(flags: int, code: int) -> Malformed:
    return Malformed(UpdateError.ATTRIBUTE_FLAGS, f"{name(code)} has the flags 0x{flags:02x}")


def _wrong_length(code: int, length: int, subcode: UpdateError = UpdateError.ATTRIBUTE_LENGTH) -> Malformed:
    return Malformed(subcode, f"{name(code)} has {length} octets")


@lru_cache(4096)
def ipv4_next_hop(value: bytes) -> IPv4Address:
    """A next hop of IPv4. Raises ``Malformed`` where it is no address of a host (RFC 4271 6.3)."""
    if value[0] in (0, 127) or value[0] >= 224:
        raise Malformed(UpdateError.INVALID_NEXT_HOP, f"the next hop {IPv4Address(value)} is no host's address")
    return IPv4Address(value)


def _origin(draft: Draft, value: bytes) -> None:
    if len(value) != 1:
        raise _wrong_length(ORIGIN, len(value))
    if value[0] > Origin.INCOMPLETE:
        raise Malformed(UpdateError.INVALID_ORIGIN, f"ORIGIN is {value[0]}")
    draft.origin = ORIGINS[value[0]]


def _as_path(draft: Draft, value: bytes) -> None:
    draft.as_path = read_path(value, draft.width, EXTERNAL_KINDS if draft.external else KINDS)


def _next_hop(draft: Draft, value: bytes) -> None:
    if draft.multiprotocol:
        return
    if len(value) != 4:
        raise _wrong_length(NEXT_HOP, len(value))
    draft.next_hop = ipv4_next_hop(value)


def _med(draft: Draft, value: bytes) -> None:
    if len(value) != 4:
        raise _wrong_length(MED, len(value))
    draft.med = int.from_bytes(value)


def _internal_alone(draft: Draft, code: int) -> None:
    """Refuse what an external peer must not say (RFC 7606 7.5, 7.9, 7.10)."""
    if draft.external:
        raise ignored(f"{name(code)} comes from another autonomous system")


def _local_pref(draft: Draft, value: bytes) -> None:
    _internal_alone(draft, LOCAL_PREF)
    if len(value) != 4:
        raise _wrong_length(LOCAL_PREF, len(value))
    draft.local_pref = int.from_bytes(value)


def _atomic_aggregate(draft: Draft, value: bytes) -> None:
    if value:
        raise ignored(f"ATOMIC_AGGREGATE has {len(value)} octets", UpdateError.ATTRIBUTE_LENGTH)
    draft.atomic_aggregate = True


def _read_aggregator(code: int, value: bytes, width: int) -> Aggregator:
    if len(value) != width + 4:
        raise ignored(f"{name(code)} has {len(value)} octets", UpdateError.ATTRIBUTE_LENGTH)
    if not (asn := int.from_bytes(value[:width])):
        raise ignored(f"{name(code)} has the number 0")
    return Aggregator(asn, IPv4Address(value[width:]))


def _aggregator(draft: Draft, value: bytes) -> None:
    draft.aggregator = _read_aggregator(AGGREGATOR, value, draft.width)


def _four_octets_already(draft: Draft, code: int) -> None:
    """A peer whose numbers have four octets sends none of both (RFC 6793 4.1 and 6)."""
    if draft.width == 4:
        raise ignored(f"{name(code)} comes from a peer with four-octet numbers")


def _as4_path(draft: Draft, value: bytes) -> None:
    _four_octets_already(draft, AS4_PATH)
    try:
        draft.as_path4 = read_path(value, 4, KINDS)
    except Malformed as wrong:
        raise ignored(wrong.reason.replace("AS_PATH", "AS4_PATH")) from None


def _as4_aggregator(draft: Draft, value: bytes) -> None:
    _four_octets_already(draft, AS4_AGGREGATOR)
    draft.aggregator4 = _read_aggregator(AS4_AGGREGATOR, value, 4)


def _multiple(code: int, value: bytes, size: int) -> int:
    """How many entries of so many octets; at least one."""
    count, rest = divmod(len(value), size)
    if rest or not count:
        raise _wrong_length(code, len(value), UpdateError.OPTIONAL_ATTRIBUTE)
    return count


def _communities(draft: Draft, value: bytes) -> None:
    count = _multiple(COMMUNITIES, value, 4)
    numbers = FOUR_OCTETS[count](value) if count < len(FOUR_OCTETS) else unpack(f">{count}I", value)
    draft.communities = tuple(sorted(set(numbers)))


def _extended_communities(draft: Draft, value: bytes) -> None:
    count = _multiple(EXTENDED_COMMUNITIES, value, 8)
    draft.extended_communities = tuple(sorted({value[8 * at : 8 * at + 8] for at in range(count)}))


def _large_communities(draft: Draft, value: bytes) -> None:
    _multiple(LARGE_COMMUNITIES, value, 12)
    draft.large_communities = tuple(sorted({(one, two, three) for one, two, three in iter_unpack(">III", value)}))


def _originator_id(draft: Draft, value: bytes) -> None:
    _internal_alone(draft, ORIGINATOR_ID)
    if len(value) != 4:
        raise _wrong_length(ORIGINATOR_ID, len(value), UpdateError.OPTIONAL_ATTRIBUTE)
    draft.originator_id = IPv4Address(value)


def _cluster_list(draft: Draft, value: bytes) -> None:
    _internal_alone(draft, CLUSTER_LIST)
    count = _multiple(CLUSTER_LIST, value, 4)
    draft.cluster_list = tuple(IPv4Address(value[4 * at : 4 * at + 4]) for at in range(count))


ORIGINS = tuple(Origin)
FOUR_OCTETS = NUMBERS[4]
READERS: dict[int, tuple[int, int, Callable[[Draft, bytes], None]]] = {
    ORIGIN: (*WELL_KNOWN, _origin),
    AS_PATH: (*WELL_KNOWN, _as_path),
    NEXT_HOP: (*WELL_KNOWN, _next_hop),
    MED: (*NON_TRANSITIVE, _med),
    LOCAL_PREF: (*WELL_KNOWN, _local_pref),
    ATOMIC_AGGREGATE: (*WELL_KNOWN, _atomic_aggregate),
    AGGREGATOR: (*OPTIONAL_TRANSITIVE, _aggregator),
    COMMUNITIES: (*OPTIONAL_TRANSITIVE, _communities),
    ORIGINATOR_ID: (*NON_TRANSITIVE, _originator_id),
    CLUSTER_LIST: (*NON_TRANSITIVE, _cluster_list),
    EXTENDED_COMMUNITIES: (*OPTIONAL_TRANSITIVE, _extended_communities),
    AS4_PATH: (*OPTIONAL_TRANSITIVE, _as4_path),
    AS4_AGGREGATOR: (*OPTIONAL_TRANSITIVE, _as4_aggregator),
    LARGE_COMMUNITIES: (*OPTIONAL_TRANSITIVE, _large_communities),
}
"""Attributes that are understood, by type code: their flags (those looked at, what they must be) and their reader."""
REQUIRED = {
    (external, multiprotocol): {ORIGIN, AS_PATH}
    | (set() if multiprotocol else {NEXT_HOP})
    | (set() if external else {LOCAL_PREF})
    for external in (False, True)
    for multiprotocol in (False, True)
}
"""Attributes that reachable prefixes must have, by whether the peer is external and the next hop in MP_REACH_NLRI."""
