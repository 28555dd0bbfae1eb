"""The dataplane agent of a node: its parts made in order, and the loops that keep them true. Nothing else.

Order of a start: journal, datapath (programs and maps as pinned), links as the kernel has them, endpoints of both;
views; loops; last the CNI socket. Nothing waits for NATS. A restart takes nothing down: what runs in the kernel runs
on.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chassis.faults import SettingsFault
from chassis.runtime.service import Runtime
from chassis.telemetry.health import Condition
from kit.models import pod_mtu
from kit.tunnels import is_tunnel_name
from linux.netns import netns_cookie
from services.dataplane.cni.start import announcer
from services.dataplane.cni.start import start as start_cni
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.conntrack.start import start as start_conntrack
from services.dataplane.core.datapath.pins import Source
from services.dataplane.core.doctor.masquerade import Denials
from services.dataplane.core.endpoint.links import KernelLinks, pod_mac
from services.dataplane.core.ipam.journal import Ask
from services.dataplane.datapath.growth import Growth, limits_of
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.start import open_datapath
from services.dataplane.datapath.start import start as start_upgrade
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.doctor.affinity import start as start_affinity_doctor
from services.dataplane.doctor.backlogs import start as start_backlog_doctor
from services.dataplane.doctor.host import start as start_host_doctor
from services.dataplane.doctor.masquerade import start as start_masquerade_doctor
from services.dataplane.doctor.probes import start as start_probes
from services.dataplane.doctor.resolvers import start as start_resolver_doctor
from services.dataplane.doctor.retransmits import start as start_retransmit_doctor
from services.dataplane.doctor.services import start as start_service_doctor
from services.dataplane.doctor.start import start as start_doctor
from services.dataplane.doctor.throttling import start as start_throttling_doctor
from services.dataplane.egress.start import start as start_egress
from services.dataplane.endpoint.admission import AdmissionWait
from services.dataplane.endpoint.attach import Attacher
from services.dataplane.endpoint.kernel import EndpointKernel
from services.dataplane.endpoint.links import Links
from services.dataplane.endpoint.reaper import Reaper
from services.dataplane.endpoint.reconciler import Reconciler, models_of_pools, uplink_mtus
from services.dataplane.endpoint.registry import Registry, orphans, rebuild
from services.dataplane.endpoint.relabel import Relabel
from services.dataplane.endpoint.start import start as start_endpoints
from services.dataplane.endpoint.start import start_acks
from services.dataplane.feed import Feed
from services.dataplane.gateway import build_gateway
from services.dataplane.ipam.addresses import AddressBook
from services.dataplane.ipam.journal import Journal
from services.dataplane.ipam.start import start as start_ipam
from services.dataplane.ipcache.peers import Peers
from services.dataplane.ipcache.start import start as start_ipcache
from services.dataplane.loadbalancer.balance import Balancer
from services.dataplane.loadbalancer.start import start as start_services
from services.dataplane.loadbalancer.start import start_stale_sockets
from services.dataplane.monitor.dns import start as start_dns
from services.dataplane.monitor.object_faults import ObjectFaults
from services.dataplane.monitor.start import start as start_monitor
from services.dataplane.policy.enforce import Enforcer
from services.dataplane.policy.refused import faults_of, report_refused
from services.dataplane.policy.start import PolicyLoop
from services.dataplane.policy.start import start as start_policy
from services.dataplane.settings import Settings
from services.dataplane.signals import CallPriority, Signal
from services.dataplane.tunnel.encryption import remembered_flags
from services.dataplane.tunnel.reconciler import TunnelReconciler
from services.dataplane.tunnel.start import make as make_tunnels
from services.dataplane.tunnel.start import start as start_tunnels


def boot_of(settings: Settings) -> str:
    """Names this boot of the node: where several nodes share a kernel, the namespace's cookie tells them apart."""
    return settings.boot_id or f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}-{netns_cookie()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What the wiring below shares out; no part sees it."""

    datapath: Datapath
    feed: Feed
    registry: Registry
    enforcer: Enforcer
    admission: AdmissionWait
    book: AddressBook
    priority: CallPriority
    collector: FlowCollector
    tunnels: TunnelReconciler


def _make(runtime: Runtime[Settings]) -> _Made:
    """Everything that does not run by itself."""
    settings, bus, log = runtime.settings, runtime.bus, runtime.log
    journal = Journal.open(
        settings.state_dir, node=settings.node, boot=boot_of(settings), cooldown=settings.address_cooldown
    )
    datapath, priority = open_datapath(settings, remembered_flags(settings.state_dir)), CallPriority()
    feed, registry = Feed(bus, settings.node), Registry(Signal(priority))
    enforcer, collector = make_enforcer(runtime, datapath, feed, registry), FlowCollector(datapath)
    enforcer.limit_flows(collector)
    tunnels = make_tunnels(runtime, datapath, feed)

    def is_in_force() -> bool:
        return enforcer.begun and not datapath.unfilled and tunnels.is_encryption_known

    return _Made(
        datapath=datapath,
        feed=feed,
        registry=registry,
        enforcer=enforcer,
        admission=AdmissionWait(feed, log, settings.add_deadline, is_in_force),
        book=AddressBook(bus, journal, log, settings.node, settings.spare_addresses, feed.supply, Signal(priority)),
        priority=priority,
        collector=collector,
        tunnels=tunnels,
    )


async def build(runtime: Runtime[Settings]) -> None:
    """Wires the agent of a node, or of a gateway."""
    if wrong := [name for name in runtime.settings.uplinks if is_tunnel_name(name)]:
        remedy = "name the interfaces that lead to other nodes; tunnels are found by themselves"
        raise SettingsFault("AIRMESH_UPLINKS", ",".join(wrong), remedy)
    if runtime.settings.gateway:
        build_gateway(runtime)
        return
    made = _make(runtime)
    journal, thread, links = made.book.journal, NamespaceThread(), Links(runtime.settings.sysctl_root)
    seen = await thread.run(links.snapshot)
    await _adopt(runtime, made.datapath, journal, seen)
    mtu = pod_mtu(uplink_mtus(seen, runtime.settings.uplinks), ())
    kernel = EndpointKernel(
        links=links,
        thread=thread,
        datapath=made.datapath,
        mtu=mtu,
        models=partial(models_of_pools, made.feed),
        sizes=made.feed.model_settings,
    )
    reaper = Reaper(links, thread, made.collector, runtime.log, runtime.bus.report_fault)
    attacher = Attacher(
        runtime,
        kernel,
        feed=made.feed,
        admission=made.admission,
        book=made.book,
        registry=made.registry,
        enforcer=made.enforcer,
        reaper=reaper,
    )
    found = rebuild(journal.ledger, seen)
    made.registry.fill(found.alive)
    runtime.log.info("endpoints-found", alive=len(found.alive), dead=len(found.dead), mtu=mtu)
    for attachment in found.dead:
        await attacher.delete(attachment)

    async def let_go() -> None:
        thread.close()
        await journal.close()
        made.datapath.close()

    runtime.on_stop(let_go)  # registered first, so called last: nobody uses the maps or the journal any more
    peers = _start(runtime, made, kernel, reaper, attacher)
    measured = await start_dns(runtime, made.datapath.tables, made.registry)
    start_resolver_doctor(runtime, made.feed, made.registry, measured)
    start_retransmit_doctor(runtime, made.feed, made.registry)
    await start_probes(
        runtime,
        made.datapath,
        made.feed,
        endpoints=made.registry,
        history=made.enforcer.history,
        endpoint_at=peers.endpoint_at,
    )
    await start_cni(runtime, attacher, journal, made.priority)


def _start(
    runtime: Runtime[Settings], made: _Made, kernel: EndpointKernel, reaper: Reaper, attacher: Attacher
) -> Peers:
    """The loops of each folder; returns who knows whose an address is."""
    feed, registry, enforcer, admission = made.feed, made.registry, made.enforcer, made.admission
    tables, health = made.datapath.tables, runtime.health
    growth = Growth(made.datapath, kernel.thread, limits_of(runtime.settings), runtime.log)
    enforcer.make_room = growth.make_room
    programs, outward = health.require("datapath"), health.require("masquerade")
    objects = health.require("objects")

    def peers_passed() -> None:
        # At the changes of this view itself: it may be in sync long after the last rule. Later, what is here stays.
        objects.latch(feed.objects.synced, feed.objects.why())
        acks.poke(full=False)

    acks = start_acks(runtime, registry, lambda: policy.reached, lambda: (peers.sequence, peers.epoch))
    policy = start_policy(
        runtime, enforcer, feed, registry.signal, begun=admission.wake, reached=lambda: acks.poke(full=False)
    )
    peers = start_ipcache(
        runtime,
        tables,
        growth,
        feed=feed,
        endpoints=registry,
        signal=registry.signal,
        own_addresses=kernel.own_addresses,
        passed=peers_passed,
    )
    balancer = start_services(
        runtime,
        tables,
        growth,
        feed=feed,
        endpoints=registry,
        signal=registry.signal,
        own_addresses=kernel.own_addresses,
        datapath=programs,
    )
    reconciler = _start_endpoints(runtime, made, kernel, reaper, attacher, programs)
    start_tunnels(runtime, made.tunnels, feed)
    _start_upgrade(runtime, made, kernel.thread, reconciler=reconciler, peers=peers, policy=policy, balancer=balancer)
    start_stale_sockets(runtime, tables, balancer, feed=feed, endpoints=registry, node_cookie=enforcer.node_cookie)
    # Pods may start when masquerade is there: the runtime's configuration waits for it.
    start_egress(runtime, feed, outward, lambda: made.book.signal.notify("masquerade"))
    denials = _start_doctors(runtime, made)
    start_ipam(runtime, feed, made.book, health.require("blocks"), announcer(runtime, programs, outward))
    start_conntrack(runtime, tables, made.collector, registry)
    start_monitor(
        runtime,
        tables,
        feed=feed,
        endpoints=registry,
        history=enforcer.history,
        endpoint_at=peers.endpoint_at,
        pressure=lambda: (*balancer.pressure(), *peers.pressure(), *enforcer.pressure()),
        also=denials.take,
    )
    return peers


def _start_doctors(runtime: Runtime[Settings], made: _Made) -> Denials:
    """What the agent looks at when it is asked what is wrong; returns who has to hear of the programs' events."""
    feed, tables, registry = made.feed, made.datapath.tables, made.registry
    start_host_doctor(runtime, feed, tables, registry)
    start_service_doctor(runtime, feed)
    start_affinity_doctor(runtime, feed, tables)
    start_backlog_doctor(runtime, feed, registry)
    start_throttling_doctor(runtime, feed, registry)
    start_doctor(runtime, feed, tables, registry)
    return start_masquerade_doctor(runtime, feed, registry)


def _start_endpoints(
    runtime: Runtime[Settings],
    made: _Made,
    kernel: EndpointKernel,
    reaper: Reaper,
    attacher: Attacher,
    programs: Condition,
) -> Reconciler:
    reconciler = Reconciler(
        runtime,
        kernel,
        programs,
        registry=made.registry,
        enforcer=made.enforcer,
        collector=made.collector,
        reaper=reaper,
        undo=attacher.delete,
    )
    relabel = Relabel(made.feed, made.admission, made.registry, made.book.journal, made.enforcer, runtime)
    start_endpoints(
        runtime,
        made.feed,
        made.registry,
        admission=made.admission,
        reconciler=reconciler,
        reaper=reaper,
        relabel=relabel,
        published=made.book.observe_published,
    )
    return reconciler


def _start_upgrade(
    runtime: Runtime[Settings],
    made: _Made,
    thread: NamespaceThread,
    *,
    reconciler: Reconciler,
    peers: Peers,
    policy: PolicyLoop,
    balancer: Balancer,
) -> None:
    def switched() -> None:
        made.enforcer.limit_flows(made.collector)  # the table may have grown
        made.admission.wake()

    filled = {
        Source.NODE: lambda: reconciler.restored,
        Source.ADDRESSES: lambda: peers.filled,
        Source.POLICY: lambda: policy.reached is not None,
        Source.SERVICES: lambda: balancer.applied,
        Source.TUNNELS: lambda: made.tunnels.filled,
    }
    start_upgrade(runtime, made.datapath, thread, filled=filled, switched=switched)


def make_enforcer(runtime: Runtime[Settings], datapath: Datapath, feed: Feed, registry: Registry) -> Enforcer:
    """Policy's writer, which tells what it cannot hold."""
    settings, bus = runtime.settings, runtime.bus
    budget = settings.flow_budget or datapath.tables.flows.entries // 8
    enforcer = Enforcer(datapath.tables, feed, registry, runtime.log, budget=budget)
    enforcer.node_cookie = netns_cookie()
    enforcer.report = partial(report_refused, bus, settings.node)
    faults = ObjectFaults(bus, settings.node, runtime.log)
    enforcer.report_without = lambda without: faults.report(faults_of(settings.node, without))
    return enforcer


async def _adopt(runtime: Runtime[Settings], datapath: Datapath, journal: Journal, kernel: KernelLinks) -> None:
    """A lost journal is written again from the kernel, before any address is given away."""
    known = {key.ifindex: link.identity for key, link in datapath.tables.links.items().items()}
    for mark, (link, addresses) in orphans(journal.ledger, kernel).items():
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
        adopted = await journal.adopt(ask, addresses)
        runtime.log.warning("link-adopted", link=link.name, addresses=[str(a) for a in addresses], outcome=str(adopted))
