"""The reconciler of the ``objects`` bucket with the caches: its one writer, while it holds the lease.

Promises: nothing is written for a kind before its whole list has come, nothing at all before the bucket's own content
is known; every write is a compare-and-set on the revision that was seen, so a copy that has lost the lease without
knowing cannot undo its successor's work; ``_complete.<kind>`` follows when all of a kind is there for the present
epoch. A standby runs the same code with warm caches and writes nothing.

Each upsert is a span; its trace context goes into the value, so that a pod's trace begins here. While a pod has no
address yet its later versions stay in the same trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any

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
from services.cluster.core.cache import Cache, has_key
from services.cluster.core.diff import Difference, Name, diff
from services.cluster.core.policies import without_rules

TOGETHER = 64
"""Writes under way at a time."""
CONFLICT_WAIT = 0.05

_WRITES = Counter("airmesh_mirror_writes", "Writes to objects", ["kind", "what"])


@dataclass(frozen=True, slots=True)
class _Own:
    """A write of ours that the view may not have seen yet. ``entry`` is None for a deletion of ``revision``."""

    revision: int
    entry: Entry[KubernetesObject] | None


class Mirror:
    """``apply`` is what the reconcile loop runs."""

    def __init__(
        self, *, kv: KV, view: View, lease: Election, caches: Iterable[Cache], telemetry: Telemetry, log: Log
    ) -> None:
        self._kv = kv
        self._view = view
        self._lease = lease
        self._caches: Mapping[str, Cache] = {kind_prefix(cache.kind): cache for cache in caches}
        self._telemetry = telemetry
        self._log = log
        self._desired: dict[str, KubernetesObject] = {}
        self._key_of: dict[tuple[str, Name], str] = {}
        self._own: dict[str, _Own] = {}
        self._incarnation = ("", 0)
        self._swept: dict[str, int] = {}
        self._missed = True
        self._limit = asyncio.Semaphore(TOGETHER)
        self.unwritable: dict[str, tuple[KubernetesObject, str]] = {}
        """By key: objects that no bucket would take, each with one sentence."""

    async def apply(self, dirty: Dirty) -> Done | Again:
        """One pass over what changed, or over everything; raises Fault when the bus cannot be reached."""
        touched = self._gather() | dirty.keys
        if not self._lease.held or not self._view.synced:
            self._missed = True
            return Done()
        incarnation = (self._view.epoch, self._view.resyncs)
        if incarnation != self._incarnation:
            self._own, self._incarnation = {}, incarnation
        full = dirty.full or self._missed
        due = [
            prefix
            for prefix, cache in self._caches.items()
            if cache.synced
            and (full or self._swept.get(prefix) != cache.lists or not self._view.scope_complete(prefix))
        ]
        lists = {prefix: self._caches[prefix].lists for prefix in due}
        conflicts = await self._write(self._difference(touched, due))
        if conflicts or incarnation != (self._view.epoch, self._view.resyncs):
            self._missed = True
            return Again(CONFLICT_WAIT)
        self._missed = False
        self._swept.update(lists)
        for prefix in due:
            await self._complete(prefix, incarnation[0])
        return Done()

    def _gather(self) -> set[str]:
        """Take in what changed in the caches; the keys it touches."""
        touched: set[str] = set()
        for prefix, cache in self._caches.items():
            for name in cache.take_dirty():
                known = cache.known.get(name)
                value = (known.value or known.stand_in) if known is not None else None
                before = self._key_of.pop((prefix, name), None)
                if before is not None:
                    self._desired.pop(before, None)
                    self.unwritable.pop(before, None)
                    touched.add(before)
                elif known is None:
                    # It never had a good version here; the bucket may hold one from before this copy's time.
                    self._swept.pop(prefix, None)
                if value is not None and has_key(value):
                    key = object_key(value)
                    self._desired[key] = value
                    self._key_of[prefix, name] = key
                    touched.add(key)
        return touched

    def _difference(self, touched: Set[str], due: Iterable[str]) -> Difference:
        """Of the touched keys, and of all keys of the kinds that are due."""
        wanted: dict[str, set[str]] = {prefix: set() for prefix in due}
        for key in chain(touched, *((self._desired, self._view.entries, self._own) if wanted else ())):
            prefix = prefix_of(key)
            if prefix in wanted or (key in touched and prefix in self._caches):
                wanted.setdefault(prefix, set()).add(key)
        total = Difference()
        for prefix, keys in wanted.items():
            cache = self._caches[prefix]
            if cache.synced:
                there = {key: entry.value for key in keys if (entry := self._there(key)) is not None}
                part = diff(self._desired, there, cache.broken(), keys)
                total = Difference(total.upserts + part.upserts, total.deletes + part.deletes)
        return total

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

    async def _write(self, difference: Difference) -> int:
        """Everything of a difference, what others depend on first; the number of lost compare-and-sets."""
        batches: tuple[list[Coroutine[Any, Any, bool]], ...] = ([], [], [], [])
        for key, value in difference.upserts:
            batches[_order(value)].append(self._upsert(key, value, self._there(key)))
        for key in difference.deletes:
            there = self._there(key)
            if there is not None:
                batches[3].append(self._delete(key, there))
        outcomes: list[bool | BaseException] = []
        for batch in batches:
            outcomes += await asyncio.gather(*batch, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes.count(False)

    async def _upsert(self, key: str, value: KubernetesObject, there: Entry[KubernetesObject] | None) -> bool:
        kind = KIND_OF[type(value)]
        parent = there.traceparent if there is not None and _is_starting(there.value, value) else ""
        async with self._limit:
            if not self._lease.held:
                return False
            with self._telemetry.span("cluster.upsert", parent, key=key, kind=kind.kind) as span:
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

    async def _delete(self, key: str, there: Entry[KubernetesObject]) -> bool:
        kind = KIND_OF[type(there.value)]
        async with self._limit:
            if not self._lease.held:
                return False
            with self._telemetry.span("cluster.delete", there.traceparent, key=key, kind=kind.kind):
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


def prefix_of(key: str) -> str:
    """``<group>.<kind>`` of a key."""
    return ".".join(key.split(".", 2)[:2])


def _order(value: KubernetesObject) -> int:
    """Namespaces and policies before the pods that they are about."""
    if isinstance(value, Namespace | NetworkPolicy):
        return 0
    return 2 if isinstance(value, Pod) else 1


def _is_starting(before: KubernetesObject, after: KubernetesObject) -> bool:
    return isinstance(before, Pod) and isinstance(after, Pod) and before.uid == after.uid and not before.addresses


def kind_of_key(key: str) -> type | None:
    """Type of the value at a key of ``objects``; ``None`` for a kind that this release does not know."""
    return _TYPES.get(prefix_of(key))


_TYPES: Mapping[str, type] = {kind_prefix(kind): kind.type for kind in KIND_OF.values()}
