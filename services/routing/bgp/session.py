"""A peer's machine with its connections and its timer: what the machine asks for is done, in order.

Actions are done one after the other, also those that follow from doing one. When its deadline passes, all connections
are read before the timers are looked at: a loop that was late finds the peer's KEEPALIVEs and not an expired hold time.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from services.routing.bgp.keepalives import Keepalives
from services.routing.bgp.listener import refuse
from services.routing.bgp.sockets import Opener, Refused, outgoing
from services.routing.bgp.wire import Reports, Wire
from services.routing.core.bgp.codec.messages import HEADER, KINDS, MessageKind, Open, RouteRefresh, keepalive
from services.routing.core.bgp.dissector import Passed
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session.actions import (
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
from services.routing.core.bgp.session.machine import Machine
from services.routing.core.bgp.session.reasons import Reason
from services.routing.core.bgp.session.restart import DropStale, LongLived
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import Agreed, Update


class Owner(Protocol):
    """Whom sessions report to. Its methods return soon, and may send."""

    def established(self, name: str, session: Established) -> None:
        """A session is up; what is sent from now on is for it."""

    def lost(self, name: str, lost: Lost) -> None:
        """A session is down."""

    def received(self, name: str, message: Update | RouteRefresh) -> None:
        """A message by a session."""

    def tables(self, name: str, step: DropStale | LongLived | DeferSelection) -> None:
        """What the tables have to do with a peer's routes."""

    def writable(self, name: str) -> None:
        """Messages that were refused may be sent now."""

    def changed(self, name: str) -> None:
        """A peer's :class:`PeerState` is another one."""

    def passed(self, passed: Passed) -> None:
        """A message was read, or handed to be sent: only of peers whose messages are captured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerState:
    """A peer as a person sees it."""

    state: State
    since: float
    """When it came to be in this state, in seconds since 1970."""
    fault: Reason | None
    """Why there is no session; None while there is one, or before the first attempt."""
    agreed: Agreed | None
    theirs: Open | None
    hold_seconds: int
    established_count: int
    received: dict[MessageKind, int]
    received_octets: int
    sent_messages: int
    sent_octets: int
    waiting_octets: int
    """That the peer has not taken yet."""


class Session:
    """One peer: ``start`` it, and ``act`` with the machine's methods."""

    def __init__(
        self,
        name: str,
        machine: Machine,
        owner: Owner,
        keepalives: Keepalives,
        opener: Opener,
    ) -> None:
        self.name = name
        self.machine = machine
        self._owner = owner
        self._keepalives = keepalives
        self._opener = opener
        self._loop = asyncio.get_running_loop()
        self._wires: dict[Link, Wire] = {}
        self._actions: deque[Action] = deque()
        self._acting = False
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        """When it calls. uvloop gives a handle without a time for one that is due at once."""
        self._arriving: socket.socket | None = None
        self._refused = False
        self._shown: tuple[State, Reason | None] = (State.IDLE, None)
        self._since = time.time()
        self._past: tuple[int, ...] = (0, 0, 0)
        """Octets received, messages and octets sent, by connections that have ended."""

    @property
    def settings(self) -> SessionSettings:
        """How the session is held."""
        return self.machine.settings

    @property
    def wire(self) -> Wire | None:
        """The connection that holds the session."""
        session = self.machine.session
        return self._wires.get(session.link) if session is not None else None

    def act(self, actions: list[Action]) -> None:
        """Do what a method of the machine returned, and what follows from it."""
        self._actions.extend(actions)
        if self._acting:
            return
        self._acting = True
        try:
            while self._actions:
                self._do(self._actions.popleft())
        finally:
            self._acting = False
        self._arm()
        self._show()

    def capture(self, captured: bool) -> None:
        """Whether the owner is told each message, of any connection and in both directions (``Owner.passed``)."""
        self.machine.captured = captured

    def accepted(self, opened: socket.socket) -> None:
        """The peer has made a connection."""
        link, actions = self.machine.accept(self._loop.time())
        self._arriving = opened
        self.act(actions)
        if link is None:
            refuse(opened)

    def send(self, messages: Sequence[bytes]) -> bool:
        """Send messages by the session; False: there is none, or too much waits, and none of them is sent.

        ``Owner.writable`` follows when there is room again.
        """
        session, wire = self.machine.session, self.wire
        if session is None or wire is None or wire.outbox.full:
            self._refused = wire is not None
            return False
        if self.machine.captured:
            for message in messages:
                self._report(_message(session.link, message, session.agreed), sent=True)
        wire.send(messages)
        return True

    def read(self) -> None:
        """Take what has come by all connections, an end too."""
        for wire in list(self._wires.values()):
            wire.read()

    def close(self) -> None:
        """Let go of timer and connections; a last message still arrives."""
        if self._timer is not None:
            self._timer.cancel()
        for link in list(self._wires):
            self._close(link)

    def state(self) -> PeerState:
        """As it is now."""
        session = self.machine.session
        received, messages, octets = self._counts()
        return PeerState(
            state=self.machine.state,
            since=self._since,
            fault=self.machine.fault,
            agreed=session.agreed if session else None,
            theirs=session.theirs if session else None,
            hold_seconds=session.hold_seconds if session else 0,
            established_count=self.machine.established_count,
            received=dict(self.machine.received_messages),
            received_octets=received,
            sent_messages=messages,
            sent_octets=octets,
            waiting_octets=sum(wire.outbox.waiting for wire in self._wires.values()),
        )

    def _counts(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self._past, *map(_counted, self._wires.values()), strict=True)))

    def _do(self, action: Action) -> None:
        match action:
            case Received(message):
                self._owner.received(self.name, message)
            case Seen():
                self._report(action, sent=False)
            case Send(link, octets, last):
                self._send(link, octets, last=last)
            case Connect():
                self._connect()
            case Accept(link):
                if self._arriving is not None:
                    self._wire(link, self._arriving).begin()
                    self._arriving = None
            case Close(link):
                self._close(link)
            case Established():
                if (wire := self._wires.get(action.link)) is not None:
                    self._keepalives.watch(wire.outbox, action.hold_seconds, partial(self._kept_alive, action.link))
                self._owner.established(self.name, action)
            case Lost():
                self._owner.lost(self.name, action)
            case DropStale() | LongLived() | DeferSelection():
                self._owner.tables(self.name, action)

    def _send(self, link: Link, octets: bytes, *, last: bool) -> None:
        """What waits is as good as a KEEPALIVE; and so the outbox stays bounded."""
        wire = self._wires.get(link)
        if wire is None:
            return
        if not last and wire.outbox.waiting:
            return
        if self.machine.captured:
            self._report(_message(link, octets), sent=True)
        if last:
            wire.send_last(octets)
        else:
            wire.send([octets])

    def _report(self, message: Seen, *, sent: bool, time_ns: int = 0) -> None:
        """Tell of a message that is captured; ``time_ns``: of when, if not of now."""
        self._owner.passed(
            Passed(
                peer=self.name,
                time_ns=time_ns or time.time_ns(),
                sent=sent,
                link=message.link,
                kind=message.kind,
                body=message.body,
                agreed=message.agreed,
                refused=message.refused,
            )
        )

    def _kept_alive(self, link: Link) -> None:
        """The thread has sent a KEEPALIVE, and calls this; the loop tells of it when it is free."""
        if self.machine.captured:
            report = partial(self._report, _message(link, keepalive()), sent=True, time_ns=time.time_ns())
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(report)

    def _connect(self) -> None:
        try:
            opened = outgoing(self._opener, self.settings)
        except Refused as refused:
            self._loop.call_soon(self._ended, OUTGOING, None, refused.reason)
            return
        wire = self._wire(OUTGOING, opened)
        wire.connect(self.settings, self._connected)

    def _connected(self) -> None:
        self.act(self.machine.connected(self._loop.time()))

    def _wire(self, link: Link, opened: socket.socket) -> Wire:
        wire = Wire(opened)
        wire.reports = Reports(
            received=partial(self._received, link),
            sent=partial(self._sent, link, wire),
            ended=partial(self._ended, link, wire),
        )
        self._wires[link] = wire
        return wire

    def _received(self, link: Link, octets: bytes) -> None:
        self.act(self.machine.received(self._loop.time(), link, octets))

    def _sent(self, link: Link, wire: Wire) -> None:
        self.machine.sent(self._loop.time(), link)
        if self._refused and wire is self.wire and not wire.outbox.full:
            self._refused = False
            self._owner.writable(self.name)

    def _ended(self, link: Link, wire: Wire | None, reason: Reason) -> None:
        if self._wires.get(link) is wire:
            self.act(self.machine.failed(self._loop.time(), link, reason))

    def _close(self, link: Link) -> None:
        wire = self._wires.pop(link, None)
        if wire is None:
            return
        self._keepalives.forget(wire.outbox)
        wire.close()
        self._past = tuple(map(sum, zip(self._past, _counted(wire), strict=True)))

    def _arm(self) -> None:
        deadline = self.machine.deadline
        if self._timer is not None:
            if deadline is not None and deadline >= self._due:
                return  # it looks again then
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer, self._due = self._loop.call_at(deadline, self._tick), deadline

    def _tick(self) -> None:
        self._timer = None
        self.read()
        self.act(self.machine.tick(self._loop.time()))

    def _show(self) -> None:
        shown = self.machine.state, self.machine.fault
        if shown != self._shown:
            if shown[0] != self._shown[0]:
                self._since = time.time()
            self._shown = shown
            self._owner.changed(self.name)


def _message(link: Link, octets: bytes, agreed: Agreed | None = None) -> Seen:
    """A message of this speaker's own, which it takes for granted."""
    return Seen(link, KINDS[octets[HEADER - 1]], octets[HEADER:], agreed)


def _counted(wire: Wire) -> tuple[int, int, int]:
    return wire.received_octets, wire.outbox.sent_messages, wire.outbox.sent_octets
