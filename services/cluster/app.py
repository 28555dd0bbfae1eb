"""Wires ``cluster``: feeds into caches, caches into the mirror, what the mesh knows back to the API server.

In order: the API client, one feed a kind, the lease, the buckets, the mirror, the writers. Nothing waits for NATS or
for the API server; each part begins when what it needs is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from functools import partial

from chassis.bus.view import Cursor, View
from chassis.faults import Fault
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Loop
from chassis.runtime.service import Runtime
from chassis.telemetry.health import Condition
from kit import backoff
from proto.addresses import Block, BlockReport
from proto.bgp import BgpStatus
from proto.dns import CoreDNSDecision, DnsReport
from proto.events import FindingEvent, ObjectFault
from proto.objects import KINDS, CalicoNodeStatus, ConfigMap, Deployment, IPPool, Node, Service
from proto.policy import Ack
from proto.subjects import ACKS, BGP_STATUS, BLOCKS, DNS, FINDING, OBJECT_FAULT, OBJECTS, ROLES
from services.cluster import admission, kubeconfig
from services.cluster.conditions import ConditionWriter
from services.cluster.core import port_range
from services.cluster.core.cache import Cache
from services.cluster.core.conditions import KINDS as CONDITIONED
from services.cluster.core.parse import NAMES
from services.cluster.core.spellings import AGAIN, Caches, Together, label
from services.cluster.departed import Departures
from services.cluster.doctor import PortRangeDoctor
from services.cluster.feed import Feed, Pace
from services.cluster.kube import Kube
from services.cluster.mirror import Mirror, kind_of_key
from services.cluster.node_status import NodeStatusWriter
from services.cluster.object_faults import ObjectFaultReporter
from services.cluster.settings import Settings
from services.cluster.writeback import FaultReporter, NameServerWriter, NodeWriter, PoolWriter
from services.cluster.writers import Writers

FULL_PASS = 30.0
BUCKETS_EVERY = 5.0
DEPARTED_EVERY = 10.0
WRITERS_EVERY = 5.0
OF_ROUTING = frozenset(kind.type for kind in AGAIN)
"""Calico's kinds, which choose and set how packets are routed."""
MOST_NOTED = 8
"""Sentences about pools and configurations that health tells at a time."""


class Changes:
    """Wakes whoever has to look when the objects of a kind changed."""

    def __init__(self) -> None:
        self._cursors: dict[type, list[Cursor]] = {}

    def cursor(self, *kinds: type) -> Cursor:
        """A reader's own bell for these kinds; rung to begin with."""
        made = Cursor()
        made.mark()
        for kind in kinds:
            self._cursors.setdefault(kind, []).append(made)
        return made

    def mark(self, kind: type) -> None:
        """Objects of this kind changed."""
        for cursor in self._cursors.get(kind, ()):
            cursor.mark()


async def build(runtime: Runtime[Settings]) -> None:
    """Wire everything; returns at once."""
    settings = runtime.settings
    kube = Kube(kubeconfig.find(settings.kubeconfig))
    await kube.open()
    runtime.on_stop(kube.close)
    caches = [Cache(kind, keep_raw=kind.type in (Node, ConfigMap, IPPool)) for kind in (*KINDS, *AGAIN)]
    changes = Changes()
    pace = Pace(page=settings.kube_page, watch=settings.kube_watch_seconds)
    feeds = [
        Feed(kube, cache, log=runtime.log, pace=pace, on_change=partial(changes.mark, cache.kind.type))
        for cache in caches
    ]
    for feed in feeds:
        runtime.spawn(f"feed {label(feed.cache.kind)}", feed.run())
    for condition in ("kubernetes", "buckets", "objects"):
        runtime.health.require(condition)
    made = asyncio.Event()
    runtime.spawn("buckets", _keep_buckets(runtime, made))
    runtime.spawn("mirror", _mirror_when_possible(runtime, kube, feeds, changes, made))


