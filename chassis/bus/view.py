"""A mirror of a bucket: its present state, resynced after every gap. It gives no events.

``entries`` holds the last good value of every key. It is *synced* when it has caught up with the server **and** the
completeness markers it was asked to wait for are there for the bucket's present epoch; before that, nothing may be
swept. While the server cannot be reached the mirror stays as it is, and stays synced: the last known state is kept.

It lists again and diffs when: its consumer breaks (a lost message, silence for 3.5 s in which it listened, the server
forgot it), the epoch key changes, the bucket was made anew, or its last sequence is lower than one already seen (all
compared every 10 s).
Consumers live in the memory of one server each, which takes all of its with it: what lists again for that waits up to
``SPREAD`` first, each reader another time, so that the servers that are left are not asked for everything at once.

While it lists again, new values count at once, but a key that is missing from the new list disappears only when that
list is complete and the markers hold again. A value of another major version, or one that cannot be read, leaves the
last good value in place and is reported once (``unreadable``).

A value that cannot be read is *mended* by who may write the key: the last good one is written over exactly that
revision. At once by a copy that has seen every value since it listed; by one that has listed since, and so may have
missed a newer value, only when nobody did it for ``MEND_AFTER`` seconds. A newer release's value is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge

from chassis.bus import jetstream
from chassis.bus.connection import Connection
from chassis.bus.cursor import Cursor
from chassis.bus.entry import FORGED, Entry
from chassis.bus.tail import Change, Tail
from chassis.faults import Fault, Missing, Unavailable
from kit import backoff
from proto import codec
from proto.subjects import Bucket
from proto.sync import COMPLETE_PREFIX, EPOCH_KEY, Complete, Epoch, complete_key

if TYPE_CHECKING:
    from chassis.telemetry.log import Log

__all__ = ["Cursor", "View"]

COMPARE_EVERY = 10.0
"""Seconds between comparisons with the stream's own state."""
SPREAD = 1.0
"""Seconds within which the readers of a server that is gone list again."""
TICK = 0.5
MEND_AFTER = 3.0
"""Seconds after which a value is mended by who may have missed a newer one."""
MEND_AT_ONCE = 64

_SYNCED = Gauge("airmesh_view_synced", "1 while the mirror is in sync", ["view"])
_LISTS = Counter("airmesh_view_lists", "How often the bucket was listed anew", ["view"])
_MENDED = Counter("airmesh_view_mended", "Values written again because they could not be read", ["view"])
_UNREADABLE = Gauge("airmesh_view_unreadable", "Keys whose present value cannot be read", ["view"])

REMOVALS = 256
"""Keys that are gone of which it is remembered when, and in which trace."""

Mend = Callable[[Entry[Any], int], Awaitable[bool | None]]
"""Writes an entry over this revision of its key: True when it did, None when the key is not ours."""


@dataclass(frozen=True, slots=True)
class _Damage:
    """A present value that cannot be read, since when, and whether we know for certain what it was before."""

    revision: int
    since: float
    sure: bool


Kinds = Mapping[str, type] | Callable[[str], type | None]


