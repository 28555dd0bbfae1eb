"""Publishing the shards that this copy holds, in the order that nodes rely on.

Of each shard: which identities may live on its nodes (``residents``), what its identities stand for, their rules, (with
shard 0) the CIDR partitions, then the frontier: whoever sees the frontier at S can rely on all of this shard up to S,
and reads in it what identities were computed from. The holder of shard 0 also writes, once the frontiers of *all*
shards have got there, the relevant label keys and the completeness markers, so that no node is ever sent to a bucket
whose rules are not there. Removals come last, after a grace.

What the bus does not take of one identity (too large a value, a full bucket) is that identity's matter: it gets rules
that deny everything, or none, and its shard goes on. A frontier promises of each identity of its shard that its rules
are of the revision, or that it is denied.

A copy that has just become a shard's holder writes every value of it anew, even where it would keep it: see
``core.plan.afresh``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
from prometheus_client import Counter

from chassis.runtime.election import Election
from chassis.runtime.service import Runtime
from proto import codec
from proto.events import PolicyCompiled
from proto.identity import RelevantKeys
from proto.policy import CidrPartition, CompiledPolicy, Frontier, Revision
from proto.subjects import IDENTITIES, RULES, event_subject
from proto.sync import COMPLETE_PREFIX, Complete
from services.policy.core import plan
from services.policy.core.cidrs import Partition
from services.policy.core.compile import denied
from services.policy.core.graph import Graph
from services.policy.core.limits import Problem
from services.policy.feed import RELEVANT_KEY, Feed, Incarnation, cidrs_key, frontier_key
from services.policy.publish import Behind, Fence, NotHolder, Unpublished, Writer, together
from services.policy.residents import ResidentsOut
from services.policy.settings import Settings

BREATH = 8
"""Identities compared before the event loop gets its turn."""

T = TypeVar("T")

_WRITES = Counter("airmesh_policy_rules_written", "Rules written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be published besides the graph's compiled policies."""

    revision: Revision
    namespaces: int
    """Sequence of the last change of a namespace up to the revision."""
    incarnation: Incarnation
    """The buckets that this is to be published to; if they turn out to be others by now, nothing is."""
    started: float
    """When the turn began, by the monotonic clock."""
    expired: frozenset[int]
    """Identities whose grace is over."""


