"""The dataplane agent of a node: its parts made in order, and the loops that keep them true. Nothing else.

Order of a start: journal, datapath (programs and maps as pinned), links as the kernel has them, endpoints of both;
views; loops; last the CNI socket. Nothing waits for NATS. A restart takes nothing down: what runs in the kernel runs
on.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial
from pathlib import Path

from chassis.health import Condition
from chassis.reconcile import Again, Dirty, Done, Loop
from chassis.service import Runtime
from chassis.view import Cursor
from linux.netns import netns_cookie
from proto.objects import EndpointSlice, Node
from proto.policy import Revision
from services.dataplane.bell import Bell, Courtesy
from services.dataplane.cni.server import CniServer
from services.dataplane.cni.verbs import Verbs
from services.dataplane.conntrack.flow_shares import FlowShares
from services.dataplane.core.datapath.layout import (
    Config,
    ConfigFlag,
)
from services.dataplane.core.datapath.maps import conntrack_entries, conntrack_sizes
from services.dataplane.core.datapath.pins import Source
from services.dataplane.core.endpoint.links import KernelLinks, pod_mac
from services.dataplane.core.ipam.journal import Ask
from services.dataplane.core.ipcache.entries import APISERVER
from services.dataplane.datapath.growth import Growth, limits_of, node_memory
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.datapath.upgrade import Upgrade
from services.dataplane.endpoint.attach import Attacher
from services.dataplane.endpoint.gate import Gate
from services.dataplane.endpoint.keeper import Keeper, uplink_mtu
from services.dataplane.endpoint.links import Links
from services.dataplane.endpoint.publish import AckOut, EndpointsOut
from services.dataplane.endpoint.registry import Registry, orphans, rebuild
from services.dataplane.endpoint.relabel import Relabel
from services.dataplane.feed import Feed
from services.dataplane.ipam.addresses import AddressBook
from services.dataplane.ipam.journal import Journal
from services.dataplane.ipam.provision import Provision
from services.dataplane.ipcache.around import Peers
from services.dataplane.ipcache.beliefs import tell_doubts
from services.dataplane.loadbalancer.balance import Balancer
from services.dataplane.loadbalancer.health_check import HealthChecks, HealthCheckServer
from services.dataplane.loadbalancer.stale_sockets import end_stale_sockets
from services.dataplane.monitor.flow_events import FlowEvents
from services.dataplane.monitor.metrics import register
from services.dataplane.monitor.object_faults import ObjectFaults
from services.dataplane.monitor.ring import EventReader
from services.dataplane.one_thread import OneThread
from services.dataplane.parts import Parts
from services.dataplane.policy.enforce import Enforcer
from services.dataplane.policy.refused import faults_of, tell_refused
from services.dataplane.settings import Settings

FULL_POLICY = 5.0
FULL_PEERS = 15.0
_ALL_AT_ONCE = 0.02
"""Seconds that changes of many objects are gathered for."""


def boot_of(settings: Settings) -> str:
    """Names this boot of the node: where several nodes share a kernel, the namespace's cookie tells them apart."""
    return settings.boot_id or f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}-{netns_cookie()}"


def flow_sizes(settings: Settings) -> dict[str, int]:
    """Entries of the tables of flows on this node."""
    return conntrack_sizes(conntrack_entries(node_memory(), settings.conntrack_entries))


def make_parts(runtime: Runtime[Settings]) -> Parts:
    """Everything that does not run by itself."""
    settings, bus, log = runtime.settings, runtime.bus, runtime.log
    journal = Journal.open(
        settings.state_dir, node=settings.node, boot=boot_of(settings), cooldown=settings.address_cooldown
    )
    sizes = {**limits_of(settings).first, **flow_sizes(settings)}
    datapath = Datapath.open(settings.pin_root, settings.bpf_cache, filter_pods=not settings.tcx, sizes=sizes)
    courtesy = Courtesy()
    feed, registry = Feed(bus, settings.node), Registry(Bell(courtesy))
    budget = settings.flow_budget or datapath.tables.flows.entries // 8
    enforcer = Enforcer(datapath.tables, feed, registry, log, budget=budget)
    enforcer.limit_flows(datapath.broom)
    enforcer.node_cookie = netns_cookie()
    enforcer.tell = partial(tell_refused, bus, settings.node)
    flags = ConfigFlag.EMIT_FORWARDED if settings.publish_forwarded else ConfigFlag(0)
    datapath.tables.configure(Config(flags=int(flags)))
    return Parts(
        settings=settings,
        bus=bus,
        log=log,
        telemetry=runtime.telemetry,
        feed=feed,
        gate=Gate(feed, log, settings.add_deadline, lambda: enforcer.begun and not datapath.unfilled),
        book=AddressBook(bus, journal, log, settings.node, settings.spare_addresses, Bell(courtesy)),
        registry=registry,
        enforcer=enforcer,
        datapath=datapath,
        thread=NamespaceThread(),
        links=Links(),
        courtesy=courtesy,
    )


