"""BGP messages of a node's sessions as they come, decoded: what ``airmesh bgp capture`` asks for and is answered.

Asked of all routing agents at once on ``proto.subjects.BGP_CAPTURE``, again and again, and answered with a
``proto.requests.Reply`` whose body is :class:`BgpCapture`: the messages since the last answer to the same capture. The
first question of a capture begins it at an agent; when nobody has asked for :data:`LEASE` seconds, it ends. An agent
keeps a bounded number of messages between two questions, and says how many it left out.

A message has what its octets say, in the terms of the RFCs. A password of TCP-MD5 is in no message.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.net import Address, Network

LEASE = 10.0
"""Seconds without a question after which an agent ends a capture."""
MAX_CAPTURES = 8
"""Captures of one agent at a time; one more is answered ``refused``."""
MAX_MESSAGES = 200
"""Messages of one answer."""
MAX_PREFIXES = 64
"""Prefixes that are told of each part of an UPDATE."""

MessageType = Literal["OPEN", "UPDATE", "NOTIFICATION", "KEEPALIVE", "ROUTE-REFRESH", "none"]
"""Types of RFC 4271 4.1 and RFC 2918; ``none``: the octets have no header of a message."""
Treatment = Literal["attribute discard", "treat-as-withdraw", "session reset"]
"""What becomes of what is wrong (RFC 7606 2)."""


class BgpCaptureRequest(msgspec.Struct, frozen=True):
    """``$SRV.BGP-CAPTURE`` → :class:`BgpCapture`, from each agent that is asked; others stay silent."""

    capture: str
    """Which capture it is: random text of whoever asks, 64 characters at most."""
    nodes: tuple[str, ...] = ()
    """Only agents of these nodes answer; none: all."""
    peer: str = ""
    """Only sessions with this peer (``proto.bgp.is_named``); empty: all. It stays as it was in the first question."""


class CapturedOpen(msgspec.Struct, frozen=True):
    """What an OPEN says."""

    asn: int
    """In four octets where it has that capability (RFC 6793)."""
    hold_seconds: int
    """Proposed."""
    router_id: Address
    capabilities: tuple[str, ...] = ()


class CapturedNotification(msgspec.Struct, frozen=True):
    """Why a session ends."""

    code: int
    subcode: int
    reason: str
    """Code and subcode in words, with the text for an operator where there is one (RFC 9003)."""


class CapturedPrefixes(msgspec.Struct, frozen=True):
    """Prefixes of one family that an UPDATE takes back, or makes reachable with the same attributes."""

    family: Literal[4, 6]
    prefixes: tuple[Network, ...]
    """The first :data:`MAX_PREFIXES`."""
    path_ids: tuple[int, ...] = ()
    """One for each prefix where ADD-PATH was agreed on (RFC 7911), else none."""
    left_out: int = 0
    """Prefixes that are not told."""
    attributes: tuple[tuple[str, str], ...] = ()
    """Path attributes by their names in the RFCs; of prefixes that are taken back none."""


class MessageFault(msgspec.Struct, frozen=True):
    """What is wrong with a message, and what became of it."""

    about: str
    """The attribute by its name in the RFCs; empty: the message itself."""
    reason: str
    treatment: Treatment


class CapturedMessage(msgspec.Struct, frozen=True):
    """One message of a session."""

    number: int
    """From 1 on, without gaps, as long as the agent runs and the capture goes on."""
    time_ns: int
    """When it was read, or handed to be sent; nanoseconds since 1970, by the node's clock."""
    peer: str
    direction: Literal["received", "sent"]
    connection: Literal["outgoing", "incoming"]
    """Whether this node or the peer has made the TCP connection."""
    type: MessageType
    octets: int
    """With the header."""
    missed: int = 0
    """Messages between the one before and this one that found no room at the agent."""
    open: CapturedOpen | None = None
    notification: CapturedNotification | None = None
    withdrawn: tuple[CapturedPrefixes, ...] = ()
    """By RFC 7606 prefixes may be among them that the UPDATE announces."""
    reachable: tuple[CapturedPrefixes, ...] = ()
    end_of_rib: bool = False
    """The UPDATE says only that the first full table of ``family`` has been sent (RFC 4724 2)."""
    refresh: Literal["", "request", "begin", "end"] = ""
    """What a ROUTE-REFRESH says of ``family`` (RFC 7313 3.1)."""
    family: Literal[0, 4, 6] = 0
    """0: the message is about none alone."""
    faults: tuple[MessageFault, ...] = ()


class BgpCapture(msgspec.Struct, frozen=True):
    """What one node's agent answers: messages in the order in which they were read or sent."""

    node: str
    peers: int = 0
    """Peers that the question names now."""
    messages: tuple[CapturedMessage, ...] = ()
    missed: int = 0
    """Messages after the last one of these that found no room."""
    refused: bool = False
    """There are :data:`MAX_CAPTURES` others."""
