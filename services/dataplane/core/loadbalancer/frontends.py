"""Frontends: addresses and ports that lead to backends, of Services and of pods with host ports.

Owns which fronts there are, for whom (sockets here, packets from outside), with which choice of endpoints, and who
has a front that two claim. Cluster IPs come first, then node ports, load-balancer and external IPs, host ports; among
equals the older object, then namespace and name, so that all nodes agree and a newcomer takes nothing away. Refuses
external IPs outside the networks that the settings allow (CVE-2020-8554), those and load-balancer IPs that are somebody
else's already, and host ports on addresses this node does not have: each with a sentence, never an exception.

:class:`Frontends` follows changes: it moves the fronts of the Services that a change is about, and those that they take
or leave; from nothing it gives the same.

Local sockets get the cluster choice at node ports and at addresses from outside, whatever the external traffic policy
says, as with kube-proxy. Where a load balancer's source ranges leave out anything that may send from this node, its
sockets get no front: the packet goes to the load balancer, which judges it. Ranges of one family shut the other out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from proto.net import Address, Network
from proto.objects import EndpointSlice, HostPort, Pod, Service, ServicePort
from services.dataplane.core.datapath.service_layout import Scope, ServiceFlag, ServiceKey
from services.dataplane.core.loadbalancer.endpoint_choice import Choice, Target, choose, offers, stand_in
from services.dataplane.core.loadbalancer.node_context import NodeContext
from services.dataplane.core.loadbalancer.service_objects import Name, ServiceObjects

BALANCED = (6, 17)
"""Protocols that the programs translate."""

LOOPBACK: tuple[Address, ...] = (ip_address("127.0.0.1"), ip_address("::1"))

PLAIN = ServiceFlag(0)
_SOCKET_ONLY = (Scope.SOCKET,)
_BOTH = (Scope.SOCKET, Scope.PACKET)


Owner = tuple[str, str, str]
"""``service`` or ``pod``, namespace, name."""

Precedence = tuple[int, int, str, str]
"""Whose claim to a front goes first, the smallest: kind of claim, age, namespace, name."""


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
    def owner(self) -> Owner:
        """The Service or pod."""
        return self[:3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """What stands behind an address and a port."""

    backends: BackendsOf
    precedence: Precedence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPortPod:
    """A pod with host ports that is up on this node, and its own addresses."""

    pod: Pod
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Claims:
    """What one Service or pod asks for."""

    frontends: dict[ServiceKey, Frontend] = field(default_factory=dict)
    backends: dict[BackendsOf, frozenset[Target]] = field(default_factory=dict)
    stand_ins: dict[BackendsOf, Target] = field(default_factory=dict)
    """Of those sets that have one."""
    refused: list[Refusal] = field(default_factory=list)
    outside: set[Address] = field(default_factory=set)
    """Addresses from outside that it asks for: whether they are free depends on all cluster IPs."""


@dataclass(frozen=True, slots=True)
class Moved:
    """All fronts, before and after, of every Service and pod that a change is about or takes a front from."""

    before: dict[ServiceKey, Frontend]
    after: dict[ServiceKey, Frontend]


@dataclass(frozen=True, slots=True)
class _Held:
    """What is kept of one's claims."""

    keys: tuple[ServiceKey, ...]
    backends: tuple[BackendsOf, ...]
    refused: tuple[Refusal, ...]
    outside: frozenset[Address]


_NOTHING = _Held((), (), (), frozenset())