class Shards:
    """The shards of this cluster, those that are ours now, and what has been published of them."""

    def __init__(self, runtime: Runtime[Settings], feed: Feed, graph: Graph, leases: Sequence[Election]) -> None:
        self._runtime = runtime
        self._feed = feed
        self._graph = graph
        self._leases = leases
        self._rules = Writer(runtime.bus.bucket(RULES), feed.rules)
        self._identities = Writer(runtime.bus.bucket(IDENTITIES), feed.identities)
        self.residents = ResidentsOut(
            runtime.bus.bucket(IDENTITIES),
            feed.identities,
            graph,
            len(leases),
            runtime.settings.policy_grace_seconds,
            runtime.log,
        )
        self._unpublished: set[int] = set()
        self._caught_up: set[int] = set()
        self._incarnation: Incarnation | None = None
        self._taken_over: dict[int, int] = {}
        """Election epoch in which each shard was last published whole, every value written anew."""
        self._recorded: dict[int, int] = {}
        """Sequence of the last record of each shard."""
        self._withheld: dict[int, Problem] = {}
        """Identities that the bus does not take as they should be, and what is to be told of it."""

    @property
    def speaks_for_all(self) -> bool:
        """Whether this copy is the one that tells what concerns all shards."""
        return self._leases[0].held

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be published, of the shards that are ours."""
        return tuple(
            problem for identity, problem in sorted(self._withheld.items()) if self._leases[self._shard(identity)].held
        )

    def mark(self, identities: Iterable[int], *, everything: bool = False) -> None:
        """These (or all) have to be compared with what is published."""
        self._unpublished.update(identities)
        if everything:
            self._caught_up.clear()

    async def publish(self, wanted: Wanted) -> list[CidrPartition]:
        """Publish every shard that is ours; returns partitions that were replaced. Raises Unavailable, Behind.

        A shard that cannot be published now does not keep the others back.
        """
        if wanted.incarnation != self._incarnation:
            self._incarnation = wanted.incarnation
            self._caught_up.clear()
            self._recorded.clear()
        self.residents.follow()
        held = [shard for shard, lease in enumerate(self._leases) if lease.held]
        self._caught_up &= set(held)
        missed: Behind | None = None
        replaced: list[CidrPartition] = []
        for shard in held:
            try:
                replaced += await self._publish_shard(shard, wanted)
            except NotHolder as why:
                self._runtime.log.warning("shard-lost", shard=shard, why=str(why))
                self._caught_up.discard(shard)
            except Behind as why:
                self._caught_up.discard(shard)
                missed = why
            except Unpublished as why:
                # A frontier or a marker: nothing of this shard is promised until it can be.
                self._caught_up.discard(shard)
                self._runtime.log.error("shard-not-published", shard=shard, error=why)
        # A shard that is not caught up is compared whole when its turn comes, so nothing of it need be remembered.
        self._unpublished.clear()
        self._withheld = {at: why for at, why in self._withheld.items() if at in self._graph.compiled}
        if missed is not None:
            raise missed
        return replaced

    def _shard(self, identity: int) -> int:
        return identity % len(self._leases)

    async def _publish_shard(self, shard: int, wanted: Wanted) -> list[CidrPartition]:
        lease = self._leases[shard]
        epoch = lease.epoch
        fence = Fence(self._runtime.bus, lease, wanted.revision, lambda: self._feed.incarnation == wanted.incarnation)
        again = self._taken_over.get(shard) != epoch
        which = self._unpublished if shard in self._caught_up and not again else self._graph.compiled.keys()
        mine = sorted(identity for identity in which if self._shard(identity) == shard)
        everything = again or shard not in self._caught_up
        await self.residents.publish(shard, wanted.revision, fence, everything=everything)
        if shard not in self._recorded:
            self._recorded[shard] = self._feed.last_record(lambda identity: self._shard(identity) == shard)
        changed = await self._write_identities(mine, wanted.revision, fence, again=again)
        replaced = await self._write_partitions(wanted, fence, again=again) if shard == 0 else []
        frontier = Frontier(
            shard=shard,
            shards=len(self._leases),
            revision=wanted.revision,
            namespaces=wanted.namespaces,
            relevant=self._graph.relevant,
            identities=Revision(epoch=wanted.incarnation.identities, sequence=self._recorded[shard]),
        )
        decide = plan.deciding(plan.frontier_step, frontier, again=again)
        moved = await self._write_frontier(frontier, decide, fence)
        self._caught_up.add(shard)
        self._taken_over[shard] = epoch
        if moved:
            milliseconds = (time.monotonic() - wanted.started) * 1000
            event = PolicyCompiled(
                shard=shard, revision=wanted.revision.text, changed=changed, milliseconds=milliseconds
            )
            self._runtime.bus.publish(event_subject("policy", "compiled"), event)
        if shard == 0:
            await self._on_its_own(self._write_once_all_are_there(wanted, fence), None)
        await self._delete_expired(shard, wanted, fence)
        return replaced

    async def _write_identities(
        self, identities: Sequence[int], revision: Revision, fence: Fence, *, again: bool
    ) -> int:
        """What the identities stand for, and their rules; returns how many rules are other than before."""
        steps = []
        for count, identity in enumerate(identities, 1):
            compiled = self._graph.compiled.get(identity)
            if compiled is not None and (again or self._differs(identity)):
                policy = msgspec.structs.replace(compiled.policy, revision=revision)
                steps.append(self._write_identity(identity, policy, fence, again=again))
            if count % BREATH == 0:
                await asyncio.sleep(0)
        outcomes = await together(steps)
        _WRITES.inc(sum(written for written, _ in outcomes))
        return sum(changed for _, changed in outcomes)

    def _differs(self, identity: int) -> bool:
        """Whether what is published of the identity is other than what is wanted."""
        compiled, key = self._graph.compiled[identity], codec.identity_key(identity)
        rules, record = self._rules.latest(key), self._identities.latest(key)
        return (None if record is None else record.value) != compiled.record or plan.rule_step(
            compiled.policy, None if rules is None else rules.value
        ) is not plan.Step.KEEP

    async def _write_identity(
        self, identity: int, policy: CompiledPolicy, fence: Fence, *, again: bool
    ) -> tuple[bool, bool]:
        """Its record, then its rules; returns whether rules were written, and whether they are other than before."""
        key = codec.identity_key(identity)
        present = self._rules.latest(key)
        differs = plan.rule_step(policy, None if present is None else present.value) is not plan.Step.KEEP
        why: Unpublished | None = None
        try:
            await self._write_record(identity, fence)
        except Unpublished as refused:
            why = refused
            if present is None:
                # Nobody could let its pods in; they wait.
                self._withhold(identity, why)
                return False, False
        try:
            decide = plan.deciding(plan.rule_step, policy, again=again)
            written = bool(await self._rules.write(key, policy, decide, fence))
        except Unpublished as refused:
            why = refused
            written = await self._deny(identity, policy.revision, fence)
        if why is None:
            self._withheld.pop(identity, None)
        else:
            self._withhold(identity, why)
        return written, written and differs

    async def _write_record(self, identity: int, fence: Fence) -> None:
        key, record = codec.identity_key(identity), self._graph.compiled[identity].record
        if record is None:
            await self._identities.delete(key, lambda _: True, fence)
            return
        shard = self._shard(identity)
        at = await self._identities.write(key, record, partial(plan.record_step, record), fence)
        self._recorded[shard] = max(self._recorded.get(shard, 0), at)

    async def _deny(self, identity: int, revision: Revision, fence: Fence) -> bool:
        """In place of rules that the bus does not take: rules that allow nothing, which take less room than any."""
        key = codec.identity_key(identity)
        if self._rules.latest(key) is None:
            return False
        closed = denied(identity, revision)
        try:
            return bool(await self._rules.write(key, closed, partial(plan.rule_step, closed), fence))
        except Unpublished:
            await self._rules.delete(key, partial(plan.may_delete, revision), fence)
            return False

    def _withhold(self, identity: int, why: Unpublished) -> None:
        problem = self._graph.withheld(identity, why.message)
        if self._withheld.get(identity) != problem:
            self._withheld[identity] = problem
            self._runtime.log.error("identity-withheld", identity=codec.identity_key(identity), error=why)

    async def _write_frontier(
        self, frontier: Frontier, decide: Callable[[Frontier | None], plan.Step], fence: Fence
    ) -> bool:
        """The frontier, whatever it takes: in a full bucket some of those whose rules fill it have to do without."""
        key, victims = frontier_key(frontier.shard), iter(self._graph.largest())
        while True:
            try:
                return bool(await self._rules.write(key, frontier, decide, fence))
            except Unpublished as why:
                victim = next((one for one in victims if self._shard(one) == frontier.shard), None)
                if victim is None:
                    raise
                await self._deny(victim, frontier.revision, fence)
                self._withhold(victim, why)

    async def _on_its_own(self, step: Awaitable[T], otherwise: T) -> T:
        """What the step does, or ``otherwise`` where the bus does not take it: the rest of the shard goes on."""
        try:
            return await step
        except Unpublished as why:
            self._runtime.log.error("not-published", error=why)
            return otherwise

    async def _write_partitions(self, wanted: Wanted, fence: Fence, *, again: bool) -> list[CidrPartition]:
        """Partitions, after this shard's rules for them; nodes wait for the other shards' frontiers themselves.

        One that the bus does not take is its namespace's matter. Returns those that were replaced.
        """
        published, cut = self._feed.partitions(), self._graph.partitions
        revisions = dict.fromkeys(self._feed.spoilt_partitions(), wanted.revision)
        if again:
            revisions |= {name: own.revision for name, own in published.items()}
        digests = {name: partition.digest for name, partition in cut.items()}
        due = plan.partitions_due(published, digests, wanted.revision.epoch)
        revisions |= dict.fromkeys(due, wanted.revision)
        replaced = []
        for namespace, revision in sorted(revisions.items()):
            old = await self._on_its_own(self._write_partition(namespace, revision, fence, again=again), None)
            if old is not None:
                replaced.append(old)
        return replaced

    async def _write_partition(
        self, namespace: str, revision: Revision, fence: Fence, *, again: bool
    ) -> CidrPartition | None:
        """One namespace's partition; returns what it replaced, if anything."""
        key, cut = cidrs_key(namespace), self._graph.partitions.get(namespace, Partition())
        old = self._rules.latest(key)
        partition = CidrPartition(revision, cut.prefixes, namespace, cut.digest)
        if old is None and not cut.prefixes and key not in self._feed.rules.unreadable:
            return None
        decide = plan.deciding(plan.partition_step, partition, again=again)
        if not await self._rules.write(key, partition, decide, fence):
            return None
        self._runtime.log.info("partition", namespace=namespace, prefixes=len(cut.prefixes))
        return old.value if old is not None and old.value.digest != partition.digest else None

    async def _write_once_all_are_there(self, wanted: Wanted, fence: Fence) -> None:
        """Relevant keys and completeness, which promise something of all shards."""
        shards = len(self._leases)
        entries = [self._rules.latest(frontier_key(shard)) for shard in range(shards)]
        frontiers = [None if entry is None else entry.value for entry in entries]
        relevant: RelevantKeys = self._graph.relevant
        if plan.all_compute_with(frontiers, shards, wanted.revision.epoch, relevant):
            await self._identities.write(RELEVANT_KEY, relevant, partial(plan.relevant_step, relevant), fence)
        for namespace, empty in self._feed.partitions().items():
            if not empty.prefixes and plan.all_cover(frontiers, shards, empty.revision):
                await self._rules.delete(cidrs_key(namespace), partial(plan.may_delete_empty, empty), fence)
        for key in self._feed.surplus_frontiers(shards):
            await self._rules.delete(key, lambda _: True, fence)
        if not plan.all_begun(frontiers, shards, wanted.revision.epoch):
            return
        await self._mark_complete(self._rules, wanted.incarnation.rules, fence)
        if plan.all_recorded(frontiers, shards, wanted.incarnation.identities):
            await self.residents.complete(wanted.incarnation.identities, fence)
            await self._mark_complete(self._identities, wanted.incarnation.identities, fence)

    @staticmethod
    async def _mark_complete(writer: Writer, epoch: str, fence: Fence) -> None:
        complete = Complete(epoch=epoch)
        await writer.write(COMPLETE_PREFIX, complete, partial(plan.complete_step, complete), fence)

    async def _delete_expired(self, shard: int, wanted: Wanted, fence: Fence) -> None:
        for identity in sorted(wanted.expired):
            if self._shard(identity) != shard or identity in self._graph.compiled:
                continue
            self._withheld.pop(identity, None)
            key = codec.identity_key(identity)
            rules = self._rules.latest(key)
            if rules is not None and not plan.may_delete(wanted.revision, rules.value):
                continue
            await self._rules.delete(key, partial(plan.may_delete, wanted.revision), fence)
            await self._identities.delete(key, lambda _: True, fence)
            self._runtime.log.info("identity-gone", identity=key)
