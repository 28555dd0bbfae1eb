"""A BGP peer's machine: one connection that is made, two that may come, and the session that is held by one of them.

It acts by the table of RFC 4271 8.2.2 (``table.py``) for each connection, and decides between connections itself
(collisions, RFC 4271 6.8 and RFC 6286 2.3). Time and chance are arguments. Whoever drives it calls :meth:`Machine.tick`
at :attr:`Machine.deadline`, and does what each call returns, in order.

After a failure it starts again by itself (``pacing.py``). The peer's connections are taken meanwhile, but not where it
was this side that found an error in what the peer sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.routing.core.bgp.codec.errors import Cease, ErrorCode, MessageError
from services.routing.core.bgp.codec.messages import (
    MessageKind,
    Notification,
    Open,
    communication,
    encode_notification,
    encode_open,
    keepalive,
)
from services.routing.core.bgp.codec.updates import UpdateReader
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.session.actions import (
    INCOMING,
    OUTGOING,
    Accept,
    Action,
    Close,
    Connect,
    DeferSelection,
    Established,
    Link,
    Lost,
    Received,
    Seen,
    Send,
)
from services.routing.core.bgp.session.causes import NOTHING, Cause, answered, collision, kept, kept_by_peer, refusal
from services.routing.core.bgp.session.connection import Connection, Timer
from services.routing.core.bgp.session.pacing import Pacing
from services.routing.core.bgp.session.reading import event_of
from services.routing.core.bgp.session.reasons import FINAL, WITH_TEXT, Reason, no_answer, sent_reason
from services.routing.core.bgp.session.restart import StaleRoutes
from services.routing.core.bgp.session.table import TABLE, Act, Event, State
from services.routing.core.bgp.values import Agreed, Capabilities, Family, Update

OPEN_HOLD = 240.0
"""Seconds that a peer's OPEN is waited for (RFC 4271 8.2.2)."""
SEND_HOLD = 480.0
"""Seconds in which a peer may take no octet (RFC 9687 3.2); twice the hold time where that is longer."""
SETTLED = 10.0
"""Seconds of a session in which another connection of the peer is a collision; later it is a restart."""
_EXPIRIES = {
    Timer.CONNECT_RETRY: Event.CONNECT_RETRY_TIMER_EXPIRES,
    Timer.HOLD: Event.HOLD_TIMER_EXPIRES,
    Timer.SEND_HOLD: Event.SEND_HOLD_TIMER_EXPIRES,
    Timer.KEEPALIVE: Event.KEEPALIVE_TIMER_EXPIRES,
}
_OUR_FINDINGS = frozenset({Event.BGP_HEADER_ERROR, Event.BGP_OPEN_MESSAGE_ERROR, Event.UPDATE_ERROR})
"""Events in which this side finds an error of the peer."""
_RESTARTED = Reason("the peer has opened another connection: it has restarted", ours=False)
_CLOSED_FOR_RESTART = Reason("this speaker restarts")
_ENDED = Reason("the connection has ended")


@dataclass(frozen=True, slots=True)
class _Step:
    """A transition that is being carried out."""

    connection: Connection
    event: Event
    now: float
    cause: Cause