async def build(runtime: Runtime[Settings]) -> None:
    """Wires the agent."""
    parts = make_parts(runtime)
    kernel = await parts.thread.run(parts.links.snapshot)
    await _adopt(parts, kernel)
    found = rebuild(parts.book.journal.ledger, kernel)
    parts.registry.fill(found.alive)
    attacher = Attacher(parts)
    attacher.mtu = uplink_mtu(kernel, runtime.settings.uplinks)
    runtime.log.info("endpoints-found", alive=len(found.alive), dead=len(found.dead), mtu=attacher.mtu)
    for attachment in found.dead:
        await attacher.delete(attachment)

    async def let_go() -> None:
        parts.thread.close()
        await parts.book.journal.close()
        parts.datapath.close()

    runtime.on_stop(let_go)  # registered first, so called last: nobody uses the maps or the journal any more
    _start_loops(runtime, parts, attacher)
    tell_doubts(runtime, parts.feed.beliefs, runtime.bus, runtime.settings.node)
    await _start_cni(runtime, parts, attacher)


async def _adopt(parts: Parts, kernel: KernelLinks) -> None:
    """A lost journal is written again from the kernel, before any address is given away."""
    known = {key.ifindex: link.identity for key, link in parts.datapath.tables.links.items().items()}
    for mark, (link, addresses) in orphans(parts.book.journal.ledger, kernel).items():
        ask = Ask(
            container=mark.attachment.container,
            interface=mark.attachment.interface,
            namespace="",
            pod="",
            pod_uid=mark.uid,
            nonce=secrets.token_hex(8),
            identity=known.get(link.index, 0),
            mac=pod_mac(mark.attachment),
        )
        adopted = await parts.book.journal.adopt(ask, addresses)
        parts.log.warning("link-adopted", link=link.name, addresses=[str(a) for a in addresses], outcome=str(adopted))


