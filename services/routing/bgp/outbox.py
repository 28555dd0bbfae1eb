"""What waits to be sent by one BGP connection: whole messages, bounded, in order, written by the loop or by a thread.

Two write: the loop all that there is, and the thread of ``keepalives.py`` when the loop is late. So each write happens
under a lock, never waits for the peer, and leaves the stream between two messages or knows how far it is in one. The
socket is closed under the same lock: the thread never writes to another socket that has got its number.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice

MOST_WAITING = 4 << 20
"""Octets that may wait for a peer before nothing more is taken."""
_AT_ONCE = 512
"""Messages in one call of sendmsg(2)."""


class Outbox:
    """Messages that wait, in front of a non-blocking socket that it owns."""

    def __init__(self, opened: socket.socket, most: int = MOST_WAITING) -> None:
        self._socket = opened
        self._most = most
        self._lock = threading.Lock()
        self._messages: deque[bytes] = deque()
        self._begun = 0
        """Octets of the first message that are sent."""
        self._size = 0
        self._closed = False
        self.sent_octets = 0
        self.sent_messages = 0
        self.sent_at = time.monotonic()
        """When the kernel took octets, the last time."""

    @property
    def waiting(self) -> int:
        """Octets that wait."""
        return self._size

    @property
    def full(self) -> bool:
        """More waits than is taken."""
        return self._size >= self._most

    def put(self, messages: Sequence[bytes]) -> None:
        """Let messages wait, in order, whatever waits before them."""
        with self._lock:
            self._messages.extend(messages)
            self._size += sum(map(len, messages))

    def put_last(self, message: bytes) -> None:
        """Let a message follow the one that is being sent, in place of all others."""
        with self._lock:
            begun = [self._messages[0]] if self._begun else []
            self._messages = deque([*begun, message])
            self._size = sum(map(len, self._messages)) - self._begun

    def flush(self) -> bool:
        """Send what the kernel takes now; whether it took anything. Raises OSError when the connection is gone."""
        with self._lock:
            return self._flush()

    def send_keepalive(self, message: bytes, before: float) -> bool:
        """Send ``message``, or what waits in its place, unless something was sent after ``before``; whether it is
        ``message`` that goes, now or when the peer takes it.

        Raises OSError when the connection is gone.
        """
        with self._lock:
            if self._closed or self.sent_at > before:
                return False
            if alone := not self._messages:
                self._messages.append(message)
                self._size += len(message)
            self._flush()
            return alone

    def shut_down(self) -> None:
        """Nothing more is sent; what was sent still arrives."""
        with self._lock:
            if not self._closed:
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._closed = True
            self._socket.close()

    def _flush(self) -> bool:
        progress = False
        while self._messages and not self._closed:
            head = self._messages[0][self._begun :] if self._begun else self._messages[0]
            batch = [head, *islice(self._messages, 1, _AT_ONCE)]
            try:
                taken = self._socket.sendmsg(batch)
            except BlockingIOError:
                break
            progress = True
            self._advance(taken, batch)
        if progress:
            self.sent_at = time.monotonic()
        return progress

    def _advance(self, taken: int, batch: Sequence[bytes]) -> None:
        self._size -= taken
        self.sent_octets += taken
        for sent in batch:
            if taken < len(sent):
                self._begun += taken
                return
            taken -= len(sent)
            self._begun = 0
            self._messages.popleft()
            self.sent_messages += 1