async def _mirror_when_possible(
    runtime: Runtime[Settings], kube: Kube, feeds: list[Feed], changes: Changes, made: asyncio.Event
) -> None:
    """Everything that lives in buckets, as soon as there are any; then keep telling whether it is well."""
    caches = _caches_of(feeds)
    kubernetes = runtime.health.require("kubernetes")
    mirrored = runtime.health.require("objects")
    while not made.is_set():
        _report_feeds(kubernetes, feeds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await made.wait()
    lease = Election(runtime, "cluster", runtime.settings.lease_seconds)
    bucket = runtime.bus.bucket(OBJECTS)
    objects = bucket.watch(kind_of_key, markers=(), name="objects")
    mirror = Mirror(
        kv=bucket,
        view=objects,
        lease=lease,
        caches=[caches.together.get(kind, cache) for kind, cache in caches.first.items()],
        telemetry=runtime.telemetry,
        log=runtime.log,
    )
    cursors = [objects.cursor(), changes.cursor(*caches.first)]
    loops = [Loop(runtime, "mirror", cursors=cursors, apply=mirror.apply, period=FULL_PASS)]
    writers, blocks = _writers(runtime, kube, lease, caches, mirror, changes)
    loops += writers
    nodes_fresh = partial(_is_fresh, next(feed for feed in feeds if feed.cache.kind.type is Node))
    departures = Departures(
        runtime.bus,
        lease=lease,
        nodes=caches.first[Node],
        fresh=nodes_fresh,
        objects=objects,
        blocks=blocks,
        grace=runtime.settings.departed_grace,
        log=runtime.log,
    )
    loops.append(Loop(runtime, "departures", cursors=[], apply=departures.apply, period=DEPARTED_EVERY))
    loops += admission.begin(
        runtime, kube=kube, lease=lease, nodes=caches.first[Node], fresh=nodes_fresh, written=departures.views
    )
    watched = Writers(departures.views, lease, runtime.bus.report_fault, runtime.log)
    loops.append(Loop(runtime, "writers", cursors=[], apply=watched.apply, period=WRITERS_EVERY))
    loops += await _listen(runtime, kube, lease, caches)
    runtime.spawn("lease-changes", _poke_on_lease(lease, loops))
    while True:
        _report_feeds(kubernetes, feeds)
        mirrored.set(objects.synced, objects.why())
        runtime.health.note("models", _wrong_with_models(caches) if lease.held else "")
        await asyncio.sleep(0.5)


async def _listen(runtime: Runtime[Settings], kube: Kube, lease: Election, caches: Caches) -> list[Loop]:
    """Loops that write to the API server what other services say on the bus."""
    log = runtime.log
    reporter = ObjectFaultReporter(kube=kube, lease=lease, caches=caches.every, instance=runtime.instance, log=log)
    conditions = ConditionWriter(
        kube=kube,
        lease=lease,
        caches={kind: caches.first[kind] for kind in CONDITIONED},
        listening=lambda: runtime.bus.connection.connected,
        log=log,
    )
    statuses = NodeStatusWriter(kube=kube, lease=lease, objects=caches.together[CalicoNodeStatus], log=log)
    for subject in next(role.listens for role in ROLES if role.name == "cluster"):
        if f".{OBJECT_FAULT}" in subject:
            await runtime.bus.subscribe(subject, ObjectFault, reporter.hear)
        elif f".{FINDING}" in subject:
            await runtime.bus.subscribe(subject, FindingEvent, conditions.hear)
    await runtime.bus.subscribe(BGP_STATUS, BgpStatus, statuses.hear)
    runtime.checks.add((port_range.CODE,), PortRangeDoctor(kube, caches.first[Service]).check, standing=False)
    return [
        Loop(runtime, "node statuses", cursors=[], apply=statuses.apply, period=1),
        Loop(runtime, "conditions", cursors=[conditions.heard], apply=conditions.apply, period=5, debounce=0.2),
        Loop(runtime, "object faults", cursors=[reporter.heard], apply=reporter.apply, period=5, debounce=0.2),
    ]


def _caches_of(feeds: list[Feed]) -> Caches:
    every = [feed.cache for feed in feeds]
    first = {cache.kind.type: cache for cache in every if cache.kind not in AGAIN}
    again = {cache.kind.type: cache for cache in every if cache.kind in AGAIN}

    def absent(cache: Cache) -> bool:
        return next(feed.absent for feed in feeds if feed.cache is cache)

    return Caches(every, first, {kind: Together(first[kind], cache, absent) for kind, cache in again.items()})


def _wrong_with_models(caches: Caches) -> str:
    """What of the objects that choose and set how packets are routed is not done: of these no other service knows."""
    of_models = [cache for cache in caches.every if cache.kind.type in OF_ROUTING]
    wrong = [str(fault) for cache in of_models for fault in cache.faults.values()]
    for cache in of_models:
        for name, left_out in cache.unserved.items():
            wrong += [one.about(NAMES[cache.kind.type], *name) for one in left_out]
    more = len(wrong) - MOST_NOTED
    return "; ".join((*wrong[:MOST_NOTED], *((f"and {more} more",) if more > 0 else ())))


def _writers(
    runtime: Runtime[Settings],
    kube: Kube,
    lease: Election,
    caches: Caches,
    mirror: Mirror,
    changes: Changes,
) -> tuple[list[Loop], View]:
    """Loops that write to the API server, and the view of ``blocks`` that they read."""
    bus, log = runtime.bus, runtime.log
    acks = bus.bucket(ACKS).watch({"": Ack}, markers=(), name="acks")
    blocks = bus.bucket(BLOCKS).watch({"": Block, "_reported": BlockReport}, name="blocks")
    decisions = bus.bucket(DNS).watch({"coredns": CoreDNSDecision, "report": DnsReport}, markers=(), name="dns")
    nodes = NodeWriter(
        kube=kube,
        lease=lease,
        cache=caches.first[Node],
        acks=acks,
        blocks=blocks,
        taint_new=runtime.settings.taint_new_nodes,
        log=log,
    )
    configs, deployments, telemetry = caches.first[ConfigMap], caches.first[Deployment], runtime.telemetry
    names = NameServerWriter(
        kube=kube, lease=lease, configs=configs, deployments=deployments, dns=decisions, telemetry=telemetry, log=log
    )
    pools = PoolWriter(kube=kube, lease=lease, pools=caches.together[IPPool], blocks=blocks, log=log)
    faults = FaultReporter(
        kube=kube,
        bus=bus,
        lease=lease,
        caches=caches,
        mirror=mirror,
        pools=pools,
        instance=runtime.instance,
        log=log,
    )
    servers = [decisions.cursor(), changes.cursor(ConfigMap, Deployment)]
    loops = [
        Loop(runtime, "nodes", cursors=[acks.cursor(), blocks.cursor()], apply=nodes.apply, period=5, debounce=0.05),
        Loop(runtime, "coredns", cursors=servers, apply=names.apply, period=5, debounce=0.05),
        Loop(
            runtime,
            "pools",
            cursors=[changes.cursor(IPPool), blocks.cursor()],
            apply=pools.apply,
            period=FULL_PASS,
            debounce=0.2,
        ),
        Loop(runtime, "faults", cursors=[], apply=faults.apply, period=2),
    ]
    return loops, blocks


async def _keep_buckets(runtime: Runtime[Settings], made: asyncio.Event) -> None:
    """Make the buckets, now and whenever one is missing."""
    condition = runtime.health.require("buckets")
    connected = asyncio.Event()
    runtime.bus.connection.on_connected(lambda _again: connected.set())
    attempt = 0
    while True:
        await runtime.bus.wait_connected()
        try:
            await runtime.bus.make_buckets(runtime.settings.bucket_replicas)
        except Fault as fault:
            condition.set(False, str(fault))
            runtime.log.warning("buckets", why=fault)
            await asyncio.sleep(backoff.delay(attempt, random.random()))  # noqa: S311 - spreads load
            attempt += 1
            continue
        attempt = 0
        condition.set(True)
        made.set()
        connected.clear()
        # A server that comes back may have lost them: look at once, the others wait for it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BUCKETS_EVERY):
                await connected.wait()


async def _poke_on_lease(lease: Election, loops: list[Loop]) -> None:
    """A copy that becomes the active one looks at everything at once."""
    while True:
        await lease.changed()
        for loop in loops:
            loop.poke()


def _report_feeds(condition: Condition, feeds: list[Feed]) -> None:
    """Every kind that must be there has been listed. A standby is ready too."""
    waiting = [feed for feed in feeds if not feed.cache.synced and not (feed.absent and _may_be_absent(feed))]
    condition.set(
        not waiting, "; ".join(f"{feed.cache.kind.plural}: {feed.trouble or 'not listed yet'}" for feed in waiting[:3])
    )


def _is_fresh(feed: Feed) -> bool:
    """Whether what is followed is as the API server has it now, as far as can be known."""
    return feed.cache.synced and not feed.trouble


def _may_be_absent(feed: Feed) -> bool:
    """Kinds of which Calico has the name: the first release that reads one may come before its CRD."""
    return feed.cache.kind.type in OF_ROUTING
