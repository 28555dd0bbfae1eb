"""One turn of the loop: feed, settle, compile, and hand what is wanted to the shards to publish.

Every copy compiles everything, whether or not it holds a shard, so that a takeover only has to publish and each can
answer questions. A large compile pauses between identities: the loop of the process is never held up by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from prometheus_client import Gauge, Histogram

from chassis.reconcile import Again, Dirty, Done
from chassis.service import Runtime
from proto import codec
from proto.events import ObjectFault, ServiceFault
from proto.policy import Revision
from proto.subjects import event_subject, object_fault_subject
from services.policy.core import plan
from services.policy.core.graph import Graph, Held
from services.policy.core.limits import Problem
from services.policy.feed import Batch, Feed, Life
from services.policy.settings import Settings
from services.policy.shards import Shards, Wanted, revision_text

BREATH = 8
"""Identities compiled before the event loop gets its turn."""

_COMPILE = Histogram("airmesh_policy_compile_seconds", "From a change seen to all of it compiled")
_IDENTITIES = Gauge("airmesh_policy_identities", "Identities that have rules, lingering ones included")
_PREFIXES = Gauge("airmesh_policy_cidr_prefixes", "Prefixes of the CIDR partition")


class Turn:
    """State of one copy between turns. ``lock`` is held while the graph is between two settled states."""

    def __init__(self, runtime: Runtime[Settings], feed: Feed, graph: Graph, shards: Shards) -> None:
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
        self._partitions_since: dict[str, Revision] = {}
        self._relevant_since: Revision | None = None
        self._problems: tuple[Problem, ...] = ()
        self._synced = {name: runtime.health.require(name) for name in ("objects", "rules", "identities")}
        self._keyed = runtime.health.require("cluster-uid")
        self._sound = runtime.health.require("policies")

    async def apply(self, dirty: Dirty) -> Done | Again:
        """Take in what changed, and publish what differs."""
        started = time.monotonic()
        objects, *published = dirty.by_cursor
        batch = self._feed.collect(objects, full=dirty.full)
        unsynced, life = self._feed.unsynced(), self._feed.life
        self._shards.mark(_identities_in(published), everything=dirty.full)
        for name, condition in self._synced.items():
            condition.set(name not in unsynced, unsynced.get(name, ""))
        with self._traced(batch):
            if await self._take_in(batch, started, compiling=not unsynced):
                await self._publish(batch.revision, life, started)
        wait = plan.next_expiry(self._grace, time.monotonic(), self._runtime.settings.policy_grace_seconds)
        return Done() if wait is None else Again(wait + 0.05)

    @contextmanager
    def _traced(self, batch: Batch) -> Iterator[None]:
        """A span when an object's change is what brought us here; a routine pass leaves no trace."""
        if not batch.trace:
            yield
            return
        with self._runtime.telemetry.span("policy.compile", batch.trace, revision=revision_text(batch.revision)):
            yield

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
            self._graph.hold(self._held())
            await self._settle()
            changed = await self._compile()
            if changed or self.compiled_up_to != batch.revision:
                self.generation += 1
            self.compiled_up_to = batch.revision
        self._note_since(batch.revision)
        self._tell_problems()
        _IDENTITIES.set(len(self._graph.compiled))
        _PREFIXES.set(sum(len(partition.prefixes) for partition in self._graph.partitions.values()))
        if changed:
            _COMPILE.observe(time.monotonic() - started)
            self._runtime.log.info("compiled", revision=revision_text(batch.revision), changed=changed)
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
        for count, identity in enumerate(sorted(self._graph.dirty), 1):
            if self._graph.compile(identity):
                changed.add(identity)
            if count % BREATH == 0:
                await asyncio.sleep(0)
        self._shards.mark(changed)
        return len(changed)

    def _held(self) -> Held:
        """What kernels may hold beside what is wanted."""
        now, seconds = time.monotonic(), self._runtime.settings.policy_grace_seconds
        records, published = self._feed.records(), self._feed.published()
        self._grace = plan.age(
            self._grace, now, seconds, published=published, in_use=self._graph.roster.in_use(), records=records
        )
        relevant = self._feed.relevant()
        return Held(
            lingering=plan.lingering(self._grace, now, seconds, records),
            relevant=frozenset(relevant.keys) if relevant is not None else frozenset(),
            partitions=plan.kept_partitions(self._grace, self._feed.partitions(), self._digests()),
        )

    def _digests(self) -> dict[str, str]:
        return {namespace: partition.digest for namespace, partition in self._graph.partitions.items()}

    def _note_since(self, revision: Revision) -> None:
        """Since which revision partitions and the relevant keys have been what they are now wanted to be."""
        relevant = self._feed.relevant()
        self._partitions_since = plan.partitions_since(
            self._feed.partitions(), self._digests(), self._partitions_since, revision
        )
        current = relevant is not None and frozenset(relevant.keys) == self._graph.relevant
        self._relevant_since = None if current else (self._relevant_since or revision)

    def _tell_problems(self) -> None:
        found = self._graph.problems
        for problem in found:
            if problem in self._problems:
                continue
            self._runtime.log.error("policy-fault", fault=problem.fault, remedy=problem.remedy)
            if self._shards.speaks_for_all:
                self._tell(problem)
        self._problems = found
        ours = [problem for problem in found if not problem.policy]
        self._sound.set(not ours, ours[0].fault if ours else "")

    def _tell(self, problem: Problem) -> None:
        """On the NetworkPolicy to change, where there is one."""
        if not problem.policy:
            event = ServiceFault(service="policy", node="", fault=problem.fault, remedy=problem.remedy)
            self._runtime.bus.publish(event_subject("policy", "fault"), event)
            return
        fault = ObjectFault(
            service="policy",
            node="",
            group="networking.k8s.io",
            kind="NetworkPolicy",
            namespace=problem.namespace,
            name=problem.policy,
            reason="TooManyCIDRs",
            fault=problem.fault,
            remedy=problem.remedy,
        )
        self._runtime.bus.publish(object_fault_subject("policy"), fault)

    async def _publish(self, revision: Revision, life: Life, started: float) -> None:
        now, seconds = time.monotonic(), self._runtime.settings.policy_grace_seconds
        wanted = Wanted(
            revision=revision,
            life=life,
            started=started,
            partitions_since=self._partitions_since,
            relevant_since=self._relevant_since,
            expired=plan.expired(self._grace, now, seconds),
        )
        for replaced in await self._shards.publish(wanted):
            self._grace = plan.retire(self._grace, replaced, time.monotonic())


def _identities_in(cursors: Iterable[Iterable[str]]) -> Iterator[int]:
    """Identities whose key in ``rules`` or ``identities`` is among what changed; keys that are none are not ours."""
    for key in {key for cursor in cursors for key in cursor if not key.startswith("_")}:
        with suppress(codec.Malformed):
            yield codec.parse_identity(key)
