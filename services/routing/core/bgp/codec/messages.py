"""BGP messages other than UPDATE: framing, OPEN, NOTIFICATION, KEEPALIVE and ROUTE-REFRESH (RFC 4271 4, RFC 2918).

``split`` cuts a stream of octets into messages and refuses a header at once, before the body that it promises has come:
so a peer cannot make this side wait for, or hold, what no message may be. A ``decode_*`` takes a body without header,
an ``encode_*`` gives a message with it. Whatever is wrong is a ``MessageError``, the NOTIFICATION to send.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from services.routing.core.bgp.codec.capabilities import Offer, read_capabilities, write_capabilities
from services.routing.core.bgp.codec.errors import Cease, ErrorCode, MessageError, error_name
from services.routing.core.bgp.codec.families import FAMILIES
from services.routing.core.bgp.values import AS_TRANS, Asn, Capabilities, Family, RouterId

__all__ = [
    "HEADER",
    "LARGEST",
    "LARGEST_EXTENDED",
    "MessageError",
    "MessageKind",
    "Notification",
    "Open",
    "RefreshKind",
    "RouteRefresh",
    "communication",
    "decode_notification",
    "decode_open",
    "decode_route_refresh",
    "encode_notification",
    "encode_open",
    "encode_route_refresh",
    "hard_reset",
    "keepalive",
    "message",
    "split",
]

MARKER = b"\xff" * 16
HEADER = 19
"""Octets of a message's header: marker, length and type."""
LARGEST = 4096
"""Octets of the largest message (RFC 4271 4.1)."""
LARGEST_EXTENDED = 65_535
"""The same where both sides have extended messages (RFC 8654); OPEN and KEEPALIVE are never larger than before."""
VERSION = 4
CAPABILITIES = 2
"""Type of the optional parameter that holds capabilities (RFC 5492)."""
EXTENDED_PARAMETERS = 255
"""Stands where the first parameter's type would be: lengths have two octets (RFC 9072)."""
LONGEST_COMMUNICATION = 255
"""Octets of a shutdown communication (RFC 9003)."""


class MessageKind(IntEnum):
    """Types of messages (RFC 4271 4.1, RFC 2918)."""

    OPEN = 1
    UPDATE = 2
    NOTIFICATION = 3
    KEEPALIVE = 4
    ROUTE_REFRESH = 5

    __hash__ = int.__hash__


KINDS = {int(kind): kind for kind in MessageKind}
SHORTEST = {
    MessageKind.OPEN: 29,
    MessageKind.UPDATE: 23,
    MessageKind.NOTIFICATION: 21,
    MessageKind.KEEPALIVE: HEADER,
    MessageKind.ROUTE_REFRESH: 23,
}
"""Least octets of a message, by type."""
LONGEST = {MessageKind.OPEN: LARGEST, MessageKind.KEEPALIVE: HEADER}
"""Most octets of a message where its type bounds them."""


class RefreshKind(IntEnum):
    """What a ROUTE-REFRESH says (RFC 7313 3.1)."""

    REQUEST = 0
    BEGINNING = 1
    END = 2


def message(kind: MessageKind, body: bytes = b"") -> bytes:
    """A message with its header."""
    return MARKER + (HEADER + len(body)).to_bytes(2) + bytes((kind,)) + body


def split(buffer: bytes | bytearray | memoryview, largest: int) -> tuple[list[tuple[MessageKind, memoryview]], int]:
    """The whole messages at the beginning of ``buffer``, as types and bodies, and the octets that they take.

    The bodies are parts of ``buffer``, valid as long as nobody writes there. ``largest`` is the most octets of a
    message. Raises ``MessageError`` 1/1, 1/2 or 1/3 as soon as a header is wrong (RFC 4271 6.1); what stands before it
    is then lost, as the session is.
    """
    view = memoryview(buffer)
    size = len(view)
    found: list[tuple[MessageKind, memoryview]] = []
    at = 0
    while size - at >= HEADER:
        if view[at : at + 16] != MARKER:
            raise MessageError(ErrorCode.HEADER, 1, "the marker of a message is not all ones")
        length = view[at + 16] << 8 | view[at + 17]
        kind = KINDS.get(view[at + 18])
        if kind is None:
            if not HEADER <= length <= largest:
                raise _wrong_length(length, "a message")
            raise MessageError(
                ErrorCode.HEADER, 3, f"there is no message of type {view[at + 18]}", bytes(view[at + 18 : at + 19])
            )
        if length < SHORTEST[kind] or length > largest or length > LONGEST.get(kind, largest):
            raise _wrong_length(length, f"a message of type {kind.name}")
        if size - at < length:
            break
        found.append((kind, view[at + HEADER : at + length]))
        at += length
    return found, at


