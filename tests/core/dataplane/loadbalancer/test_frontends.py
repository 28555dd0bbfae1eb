"""Which addresses and ports of a node lead to which backends, for whom, and who may not have one."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from proto.objects import HostPort, Pod, Service
from services.dataplane.core.datapath.service_layout import Scope, ServiceFlag, ServiceKey, SourceRange, SourceRangeKey
from services.dataplane.core.loadbalancer import services as service_tables
from services.dataplane.core.loadbalancer.endpoint_choice import Target
from services.dataplane.core.loadbalancer.frontends import HostPortPod
from services.dataplane.core.loadbalancer.node_context import NodeContext
from services.dataplane.core.loadbalancer.services import Tables, change
from tests.core.dataplane.notation import TCP, UDP, Plan, frontends_of, service, slice_of, slots_of

VIP, VIP6 = "10.96.0.10", "fd00:10:96::10"
N1, N1_6, N2 = "172.30.0.11", "fd00:30::11", "172.30.0.12"
LB = "203.0.113.7"
CONTEXT = NodeContext(
    node="n1",
    addresses=(ip_address(N1), ip_address(N1_6)),
    own=frozenset((ip_address(N1), ip_address(N1_6), ip_address("198.51.100.1"))),
    nodes=frozenset((ip_address(N1), ip_address(N1_6), ip_address(N2))),
    pods=(ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")),
    external=(ip_network("203.0.113.0/24"), ip_network("10.0.0.0/8"), ip_network("172.30.0.0/24")),
)
BOTH = [slice_of("web", "10.244.0.1", "10.244.1.1 @n2"), slice_of("web", "fd00::1", "fd00::2 @n2", part="b")]
EVERYWHERE, LOCAL_ONLY, NOWHERE = "cluster", "local", "none"


def reported(plan: Plan) -> set[str]:
    """Frontends as ``socket 10.96.0.10:80 cluster``, ``packet …:30080 local FOREIGN``."""
    found = set()
    for key, frontend in plan.frontends.items():
        targets = {str(address) for address, _ in plan.backends[frontend.backends]}
        choice = NOWHERE
        if targets:
            choice = EVERYWHERE if len(targets) == 2 else LOCAL_ONLY
        flags = [flag.name or "" for flag in ServiceFlag if flag in frontend.flags]
        where = f"[{key.address}]" if key.address.version == 6 else str(key.address)
        found.add(" ".join((Scope(key.scope).name.lower(), f"{where}:{key.port}", choice, *flags)))
    return found


def plan_of(
    *services: Service, pods: tuple[HostPortPod, ...] = (), slices: Any = BOTH, context: NodeContext = CONTEXT
) -> Plan:
    return frontends_of(services, slices, pods, context)


def tables_of(plan: Plan, before: Tables) -> Tables:
    return service_tables.tables_of(plan.frontends, plan.backends, plan.stand_ins, before)


CLUSTER = f"socket {VIP}:80 cluster"
NODE_PORTS = ("http:80+30080/tcp",)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {CLUSTER}),
        ({"fronted": False}, set()),
        ({"type": "ExternalName"}, set()),
        ({"internal_policy": "Local"}, {f"socket {VIP}:80 local"}),
        ({"ports": NODE_PORTS}, {CLUSTER}),
        (
            {"type": "NodePort", "ports": NODE_PORTS},
            {CLUSTER, f"socket {N1}:30080 cluster", f"packet {N1}:30080 cluster"},
        ),
        ({"type": "NodePort", "ports": ("sctp:9+30009/sctp",)}, set()),
        ({"type": "LoadBalancer"}, {CLUSTER}),
        (
            {"type": "NodePort", "ports": NODE_PORTS, "external_policy": "Local"},
            {CLUSTER, f"socket {N1}:30080 cluster", f"packet {N1}:30080 local LOCAL_ONLY"},
        ),
        (
            {"type": "NodePort", "ports": NODE_PORTS, "internal_policy": "Local"},
            {f"socket {VIP}:80 local", f"socket {N1}:30080 cluster", f"packet {N1}:30080 cluster"},
        ),
        (
            {"type": "LoadBalancer", "load_balancer_ips": LB},
            {CLUSTER, f"socket {LB}:80 cluster", f"packet {LB}:80 cluster FOREIGN"},
        ),
        (
            {"type": "LoadBalancer", "load_balancer_ips": "198.51.100.1"},
            {CLUSTER, "socket 198.51.100.1:80 cluster", "packet 198.51.100.1:80 cluster"},
        ),
        (
            {"type": "LoadBalancer", "load_balancer_ips": LB, "external_policy": "Local"},
            {CLUSTER, f"socket {LB}:80 cluster", f"packet {LB}:80 local FOREIGN LOCAL_ONLY"},
        ),
        (
            {"external_ips": LB},
            {CLUSTER, f"socket {LB}:80 cluster", f"packet {LB}:80 cluster FOREIGN"},
        ),
        ({"external_ips": "2001:db8::1"}, {CLUSTER}),
    ],
)
def test_the_frontends_of_a_service(fields: dict[str, Any], expected: set[str]) -> None:
    assert reported(plan_of(service("web", VIP, **fields))) == expected


def test_a_service_of_both_families_has_frontends_in_both_and_a_headless_one_has_none() -> None:
    found = reported(plan_of(service("web", VIP, VIP6, type="NodePort", ports=NODE_PORTS)))
    assert found == {
        *(CLUSTER, f"socket {N1}:30080 cluster", f"packet {N1}:30080 cluster"),
        *(f"socket [{VIP6}]:80 cluster", f"socket [{N1_6}]:30080 cluster", f"packet [{N1_6}]:30080 cluster"),
    }
    assert reported(plan_of(service("web", type="NodePort", ports=NODE_PORTS, external_ips=LB))) == set()


def test_a_port_of_two_protocols_has_two_frontends_at_one_node_port() -> None:
    ports = ("http:80+30080/tcp", "http:80+30080/udp")
    plan = plan_of(service("web", VIP, type="NodePort", ports=ports), slices=[slice_of("web", "10.244.0.1")])
    by_protocol = {
        (k.protocol, k.scope): plan.backends[f.backends] for k, f in plan.frontends.items() if k.port == 30080
    }
    assert by_protocol[TCP, Scope.PACKET] == {(ip_address("10.244.0.1"), 8080)}
    assert by_protocol[UDP, Scope.PACKET] == frozenset()


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        (["10.244.0.1", "10.244.1.1 @n2"], {"10.244.0.1"}),
        (["10.244.1.1 @n2"], set()),
        (["10.244.0.1 terminating", "10.244.1.1 @n2"], {"10.244.0.1"}),
        (["10.244.0.1 terminating", "10.244.0.2", "10.244.1.1 @n2"], {"10.244.0.2"}),
        (["10.244.0.1 notready", "10.244.1.1 @n2"], set()),
        (["10.244.0.1 zone=b", "10.244.1.1 @n2 zone=a"], {"10.244.0.1"}),
    ],
)
def test_external_policy_local_means_endpoints_of_this_node(endpoints: list[str], expected: set[str]) -> None:
    web = service("web", VIP, type="NodePort", ports=NODE_PORTS, external_policy="Local")
    plan = plan_of(
        web, slices=[slice_of("web", *endpoints)], context=NodeContext(node="n1", zone="a", addresses=CONTEXT.addresses)
    )
    key = ServiceKey(address=ip_address(N1), port=30080, protocol=TCP, scope=Scope.PACKET)
    assert {str(address) for address, _ in plan.backends[plan.frontends[key].backends]} == expected


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"external_ips": "192.0.2.1"}, "spec.externalIPs: 192.0.2.1 is in no network that is allowed"),
        ({"external_ips": "10.96.0.99"}, "is the cluster IP of another Service"),
        ({"external_ips": "10.244.3.3"}, "is in a network of pods"),
        ({"external_ips": N1}, "is a node's own"),
        ({"external_ips": N2}, "is a node's own"),
        ({"load_balancer_ips": N2}, "status.loadBalancer.ingress: 172.30.0.12 is a node's own"),
        ({"load_balancer_ips": "127.0.0.1"}, "is none that packets from outside may have"),
        ({"load_balancer_ips": "10.96.0.99"}, "is the cluster IP of another Service"),
    ],
)
def test_addresses_from_outside_that_are_refused(fields: dict[str, Any], part: str) -> None:
    other = service("other", "10.96.0.99", ports=("http:443/tcp",))
    plan = plan_of(service("web", VIP, type="LoadBalancer", **fields), other)
    assert reported(plan) == {CLUSTER, "socket 10.96.0.99:443 none"}
    (refusal,) = plan.refused
    assert refusal.claimant == "Service shop/web"
    assert part in refusal.why
    assert refusal.remedy


def test_without_the_setting_no_external_ip_is_honoured() -> None:
    plan = plan_of(service("web", VIP, external_ips=LB), context=NodeContext(node="n1"))
    assert reported(plan) == {CLUSTER}
    assert "AIRMESH_EXTERNAL_IPS" in plan.refused[0].remedy


ALL4 = "10.244.0.0/16 172.30.0.0/24 198.51.100.1/32"


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ("192.0.2.0/24", {f"packet {LB}:80 cluster FOREIGN SOURCE_RANGES"}),
        ("fd00::/8", {f"packet {LB}:80 cluster FOREIGN SOURCE_RANGES"}),
        ("10.244.0.0/16", {f"packet {LB}:80 cluster FOREIGN SOURCE_RANGES"}),
        (ALL4, {f"socket {LB}:80 cluster", f"packet {LB}:80 cluster FOREIGN SOURCE_RANGES"}),
        ("0.0.0.0/0", {f"socket {LB}:80 cluster", f"packet {LB}:80 cluster FOREIGN"}),
        ("192.0.2.0/24 0.0.0.0/0", {f"socket {LB}:80 cluster", f"packet {LB}:80 cluster FOREIGN"}),
    ],
)
def test_source_ranges_of_a_load_balancer(ranges: str, expected: set[str]) -> None:
    web = service("web", VIP, type="LoadBalancer", load_balancer_ips=LB, source_ranges=ranges)
    assert reported(plan_of(web)) == {CLUSTER, *expected}


def test_source_ranges_do_not_hold_for_node_ports_and_are_written_under_the_services_number() -> None:
    web = service(
        *("web", VIP), type="LoadBalancer", ports=NODE_PORTS, load_balancer_ips=LB, source_ranges="192.0.2.0/24"
    )
    tables = tables_of(plan_of(web), Tables())
    key = ServiceKey(address=ip_address(LB), port=80, protocol=TCP, scope=Scope.PACKET)
    network = SourceRangeKey.of(tables.services[key].number, ip_network("192.0.2.0/24"))
    assert tables.ranges == {network: SourceRange()}
    node_port = ServiceKey(address=ip_address(N1), port=30080, protocol=TCP, scope=Scope.PACKET)
    assert not tables.services[node_port].flags & ServiceFlag.SOURCE_RANGES
    wider = tables_of(plan_of(service("web", VIP, type="LoadBalancer", load_balancer_ips=LB)), tables)
    assert (wider.ranges, change(tables, wider).remove_ranges) == ({}, (network,))


def holder(plan: Plan, key: ServiceKey) -> str:
    return plan.frontends[key].backends.name


def test_of_two_that_claim_a_frontend_the_older_has_it() -> None:
    key = ServiceKey(address=ip_address(LB), port=80, protocol=TCP, scope=Scope.SOCKET)
    first = service("z-first", VIP, external_ips=LB, created=100)
    second = service("a-second", "10.96.0.11", external_ips=LB, created=200)
    plan = plan_of(second, first)
    assert holder(plan, key) == "z-first"
    assert {refusal.claimant for refusal in plan.refused} == {"Service shop/a-second"}
    assert "203.0.113.7 port 80 (protocol 6) is that of service shop/z-first" in plan.refused[0].why
    assert holder(plan_of(service("b", VIP, external_ips=LB), service("a", "10.96.0.11", external_ips=LB)), key) == "a"


def host_pod(name: str, *ports: str, address: str = "10.244.0.9", **more: Any) -> HostPortPod:
    """Host ports as ``8080>80/tcp`` or ``127.0.0.1:8080>80/tcp``."""
    parsed = []
    for port in ports:
        where, _, inside = port.partition(">")
        host, _, number = where.rpartition(":")
        container, _, protocol = inside.partition("/")
        at = ip_address(host.strip("[]")) if host else None
        parsed.append(HostPort({"tcp": TCP, "udp": UDP, "sctp": 132}[protocol], int(number), int(container), at))
    pod = Pod(namespace="shop", name=name, uid=f"uid-{name}", node="n1", host_ports=tuple(parsed), **more)
    return HostPortPod(pod=pod, addresses=tuple(ip_address(text) for text in address.split()))


LOOP4, LOOP6 = "socket 127.0.0.1:8080 local NODE_ONLY", "socket [::1]:8080 local NODE_ONLY"
AT4, AT6 = [f"{scope} {N1}:8080 local" for scope in ("socket", "packet")], f"packet [{N1_6}]:8080 local"


@pytest.mark.parametrize(
    ("port", "address", "expected"),
    [
        ("8080>80/tcp", "10.244.0.9", {LOOP4, *AT4}),
        ("8080>80/tcp", "10.244.0.9 fd00::9", {LOOP4, *AT4, LOOP6, AT6, f"socket [{N1_6}]:8080 local"}),
        ("0.0.0.0:8080>80/tcp", "10.244.0.9 fd00::9", {LOOP4, *AT4}),
        ("[::]:8080>80/tcp", "10.244.0.9", set()),
        ("127.0.0.1:8080>80/tcp", "10.244.0.9", {LOOP4}),
        (f"{N1}:8080>80/tcp", "10.244.0.9", {*AT4}),
        ("198.51.100.1:8080>80/tcp", "10.244.0.9", {f"{s} 198.51.100.1:8080 local" for s in ("socket", "packet")}),
        ("8080>80/sctp", "10.244.0.9", set()),
    ],
)
def test_the_frontends_of_a_host_port(port: str, address: str, expected: set[str]) -> None:
    plan = plan_of(pods=(host_pod("web-0", port, address=address),))
    assert reported(plan) == expected
    assert plan.refused == []


def test_a_host_port_leads_to_the_pods_own_address_and_port_of_that_family() -> None:
    plan = plan_of(pods=(host_pod("web-0", "8080>80/tcp", "53>5353/udp", address="10.244.0.9 fd00::9"),))

    def targets(address: str, port: int, protocol: int) -> frozenset[Target]:
        key = ServiceKey(address=ip_address(address), port=port, protocol=protocol, scope=Scope.PACKET)
        return plan.backends[plan.frontends[key].backends]

    assert targets(N1, 8080, TCP) == {(ip_address("10.244.0.9"), 80)}
    assert targets(N1_6, 8080, TCP) == {(ip_address("fd00::9"), 80)}
    assert targets(N1, 53, UDP) == {(ip_address("10.244.0.9"), 5353)}


def test_pods_that_share_a_host_port_by_address_and_protocol_each_have_their_own() -> None:
    pods = (
        host_pod("pod1", "127.0.0.1:54323>8080/tcp", address="10.244.0.1"),
        host_pod("pod2", f"{N1}:54323>8080/tcp", address="10.244.0.2"),
        host_pod("pod3", f"{N1}:54323>8080/udp", address="10.244.0.3"),
    )
    plan = plan_of(pods=pods)
    found = {(str(key.address), key.protocol): holder(plan, key) for key in plan.frontends if key.scope == Scope.SOCKET}
    assert found == {("127.0.0.1", TCP): "pod1", (N1, TCP): "pod2", (N1, UDP): "pod3"}
    assert plan.refused == []


def test_a_node_port_stands_against_a_host_port_and_a_foreign_host_address_is_refused() -> None:
    web = service("web", VIP, type="NodePort", ports=NODE_PORTS)
    plan = plan_of(web, pods=(host_pod("web-0", f"{N1}:30080>80/tcp", "192.0.2.1:90>90/tcp"),))
    assert {frontend.backends.kind for frontend in plan.frontends.values()} == {"service"}
    assert {refusal.claimant for refusal in plan.refused} == {"Pod shop/web-0"}
    assert any("hostIP 192.0.2.1 of host port 90 is no address of node n1" in refusal.why for refusal in plan.refused)


def test_a_pod_that_leaves_yields_its_host_port_to_the_one_that_stays() -> None:
    key = ServiceKey(address=ip_address(N1), port=8080, protocol=TCP, scope=Scope.PACKET)
    old = host_pod("a-old", "8080>80/tcp", address="10.244.0.1", terminating=True)
    new = host_pod("b-new", "8080>80/tcp", address="10.244.0.2")
    assert holder(plan_of(pods=(old, new)), key) == "b-new"
    assert holder(plan_of(pods=(old,)), key) == "a-old"


def numbers(tables: Tables) -> dict[str, int]:
    return {f"{Scope(key.scope).name.lower()} {key.address}": value.number for key, value in tables.services.items()}


def test_frontends_of_one_port_share_backends_and_keep_their_number_when_one_is_parted() -> None:
    web = service("web", VIP, type="NodePort", ports=NODE_PORTS, affinity_seconds=60)
    before = tables_of(plan_of(web), Tables())
    assert set(numbers(before).values()) == {before.services[next(iter(before.services))].number}
    assert len(before.backends) == 2
    local = service("web", VIP, type="NodePort", ports=NODE_PORTS, external_policy="Local", affinity_seconds=60)
    after = tables_of(plan_of(local), before)
    assert numbers(after)[f"socket {VIP}"] == numbers(before)[f"socket {VIP}"]
    assert numbers(after)[f"packet {N1}"] not in set(numbers(before).values())
    assert {value.affinity_seconds for value in after.services.values()} == {60}
    again = tables_of(plan_of(local), after)
    assert (again, len(change(after, again))) == (after, 0)


def test_a_number_is_not_inherited_by_one_while_another_still_has_a_frontend_under_it() -> None:
    """Else the other's clients would meet the heir's backends until their own entry is written."""
    first = service("web", VIP, external_ips=LB, created=2)
    before = tables_of(plan_of(first), Tables())
    taker = service("api", "10.96.0.20", external_ips=LB, created=1)
    slices = [*BOTH, slice_of("api", "10.244.0.7")]
    after = tables_of(plan_of(first, taker, slices=slices), before)
    assert numbers(after)[f"socket {LB}"] not in set(numbers(before).values())
    outside = ServiceKey(address=ip_address(LB), port=80, protocol=TCP, scope=Scope.PACKET)
    assert slots_of(after)[outside] == ((ip_address("10.244.0.7"), 8080),)
