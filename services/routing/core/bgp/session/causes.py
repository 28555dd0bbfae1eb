"""What an event of a BGP connection brings along: the NOTIFICATION that follows, the reason, the message that it is."""

from __future__ import annotations

from dataclasses import dataclass

from services.routing.core.bgp.codec.errors import Cease, ErrorCode, MessageError
from services.routing.core.bgp.codec.messages import MessageKind, Notification, Open, RouteRefresh, hard_reset
from services.routing.core.bgp.session.connection import Connection
from services.routing.core.bgp.session.reasons import FINAL, Reason, sent_reason
from services.routing.core.bgp.session.restart import kept_families, outlives
from services.routing.core.bgp.session.table import Event, State
from services.routing.core.bgp.values import Family, Update

_UNEXPECTED = {State.OPEN_SENT: 1, State.OPEN_CONFIRM: 2, State.ESTABLISHED: 3}
"""Subcodes of RFC 6608."""
_EXPIRED = {
    Event.HOLD_TIMER_EXPIRES: ErrorCode.HOLD_TIMER,
    Event.SEND_HOLD_TIMER_EXPIRES: ErrorCode.SEND_HOLD_TIMER,
}


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an event is what it is."""

    notification: Notification | None = None
    """To be sent, or received; where one is to be sent and none is given, it follows from the event."""
    reason: Reason | None = None
    """Why the connection ends."""
    message: Update | RouteRefresh | None = None
    opened: Open | None = None
    """An OPEN of the peer that is accepted."""
    kind: MessageKind | None = None
    """Of the message that is the event."""


NOTHING = Cause()


def refusal(error: MessageError) -> Cause:
    """A message that is wrong."""
    notification = Notification(error.code, error.subcode, error.content)
    return Cause(notification, sent_reason(notification, error.reason))


def answered(connection: Connection, before: State, event: Event, cause: Cause) -> Cause:
    """The NOTIFICATION that a transition sends, and the reason that it stands for.

    It is a hard reset where the routes are meant to go, and a plain one would be taken for a restart.
    """
    notification = cause.notification or _following(before, event, cause.kind)
    reason = cause.reason or sent_reason(notification, _detail(before, event, cause.kind))
    final = notification.code == ErrorCode.CEASE and notification.subcode in FINAL
    theirs = connection.theirs
    if final and theirs is not None and outlives(notification, connection.ours, theirs.capabilities):
        notification = hard_reset(notification)
    return Cause(notification, reason)


def _detail(before: State, event: Event, kind: MessageKind | None) -> str:
    if kind is not None:
        return f"a {kind.name} message"
    if (before, event) == (State.OPEN_SENT, Event.HOLD_TIMER_EXPIRES):
        return "the peer has sent no OPEN; where TTL security is on, it has to be on at both sides"
    return ""


def _following(before: State, event: Event, kind: MessageKind | None) -> Notification:
    if (code := _EXPIRED.get(event)) is not None:
        return Notification(code, 0)
    return Notification(ErrorCode.STATE_MACHINE, _UNEXPECTED.get(before, 0), bytes((kind,)) if kind else b"")


def collision() -> Cause:
    """Another connection of the peer is the better one (RFC 4271 6.8)."""
    return Cause(Notification(ErrorCode.CEASE, Cease.CONNECTION_COLLISION))


def kept(connection: Connection, event: Event, cause: Cause) -> frozenset[Family]:
    """Families whose routes outlive a session that ends so: it may be a restart of the peer."""
    if connection.theirs is None or connection.agreed is None or event is Event.MANUAL_STOP:
        return frozenset()
    theirs = connection.theirs.capabilities
    if event is not Event.TCP_CONNECTION_FAILS:
        notification = cause.notification
        if notification is None or not outlives(notification, connection.ours, theirs):
            return frozenset()
    return kept_families(connection.ours, theirs, connection.agreed)


def kept_by_peer(connection: Connection) -> frozenset[Family]:
    """Families whose routes the peer keeps when this speaker restarts without a NOTIFICATION."""
    if connection.theirs is None or connection.agreed is None:
        return frozenset()
    return kept_families(connection.theirs.capabilities, connection.ours, connection.agreed)