def _start_loops(runtime: Runtime[Settings], parts: Parts, attacher: Attacher) -> None:
    feed, registry, tables = parts.feed, parts.registry, parts.datapath.tables
    growth = Growth(parts.datapath, parts.thread, limits_of(runtime.settings), runtime.log)
    parts.enforcer.make_room = growth.make_room
    faults = ObjectFaults(runtime.bus, runtime.settings.node, runtime.log)
    parts.enforcer.tell_without = lambda without: faults.tell(faults_of(runtime.settings.node, without))
    peers = _make_peers(runtime, parts, growth)
    datapath = runtime.health.require("datapath")
    outward = runtime.health.require("masquerade")
    keeper = Keeper(parts, datapath, outward, attacher)
    provision = Provision(parts, runtime.health.require("blocks"), (datapath, outward))
    state = Enforcing(runtime, parts, peers)

    async def around(dirty: Dirty) -> Done:
        *others, keys = dirty.by_cursor
        if dirty.full:
            peers.own_addresses = await parts.thread.run(parts.links.own_addresses)
        api_server = feed.concern(keys, EndpointSlice, namespace=APISERVER[0])
        if dirty.full or any(others) or api_server or feed.concern(keys, Node):
            await peers.apply(full=dirty.full)
        state.objects_changed()
        state.acks.poke(full=False)
        return Done()

    def objects() -> list[Cursor]:
        return [feed.objects.cursor()]

    Loop(
        runtime,
        "policy",
        cursors=[feed.rules_view.cursor(), registry.bell.cursor(), feed.identities.cursor()],  # as enforce.IDENTITIES
        apply=state.enforce,
        period=FULL_POLICY,
    )
    whose = [view.cursor() for view in (feed.endpoints, feed.blocks, feed.claims, feed.identities)]
    around_cursors = [*whose, registry.bell.cursor(), *objects()]
    Loop(runtime, "peers", cursors=around_cursors, apply=around, period=FULL_PEERS, debounce=_ALL_AT_ONCE)
    balancer = _start_services(runtime, parts, datapath, growth)
    _start_upgrade(runtime, parts, keeper=keeper, peers=peers, state=state, balancer=balancer)
    end_stale_sockets(runtime, parts, lambda: balancer.seen)
    Loop(runtime, "kernel", cursors=[], apply=keeper.repair)
    Loop(runtime, "masquerade", cursors=objects(), apply=keeper.masquerade, debounce=0.2)
    relabel = Relabel(parts).apply
    Loop(runtime, "identities", cursors=[*objects(), feed.identities.cursor(), feed.rules_view.cursor()], apply=relabel)
    supplies = [*objects(), feed.blocks.cursor(), parts.book.bell.cursor()]
    Loop(runtime, "provision", cursors=supplies, apply=provision.apply, debounce=0.02)
    out = EndpointsOut(runtime.bus, feed, registry, runtime.log)
    Loop(runtime, "endpoints", cursors=[feed.endpoints.cursor(), registry.bell.cursor()], apply=out.apply)
    runtime.spawn("gate", _wake(parts))
    runtime.spawn("reaper", keeper.reap())
    runtime.spawn("conntrack", FlowShares(parts).keep())
    hide_metrics = register(
        tables, registry, lambda: (*balancer.pressure(), *peers.pressure(), *parts.enforcer.pressure())
    )
    _start_flow_events(runtime, parts)
    runtime.on_stop(hide_metrics)


def _start_upgrade(
    runtime: Runtime[Settings], parts: Parts, *, keeper: Keeper, peers: Peers, state: Enforcing, balancer: Balancer
) -> None:
    filled = {
        Source.NODE: lambda: keeper.restored,
        Source.ADDRESSES: lambda: peers.filled,
        Source.POLICY: lambda: state.is_reached,
        Source.SERVICES: lambda: balancer.applied,
    }
    if not (parts.datapath.unfilled or parts.datapath.losses):
        return

    def switched() -> None:
        parts.enforcer.limit_flows(parts.datapath.broom)  # the table may have grown
        parts.gate.wake()

    upgrade = Upgrade(
        parts.datapath,
        parts.thread,
        parts.log,
        runtime.health.require("upgrade"),
        filled=filled,
        tell=runtime.bus.tell_fault,
        switched=switched,
        sizes=flow_sizes(parts.settings),
    )
    Loop(runtime, "upgrade", cursors=[], apply=upgrade.apply)


def _start_flow_events(runtime: Runtime[Settings], parts: Parts) -> None:
    per_second = runtime.settings.flow_events_per_second
    flows = FlowEvents(runtime.bus, parts.feed, parts.registry, parts.enforcer.history, per_second=per_second)
    reader = EventReader(parts.datapath.tables.events_fd, flows.take)
    reader.start()

    async def stop_reader() -> None:
        reader.stop()

    runtime.on_stop(stop_reader)


def _make_peers(runtime: Runtime[Settings], parts: Parts, growth: Growth) -> Peers:
    return Peers(
        parts.datapath.tables,
        parts.feed,
        parts.registry,
        runtime.log,
        make_room=growth.make_room,
        tell=runtime.bus.tell_fault,
        note=runtime.health.note,
    )


