"""Answers how this node's programs judge the packets of a connection: a dry run on its own pods' links and uplinks.

Owns ``$SRV.PROBES`` of this node: who is asked about by address is looked up among the pods that live here, packets
are made and judged by ``core.doctor.probes``. One question at a time, in a thread beside the loop, in the node's
network namespace; the programs of the dry run are kept for :data:`IDLE` seconds. The destination's socket is looked at,
in its pod's namespace, and not spoken to.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from chassis.runtime.service import Runtime
from linux import rtnl
from linux.netlink import Netlink, NetlinkRefused
from linux.netns import NotANamespace, by_cookie, inside
from linux.sock_diag import listening_sockets
from proto.addresses import Endpoint
from proto.net import Address
from proto.probes import (
    MAX_BACKENDS,
    MAX_FRAME,
    MAX_PROBES,
    MAX_STEPS,
    Listener,
    Probe,
    ProbeAnswer,
    ProbeHop,
    ProbeRequest,
    ProbeResult,
    ProbeStep,
    ServiceChoice,
)
from proto.subjects import PROBES
from services.dataplane.core.datapath.layout import CookieKey, UplinkFlag
from services.dataplane.core.datapath.service_layout import BackendKey, ServiceKey
from services.dataplane.core.datapath.tunnel_layout import Tunnel
from services.dataplane.core.doctor import probes
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint, LocalEndpoints
from services.dataplane.core.endpoint.links import HOST_MAC
from services.dataplane.core.monitor.flows import Interpreter
from services.dataplane.core.policy.history import PolicyHistory
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.tables import Tables
from services.dataplane.doctor.dry_run import FROM_POD, FROM_WIRE, DryRun
from services.dataplane.doctor.start import listeners
from services.dataplane.feed import Feed
from services.dataplane.monitor.flow_events import names_now
from services.dataplane.settings import Settings

IDLE = 30.0
"""Seconds that the programs of the dry run are kept after a question: a path takes several."""
_LEADS = (rtnl.UNICAST, rtnl.LOCAL)
"""By a route of another type a packet goes nowhere."""
_LEAST_FRAME = 34
"""Bytes of an Ethernet and an IPv4 header."""


class CannotProbe(Exception):
    """A probe has no answer here; says why in one sentence."""


@dataclass(slots=True, kw_only=True)
class Node:
    """What one question is answered from: this node at that moment."""

    tables: Tables
    interpreter: Interpreter
    pods: Mapping[Address, LocalEndpoint]
    tunnels: Mapping[int, Tunnel]
    devices: Mapping[int, str] = field(default_factory=lambda: dict(socket.if_nameindex()))

    def name_of(self, address: Address) -> str:
        """Of the pod that lives here, else what this node's agent calls the address."""
        if (one := self.pods.get(address)) is not None:
            return f"{one.first.namespace}/{one.first.pod}"
        return self.interpreter.names.of(address, 0)

    def pod(self, address: Address) -> LocalEndpoint:
        """Raises CannotProbe."""
        if (found := self.pods.get(address)) is None:
            node = self.interpreter.node
            raise CannotProbe(f"no pod of node {node} has {address}: it is gone, or its agent has not taken it up yet")
        return found


