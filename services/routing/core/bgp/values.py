"""What a BGP speaker speaks of, as values: families, prefixes, paths' attributes, capabilities and updates.

The codec makes them of bytes and bytes of them, the session agrees on capabilities, and the tables compare them. A
prefix is the bytes that stand for it in an UPDATE (RFC 4271 4.3): its length in bits and as many octets as that takes,
with all bits past the length zero. So a prefix is cut out of one message and put into another as it is, and is a key
that costs 37 bytes where an ``IPv4Network`` costs 300. ``network_of`` and ``prefix_of`` lead out and in, at the border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from proto.net import Address, Network

Prefix = bytes
"""Length in bits, then ``ceil(length / 8)`` octets, canonical: bits past the length are zero."""
PathId = int
"""ADD-PATH's path identifier (RFC 7911); 0 where the family's paths have none."""
Asn = int
"""Autonomous system number, four octets (RFC 6793)."""
RouterId = IPv4Address
"""BGP identifier (RFC 6286: any number but 0)."""

AS_TRANS: Asn = 23456
"""What stands for a number of four octets where only two are understood (RFC 6793)."""


class Family(IntEnum):
    """Address families that are carried: AFI in the upper 16 bits, SAFI in the lower 8 (RFC 4760)."""

    IPV4 = 1 << 16 | 1
    IPV6 = 2 << 16 | 1

    __hash__ = int.__hash__  # an enumeration's own is that of its name, by a call of Python

    @property
    def afi(self) -> int:
        """Address family number (IANA)."""
        return self >> 16

    @property
    def safi(self) -> int:
        """Subsequent address family number: 1, unicast."""
        return self & 0xFF

    @property
    def bits(self) -> int:
        """Length of an address."""
        return 32 if self is Family.IPV4 else 128


class Origin(IntEnum):
    """Where a path's prefix came from (RFC 4271 5.1.1); the lower one is better."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


class SegmentKind(IntEnum):
    """Kinds of AS_PATH segments (RFC 4271 4.3, RFC 5065)."""

    SET = 1
    SEQUENCE = 2
    CONFED_SEQUENCE = 3
    CONFED_SET = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of an AS_PATH."""

    kind: SegmentKind
    numbers: tuple[Asn, ...]
    """Nearest first in a sequence; in any order in a set."""


@dataclass(frozen=True, slots=True)
class Aggregator:
    """Who made a route of several (RFC 4271 5.1.7)."""

    asn: Asn
    router_id: IPv4Address


@dataclass(frozen=True, slots=True)
class UnknownAttribute:
    """An optional attribute that is not understood and goes on as it came (RFC 4271 5): flags as to be sent."""

    flags: int
    code: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The path attributes of one or more prefixes. The codec keeps one of each, so equal ones are mostly identical."""

    origin: Origin
    as_path: tuple[Segment, ...] = ()
    """Empty: begun in this autonomous system."""
    next_hop: Address | None = None
    """Of NEXT_HOP or MP_REACH_NLRI; IPv6 also for IPv4 prefixes (RFC 8950). The global one where two are given."""
    link_local: Address | None = None
    """The second next hop of 32 octets (RFC 2545), if one was given."""
    med: int | None = None
    local_pref: int | None = None
    """Only within an autonomous system."""
    atomic_aggregate: bool = False
    aggregator: Aggregator | None = None
    communities: tuple[int, ...] = ()
    """RFC 1997, each once, ascending."""
    extended_communities: tuple[bytes, ...] = ()
    """RFC 4360, 8 octets each, each once, ascending."""
    large_communities: tuple[tuple[int, int, int], ...] = ()
    """RFC 8092, each once, ascending."""
    originator_id: IPv4Address | None = None
    cluster_list: tuple[IPv4Address, ...] = ()
    """RFC 4456, the latest first."""
    unknown: tuple[UnknownAttribute, ...] = ()
    """Transitive ones that are passed on with the Partial bit, by code."""


(
    _set_origin,
    _set_as_path,
    _set_next_hop,
    _set_link_local,
    _set_med,
    _set_local_pref,
    _set_atomic_aggregate,
    _set_aggregator,
    _set_communities,
    _set_extended_communities,
    _set_large_communities,
    _set_originator_id,
    _set_cluster_list,
    _set_unknown,
) = (getattr(Attributes, one.name).__set__ for one in fields(Attributes))
"""By field, in their order."""


