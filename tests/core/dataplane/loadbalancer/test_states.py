"""The load balancer through lists of states: after any events its tables lead where Kubernetes' rules say.

The oracle reads all Services, slices and host ports at once, as the API documents and kube-proxy describe them; it
knows no claims, numbers or slots. What stands in the tables is read back as the programs read it: by number and index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from random import Random
from typing import NamedTuple

from proto.net import Address, Network
from proto.objects import EndpointPort, EndpointSlice, HostPort, Pod, Service, ServicePort, SliceEndpoint
from services.dataplane.core.datapath.service_layout import BackendKey, MemberKey, Scope, ServiceFlag
from services.dataplane.core.loadbalancer.frontends import Frontends, HostPortPod
from services.dataplane.core.loadbalancer.node_context import NodeContext
from services.dataplane.core.loadbalancer.service_objects import Name, ServiceObjects
from services.dataplane.core.loadbalancer.services import Tables, apply, highest, moved
from tests.core.states import Driver, every_order, follow

Key = tuple[str, str, str]
Value = Service | EndpointSlice | HostPortPod
Objects = dict[Key, Value]

TCP, UDP, SCTP = 6, 17, 132
NODE, ZONE = "n1", "a"
NODES = tuple(map(ip_address, ("172.30.0.1", "fd00:172::1")))
OTHER_NODE = ip_address("172.30.0.2")
EXTERNAL = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
PODS = (ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48"))
CONTEXT = NodeContext(
    node=NODE,
    zone=ZONE,
    addresses=NODES,
    own=frozenset((*NODES, ip_address("192.0.2.1"))),
    nodes=frozenset((*NODES, OTHER_NODE)),
    pods=PODS,
    external=EXTERNAL,
)
RANGES = {
    "none": (),
    "all of a family": (ip_network("0.0.0.0/0"),),
    "whoever is here": (ip_network("10.0.0.0/8"), ip_network("172.16.0.0/12"), ip_network("192.0.2.0/24")),
    "strangers": (ip_network("198.51.100.0/24"), ip_network("2001:db8:7::/48")),
}
CLUSTER_IPS = {4: ("10.96.0.10", "10.96.0.11"), 6: ("fd00:10:96::10", "fd00:10:96::11")}
OUTSIDE = tuple(
    map(ip_address, ("192.0.2.1", "192.0.2.7", "2001:db8::7", "8.8.8.8", "10.96.0.10", "172.30.0.2", "10.244.0.1"))
)


class Frontend(NamedTuple):
    """What a connection to an address, protocol and port meets."""

    owner: tuple[str, str, str]
    targets: frozenset[tuple[Address, int]]
    affinity: int = 0
    flags: int = 0
    ranges: frozenset[Network] = frozenset()


Where = tuple[Address, int, int, Scope]
Asked = tuple[int, Where | None, Frontend]


class Balanced(Driver[Key, Value]):
    """As the dataplane feeds it: objects by key, then what a change is about, and the steps go onto the tables."""

    def __init__(self) -> None:
        self.objects = ServiceObjects()
        self.frontends = Frontends(CONTEXT)
        self.tables = Tables()
        self.pods: dict[Key, HostPortPod] = {}
        self.about: set[Name] = set()
        self.last = 0

    def put(self, key: Key, value: Value | None) -> None:
        if key[0] == "pod":
            self.pods.pop(key, None)
            if isinstance(value, HostPortPod):
                self.pods[key] = value
        else:
            assert not isinstance(value, HostPortPod)
            self.about |= set(self.objects.put(".".join(key), value))

    def flush(self) -> None:
        steps = self.frontends.move(self.objects, self.about, list(self.pods.values()))
        frontends = self.frontends
        apply(self.tables, moved(steps, frontends.backends, frontends.stand_ins, self.tables, self.last))
        self.last = max(self.last, highest(self.tables))
        self.about = set()

    def settle(self) -> object:
        self.flush()
        led = {
            (key.address, key.port, key.protocol, key.scope): Frontend(
                owner=self.frontends.owner(key),
                targets=frozenset(self.targets(entry.number, entry.backends)),
                affinity=entry.affinity_seconds,
                flags=entry.flags,
                ranges=frozenset(self.frontends.frontends[key].ranges),
            )
            for key, entry in self.tables.services.items()
        }
        return led, Counter(refusal.claimant for refusal in self.frontends.refused())

    def targets(self, number: int, count: int) -> Iterator[tuple[Address, int]]:
        for index in range(count):
            entry = self.tables.backends[BackendKey(service=number, index=index)]
            yield entry.address, entry.port

    def check(self, present: object) -> None:
        """Every backend is remembered at its own slot, and nothing is left of numbers that nobody has."""
        sizes = {entry.number: entry.backends for entry in self.tables.services.values()}
        slots = {
            MemberKey(service=number, address=address, port=port): index
            for number, count in sizes.items()
            for index, (address, port) in enumerate(self.targets(number, count))
        }
        assert {key: member.index for key, member in self.tables.members.items()} == slots
        standing_by = [key for key in self.tables.backends if key.index == sizes[key.service]]
        assert len(self.tables.backends) == len(slots) + len(standing_by)
        assert all(key.index == 1 for key in standing_by)
        assert {key.service for key in self.tables.ranges} <= sizes.keys()
        assert bool(self.tables.ranges) == any(frontend.ranges for frontend in self.frontends.frontends.values())


def reachable(
    service: Service, port: ServicePort, slices: list[EndpointSlice], family: int, *, local: bool
) -> frozenset[tuple[Address, int]]:
    """Endpoints that new connections may have: KEP-1669 (terminating), KEP-2433 and KEP-4444 (hints)."""
    offered = [
        (one, named.port)
        for part in slices
        if part.fronted and (part.namespace, part.service) == (service.namespace, service.name)
        for named in part.ports
        if (named.name, named.protocol) == (port.name, port.protocol)
        for one in part.endpoints
        if one.addresses[0].version == family and (one.node == NODE or not local)
    ]
    ready = [at for at in offered if service.publish_not_ready or (at[0].ready and not at[0].terminating)]
    chosen = ready or [at for at in offered if at[0].serving and at[0].terminating]
    if ready and not local:
        by_node = [at for at in ready if NODE in at[0].for_nodes]
        by_zone = [at for at in ready if ZONE in at[0].for_zones]
        if by_node and all(at[0].for_nodes for at in ready):
            chosen = by_node
        elif by_zone and all(at[0].for_zones for at in ready):
            chosen = by_zone
    return frozenset((one.addresses[0], number) for one, number in chosen)


def senders_within(ranges: tuple[Network, ...], family: int) -> bool:
    """Whether all that may send from this node lies in the ranges."""
    senders = [*PODS, *map(ip_network, CONTEXT.own)]
    return all(
        any(network.version == family and sender.subnet_of(network) for network in ranges)  # type: ignore[arg-type]
        for sender in senders
        if sender.version == family
    )


def asked_for(service: Service, slices: list[EndpointSlice], cluster_ips: set[Address]) -> Iterator[Asked]:
    """What one Service asks for: order of its kind, where, and what stands there.  No where: an address is refused."""
    owner = ("service", service.namespace, service.name)
    families = {address.version for address in service.cluster_ips}
    ports = [port for port in service.ports if port.protocol in (TCP, UDP)]

    def behind(
        port: ServicePort, family: int, *, local: bool, flags: int = 0, ranges: tuple[Network, ...] = ()
    ) -> Frontend:
        targets = reachable(service, port, slices, family, local=local)
        return Frontend(owner, targets, service.affinity_seconds, flags, frozenset(ranges))

    def from_outside(
        order: int, address: Address, port: ServicePort, number: int, ranges: tuple[Network, ...] = ()
    ) -> Asked:
        local = service.external_policy == "Local"
        flags = (ServiceFlag.LOCAL_ONLY if local else 0) | (ServiceFlag.SOURCE_RANGES if ranges else 0)
        flags |= 0 if address in CONTEXT.own else ServiceFlag.FOREIGN
        frontend = behind(port, address.version, local=local, flags=int(flags), ranges=ranges)
        return order, (address, number, port.protocol, Scope.PACKET), frontend

    def from_sockets(order: int, address: Address, port: ServicePort, number: int, *, local: bool = False) -> Asked:
        return order, (address, number, port.protocol, Scope.SOCKET), behind(port, address.version, local=local)

    found: list[Asked] = []
    for address in service.cluster_ips:
        local = service.internal_policy == "Local"
        found += [from_sockets(0, address, port, port.port, local=local) for port in ports]
    for address in NODES if service.type != "ClusterIP" else ():
        for port in ports if address.version in families else ():
            if port.node_port:
                found.append(from_sockets(1, address, port, port.node_port))
                found.append(from_outside(1, address, port, port.node_port))
    inside = {*NODES, OTHER_NODE} | cluster_ips
    for kind, addresses in (("balancer", service.load_balancer_ips), ("external", service.external_ips)):
        for address in addresses:
            if address.version not in families:
                continue
            allowed = kind == "balancer" or any(address in network for network in EXTERNAL)
            if allowed and address in service.cluster_ips:
                continue
            if not allowed or address in inside or any(address in network for network in PODS):
                found.append((2, None, Frontend(owner, frozenset())))
                continue
            ranges = service.source_ranges if kind == "balancer" else ()
            if any(one.version == address.version and one.prefixlen == 0 for one in ranges):
                ranges = ()
            for port in ports:
                if not ranges or senders_within(ranges, address.version):
                    found.append(from_sockets(2, address, port, port.port))
                found.append(from_outside(2, address, port, port.port, ranges))
    yield from found


def host_ports(one: HostPortPod) -> Iterator[tuple[Where | None, Frontend]]:
    owner = ("pod", one.pod.namespace, one.pod.name)
    own = {address.version: address for address in one.addresses}
    loopback = [ip_address("127.0.0.1"), ip_address("::1")]
    for port in one.pod.host_ports:
        if port.protocol == SCTP:
            continue
        wanted = [*NODES, *loopback]
        if port.address is not None and port.address.is_unspecified:
            wanted = [address for address in wanted if address.version == port.address.version]
        elif port.address is not None:
            wanted = [port.address]
        for address in wanted:
            if address not in CONTEXT.own and address not in loopback:
                yield None, Frontend(owner, frozenset())
            elif address.version in own:
                flags = int(ServiceFlag.NODE_ONLY) if address in loopback else 0
                frontend = Frontend(owner, frozenset({(own[address.version], port.container_port)}), flags=flags)
                for scope in (Scope.SOCKET,) if address in loopback else (Scope.SOCKET, Scope.PACKET):
                    yield (address, port.port, port.protocol, scope), frontend


def kubernetes(objects: Objects) -> object:
    """All that asks for something, in the order in which it is served: who comes first has it."""
    services = [one for one in objects.values() if isinstance(one, Service)]
    slices = [one for one in objects.values() if isinstance(one, EndpointSlice)]
    cluster_ips = {address for one in services for address in one.cluster_ips}
    asked: list[tuple[tuple[object, ...], Where | None, Frontend]] = []
    for one in services:
        if one.fronted and one.type != "ExternalName" and one.cluster_ips:
            for order, where, frontend in asked_for(one, slices, cluster_ips):
                asked.append(((order, one.created, one.namespace, one.name), where, frontend))
    for pod in (one for one in objects.values() if isinstance(one, HostPortPod)):
        for where, frontend in host_ports(pod):
            asked.append(((3, pod.pod.terminating, pod.pod.namespace, pod.pod.name), where, frontend))
    led: dict[Where, Frontend] = {}
    refused: Counter[str] = Counter()
    seen: set[tuple[tuple[str, str, str], Where]] = set()
    for _, where, frontend in sorted(asked, key=lambda one: one[0]):
        repeated = where is not None and (frontend.owner, where) in seen
        if where is None or (led.setdefault(where, frontend).owner != frontend.owner and not repeated):
            kind, namespace, name = frontend.owner
            refused[f"{kind.capitalize()} {namespace}/{name}"] += 1
        if where is not None:
            seen.add((frontend.owner, where))
    return led, refused


def some_service(chance: Random, namespace: str, name: str) -> Service:
    families = chance.choice(((4,), (6,), (4, 6), (4, 6), ()))
    kind = chance.choice(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName"))
    ports = [
        ServicePort("http", chance.choice((TCP, TCP, SCTP)), 80, chance.choice((0, 30080))),
        ServicePort("dns", UDP, 53, 30080),
    ]
    return Service(
        namespace=namespace,
        name=name,
        uid=f"uid-{name}",
        type=kind,
        cluster_ips=tuple(ip_address(chance.choice(CLUSTER_IPS[family])) for family in families),
        external_ips=tuple(chance.sample(OUTSIDE, chance.choice((0, 0, 1, 2)))),
        load_balancer_ips=tuple(chance.sample(OUTSIDE, chance.choice((0, 1, 2)))) if kind == "LoadBalancer" else (),
        ports=tuple(ports[: chance.choice((1, 2))]),
        affinity_seconds=chance.choice((0, 10800)),
        internal_policy=chance.choice(("Cluster", "Local")),
        external_policy=chance.choice(("Cluster", "Local")),
        publish_not_ready=chance.random() < 0.2,
        created=chance.choice((1, 2)),
        fronted=chance.random() < 0.9,
        source_ranges=chance.choice(list(RANGES.values())),
    )


def some_slice(chance: Random, namespace: str, name: str, service: str) -> EndpointSlice:
    family = chance.choice((4, 6))
    prefix = {4: "10.244.0.", 6: "fd00:10:244::"}[family]
    endpoints = tuple(
        SliceEndpoint(
            addresses=(ip_address(f"{prefix}{number}"),),
            ready=chance.random() < 0.6,
            serving=chance.random() < 0.8,
            terminating=chance.random() < 0.3,
            node=chance.choice((NODE, "n2")),
            for_zones=chance.choice(((), ("a",), ("b",), ("a", "b"))),
            for_nodes=chance.choice(((), (), ("n1",), ("n2",))),
        )
        for number in chance.sample(range(1, 6), chance.choice((0, 1, 3)))
    )
    named = (EndpointPort("http", TCP, chance.choice((8080, 8081))), EndpointPort("dns", UDP, 5353))
    return EndpointSlice(namespace, name, service, endpoints, named, fronted=chance.random() < 0.9)


def some_pod(chance: Random, name: str) -> HostPortPod:
    where = (None, None, "0.0.0.0", "::", "127.0.0.1", "172.30.0.1", "9.9.9.9")
    chosen = [chance.choice(where) for _ in range(chance.choice((1, 2)))]
    ports = tuple(
        HostPort(chance.choice((TCP, UDP, SCTP)), port, 8000 + port % 10, ip_address(text) if text else None)
        for port, text in zip((30080, 443), chosen, strict=False)
    )
    pod = Pod("shop", name, f"uid-{name}", NODE, host_ports=ports, terminating=chance.random() < 0.3)
    both = (ip_address("10.244.0.9"), ip_address("fd00:10:244::9"))
    return HostPortPod(pod=pod, addresses=both[: chance.choice((1, 2))])


def state(chance: Random) -> Objects:
    objects: Objects = {}
    for namespace, name in (("bank", "api"), ("bank", "web"), ("shop", "web"), ("shop", "api")):
        if chance.random() < 0.8:
            objects["service", namespace, name] = some_service(chance, namespace, name)
    for number in range(4):
        service = chance.choice(("web", "web", "api", ""))
        objects["slice", "shop", f"part-{number}"] = some_slice(chance, "shop", f"part-{number}", service)
    for name in ("p0", "p1"):
        if chance.random() < 0.6:
            objects["pod", "shop", name] = some_pod(chance, name)
    return objects


@every_order(seeds=12)
def test_whatever_came_before_connections_meet_what_the_present_objects_say(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Balanced, kubernetes, [state(chance) for _ in range(4)], expander, seed)
