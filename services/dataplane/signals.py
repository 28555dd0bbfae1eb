"""A signal between loops of one agent: whoever waits learns what has changed since it last looked.

Owns nothing but cursors (those of the chassis' views, so a loop waits for both alike). Promises: a notification is
never lost and never queued twice. A signal with a :class:`CallPriority` lets the runtime's calls go first: what follows
an ADD (telling other nodes, comparing maps) takes as long as the ADD, and would hold up the next one; a notification is
delivered when no call has been served for a moment, and at the latest :data:`LONGEST` after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from chassis.bus.view import Cursor

QUIET = 0.005
"""Seconds without a call after which a burst is over: a runtime's next call comes sooner."""
LONGEST = 0.25
"""Seconds that a notification waits at most, however many calls come."""


class CallPriority:
    """Knows whether the runtime is being served."""

    def __init__(self) -> None:
        self._calls = 0
        self._ended = 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call of the runtime is being served meanwhile."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._ended = asyncio.get_running_loop().time()

    def quiet(self, now: float) -> bool:
        """True when no call has been served for :data:`QUIET`."""
        return not self._calls and now - self._ended >= QUIET


class Signal:
    """Notified by one part, waited for by any number of others."""

    def __init__(self, priority: CallPriority | None = None) -> None:
        self._priority = priority
        self._cursors: list[Cursor] = []
        self._raised: set[str] = set()
        self._since = 0.0

    def cursor(self) -> Cursor:
        """A new listener, which hears everything from now on."""
        cursor = Cursor()
        self._cursors.append(cursor)
        return cursor

    def notify(self, key: str = "") -> None:
        """Something changed."""
        if self._priority is None:
            self._mark({key})
            return
        loop = asyncio.get_running_loop()
        if not self._raised:
            self._since = loop.time()
            loop.call_later(QUIET, self._deliver, loop, self._priority)
        self._raised.add(key)

    def _deliver(self, loop: asyncio.AbstractEventLoop, priority: CallPriority) -> None:
        now = loop.time()
        if not priority.quiet(now) and now - self._since < LONGEST:
            loop.call_later(QUIET, self._deliver, loop, priority)
            return
        raised, self._raised = self._raised, set()
        self._mark(raised)

    def _mark(self, keys: set[str]) -> None:
        for cursor in self._cursors:
            cursor.mark(*keys)
