"""Publishing: compare-and-set writes that never put an older state over a newer one.

Every write is decided by ``core.plan`` against what is there now (the mirror, or our own last write if that is newer,
or after a lost race what the bucket's leader says), and guarded by a :class:`Fence`: the shard's lease is ours, and
before a value of another epoch is replaced, our epoch of ``objects`` is read again and found to be the present one. A
bucket that is made anew in the midst of a pass ends the pass: no marker may promise of the new one what was in the old.

A value of ours that cannot be read is written over, as if nothing were there. A key that cannot be written (its value
is too large, the bucket is full) raises :class:`Unpublished`: that is this key's matter, and nobody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec

from chassis.bus import jetstream
from chassis.bus.client import KV, Bus, Conflict, Entry, View
from chassis.bus.entry import Unreadable
from chassis.faults import Fault, Refused, Retryable, Unavailable
from chassis.runtime.election import Election
from proto import codec
from proto.policy import Revision
from proto.subjects import OBJECTS
from proto.sync import EPOCH_KEY, Epoch
from services.policy.core.plan import Step

ATTEMPTS = 6
"""Lost races on one key before the pass gives up and comes again."""
CONCURRENT = 16
"""Writes under way at once."""

T = TypeVar("T", bound=msgspec.Struct)
T_co = TypeVar("T_co", covariant=True)


class Behind(Retryable):
    """What is published was made from a newer state than ours: nothing is written until we have caught up."""


class NotHolder(Retryable):
    """The shard's lease was lost on the way: another copy goes on from here."""


class Unpublished(Refused):
    """The bus does not take what should stand under one key; the others are not concerned."""


class Fence:
    """May this copy, at this revision, write for this shard?"""

    def __init__(self, bus: Bus, lease: Election, revision: Revision, alive: Callable[[], bool]) -> None:
        self._bus = bus
        self._lease = lease
        self._alive = alive
        self._revision = revision
        self._present = False

    async def check(self, epoch: str) -> None:
        """Before a value of ``epoch`` (empty: none, or one without) is replaced; raises NotHolder or Behind."""
        if not self._lease.held:
            raise NotHolder("the lease of this shard is not held any more")
        if not self._alive():
            raise Behind("a bucket is being listed anew: what we know of it may be of another life")
        if epoch in ("", self._revision.epoch) or self._present:
            return
        entry = await self._bus.bucket(OBJECTS).get(EPOCH_KEY, Epoch)
        if entry is None or entry.value.epoch != self._revision.epoch:
            raise Behind(f"objects has another epoch than {self._revision.epoch}, which we know")
        self._present = True

    async def overtaken(self, theirs: Revision) -> None:
        """What is there is further than we are: raises Behind, unless ``objects`` itself went back to before that."""
        stream = OBJECTS.stream
        state = await jetstream.stream_state(self._bus.connection, stream)
        if state.last >= theirs.sequence:
            raise Behind(f"published up to {theirs.sequence}, we know objects up to {self._revision.sequence} only")


class Writer:
    """Compare-and-set writes to one bucket, with the memory of our own until the mirror has caught up."""

    def __init__(self, kv: KV, view: View) -> None:
        self._kv = kv
        self._view = view
        self._own: dict[str, Entry[Any]] = {}
        self._incarnation = -1

    def latest(self, key: str) -> Entry[Any] | None:
        """What the key holds as far as we know."""
        if self._view.resyncs != self._incarnation:
            # The bucket may be another one by now; what we wrote into the old one says nothing.
            self._own.clear()
            self._incarnation = self._view.resyncs
        seen = (self._view.marks if key.startswith("_") else self._view.entries).get(key)
        own = self._own.get(key)
        if own is None:
            return seen
        if self._view.sequence >= own.revision:  # it has seen that write, and whatever became of the key since
            del self._own[key]
            return seen
        return own

    async def write(self, key: str, value: T, decide: Callable[[T | None], Step], fence: Fence) -> int:
        """Bring the key to ``value`` if ``decide`` says so; the revision of the write, 0 when there was none.

        Raises Behind, NotHolder, Unavailable, and Unpublished when the bus does not take this value.
        """
        entry: Entry[T] | Unreadable | None = self.latest(key)
        for _ in range(ATTEMPTS):
            present: T | None = None if entry is None or isinstance(entry, Unreadable) else entry.value
            step = decide(present)
            if step is Step.KEEP:
                return 0
            revision: Revision | None = getattr(present, "revision", None)
            if step is Step.YIELD and revision is not None:
                await fence.overtaken(revision)
            await fence.check("" if revision is None else revision.epoch)
            written = await self._put(key, value, entry)
            if not isinstance(written, Conflict):
                self._own[key] = Entry(key, value, written)
                return written
            self._own.pop(key, None)
            entry = await self._read(key, type(value))
        raise Unavailable(f"{key} is written by others too often")

    async def _put(self, key: str, value: T, entry: Entry[T] | Unreadable | None) -> int | Conflict:
        try:
            if entry is None:
                return await self._kv.create(key, value)
            return await self._kv.update(key, value, entry.revision)
        except codec.Malformed as error:
            raise Unpublished("too-large", f"{key} cannot be published: {error}") from error
        except (jetstream.JetStreamRefused, jetstream.Full) as error:
            raise Unpublished("refused", f"{key} cannot be published: {error}") from error

    async def _read(self, key: str, kind: type[T]) -> Entry[T] | Unreadable | None:
        found = await self._kv.look(key, kind)
        if isinstance(found, Unreadable) and isinstance(found.why, codec.UnknownVersion):
            raise Unpublished("unreadable", f"{key} is not overwritten: {found.why}; delete it or upgrade")
        return found

    async def delete(self, key: str, may: Callable[[Any], bool], fence: Fence) -> None:
        """Delete the key if what it holds may go; a lost race leaves it for the next pass."""
        entry = self.latest(key)
        if entry is None or not may(entry.value):
            return
        await fence.check("")
        self._own.pop(key, None)
        try:
            await self._kv.delete(key, entry.revision)
        except (jetstream.JetStreamRefused, jetstream.Full) as error:
            raise Unpublished("refused", f"{key} cannot be deleted: {error}") from error


async def together(steps: Iterable[Coroutine[Any, Any, T_co]]) -> list[T_co]:
    """Run all, a bounded number at once; returns what each did. The first fault is raised when all have ended."""
    slots = asyncio.Semaphore(CONCURRENT)

    async def one(step: Coroutine[Any, Any, T_co]) -> T_co:
        async with slots:
            return await step

    outcomes = await asyncio.gather(*(one(step) for step in steps), return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for error in errors:
        if not isinstance(error, Fault):
            raise error
    if errors:
        raise errors[0]
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