def attributes_of(  # noqa: PLR0913, PLR0917 - a value of so many fields, and a call by names takes longer
    origin: Origin,
    as_path: tuple[Segment, ...],
    next_hop: Address | None,
    link_local: Address | None,
    med: int | None,
    local_pref: int | None,
    atomic_aggregate: bool,
    aggregator: Aggregator | None,
    communities: tuple[int, ...],
    extended_communities: tuple[bytes, ...],
    large_communities: tuple[tuple[int, int, int], ...],
    originator_id: IPv4Address | None,
    cluster_list: tuple[IPv4Address, ...],
    unknown: tuple[UnknownAttribute, ...],
) -> Attributes:
    """What the constructor of the frozen dataclass does, in a third of the time: large tables are made of these."""
    found = object.__new__(Attributes)
    _set_origin(found, origin)
    _set_as_path(found, as_path)
    _set_next_hop(found, next_hop)
    _set_link_local(found, link_local)
    _set_med(found, med)
    _set_local_pref(found, local_pref)
    _set_atomic_aggregate(found, atomic_aggregate)
    _set_aggregator(found, aggregator)
    _set_communities(found, communities)
    _set_extended_communities(found, extended_communities)
    _set_large_communities(found, large_communities)
    _set_originator_id(found, originator_id)
    _set_cluster_list(found, cluster_list)
    _set_unknown(found, unknown)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachable:
    """Prefixes of one family that an UPDATE makes reachable, all with the same attributes."""

    family: Family
    attributes: Attributes
    prefixes: tuple[Prefix, ...]
    path_ids: tuple[PathId, ...] = ()
    """One for each prefix where ADD-PATH was agreed on for the family, else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """Prefixes of one family that an UPDATE takes back, or that have to be treated as taken back (RFC 7606)."""

    family: Family
    prefixes: tuple[Prefix, ...]
    path_ids: tuple[PathId, ...] = ()
    """As in ``Reachable``."""


@dataclass(frozen=True, slots=True)
class AttributeFault:
    """What was wrong with an attribute, and was borne without ending the session (RFC 7606)."""

    code: int
    """Attribute type code."""
    reason: str
    withdrawn: bool
    """Its prefixes are treated as withdrawn; otherwise the attribute alone was left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An UPDATE message, as it counts: withdrawals first, then what is reachable."""

    unreachable: tuple[Unreachable, ...] = ()
    reachable: tuple[Reachable, ...] = ()
    end_of_rib: Family | None = None
    """The message says only that the first full table of this family has been sent (RFC 4724 2)."""
    faults: tuple[AttributeFault, ...] = ()


class AddPath(IntEnum):
    """Direction of ADD-PATH as one side offers it (RFC 7911 4)."""

    RECEIVE = 1
    SEND = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class RestartFamily:
    """A family in the graceful restart capability (RFC 4724 3), or in the long-lived one (RFC 9494 3.1)."""

    family: Family
    preserved: bool
    """The forwarding state was kept over the restart (F bit)."""
    stale_seconds: int = 0
    """How long routes may be kept as long-lived stale ones; 0 in the capability of RFC 4724."""


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """The graceful restart capability (RFC 4724, N bit of RFC 8538)."""

    restarted: bool
    """R bit: whoever sends this has just started again, and waits for no End-of-RIB of somebody who did too."""
    seconds: int
    """How long the other side keeps the routes when the session is lost; at most 4,095."""
    families: tuple[RestartFamily, ...] = ()
    notification: bool = False
    """N bit: a NOTIFICATION other than a hard reset is a restart as well (RFC 8538)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one side of a session can do (RFC 5492), as said in its OPEN."""

    families: frozenset[Family] = frozenset()
    asn4: Asn | None = None
    """Its number in four octets (RFC 6793); None: it understands two."""
    route_refresh: bool = False
    enhanced_route_refresh: bool = False
    extended_messages: bool = False
    """Messages of up to 65,535 octets (RFC 8654)."""
    extended_next_hops: frozenset[Family] = frozenset()
    """Families whose next hops may be of IPv6 (RFC 8950); IPv4 alone has a use."""
    add_path: tuple[tuple[Family, AddPath], ...] = ()
    graceful_restart: GracefulRestart | None = None
    long_lived: tuple[RestartFamily, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What both sides of an established session can do: how its messages are read and written."""

    families: frozenset[Family]
    four_octets: bool
    """AS numbers in AS_PATH and AGGREGATOR have four octets."""
    external: bool
    """The peer is in another autonomous system."""
    largest_message: int = 4096
    """In octets, of what may be sent; 65,535 when both said so."""
    receives_paths: frozenset[Family] = frozenset()
    """Families whose prefixes come with path identifiers."""
    sends_paths: frozenset[Family] = frozenset()
    """Families whose prefixes are sent with path identifiers."""
    extended_next_hops: frozenset[Family] = frozenset()
    route_refresh: bool = False
    enhanced_route_refresh: bool = False


def lies_in(prefix: Prefix, wide: Prefix) -> bool:
    """Every address of a prefix is one of another of the same family."""
    length, whole, rest = wide[0], 1 + wide[0] // 8, wide[0] % 8
    if length > prefix[0] or prefix[1:whole] != wide[1:whole]:
        return False
    return not rest or (prefix[whole] ^ wide[whole]) >> (8 - rest) == 0


def covering(prefix: Prefix) -> Iterator[Prefix]:
    """A prefix and all that hold it, the longest first."""
    number, octets = int.from_bytes(prefix[1:]), len(prefix) - 1
    for length in range(prefix[0], -1, -1):
        kept = (length + 7) // 8
        bits = number >> (8 * octets - length) << (8 * kept - length)
        yield bytes((length,)) + bits.to_bytes(kept)


def network_of(family: Family, prefix: Prefix) -> Network:
    """The prefix as a network."""
    number = int.from_bytes(prefix[1:].ljust(family.bits // 8, b"\0"))
    return IPv4Network((number, prefix[0])) if family is Family.IPV4 else IPv6Network((number, prefix[0]))


def prefix_of(network: Network) -> tuple[Family, Prefix]:
    """A network as family and prefix."""
    length = network.prefixlen
    octets = network.network_address.packed[: (length + 7) // 8]
    return (Family.IPV4 if network.version == 4 else Family.IPV6), bytes((length,)) + octets
