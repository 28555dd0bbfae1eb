"""Addresses and ports of this node that lead to backends: what Services and pods with host ports claim.

Owns which fronts there are, for whom (sockets here, packets from outside), with which choice of endpoints, and who
has a front that two claim. Cluster IPs come first, then node ports, load-balancer and external IPs, host ports; among
equals the older object, then namespace and name, so that all nodes agree and a newcomer takes nothing away. Refuses
external IPs outside the networks that the settings allow (CVE-2020-8554), those and load-balancer IPs that are somebody
else's already, and host ports on addresses this node does not have: each with a sentence, never an exception.

Local sockets get the cluster choice at node ports and at addresses from outside, whatever the external traffic policy
says, as with kube-proxy. Where a load balancer's source ranges leave out anything that may send from this node, its
sockets get no front: the packet goes to the load balancer, which judges it. Ranges of one family shut the other out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from proto.net import Address, Network
from proto.objects import EndpointSlice, HostPort, Pod, Service, ServicePort
from services.dataplane.core.endpoint_choice import Choice, Target, choose, offers
from services.dataplane.core.here import Here
from services.dataplane.core.service_layout import Scope, ServiceFlag, ServiceKey

BALANCED = (6, 17)
"""Protocols that the programs translate."""

LOOPBACK: tuple[Address, ...] = (ip_address("127.0.0.1"), ip_address("::1"))

PLAIN = ServiceFlag(0)
_SOCKET_ONLY = (Scope.SOCKET,)
_BOTH = (Scope.SOCKET, Scope.PACKET)


class BackendsOf(NamedTuple):
    """Names a set of backends that fronts share."""

    kind: str
    """``service`` or ``pod``."""
    namespace: str
    name: str
    port: int
    protocol: int
    version: int
    choice: Choice

    @property
    def port_of(self) -> tuple[object, ...]:
        """The Service port, or the pod's, whatever the choice."""
        return self[:6]

    @property
    def owner(self) -> tuple[str, str, str]:
        """The Service or pod."""
        return self[:3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What stands behind an address and a port."""

    backends: BackendsOf
    affinity_seconds: int = 0
    flags: ServiceFlag = PLAIN
    ranges: tuple[Network, ...] = ()
    """Who may come, where SOURCE_RANGES is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A claim that is not honoured."""

    claimant: str
    """``Service shop/web`` or ``Pod shop/web-0``."""
    why: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All fronts of a node and the backends they share."""

    fronts: dict[ServiceKey, Front] = field(default_factory=dict)
    backends: dict[BackendsOf, frozenset[Target]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPortPod:
    """A pod with host ports that is up on this node, and its own addresses."""

    pod: Pod
    addresses: tuple[Address, ...]


def fronts_of(
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    pods: Iterable[HostPortPod],
    here: Here,
    without: Container[tuple[str, str, str]] = frozenset(),
) -> Plan:
    """The fronts for these objects. Those ``without`` (``service`` or ``pod``, namespace, name) get none, and cost
    nothing; their cluster IPs are theirs all the same.
    """
    return _Planner(sorted(services, key=_age), slices, here, without).plan(
        sorted(
            (one for one in pods if ("pod", one.pod.namespace, one.pod.name) not in without),
            key=lambda one: (one.pod.terminating, one.pod.namespace, one.pod.name),
        )
    )


def moved(
    plan: Plan,
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    names: Container[tuple[str, str]],
    here: Here,
) -> dict[BackendsOf, frozenset[Target]]:
    """The backends of a plan that are others now that slices of these Services (by namespace and name), and nothing
    else, have changed. Costs what those Services cost.
    """
    fresh = fronts_of(
        [service for service in services if (service.namespace, service.name) in names],
        [part for part in slices if (part.namespace, part.service) in names],
        [],
        here,
    )
    return {
        shared: targets
        for shared, targets in fresh.backends.items()
        if shared in plan.backends and plan.backends[shared] != targets
    }


def _age(service: Service) -> tuple[int, str, str]:
    return service.created, service.namespace, service.name


def is_fronted(service: Service) -> bool:
    """Whether a Service is ours to serve: not headless, an alias or another proxy's."""
    return service.fronted and service.type != "ExternalName" and bool(service.cluster_ips)


class _Planner:
    """Collects claims; the first has a front."""

    def __init__(
        self,
        services: list[Service],
        slices: Iterable[EndpointSlice],
        here: Here,
        without: Container[tuple[str, str, str]],
    ) -> None:
        self._services = [
            service
            for service in services
            if is_fronted(service) and ("service", service.namespace, service.name) not in without
        ]
        self._slices: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
        for part in slices:
            if part.service and part.fronted:
                self._slices[part.namespace, part.service].append(part)
        self._here = here
        self._cluster_ips = {address for service in services for address in service.cluster_ips}
        self._plan = Plan()

    def plan(self, pods: Iterable[HostPortPod]) -> Plan:
        for service in self._services:
            self._claim_cluster_ips(service)
        for service in self._services:
            self._claim_node_ports(service)
        for service in self._services:
            self._claim_outside(service)
        for pod in pods:
            self._claim_host_ports(pod)
        return self._plan

    def _claim_cluster_ips(self, service: Service) -> None:
        choice = Choice.LOCAL if service.internal_policy == "Local" else Choice.CLUSTER
        for address in service.cluster_ips:
            for port in _ports(service):
                self._claim_for(service, port, address, port.port, Scope.SOCKET, choice)

    def _claim_node_ports(self, service: Service) -> None:
        if service.type not in ("NodePort", "LoadBalancer"):
            return
        for address in _of_its_families(service, self._here.addresses):
            for port in _ports(service):
                if port.node_port:
                    self._claim_for(service, port, address, port.node_port, Scope.SOCKET, Choice.CLUSTER)
                    self._claim_from_outside(service, port, address, port.node_port)

    def _claim_outside(self, service: Service) -> None:
        """Load-balancer and external IPs."""
        for address in _of_its_families(service, service.load_balancer_ips):
            if self._is_free(service, address, "status.loadBalancer.ingress"):
                self._claim_load_balancer(service, address)
        for address in _of_its_families(service, service.external_ips):
            if self._is_allowed(service, address) and self._is_free(service, address, "spec.externalIPs"):
                for port in _ports(service):
                    self._claim_for(service, port, address, port.port, Scope.SOCKET, Choice.CLUSTER)
                    self._claim_from_outside(service, port, address, port.port)

    def _claim_load_balancer(self, service: Service, address: Address) -> None:
        ranges = service.source_ranges
        if any(network.version == address.version and not network.prefixlen for network in ranges):
            ranges = ()
        for port in _ports(service):
            if self._here.all_in(ranges, address.version):
                self._claim_for(service, port, address, port.port, Scope.SOCKET, Choice.CLUSTER)
            self._claim_from_outside(service, port, address, port.port, ranges)

    def _claim_from_outside(
        self, service: Service, port: ServicePort, address: Address, number: int, ranges: tuple[Network, ...] = ()
    ) -> None:
        flags = PLAIN if self._here.is_own(address) else ServiceFlag.FOREIGN
        choice = Choice.CLUSTER
        if service.external_policy == "Local":
            flags, choice = flags | ServiceFlag.LOCAL_ONLY, Choice.LOCAL
        if ranges:
            flags |= ServiceFlag.SOURCE_RANGES
        self._claim_for(service, port, address, number, Scope.PACKET, choice, flags, ranges)

    def _claim_for(
        self,
        service: Service,
        port: ServicePort,
        address: Address,
        number: int,
        scope: Scope,
        choice: Choice,
        flags: ServiceFlag = PLAIN,
        ranges: tuple[Network, ...] = (),
    ) -> None:
        version = address.version
        shared = BackendsOf("service", service.namespace, service.name, port.port, port.protocol, version, choice)
        if shared not in self._plan.backends:
            offered = offers(service, port, self._slices[service.namespace, service.name], version)
            self._plan.backends[shared] = choose(
                offered,
                choice,
                node=self._here.node,
                zone=self._here.zone,
                not_ready_too=service.publish_not_ready,
            )
        front = Front(backends=shared, affinity_seconds=service.affinity_seconds, flags=flags, ranges=ranges)
        self._claim(ServiceKey(address=address, port=number, protocol=port.protocol, scope=scope), front)

    def _claim(self, key: ServiceKey, front: Front) -> None:
        first = self._plan.fronts.setdefault(key, front)
        if first is not front and first.backends.owner != front.backends.owner:
            holder = f"{first.backends.kind} {first.backends.namespace}/{first.backends.name}"
            what = f"{key.address} port {key.port} (protocol {key.protocol}) is that of {holder}"
            self._refuse(front.backends, what, "give one of the two another address or port")

    def _claim_host_ports(self, one: HostPortPod) -> None:
        by_version = {address.version: address for address in one.addresses}
        for port in one.pod.host_ports:
            if port.protocol not in BALANCED:
                continue
            for address in self._places(one.pod, port):
                if address.version in by_version:
                    self._claim_host_port(one.pod, port, address, (by_version[address.version], port.container_port))

    def _claim_host_port(self, pod: Pod, port: HostPort, address: Address, target: Target) -> None:
        where = Choice.LOCAL
        shared = BackendsOf("pod", pod.namespace, pod.name, port.container_port, port.protocol, address.version, where)
        self._plan.backends[shared] = frozenset((target,))
        flags = ServiceFlag.NODE_ONLY if address.is_loopback else PLAIN
        for scope in _SOCKET_ONLY if address.is_loopback else _BOTH:
            key = ServiceKey(address=address, port=port.port, protocol=port.protocol, scope=scope)
            self._claim(key, Front(backends=shared, flags=flags))

    def _places(self, pod: Pod, port: HostPort) -> tuple[Address, ...]:
        """The addresses that a host port is on."""
        everywhere = (*self._here.addresses, *LOOPBACK)
        if port.address is None:
            return everywhere
        if port.address.is_unspecified:
            return tuple(address for address in everywhere if address.version == port.address.version)
        if port.address.is_loopback or self._here.is_own(port.address):
            return (port.address,)
        whose = BackendsOf("pod", pod.namespace, pod.name, port.container_port, port.protocol, 0, Choice.LOCAL)
        why = f"hostIP {port.address} of host port {port.port} is no address of node {self._here.node}"
        self._refuse(whose, why, "leave hostIP out, or write one of the node's own addresses")
        return ()

    def _is_allowed(self, service: Service, address: Address) -> bool:
        if self._here.is_external(address):
            return True
        remedy = "allow its network in AIRMESH_EXTERNAL_IPS, or remove it from the Service"
        self._refuse_of(service, f"spec.externalIPs: {address} is in no network that is allowed for them", remedy)
        return False

    def _is_free(self, service: Service, address: Address, path: str) -> bool:
        """Whether an address from outside is not one inside."""
        if address in service.cluster_ips:
            return False  # it leads there already
        whose = "the cluster IP of another Service" if address in self._cluster_ips else self._here.whose(address)
        if whose:
            self._refuse_of(service, f"{path}: {address} is {whose}", "use an address that nothing in the cluster has")
        return not whose

    def _refuse_of(self, service: Service, why: str, remedy: str) -> None:
        self._plan.refused.append(
            Refusal(claimant=f"Service {service.namespace}/{service.name}", why=why, remedy=remedy)
        )

    def _refuse(self, whose: BackendsOf, why: str, remedy: str) -> None:
        claimant = f"{whose.kind.capitalize()} {whose.namespace}/{whose.name}"
        self._plan.refused.append(Refusal(claimant=claimant, why=why, remedy=remedy))


def _ports(service: Service) -> Iterator[ServicePort]:
    return (port for port in service.ports if port.protocol in BALANCED)


def _of_its_families(service: Service, addresses: Iterable[Address]) -> list[Address]:
    """A Service serves the families of its cluster IPs."""
    versions = {address.version for address in service.cluster_ips}
    return [address for address in addresses if address.version in versions]
