"""Writes to the API server what the mesh knows: conditions of nodes and pools, nodes' taint and blocks, CoreDNS'
objects, Events.

Promises: only the lease holder writes, each concern under its own field manager, and only what differs from what the
API serves. A view that is not in sync moves nothing: while NATS or we are away, Nodes stay as they were.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from chassis.bus.client import Bus, View
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from kit.once import Once
from kit.pools import any_overlap, judge_pools
from proto.addresses import Block, PoolVerdict
from proto.codec import encode_segment
from proto.dns import CoreDNSDecision
from proto.objects import KIND_OF, IPPool, Kind
from proto.policy import Ack
from services.cluster.core import nameserver, nodes, pools, reports, unserved
from services.cluster.core.cache import Cache
from services.cluster.core.diff import Name, name_of
from services.cluster.core.parse import NAMES
from services.cluster.core.reports import rfc3339
from services.cluster.core.shapes import PoolCondition
from services.cluster.core.spellings import NAME_TAKEN, Caches, Together
from services.cluster.core.watching import version_of
from services.cluster.core.workloads import COREDNS
from services.cluster.kube import Kube, Refusal
from services.cluster.mirror import Mirror

STATUS_MANAGER = "airmesh-cluster"
BLOCKS_MANAGER = "airmesh-blocks"
TAINT_MANAGER = "airmesh-taint"
MOST_REPORTED = 65_536
REPORTED_AT_ONCE = 40
"""Faults told in one pass; the others wait for the next."""
SLICE = 64
"""Nodes looked at before the event loop gets its turn."""
REFUSED_SECONDS = 300.0
"""How long a condition that the API server does not take is not tried again."""
DECISION_KEY = "coredns"


class NodeWriter:
    """``apply`` brings every Node's condition, taint and annotation to what the mesh knows."""

    def __init__(
        self, *, kube: Kube, lease: Election, cache: Cache, acks: View, blocks: View, taint_new: bool, log: Log
    ) -> None:
        self._kube = kube
        self._taint_new = taint_new
        self._lease = lease
        self._cache = cache
        self._acks = acks
        self._blocks = blocks
        self._log = log
        self._unready_since: dict[str, float] = {}

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass over all nodes; raises Refusal."""
        if not self._lease.held:
            self._unready_since = {}
            return Done()
        held = self._held_blocks()
        soon = changed = False
        for count, full_name in enumerate(tuple(self._cache.known), 1):
            if count % SLICE == 0:
                await asyncio.sleep(0)
            known = self._cache.known.get(full_name)
            if known is None:
                continue  # written to now, it would be there again
            name, there = full_name[1], nodes.written(known.raw)
            if held is not None and held.get(name, "") != there.blocks:
                changed |= not await self._write_blocks(name, held.get(name, ""), version_of(known.raw))
            ack = self._ack_of(name)
            if self._acks.synced:  # else its word may be there, unread
                on = nodes.taint(ack, there, new_nodes=self._taint_new)
                changed |= not await self._write_taint(name, on, known.raw)
            soon |= await self._write_condition(name, there, ack)
        return Again(0.2) if changed else Again(nodes.GRACE / 3) if soon else Done()

    async def _write_blocks(self, name: str, blocks: str, version: str) -> bool:
        """False when the Node has changed since it was seen: it comes again with what it is now."""
        try:
            await self._kube.apply(
                f"/api/v1/nodes/{name}", nodes.blocks_body(name, blocks, version), manager=BLOCKS_MANAGER
            )
        except Refusal as refusal:
            if refusal.status != 409:
                raise
            self._log.info("node-changed-meanwhile", node=name)
            return False
        self._log.info("node-blocks", node=name, blocks=blocks)
        return True

    def _held_blocks(self) -> dict[str, str] | None:
        if not self._blocks.synced:
            return None
        values = [entry.value for entry in self._blocks.entries.values()]
        return nodes.blocks_by_node(value for value in values if isinstance(value, Block))

    def _ack_of(self, name: str) -> Ack | None:
        entry = self._acks.entries.get(encode_segment(name)) if self._acks.synced else None
        return entry.value if entry is not None and isinstance(entry.value, Ack) else None

    async def _write_taint(self, name: str, on: bool | None, raw: bytes) -> bool:
        """False when the Node has changed since it was seen: it comes again with what it is now."""
        if on is None:
            return True
        try:
            await self._kube.merge(f"/api/v1/nodes/{name}", nodes.taints_body(raw, on=on), manager=TAINT_MANAGER)
        except Refusal as refusal:
            if refusal.status not in (404, 409):
                raise
            return refusal.status == 404
        self._log.info("node-taint", node=name, on=on)
        return True

    async def _write_condition(self, name: str, there: nodes.Written, ack: Ack | None) -> bool:
        """True when the node has to be looked at again soon."""
        now = time.monotonic()
        if ack is None or ack.ready:
            self._unready_since.pop(name, None)
        since = self._unready_since.setdefault(name, now) if ack is not None and not ack.ready else now
        wanted = nodes.condition(ack, now - since, there)
        if wanted is not None:
            body = nodes.condition_body(name, wanted, rfc3339(time.time()))
            await self._kube.apply(f"/api/v1/nodes/{name}/status", body, manager=STATUS_MANAGER)
            self._log.info("node-condition", node=name, status=wanted.status, reason=wanted.reason)
        return ack is not None and not ack.ready and wanted is None and there.reason != nodes.NOT_READY_REASON


class PoolWriter:
    """``apply`` brings every IPPool's condition ``Allocatable`` to what becomes of the pool."""

    def __init__(self, *, kube: Kube, lease: Election, pools: Together, blocks: View, log: Log) -> None:
        self._kube = kube
        self._lease = lease
        self._pools = pools
        self._blocks = blocks
        self._log = log
        self._refused: dict[tuple[Kind, str], tuple[PoolCondition, float]] = {}
        """Pools whose condition the API server does not take (a CRD without status), and when that was."""

    def verdicts(self) -> dict[str, PoolVerdict] | None:
        """By name of the pool; None while it cannot be known yet which of those that overlap has blocks."""
        found = [known.value for known in self._pools.known.values() if isinstance(known.value, IPPool)]
        in_use: frozenset[str] = frozenset()
        if any_overlap(found):
            if not self._blocks.synced:
                return None
            held = (entry.value for entry in self._blocks.entries.values())
            in_use = frozenset(block.pool for block in held if isinstance(block, Block) and block.node)
        return {verdict.pool: verdict for verdict in judge_pools(found, in_use).verdicts}

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass over all pools; raises Refusal."""
        verdicts = self.verdicts() if self._lease.held and self._pools.lists else None
        if verdicts is None:
            return Done()
        shadowed = {name for _, name in self._pools.shadowed()}
        taken, _, remedy = self._pools.why_shadowed().partition("; ")
        for cache in (self._pools.first, self._pools.second):
            for (_, name), known in list(cache.known.items()):
                fault = cache.faults.get(("", name))
                verdict = verdicts.get(name) or PoolVerdict(name, pools.UNREADABLE, str(fault), "correct it")
                if cache is self._pools.second and name in shadowed:
                    verdict = PoolVerdict(name, NAME_TAKEN, taken, remedy)
                await self._write(cache.kind, name, pools.condition(verdict, known.raw, rfc3339(time.time())))
        there = {(cache.kind, name) for cache in (self._pools.first, self._pools.second) for _, name in cache.known}
        self._refused = {which: reported for which, reported in self._refused.items() if which in there}
        return Done()

    async def _write(self, kind: Kind, name: str, wanted: PoolCondition | None) -> None:
        if wanted is None or self._is_refused(kind, name, wanted):
            return
        try:
            body = pools.condition_body(kind, name, wanted)
            await self._kube.apply(pools.condition_path(kind, name), body, manager=STATUS_MANAGER)
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            self._refused[kind, name] = wanted, time.monotonic()
            self._log.warning("pool-without-status", pool=name, why=refusal)
            return
        self._log.info("pool-condition", pool=name, status=wanted.status, reason=wanted.reason)

    def _is_refused(self, kind: Kind, name: str, wanted: PoolCondition) -> bool:
        before, at = self._refused.get((kind, name), (None, 0.0))
        same = before is not None and (before.status, before.message) == (wanted.status, wanted.message)
        return same and time.monotonic() - at < REFUSED_SECONDS


class NameServerWriter:
    """``apply`` brings CoreDNS' ConfigMap and Deployment to the decision of ``dns``."""

    def __init__(
        self,
        *,
        kube: Kube,
        lease: Election,
        configs: Cache,
        deployments: Cache,
        dns: View,
        telemetry: Telemetry,
        log: Log,
    ) -> None:
        self._kube = kube
        self._telemetry = telemetry
        self._lease = lease
        self._configs = configs
        self._deployments = deployments
        self._dns = dns
        self._log = log

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass; raises Refusal."""
        entry = self._dns.entries.get(DECISION_KEY)
        ready = self._lease.held and self._dns.synced and self._configs.synced and self._deployments.synced
        if not ready or entry is None or not isinstance(entry.value, CoreDNSDecision):
            return Done()
        config = self._configs.known.get(COREDNS)
        deployment = self._deployments.known.get(COREDNS)
        todo = nameserver.steps(
            entry.value,
            config.value if config else None,  # type: ignore[arg-type]
            deployment.value if deployment else None,  # type: ignore[arg-type]
            version=version_of(config.raw) if config else "",
        )
        for path, body in todo:
            with self._telemetry.span(
                "cluster.apply",
                entry.traceparent,
                k8s__object__kind=body["kind"],
                k8s__namespace__name=body["metadata"]["namespace"],
                k8s__object__name=body["metadata"]["name"],
            ) as span:
                try:
                    await self._kube.apply(path, body, manager=nameserver.MANAGER)
                except Refusal as refusal:
                    if refusal.status != 409:
                        raise
                    span.event("refused", airmesh__reason="changed meanwhile")
                    self._log.info("coredns-changed-meanwhile", path=path)
                    return Again(0.2)
                self._log.info("coredns-applied", path=path, reason=entry.value.reason)
        return Done()


class FaultReporter:
    """``apply`` tells what cannot be used, once an hour: log, bus, and an Event on the object."""

    def __init__(
        self,
        *,
        kube: Kube,
        bus: Bus,
        lease: Election,
        caches: Caches,
        mirror: Mirror,
        pools: PoolWriter,
        instance: str,
        log: Log,
    ) -> None:
        self._kube = kube
        self._bus = bus
        self._lease = lease
        self._caches = caches
        self._mirror = mirror
        self._pools = pools
        self._instance = instance
        self._log = log
        self._once: Once[reports.Report] = Once(again=reports.HOUR, most=MOST_REPORTED)

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass; a fault that cannot be told now is told at the next."""
        if not self._lease.held:
            return Done()
        now = time.monotonic()
        present = reports.bounded(self._present())
        for report in self._once.due(present, now)[:REPORTED_AT_ONCE]:
            if self._once.reported(report, now):
                await self._report(report)
        return Done()

    async def _report(self, report: reports.Report) -> None:
        self._log.warning("object-fault", fault=report.fault, remedy=report.remedy)
        self._bus.report_fault(report.fault, report.remedy)
        now = time.time()
        body = reports.event_body(report, now=now, stamp=rfc3339(now), instance=self._instance)
        try:
            await self._kube.create(reports.event_path(report), body, manager=STATUS_MANAGER)
        except Refusal as refusal:
            if refusal.status != 409:
                self._log.warning("event-refused", why=refusal)

    def _present(self) -> Iterator[reports.Report]:
        for cache in self._caches.every:
            for name in reports.first(cache.faults):
                yield self._about(cache, name, str(cache.faults[name]))
            for name in reports.first(cache.unserved):
                for one in cache.unserved[name]:
                    yield self._about(cache, name, one.about(NAMES[cache.kind.type], *name), unserved.REASON)
            if cache.kind.type is IPPool:
                for pool, verdict in (self._pools.verdicts() or {}).items():
                    if verdict.refused and ("", pool) in cache.known:
                        yield self._about(cache, ("", pool), verdict.sentence, verdict.reason)
        for both in self._caches.together.values():
            for name in both.shadowed():
                sentence = f"{NAMES[both.kind.type]} {name[1]}: {both.why_shadowed()}"
                yield self._about(both.second, name, sentence, NAME_TAKEN)
        by_kind = {cache.kind: cache for cache in self._caches.every}
        for value, sentence in self._mirror.unwritable.values():
            yield self._about(by_kind[KIND_OF[type(value)]], name_of(value), sentence)

    def _about(self, cache: Cache, name: Name, sentence: str, reason: str = reports.FAULT) -> reports.Report:
        known = cache.known.get(name)
        uid = known.uid if known else ""
        return reports.Report(
            kind=cache.kind, namespace=name[0], name=name[1], uid=uid, sentence=sentence, reason=reason
        )
