"""Typed KV: one bucket as keys and messages, every call with a deadline, compare-and-set as a value.

Reads go to the stream's leader, so what was acknowledged is seen. A role that may read only some prefixes of a bucket
reads through DIRECT.GET instead, since the leader's request names the key in its body, where no allow-list looks; such
a read may be old in a replicated bucket, and a compare-and-set after it settles the matter.

A write that times out raises ``Unavailable`` and may have happened: read again and know your record by its nonce. Keys
are given as they stand in the bucket (``proto.codec`` spells them). ``purge`` is not offered: it is no compare-and-set.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from chassis.bus import jetstream
from chassis.bus.accounts import meet
from chassis.bus.connection import Connection
from chassis.bus.entry import FORGED, Entry, Unreadable
from chassis.bus.tail import Change, Tail
from chassis.bus.view import View
from chassis.faults import Damaged, Newer, Refused, Retryable, Unavailable
from chassis.telemetry.spans import current_traceparent
from proto import codec
from proto.slots import written
from proto.subjects import Bucket

DEADLINE = 5.0
LIST_DEADLINE = 30.0
LATER = 0.05
"""Seconds at most until a write is tried again that the server had no place for; nothing of it was kept."""
TOMBSTONE_SECONDS = 3600
"""How long the mark of a deleted key stays; readers that were away longer list again anyway."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conflict:
    """Somebody else wrote (or deleted) the key in between: read it again and decide."""

    key: str
    expected: int


