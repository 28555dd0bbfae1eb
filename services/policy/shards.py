"""Publishing the shards that this copy holds, in the order that nodes rely on.

Of each shard: rules, what their identities stand for, (with shard 0) the CIDR partition, then the frontier: whoever
sees the frontier at S can rely on all of this shard up to S. The holder of shard 0 also writes, once the frontiers of
*all* shards have got there, the relevant label keys and the completeness markers, so that no node is ever sent to an
identity or a bucket whose rules are not there. Removals come last, after their grace.

A copy that has just become a shard's holder writes every value of it anew, even where it would keep it: see
``core.plan.afresh``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
from prometheus_client import Counter

from chassis.lease import Lease
from chassis.service import Runtime
from proto import codec
from proto.events import PolicyCompiled
from proto.identity import IdentityRecord, RelevantKeys
from proto.policy import CidrPartition, Frontier, Revision
from proto.subjects import IDENTITIES, RULES, event_subject
from proto.sync import COMPLETE_PREFIX, Complete
from services.policy.core import plan
from services.policy.core.cidrs import Partition
from services.policy.core.graph import Graph
from services.policy.feed import RELEVANT_KEY, Feed, Life, cidrs_key, frontier_key
from services.policy.publish import Behind, Fence, NotHolder, Writer, together
from services.policy.settings import Settings

BREATH = 8
"""Identities compared before the event loop gets its turn."""

_WRITES = Counter("airmesh_policy_rules_written", "Rules written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be published besides the graph's compiled policies."""

    revision: Revision
    life: Life
    """The buckets that this is to be published to; if they turn out to be others by now, nothing is."""
    started: float
    """When the turn began, by the monotonic clock."""
    partitions_since: Mapping[str, Revision]
    """Namespaces whose published partition is not the wanted one, and since when."""
    relevant_since: Revision | None
    """Likewise the relevant keys."""
    expired: frozenset[int]
    """Identities whose grace is over."""


