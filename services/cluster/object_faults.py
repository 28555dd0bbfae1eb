"""Writes the faults that services report of Kubernetes objects as Events on these objects.

Owns the subscription and the writing; ``core.object_faults`` decides what is taken and when it is due. Promises: only
the lease holder listens to what it hears; only objects that the API serves get an Event; a write that fails is tried
again and holds up no other; at most :data:`WRITES_A_SECOND`.
"""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Counter

from chassis.bus.view import Cursor
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from proto.events import ObjectFault
from proto.subjects import OBJECT_FAULT
from services.cluster.core import object_faults as core
from services.cluster.core.cache import Cache
from services.cluster.core.reports import rfc3339
from services.cluster.kube import Kube, Refusal
from services.cluster.speakers import speaker

MANAGER = "airmesh-object-faults"
WRITES_A_SECOND = 20
_GONE = (400, 403, 404, 422)
"""Refusals that stay: the namespace ends or is gone, or the API server does not take the words."""

_HEARD = Counter("airmesh_object_faults", "Object faults heard from services, by what became of them", ["outcome"])


class ObjectFaultReporter:
    """``hear`` for the subscription, ``apply`` for the loop whose cursor is ``heard``."""

    def __init__(self, *, kube: Kube, lease: Election, caches: list[Cache], instance: str, log: Log) -> None:
        self._kube = kube
        self._lease = lease
        self._caches: dict[type, list[Cache]] = {}
        for cache in caches:
            self._caches.setdefault(cache.kind.type, []).append(cache)
        self._instance = instance
        self._log = log
        self.board = core.Board()
        self.heard = Cursor()
        """Marked when something is to be written."""

    def hear(self, subject: str, fault: ObjectFault) -> None:
        """One message; never blocks."""
        if self._lease.held:
            outcome = self._take(subject, fault)
            _HEARD.labels(outcome or "taken").inc()
            if not outcome:
                self.heard.mark()

    def _take(self, subject: str, fault: ObjectFault) -> str:
        who = speaker(subject, OBJECT_FAULT)
        if who is None:
            return "unknown-speaker"
        now = time.monotonic()
        if not self.board.allow(who, now):
            return "over-rate"
        kind = core.kind_named(fault)
        name = fault.namespace, fault.name
        cache = next((one for one in self._caches[kind.type] if name in one.known), None) if kind is not None else None
        if cache is None:
            return "unknown-object"
        about = core.Subject(cache.kind, *name, cache.known[name].uid, fault.reason)
        return self.board.hear(who, about, fault, now)

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """Writes what is due; raises Refusal when the API server cannot be asked now."""
        if not self._lease.held:
            self.board = core.Board()
            return Done()
        for series in self.board.due(time.monotonic()):
            await self._write(series)
            await asyncio.sleep(1 / WRITES_A_SECOND)
        later = self.board.next_due(time.monotonic())
        return Done() if later is None else Again(later)

    async def _write(self, series: core.Series) -> None:
        ago = time.time() - time.monotonic()
        body = core.event_body(
            series, first=rfc3339(series.first + ago), last=rfc3339(series.last + ago), instance=self._instance
        )
        series.unwritten, before = False, series.written
        series.written = time.monotonic()
        try:
            await self._kube.apply(core.event_path(series), body, manager=MANAGER)
        except Refusal as refusal:
            if refusal.status in _GONE:
                self._log.warning("object-fault-refused", path=core.event_path(series), why=refusal)
                return
            series.unwritten, series.written = True, before
            raise
