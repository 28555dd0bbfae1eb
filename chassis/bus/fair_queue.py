"""A fair queue of requests: a bounded number is answered at once, shared fairly among those who ask.

Each asker has at most ``each`` answers under way and ``waiting`` requests behind them; who is past both is told that we
are busy, and nobody else is. A free place goes to whoever has fewest under way, of those to whoever has waited longest:
however many ask for too much, one that asks for little waits for one answer to end, not for theirs. No clock, no task.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """``at_once`` answers in all; of one asker ``each``, and ``waiting`` requests that hold ``waiting_bytes``."""

    def __init__(self, *, at_once: int, each: int, waiting: int, waiting_bytes: int) -> None:
        self._at_once = at_once
        self._each = each
        self._waiting = waiting
        self._waiting_bytes = waiting_bytes
        self._running: dict[str, int] = {}
        self._total = 0
        self._queues: dict[str, deque[tuple[T, int]]] = {}
        """Requests that wait and their bytes, by asker; who has waited longest for a turn stands first."""

    @property
    def idle(self) -> bool:
        """Nothing is under way and nothing waits."""
        return not self._total and not self._queues

    def offer(self, asker: str, request: T, size: int) -> bool:
        """Take a request in; False when its asker has too many. :meth:`next` says when it is its turn."""
        queue = self._queues.get(asker, ())
        room = max(self._each - self._running.get(asker, 0), 0) if self._total < self._at_once else 0
        if len(queue) >= room + self._waiting or (queue and sum(one for _, one in queue) + size > self._waiting_bytes):
            return False
        self._queues.setdefault(asker, deque()).append((request, size))
        return True

    def next(self) -> tuple[str, T] | None:
        """An asker and its request that is to be answered now; None when all who wait must wait on."""
        if self._total >= self._at_once:
            return None
        may = [asker for asker in self._queues if self._running.get(asker, 0) < self._each]
        if not may:
            return None
        asker = min(may, key=lambda one: self._running.get(one, 0))
        queue = self._queues.pop(asker)
        request, _ = queue.popleft()
        if queue:
            self._queues[asker] = queue  # behind the others
        self._running[asker] = self._running.get(asker, 0) + 1
        self._total += 1
        return asker, request

    def done(self, asker: str) -> None:
        """An answer of an asker has ended."""
        self._total -= 1
        self._running[asker] -= 1
        if not self._running[asker]:
            del self._running[asker]