class ProbeDoctor:
    """The answers of one node."""

    def __init__(
        self,
        datapath: Datapath,
        feed: Feed,
        endpoints: LocalEndpoints,
        history: PolicyHistory,
        endpoint_at: Callable[[Address], Endpoint | None],
    ) -> None:
        self._datapath = datapath
        self._feed = feed
        self._endpoints = endpoints
        self._history = history
        self._endpoint_at = endpoint_at
        self._dry: DryRun | None = None
        self._held = threading.RLock()
        """While a dry run is under way or ends: a stop must not close its maps beneath it."""
        self._idle: asyncio.TimerHandle | None = None

    async def answer(self, asked: ProbeRequest) -> ProbeAnswer | None:
        """None when another node is asked. Nothing is waited for but the kernel."""
        if asked.node != self._feed.node:
            return None
        if len(asked.probes) > MAX_PROBES:
            return self._refused(asked, f"{len(asked.probes)} probes in one question: ask about {MAX_PROBES} at most")
        if self._datapath.unfilled:
            return self._refused(asked, f"node {asked.node} is being upgraded: ask again in a moment")
        if self._idle is not None:
            self._idle.cancel()
        names = names_now(self._feed, self._endpoints, self._endpoint_at)
        interpreter = Interpreter(node=asked.node, names=names, policies=self._history.names, wall_offset=0)
        pods = {address: one for one in self._endpoints.up.values() for address in one.addresses}
        try:
            results = await asyncio.to_thread(self._run, asked, interpreter, pods)
        except OSError as error:
            return self._refused(asked, f"the kernel of node {asked.node} refuses the dry run: {error}")
        finally:
            self._idle = asyncio.get_running_loop().call_later(IDLE, self.close)
        return ProbeAnswer(node=asked.node, results=results)

    def _refused(self, asked: ProbeRequest, why: str) -> ProbeAnswer:
        return ProbeAnswer(node=asked.node, results=(ProbeResult(refused=why),) * min(len(asked.probes), MAX_PROBES))

    def _run(
        self, asked: ProbeRequest, interpreter: Interpreter, pods: Mapping[Address, LocalEndpoint]
    ) -> tuple[ProbeResult, ...]:
        with self._held:
            return self._results(asked, interpreter, pods)

    def _results(
        self, asked: ProbeRequest, interpreter: Interpreter, pods: Mapping[Address, LocalEndpoint]
    ) -> tuple[ProbeResult, ...]:
        tables = self._datapath.tables
        tunnels = {key.ifindex: tunnel for key, tunnel in tables.tunnels.items().items()}
        node = Node(tables=tables, interpreter=interpreter, pods=pods, tunnels=tunnels)
        if self._dry is None or not self._dry.is_of(self._datapath):
            self.close()
            self._dry = DryRun.open(self._datapath)
        dry = self._dry
        return tuple(result(node, dry, probe) for probe in asked.probes)

    def close(self) -> None:
        """Lets go of the programs of the dry run, once nothing is run on them any more."""
        with self._held:
            if self._dry is not None:
                self._dry.close()
                self._dry = None


def result(node: Node, dry: DryRun, probe: Probe) -> ProbeResult:
    """One probe, step by step, until a packet does not go on. Blocking."""
    flow = probes.Flow(
        source=probe.source,
        destination=probe.destination,
        source_port=probe.source_port,
        port=probe.port,
        protocol=probe.protocol,
    )
    hops: list[ProbeHop] = []
    try:
        _check(flow, probe)
        begins = bool(probe.steps) and probe.steps[0].way == "leaves" and not probe.steps[0].is_reply
        if begins and (choice := chosen(node, flow)) is not None:
            return ProbeResult(service=choice)
        dry.begin(node.pods[one].index for one in (flow.source, flow.destination) if one in node.pods)
        for step in probe.steps:
            hops.append(_step(node, dry, flow, step))
            if hops[-1].outcome == "dropped":
                break
    except CannotProbe as refused:
        return ProbeResult(hops=tuple(hops), refused=str(refused))
    local = node.pods.get(flow.destination)
    return ProbeResult(hops=tuple(hops), listener=listener_of(local, flow) if local is not None else None)


def _check(flow: probes.Flow, probe: Probe) -> None:
    if why := probes.check_flow(flow):
        raise CannotProbe(why)
    if len(probe.steps) > MAX_STEPS:
        raise CannotProbe(f"{len(probe.steps)} steps in one probe: at most {MAX_STEPS}")
    sizes = [len(step.frame) for step in probe.steps if step.way == "arrives"]
    if any(not _LEAST_FRAME <= size <= MAX_FRAME for size in sizes):
        raise CannotProbe(f"a frame that arrives must have {_LEAST_FRAME} to {MAX_FRAME} bytes")


def chosen(node: Node, flow: probes.Flow) -> ServiceChoice | None:
    """What the socket programs make of a connect to this address; None: they leave it as it is. Read from their maps,
    since the kernel runs no test of a cgroup's program.
    """
    key = ServiceKey(address=flow.destination, port=flow.port, protocol=flow.protocol)
    service = node.tables.services.get(key)
    if service is None:
        return None
    cookie = CookieKey(cookie=node.pod(flow.source).cookie)
    keys = [BackendKey(service=service.number, index=one) for one in range(min(service.backends, MAX_BACKENDS))]
    found = [backend for key in keys if (backend := node.tables.backends.get(key)) is not None]
    return ServiceChoice(
        backends=tuple((one.address, one.port) for one in found),
        count=service.backends,
        affinity_seconds=service.affinity_seconds,
        translated=node.tables.cookies.get(cookie) is not None,
    )


