"""The loop of the process that runs BFD: one epoll over all sockets, one heap of deadlines, one agent at most.

The clock is read first, then the packets that have arrived, then deadlines are looked at: a loop that was kept waiting,
or a process that was stopped, takes no peer for gone that has spoken meanwhile. Reports to the agent are states, not
events: what does not fit into its socket is left out until it does, and an agent that reads nothing for minutes costs
one report. Without an agent sessions go on as long as the last one asked for; then they say AdminDown and the process
ends.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from secrets import SystemRandom

from proto.net import Address
from services.routing.bfd.messages import LONGEST, Order, Report, Unreadable, line, read_order
from services.routing.bfd.priority import Priority
from services.routing.bfd.sockets import index_of, open_listener, open_sender, receive, send
from services.routing.core.bfd.packet import write_packet
from services.routing.core.bfd.sessions import Key, Outgoing, Sessions
from services.routing.core.bfd.status import Status, status_of

FIRST_AGENT_SECONDS = 30.0
"""How long the process waits for its first agent."""
REPORT_US = 1_000_000
"""Between two reports of all sessions, whose figures move all the time."""
OPEN_AGAIN_US = 1_000_000
"""Between two attempts to open a socket that cannot be had."""
MOST_HEARD = 512
"""Datagrams that are read from one socket before deadlines are looked at: more than its buffer holds."""
_PASSING = (errno.EAGAIN, errno.ENOBUFS, errno.EPERM)
"""Errors of sending that another socket would have as well."""
_UCRED = struct.Struct("=iII")
_READ = 1 << 16

Listener = tuple[Address, str]
"""Address and interface."""


@dataclass(frozen=True, slots=True)
class _Listening:
    socket: socket.socket
    index: int
    """Of the interface that it is bound to; an interface of that name that was made later has another."""


@dataclass(slots=True)
class _Agent:
    socket: socket.socket
    received: bytearray
    unsent: bytes = b""


def monotonic_us() -> int:
    """Microseconds of the system's monotonic clock, the same in every process."""
    return time.monotonic_ns() // 1000