def _wrong_length(length: int, what: str) -> MessageError:
    return MessageError(ErrorCode.HEADER, 2, f"{what} cannot have {length} octets", length.to_bytes(2))


def keepalive() -> bytes:
    """A KEEPALIVE."""
    return message(MessageKind.KEEPALIVE)


@dataclass(frozen=True, slots=True)
class Open:
    """An OPEN: who a speaker is and what it can do (RFC 4271 4.2)."""

    asn: Asn
    """Its number in four octets where it has that capability, else in two."""
    hold_seconds: int
    """Proposed hold time: 0, or at least 3."""
    router_id: RouterId
    capabilities: Capabilities


def decode_open(body: bytes | memoryview) -> Open:
    """Read an OPEN.

    Raises ``MessageError`` 2/1 (another version), 2/2 (number 0, RFC 7607, or two numbers that differ), 2/3 (identifier
    0, RFC 6286), 2/4 (unknown optional parameter), 2/6 (hold time of 1 or 2 s), 2/0 (malformed). Whether the peer is
    the one that is meant, and whether both sides have a family in common (2/7), is the session's matter.
    """
    raw = bytes(body)
    if len(raw) < 10:
        raise _wrong_length(HEADER + len(raw), "a message of type OPEN")
    if raw[0] != VERSION:
        raise MessageError(ErrorCode.OPEN, 1, f"the peer speaks BGP version {raw[0]}, and only 4 is known", b"\0\4")
    hold = int.from_bytes(raw[3:5])
    if hold in (1, 2):
        raise MessageError(ErrorCode.OPEN, 6, f"a hold time of {hold} s is refused: 0, or 3 at least", raw[3:5])
    if raw[5:9] == bytes(4):
        raise MessageError(ErrorCode.OPEN, 3, "the peer's BGP identifier is 0.0.0.0")
    offer = Offer()
    for kind, value in _parameters(raw):
        if kind != CAPABILITIES:
            raise MessageError(ErrorCode.OPEN, 4, f"optional parameter {kind} is not known")
        read_capabilities(offer, value)
    return Open(_number(raw, offer.asn4), hold, IPv4Address(raw[5:9]), offer.whole())


def _number(raw: bytes, asn4: Asn | None) -> Asn:
    short = int.from_bytes(raw[1:3])
    asn = short if asn4 is None else asn4
    if asn == 0 or short == 0:
        raise MessageError(ErrorCode.OPEN, 2, "the peer's AS number is 0", raw[1:3])
    if short not in (AS_TRANS, asn):
        raise MessageError(
            ErrorCode.OPEN, 2, f"the peer says AS {short} and, in the four-octet AS capability, {asn}", raw[1:3]
        )
    return asn


