"""One turn of the loop: feed, settle, compile, publish.

The order of publishing is a contract with the nodes. Of each shard that this copy holds: rules, what their identities
stand for, (with shard 0) the CIDR partition, then the frontier: whoever sees the frontier at S can rely on all of this
shard up to S. The holder of shard 0 also writes, once the frontiers of *all* shards have got there, the relevant label
keys and the completeness markers, so that no node is ever sent to an identity or a bucket whose rules are not there.
Removals come last, after their grace.

Every copy compiles everything, so that a takeover only has to publish.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from chassis.lease import Lease
from chassis.reconcile import Again, Dirty, Done
from chassis.service import Runtime
from proto import codec
from proto.events import PolicyCompiled, ServiceFault
from proto.identity import IdentityRecord, RelevantKeys
from proto.policy import CidrPartition, Frontier, Revision
from proto.subjects import IDENTITIES, RULES, event_subject
from proto.sync import COMPLETE_PREFIX, Complete
from services.policy.core import plan
from services.policy.core.graph import Graph, Held
from services.policy.core.limits import Problem
from services.policy.feed import CIDRS_KEY, RELEVANT_KEY, Batch, Feed, frontier_key
from services.policy.publish import Behind, Fence, NotHolder, Writer, together
from services.policy.settings import Settings

BREATH = 8
"""Identities compiled or compared before the event loop gets its turn."""

_COMPILE = Histogram("airmesh_policy_compile_seconds", "From a change seen to all of it compiled")
_WRITES = Counter("airmesh_policy_rules_written", "Rules written")
_IDENTITIES = Gauge("airmesh_policy_identities", "Identities that have rules, lingering ones included")
_PREFIXES = Gauge("airmesh_policy_cidr_prefixes", "Prefixes of the CIDR partition")


class Turn:
    """State of one copy between turns. ``lock`` is held while the graph is between two settled states."""

    def __init__(self, runtime: Runtime[Settings], feed: Feed, graph: Graph, leases: Sequence[Lease]) -> None:
        self.lock = asyncio.Lock()
        self.compiled_up_to: Revision | None = None
        """Revision that the graph's compiled policy is of; None before the first."""
        self.generation = 0
        """Counts the times that the graph became another."""
        self._runtime = runtime
        self._feed = feed
        self._graph = graph
        self._leases = leases
        self._rules = Writer(runtime.bus.bucket(RULES), feed.rules)
        self._identities = Writer(runtime.bus.bucket(IDENTITIES), feed.identities)
        self._grace = plan.Grace()
        self._unpublished: set[int] = set()
        self._caught_up: set[int] = set()
        self._partition_since: Revision | None = None
        self._relevant_since: Revision | None = None
        self._problems: tuple[Problem, ...] = ()
        self._synced = {name: runtime.health.require(name) for name in ("objects", "rules", "identities")}
        self._keyed = runtime.health.require("cluster-uid")
        self._sound = runtime.health.require("policies")

    async def apply(self, dirty: Dirty) -> Done | Again:
        """Take in what changed, and publish what differs."""
        started = time.monotonic()
        objects, rules, _ = dirty.by_cursor
        batch = self._feed.collect(objects, full=dirty.full)
        unsynced = self._feed.unsynced()
        self._unpublished |= _identities_in(rules)
        if dirty.full:
            self._caught_up.clear()
        for name, condition in self._synced.items():
            condition.set(name not in unsynced, unsynced.get(name, ""))
        with self._traced(batch):
            if await self._take_in(batch, started, compiling=not unsynced):
                await self._publish(batch.revision, started)
        return Done()

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
            self._graph.settle()
            self._keyed.set(self._graph.ready, "the namespace kube-system, whose uid keys identities, is not there yet")
            if not self._graph.ready:
                return False
            self._graph.hold(self._held())
            self._graph.settle()
            changed = await self._compile()
            if changed or self.compiled_up_to != batch.revision:
                self.generation += 1
            self.compiled_up_to = batch.revision
        self._note_since(batch.revision)
        self._tell_problems()
        _IDENTITIES.set(len(self._graph.compiled))
        _PREFIXES.set(len(self._graph.partition.prefixes))
        if changed:
            _COMPILE.observe(time.monotonic() - started)
            self._runtime.log.info("compiled", revision=revision_text(batch.revision), changed=changed)
        return True

    async def _compile(self) -> int:
        """Compile all that is dirty; returns how many policies are other than before."""
        changed = 0
        for count, identity in enumerate(sorted(self._graph.dirty), 1):
            if self._graph.compile(identity):
                self._unpublished.add(identity)
                changed += 1
            if count % BREATH == 0:
                await asyncio.sleep(0)
        return changed

    def _held(self) -> Held:
        """What kernels may hold beside what is wanted."""
        now, seconds = time.monotonic(), self._runtime.settings.policy_grace_seconds
        records, published = self._feed.records(), self._feed.published()
        self._grace = plan.age(
            self._grace, now, seconds, published=published, in_use=self._graph.roster.in_use(), records=records
        )
        relevant, partition = self._feed.relevant(), self._feed.partition()
        return Held(
            lingering=plan.lingering(self._grace, now, seconds, records),
            relevant=frozenset(relevant.keys) if relevant is not None else frozenset(),
            partitions=plan.kept_partitions(
                self._grace, None if partition is None else partition.prefixes, self._graph.partition.prefixes
            ),
        )

    def _note_since(self, revision: Revision) -> None:
        """Since which revision the partition and the relevant keys have been what they are now wanted to be."""
        wanted, relevant = self._graph.partition.prefixes, self._feed.relevant()
        partition = self._feed.partition()
        fresh = partition is not None and partition.prefixes == wanted and partition.revision.epoch == revision.epoch
        self._partition_since = None if fresh else (self._partition_since or revision)
        current = relevant is not None and frozenset(relevant.keys) == self._graph.relevant
        self._relevant_since = None if current else (self._relevant_since or revision)

    def _tell_problems(self) -> None:
        found = self._graph.problems
        for problem in found:
            if problem in self._problems:
                continue
            self._runtime.log.error("policy-fault", fault=problem.fault, remedy=problem.remedy)
            if self._leases[0].held:
                event = ServiceFault(service="policy", node="", fault=problem.fault, remedy=problem.remedy)
                self._runtime.bus.publish(event_subject("policy", "fault"), event)
        self._problems = found
        self._sound.set(not found, found[0].fault if found else "")

    async def _publish(self, revision: Revision, started: float) -> None:
        """Publish every shard that is ours; one that cannot be now does not keep the others back."""
        held = [shard for shard, lease in enumerate(self._leases) if lease.held]
        self._caught_up &= set(held)
        missed: Behind | None = None
        for shard in held:
            try:
                await self._publish_shard(shard, revision, started)
            except NotHolder as why:
                self._runtime.log.warning("shard-lost", shard=shard, why=str(why))
                self._caught_up.discard(shard)
            except Behind as why:
                self._caught_up.discard(shard)
                missed = why
        # A shard that is not caught up is compared whole when its turn comes, so nothing of it need be remembered.
        self._unpublished.clear()
        if missed is not None:
            raise missed

    def _shard(self, identity: int) -> int:
        return identity % len(self._leases)

    async def _publish_shard(self, shard: int, revision: Revision, started: float) -> None:
        fence = Fence(self._runtime.bus, self._leases[shard], revision)
        which = self._graph.compiled.keys() if shard not in self._caught_up else self._unpublished
        mine = [identity for identity in which if self._shard(identity) == shard]
        changed = await self._write_rules(mine, revision, fence)
        if shard == 0:
            await self._write_partition(fence)
        frontier = Frontier(shard=shard, shards=len(self._leases), revision=revision)
        moved = await self._rules.write(frontier_key(shard), frontier, partial(plan.frontier_step, frontier), fence)
        self._caught_up.add(shard)
        if moved:
            milliseconds = (time.monotonic() - started) * 1000
            event = PolicyCompiled(
                shard=shard, revision=revision_text(revision), changed=changed, milliseconds=milliseconds
            )
            self._runtime.bus.publish(event_subject("policy", "compiled"), event)
        if shard == 0:
            await self._write_once_all_are_there(revision, fence)
        await self._delete_expired(shard, revision, fence)

    async def _write_rules(self, identities: Iterable[int], revision: Revision, fence: Fence) -> int:
        """Rules, then what the identities stand for; returns how many rules were written."""
        writes = []
        records = []
        for count, identity in enumerate(sorted(identities), 1):
            compiled = self._graph.compiled.get(identity)
            if compiled is None:
                continue
            key = codec.identity_key(identity)
            policy = msgspec.structs.replace(compiled.policy, revision=revision)
            present = self._rules.latest(key)
            if plan.rule_step(policy, None if present is None else present.value) is not plan.Step.KEEP:
                writes.append(self._rules.write(key, policy, partial(plan.rule_step, policy), fence))
            facts = self._graph.facts(identity)
            if facts is not None and self._identities.latest(key) is None:
                record = IdentityRecord(identity=identity, stands_for=facts)
                records.append(self._identities.write(key, record, partial(plan.record_step, record), fence))
            if count % BREATH == 0:
                await asyncio.sleep(0)
        written = await together(writes)
        await together(records)
        _WRITES.inc(written)
        return written

    async def _write_partition(self, fence: Fence) -> None:
        """The partition, after this shard's lines for it; nodes wait for the other shards' frontiers themselves."""
        if self._partition_since is None or not self._graph.partition_fits:
            return
        wanted = CidrPartition(revision=self._partition_since, prefixes=self._graph.partition.prefixes)
        old = self._rules.latest(CIDRS_KEY)
        if await self._rules.write(CIDRS_KEY, wanted, partial(plan.partition_step, wanted), fence):
            self._runtime.log.info("partition", prefixes=len(wanted.prefixes))
            if old is not None:
                self._grace = plan.retire(self._grace, old.value.prefixes, time.monotonic())

    async def _write_once_all_are_there(self, revision: Revision, fence: Fence) -> None:
        """Relevant keys and completeness, which promise something of all shards."""
        shards = len(self._leases)
        entries = [self._rules.latest(frontier_key(shard)) for shard in range(shards)]
        frontiers = [None if entry is None else entry.value for entry in entries]
        if self._relevant_since is not None and plan.all_cover(frontiers, shards, self._relevant_since):
            wanted = RelevantKeys(keys=tuple(sorted(self._graph.relevant)))
            await self._identities.write(RELEVANT_KEY, wanted, partial(plan.relevant_step, wanted), fence)
        if not plan.all_begun(frontiers, shards, revision.epoch):
            return
        for writer, view in ((self._rules, self._feed.rules), (self._identities, self._feed.identities)):
            complete = Complete(epoch=view.epoch)
            await writer.write(COMPLETE_PREFIX, complete, partial(plan.complete_step, complete), fence)

    async def _delete_expired(self, shard: int, revision: Revision, fence: Fence) -> None:
        seconds = self._runtime.settings.policy_grace_seconds
        for identity in sorted(plan.expired(self._grace, time.monotonic(), seconds)):
            if self._shard(identity) != shard or identity in self._graph.compiled:
                continue
            key = codec.identity_key(identity)
            rules = self._rules.latest(key)
            if rules is not None and not plan.may_delete(revision, rules.value):
                continue
            await self._rules.delete(key, partial(plan.may_delete, revision), fence)
            await self._identities.delete(key, lambda _: True, fence)
            self._runtime.log.info("identity-gone", identity=key)


def revision_text(revision: Revision) -> str:
    """``<epoch>:<sequence>``, as events and explanations carry it."""
    return f"{revision.epoch}:{revision.sequence}"


def _identities_in(keys: Iterable[str]) -> set[int]:
    return {codec.parse_identity(key) for key in keys if not key.startswith("_") and len(key) == 16}