class KV:
    """One bucket. ``whole`` is False for a role confined to prefixes. Made by ``Bus.bucket``."""

    def __init__(
        self,
        connection: Connection,
        bucket: Bucket,
        *,
        whole: bool,
        owned: tuple[str, ...] = (),
        consumer_prefix: str,
        register_view: Callable[[View], None],
    ) -> None:
        self._connection = connection
        self.bucket = bucket
        self.whole = whole
        self._stream = bucket.stream
        self._prefix = bucket.subject("")
        self._owned = owned
        self._consumer_prefix = consumer_prefix
        self._register_view = register_view

    async def get(self, key: str, kind: type[T], *, timeout: float = DEADLINE) -> Entry[T] | None:
        """The key's value, or None; raises Unavailable, Damaged, Newer."""
        found = await self.look(key, kind, timeout=timeout)
        if isinstance(found, Unreadable):
            raise _fault(found.why)
        return found

    async def look(self, key: str, kind: type[T], *, timeout: float = DEADLINE) -> Entry[T] | Unreadable | None:
        """Like :meth:`get`, with the revision of a value that cannot be read, for who may replace it."""
        stored = await self._last(key, timeout)
        if stored is not None and stored.forged:
            return Unreadable(key, codec.Malformed(f"{key}: {FORGED}"), stored.sequence)
        if stored is None or stored.body is None:
            return None
        try:
            value, traceparent = codec.open_sealed(kind, stored.body)
        except (codec.Malformed, codec.UnknownVersion) as why:
            return Unreadable(key, why, stored.sequence)
        return Entry(key, value, stored.sequence, traceparent)

    async def put(self, key: str, value: msgspec.Struct, *, traceparent: str = "", timeout: float = DEADLINE) -> int:
        """Write, whatever is there; only for keys that have one writer. Returns the revision."""
        return await self._write(key, codec.seal(value, traceparent or current_traceparent()), {}, timeout)

    async def create(
        self,
        key: str,
        value: msgspec.Struct,
        *,
        mend: bool = False,
        traceparent: str = "",
        timeout: float = DEADLINE,
    ) -> int | Conflict:
        """Write if the key has no value; a tombstone is no value. With ``mend`` one that cannot be read is none either:
        for who can make the value out of something else than what stood there.
        """
        written = await self.update(key, value, 0, traceparent=traceparent, timeout=timeout)
        if not isinstance(written, Conflict):
            return written
        stored = await self._last(key, timeout)
        if stored is None or not (stored.body is None or (mend and _is_damaged(type(value), stored))):
            return written
        return await self.update(key, value, stored.sequence, traceparent=traceparent, timeout=timeout)

    async def update(
        self, key: str, value: msgspec.Struct, revision: int, *, traceparent: str = "", timeout: float = DEADLINE
    ) -> int | Conflict:
        """Write if the key's last revision is ``revision`` (0: never written)."""
        sealed = codec.seal(value, traceparent or current_traceparent())
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            return await self._write(key, sealed, headers, timeout)
        except jetstream.JetStreamRefused as refused:
            if refused.number in jetstream.WRONG_LAST_SEQUENCE:
                return Conflict(key, revision)
            raise

    async def delete(self, key: str, revision: int | None = None, *, timeout: float = DEADLINE) -> Conflict | None:
        """Delete; with ``revision`` only if that is still the key's last one. A key that is not there is fine.

        A deletion has no value to carry the trace context in: it is in the message's header, as with requests.
        """
        headers = {"KV-Operation": "DEL", "Nats-TTL": str(TOMBSTONE_SECONDS)}
        traceparent = current_traceparent()
        if traceparent:
            headers["traceparent"] = traceparent
        if revision is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(revision)
        try:
            await self._write(key, b"", headers, timeout)
        except jetstream.JetStreamRefused as refused:
            if revision is not None and refused.number in jetstream.WRONG_LAST_SEQUENCE:
                return Conflict(key, revision)
            raise
        return None

    async def list(self, kind: type[T], prefix: str = ">", *, timeout: float = LIST_DEADLINE) -> dict[str, Entry[T]]:
        """All keys below a prefix (``>``: all; ``x.>``: below x.; ``x``: that key and below) but markers, once.

        Values that cannot be read raise Damaged or Newer: a list is whole or not at all.
        """
        found: dict[str, Change] = {}
        done = asyncio.Event()

        def on_change(change: Change) -> None:
            found[change.key] = change

        name = f"{self._consumer_prefix}-list"
        tails = [
            Tail(self._connection, self.bucket, filters, f"{name}-{number}", on_change, done.set)
            for number, filters in enumerate(self.filters((prefix,)))
        ]
        try:
            async with asyncio.timeout(timeout):
                for tail in tails:
                    await tail.open()
                while not all(tail.caught_up for tail in tails):
                    broken = next((tail.broken for tail in tails if tail.broken), "")
                    if broken:
                        raise Unavailable(f"listing {self.bucket.name}: {broken}")
                    done.clear()
                    async with asyncio.timeout(timeout):
                        await done.wait()
        except TimeoutError:
            raise Unavailable(f"listing {self.bucket.name} took longer than {timeout} s") from None
        finally:
            for tail in tails:
                await tail.close()
        return {key: _open(kind, change) for key, change in sorted(found.items()) if _lives(key, change)}

    async def last_sequence(self) -> int:
        """Sequence of the last change of any key; raises Unavailable, Missing."""
        return (await jetstream.stream_state(self._connection, self._stream)).last

    def watch(
        self,
        kinds: Mapping[str, type] | Callable[[str], type | None],
        *,
        prefixes: tuple[str, ...] = (">",),
        markers: tuple[str, ...] = ("",),
        name: str,
    ) -> View:
        """A mirror of the bucket that keeps itself true: see ``chassis.bus.view``. Its task starts at once."""
        view = View(
            self._connection,
            self.bucket,
            self.filters(prefixes, marks=True),
            kinds=kinds,
            markers=markers,
            name=name,
            consumer=f"{self._consumer_prefix}-{name}",
            mend=self._mend if self._owned else None,
        )
        self._register_view(view)
        return view

    def filters(self, prefixes: tuple[str, ...], *, marks: bool = False) -> tuple[tuple[str, ...], ...]:
        """Subject filters for each consumer that is needed: one in all, or one a filter for a confined role."""
        if ">" in prefixes:
            return ((self._prefix + ">",),)
        wanted: list[str] = []
        for prefix in prefixes:
            wanted += [prefix] if prefix.endswith(".>") else [prefix, f"{prefix}.>"]
        if marks:
            wanted += ["_epoch", "_complete", "_complete.>"]
        subjects = tuple(self._prefix + subject for subject in dict.fromkeys(wanted))
        return (subjects,) if self.whole else tuple((subject,) for subject in subjects)

    async def _mend(self, entry: Entry[Any], damaged: int) -> bool | None:
        """Write a value again over what cannot be read: True when it was; None when it is not ours to write."""
        if not any(covers(pattern, entry.key) for pattern in self._owned):
            return None
        written = await self.update(entry.key, entry.value, damaged, traceparent=entry.traceparent, timeout=2)
        return not isinstance(written, Conflict)

    async def _last(self, key: str, timeout: float) -> jetstream.Stored | None:
        read = jetstream.last_from_leader if self.whole else jetstream.last_from_replica
        return await read(self._connection, self._stream, self._prefix + key, timeout)

    async def _write(self, key: str, body: bytes, headers: dict[str, str], timeout: float) -> int:
        if len(key) > codec.MAX_KEY * 2:
            raise Refused("malformed", f"a key of {len(key)} characters is too long")
        subject = self._prefix + (written(key) if self.bucket.slots else key)
        headers = {jetstream.EXPECTED_STREAM: self._stream, **headers}
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            message = await self._connection.call(subject, body, timeout=max(left, 0.001), headers=headers)
            if not jetstream.too_many(message.headers):
                return jetstream.parse_answer(message.data).seq
            if time.monotonic() + LATER > deadline:
                raise Unavailable(f"{self.bucket.name} was written to by too many for {timeout} s")
            await asyncio.sleep(LATER * random.random())  # noqa: S311 - spreads load


def covers(pattern: str, key: str) -> bool:
    """Whether a pattern of keys (``>``, ``x``, ``x.*``) names a key, or one above it."""
    return pattern == ">" or f"{key}.".startswith(f"{pattern}.") or meet(pattern, key) == key


def _fault(why: codec.Malformed | codec.UnknownVersion) -> Retryable:
    return Newer(str(why)) if isinstance(why, codec.UnknownVersion) else Damaged(str(why))


def _is_damaged(kind: type, stored: jetstream.Stored) -> bool:
    if stored.forged:
        return True
    try:
        codec.open_sealed(kind, stored.body or b"")
    except codec.Malformed:
        return True
    except codec.UnknownVersion:
        return False
    return False


def _lives(key: str, change: Change) -> bool:
    return change.body is not None and not key.startswith("_")


def _open(kind: type[T], change: Change) -> Entry[T]:
    if change.forged:
        raise Damaged(f"{change.key}: {FORGED}")
    try:
        value, traceparent = codec.open_sealed(kind, change.body or b"")
    except (codec.Malformed, codec.UnknownVersion) as why:
        raise _fault(why) from why
    return Entry(change.key, value, change.revision, traceparent)
