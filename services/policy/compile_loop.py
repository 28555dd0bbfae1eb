"""The compile loop: feed, settle, compile, and hand what is wanted to the shards to publish.

Every copy compiles everything, whether or not it holds a shard, so that a takeover only has to publish and each can
answer questions. A large compile pauses between identities: the loop of the process is never held up by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from itertools import chain

from prometheus_client import Gauge, Histogram

from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.runtime.service import Runtime
from kit.once import Once
from proto.events import ObjectFault
from proto.policy import Revision
from proto.subjects import object_fault_subject
from services.policy.core import plan
from services.policy.core.graph import Graph, Held
from services.policy.core.limits import About, Limits, Problem
from services.policy.core.unused import Unused
from services.policy.feed import Batch, Feed, Incarnation, identities_in
from services.policy.settings import Settings
from services.policy.shards import Shards, Wanted

BREATH = 8
"""Identities compiled before the event loop gets its turn."""
LOOKS = 256
"""Identities looked at before the event loop gets its turn."""
REPORT_EVERY = 60.0
"""Seconds after which a problem that is still there is told again."""
MOST_REPORTED = 256
"""Objects that are told of in this time: what tenants do wrong must not drown what else is said."""

_COMPILE = Histogram("airmesh_policy_compile_seconds", "From a change seen to all of it compiled")
_IDENTITIES = Gauge("airmesh_policy_identities", "Identities that have rules, lingering ones included")
_PREFIXES = Gauge("airmesh_policy_cidr_prefixes", "Prefixes of all CIDR partitions")


class CompileLoop:
    """State of one copy between turns. ``lock`` is held while the graph is between two settled states."""

    def __init__(self, runtime: Runtime[Settings], feed: Feed, graph: Graph, shards: Shards, limits: Limits) -> None:
        self.lock = asyncio.Lock()
        self.compiled_up_to: Revision | None = None
        """Revision that the graph's compiled policy is of; None before the first."""
        self.generation = 0
        """Counts the times that the graph became another."""
        self._runtime = runtime
        self._feed = feed
        self._graph = graph
        self._shards = shards
        self._grace = plan.Grace()
        self._limits = limits
        self._unused = Unused(limits, runtime.settings.policy_grace_seconds)
        self._unseen: set[int] = set()
        """Identities of which something else may be published than ``_unused`` has seen."""
        self._all_unseen = True
        self._once: Once[About | Problem] = Once(every=REPORT_EVERY, again=REPORT_EVERY, most=MOST_REPORTED)
        self._synced = {name: runtime.health.require(name) for name in ("objects", "rules", "identities")}
        self._keyed = runtime.health.require("cluster-uid")
        self._sound = runtime.health.require("policies")

    async def apply(self, dirty: Dirty) -> Done | Again:
        """Take in what changed, and publish what differs."""
        started = time.monotonic()
        objects, *published = dirty.by_cursor
        batch = self._feed.collect(objects, full=dirty.full)
        unsynced, incarnation = self._feed.unsynced(), self._feed.incarnation
        identities = set(identities_in(published))
        self._unseen |= identities
        self._all_unseen |= dirty.full
        self._shards.mark(identities, everything=dirty.full)
        self._shards.residents.mark(key for cursor in published for key in cursor)
        for name, condition in self._synced.items():
            condition.set(name not in unsynced, unsynced.get(name, ""))
        # A routine pass leaves no trace; one span for each change that brought us here, linked with the first.
        with self._runtime.telemetry.together(
            "policy.compile",
            batch.traces,
            airmesh__revision=batch.revision.text,
            airmesh__changes=len(batch.changes),
        ):
            if await self._take_in(batch, started, compiling=not unsynced):
                await self._publish(batch, incarnation, started)
            self._report_problems()
        now, seconds = time.monotonic(), self._runtime.settings.policy_grace_seconds
        expiries = plan.next_expiry(self._grace, now, seconds), self._unused.next_expiry(now)
        waits = [wait for wait in (*expiries, self._shards.residents.expiry) if wait is not None]
        return Again(min(waits) + 0.05, full=False) if waits else Done()

    async def _take_in(self, batch: Batch, started: float, *, compiling: bool) -> bool:
        """Bring the graph up to the batch; False when nothing can be compiled yet."""
        async with self.lock:
            for key, value in batch.changes:
                self._graph.put(key, value)
            if not compiling:
                return False
            await self._settle()
            self._keyed.set(self._graph.ready, "the namespace kube-system, whose uid keys identities, is not there yet")
            if not self._graph.ready:
                return False
            await self._look_at_users()
            now = time.monotonic()
            lingering = self._unused.settle(now)
            self._graph.hold(self._held(now), lingering)
            await self._settle()
            changed = await self._compile()
            if changed or self.compiled_up_to != batch.revision:
                self.generation += 1
            self.compiled_up_to = batch.revision
        _IDENTITIES.set(len(self._graph.compiled))
        _PREFIXES.set(sum(len(partition.prefixes) for partition in self._graph.partitions.values()))
        if changed:
            _COMPILE.observe(time.monotonic() - started)
            self._runtime.log.info("compiled", revision=batch.revision.text, changed=changed)
        return True

    async def _settle(self) -> None:
        """Settle, and cut what has to be cut, with a breath after each namespace."""
        self._graph.settle()
        for namespace in sorted(self._graph.uncut):
            self._graph.cut(namespace)
            await asyncio.sleep(0)

    async def _compile(self) -> int:
        """Compile all that is dirty; returns how many policies are other than before."""
        changed: set[int] = set()
        for count, identity in enumerate(chain(sorted(self._graph.dirty), self._trimmed()), 1):
            if self._graph.compile(identity):
                changed.add(identity)
            if count % BREATH == 0:
                await asyncio.sleep(0)
        self._shards.mark(changed)
        return len(changed)

    def _trimmed(self) -> Iterator[int]:
        """What has to be compiled once more when all is compiled."""
        if self._graph.trim():
            yield from sorted(self._graph.dirty)

    async def _look_at_users(self) -> None:
        """Who has which identities, and what is published of them: of those of which it may be something else."""
        changed, self._unseen = self._unseen | self._graph.take_used(), set()
        if self._all_unseen:
            changed |= self._feed.published() | self._unused.known | self._graph.in_use().keys()
            self._all_unseen = False
        now = time.monotonic()
        for count, identity in enumerate(changed, 1):
            self._unused.look(
                identity,
                now,
                record=self._feed.record_of(identity),
                has_rules=self._feed.has_rules(identity),
                user=self._graph.user(identity),
            )
            if count % LOOKS == 0:
                await asyncio.sleep(0)

    def _held(self, now: float) -> Held:
        """What kernels may hold beside what is wanted."""
        self._grace = plan.age(self._grace, now, self._runtime.settings.policy_grace_seconds, named=self._graph.named)
        return Held(
            lingering=self._unused.lingering,
            relevants=self._feed.relevants(self._runtime.settings.policy_shards),
            partitions=plan.kept_partitions(self._grace, self._feed.partitions(), self._digests()),
            recorded=self._unused.records.keys(),
            named=frozenset(self._grace.named_at),
        )

    def _digests(self) -> dict[str, str]:
        return {namespace: partition.digest for namespace, partition in self._graph.partitions.items()}

    def _report_problems(self) -> None:
        """Say what is wrong: on the objects whose fault it is, or of the service. Each once in a while."""
        now = time.monotonic()
        found = (*self._graph.problems, *self._shards.problems)
        due = frozenset(self._once.take((about for problem in found for about in problem.about or (problem,)), now))
        for problem in found:
            fresh = [about for about in problem.about or (problem,) if about in due]
            if not fresh:
                continue
            self._runtime.log.error("policy-fault", fault=problem.fault, remedy=problem.remedy)
            if self._shards.speaks_for_all or problem in self._shards.problems:
                self._report(problem, fresh)
        unsound = next((problem for problem in found if not problem.about), None)
        self._sound.set(unsound is None, unsound.fault if unsound else "")

    def _report(self, problem: Problem, fresh: Iterable[About | Problem]) -> None:
        for about in fresh:
            if isinstance(about, Problem):
                self._runtime.bus.report_fault(about.fault, about.remedy)
                continue
            on_object = ObjectFault(
                service="policy",
                node="",
                group=about.group,
                kind=about.kind,
                namespace=about.namespace,
                name=about.name,
                reason=about.reason,
                fault=problem.fault,
                remedy=problem.remedy,
            )
            self._runtime.bus.publish(object_fault_subject("policy"), on_object)

    async def _publish(self, batch: Batch, incarnation: Incarnation, started: float) -> None:
        wanted = Wanted(
            revision=batch.revision,
            namespaces=batch.namespaces,
            incarnation=incarnation,
            started=started,
            expired=self._unused.expired,
        )
        for replaced in await self._shards.publish(wanted):
            self._grace = plan.retire(self._grace, replaced, time.monotonic())
