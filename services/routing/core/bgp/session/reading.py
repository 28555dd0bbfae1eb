"""Which event of the state machine a BGP message is (RFC 4271 8.1.5), and what it brings along."""

from __future__ import annotations

from services.routing.core.bgp.codec.errors import ErrorCode, MessageError
from services.routing.core.bgp.codec.messages import (
    MessageKind,
    decode_notification,
    decode_open,
    decode_route_refresh,
)
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session.causes import Cause, refusal
from services.routing.core.bgp.session.connection import Connection
from services.routing.core.bgp.session.negotiation import check_open
from services.routing.core.bgp.session.reasons import received_reason
from services.routing.core.bgp.session.table import Event, State

_EVENTS = {
    MessageKind.OPEN: Event.BGP_OPEN,
    MessageKind.UPDATE: Event.UPDATE,
    MessageKind.KEEPALIVE: Event.KEEPALIVE,
    MessageKind.ROUTE_REFRESH: Event.ROUTE_REFRESH,
}


def event_of(
    settings: SessionSettings, connection: Connection, kind: MessageKind, body: memoryview
) -> tuple[Event, Cause]:
    """The event and its cause. What a state does not expect is not read, since it ends the connection as it is."""
    try:
        if kind is MessageKind.NOTIFICATION:
            return _notification(body)
        return _EVENTS[kind], _read(settings, connection, kind, body)
    except MessageError as error:
        return (Event.BGP_OPEN_MESSAGE_ERROR if kind is MessageKind.OPEN else Event.UPDATE_ERROR), refusal(error)


def _notification(body: memoryview) -> tuple[Event, Cause]:
    notification = decode_notification(body)
    of_version = (notification.code, notification.subcode) == (ErrorCode.OPEN, 1)
    event = Event.NOTIFICATION_VERSION_ERROR if of_version else Event.NOTIFICATION
    return event, Cause(notification, received_reason(notification))


def _read(settings: SessionSettings, connection: Connection, kind: MessageKind, body: memoryview) -> Cause:
    if kind is MessageKind.OPEN and connection.state is State.OPEN_SENT:
        theirs = decode_open(body)
        check_open(settings, theirs)
        return Cause(kind=kind, opened=theirs)
    if connection.reader is None or connection.state is not State.ESTABLISHED:
        return Cause(kind=kind)
    if kind is MessageKind.UPDATE:
        return Cause(kind=kind, message=connection.reader.read(body))
    return Cause(kind=kind, message=decode_route_refresh(body) if kind is MessageKind.ROUTE_REFRESH else None)