def _step(node: Node, dry: DryRun, flow: probes.Flow, step: ProbeStep) -> ProbeHop:
    sender, receiver = (flow.destination, flow.source) if step.is_reply else (flow.source, flow.destination)
    if step.way == "leaves":
        pod = node.pod(sender)
        frame = probes.packet(flow, is_reply=step.is_reply, source_mac=pod.mac, destination_mac=HOST_MAC)
        program, index = FROM_POD, pod.index
    else:
        index, mac = _uplink(node, step.frame)
        frame, program = probes.received(step.frame, mac), FROM_WIRE
    ran = dry.run(program, frame, index, decrypted=step.decrypted)
    names = node.name_of(sender), node.name_of(receiver)
    return probes.hop(
        step,
        program,
        ran,
        judged=probes.judgements(ran, [node.interpreter.read(event) for event in ran.events], names),
        delivers_to=(node.pods[receiver].mac,) if receiver in node.pods else (),
        routed=route_to(receiver),
        tunnels=node.tunnels,
        devices=node.devices,
    )


def _uplink(node: Node, frame: bytes) -> tuple[int, bytes]:
    """The uplink by which this frame would come, and its MAC address: that of the route to its sender, else the first.
    Raises CannotProbe.
    """
    uplinks = sorted(
        key.ifindex for key, one in node.tables.uplinks.items().items() if not one.flags & UplinkFlag.LOCAL
    )
    addresses = probes.addresses_of(frame)
    back = route_to(addresses[0]) if addresses else None
    index = back.link if back is not None and back.link in uplinks else next(iter(uplinks), 0)
    try:
        with Netlink() as netlink:
            return index, rtnl.parse_link(netlink.ask(rtnl.GETLINK, rtnl.ifinfo(index))).mac
    except (NetlinkRefused, TimeoutError) as error:
        said = f"node {node.interpreter.node} has no uplink by which packets of others come: see AIRMESH_UPLINKS"
        raise CannotProbe(said) from error


def route_to(address: Address) -> probes.Route | None:
    """The route that the node's stack takes to an address, of several next hops none by number; None without one."""
    try:
        with Netlink() as netlink:
            seen = rtnl.parse_route(netlink.ask(rtnl.GETROUTE, rtnl.lookup_query(address)))
    except (NetlinkRefused, TimeoutError):
        return None
    hop = ip_address(seen.gateway) if seen.gateway else None
    return probes.Route(link=seen.link, next_hop=hop, protocol=seen.protocol) if seen.kind in _LEADS else None


def listener_of(pod: LocalEndpoint, flow: probes.Flow) -> Listener | None:
    """The socket that packets of this flow would meet in their pod; None where that cannot be looked at."""
    key = flow.protocol, flow.port
    if flow.protocol not in (probes.TCP, probes.UDP):
        return None
    with suppress(OSError, NotANamespace, NetlinkRefused), by_cookie((pod.cookie,)) as namespaces:
        for descriptor in namespaces.values():
            with inside(descriptor):
                found = listeners({key}, family=flow.destination.version).get(key)
                queues = {one.port: one for one in listening_sockets()} if flow.protocol == probes.TCP else {}
            if found is None:
                return Listener(listens=False)
            queue = queues.get(flow.port)
            return Listener(
                listens=True,
                process=found.process,
                waiting=queue.waiting if queue else 0,
                bound=queue.bound if queue else 0,
            )
    return None


async def start(
    runtime: Runtime[Settings],
    datapath: Datapath,
    feed: Feed,
    *,
    endpoints: LocalEndpoints,
    history: PolicyHistory,
    endpoint_at: Callable[[Address], Endpoint | None],
) -> None:
    """Answers from now on."""
    doctor = ProbeDoctor(datapath, feed, endpoints, history, endpoint_at)

    async def let_go() -> None:
        await asyncio.to_thread(doctor.close)

    runtime.on_stop(let_go)
    await runtime.bus.serve_everyone(PROBES, ProbeRequest, doctor.answer)
