"""Node ports: who has them besides the Service, and who drops them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace as changed

from proto.objects import EndpointPort, EndpointSlice, HostPort, Pod, Service, ServicePort, SliceEndpoint
from proto.policy import (
    CidrPartition,
    CidrSet,
    CompiledPolicy,
    CompiledRule,
    Direction,
    PortMatch,
    Revision,
    RuleSource,
    Verdict,
)
from services.dataplane.core.doctor import nodeports
from services.dataplane.core.doctor.ingress import Subject
from services.dataplane.core.doctor.nodeports import TCP, UDP, Listener, NodePorts, Tried, parse_ports

PORT = ServicePort(name="web", protocol=TCP, port=80, node_port=30080)
WEB = Service(
    namespace="shop", name="web", uid="u", type="NodePort", cluster_ips=(ip_address("10.96.0.9"),), ports=(PORT,)
)
WELL = NodePorts(node="n1", services=(WEB,), pods=(), listeners={}, ephemeral=(32768, 60999))
POD = Pod(
    namespace="shop",
    name="old",
    uid="p",
    node="n1",
    phase="Running",
    host_ports=(HostPort(protocol=TCP, port=30080, container_port=80),),
)


def codes(seen: NodePorts) -> list[str]:
    return [one.code for one in nodeports.check(seen)]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert codes(WELL) == []
    assert codes(replace(WELL, listeners={(UDP, 30080): Listener(inode=7, process="x")})) == []


def test_a_process_that_listens_is_named() -> None:
    (found,) = nodeports.check(replace(WELL, listeners={(TCP, 30080): Listener(inode=7, process="nginx (pid 71)")}))
    assert found.code == "nodeport-taken-by-process"
    assert "nginx (pid 71)" in found.cause
    assert (found.about, found.node) == ("Service shop/web", "n1")


def test_a_pod_with_the_port_is_named_rather_than_its_socket() -> None:
    seen = replace(WELL, pods=(POD,), listeners={(TCP, 30080): Listener(inode=7, process="x")})
    assert codes(seen) == ["nodeport-taken-by-hostport"]
    assert codes(replace(WELL, pods=(changed(POD, phase="Succeeded"),))) == []
    assert codes(replace(WELL, pods=(changed(POD, terminating=True),))) == []


@pytest.mark.parametrize(
    ("ephemeral", "reserved", "found"),
    [
        ((32768, 60999), frozenset(), []),
        ((30080, 60999), frozenset(), ["nodeport-ephemeral"]),
        ((1024, 30080), frozenset(), ["nodeport-ephemeral"]),
        ((1024, 60999), frozenset({30080}), []),
    ],
)
def test_the_ephemeral_range(ephemeral: tuple[int, int], reserved: frozenset[int], found: list[str]) -> None:
    assert codes(replace(WELL, ephemeral=ephemeral, reserved=reserved)) == found


def test_the_fix_of_an_ephemeral_port_keeps_what_is_reserved() -> None:
    (found,) = nodeports.check(replace(WELL, ephemeral=(1024, 60999), reserved=frozenset({8080})))
    assert found.fixes[0].command == "sysctl -w net.ipv4.ip_local_reserved_ports=8080,30080"
    assert found.fixes[0].undo == "sysctl -w net.ipv4.ip_local_reserved_ports=8080"


def test_a_health_check_whose_port_another_process_has() -> None:
    service = Service(namespace="shop", name="lb", uid="u", health_check_port=31999)
    seen = replace(WELL, services=(service,), listeners={(TCP, 31999): Listener(inode=7, process="x (pid 1)")})
    assert codes(seen) == ["nodeport-health-check"]
    assert codes(replace(seen, listeners={(TCP, 31999): Listener(inode=7, process="us", is_ours=True)})) == []


def local(*nodes: str) -> tuple[Service, ...]:
    service = Service(namespace="shop", name="web", uid="u", external_policy="Local", ports=(PORT,))
    endpoints = tuple(SliceEndpoint(addresses=(ip_address("10.244.0.9"),), node=node) for node in nodes)
    part = EndpointSlice(namespace="shop", name="web-1", service="web", endpoints=endpoints)
    return nodeports.without_local_endpoint("n1", (service,), (part,))


def test_a_service_without_a_local_endpoint_is_found_only_when_somebody_asks_for_it() -> None:
    assert local("n1", "n2") == ()
    assert local() == (), "without any endpoint it is no matter of this node"
    lacking = local("n2")
    assert [one.code for one in nodeports.check_local("n1", lacking, 3, 1.0)] == ["nodeport-no-local-endpoint"]
    assert list(nodeports.check_local("n1", lacking, 0, 1.0)) == []


@pytest.mark.parametrize(
    ("answered", "node_answers", "inside_answers", "found"),
    [
        (False, True, True, ["nodeport-filtered"]),
        (True, True, True, []),
        (False, False, True, []),
        (False, True, False, []),
    ],
)
def test_a_node_port_that_is_silent(answered: bool, node_answers: bool, inside_answers: bool, found: list[str]) -> None:
    tried = Tried(
        service=WEB,
        port=PORT,
        peer="n2",
        address=ip_address("172.30.0.12"),
        answered=answered,
        node_answers=node_answers,
        inside_answers=inside_answers,
    )
    assert [one.code for one in nodeports.check_tried("n1", [tried])] == found


@pytest.mark.parametrize(
    ("isolated", "blocks", "port", "answers"),
    [
        (False, "198.51.100.0/24", 8080, True),
        (True, "198.51.100.0/24", 8080, False),
        (True, "172.30.0.0/24", 8080, True),
        (True, "172.30.0.0/24", 9090, False),
    ],
)
def test_a_pods_answer_to_its_own_node_is_none_to_another(
    isolated: bool, blocks: str, port: int, answers: bool
) -> None:
    """Policy lets it be asked by its node alone, whose firewall has no part in it."""
    rule = CompiledRule(Direction.INGRESS, 0, Verdict.ALLOW, 0, False, (), (99,), (PortMatch(TCP, port, 16),))
    at = Revision(epoch="e", sequence=7)
    policy = CompiledPolicy(
        identity=1000,
        revision=at,
        ingress_isolated=isolated,
        egress_isolated=False,
        rules=(rule,),
        sources=(RuleSource("NetworkPolicy", "shop", "from-office", 0),),
        namespace="shop",
    )
    partition = CidrPartition(revision=at, prefixes=(CidrSet(prefix=ip_network(blocks), number=99),))
    pod, peer = ip_address("10.0.1.5"), ip_address("172.30.0.12")
    subject = Subject(name="shop/web-0", addresses=(pod,), policy=policy, partition=partition)
    slices = EndpointSlice(
        "shop", "web-1", "web", (SliceEndpoint((pod,), node="n1"),), (EndpointPort("web", TCP, 8080),)
    )
    other = changed(slices, service="other")
    assert nodeports.would_answer(WEB, PORT, peer, [slices], {pod: subject}) is answers
    assert nodeports.would_answer(WEB, PORT, peer, [slices], {}), "who answers is elsewhere, and took this for a node"
    assert nodeports.would_answer(WEB, PORT, peer, [other], {pod: subject})


def test_reserved_ports() -> None:
    assert parse_ports("") == frozenset()
    assert parse_ports("8080,30000-30002\n") == {8080, 30000, 30001, 30002}
