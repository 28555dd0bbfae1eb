"""Wires BGP into ``routing``: what the objects ask for becomes a speaker, its peers and what it announces.

One loop does all of it. When the agent ends, sessions end as for a restart, and learnt routes stay in the kernel; when
it starts and finds some, it asks its peers for their tables before it decides anything. A node that nobody asks to
speak BGP has no speaker, opens no port, and lets go of what it had learnt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Iterable, Mapping, Set
from dataclasses import replace
from functools import partial
from pathlib import Path

from chassis.bus.cursor import Cursor
from chassis.runtime.reconcile import Again, Dirty, Done, Loop
from chassis.runtime.service import Runtime
from kit.once import Once
from proto.addresses import Block, Claim
from proto.bgp import BgpStatus
from proto.events import BgpSession
from proto.net import Address, Network
from proto.subjects import event_subject
from services.routing.bfd.client import FOLDER
from services.routing.bgp.answers import reported
from services.routing.bgp.detection import Detection
from services.routing.bgp.mirror import Mirror
from services.routing.bgp.router import Reports, Router
from services.routing.bgp.session import PeerState
from services.routing.bgp.sockets import Opener, tcp_socket, tcp_socket_in
from services.routing.bgp.speaker import Speaker
from services.routing.bgp.status import StatusReporter
from services.routing.bgp.traces import Traces
from services.routing.core.bgp.announced import Held, announced
from services.routing.core.bgp.configuration import LOG_LEVELS, configuration
from services.routing.core.bgp.make_before_break import DEADLINE, Handover
from services.routing.core.bgp.next_hops import Ways, links_of, own_next_hops, static_routes, ways_of
from services.routing.core.bgp.peers import Peer
from services.routing.core.bgp.reports import STATES
from services.routing.core.bgp.resources import Objects, Peering, addresses_of, peering
from services.routing.core.bgp.rib.tables import PrefixLimit
from services.routing.core.bgp.session.reasons import Reason
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.status import Spoken, status
from services.routing.core.bgp.values import Attributes, Family, Prefix
from services.routing.core.faults import Fault
from services.routing.core.fib import Kind, Snapshot
from services.routing.core.learnt import METRIC, without_number
from services.routing.core.models.wireguard import prohibited
from services.routing.learnt import LearntRoutes, Pass
from services.routing.mirror import Mirror as Buckets
from services.routing.settings import Settings

PERIOD = 4.0
"""Seconds between full passes: what somebody takes away of learnt routes is back within five."""
RESTART = 120.0
"""Seconds after a start in which peers are asked for their tables before anything is decided (RFC 4724 4.1)."""
SOON = 0.1


class Bgp:
    """``apply`` is the body of the loop ``bgp``."""

    def __init__(
        self,
        runtime: Runtime[Settings],
        buckets: Buckets,
        learnt: LearntRoutes,
        kernel: Callable[[], Snapshot],
        encrypted: Callable[[], Set[int]],
        settled: Callable[[], None],
        *,
        namespace: Path | None = None,
        opener: Opener | None = None,
    ) -> None:
        """``kernel``: as of the last pass of the loop ``routes``; ``encrypted``: families whose packets must be, so
        that no learnt route leads to a pool of theirs; ``settled``: other routes than before are in the kernel;
        ``namespace``: a network namespace other than the process' own; ``opener``: what makes sockets, if not that one.
        """
        self._encrypted = encrypted
        self._settled = settled
        self._followed: tuple[Set[int], Ways] = (frozenset(), Ways())
        self._runtime = runtime
        self._log = runtime.log.bind()
        """Its threshold is BGP's own."""
        self._node = runtime.settings.node
        self._mirror = Mirror(runtime.bus, self._node, runtime.settings.bgp_passwords)
        self._buckets = buckets
        self._learnt = learnt
        self._kernel = kernel
        self._opener = opener or (partial(tcp_socket_in, namespace) if namespace is not None else tcp_socket)
        self._once: Once[Fault] = Once()
        self._peering = Peering()
        self._known = False
        """The objects were whole once."""
        self.passed = Pass()
        """What became of learnt routes at last."""
        self._handover = Handover()
        self._booted = self._configured = int(time.time())
        """When the agent started, and when what is asked for changed last, in Unix seconds."""
        self._families: tuple[int, ...] = ()
        """Of this node's addresses."""
        self._services_changed = False
        self._traces = Traces(runtime.telemetry)
        self.router: Router | None = None
        """None while nobody asks for a speaker."""
        self.faults: tuple[Fault, ...] = ()
        """What the objects ask for and this node cannot do."""
        self._detection = Detection(
            runtime.settings.state_dir / FOLDER, self._log, lambda: self.router, learnt, namespace=namespace
        )
        runtime.spawn("bfd", self._detection.bfd.run())
        runtime.spawn("bgp failures", self._detection.run())
        runtime.spawn("bgp status", StatusReporter(runtime.bus, self._node, self.status).run())
        views = (self._mirror.objects, buckets.blocks, buckets.claims)
        cursors = [view.cursor() for view in views]
        self._loop = Loop(runtime, "bgp", cursors=cursors, apply=self.apply, period=PERIOD)
        runtime.on_stop(self._close)

    async def apply(self, dirty: Dirty) -> Done | Again:
        """One pass; raises KernelFault."""
        if self._kernel() == Snapshot():
            return Again(SOON, full=dirty.full)  # nobody has looked yet
        followed = self._encrypted(), ways_of(self._kernel(), self._peering.gateways)
        full = dirty.full or followed != self._followed  # of a link that was lost the kernel takes the routes away
        if full or dirty.keys or self._services_changed or self._handover.staying:
            self._services_changed, self._followed = False, followed
            if (objects := self._mirror.look()) is not None:
                self._known = True
                await self._follow(objects)
        if not self._known:
            return Done()
        listener = self.router.speaker.listener.faults if self.router is not None else {}
        of_listener = _of_listener(listener, self._node)
        of_routes = without_number(self.passed.crowded, self._node)
        of_mesh = self._handover.faults(time.monotonic())
        self._report((*self._peering.faults, *of_listener, *of_routes, *of_mesh, *self._detection.faults()))
        if self.router is not None:
            self._traces.begin(self.router)
            await self._traces.work(self.router)
        with self._traces.installing() as span:
            self.passed = passed = await self._learnt.apply(full=full, occupied=_occupied(self._kernel()))
            if span is not None:
                span.set(airmesh__changed=passed.written)
        if self.router is not None:
            self._traces.end(self.router)
        if passed.written:
            self._log.debug("bgp-routes", written=passed.written, drift=passed.drift, refused=passed.refused)
            self._settled()
        deadline = self.router.deadline if self.router is not None else None
        now = asyncio.get_running_loop().time()
        return Again(max(deadline - now, SOON), full=False) if deadline is not None else Done()

    def leads_to(self) -> Callable[[Network], bool] | None:
        """Whether a learnt route in the kernel leads to a prefix; None: this node does not speak BGP."""
        return self._learnt.leads_to if self.router is not None else None

    def status(self) -> BgpStatus:
        """What is told where a CalicoNodeStatus asks for it."""
        spoken = self._spoken(self.router) if self.router is not None else None
        return status(self._node, self._families, spoken, booted=self._booted, configured=self._configured)

    def _spoken(self, router: Router) -> Spoken | None:
        def forwarding(family: Family, prefix: Prefix) -> bool:
            return bool(self._learnt.hops(family, prefix)) and prefix not in self._learnt.refused(family)

        if router.identity is None:
            return None
        return Spoken(
            router_id=router.identity.router_id,
            sessions=reported(router),
            peers=router.peers,
            tables=router.rib,
            forwarding=forwarding,
        )

    def poke(self, *, full: bool = False) -> None:
        """The kernel's links or routes changed; ``full``: learnt ones, by somebody else."""
        self._loop.poke(full=full)

    async def _follow(self, objects: Objects) -> None:
        """Be what the objects ask for."""
        found, suspended = self._made_before_break(objects)
        if (found.speaker, found.peers) != (self._peering.speaker, self._peering.peers):
            self._configured = int(time.time())
        self._peering = found
        node = objects.nodes.get(self._node)
        self._families = tuple(addresses_of(node)) if node is not None else ()
        severity = found.speaker.log_severity if found.speaker is not None else None
        self._log.threshold = LOG_LEVELS[severity] if severity is not None else self._runtime.log.threshold
        if found.speaker is None:
            self._end()
            return
        wanted = self._announced(objects)
        if self.router is None:
            if wanted is None:
                return  # peers that kept this node's routes over a restart would take an empty table for all of them
            self.router = await self._begin()
        kernel, addresses = self._kernel(), addresses_of(objects.nodes[self._node])
        links = links_of(kernel, found.gateways)
        peers = [replace(peer, session=links.bound(peer.session)) for peer in found.peers]
        next_hops = {peer.name: own_next_hops(peer.session, kernel, addresses) for peer in peers}
        self._detection.follow(peers, links)
        own = {one.ip for one in kernel.loopback.addresses} if kernel.loopback is not None else set()
        self._learnt.prefer({version: one for version, one in addresses.items() if one in own})
        self.router.find_ways(links.ways)
        static, of_gateways = static_routes(peers, found.gateways, links.ways)
        self._learnt.set_static(static)
        self._peering = replace(found, faults=(*found.faults, *of_gateways))
        if wanted is not None:
            self.router.announce(wanted)
        if (before := self.router.identity) is not None and before.leaving != found.speaker.leaving:
            self._log.info("bgp-leaving" if found.speaker.leaving else "bgp-stays")
        unprogrammed = (*found.unprogrammed, *self._secret(objects))
        self.router.follow(
            found.speaker, peers, addresses, next_hops=next_hops, unprogrammed=unprogrammed, suspended=suspended
        )

    def _made_before_break(self, objects: Objects) -> tuple[Peering, frozenset[str]]:
        """What the objects ask for, with sessions of the mesh that stay; and those that end now, if they are held."""
        asked = peering(objects)
        if self.router is None or asked.speaker is None:
            self._handover = Handover()
            return asked, frozenset()
        names = {peer.name for peer in asked.peers}
        held = {name for name, peer in self.router.peers.items() if peer.in_mesh}
        left = peering(objects, held).peers if held - names else ()
        going = {peer.name: _kept(self.router, peer) for peer in left if peer.name not in names}
        before, now = self._handover, time.monotonic()
        self._handover = before.after(going, self.router.rib, _pairs_routes(self._kernel()) if going else (), now)
        staying = self._handover.staying
        for name, one in staying.items():
            if name not in before.staying or one.needed != before.staying[name].needed:
                self._log.info("bgp-mesh-stays", peer=name, lacks=str(one.network or ""))
        for name in before.staying.keys() & going.keys() - staying.keys():
            self._log.info("bgp-mesh-ends", peer=name)
        return (peering(objects, staying) if staying else asked), frozenset(going.keys() - staying.keys())

    def _secret(self, objects: Objects) -> Iterable[Network]:
        """Ranges to which packets go encrypted or not at all."""
        blocks = (one.value.cidr for one in self._buckets.blocks.entries.values() if isinstance(one.value, Block))
        return prohibited([pool.cidr for pool in objects.pools], blocks, self._followed[0])

    async def _begin(self) -> Router:
        """A speaker, which takes over the routes that the kernel has of an earlier one."""
        await self._learnt.apply(full=True, occupied=_occupied(self._kernel()))
        restarted = self._learnt.any_seen
        until = asyncio.get_running_loop().time() + RESTART if restarted else None
        self._log.info("bgp-begun", restarted=restarted)

        def speaker(owner: Router) -> Speaker:
            return Speaker(owner, opener=self._opener, restarting_until=until, preserved=restarted)

        reports = Reports(changed=self._changed, limited=self._limited, unwritable=self._unwritable)
        return Router(self._learnt, reports, self.poke, speaker=speaker)

    def _end(self) -> None:
        """Nobody asks for a speaker: peers are told, and what was learnt goes."""
        self._detection.follow((), links_of(Snapshot()))
        if self.router is not None:
            self.router.leave()
            self.router = None
        self._learnt.set_static({})
        for family in Family:
            self._learnt.complete(family)

    def _announced(self, objects: Objects) -> Mapping[Network, Attributes] | None:
        """What this node announces; None while blocks, claims or Services are not whole: then as before."""
        configured = configuration(objects.configurations, self._node)
        buckets = self._buckets
        if configured.service_ranges:
            self._follow_services()
        services = self._mirror.look_at_services() if configured.service_ranges else ((), ())
        if services is None or not (buckets.blocks.synced and buckets.claims.synced):
            return None
        held = Held(
            blocks=tuple(one.value for one in buckets.blocks.entries.values() if isinstance(one.value, Block)),
            claims=tuple(one.value for one in buckets.claims.entries.values() if isinstance(one.value, Claim)),
            pools=objects.pools,
            services=services[0],
            slices=services[1],
        )
        return announced(objects.nodes[self._node], held, configured)

    def _follow_services(self) -> None:
        if self._mirror.services is None:
            cursor = self._mirror.follow_services().cursor()
            self._runtime.spawn("bgp services", self._watch(cursor))

    async def _watch(self, services: Cursor) -> None:
        woken = asyncio.Event()
        services.wakes(woken)
        while True:
            await woken.wait()
            woken.clear()
            services.take()
            self._services_changed = True
            self.poke()

    def _report(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        for fault in self._once.take(faults, time.monotonic()):
            self._log.warning("fault", fault=fault.fault, remedy=fault.remedy)
            self._runtime.bus.report_fault(fault.fault, fault.remedy, self._node)

    def _changed(self, name: str, state: PeerState) -> None:
        if state.state is State.ESTABLISHED:
            self._detection.established(name)
        why, remedy = (state.fault.text, state.fault.remedy) if state.fault is not None else ("", "")
        said = BgpSession(self._node, name, STATES[state.state], why, remedy)
        self._log.info("bgp-session", peer=name, state=said.state, why=why)
        self._runtime.bus.publish(event_subject("routing", "bgp"), said)

    def _limited(self, limit: PrefixLimit) -> None:
        what = "which ended the session" if limit.exceeded else "which is near the bound"
        self._log.warning(
            "bgp-prefixes", peer=limit.peer, family=limit.family.name, count=limit.count, most=limit.most, what=what
        )

    def _unwritable(self, name: str, why: str) -> None:
        self._log.warning("bgp-unwritable", peer=name, why=why)

    async def _close(self) -> None:
        if self.router is not None:
            self.router.close()


def _kept(router: Router, peer: Peer) -> float:
    """Seconds for which a peer keeps this node's routes if their session ends; one without has none to lose."""
    return peer.session.restart_seconds if router.speaker.is_established(peer.name) else DEADLINE


def _of_listener(faults: Mapping[Address, Reason], node: str) -> Iterable[Fault]:
    """Why peers' connections are not taken at an address."""
    return (Fault(one.text, one.remedy, about=("Node", node)) for _, one in sorted(faults.items(), key=str))


def _pairs_routes(kernel: Snapshot) -> Container[Network]:
    """Prefixes that pairs of nodes have routes of their own to."""
    return {route.destination for route in kernel.routes if route.is_ours and route.kind is Kind.UNICAST}


def _occupied(kernel: Snapshot) -> Iterable[Network]:
    """Destinations at which somebody else's route has the metric of learnt ones."""
    return (route.destination for route in kernel.routes if route.metric == METRIC)