class Frontends:
    """The fronts of a node, which a change moves for as much as it is about: see the module for who has one."""

    def __init__(self, context: NodeContext) -> None:
        self.context = context
        self._frontends: dict[ServiceKey, Frontend] = {}
        self._backends: dict[BackendsOf, frozenset[Target]] = {}
        self._stand_ins: dict[BackendsOf, Target] = {}
        self._held: dict[Owner, _Held] = {}
        self._others: dict[ServiceKey, list[Frontend]] = {}
        """What others claim of a front that somebody has."""
        self._cluster_ips: Counter[Address] = Counter()
        self._ips_of: dict[Name, tuple[Address, ...]] = {}
        self._asking: dict[Address, set[Name]] = defaultdict(set)
        """Services that ask for an address from outside."""
        self._refusing: set[Owner] = set()

    @property
    def frontends(self) -> Mapping[ServiceKey, Frontend]:
        """What stands behind each address and port."""
        return self._frontends

    @property
    def backends(self) -> Mapping[BackendsOf, frozenset[Target]]:
        """The backends of all fronts, by what they share."""
        return self._backends

    @property
    def stand_ins(self) -> Mapping[BackendsOf, Target]:
        """Who stands in for a single backend that refuses, where there is somebody."""
        return self._stand_ins

    def count(self, owner: Owner) -> int:
        """How many fronts a Service or pod claims."""
        return len(self._held.get(owner, _NOTHING).keys)

    def owner(self, key: ServiceKey) -> Owner:
        """Who has a front; raises KeyError when nobody has."""
        return self._frontends[key].backends.owner

    def refused(self) -> Iterator[Refusal]:
        """Claims that are not honoured."""
        for owner in sorted(self._refusing):
            yield from self._held[owner].refused
        for key, others in self._others.items():
            holder = self._frontends[key].backends
            what = (
                f"{key.address} port {key.port} (protocol {key.protocol}) is that of "
                f"{holder.kind} {holder.namespace}/{holder.name}"
            )
            for frontend in others:
                yield _refusal(frontend.backends, what, "give one of the two another address or port")

    def move(
        self,
        objects: ServiceObjects,
        names: Iterable[Name],
        pods: Collection[HostPortPod] | None = None,
        without: Container[Owner] = frozenset(),
        closed: Container[Owner] = frozenset(),
    ) -> Moved:
        """These Services, or slices of theirs, are other ones now; so are the pods with host ports, unless None.

        Who is refused has no front (``without``), or has its fronts with nobody behind them (``closed``).
        """
        about = set(names)
        for address in self._count_cluster_ips(objects, about):
            about |= self._asking.get(address, set())
        claims: dict[Owner, Claims] = {}
        for name in about:
            service, owner = objects.services.get(name), ("service", *name)
            if service is not None and is_fronted(service) and owner not in without:
                slices = () if owner in closed else objects.slices(name)
                claims[owner] = _Planner(self.context, self._cluster_ips, slices).of_service(service)
            else:
                claims[owner] = Claims()
        if pods is not None:
            claims |= {owner: Claims() for owner in self._held if owner[0] == "pod"}
            for one in pods:
                owner = ("pod", one.pod.namespace, one.pod.name)
                if owner not in without:
                    claims[owner] = _Planner(self.context, self._cluster_ips, ()).of_pod(one)
        return self._replace(claims)

    def _count_cluster_ips(self, objects: ServiceObjects, names: Iterable[Name]) -> set[Address]:
        """Addresses that have become a cluster IP, or are none any more."""
        touched: dict[Address, bool] = {}
        for name in names:
            service = objects.services.get(name)
            before, now = self._ips_of.pop(name, ()), service.cluster_ips if service is not None else ()
            if now:
                self._ips_of[name] = now
            for address in {*before, *now}:
                touched.setdefault(address, self._cluster_ips[address] > 0)
            self._cluster_ips.subtract(before)
            self._cluster_ips.update(now)
        flipped = {address for address, was in touched.items() if (self._cluster_ips[address] > 0) != was}
        for address in touched:
            if not self._cluster_ips[address]:
                del self._cluster_ips[address]
        return flipped

    def _replace(self, claims: Mapping[Owner, Claims]) -> Moved:
        involved = set(claims)
        for owner, asked in claims.items():
            for key in (*self._held.get(owner, _NOTHING).keys, *asked.frontends):
                if key in self._others:
                    involved |= {one.backends.owner for one in self._others[key]}
                if key in self._frontends:
                    involved.add(self.owner(key))
        before = self._of(involved)
        for owner in claims:
            self._withdraw(owner)
        for owner, asked in claims.items():
            self._enter(owner, asked)
        return Moved(before, self._of(involved))

    def _of(self, owners: Iterable[Owner]) -> dict[ServiceKey, Frontend]:
        return {
            key: self._frontends[key]
            for owner in owners
            for key in self._held.get(owner, _NOTHING).keys
            if self.owner(key) == owner
        }

    def _withdraw(self, owner: Owner) -> None:
        held = self._held.pop(owner, _NOTHING)
        for key in held.keys:
            others = [frontend for frontend in self._others.pop(key, ()) if frontend.backends.owner != owner]
            if self.owner(key) == owner:
                if others:
                    self._frontends[key] = first = min(others, key=_precedence)
                    others.remove(first)
                else:
                    del self._frontends[key]
            if others:
                self._others[key] = others
        for shared in held.backends:
            del self._backends[shared]
            self._stand_ins.pop(shared, None)
        for address in held.outside:
            self._asking[address].discard(owner[1:])
            if not self._asking[address]:
                del self._asking[address]
        self._refusing.discard(owner)

    def _enter(self, owner: Owner, asked: Claims) -> None:
        if not (asked.frontends or asked.backends or asked.refused or asked.outside):
            return
        self._held[owner] = _Held(
            tuple(asked.frontends), tuple(asked.backends), tuple(asked.refused), frozenset(asked.outside)
        )
        self._backends.update(asked.backends)
        self._stand_ins.update(asked.stand_ins)
        for key, frontend in asked.frontends.items():
            holder = self._frontends.get(key)
            if holder is None:
                self._frontends[key] = frontend
                continue
            first, second = sorted((holder, frontend), key=_precedence)
            self._frontends[key] = first
            self._others.setdefault(key, []).append(second)
        for address in asked.outside:
            self._asking[address].add(owner[1:])
        if asked.refused:
            self._refusing.add(owner)


