"""The reconciler of the ``objects`` bucket with the caches: its one writer, while it holds the lease.

Promises: nothing is written for a kind before its whole list has come, nothing at all before the bucket's own content
is known; every write is a compare-and-set on the revision that was seen, so a copy that has lost the lease without
knowing cannot undo its successor's work; ``_complete.<kind>`` follows when all of a kind is there for the present
epoch. A standby runs the same code with warm caches and writes nothing.

A pass looks at :data:`SLICE` keys at a time and lets the event loop turn in between. What it compares with, objects and
whether their list was whole, is taken from the caches as the pass begins: what comes meanwhile is the next pass's.

Each upsert is a span; its trace context goes into the value, so that a pod's trace begins here. Until a pod has
its addresses and runs, its later versions stay in the same trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from prometheus_client import Counter

from chassis.bus.client import Conflict, Entry, View
from chassis.bus.kv import KV
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from proto.codec import Malformed, kind_prefix, object_key
from proto.objects import KIND_OF, Kind, KubernetesObject, Namespace, NetworkPolicy, Pod
from proto.sync import Complete, complete_key
from services.cluster.core.cache import Cache
from services.cluster.core.desired import Desired
from services.cluster.core.diff import Name, diff
from services.cluster.core.policies import without_rules
from services.cluster.core.spellings import Together

TOGETHER = 64
"""Writes under way at a time."""
CONFLICT_WAIT = 0.05
SLICE = 256
"""Keys looked at, or writes begun, before the event loop gets its turn."""

T = TypeVar("T")

_WRITES = Counter("airmesh_mirror_writes", "Writes to objects", ["kind", "what"])


@dataclass(frozen=True, slots=True)
class _Own:
    """A write of ours that the view may not have seen yet. ``entry`` is None for a deletion of ``revision``."""

    revision: int
    entry: Entry[KubernetesObject] | None


@dataclass(frozen=True, slots=True)
class _Todo:
    """What a pass has to write: upserts by order, what others depend on first, then deletions."""

    upserts: tuple[list[tuple[str, KubernetesObject]], ...] = field(default_factory=lambda: ([], [], []))
    deletes: list[str] = field(default_factory=list)


class Mirror:
    """``apply`` is what the reconcile loop runs."""

    def __init__(
        self,
        *,
        kv: KV,
        view: View,
        lease: Election,
        caches: Iterable[Cache | Together],
        telemetry: Telemetry,
        log: Log,
    ) -> None:
        self._kv = kv
        self._view = view
        self._lease = lease
        self._caches: Mapping[str, Cache | Together] = {kind_prefix(cache.kind): cache for cache in caches}
        self._telemetry = telemetry
        self._log = log
        self._desired = Desired(object_key)
        self._own: dict[str, _Own] = {}
        self._incarnation = ("", 0)
        self._swept: dict[str, int] = {}
        self._missed = True
        self._limit = asyncio.Semaphore(TOGETHER)
        self.unwritable: dict[str, tuple[KubernetesObject, str]] = {}
        """By key: objects that no bucket would take, each with one sentence."""

    async def apply(self, dirty: Dirty) -> Done | Again:
        """One pass over what changed, or over everything; raises Fault when the bus cannot be reached."""
        lists: dict[str, int] = {}
        touched = await self._gather(lists) | dirty.keys
        if not self._lease.held or not self._view.synced:
            self._missed = True
            return Done()
        incarnation = (self._view.epoch, self._view.resyncs)
        if incarnation != self._incarnation:
            self._own, self._incarnation = {}, incarnation
        full = dirty.full or self._missed
        due = {
            prefix: count
            for prefix, count in lists.items()
            if count and (full or self._swept.get(prefix) != count or not self._view.scope_complete(prefix))
        }
        known = {prefix for prefix, count in lists.items() if count}
        conflicts = await self._write(await self._compare(touched, known, due.keys()))
        if conflicts or incarnation != (self._view.epoch, self._view.resyncs):
            self._missed = True
            return Again(CONFLICT_WAIT)
        self._missed = False
        self._swept.update(due)
        for prefix in due:
            await self._complete(prefix, incarnation[0])
        return Done()

    async def _gather(self, lists: dict[str, int]) -> set[str]:
        """Take in what changed in the caches; the keys it touches. ``lists`` becomes how many lists of each kind are
        taken in: a list that comes meanwhile is not among them, or what it brought would look deleted.
        """
        touched: set[str] = set()
        for prefix, cache in self._caches.items():
            lists[prefix] = cache.lists
            for count, name in enumerate(cache.take_dirty(), 1):
                found = self._desired.take_one(cache.kind.type, name, cache.known.get(name))
                touched |= found.keys
                if found.whole:
                    self._swept.pop(prefix, None)
                if count % SLICE == 0:
                    await asyncio.sleep(0)
        for key in touched & self.unwritable.keys():
            del self.unwritable[key]
        return touched

    async def _compare(self, touched: Set[str], known: Set[str], due: Set[str]) -> _Todo:
        """What the touched keys of ``known`` kinds, and all keys of the kinds that are ``due``, need."""
        todo, seen = _Todo(), set[str]()
        for which, keys in (
            (known, touched),
            *(((due, self._desired.values), (due, self._view.entries), (due, self._own)) if due else ()),
        ):
            for some in _sliced(keys):
                by_kind: dict[str, list[str]] = {}
                for key in some:
                    if key not in seen and (prefix := prefix_of(key)) in which:
                        seen.add(key)
                        by_kind.setdefault(prefix, []).append(key)
                for prefix, mine in by_kind.items():
                    self._plan(mine, self._desired.unread(self._caches[prefix].kind.type), todo)
                if len(some) == SLICE:
                    await asyncio.sleep(0)
        return todo

    def _plan(self, keys: Iterable[str], broken: Mapping[Name, str], todo: _Todo) -> None:
        there = {key: entry.value for key in keys if (entry := self._there(key)) is not None}
        found = diff(self._desired.values, there, broken, keys)
        for key, value in found.upserts:
            todo.upserts[_order(value)].append((key, value))
        todo.deletes.extend(found.deletes)

    def _there(self, key: str) -> Entry[KubernetesObject] | None:
        """What the bucket holds at a key: by the view, or by a write of ours that it has not shown yet."""
        seen = self._view.entries.get(key)
        own = self._own.get(key)
        if own is None:
            return seen
        if own.entry is None:
            if seen is None or seen.revision > own.revision:
                del self._own[key]
                return seen
            return None
        if self._view.sequence >= own.revision:
            del self._own[key]
            return seen
        return own.entry

    async def _write(self, todo: _Todo) -> int:
        """Everything that is to do, what others depend on first; the number of lost compare-and-sets."""
        outcomes: list[bool | BaseException] = []
        for batch in todo.upserts:
            outcomes += await _each(batch, self._upsert)
        outcomes += await _each(todo.deletes, self._delete)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes.count(False)

    async def _upsert(self, wanted: tuple[str, KubernetesObject]) -> bool:
        key, value = wanted
        there = self._there(key)
        kind = KIND_OF[type(value)]
        parent = there.traceparent if there is not None and _is_starting(there.value, value) else ""
        async with self._limit:
            if not self._lease.held:
                return False
            with self._telemetry.span("cluster.upsert", parent, airmesh__key=key, **_named(value)) as span:
                try:
                    written = await self._put(key, value, there, span.traceparent)
                    self.unwritable.pop(key, None)
                except Malformed as error:
                    sentence = f"{kind.kind} {value.name}: {error}; make the object smaller"
                    self.unwritable[key] = (value, sentence)
                    if not isinstance(value, NetworkPolicy) or value == without_rules(value):
                        return True
                    # Left out, it would no longer isolate anything: what allows is left out instead.
                    value = without_rules(value)
                    if there is not None and there.value == value:
                        return True
                    written = await self._put(key, value, there, span.traceparent)
            if isinstance(written, Conflict):
                self._lost(key, kind)
                return False
            self._own[key] = _Own(written, Entry(key, value, written, span.traceparent))
            _WRITES.labels(kind.kind, "upsert").inc()
            return True

    async def _put(
        self, key: str, value: KubernetesObject, there: Entry[KubernetesObject] | None, traceparent: str
    ) -> int | Conflict:
        if there is None:
            return await self._kv.create(key, value, mend=True, traceparent=traceparent)
        return await self._kv.update(key, value, there.revision, traceparent=traceparent)

    async def _delete(self, key: str) -> bool:
        there = self._there(key)
        if there is None:
            return True
        kind = KIND_OF[type(there.value)]
        async with self._limit:
            if not self._lease.held:
                return False
            with self._telemetry.span("cluster.delete", there.traceparent, airmesh__key=key, **_named(there.value)):
                lost = await self._kv.delete(key, there.revision)
            self.unwritable.pop(key, None)
            if lost is not None:
                self._lost(key, kind)
                return False
            self._own[key] = _Own(there.revision, None)
            _WRITES.labels(kind.kind, "delete").inc()
            return True

    def _lost(self, key: str, kind: Kind) -> None:
        self._log.info("write-lost", key=key)
        self._own.pop(key, None)
        _WRITES.labels(kind.kind, "conflict").inc()

    async def _complete(self, prefix: str, epoch: str) -> None:
        if self._view.scope_complete(prefix) or not self._lease.held:
            return
        key = complete_key(prefix)
        mark = self._view.marks.get(key)
        if mark is not None and mark.value == Complete(epoch=epoch):
            return
        await self._kv.put(key, Complete(epoch=epoch))
        self._log.info("kind-complete", kind=prefix, objects=len(self._caches[prefix].known), epoch=epoch)


async def _each(batch: Iterable[T], write: Callable[[T], Awaitable[bool]]) -> list[bool | BaseException]:
    """The outcomes of all writes; only so many are begun at a time."""
    outcomes: list[bool | BaseException] = []
    for some in _sliced(batch):
        outcomes += await asyncio.gather(*map(write, some), return_exceptions=True)
    return outcomes


def _sliced(items: Iterable[T]) -> Iterator[tuple[T, ...]]:
    """As they are now, so many at a time."""
    left = iter(tuple(items))
    while some := tuple(islice(left, SLICE)):
        yield some


def prefix_of(key: str) -> str:
    """``<group>.<kind>`` of a key."""
    return ".".join(key.split(".", 2)[:2])


def _named(value: KubernetesObject) -> dict[str, Any]:
    """Attributes of a span about an object: by them it is found again when the object is gone."""
    named = {"k8s__object__kind": type(value).__name__, "k8s__object__name": value.name}
    namespace = getattr(value, "namespace", "")
    return {**named, "k8s__namespace__name": namespace} if namespace else named


def _order(value: KubernetesObject) -> int:
    """Namespaces and policies before the pods that they are about."""
    if isinstance(value, Namespace | NetworkPolicy):
        return 0
    return 2 if isinstance(value, Pod) else 1


def _is_starting(before: KubernetesObject, after: KubernetesObject) -> bool:
    if not (isinstance(before, Pod) and isinstance(after, Pod)) or before.uid != after.uid or after.terminating:
        return False
    return not before.addresses or before.phase == "Pending"


def kind_of_key(key: str) -> type | None:
    """Type of the value at a key of ``objects``; ``None`` for a kind that this release does not know."""
    return _TYPES.get(prefix_of(key))


_TYPES: Mapping[str, type] = {kind_prefix(kind): kind.type for kind in KIND_OF.values()}
