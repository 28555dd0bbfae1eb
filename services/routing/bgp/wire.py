"""One TCP connection of a BGP peer in the event loop: octets in, messages out, an end that lets a NOTIFICATION arrive.

Sockets are used directly, not through asyncio's transports: a transport's buffer of unsent octets belongs to its loop,
and a KEEPALIVE from a thread could fall into the middle of a message. What is read at once is bounded, and each peer
has its read before any has another, so that one that sends much does not keep others waiting. What waits to be sent is
bounded by the outbox; a peer that takes nothing costs that and holds nobody.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.routing.bgp.outbox import Outbox
from services.routing.bgp.sockets import connect, connect_reason, ended_reason
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session.reasons import Reason

AT_ONCE = 1 << 14
"""Octets of one read: 4,000 prefixes and more are some milliseconds."""
LINGER = 2.0
"""Seconds in which the last message may arrive, before the socket is closed whether it has or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Whom a connection reports to. None of them is called after :meth:`Wire.close`."""

    received: Callable[[bytes], None]
    sent: Callable[[], None]
    """The kernel has taken octets."""
    ended: Callable[[Reason], None]


class Wire:
    """A connection that is made or was accepted; it owns the socket."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._loop = asyncio.get_running_loop()
        self.reports: Reports | None = None
        """To be set before anything can happen; None: nobody listens any more."""
        self._writing = False
        self._last = False
        self._expiry: asyncio.TimerHandle | None = None
        self.outbox = Outbox(opened)
        self.received_octets = 0

    def connect(self, settings: SessionSettings, connected: Callable[[], None]) -> None:
        """Connect; ``connected`` or the report of an end follows, never before this returns."""
        code = connect(self._socket, settings)
        if code not in (0, errno.EINPROGRESS):
            self._loop.call_soon(self._end, connect_reason(code, settings))
            return
        self._loop.add_writer(self._socket, self._connected, settings, connected)

    def begin(self) -> None:
        """Read from now on."""
        self._loop.add_reader(self._socket, self.read)

    def read(self) -> None:
        """Read once, if anything has come."""
        try:
            octets = self._socket.recv(AT_ONCE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(ended_reason(error))
            return
        self.received_octets += len(octets)
        if not octets:
            self._end(ended_reason(None))
        elif self.reports is not None:
            self.reports.received(octets)

    def send(self, messages: Sequence[bytes]) -> None:
        """Send messages, now or as soon as the peer takes them."""
        self.outbox.put(messages)
        self._flush()

    def send_last(self, message: bytes) -> None:
        """Send a NOTIFICATION in place of what waits; :meth:`close` follows."""
        self._last = True
        self.outbox.put_last(message)

    def close(self) -> None:
        """Close, at once or when the last message has had its time to arrive."""
        self.reports = None
        if self._last:
            self._expiry = self._loop.call_later(LINGER, self._shut)
            self._flush()
        else:
            self._shut()

    def _connected(self, settings: SessionSettings, connected: Callable[[], None]) -> None:
        self._loop.remove_writer(self._socket)
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._end(connect_reason(code, settings))
            return
        self.begin()
        connected()

    def _flush(self) -> None:
        try:
            progress = self.outbox.flush()
        except OSError as error:
            self._loop.call_soon(self._broken, error)
            return
        self._await_room()
        if not self.outbox.waiting and self._last and self.reports is None:
            self._farewell()
        if progress and self.reports is not None:
            self.reports.sent()

    def _await_room(self) -> None:
        waits = bool(self.outbox.waiting)
        if waits and not self._writing:
            self._loop.add_writer(self._socket, self._flush)
        elif not waits and self._writing:
            self._loop.remove_writer(self._socket)
        self._writing = waits

    def _farewell(self) -> None:
        """All is sent: wait for the peer's end, so that no reset of the connection overtakes the last message."""
        try:
            self.outbox.shut_down()
        except OSError:
            self._shut()

    def _broken(self, error: OSError) -> None:
        """Nothing can be sent; the peer's NOTIFICATION may have come before."""
        if self._socket.fileno() >= 0:
            self.read()
            self._end(ended_reason(error))

    def _end(self, reason: Reason) -> None:
        reports, self.reports = self.reports, None
        self._shut()
        if reports is not None:
            reports.ended(reason)

    def _shut(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self.outbox.close()
