"""The finite state machine of a BGP connection (RFC 4271 8.2.2) as a table: state and event give next state and acts.

A peer has several of these machines (RFC 4271 8.2.1): one that connects and others that wait for the peer's connection
("passive"), since both may come at the same time. The numbers of events are the RFC's. The table differs from the text
in this:

- A NOTIFICATION that comes in OpenSent is not answered by one; the RFC's list of "any other event" names it by mistake.
- An OPEN in OpenConfirm is an unexpected message (RFC 6608), since each connection has a machine of its own.
- A passive machine runs no ConnectRetryTimer: it never connects.
- A connection that loses a collision (event 23) is not counted as a failure.
- Event 29 is RFC 9687's, event 30 is the message of RFC 2918, which the RFC could not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, IntEnum, auto


class State(IntEnum):
    """States of a connection; the later one is nearer to a session."""

    IDLE = 0
    CONNECT = 1
    ACTIVE = 2
    OPEN_SENT = 3
    OPEN_CONFIRM = 4
    ESTABLISHED = 5

    __hash__ = int.__hash__


class Event(IntEnum):
    """Events (RFC 4271 8.1)."""

    MANUAL_START = 1
    MANUAL_STOP = 2
    AUTOMATIC_START = 3
    MANUAL_START_PASSIVE = 4
    AUTOMATIC_START_PASSIVE = 5
    AUTOMATIC_START_DAMPED = 6
    AUTOMATIC_START_DAMPED_PASSIVE = 7
    AUTOMATIC_STOP = 8
    CONNECT_RETRY_TIMER_EXPIRES = 9
    HOLD_TIMER_EXPIRES = 10
    KEEPALIVE_TIMER_EXPIRES = 11
    TCP_CR_ACKED = 16
    TCP_CONNECTION_CONFIRMED = 17
    TCP_CONNECTION_FAILS = 18
    BGP_OPEN = 19
    BGP_HEADER_ERROR = 21
    BGP_OPEN_MESSAGE_ERROR = 22
    OPEN_COLLISION_DUMP = 23
    NOTIFICATION_VERSION_ERROR = 24
    NOTIFICATION = 25
    KEEPALIVE = 26
    UPDATE = 27
    UPDATE_ERROR = 28
    SEND_HOLD_TIMER_EXPIRES = 29
    ROUTE_REFRESH = 30

    __hash__ = int.__hash__


NEVER: Mapping[int, str] = {
    12: "DelayOpenTimer_Expires: an OPEN is never delayed",
    13: "IdleHoldTimer_Expires: the damped start that follows it is the event (6 or 7)",
    14: "Tcp_CR_Valid: the listener judges a connection's source before any machine sees it",
    15: "Tcp_CR_Invalid: likewise",
    20: "BGPOpen with DelayOpenTimer running: an OPEN is never delayed",
}
"""Events of the RFC that do not occur, and why."""


class Act(Enum):
    """What a transition does, in the order of the table."""

    CONNECT = auto()
    """Begin a TCP connection."""
    START_RETRY = auto()
    """(Re)start the ConnectRetryTimer."""
    SEND_OPEN = auto()
    """Stop the ConnectRetryTimer, send OPEN, and start the HoldTimer with its large value."""
    CONFIRM = auto()
    """Send KEEPALIVE; start the KeepaliveTimer and the HoldTimer with what was agreed on."""
    SEND_KEEPALIVE = auto()
    """Send KEEPALIVE and restart the KeepaliveTimer."""
    RESTART_HOLD = auto()
    """Restart the HoldTimer."""
    ESTABLISH = auto()
    """The session is up: start the SendHoldTimer."""
    DELIVER = auto()
    """Hand the message on."""
    NOTIFY = auto()
    """Send the NOTIFICATION that the event brings, or that follows from it."""
    RELEASE = auto()
    """Stop all timers and close the connection."""
    COUNT = auto()
    """Count a failure: the next start waits longer."""
    FORGET = auto()
    """Count failures from zero."""

    __hash__ = object.__hash__


Transition = tuple[State, tuple[Act, ...]]

STARTS = (
    Event.MANUAL_START,
    Event.AUTOMATIC_START,
    Event.MANUAL_START_PASSIVE,
    Event.AUTOMATIC_START_PASSIVE,
    Event.AUTOMATIC_START_DAMPED,
    Event.AUTOMATIC_START_DAMPED_PASSIVE,
)
_CONNECTED = (Event.TCP_CR_ACKED, Event.TCP_CONNECTION_CONFIRMED)
_FAILED: Transition = State.IDLE, (Act.RELEASE, Act.COUNT)
_REFUSED: Transition = State.IDLE, (Act.NOTIFY, Act.RELEASE, Act.COUNT)
_DUMPED: Transition = State.IDLE, (Act.NOTIFY, Act.RELEASE)


def _row(state: State, other: Transition, **by_event: Transition) -> dict[tuple[State, Event], Transition]:
    """A state's transitions: ``other`` for events that are not named. Starts change nothing but in Idle."""
    row = {(state, event): other for event in Event}
    row |= _same(state, STARTS)
    return row | {(state, Event[name]): transition for name, transition in by_event.items()}


