"""What was measured of one way to another node: its packets are answered, or not, and how large they may be.

A value without a clock: the prober (``services.routing.prober``) says what it sent and what came back, and when. A way
is *proved* when a small packet was answered and the search for the largest has ended; it *fails* when :data:`LOST`
small ones in a row were not answered, and is proved again after :data:`RETURNS` in a row were: one lost packet is no
evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from kit.models import LEAST_MTU
from proto.net import Address

LOST = 5
"""Small packets in a row without an answer, after which a way fails."""
RETURNS = 3
"""Small packets in a row with an answer, after which a way that failed is proved again."""
TRIES = 3
"""Packets of one size without an answer, after which that size is too large."""
NEAR = 8
"""Bytes: how near the search for the largest packet comes to it."""
SMALL = 64
"""Bytes of a small packet, IP header included."""


class Way(NamedTuple):
    """What packets of measurement take: another interface or address is another way, of which nothing is known."""

    model: str
    link: int
    """Index of the interface."""
    local: Address
    """Their source."""
    remote: Address
    """The other node's address on the shared network."""


class Verdict(Enum):
    """What is known of a way."""

    UNKNOWN = "unknown"
    WORKS = "works"
    FAILS = "fails"


@dataclass(frozen=True, slots=True)
class Search:
    """The search for the largest packet that is answered, by halves."""

    most: int = 0
    """What would fit by what both nodes say."""
    good: int = 0
    """The largest that was answered."""
    bad: int = 0
    """The smallest that was not; 0: none."""
    tries: int = 0
    """Packets of :attr:`size` that were not answered."""

    @property
    def size(self) -> int:
        """The next to be tried."""
        return (max(self.good, SMALL) + self.bad) // 2 if self.bad else self.most

    @property
    def done(self) -> bool:
        """Whether there is nothing left to try."""
        return self.good >= self.most or bool(self.bad and self.bad - max(self.good, SMALL) <= NEAR)

    def answered(self, size: int) -> Search:
        """A packet of this size was answered."""
        good = max(self.good, size)
        return replace(self, good=good, bad=self.bad if self.bad > good else 0, tries=0)

    def lost(self, size: int) -> Search:
        """A packet of this size was not. One that was answered before is believed no more."""
        if size != (self.good if self.done else self.size):
            return self
        if self.tries + 1 < TRIES:
            return replace(self, tries=self.tries + 1)
        return Search(most=self.most, good=self.good if self.good < size else 0, bad=size)

    def for_most(self, most: int) -> Search:
        """The same where another size would fit: what was too large may be smaller than before."""
        if most == self.most:
            return self
        return Search(most=most, good=min(self.good, most), bad=self.bad if self.bad <= most else 0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """See the module."""

    verdict: Verdict = Verdict.UNKNOWN
    since: float = 0.0
    """Since when, in seconds of the monotonic clock."""
    search: Search = field(default_factory=Search)
    lost: int = 0
    """Small packets in a row that were not answered."""
    answered: int = 0
    """Small packets in a row that were."""
    sent: int = 0
    """Small packets in all."""
    heard: float = 0.0
    """When a small one was answered last, by the same clock as :attr:`since`."""
    failures: int = 0
    """Times that it failed after it had been proved."""
    round_trip_us: int = 0
    at: int = 0
    """Unix seconds of the last packet; 0: none was sent."""
    large_at: int = 0
    """The same of the last large one."""

    @property
    def mtu(self) -> int:
        """The largest packet that is known to pass, in bytes; 0: not known. What passed goes on while more is tried."""
        search = self.search
        proved = self.verdict is Verdict.WORKS and search.good >= min(LEAST_MTU, search.most)
        return search.good if search.done or proved else 0

    @property
    def narrow(self) -> bool:
        """Small packets pass, and none of the size that every IPv6 link takes."""
        return self.search.done and self.search.good < min(LEAST_MTU, self.search.most)

    def tried(self, unix: int, size: int) -> Evidence:
        """A packet was sent."""
        if size > SMALL:
            return replace(self, large_at=unix)
        return replace(self, sent=self.sent + 1, at=unix)

    def answer(self, now: float, size: int, round_trip_us: int) -> Evidence:
        """A packet was answered."""
        if size > SMALL:
            return replace(self, search=self.search.answered(size))._judged(now)
        after = replace(self, lost=0, answered=self.answered + 1, round_trip_us=round_trip_us, heard=now)
        return after._judged(now)

    def loss(self, now: float, size: int) -> Evidence:
        """A packet was not answered in time. A large one says nothing while small ones are not answered either."""
        if size > SMALL:
            return self if self.lost else replace(self, search=self.search.lost(size))._judged(now)
        return replace(self, lost=self.lost + 1, answered=0)._judged(now)

    def for_most(self, most: int) -> Evidence:
        """The same where another size would fit by what both nodes say."""
        search = self.search.for_most(most)
        return self if search is self.search else replace(self, search=search)

    def again(self) -> Evidence:
        """The same, with the largest packet sought once more from the top."""
        return replace(self, search=replace(self.search, bad=0, tries=0))

    def _judged(self, now: float) -> Evidence:
        verdict = self.verdict
        if self.lost >= LOST or self.narrow:
            verdict = Verdict.FAILS
        elif self.search.done and self.answered >= (RETURNS if self.verdict is Verdict.FAILS else 1):
            verdict = Verdict.WORKS
        if verdict is self.verdict:
            return self
        fell = verdict is Verdict.FAILS and self.verdict is Verdict.WORKS
        return replace(self, verdict=verdict, since=now, failures=self.failures + fell)