def _start_services(runtime: Runtime[Settings], parts: Parts, datapath: Condition, growth: Growth) -> Balancer:
    """Services: their tables, and what load balancers are told of them."""
    feed, registry, settings = parts.feed, parts.registry, parts.settings
    thread = OneThread("services")

    async def end_thread() -> None:
        thread.close()

    runtime.on_stop(end_thread)  # after the loop that gives it work, before the maps are let go of
    balancer = Balancer(
        parts.datapath.tables,
        feed,
        registry,
        parts.log,
        settings.external_ips,
        thread=thread,
        make_room=growth.make_room,
        tell=ObjectFaults(parts.bus, settings.node, parts.log).tell,
        note=runtime.health.note,
    )

    async def balance(dirty: Dirty) -> Done:
        if dirty.full:
            balancer.own_addresses = await parts.thread.run(parts.links.own_addresses)
        wait = await balancer.apply(full=dirty.full)
        if wait:
            asyncio.get_running_loop().call_later(wait, loop.poke, False)
        return Done()

    cursors = [registry.bell.cursor(), feed.objects.cursor()]
    loop = Loop(runtime, "services", cursors=cursors, apply=balance, period=FULL_PEERS, debounce=_ALL_AT_ONCE)
    server = HealthCheckServer(parts.log)
    checks = HealthChecks(
        server,
        feed,
        lambda: datapath.ok and balancer.applied,
        lambda namespace, name: balancer.is_served(("service", namespace, name)),
        settings.proxy_health_port,
    )
    asked = [feed.objects.cursor()]
    Loop(runtime, "health checks", cursors=asked, apply=checks.apply, debounce=_ALL_AT_ONCE)
    runtime.on_stop(server.close)
    return balancer


class Enforcing:
    """The policy loop and what it reports: readiness and the node's acknowledgement."""

    def __init__(self, runtime: Runtime[Settings], parts: Parts, peers: Peers) -> None:
        self._runtime = runtime
        self._parts = parts
        self._peers = peers
        self._out = AckOut(runtime.bus, parts.settings.node)
        self._reached: Revision | None = None
        self._objects = runtime.health.require("objects")
        self._rules = runtime.health.require("rules")
        self.acks = Loop(runtime, "acks", cursors=[], apply=self.acknowledge, period=2.0, debounce=0.02)

    @property
    def is_reached(self) -> bool:
        """Whether the maps have held a compilation whole since this agent started."""
        return self._reached is not None

    async def enforce(self, dirty: Dirty) -> Done:
        """Policy into the maps."""
        begun = self._parts.enforcer.begun
        outcome = await self._parts.enforcer.enforce(dirty)
        if self._parts.enforcer.begun and not begun:
            self._parts.gate.wake()
        if outcome.revision is not None and outcome.revision != self._reached:
            self._reached = outcome.revision
            self.acks.poke(full=False)
        feed = self._parts.feed
        if feed.rules_view.synced and self._reached is not None:
            self._rules.set(True)  # once: what was in sync stays in force
        if not self._rules.ok:
            self._rules.set(False, feed.rules_view.why() or "the policy service has not finished a compilation")
        return Done()

    def objects_changed(self) -> None:
        """Readiness of the view of objects: at its own changes, since it may be in sync long after the last rule."""
        objects = self._parts.feed.objects
        if objects.synced:
            self._objects.set(True)  # once: what was in sync stays in force
        if not self._objects.ok:
            self._objects.set(False, objects.why())

    async def acknowledge(self, _dirty: Dirty) -> Done | Again:
        """What the kernel holds, told to all."""
        if self._reached is None or not self._runtime.bus.connected:
            return Again(after=1.0)
        missing = self._runtime.health.missing()
        await self._out.write(
            self._reached,
            (self._peers.sequence, self._peers.epoch),
            len(self._parts.registry.up),
            ready=not missing,
            now=time.monotonic(),
        )
        return Done()


async def _wake(parts: Parts) -> None:
    """Tells waiting ADDs of every change they may wait for."""
    woken = asyncio.Event()
    cursors = [view.cursor() for view in (parts.feed.objects, parts.feed.rules_view, parts.feed.identities)]
    for cursor in cursors:
        cursor.wakes(woken)
    while True:
        await woken.wait()
        woken.clear()
        for cursor in cursors:
            cursor.take()
        parts.gate.wake()


async def _start_cni(runtime: Runtime[Settings], parts: Parts, attacher: Attacher) -> None:
    verbs = Verbs(attacher, parts, runtime.health.missing)

    def on_bug(error: BaseException) -> None:
        runtime.log.error("cni-bug", bug=True, error=error)

    server = CniServer(runtime.settings.cni_socket, verbs.answer, on_bug)
    await server.start()

    async def stop() -> None:
        verbs.stopping = True
        await server.close()

    runtime.on_stop(stop)
