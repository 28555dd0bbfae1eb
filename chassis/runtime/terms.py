"""Leader election, decided: what a copy does about the lease record it has read. Pure; ``chassis.runtime.election``
reads and writes.

A record that rests (its revision unchanged for its ``seconds`` by the reader's monotonic clock) may be taken. So may
one that nobody can read, after *our* seconds: whoever wrote it does not renew it, or its revision would change. A
record of another version is never taken: a newer release wrote it and reads it. Whoever holds the lease mends an
unreadable record at once, under a new epoch: while its own time has not run out, nobody else can have begun.

Epochs never go back, even when the store is lost and nobody is left who remembers: the next one is one more than any
that this copy knows, and at least the milliseconds since 1970. Holders change less often than that, so epochs never get
ahead of the clock, and the clock of whoever takes the lease later stands later (unless clocks differ by more than the
store was gone, and no copy lives that knows better). Clocks are compared for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from proto.codec import Malformed, UnknownVersion
from proto.leases import Lease

MAX_EPOCH = 1 << 53
"""From here on an epoch is nobody's: milliseconds since 1970 get here in 285 thousand years."""
MAX_SECONDS = 3600.0
"""Longest rest that a record may ask for; a longer one would keep a lease from everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mine:
    """What one copy knows. ``seconds`` is its own setting, ``since`` on its monotonic clock."""

    holder: str
    seconds: float
    term: int = 0
    """Epoch this life of the copy has (or had, or may have: the write timed out) the lease in; 0: none yet."""
    known: int = 0
    """Latest epoch seen."""
    held: bool = False
    revision: int = -1
    """Revision that was looked at last (0: there was none), and since when it stands there."""
    since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What stands under the key: a record, or why what is there is none."""

    revision: int
    record: Lease | Malformed | UnknownVersion


@dataclass(frozen=True, slots=True)
class Renew:
    """Write the record again, or for the first time in this ``epoch``."""

    epoch: int
    renewals: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """It is not ours to take now; ``why`` is for the loser of it."""

    why: str


Step: TypeAlias = Renew | Wait


def meant(record: Lease) -> Lease | Malformed:
    """The record, unless it says what no copy would."""
    if not 0 <= record.epoch < MAX_EPOCH:
        return Malformed(f"Lease: epoch {record.epoch} is not from 0 to below {MAX_EPOCH}")
    if not 0 < record.seconds <= MAX_SECONDS:
        return Malformed(f"Lease: seconds {record.seconds} are not above 0 and at most {MAX_SECONDS}")
    if not 0 <= record.renewals < MAX_EPOCH:
        return Malformed(f"Lease: renewals {record.renewals} are not from 0 to below {MAX_EPOCH}")
    return record


def next_epoch(known: int, clock: float) -> int:
    """Epoch of a new holder; ``clock`` in seconds since 1970."""
    return max(known + 1, min(int(clock * 1000), MAX_EPOCH // 2))


def judge(mine: Mine, found: Found | None, *, now: float, clock: float) -> tuple[Mine, Step]:
    """What the copy knows after this look, and what it does. ``now``: its monotonic clock, ``clock``: since 1970."""
    revision = 0 if found is None else found.revision
    if revision != mine.revision:
        mine = replace(mine, revision=revision, since=now)
    if found is None:
        # A lost store: who was the holder may not know yet, so the others let it rest.
        if mine.held or mine.term == mine.known or now - mine.since >= mine.seconds:
            return mine, Renew(next_epoch(mine.known, clock))
        return mine, Wait("its record is gone")
    record = meant(found.record) if isinstance(found.record, Lease) else found.record
    if isinstance(record, UnknownVersion):
        return mine, Wait("a newer release holds it")
    if isinstance(record, Malformed):
        if not mine.held and now - mine.since < mine.seconds:
            return mine, Wait("its record cannot be read")
        return mine, Renew(next_epoch(mine.known, clock))
    mine = replace(mine, known=max(mine.known, record.epoch))
    ours = record.holder == mine.holder
    if ours and record.epoch == mine.term == mine.known:
        return mine, Renew(mine.term, record.renewals + 1)
    # A record of ours from before this life, or one that the store went back to, is no term of ours any more.
    free = not record.holder or (ours and mine.term in (0, mine.known)) or now - mine.since >= record.seconds
    if not free:
        return mine, Wait("another copy holds it")
    return mine, Renew(next_epoch(mine.known, clock), record.renewals + 1)