def _precedence(frontend: Frontend) -> Precedence:
    return frontend.precedence


def is_fronted(service: Service) -> bool:
    """Whether a Service is ours to serve: not headless, an alias or another proxy's."""
    return service.fronted and service.type != "ExternalName" and bool(service.cluster_ips)


class _Planner:
    """Collects the claims of one Service or pod; of its own, too, the first has a front."""

    def __init__(self, context: NodeContext, cluster_ips: Container[Address], slices: Iterable[EndpointSlice]) -> None:
        self._slices = [part for part in slices if part.service and part.fronted]
        self._context = context
        self._cluster_ips = cluster_ips
        self._claims = Claims()
        self._precedence: Precedence = (0, 0, "", "")

    def of_service(self, service: Service) -> Claims:
        for order, claim in enumerate((self._claim_cluster_ips, self._claim_node_ports, self._claim_outside)):
            self._precedence = order, service.created, service.namespace, service.name
            claim(service)
        return self._claims

    def of_pod(self, one: HostPortPod) -> Claims:
        self._precedence = 3, int(one.pod.terminating), one.pod.namespace, one.pod.name
        self._claim_host_ports(one)
        return self._claims

    def _claim_cluster_ips(self, service: Service) -> None:
        choice = Choice.LOCAL if service.internal_policy == "Local" else Choice.CLUSTER
        for address in service.cluster_ips:
            for port in _ports(service):
                self._claim_for(service, port, address, port.port, Scope.SOCKET, choice)

    def _claim_node_ports(self, service: Service) -> None:
        if service.type not in ("NodePort", "LoadBalancer"):
            return
        for address in _of_its_families(service, self._context.addresses):
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
            if self._context.all_in(ranges, address.version):
                self._claim_for(service, port, address, port.port, Scope.SOCKET, Choice.CLUSTER)
            self._claim_from_outside(service, port, address, port.port, ranges)

    def _claim_from_outside(
        self, service: Service, port: ServicePort, address: Address, number: int, ranges: tuple[Network, ...] = ()
    ) -> None:
        flags = PLAIN if self._context.is_own(address) else ServiceFlag.FOREIGN
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
        if shared not in self._claims.backends:
            offered = offers(service, port, self._slices, version)
            node, not_ready_too = self._context.node, service.publish_not_ready
            chosen = choose(offered, choice, node=node, zone=self._context.zone, not_ready_too=not_ready_too)
            self._claims.backends[shared] = chosen
            other = stand_in(offered, chosen, choice, node=node, not_ready_too=not_ready_too)
            if other is not None:
                self._claims.stand_ins[shared] = other
        frontend = Frontend(
            backends=shared,
            precedence=self._precedence,
            affinity_seconds=service.affinity_seconds,
            flags=flags,
            ranges=ranges,
        )
        self._claim(ServiceKey(address=address, port=number, protocol=port.protocol, scope=scope), frontend)

    def _claim(self, key: ServiceKey, frontend: Frontend) -> None:
        self._claims.frontends.setdefault(key, frontend)

    def _claim_host_ports(self, one: HostPortPod) -> None:
        by_version = {address.version: address for address in one.addresses}
        for port in one.pod.host_ports:
            if port.protocol not in BALANCED:
                continue
            for address in self._host_addresses(one.pod, port):
                if address.version in by_version:
                    self._claim_host_port(one.pod, port, address, (by_version[address.version], port.container_port))

    def _claim_host_port(self, pod: Pod, port: HostPort, address: Address, target: Target) -> None:
        where = Choice.LOCAL
        shared = BackendsOf("pod", pod.namespace, pod.name, port.container_port, port.protocol, address.version, where)
        self._claims.backends[shared] = frozenset((target,))
        flags = ServiceFlag.NODE_ONLY if address.is_loopback else PLAIN
        for scope in _SOCKET_ONLY if address.is_loopback else _BOTH:
            key = ServiceKey(address=address, port=port.port, protocol=port.protocol, scope=scope)
            self._claim(key, Frontend(backends=shared, precedence=self._precedence, flags=flags))

    def _host_addresses(self, pod: Pod, port: HostPort) -> tuple[Address, ...]:
        """The addresses that a host port is on."""
        everywhere = (*self._context.addresses, *LOOPBACK)
        if port.address is None:
            return everywhere
        if port.address.is_unspecified:
            return tuple(address for address in everywhere if address.version == port.address.version)
        if port.address.is_loopback or self._context.is_own(port.address):
            return (port.address,)
        whose = BackendsOf("pod", pod.namespace, pod.name, port.container_port, port.protocol, 0, Choice.LOCAL)
        why = f"hostIP {port.address} of host port {port.port} is no address of node {self._context.node}"
        self._refuse(whose, why, "leave hostIP out, or write one of the node's own addresses")
        return ()

    def _is_allowed(self, service: Service, address: Address) -> bool:
        if self._context.is_external(address):
            return True
        remedy = "allow its network in AIRMESH_EXTERNAL_IPS, or remove it from the Service"
        self._refuse_of(service, f"spec.externalIPs: {address} is in no network that is allowed for them", remedy)
        return False

    def _is_free(self, service: Service, address: Address, path: str) -> bool:
        """Whether an address from outside is not one inside."""
        self._claims.outside.add(address)
        if address in service.cluster_ips:
            return False  # it leads there already
        whose = "the cluster IP of another Service" if address in self._cluster_ips else self._context.whose(address)
        if whose:
            self._refuse_of(service, f"{path}: {address} is {whose}", "use an address that nothing in the cluster has")
        return not whose

    def _refuse_of(self, service: Service, why: str, remedy: str) -> None:
        self._claims.refused.append(
            Refusal(claimant=f"Service {service.namespace}/{service.name}", why=why, remedy=remedy)
        )

    def _refuse(self, whose: BackendsOf, why: str, remedy: str) -> None:
        self._claims.refused.append(_refusal(whose, why, remedy))


def _ports(service: Service) -> Iterator[ServicePort]:
    return (port for port in service.ports if port.protocol in BALANCED)


def _of_its_families(service: Service, addresses: Iterable[Address]) -> list[Address]:
    """A Service serves the families of its cluster IPs."""
    versions = {address.version for address in service.cluster_ips}
    return [address for address in addresses if address.version in versions]


def _refusal(whose: BackendsOf, why: str, remedy: str) -> Refusal:
    return Refusal(claimant=f"{whose.kind.capitalize()} {whose.namespace}/{whose.name}", why=why, remedy=remedy)