class Shards:
    """The shards of this cluster, those that are ours now, and what has been published of them."""

    def __init__(self, runtime: Runtime[Settings], feed: Feed, graph: Graph, leases: Sequence[Lease]) -> None:
        self._runtime = runtime
        self._feed = feed
        self._graph = graph
        self._leases = leases
        self._rules = Writer(runtime.bus.bucket(RULES), feed.rules)
        self._identities = Writer(runtime.bus.bucket(IDENTITIES), feed.identities)
        self._unpublished: set[int] = set()
        self._caught_up: set[int] = set()
        self._life: Life | None = None
        self._taken_over: dict[int, int] = {}
        """Lease epoch in which each shard was last published whole, every value written anew."""

    @property
    def speaks_for_all(self) -> bool:
        """Whether this copy is the one that tells what concerns all shards."""
        return self._leases[0].held

    def mark(self, identities: Iterable[int], *, everything: bool = False) -> None:
        """These (or all) have to be compared with what is published."""
        self._unpublished.update(identities)
        if everything:
            self._caught_up.clear()

    async def publish(self, wanted: Wanted) -> list[CidrPartition]:
        """Publish every shard that is ours; returns partitions that were replaced. Raises Unavailable, Behind.

        A shard that cannot be published now does not keep the others back.
        """
        if wanted.life != self._life:
            self._life = wanted.life
            self._caught_up.clear()
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
        # A shard that is not caught up is compared whole when its turn comes, so nothing of it need be remembered.
        self._unpublished.clear()
        if missed is not None:
            raise missed
        return replaced

    def _shard(self, identity: int) -> int:
        return identity % len(self._leases)

    async def _publish_shard(self, shard: int, wanted: Wanted) -> list[CidrPartition]:
        lease = self._leases[shard]
        epoch = lease.epoch
        fence = Fence(self._runtime.bus, lease, wanted.revision, lambda: self._feed.life == wanted.life)
        anew = self._taken_over.get(shard) != epoch
        which = self._unpublished if shard in self._caught_up and not anew else self._graph.compiled.keys()
        mine = sorted(identity for identity in which if self._shard(identity) == shard)
        changed = await self._write_rules(mine, wanted.revision, fence, anew=anew)
        replaced = await self._write_partitions(wanted, fence, anew=anew) if shard == 0 else []
        frontier = Frontier(shard=shard, shards=len(self._leases), revision=wanted.revision)
        decide = plan.deciding(plan.frontier_step, frontier, anew=anew)
        moved = await self._rules.write(frontier_key(shard), frontier, decide, fence)
        self._caught_up.add(shard)
        self._taken_over[shard] = epoch
        if moved:
            milliseconds = (time.monotonic() - wanted.started) * 1000
            told = PolicyCompiled(
                shard=shard, revision=revision_text(wanted.revision), changed=changed, milliseconds=milliseconds
            )
            self._runtime.bus.publish(event_subject("policy", "compiled"), told)
        if shard == 0:
            await self._write_once_all_are_there(wanted, fence)
        await self._delete_expired(shard, wanted, fence)
        return replaced

    async def _write_rules(self, identities: Sequence[int], revision: Revision, fence: Fence, *, anew: bool) -> int:
        """Rules, then what the identities stand for; returns how many rules are other than before."""
        writes, records, changed = [], [], 0
        for count, identity in enumerate(identities, 1):
            compiled = self._graph.compiled.get(identity)
            if compiled is None:
                continue
            key = codec.identity_key(identity)
            policy = msgspec.structs.replace(compiled.policy, revision=revision)
            present = self._rules.latest(key)
            differs = plan.rule_step(policy, None if present is None else present.value) is not plan.Step.KEEP
            if differs or anew:
                changed += differs
                decide = plan.deciding(plan.rule_step, policy, anew=anew)
                writes.append(self._rules.write(key, policy, decide, fence))
            facts = self._graph.facts(identity)
            if facts is not None and self._identities.latest(key) is None:
                record = IdentityRecord(identity=identity, stands_for=facts)
                records.append(self._identities.write(key, record, partial(plan.record_step, record), fence))
            if count % BREATH == 0:
                await asyncio.sleep(0)
        _WRITES.inc(await together(writes))
        await together(records)
        return changed

    async def _write_partitions(self, wanted: Wanted, fence: Fence, *, anew: bool) -> list[CidrPartition]:
        """Partitions, after this shard's lines for them; nodes wait for the other shards' frontiers themselves."""
        since = dict(wanted.partitions_since)
        if anew:
            since = {name: own.revision for name, own in self._feed.partitions().items()} | since
        replaced: list[CidrPartition] = []
        for namespace, revision in sorted(since.items()):
            key, cut = cidrs_key(namespace), self._graph.partitions.get(namespace, Partition())
            old = self._rules.latest(key)
            partition = CidrPartition(revision, cut.prefixes, namespace, cut.digest)
            decide = plan.deciding(plan.partition_step, partition, anew=anew)
            if (old is None and not cut.prefixes) or not await self._rules.write(key, partition, decide, fence):
                continue
            self._runtime.log.info("partition", namespace=namespace, prefixes=len(cut.prefixes))
            if old is not None and old.value.digest != partition.digest:
                replaced.append(old.value)
        return replaced

    async def _write_once_all_are_there(self, wanted: Wanted, fence: Fence) -> None:
        """Relevant keys and completeness, which promise something of all shards."""
        shards = len(self._leases)
        entries = [self._rules.latest(frontier_key(shard)) for shard in range(shards)]
        frontiers = [None if entry is None else entry.value for entry in entries]
        if wanted.relevant_since is not None and plan.all_cover(frontiers, shards, wanted.relevant_since):
            relevant = RelevantKeys(keys=tuple(sorted(self._graph.relevant)))
            await self._identities.write(RELEVANT_KEY, relevant, partial(plan.relevant_step, relevant), fence)
        for namespace, empty in self._feed.partitions().items():
            if not empty.prefixes and plan.all_cover(frontiers, shards, empty.revision):
                await self._rules.delete(cidrs_key(namespace), partial(plan.may_delete_empty, empty), fence)
        if not plan.all_begun(frontiers, shards, wanted.revision.epoch):
            return
        for writer, epoch in ((self._rules, wanted.life.rules), (self._identities, wanted.life.identities)):
            complete = Complete(epoch=epoch)
            await writer.write(COMPLETE_PREFIX, complete, partial(plan.complete_step, complete), fence)

    async def _delete_expired(self, shard: int, wanted: Wanted, fence: Fence) -> None:
        for identity in sorted(wanted.expired):
            if self._shard(identity) != shard or identity in self._graph.compiled:
                continue
            key = codec.identity_key(identity)
            rules = self._rules.latest(key)
            if rules is not None and not plan.may_delete(wanted.revision, rules.value):
                continue
            await self._rules.delete(key, partial(plan.may_delete, wanted.revision), fence)
            await self._identities.delete(key, lambda _: True, fence)
            self._runtime.log.info("identity-gone", identity=key)


def revision_text(revision: Revision) -> str:
    """``<epoch>:<sequence>``, as events and explanations carry it."""
    return f"{revision.epoch}:{revision.sequence}"
