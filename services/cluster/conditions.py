"""Writes conditions of Nodes, Pods and Services by the findings that agents' standing checks tell.

Owns the subscription and the writing; ``core.conditions`` decides what an object should have. Promises: only the lease
holder writes, by server-side apply under a field manager of its own, so that a condition of a former life is known
again and taken away; only what differs from what the API serves; one object at most each ``core.EVERY`` seconds, and
at most :data:`WRITES_A_SECOND` in all. A copy that stands by listens as well, so that it knows when it takes over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from prometheus_client import Counter

from chassis.bus.view import Cursor
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from proto.events import FindingEvent
from proto.objects import KubernetesObject
from proto.subjects import FINDING
from services.cluster.core import conditions as core
from services.cluster.core.cache import Cache
from services.cluster.kube import Kube, Refusal
from services.cluster.speakers import speaker

MANAGER = "airmesh-conditions"
WRITES_A_SECOND = 20
AGAIN_SECONDS = 300.0
"""Seconds until the same is written once more, where the API server does not take it or somebody changes it."""
_STAY = (400, 403, 404, 409, 422)

_HEARD = Counter("airmesh_findings_heard", "Findings heard of agents, by what became of them", ["outcome"])


class ConditionWriter:
    """``hear`` for the subscription, ``apply`` for the loop whose cursor is ``heard``.

    ``caches``: those of ``core.KINDS``. ``listening``: whether this copy is connected to the bus.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        lease: Election,
        caches: dict[type[KubernetesObject], Cache],
        listening: Callable[[], bool],
        log: Log,
    ) -> None:
        self._kube = kube
        self._lease = lease
        self._caches = caches
        self._listening = listening
        self._log = log
        self._written: dict[core.Target, tuple[float, tuple[core.Condition, ...]]] = {}
        """When an object was written last, and with what."""
        self.reported = core.Reported(time.monotonic())
        self.heard = Cursor()
        """Marked when something may have to be written."""

    def hear(self, subject: str, event: FindingEvent) -> None:
        """One message; never blocks."""
        outcome = self._take(subject, event)
        _HEARD.labels(outcome or "taken").inc()
        if not outcome:
            self.heard.mark()

    def _take(self, subject: str, event: FindingEvent) -> str:
        who = speaker(subject, FINDING)
        if who is None:
            return "unknown-speaker"
        now = time.monotonic()
        if not self.reported.allow(who, now):
            return "over-rate"
        target = core.target_of(who, event.finding)
        if target is None:
            return "without-conditions"
        known = self._caches[target[0]].known.get(target[1:])
        if known is None:
            return "unknown-object"
        if not core.may_say(who, target, known.value):
            return "not-its-own"
        return self.reported.hear(who, target, event, known.generation, now)

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass over the objects that have such conditions, or should have; raises Refusal."""
        now = time.monotonic()
        if not self._listening():
            self.reported.deaf(now)
        if not self._lease.held or not all(cache.synced for cache in self._caches.values()):
            return Done()
        self._written = {target: one for target, one in self._written.items() if now - one[0] < AGAIN_SECONDS}
        heard = self.reported.by_target(now)
        self.reported.forget(target for target in heard if target[1:] not in self._caches[target[0]].known)
        shown = [(kind, *name) for kind, cache in self._caches.items() for name in cache.with_conditions]
        waits = [await self._bring(target, heard.get(target, [])) for target in dict.fromkeys((*heard, *shown))]
        soonest = min((wait for wait in waits if wait is not None), default=None)
        return Done() if soonest is None else Again(soonest)

    async def _bring(self, target: core.Target, heard: list[core.Heard]) -> float | None:
        """Writes an object's conditions where they differ; seconds to wait where it was written a moment ago."""
        known, now = self._caches[target[0]].known.get(target[1:]), time.monotonic()
        if known is None:
            return None
        wanted = core.wanted(heard, known.conditions, int(time.time()), settled=self.reported.settled(now))
        if set(wanted) == set(known.conditions):
            return None
        at, before = self._written.get(target, (-AGAIN_SECONDS, ()))
        if (wait := at + (AGAIN_SECONDS if before == wanted else core.EVERY) - now) > 0:
            return wait
        self._written[target] = now, wanted
        try:
            await self._kube.apply(core.status_path(target), core.status_body(target, wanted), manager=MANAGER)
        except Refusal as refusal:
            if refusal.status not in _STAY:
                del self._written[target]
                raise
            self._log.warning("conditions-refused", path=core.status_path(target), why=refusal)
        else:
            self._log.info("conditions", path=core.status_path(target), types=[one.type for one in wanted])
        await asyncio.sleep(1 / WRITES_A_SECOND)
        return None
