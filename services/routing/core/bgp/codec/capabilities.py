"""Capabilities of an OPEN message (RFC 5492): what one side of a session says that it can do, read and written.

A capability that is not known is skipped, and so is a family that is not carried. One that is known and malformed makes
the OPEN malformed (RFC 4271 6.2: subcode 0): what else stands in it cannot be trusted. Each is read within its own
length alone. Where a speaker says one twice, families add up and of other values the last one counts (RFC 4724 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum

from services.routing.core.bgp.codec.errors import ErrorCode, MessageError
from services.routing.core.bgp.codec.families import FAMILIES, write_family
from services.routing.core.bgp.values import AddPath, Asn, Capabilities, Family, GracefulRestart, RestartFamily

RESTART_STATE = 0x8
RESTART_NOTIFICATION = 0x4
PRESERVED = 0x80
LONGEST_RESTART = 0xFFF
LONGEST_STALE = 0xFFFFFF


class Code(IntEnum):
    """Capability codes (IANA)."""

    MULTIPROTOCOL = 1
    ROUTE_REFRESH = 2
    EXTENDED_NEXT_HOP = 5
    EXTENDED_MESSAGE = 6
    GRACEFUL_RESTART = 64
    FOUR_OCTET_AS = 65
    ADD_PATH = 69
    ENHANCED_ROUTE_REFRESH = 70
    LONG_LIVED_RESTART = 71


class Offer:
    """Capabilities while they are read: what has been said up to now."""

    __slots__ = (
        "add_path",
        "asn4",
        "enhanced_route_refresh",
        "extended_messages",
        "extended_next_hops",
        "families",
        "graceful_restart",
        "long_lived",
        "route_refresh",
    )

    def __init__(self) -> None:
        self.families: set[Family] = set()
        self.asn4: Asn | None = None
        self.route_refresh = False
        self.enhanced_route_refresh = False
        self.extended_messages = False
        self.extended_next_hops: set[Family] = set()
        self.add_path: dict[Family, AddPath] = {}
        self.graceful_restart: GracefulRestart | None = None
        self.long_lived: dict[Family, RestartFamily] = {}

    def whole(self) -> Capabilities:
        """All that was said."""
        return Capabilities(
            families=frozenset(self.families),
            asn4=self.asn4,
            route_refresh=self.route_refresh,
            enhanced_route_refresh=self.enhanced_route_refresh,
            extended_messages=self.extended_messages,
            extended_next_hops=frozenset(self.extended_next_hops),
            add_path=tuple(sorted(self.add_path.items())),
            graceful_restart=self.graceful_restart,
            long_lived=tuple(sorted(self.long_lived.values(), key=lambda one: one.family)),
        )


def _malformed(code: int, value: bytes, reason: str) -> MessageError:
    return MessageError(ErrorCode.OPEN, 0, f"capability {code} {reason}", bytes((code, len(value))) + value)


def _entries(code: int, value: bytes, size: int) -> Iterator[bytes]:
    if len(value) % size:
        raise _malformed(code, value, f"has {len(value)} octets, not a multiple of {size}")
    for at in range(0, len(value), size):
        yield value[at : at + size]


def _exactly(code: int, value: bytes, size: int) -> None:
    if len(value) != size:
        raise _malformed(code, value, f"has {len(value)} octets instead of {size}")


def _multiprotocol(offer: Offer, value: bytes) -> None:
    _exactly(Code.MULTIPROTOCOL, value, 4)
    if (family := FAMILIES.get(value[0:2] + value[3:4])) is not None:
        offer.families.add(family)


def _route_refresh(offer: Offer, value: bytes) -> None:
    _exactly(Code.ROUTE_REFRESH, value, 0)
    offer.route_refresh = True


def _enhanced_route_refresh(offer: Offer, value: bytes) -> None:
    _exactly(Code.ENHANCED_ROUTE_REFRESH, value, 0)
    offer.enhanced_route_refresh = True


def _extended_message(offer: Offer, value: bytes) -> None:
    _exactly(Code.EXTENDED_MESSAGE, value, 0)
    offer.extended_messages = True


def _extended_next_hop(offer: Offer, value: bytes) -> None:
    """RFC 8950 4: AFI and SAFI in two octets each, then the AFI of the next hop, of which IPv6 alone is known."""
    for entry in _entries(Code.EXTENDED_NEXT_HOP, value, 6):
        family = FAMILIES.get(entry[0:2] + entry[3:4]) if entry[2] == 0 else None
        if family is not None and entry[4:6] == b"\0\2":
            offer.extended_next_hops.add(family)


def _four_octet_as(offer: Offer, value: bytes) -> None:
    _exactly(Code.FOUR_OCTET_AS, value, 4)
    offer.asn4 = int.from_bytes(value)


def _add_path(offer: Offer, value: bytes) -> None:
    """RFC 7911 4: a family with a direction that is not known is ignored."""
    for entry in _entries(Code.ADD_PATH, value, 4):
        family = FAMILIES.get(entry[0:3])
        if family is not None and 1 <= entry[3] <= 3:
            offer.add_path[family] = AddPath(entry[3])


def _graceful_restart(offer: Offer, value: bytes) -> None:
    if len(value) < 2:
        raise _malformed(Code.GRACEFUL_RESTART, value, f"has {len(value)} octets, and two at least are needed")
    families: dict[Family, RestartFamily] = {}
    for entry in _entries(Code.GRACEFUL_RESTART, value[2:], 4):
        if (family := FAMILIES.get(entry[0:3])) is not None:
            families[family] = RestartFamily(family, bool(entry[3] & PRESERVED))
    flags = value[0] >> 4
    offer.graceful_restart = GracefulRestart(
        restarted=bool(flags & RESTART_STATE),
        seconds=(value[0] << 8 | value[1]) & LONGEST_RESTART,
        families=tuple(sorted(families.values(), key=lambda one: one.family)),
        notification=bool(flags & RESTART_NOTIFICATION),
    )


def _long_lived(offer: Offer, value: bytes) -> None:
    """RFC 9494 3.1: family, flags, and the stale time in three octets."""
    for entry in _entries(Code.LONG_LIVED_RESTART, value, 7):
        if (family := FAMILIES.get(entry[0:3])) is not None:
            offer.long_lived[family] = RestartFamily(family, bool(entry[3] & PRESERVED), int.from_bytes(entry[4:7]))


READERS: dict[int, Callable[[Offer, bytes], None]] = {
    Code.MULTIPROTOCOL: _multiprotocol,
    Code.ROUTE_REFRESH: _route_refresh,
    Code.EXTENDED_NEXT_HOP: _extended_next_hop,
    Code.EXTENDED_MESSAGE: _extended_message,
    Code.GRACEFUL_RESTART: _graceful_restart,
    Code.FOUR_OCTET_AS: _four_octet_as,
    Code.ADD_PATH: _add_path,
    Code.ENHANCED_ROUTE_REFRESH: _enhanced_route_refresh,
    Code.LONG_LIVED_RESTART: _long_lived,
}


def read_capabilities(offer: Offer, parameter: bytes) -> None:
    """Add what one optional parameter of type 2 says to ``offer``.

    Raises ``MessageError`` 2/0 where a length does not fit.
    """
    at = 0
    while at < len(parameter):
        stop = at + 2 + (parameter[at + 1] if at + 1 < len(parameter) else 0)
        if at + 2 > len(parameter) or stop > len(parameter):
            raise MessageError(
                ErrorCode.OPEN, 0, "a capability is longer than its optional parameter", parameter[at : at + 255]
            )
        reader = READERS.get(parameter[at])
        if reader is not None:
            reader(offer, parameter[at + 2 : stop])
        at = stop


def _capability(code: int, value: bytes = b"") -> bytes:
    return bytes((code, len(value))) + value


def _restart(capability: GracefulRestart) -> bytes:
    flags = RESTART_STATE * capability.restarted | RESTART_NOTIFICATION * capability.notification
    seconds = min(capability.seconds, LONGEST_RESTART)
    families = (write_family(one.family) + bytes((PRESERVED * one.preserved,)) for one in capability.families)
    return (flags << 12 | seconds).to_bytes(2) + b"".join(families)


def _stale(one: RestartFamily) -> bytes:
    seconds = min(one.stale_seconds, LONGEST_STALE)
    return write_family(one.family) + bytes((PRESERVED * one.preserved,)) + seconds.to_bytes(3)


def write_capabilities(capabilities: Capabilities) -> list[bytes]:
    """Each capability as code, length and value, by code."""
    found = [
        _capability(Code.MULTIPROTOCOL, family.afi.to_bytes(2) + bytes((0, family.safi)))
        for family in sorted(capabilities.families)
    ]
    if capabilities.route_refresh:
        found.append(_capability(Code.ROUTE_REFRESH))
    if capabilities.extended_next_hops:
        entries = (one.afi.to_bytes(2) + bytes((0, one.safi, 0, 2)) for one in sorted(capabilities.extended_next_hops))
        found.append(_capability(Code.EXTENDED_NEXT_HOP, b"".join(entries)))
    if capabilities.extended_messages:
        found.append(_capability(Code.EXTENDED_MESSAGE))
    if capabilities.graceful_restart is not None:
        found.append(_capability(Code.GRACEFUL_RESTART, _restart(capabilities.graceful_restart)))
    if capabilities.asn4 is not None:
        found.append(_capability(Code.FOUR_OCTET_AS, capabilities.asn4.to_bytes(4)))
    if capabilities.add_path:
        tuples = (write_family(family) + bytes((direction,)) for family, direction in capabilities.add_path)
        found.append(_capability(Code.ADD_PATH, b"".join(tuples)))
    if capabilities.enhanced_route_refresh:
        found.append(_capability(Code.ENHANCED_ROUTE_REFRESH))
    if capabilities.long_lived:
        found.append(_capability(Code.LONG_LIVED_RESTART, b"".join(map(_stale, capabilities.long_lived))))
    return found