def _parameters(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Optional parameters of an OPEN as types and values (RFC 4271 4.2, RFC 9072)."""
    extended = raw[9] != 0 and raw[10:11] == bytes((EXTENDED_PARAMETERS,))
    width = 2 if extended else 1
    at = 13 if extended else 10
    stop = at + (int.from_bytes(raw[11:13]) if extended else raw[9])
    if stop != len(raw) or at > len(raw):
        raise MessageError(ErrorCode.OPEN, 0, "the length of the optional parameters is not that of the message")
    while at < stop:
        start = at + 1 + width
        end = start + int.from_bytes(raw[at + 1 : start])
        if start > stop or end > stop:
            raise MessageError(ErrorCode.OPEN, 0, "an optional parameter is longer than the message")
        yield raw[at], raw[start:end]
        at = end


def encode_open(opened: Open) -> bytes:
    """Write an OPEN, with all capabilities in one optional parameter."""
    short = opened.asn if opened.asn <= 0xFFFF else AS_TRANS
    capabilities = b"".join(write_capabilities(opened.capabilities))
    parameters = bytes((CAPABILITIES, len(capabilities))) + capabilities if capabilities else b""
    return message(
        MessageKind.OPEN,
        bytes((VERSION,))
        + short.to_bytes(2)
        + opened.hold_seconds.to_bytes(2)
        + opened.router_id.packed
        + bytes((len(parameters),))
        + parameters,
    )


@dataclass(frozen=True, slots=True)
class Notification:
    """A NOTIFICATION: why a speaker ends the session (RFC 4271 4.5)."""

    code: int
    subcode: int
    content: bytes = b""

    @property
    def reason(self) -> str:
        """In words, with the text of a shutdown communication (RFC 9003) and what a hard reset holds (RFC 8538)."""
        name = error_name(self.code, self.subcode)
        if self.code != ErrorCode.CEASE:
            return name
        if self.subcode == Cease.HARD_RESET and len(self.content) >= 2:
            inner = Notification(self.content[0], self.content[1], self.content[2:])
            deeper = inner.code == ErrorCode.CEASE and inner.subcode == Cease.HARD_RESET
            return f"{name} ({error_name(inner.code, inner.subcode) if deeper else inner.reason})"
        if self.subcode in (Cease.ADMINISTRATIVE_SHUTDOWN, Cease.ADMINISTRATIVE_RESET):
            text = _text(self.content)
            return f"{name}: {text}" if text else name
        return name


def _text(content: bytes) -> str:
    """A shutdown communication; what is no text or does not print is replaced, since it goes into logs."""
    if not content or content[0] > len(content) - 1:
        return ""
    text = content[1 : 1 + content[0]].decode("utf-8", "replace")
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def communication(text: str) -> bytes:
    """A shutdown communication (RFC 9003): the content of Cease 2 and 4, cut at 255 octets between two characters."""
    octets = text.encode("utf-8", "replace")[:LONGEST_COMMUNICATION].decode("utf-8", "ignore").encode()
    return bytes((len(octets),)) + octets


def hard_reset(inner: Notification) -> Notification:
    """What ends a session whose routes must not be kept over a restart, for the reason of ``inner`` (RFC 8538 3.1)."""
    return Notification(ErrorCode.CEASE, Cease.HARD_RESET, bytes((inner.code, inner.subcode)) + inner.content)


def decode_notification(body: bytes | memoryview) -> Notification:
    """Read a NOTIFICATION. Raises ``MessageError`` 1/2 for one without code and subcode; nobody answers it."""
    raw = bytes(body)
    if len(raw) < 2:
        raise _wrong_length(HEADER + len(raw), "a message of type NOTIFICATION")
    return Notification(raw[0], raw[1], raw[2:])


def encode_notification(notification: Notification) -> bytes:
    """Write a NOTIFICATION; content that does not fit into 4,096 octets is cut."""
    content = notification.content[: LARGEST - HEADER - 2]
    return message(MessageKind.NOTIFICATION, bytes((notification.code, notification.subcode)) + content)


@dataclass(frozen=True, slots=True)
class RouteRefresh:
    """A ROUTE-REFRESH: a wish for all routes of a family, or where they begin and end (RFC 2918, RFC 7313)."""

    family: Family
    kind: RefreshKind = RefreshKind.REQUEST


def decode_route_refresh(body: bytes | memoryview) -> RouteRefresh | None:
    """Read a ROUTE-REFRESH; None for one of a family or kind that is not known, which is to be ignored.

    Raises ``MessageError`` 7/1 for one of another length (RFC 7313 5), with the whole message.
    """
    raw = bytes(body)
    if len(raw) != 4:
        sent = message(MessageKind.ROUTE_REFRESH, raw)
        reason = f"a message of type ROUTE_REFRESH cannot have {len(sent)} octets"
        raise MessageError(ErrorCode.ROUTE_REFRESH, 1, reason, sent)
    family = FAMILIES.get(raw[0:2] + raw[3:4])
    if family is None or raw[2] > RefreshKind.END:
        return None
    return RouteRefresh(family, RefreshKind(raw[2]))


def encode_route_refresh(refresh: RouteRefresh) -> bytes:
    """Write a ROUTE-REFRESH."""
    family = refresh.family
    return message(MessageKind.ROUTE_REFRESH, family.afi.to_bytes(2) + bytes((refresh.kind, family.safi)))