def _same(state: State, events: Iterable[Event]) -> dict[tuple[State, Event], Transition]:
    return {(state, event): (state, ()) for event in events}


_CONNECTING: Transition = State.CONNECT, (Act.START_RETRY, Act.CONNECT)
_WAITING: Transition = State.ACTIVE, ()

_IDLE = _row(
    State.IDLE,
    (State.IDLE, ()),
    MANUAL_START=(State.CONNECT, (Act.FORGET, *_CONNECTING[1])),
    AUTOMATIC_START=_CONNECTING,
    AUTOMATIC_START_DAMPED=_CONNECTING,
    MANUAL_START_PASSIVE=(State.ACTIVE, (Act.FORGET,)),
    AUTOMATIC_START_PASSIVE=_WAITING,
    AUTOMATIC_START_DAMPED_PASSIVE=_WAITING,
    TCP_CR_ACKED=(State.IDLE, (Act.RELEASE,)),
    TCP_CONNECTION_CONFIRMED=(State.IDLE, (Act.RELEASE,)),
)
_CONNECT = _row(
    State.CONNECT,
    _FAILED,
    MANUAL_STOP=(State.IDLE, (Act.RELEASE, Act.FORGET)),
    CONNECT_RETRY_TIMER_EXPIRES=(State.CONNECT, (Act.RELEASE, *_CONNECTING[1])),
    TCP_CR_ACKED=(State.OPEN_SENT, (Act.SEND_OPEN,)),
    TCP_CONNECTION_CONFIRMED=(State.OPEN_SENT, (Act.SEND_OPEN,)),
    OPEN_COLLISION_DUMP=(State.IDLE, (Act.RELEASE,)),
)
_ACTIVE = _row(
    State.ACTIVE,
    _FAILED,
    MANUAL_STOP=(State.IDLE, (Act.RELEASE, Act.FORGET)),
    CONNECT_RETRY_TIMER_EXPIRES=_CONNECTING,
    TCP_CR_ACKED=(State.OPEN_SENT, (Act.SEND_OPEN,)),
    TCP_CONNECTION_CONFIRMED=(State.OPEN_SENT, (Act.SEND_OPEN,)),
    OPEN_COLLISION_DUMP=(State.IDLE, (Act.RELEASE,)),
)
_STOPPED: Transition = State.IDLE, (Act.NOTIFY, Act.RELEASE, Act.FORGET)
_ENDED: Transition = State.IDLE, (Act.RELEASE,)
_OPEN_SENT = _row(
    State.OPEN_SENT,
    _REFUSED,
    MANUAL_STOP=_STOPPED,
    TCP_CR_ACKED=(State.OPEN_SENT, ()),
    TCP_CONNECTION_CONFIRMED=(State.OPEN_SENT, ()),
    TCP_CONNECTION_FAILS=(State.ACTIVE, (Act.RELEASE, Act.COUNT, Act.START_RETRY)),
    BGP_OPEN=(State.OPEN_CONFIRM, (Act.CONFIRM,)),
    OPEN_COLLISION_DUMP=_DUMPED,
    NOTIFICATION_VERSION_ERROR=_ENDED,
    NOTIFICATION=_FAILED,
)
_OPEN_CONFIRM = _row(
    State.OPEN_CONFIRM,
    _REFUSED,
    MANUAL_STOP=_STOPPED,
    KEEPALIVE_TIMER_EXPIRES=(State.OPEN_CONFIRM, (Act.SEND_KEEPALIVE,)),
    TCP_CR_ACKED=(State.OPEN_CONFIRM, ()),
    TCP_CONNECTION_CONFIRMED=(State.OPEN_CONFIRM, ()),
    TCP_CONNECTION_FAILS=_FAILED,
    OPEN_COLLISION_DUMP=_DUMPED,
    NOTIFICATION_VERSION_ERROR=_ENDED,
    NOTIFICATION=_FAILED,
    KEEPALIVE=(State.ESTABLISHED, (Act.RESTART_HOLD, Act.ESTABLISH)),
)
_ESTABLISHED = _row(
    State.ESTABLISHED,
    _REFUSED,
    MANUAL_STOP=_STOPPED,
    KEEPALIVE_TIMER_EXPIRES=(State.ESTABLISHED, (Act.SEND_KEEPALIVE,)),
    TCP_CR_ACKED=(State.ESTABLISHED, ()),
    TCP_CONNECTION_CONFIRMED=(State.ESTABLISHED, ()),
    TCP_CONNECTION_FAILS=_FAILED,
    OPEN_COLLISION_DUMP=_DUMPED,
    NOTIFICATION_VERSION_ERROR=_FAILED,
    NOTIFICATION=_FAILED,
    KEEPALIVE=(State.ESTABLISHED, (Act.RESTART_HOLD,)),
    UPDATE=(State.ESTABLISHED, (Act.RESTART_HOLD, Act.DELIVER)),
    ROUTE_REFRESH=(State.ESTABLISHED, (Act.RESTART_HOLD, Act.DELIVER)),
)
TABLE: Mapping[tuple[State, Event], Transition] = _IDLE | _CONNECT | _ACTIVE | _OPEN_SENT | _OPEN_CONFIRM | _ESTABLISHED
"""Every state and every event that occurs."""
