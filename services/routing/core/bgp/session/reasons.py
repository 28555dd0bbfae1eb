"""Why a BGP session ended or does not come up: a sentence, and what a person can do about it.

The sentences are what ``airmesh bgp`` shows beside a peer that is down. The text of a shutdown (RFC 9003) and what a
hard reset wraps (RFC 8538) are part of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.routing.core.bgp.codec.errors import Cease, ErrorCode
from services.routing.core.bgp.codec.messages import Notification
from services.routing.core.bgp.peers import SessionSettings

WITH_TEXT = frozenset({Cease.ADMINISTRATIVE_SHUTDOWN, Cease.ADMINISTRATIVE_RESET})
"""Subcodes of Cease that carry a text for the other side's operator (RFC 9003)."""
FINAL = frozenset({Cease.MAXIMUM_PREFIXES, Cease.ADMINISTRATIVE_SHUTDOWN, Cease.PEER_DECONFIGURED, Cease.BFD_DOWN})
"""Ends that are meant to take the routes away, too: sent as a hard reset where a plain NOTIFICATION would be taken for
a restart (RFC 8538 3.1)."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a session ended or does not come up."""

    text: str
    remedy: str = ""
    """What a person can do; empty: nothing, it passes."""
    code: int = 0
    """Of the NOTIFICATION, 0: there was none; what a hard reset wraps."""
    subcode: int = 0
    ours: bool = True
    """This side ended it."""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


_MISREAD = "the two sides read messages differently: compare the versions of both, and look at the packets"
_REMEDIES: dict[int, str] = {
    ErrorCode.HEADER: _MISREAD,
    ErrorCode.OPEN: "compare what both sides offer in OPEN",
    ErrorCode.UPDATE: _MISREAD,
    ErrorCode.HOLD_TIMER: "see whether packets reach the peer both ways, and whether its speaker runs",
    ErrorCode.STATE_MACHINE: _MISREAD,
    ErrorCode.ROUTE_REFRESH: _MISREAD,
    ErrorCode.SEND_HOLD_TIMER: "see whether the peer's speaker runs: it takes no octets",
}
_REMEDIES_OF_SUBCODES: dict[tuple[int, int], str] = {
    (ErrorCode.OPEN, 2): "set asNumber of the BGPPeer to the peer's number, and on the peer this node's",
    (ErrorCode.OPEN, 3): "give each speaker a router id of its own, other than 0.0.0.0",
    (ErrorCode.OPEN, 5): "give both sides the same password",
    (ErrorCode.OPEN, 6): "set a hold time of 0, or of at least 3 seconds",
    (ErrorCode.OPEN, 7): "let both sides carry a family in common: IPv4 or IPv6 unicast",
    (ErrorCode.OPEN, 11): "set matching roles (RFC 9234), or none",
    (
        ErrorCode.CEASE,
        Cease.MAXIMUM_PREFIXES,
    ): "announce fewer prefixes, or raise the bound where the session was ended",
    (ErrorCode.CEASE, Cease.ADMINISTRATIVE_SHUTDOWN): "enable the session again where it was shut down",
    (ErrorCode.CEASE, Cease.PEER_DECONFIGURED): "configure the peer again where it was removed",
    (ErrorCode.CEASE, Cease.CONNECTION_REJECTED): "let the peer accept this node",
    (ErrorCode.CEASE, Cease.OUT_OF_RESOURCES): "free memory where the session was ended",
    (ErrorCode.CEASE, Cease.BFD_DOWN): "look at the link to the peer: BFD packets are not answered",
}


def remedy_of(code: int, subcode: int) -> str:
    """What a person can do about a NOTIFICATION; empty where it passes by itself."""
    return _REMEDIES_OF_SUBCODES.get((code, subcode), _REMEDIES.get(code, ""))


def is_hard_reset(notification: Notification) -> bool:
    """The routes do not outlive it, whatever was agreed on (RFC 8538 3)."""
    return (notification.code, notification.subcode) == (ErrorCode.CEASE, Cease.HARD_RESET)


def received_reason(notification: Notification) -> Reason:
    """What a NOTIFICATION of the peer says."""
    return _reason(notification, f"the peer ended the session: {notification.reason}", ours=False)


def sent_reason(notification: Notification, detail: str = "") -> Reason:
    """What a NOTIFICATION of this side says; ``detail``: what was wrong."""
    said = f"this side ended the session: {notification.reason}"
    return _reason(notification, f"{said} ({detail})" if detail else said, ours=True)


def _reason(notification: Notification, said: str, *, ours: bool) -> Reason:
    code, subcode, content = notification.code, notification.subcode, notification.content
    if is_hard_reset(notification) and len(content) >= 2:
        code, subcode = content[0], content[1]
    return Reason(said, remedy_of(code, subcode), code, subcode, ours)


def no_answer(settings: SessionSettings) -> Reason:
    """Why a peer may not answer a connection."""
    remedy = "see whether its address is right, and packets reach it both ways"
    if settings.password:
        remedy = "see whether both sides have the same password, and packets reach the peer both ways"
    elif settings.hops is not None:
        remedy = f"see whether it is at most {settings.hops} hops away, and has TTL security, too"
    return Reason(f"{settings.address}, port {settings.port} does not answer", remedy)