class View:
    """See the module. Made by ``KV.watch``; its task is ``run``."""

    def __init__(
        self,
        connection: Connection,
        bucket: Bucket,
        filters: tuple[tuple[str, ...], ...],
        *,
        kinds: Kinds,
        markers: tuple[str, ...],
        name: str,
        consumer: str,
        mend: Mend | None = None,
    ) -> None:
        self._connection = connection
        self._bucket = bucket
        self._filters = filters
        self._kind_of = kinds if callable(kinds) else _by_prefix(kinds)
        self._markers = markers
        self._consumer = consumer
        self._mend_by = mend
        self._damaged: dict[str, _Damage] = {}
        self.name = name
        self._entries: dict[str, Entry[Any]] = {}
        self._marks: dict[str, Entry[Any]] = {}
        self.entries: Mapping[str, Entry[Any]] = MappingProxyType(self._entries)
        """By key as it stands in the bucket, without markers."""
        self.marks: Mapping[str, Entry[Any]] = MappingProxyType(self._marks)
        """Keys that begin with ``_``."""
        self.sequence = 0
        """Last stream sequence seen in this life of the bucket."""
        self.synced = False
        self.resyncs = 0
        """How often it had to list anew, the first time included."""
        self.unreadable: dict[str, str] = {}
        """Keys whose present value cannot be read, and why; the last good value stays in ``entries``."""
        self._removed_in: dict[str, tuple[int, str]] = {}
        """Sequences and trace contexts of the last removals, by key."""
        self._seen: set[str] = set()
        self._listing = True
        self._caught_up = False
        self._stale: set[str] = set()
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._wake = asyncio.Event()
        self._verify = False
        self._relist = ""
        self._orphaned = False
        """The last life of the consumers ended with the server that held them."""
        self._said = ""
        self._sync_event = asyncio.Event()
        self.log: Log | None = None
        self.report: Callable[[str, str], None] | None = None
        """Publishes a fault and its remedy."""
        self.heard: Callable[[str], None] | None = None
        """Told the key of each change that comes, a repeated value's too; must not block."""

    @property
    def bucket(self) -> Bucket:
        """Of which it is a mirror."""
        return self._bucket

    @property
    def epoch(self) -> str:
        """The bucket's present epoch; empty until known."""
        entry = self._marks.get(EPOCH_KEY)
        return entry.value.epoch if entry is not None and isinstance(entry.value, Epoch) else ""

    def listed(self, key: str) -> bool:
        """Whether what is held of ``key`` is of the present list: only then its revision counts in this epoch.

        While the bucket is listed anew, and where the present value cannot be read, an entry may be of an earlier life.
        """
        return key in self._seen and key not in self.unreadable

    def scope_complete(self, scope: str = "") -> bool:
        """True when the owner of ``scope`` (encoded) has written all it knows in this epoch, and we have seen it."""
        key = complete_key(scope)
        mark = self._marks.get(key)
        return (
            self._caught_up
            and key in self._seen
            and mark is not None
            and isinstance(mark.value, Complete)
            and bool(self.epoch)
            and mark.value.epoch == self.epoch
        )

    def cursor(self, *prefixes: str) -> Cursor:
        """Another reader's own set of dirty keys; all present keys are dirty to begin with. With ``prefixes`` it has
        the keys that begin so and markers, and a change of ``synced`` wakes it too.
        """
        cursor = Cursor(*(("_", *prefixes) if prefixes else ()))
        if self._entries or self._marks:
            cursor.mark(*self._entries, *self._marks)
        self._cursors.add(cursor)
        return cursor

    async def wait_synced(self, timeout: float | None = None) -> None:
        """Wait until synced; raises Unavailable after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not self.synced:
                    await self._sync_event.wait()
        except TimeoutError:
            raise Unavailable(f"{self.name} is not in sync after {timeout} s: {self.why()}") from None

    def why(self) -> str:
        """One sentence: why it is not synced; empty when it is."""
        if self.synced:
            return ""
        if not self._connection.connected:
            return "not connected"
        if not self._caught_up:
            return f"bucket {self._bucket.name} is being listed" if self._seen else f"waiting for {self._bucket.name}"
        if not self.epoch or EPOCH_KEY not in self._seen:
            return f"{self._bucket.name} has no epoch yet"
        missing = [complete_key(scope) for scope in self._markers if not self.scope_complete(scope)]
        return f"{self._bucket.name} waits for {', '.join(missing)}"

    async def run(self) -> None:
        """Mirror for ever."""
        self._connection.on_connected(self._on_connected)
        attempt = 0
        try:
            while True:
                await self._connection.wait_connected()
                try:
                    why = await self._mirror()
                    attempt = 0
                except Missing:
                    why = ""
                except Fault as fault:
                    why = str(fault)
                if why and why != self._said and self.log is not None:
                    self.log.warning("view-lists-again", view=self.name, bucket=self._bucket.name, why=why)
                self._said = why
                wait = backoff.delay(attempt, random.random(), first=0.05, longest=2.0)  # noqa: S311
                if self._orphaned:
                    wait += SPREAD * random.random()  # noqa: S311
                await asyncio.sleep(wait)
                attempt += 1
        finally:
            self._connection.off_connected(self._on_connected)

    async def _mirror(self) -> str:
        """One life of the consumers; returns why a new list is needed."""
        self._orphaned = False
        state = await jetstream.stream_state(self._connection, self._bucket.stream)
        self._begin_list()
        tails = [self._tail(filters, number) for number, filters in enumerate(self._filters)]
        async with contextlib.AsyncExitStack() as stack:
            for tail in tails:
                stack.push_async_callback(tail.close)
            for failed in await asyncio.gather(*(tail.open() for tail in tails), return_exceptions=True):
                if failed is not None:
                    raise failed
            compared = time.monotonic()
            while True:
                now = time.monotonic()
                await self._check_connection(tails, now)
                failure = next((tail.failure for tail in tails if tail.failure is not None), None)
                if failure is not None:
                    raise failure
                broken = next((tail.broken for tail in tails if tail.broken), self._relist)
                if broken:
                    self._orphaned = any(tail.orphaned for tail in tails)
                    return broken
                if not self._caught_up and all(tail.caught_up for tail in tails):
                    self._caught_up = True
                    self._judge()
                if self._damaged and self._mend_by is not None:
                    await self._mend(self._mend_by, now)
                if now - compared >= COMPARE_EVERY and self._connection.connected:
                    compared = now
                    why = await self._compare(state)
                    if why:
                        return why
                held = await self._pause()
                for tail in tails:
                    tail.forgive(held)

    async def _pause(self) -> float:
        """Until something happens, a moment at most; how many seconds longer it took, since the event loop was held."""
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK):
                await self._wake.wait()
                self._wake.clear()
        return max(0.0, time.monotonic() - began - TICK)

    def _tail(self, filters: tuple[str, ...], number: int) -> Tail:
        name = self._consumer if len(self._filters) == 1 else f"{self._consumer}-{number}"
        return Tail(self._connection, self._bucket, filters, name, self._on_change, self._wake.set)

    async def _check_connection(self, tails: list[Tail], now: float) -> None:
        if not self._connection.connected:
            for tail in tails:
                tail.forgive_silence(now)
            return
        if self._verify:
            self._verify = False
            for tail in tails:
                try:
                    await tail.verify()
                except Unavailable:
                    self._verify = True
        for tail in tails:
            tail.check_silence(now)

    async def _compare(self, before: jetstream.StreamState) -> str:
        """Is it still the same bucket, and no further back than what we have seen?"""
        seen = self.sequence  # as of before the question: while it is answered, more may come
        try:
            state = await jetstream.stream_state(self._connection, self._bucket.stream)
        except Missing:
            return "the bucket is gone"
        except Unavailable:
            return ""
        if state.created != before.created:
            return "the bucket was made anew"
        if state.last < seen:
            return f"the bucket went back from {seen} to {state.last}"
        return ""

    def _begin_list(self) -> None:
        self.resyncs += 1
        _LISTS.labels(self.name).inc()
        self._seen = set()
        self._damaged = {}
        self._stale = set(self._entries) | set(self._marks)
        self._listing = True
        self._caught_up = False
        self._relist = ""
        self._verify = False
        self.sequence = 0
        self._set_synced(synced=False)

    def _judge(self) -> None:
        """Set ``synced``; on the first time after a list, sweep what was not in it and make everything dirty."""
        complete = (
            self._caught_up
            and EPOCH_KEY in self._seen
            and bool(self.epoch)
            and all(self.scope_complete(scope) for scope in self._markers)
        )
        if complete and self._listing:
            self._listing = False
            gone = [key for key in self._stale if key not in self._seen]
            for key in gone:
                self._entries.pop(key, None)
                self._marks.pop(key, None)
                self.unreadable.pop(key, None)
                self._damaged.pop(key, None)
            self._stale = set()
            self._dirty(*gone, *self._entries, *self._marks)
        self._set_synced(synced=complete)

    def _set_synced(self, *, synced: bool) -> None:
        if self.synced == synced:
            return
        self.synced = synced
        _SYNCED.labels(self.name).set(int(synced))
        if synced:
            self._sync_event.set()
        else:
            self._sync_event.clear()
        self._dirty()

    def _dirty(self, *keys: str) -> None:
        for cursor in self._cursors:
            cursor.mark(*keys)

    def _on_connected(self, again: bool) -> None:
        if again:
            self._verify = True
            self._wake.set()

    def _on_change(self, change: Change) -> None:
        key = change.key
        self.sequence = max(self.sequence, change.revision)
        if self.heard is not None:
            self.heard(key)
        held = self._marks if key.startswith("_") else self._entries
        if change.forged:
            self._unreadable(change, FORGED, newer=False)
        elif change.body is None:
            self._seen.discard(key)
            self.unreadable.pop(key, None)
            self._damaged.pop(key, None)
            removed = held.pop(key, None) is not None
            if removed:
                self._note_removal(key, change.revision, change.traceparent)
                self._dirty(key)
        else:
            self._take(key, change, held)
        _UNREADABLE.labels(self.name).set(len(self.unreadable))
        if key.startswith("_"):
            self._judge()

    def removed_in(self, key: str) -> str:
        """Trace context of the removal of a key that is gone; empty when it had none, or is not remembered."""
        return "" if key in self._entries else self._removed_in.get(key, (0, ""))[1]

    def changed_after(self, sequence: int) -> tuple[tuple[str, Any, int], ...]:
        """Key, value (None: it is gone) and revision of what was written after ``sequence``, or removed, as far as that
        is remembered; visits every entry.
        """
        written = [(one.key, one.value, one.revision) for one in self._entries.values() if one.revision > sequence]
        gone = [
            (key, None, revision)
            for key, (revision, _) in self._removed_in.items()
            if revision > sequence and key not in self._entries
        ]
        return (*written, *gone)

    def _note_removal(self, key: str, revision: int, traceparent: str) -> None:
        self._removed_in.pop(key, None)
        self._removed_in[key] = revision, traceparent
        if len(self._removed_in) > REMOVALS:
            del self._removed_in[next(iter(self._removed_in))]

    def _take(self, key: str, change: Change, held: dict[str, Entry[Any]]) -> None:
        kind = _mark_kind(key) or self._kind_of(key)
        if kind is None:
            return
        try:
            opened: tuple[Any, str] = codec.open_sealed(kind, change.body or b"")
        except (codec.Malformed, codec.UnknownVersion) as error:
            self._unreadable(change, str(error), newer=isinstance(error, codec.UnknownVersion))
            return
        self._seen.add(key)
        value, traceparent = opened
        self.unreadable.pop(key, None)
        self._damaged.pop(key, None)
        before = held.get(key)
        if before is not None and before.revision == change.revision and before.value == value:
            return
        if key == EPOCH_KEY and not self._listing and before is not None and before.value != value:
            self._relist = "the epoch changed"
            self._wake.set()
        held[key] = Entry(key, value, change.revision, traceparent)
        self._dirty(key)

    def _unreadable(self, change: Change, why: str, *, newer: bool) -> None:
        """Keep what we had, and say so once."""
        before = self._damaged.pop(change.key, None)
        if not newer:
            followed = change.key in self._seen and change.key not in self.unreadable
            sure = followed if before is None else before.sure
            self._damaged[change.key] = _Damage(change.revision, time.monotonic(), sure)
            self._wake.set()
        self._seen.add(change.key)
        if self.unreadable.get(change.key) != why:
            self.unreadable[change.key] = why
            if self.log is not None:
                self.log.error("value-unreadable", view=self.name, key=change.key, revision=change.revision, error=why)

    async def _mend(self, mend: Mend, now: float) -> None:
        """Write again what cannot be read and is ours, as far as we know what it was."""
        due: list[tuple[Entry[Any], _Damage]] = []
        for key, damage in self._damaged.items():
            entry = (self._marks if key.startswith("_") else self._entries).get(key)
            if entry is not None and (damage.sure or now - damage.since > MEND_AFTER):
                due.append((entry, damage))
        due = due[:MEND_AT_ONCE]
        outcomes = await asyncio.gather(
            *(mend(entry, damage.revision) for entry, damage in due), return_exceptions=True
        )
        for (entry, damage), outcome in zip(due, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                if not isinstance(outcome, Fault):
                    raise outcome
                continue  # the next turn tries again
            if self._damaged.get(entry.key) is damage:
                del self._damaged[entry.key]  # not ours, or there is a newer one by now, which comes by itself
            if outcome:
                self._mended(entry)

    def _mended(self, entry: Entry[Any]) -> None:
        _MENDED.labels(self.name).inc()
        where, why = f"{self._bucket.on_server}: {entry.key}", self.unreadable.get(entry.key, "")
        if self.log is not None:
            self.log.warning("value-mended", view=self.name, key=entry.key, why=why)
        if self.report is not None:
            self.report(
                f"a value could not be read and was written again ({where}: {why})",
                "only a user who may write this key, or the server's disk, can have done it: see who holds such a key",
            )


def _mark_kind(key: str) -> type | None:
    if key == EPOCH_KEY:
        return Epoch
    if key == COMPLETE_PREFIX or key.startswith(COMPLETE_PREFIX + "."):
        return Complete
    return None


def _by_prefix(kinds: Mapping[str, type]) -> Callable[[str], type | None]:
    """Kind of a key: that of the longest prefix (whole segments; ``""`` and ``">"`` are everything but markers)."""

    def kind_of(key: str) -> type | None:
        at = key
        while True:
            found = kinds.get(at)
            if found is not None:
                return found
            cut = at.rfind(".")
            if cut < 0:
                return None if key.startswith("_") else kinds.get("") or kinds.get(">")
            at = at[:cut]

    return kind_of
