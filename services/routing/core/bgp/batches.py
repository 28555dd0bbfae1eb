"""Batches of UPDATE messages, each decided in one go, and which of them named a prefix last: what a trace begins with.

A batch is what came between two passes of the router. It costs one entry for each message and nothing for a prefix: the
messages themselves are kept, up to a bound, and looked through when somebody asks for a prefix. Batches that come in a
quick row are not traced beyond a rate, so that the latest spans of an agent are not those of one noisy peer alone.
Time is an argument, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.routing.core.bgp.values import Family, Prefix, Reachable, Unreachable, Update

MOST_KEPT = 65_536
"""Prefixes of all messages that are kept; a message counts as :data:`MESSAGE_COST` more."""
MESSAGE_COST = 8
TRACED_A_SECOND = 4.0
TRACED_AT_ONCE = 16


@dataclass(slots=True)
class Batch:
    """What came between two passes."""

    begun: float
    """When the first message was read."""
    peers: dict[str, None] = field(default_factory=dict)
    """Who sent it, in order."""
    messages: int = 0
    prefixes: int = 0
    """Announced and taken back."""
    trace_id: str = ""
    """Empty: it is not traced."""
    at: int = 0
    """When it was taken, in Unix seconds; 0: not yet."""


class Batches:
    """``add`` messages, ``take`` batches, ``find`` prefixes."""

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._kept: deque[tuple[Batch, Update]] = deque()
        self._cost = 0
        self._tokens = float(TRACED_AT_ONCE)
        self._counted = 0.0
        """When the tokens were counted last."""

    def add(self, now: float, peer: str, update: Update) -> None:
        """A message; one that names no prefix is in no batch."""
        count = _prefixes(update)
        if not count:
            return
        batch = self._batch
        if batch is None:
            batch = self._batch = Batch(now)
        batch.peers[peer] = None
        batch.messages += 1
        batch.prefixes += count
        self._kept.append((batch, update))
        self._cost += MESSAGE_COST + count
        while self._cost > MOST_KEPT and len(self._kept) > 1:
            _, oldest = self._kept.popleft()
            self._cost -= MESSAGE_COST + _prefixes(oldest)

    def take(self, now: float) -> Batch | None:
        """What came since the last one was taken; None: nothing, or more than is traced."""
        batch, self._batch = self._batch, None
        if batch is None:
            return None
        self._tokens = min(self._tokens + (now - self._counted) * TRACED_A_SECOND, TRACED_AT_ONCE)
        self._counted = now
        if self._tokens < 1:
            return None
        self._tokens -= 1
        return batch

    def find(self, family: Family, prefix: Prefix) -> Batch | None:
        """The batch that named a prefix last, of those that are kept; None: none of them."""
        for batch, update in reversed(self._kept):
            if any(one.family is family and prefix in one.prefixes for one in _parts(update)):
                return batch
        return None


def _parts(update: Update) -> Iterator[Reachable | Unreachable]:
    yield from update.reachable
    yield from update.unreachable


def _prefixes(update: Update) -> int:
    return sum(len(one.prefixes) for one in _parts(update))