class Engine:
    """``run`` until nothing is wanted any more. For the thread that made it, in the namespace that it is in."""

    def __init__(self, control: socket.socket, *, independent: bool, clock: Callable[[], int] = monotonic_us) -> None:
        """``control``: a unix socket that listens; ``independent``: the process outlives an agent that is killed."""
        self._clock = clock
        self._random = SystemRandom()
        self._instance = self._random.getrandbits(53)
        self._sessions = Sessions(
            independent=independent, discriminators=lambda: self._random.getrandbits(32), jitters=self._random.random
        )
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[Listener, _Listening] = {}
        self._senders: dict[Key, socket.socket] = {}
        self._open_again: dict[Key, int] = {}
        self._unsent: dict[Key, str] = {}
        self._control = control
        self._agent: _Agent | None = None
        self._linger_us = int(FIRST_AGENT_SECONDS * 1e6)
        self._alone_since: int | None = clock()
        self._ending = False
        self._report_at = 0
        control.setblocking(False)
        self._selector.register(control, selectors.EVENT_READ, self._accept)

    def run(self, wake: socket.socket | None = None) -> None:
        """``wake``: a socket that is readable when a signal asks for the end."""
        if wake is not None:
            self._selector.register(wake, selectors.EVENT_READ, lambda: self._end(wake))
        priority = Priority(self._clock, lambda: time.process_time_ns() // 1000)
        while not self._over():
            self._selector.select(self._timeout())
            now = self._clock()
            for ready, _ in self._selector.select(0):  # all that came before now, however long this was kept waiting
                ready.data()
            self._send(self._sessions.elapse(now), now)
            self._tidy()
            self._report(now)
            priority.look()

    def close(self) -> None:
        """Gives all sockets back."""
        self._dismiss()
        for listener in self._listeners.values():
            listener.socket.close()
        for opened in (*self._senders.values(), self._control):
            opened.close()
        self._selector.close()

    def _over(self) -> bool:
        """Whether nothing is left to do; sessions that nobody waits for any longer are given up."""
        now = self._clock()
        if self._alone_since is not None and now - self._alone_since >= self._linger_us:
            self._ending = True
        if self._ending and self._sessions.wanted:
            self._send(self._sessions.want({}, now), now)
        return self._ending and not self._sessions.by_key

    def _timeout(self) -> float:
        moments = [self._report_at] if self._agent is not None else []
        if self._alone_since is not None:
            moments.append(self._alone_since + self._linger_us)
        if self._sessions.next_at is not None:
            moments.append(self._sessions.next_at)
        return max(0, min(moments) - self._clock()) / 1e6 if moments else REPORT_US / 1e6

    def _end(self, wake: socket.socket) -> None:
        wake.recv(_READ)
        self._ending = True

    # Packets

    def _hear(self, at: Listener, opened: socket.socket) -> None:
        local, interface = at
        for _ in range(MOST_HEARD):
            try:
                heard = receive(opened)
            except OSError:  # an ICMP error, or the interface is gone
                continue
            if heard is None:
                return
            now = self._clock()
            key = Key(local, heard.source, interface)
            self._send(self._sessions.receive(key, heard.payload, heard.hops, now), now)

    def _send(self, packets: Iterable[Outgoing], now: int) -> None:
        for key, packet in packets:
            try:
                if (opened := self._opened(key, now)) is not None:
                    send(opened, key, write_packet(packet))
                    if self._unsent:
                        self._unsent.pop(key, None)
            except OSError as error:
                self._unsent[key] = why(key, error)
                if key not in self._senders:
                    self._open_again[key] = now + OPEN_AGAIN_US
                elif error.errno not in _PASSING:
                    self._shut(key)  # the next packet opens it again

    def _opened(self, key: Key, now: int) -> socket.socket | None:
        """The socket that a session sends from, with one that listens for it; None: not to be had for the moment."""
        if (sender := self._senders.get(key)) is None:
            if now < self._open_again.get(key, now):
                return None
            at = key.local, key.interface
            if at not in self._listeners:
                opened = open_listener(*at)
                self._listeners[at] = _Listening(opened, index_of(key.interface))
                self._selector.register(opened, selectors.EVENT_READ, lambda: self._hear(at, opened))
            sender = self._senders[key] = open_sender(key.local, key.interface, self._random.randint)
            self._open_again.pop(key, None)
        return sender

    def _shut(self, key: Key) -> None:
        """Closes what a session sends from, and what listens for it if that is bound to an interface that is gone."""
        if (sender := self._senders.pop(key, None)) is not None:
            sender.close()
        listener = self._listeners.get((key.local, key.interface))
        if listener is not None and listener.index != index_of(key.interface):
            self._shut_listener((key.local, key.interface))

    def _shut_listener(self, at: Listener) -> None:
        if (listener := self._listeners.pop(at, None)) is not None:
            self._selector.unregister(listener.socket)
            listener.socket.close()

    def _tidy(self) -> None:
        """Closes what no session needs any more."""
        if not self._sessions.gone:
            return
        gone = self._sessions.gone - self._sessions.by_key.keys()
        self._sessions.gone.clear()
        for key in gone:
            self._shut(key)
            self._unsent.pop(key, None)
            self._open_again.pop(key, None)
        for at in self._listeners.keys() - {(key.local, key.interface) for key in self._sessions.by_key}:
            self._shut_listener(at)

    # The agent

    def _accept(self) -> None:
        """The newest agent is the one: one from before is dead or about to be."""
        with suppress(OSError):
            opened, _ = self._control.accept()
            opened.setblocking(False)
            if _UCRED.unpack(opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1] != os.geteuid():
                opened.close()
                return
            self._dismiss()
            self._agent, self._alone_since = _Agent(opened, bytearray()), None
            self._report_at = self._clock()
            self._selector.register(opened, selectors.EVENT_READ, self._listen)

    def _dismiss(self) -> None:
        if self._agent is None:
            return
        self._selector.unregister(self._agent.socket)
        self._agent.socket.close()
        self._agent, self._alone_since = None, self._clock()

    def _listen(self) -> None:
        """Orders of the agent; the last of several says all."""
        agent = self._agent
        if agent is None:
            return
        self._flush(agent)
        try:
            octets = agent.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets or len(agent.received) > LONGEST:
            if self._agent is agent:
                self._dismiss()
            return
        agent.received += octets
        *lines, rest = agent.received.split(b"\n")
        agent.received = rest
        if lines:
            self._obey(bytes(lines[-1]))

    def _obey(self, octets: bytes) -> None:
        try:
            order: Order = read_order(octets)
        except Unreadable:  # an agent of another version: it starts a process of its own
            self._ending = True
            return
        now = self._clock()
        self._linger_us = int(order.linger_seconds * 1e6)
        self._ending = not order.wanted
        wanted = {one.key: one.settings for one in order.wanted}
        self._send(self._sessions.want(wanted, now), now)
        self._report_at = now

    def _report(self, now: int) -> None:
        """Says what changed, and each second everything, when the agent has read what was said before."""
        agent = self._agent
        if agent is None or agent.unsent or (now < self._report_at and not self._sessions.changed):
            return
        whole = now >= self._report_at
        keys = self._sessions.wanted
        if whole:
            self._report_at = now + REPORT_US
        else:
            keys &= self._sessions.changed
        self._sessions.changed.clear()
        statuses = tuple(self._status(key) for key in keys)
        agent.unsent = line(Report(instance=self._instance, whole=whole, statuses=statuses))
        self._flush(agent)

    def _status(self, key: Key) -> Status:
        sessions = self._sessions
        return status_of(key, sessions.by_key[key], sessions.discards[key], self._unsent.get(key, ""))

    def _flush(self, agent: _Agent) -> None:
        """Sends what fits; the rest when there is room."""
        try:
            agent.unsent = agent.unsent[agent.socket.send(agent.unsent) :] if agent.unsent else b""
        except BlockingIOError:
            pass
        except OSError:
            self._dismiss()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if agent.unsent else 0)
        self._selector.modify(agent.socket, events, self._listen)


def why(key: Key, error: OSError) -> str:
    """What keeps a session's packets here, and the remedy."""
    if error.errno == errno.EADDRINUSE:
        return f"UDP port 3784 of {key.local} is taken by another program: end its BFD, it is airmesh's on this node"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{key.local} is no address of this node: correct the peer's source address"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return f"there is no interface {key.interface}: correct the peer's interface, or make it"
    return f"{error.strerror or error}: look at `ip route get {key.peer} from {key.local}`"