class Machine:
    """The sessions of one peer, one at a time. It does nothing before :meth:`start`."""

    def __init__(
        self,
        settings: SessionSettings,
        chance: Callable[[], float],
        *,
        restarting_until: float | None = None,
        preserved: bool = True,
    ) -> None:
        """``chance`` gives numbers in [0, 1). ``restarting_until``: this speaker has just restarted, and asks its peers
        until then for all routes before it chooses any; ``preserved``: the kernel has kept the routes meanwhile.
        """
        self.settings = settings
        self.fault: Reason | None = None
        """Why there was no session, the last time; it stays until another reason or a session."""
        self.since: float | None = None
        """When the session came up; None: there is none."""
        self.captured = False
        """Each message of the peer is told as it came (:class:`Seen`)."""
        self.received_messages: Counter[MessageKind] = Counter()
        self.established_count = 0
        self._chance = chance
        self._restarting_until = restarting_until
        self._preserved = preserved
        self._connections = tuple(Connection(link) for link in (OUTGOING, *INCOMING))
        self._wanted = False
        self._begun = False
        self._pacing = Pacing()
        self._stale = StaleRoutes()
        self._actions: list[Action] = []

    # What it is in.

    @property
    def state(self) -> State:
        """The state of the connection that is nearest to a session."""
        return max(connection.state for connection in self._connections if not _waits(connection)) or (
            State.ACTIVE if any(map(_waits, self._connections)) else State.IDLE
        )

    @property
    def session(self) -> Connection | None:
        """The connection that holds the session."""
        return next((one for one in self._connections if one.state is State.ESTABLISHED), None)

    @property
    def stale(self) -> frozenset[Family]:
        """Families whose routes are, or may be, stale ones."""
        return self._stale.families

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` has something to do; None: only an event will."""
        deadlines = [at for one in self._connections for at in one.timers.values()]
        deadlines += [one.not_before for one in self._connections if self._may_start(one)]
        if self._stale.deadline is not None:
            deadlines.append(self._stale.deadline)
        return min(deadlines, default=None)

    # Events.

    def start(self, now: float, after: float = 0.0) -> list[Action]:
        """Hold a session (ManualStart), ``after`` so many seconds."""
        self._wanted, self._begun = True, False
        for connection in self._connections:
            connection.not_before = now + after
        return self.tick(now)

    def stop(
        self, now: float, cease: Cease, *, text: str = "", content: bytes = b"", again_after: float | None = None
    ) -> list[Action]:
        """End the session with a Cease; ``text`` for the other side's operator, where ``cease`` carries one.

        ``again_after``: seconds until the next attempt, the peer's included, more where that is repeated; None: none
        before :meth:`start`. Routes that are kept over a restart of the peer go where it is None, and where ``cease``
        is one of :data:`FINAL`.
        """
        said = communication(text) if text and cease in WITH_TEXT else content
        self._stop(now, Notification(ErrorCode.CEASE, cease, said), again_after)
        if again_after is None or cease in FINAL:
            self._actions += self._stale.drop()
        return self._taken()

    def suspend(self, now: float) -> list[Action]:
        """End for a planned restart of this speaker: without a NOTIFICATION where the peer will keep the routes (RFC
        4724 4), else by an administrative reset.
        """
        session = self.session
        if session is not None and kept_by_peer(session):
            self._drive(session, Event.TCP_CONNECTION_FAILS, now, Cause(reason=_CLOSED_FOR_RESTART))
        self._stop(now, Notification(ErrorCode.CEASE, Cease.ADMINISTRATIVE_RESET))
        self._stale.drop()  # this speaker's own tables stay as they are until it ends
        return self._taken()

    def connected(self, now: float) -> list[Action]:
        """The TCP connection that ``Connect`` asked for is there."""
        self._drive(self._connections[OUTGOING], Event.TCP_CR_ACKED, now)
        return self._taken()

    def accept(self, now: float) -> tuple[Link | None, list[Action]]:
        """The peer has made a TCP connection: its number from now on, which ``Accept`` says, too; None: close it."""
        self._start_due(now)
        session, free = self.session, None
        if session is None or self._may_have_restarted(session, now):
            free = self._free(now)
        if free is not None:
            free.opened = True
            self._actions.append(Accept(free.link))
            self._drive(free, Event.TCP_CONNECTION_CONFIRMED, now)
        return (free.link if free is not None else None), self._taken()

    def failed(self, now: float, link: Link, reason: Reason) -> list[Action]:
        """A TCP connection was not made, or has ended."""
        connection = self._connections[link]
        if connection.opened:
            self._drive(connection, Event.TCP_CONNECTION_FAILS, now, Cause(reason=reason))
        return self._taken()

    def received(self, now: float, link: Link, octets: bytes) -> list[Action]:
        """Octets have come by a connection."""
        connection = self._connections[link]
        try:
            for kind, body in connection.messages(octets) if connection.opened else ():
                self.received_messages[kind] += 1
                event, cause = event_of(self.settings, connection, kind, body)
                if self.captured:
                    refused = cause.reason.text if cause.reason is not None and event in _OUR_FINDINGS else ""
                    self._actions.append(Seen(link, kind, bytes(body), connection.agreed, refused))
                if cause.opened is None or self._adopt(connection, cause.opened, now):
                    self._drive(connection, event, now, cause)
                if not connection.opened:
                    break
        except MessageError as error:
            if self.captured:
                self._actions.append(Seen(link, None, b"", connection.agreed, error.reason))
            self._drive(connection, Event.BGP_HEADER_ERROR, now, refusal(error))
        return self._taken()

    def sent(self, now: float, link: Link) -> None:
        """The kernel has taken octets of a connection: where it holds the session, the next KEEPALIVE may wait, and the
        peer is not stuck.
        """
        session = self.session
        if session is not None and session.link == link and session.hold_seconds:
            self._start_keepalive(session, now)
            self._start_send_hold(session, now)

    def tick(self, now: float) -> list[Action]:
        """Let expire what has expired, and start what may start."""
        for connection in self._connections:
            for timer in Timer:
                if connection.timers.get(timer, now + 1) <= now:
                    del connection.timers[timer]
                    cause = Cause(reason=no_answer(self.settings)) if timer is Timer.CONNECT_RETRY else NOTHING
                    self._drive(connection, _EXPIRIES[timer], now, cause)
        self._actions += self._stale.expire(now)
        self._start_due(now)
        return self._taken()

    def _adopt(self, connection: Connection, theirs: Open, now: float) -> bool:
        """The peer's OPEN is accepted, and what both agree on known; False: another connection is the better one."""
        for other in self._connections:
            if other is not connection and not self._collide(connection, other, int(theirs.router_id), now):
                return False
        connection.theirs = theirs
        connection.hold_seconds = min(self.settings.hold_seconds, theirs.hold_seconds)
        agreed = negotiation.agree(connection.ours, theirs.capabilities, external=self.settings.external)
        connection.agreed, connection.reader = agreed, UpdateReader(agreed)
        connection.largest = negotiation.largest_received(connection.ours)
        return True

    def _stop(self, now: float, notification: Notification, again_after: float | None = None) -> None:
        """All connections end; ``again_after``: seconds until they may start again."""
        self._wanted = again_after is not None
        event = Event.AUTOMATIC_STOP if self._wanted else Event.MANUAL_STOP
        wait = self._pacing.stopped(again_after or 0.0)
        reason = sent_reason(notification)
        for connection in self._connections:
            stays = self._wanted and _waits(connection)
            if connection.state is not State.IDLE and not stays:
                self._drive(connection, event, now, Cause(notification, reason))
            connection.not_before = max(connection.not_before, now + wait)
        self.fault = reason

    # Collisions (RFC 4271 6.8).

    def _collide(self, newer: Connection, other: Connection, theirs: int, now: float) -> bool:
        """Whether a connection whose OPEN has come goes on beside another one; the loser is closed."""
        if other.state is State.ESTABLISHED:
            if self._may_have_restarted(other, now):
                self._drive(other, Event.TCP_CONNECTION_FAILS, now, Cause(reason=_RESTARTED))
                return True
            self._drive(newer, Event.OPEN_COLLISION_DUMP, now, collision())
            return False
        if other.state in (State.CONNECT, State.ACTIVE) and not _waits(other):
            self._drive(other, Event.OPEN_COLLISION_DUMP, now, collision())
        if other.state is not State.OPEN_CONFIRM:
            return True
        loser = self._loser(newer, other, theirs)
        self._drive(loser, Event.OPEN_COLLISION_DUMP, now, collision())
        return loser is not newer

    def _loser(self, newer: Connection, other: Connection, theirs: int) -> Connection:
        """What the speaker with the greater identifier has made stays; of two that the peer made, the newer one."""
        if newer.passive == other.passive:
            return other
        ours = int(self.settings.router_id), self.settings.local_asn
        mine_stays = ours > (theirs, self.settings.peer_asn)
        return next(one for one in (newer, other) if one.passive is mine_stays)

    def _free(self, now: float) -> Connection | None:
        """What takes the peer's connection: one that waits, else one whose OPEN has not come, which is given up."""
        incoming = [one for one in self._connections if one.passive]
        for one in incoming:
            if one.state is State.OPEN_SENT and not any(map(_waits, incoming)):
                self._drive(one, Event.OPEN_COLLISION_DUMP, now, collision())
                self._drive(one, Event.AUTOMATIC_START_DAMPED_PASSIVE, now)
        return next((one for one in incoming if _waits(one) and one.not_before <= now), None)

    def _may_have_restarted(self, session: Connection, now: float) -> bool:
        """A peer with graceful restart that connects again has lost its session without a word (RFC 4724 4.2)."""
        settled = self.since is not None and now - self.since >= SETTLED
        return settled and bool(kept(session, Event.TCP_CONNECTION_FAILS, NOTHING))

    # The table, carried out.

    def _drive(self, connection: Connection, event: Event, now: float, cause: Cause = NOTHING) -> None:
        before = connection.state
        connection.state, acts = TABLE[before, event]
        if Act.NOTIFY in acts:
            cause = answered(connection, before, event, cause)
        step = _Step(connection, event, now, cause)
        if Act.RELEASE in acts:
            self._end(before, step)
        for act in acts:
            _ACTS[act](self, step)

    def _end(self, before: State, step: _Step) -> None:
        """A connection ends, and with it the session if it was that."""
        if before is State.ESTABLISHED:
            self._lose(step)
        if step.cause.reason is not None and self.session is None:
            self.fault = step.cause.reason

    def _connect(self, step: _Step) -> None:
        step.connection.opened = True
        self._actions.append(Connect())

    def _start_retry(self, step: _Step) -> None:
        if not step.connection.passive:
            step.connection.timers[Timer.CONNECT_RETRY] = step.now + self.settings.connect_retry_seconds

    def _send_open(self, step: _Step) -> None:
        connection, now = step.connection, step.now
        connection.timers.pop(Timer.CONNECT_RETRY, None)
        restarted = self._restarting_until is not None and now < self._restarting_until
        connection.ours = negotiation.offered(self.settings, restarted=restarted, preserved=self._preserved)
        opened = negotiation.opening(self.settings, connection.ours)
        self._actions.append(Send(connection.link, encode_open(opened)))
        connection.timers[Timer.HOLD] = now + OPEN_HOLD

    def _confirm(self, step: _Step) -> None:
        """Without a hold time, the large one goes on: a KEEPALIVE is waited for once."""
        if step.connection.hold_seconds:
            self._restart_hold(step)
        self._send_keepalive(step)

    def _send_keepalive(self, step: _Step) -> None:
        self._actions.append(Send(step.connection.link, keepalive()))
        if step.connection.hold_seconds:
            self._start_keepalive(step.connection, step.now)

    def _restart_hold(self, step: _Step) -> None:
        if step.connection.hold_seconds:
            step.connection.timers[Timer.HOLD] = step.now + step.connection.hold_seconds
        else:
            step.connection.timers.pop(Timer.HOLD, None)

    def _establish(self, step: _Step) -> None:
        connection, now = step.connection, step.now
        theirs, agreed = connection.theirs, connection.agreed
        if theirs is None or agreed is None:
            raise RuntimeError("a session without an OPEN of the peer: the table is wrong")
        if connection.hold_seconds:
            self._start_send_hold(connection, now)
        self.since, self.fault = now, None
        self.established_count += 1
        self._pacing.established()
        self._actions.append(Established(connection.link, agreed, theirs, connection.hold_seconds))
        self._actions += self._stale.established(now, theirs.capabilities, agreed.families)
        self._defer_selection(connection.ours, theirs.capabilities, agreed)
        for other in self._connections:
            if other is not connection and not _waits(other):
                self._drive(other, Event.OPEN_COLLISION_DUMP, now, collision())

    def _defer_selection(self, ours: Capabilities, theirs: Capabilities, agreed: Agreed) -> None:
        """After a restart of this speaker: the peer's End-of-RIB are waited for, unless it has restarted, too."""
        if ours.graceful_restart is None or not ours.graceful_restart.restarted or self._restarting_until is None:
            return
        if theirs.graceful_restart is not None and not theirs.graceful_restart.restarted:
            self._actions.append(DeferSelection(agreed.families, self._restarting_until))
        self._restarting_until = None

    def _deliver(self, step: _Step) -> None:
        message = step.cause.message
        if message is None:
            return
        self._actions.append(Received(message))
        if isinstance(message, Update) and message.end_of_rib is not None:
            self._actions += self._stale.end_of_rib(message.end_of_rib)

    def _release(self, step: _Step) -> None:
        if step.connection.opened:
            self._actions.append(Close(step.connection.link))
        step.connection.clear()

    def _count(self, step: _Step) -> None:
        """How long the next attempt waits."""
        outgoing = self._connections[OUTGOING]
        if step.event is Event.TCP_CONNECTION_FAILS:
            if not step.connection.passive:
                wait = self._pacing.connect_failed(self._chance(), self.settings.connect_retry_seconds)
                outgoing.not_before = step.now + wait
            return
        wait = self._pacing.erred(self._chance())
        for one in self._connections if step.event in _OUR_FINDINGS else (outgoing,):
            one.not_before = max(one.not_before, step.now + wait)

    def _forget(self, step: _Step) -> None:
        self._pacing.forget()

    def _notified(self, step: _Step) -> None:
        notification = step.cause.notification
        if notification is not None:
            self._actions.append(Send(step.connection.link, encode_notification(notification), last=True))

    def _lose(self, step: _Step) -> None:
        """The session is down: which routes stay, and why."""
        self._pacing.lasted(step.now - (self.since or step.now))
        self.since = None
        connection = step.connection
        stays = kept(connection, step.event, step.cause)
        theirs = connection.theirs.capabilities if connection.theirs is not None else Capabilities()
        self._stale.keep(step.now, connection.ours, theirs, stays)
        self._actions.append(Lost(step.cause.reason or _ENDED, stays, self._stale.deadline))
        self._actions += self._stale.expire(step.now)

    def _start_keepalive(self, connection: Connection, now: float) -> None:
        """A third of the hold time, less up to a quarter (RFC 4271 10)."""
        spread = 1 - self._chance() / 4
        connection.timers[Timer.KEEPALIVE] = now + connection.hold_seconds / 3 * spread

    def _start_send_hold(self, connection: Connection, now: float) -> None:
        connection.timers[Timer.SEND_HOLD] = now + max(SEND_HOLD, 2 * connection.hold_seconds)

    # Starting again.

    def _may_start(self, connection: Connection) -> bool:
        if connection.state is not State.IDLE or not self._wanted:
            return False
        if connection.passive:
            return True
        others = any(one.state >= State.OPEN_CONFIRM for one in self._connections)
        return not self.settings.passive and not others

    def _start_due(self, now: float) -> None:
        for connection in self._connections:
            if self._may_start(connection) and connection.not_before <= now:
                manual = Event.MANUAL_START_PASSIVE if connection.passive else Event.MANUAL_START
                again = Event.AUTOMATIC_START_DAMPED_PASSIVE if connection.passive else Event.AUTOMATIC_START_DAMPED
                self._drive(connection, again if self._begun else manual, now)
        self._begun = self._wanted

    def _taken(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


def _waits(connection: Connection) -> bool:
    """For the peer's connection."""
    return connection.passive and connection.state is State.ACTIVE


_ACTS: Mapping[Act, Callable[[Machine, _Step], None]] = {
    Act.CONNECT: Machine._connect,
    Act.START_RETRY: Machine._start_retry,
    Act.SEND_OPEN: Machine._send_open,
    Act.CONFIRM: Machine._confirm,
    Act.SEND_KEEPALIVE: Machine._send_keepalive,
    Act.RESTART_HOLD: Machine._restart_hold,
    Act.ESTABLISH: Machine._establish,
    Act.DELIVER: Machine._deliver,
    Act.NOTIFY: Machine._notified,
    Act.RELEASE: Machine._release,
    Act.COUNT: Machine._count,
    Act.FORGET: Machine._forget,
}
