"""Probes on real programs: a packet is followed there and back through both nodes, and nothing of it is left."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path as Folder
from typing import Any

import pytest

from cli.reports.paths import End, Path, of_backends
from linux import bpf
from proto.net import Address
from proto.policy import Direction, PortMatch, Verdict
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import service_layout as lb
from tests.bpf.two_nodes import TestedNode, inner_of, pod_at, two_nodes, underlay
from tests.bpf.world import PeerKind, Rule, inside

pytestmark = pytest.mark.privileged

TCP, UDP, SCTP = 6, 17, 132
FAMILIES = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: Folder) -> Iterator[dict[int, TestedNode]]:
    with two_nodes(tmp_path_factory.mktemp("probes"), cache) as nodes:
        yield nodes


@pytest.fixture
def nodes(made: dict[int, TestedNode]) -> dict[int, TestedNode]:
    for node in made.values():
        node.reset()
        node.switch("host-gw", 6)
    return made


def end(address: Address) -> End:
    found = pod_at(address)
    if found is None:
        return End(name="", address=address)
    return End(name=f"{found.namespace}/{found.pod}", address=address, node=found.node)


def path(source: Address, destination: Address, port: int = 80, protocol: int = TCP) -> Path:
    return Path(source=end(source), destination=end(destination), port=port, protocol=protocol, source_port=40_000)


def follow(nodes: dict[int, TestedNode], one: Path) -> Path:
    """As the command does, of real programs' answers."""
    by_name = {node.name: node for node in nodes.values()}
    for _ in range(6):
        asked = one.question()
        if asked is None:
            return one
        one = one.reported(by_name[asked[0]].ask(asked[1])[0])
    raise AssertionError(f"still at {one.stage}")


def listening(number: int, pod: str, version: int, port: int = 80, kind: int = socket.SOCK_STREAM) -> socket.socket:
    with inside(inner_of(number, pod)):
        opened = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind)
    opened.bind(("0.0.0.0" if version == 4 else "::", port))
    if kind == socket.SOCK_STREAM:
        opened.listen(5)
    return opened


def said(one: Path) -> list[tuple[str, str, str]]:
    return [(hop.node, judged.direction, judged.reason) for hop in one.hops for judged in hop.hop.judgements]


def all_maps(node: TestedNode) -> dict[str, Any]:
    """What stands in each table, unread, and the counters."""
    tables = node.datapath.tables
    raw = {
        name: [part[1:] for part in bpf.lookup_batch(table.fd, table.spec.key_size, table.spec.value_size)]
        for name, table in tables.by_name.items()
    }
    return raw | {"metrics": tables.metrics()}


THERE_AND_BACK = [
    ("n1", "egress", "FORWARDED"),
    ("n2", "ingress", "FORWARDED"),
    ("n2", "egress", "REPLY"),
    ("n1", "ingress", "REPLY"),
]


@FAMILIES
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_pod_of_another_node_answers(nodes: dict[int, TestedNode], version: int, protocol: int) -> None:
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    with listening(2, "b", version, kind=kind):
        found = follow(nodes, path(nodes[1].address("a", version), nodes[2].address("b", version), 80, protocol))
    assert (found.ends, found.stage, found.well) == ("", "done", True)
    assert said(found) == THERE_AND_BACK
    first = found.hops[0].hop
    assert (first.outcome, first.model, first.device) == ("sent", "host-gw", "am-wire")
    assert first.next_hop == underlay(2, version)
    judged = found.hops[1].hop.judgements[0]
    assert (judged.subject, judged.peer) == ("shop/b2", "shop/a1")
    assert found.listener is not None
    assert found.listener.listens
    assert bool(found.listener.bound) == (protocol == TCP)


def test_sctp_is_followed_too(nodes: dict[int, TestedNode]) -> None:
    found = follow(nodes, path(nodes[1].address("a", 4), nodes[2].address("b", 4), 80, SCTP))
    assert (found.ends, said(found), found.listener) == ("", THERE_AND_BACK, None)


WAYS = [("vxlan", 4), ("vxlan", 6), ("ipip", 4), ("wireguard", 4)]


@pytest.mark.parametrize(("model", "version"), WAYS)
def test_each_model_carries_it(nodes: dict[int, TestedNode], model: str, version: int) -> None:
    for node in nodes.values():
        node.switch(model, version)
    found = follow(nodes, path(nodes[1].address("a", version), nodes[2].address("b", version)))
    assert said(found) == THERE_AND_BACK, found.ends
    for number, hop in ((1, found.hops[0].hop), (2, found.hops[2].hop)):
        assert hop.model == model
        if model == "wireguard":
            assert (hop.device, hop.outer_destination) == ("am-wg", None)
        else:
            assert (hop.device, hop.next_hop) == ("am-wire", underlay(3 - number))
            assert (hop.outer_source, hop.outer_destination) == (underlay(number), underlay(3 - number))


def test_encryption_is_asked_of_both_ends(nodes: dict[int, TestedNode]) -> None:
    """What must be encrypted does not go by a plain route; what came by WireGuard is not asked how it came."""
    encrypts = at.ConfigFlag.ENCRYPT4 | at.ConfigFlag.REFUSE_PLAIN4
    nodes[1].switch("host-gw", flags=encrypts)
    found = follow(nodes, path(nodes[1].address("a", 4), nodes[2].address("b", 4)))
    assert (found.hops[-1].node, found.hops[-1].hop.reason) == ("n1", "UNENCRYPTED")
    nodes[1].switch("host-gw")
    nodes[2].switch("host-gw", flags=encrypts)
    found = follow(nodes, path(nodes[1].address("a", 4), nodes[2].address("b", 4)))
    assert (found.hops[-1].node, found.hops[-1].hop.reason) == ("n2", "UNENCRYPTED")
    for node in nodes.values():
        node.switch("wireguard", flags=encrypts)
    assert said(follow(nodes, path(nodes[1].address("a", 4), nodes[2].address("b", 4)))) == THERE_AND_BACK


@FAMILIES
def test_pods_of_one_node(nodes: dict[int, TestedNode], version: int) -> None:
    with listening(1, "b", version):
        found = follow(nodes, path(nodes[1].address("a", version), nodes[1].address("b", version)))
    assert found.ends == ""
    assert said(found) == [
        ("n1", "egress", "FORWARDED"), ("n1", "ingress", "FORWARDED"), ("n1", "egress", "REPLY"),
        ("n1", "ingress", "REPLY"),
    ]  # fmt: skip
    assert [hop.hop.outcome for hop in found.hops] == ["delivered", "delivered"]


@FAMILIES
def test_denied_at_egress(nodes: dict[int, TestedNode], version: int) -> None:
    nodes[1].isolate("a", egress=True)
    found = follow(nodes, path(nodes[1].address("a", version), nodes[2].address("b", version)))
    assert said(found) == [("n1", "egress", "POLICY_DENIED")]
    assert found.hops[0].hop.judgements[0].policies == ("shop/a-out",)
    assert "node n1 drops it at the egress of shop/a1" in found.ends
    assert not found.well


@FAMILIES
def test_denied_at_ingress(nodes: dict[int, TestedNode], version: int) -> None:
    nodes[2].isolate("b", ingress=True)
    found = follow(nodes, path(nodes[1].address("a", version), nodes[2].address("b", version)))
    assert said(found) == [("n1", "egress", "FORWARDED"), ("n2", "ingress", "POLICY_DENIED")]
    assert found.hops[1].hop.judgements[0].policies == ("shop/b-in",)
    assert "node n2 drops it at the ingress of shop/b2" in found.ends


def test_the_rule_that_allows_is_named(nodes: dict[int, TestedNode]) -> None:
    """By the port that it allows, and no other."""
    nodes[2].isolate("b", ingress=True)
    subject = nodes[2].pods["b"].identity
    port = PortMatch(TCP, 80, 16)
    nodes[2].allow(Rule(subject, Direction.INGRESS, PeerKind.ANY, 0, port, 100, int(Verdict.ALLOW), 0))
    with listening(2, "b", 4):
        found = follow(nodes, path(nodes[1].address("a", 4), nodes[2].address("b", 4)))
    judged = found.hops[1].hop.judgements[0]
    assert (judged.reason, judged.policies, judged.rule, judged.revision) == ("FORWARDED", ("shop/b-rule",), 0, "e1:7")
    assert found.ends == ""
    other = follow(nodes, path(nodes[1].address("a", 4), nodes[2].address("b", 4), 81))
    assert other.hops[-1].hop.reason == "POLICY_DENIED"


@FAMILIES
def test_nothing_listens(nodes: dict[int, TestedNode], version: int) -> None:
    found = follow(nodes, path(nodes[1].address("a", version), nodes[2].address("b", version)))
    assert found.ends == "nothing listens on tcp 80 in shop/b2"


def test_what_listens_on_loopback_alone_does_not_count(nodes: dict[int, TestedNode]) -> None:
    with inside(inner_of(2, "b")), socket.socket() as opened:
        opened.bind(("127.0.0.1", 80))
        opened.listen()
        found = follow(nodes, path(nodes[1].address("a", 4), nodes[2].address("b", 4)))
    assert "nothing listens" in found.ends


@FAMILIES
def test_each_backend_of_a_service_is_followed(nodes: dict[int, TestedNode], version: int) -> None:
    virtual = end(underlay(9, version)).address
    backends = nodes[2].address("a", version), nodes[1].address("b", version)
    tables = nodes[1].datapath.tables
    asked = path(nodes[1].address("a", version), virtual, 443)
    tables.services.put(lb.ServiceKey(address=virtual, port=443, protocol=TCP), lb.Service(number=5, backends=2))
    for index, address in enumerate(backends):
        tables.backends.put(lb.BackendKey(service=5, index=index), lb.Backend(address=address, port=80))
    found = follow(nodes, asked)
    assert "socket programs do not act" in found.ends
    tables.cookies.put(at.CookieKey(cookie=nodes[1].pods["a"].cookie), at.CookieMark())
    found = follow(nodes, asked)
    assert found.choice is not None
    assert (found.choice.backends, found.choice.count) == (tuple((one, 80) for one in backends), 2)
    each = of_backends(found, {address: end(address) for address in backends})
    with listening(2, "a", version), listening(1, "b", version):
        whole = [follow(nodes, one) for one in each]
    assert [one.ends for one in whole] == ["", ""]
    assert [one.destination.name for one in whole] == ["shop/a2", "shop/b1"]


def test_service_without_endpoint(nodes: dict[int, TestedNode]) -> None:
    virtual = underlay(9)
    service = lb.Service(number=6, backends=0)
    nodes[1].datapath.tables.services.put(lb.ServiceKey(address=virtual, port=443, protocol=UDP), service)
    nodes[1].datapath.tables.cookies.put(at.CookieKey(cookie=nodes[1].pods["a"].cookie), at.CookieMark())
    found = follow(nodes, path(nodes[1].address("a", 4), virtual, 443, UDP))
    assert (found.well, found.hops) == (False, ())
    assert "no endpoint" in found.ends


def test_beyond_the_mesh_the_stack_takes_it(nodes: dict[int, TestedNode]) -> None:
    found = follow(nodes, path(nodes[1].address("a", 4), underlay(2)))
    assert (found.leaves, found.well) == (True, True)
    assert "leaves the pods' network" in found.ends
    assert found.hops[0].hop.outcome == "stack"


def test_a_pod_that_its_node_does_not_deliver_to(nodes: dict[int, TestedNode]) -> None:
    """Its entry is missing in the map of local delivery: the packet arrives, and is the stack's."""
    tables, address = nodes[2].datapath.tables, nodes[2].address("b", 4)
    tables.endpoints.remove(at.AddressKey(address=address))
    try:
        found = follow(nodes, path(nodes[1].address("a", 4), address))
    finally:
        tables.endpoints.put(at.AddressKey(address=address), nodes[2].pods["b"].delivery())
    assert "the stack of node n2 takes it" in found.ends
    assert not found.well


def test_a_pod_that_is_not_here(nodes: dict[int, TestedNode]) -> None:
    asked = path(nodes[2].address("a", 4), nodes[2].address("b", 4)).question()
    assert asked is not None
    refused = nodes[1].ask(asked[1])[0].refused
    assert refused == "no pod of node n1 has 10.244.2.1: it is gone, or its agent has not taken it up yet"


def test_budget_that_is_spent_refuses_as_it_would_a_packet(nodes: dict[int, TestedNode]) -> None:
    tables, key = nodes[1].datapath.tables, at.EndpointKey(endpoint=nodes[1].pods["a"].index)
    budget = tables.budgets.get(key)
    assert budget is not None
    spent = at.Budget(ingress_limit=budget.ingress_limit, egress_limit=10, egress=10, mask=budget.mask)
    tables.budgets.put(key, spent)
    try:
        found = follow(nodes, path(nodes[1].address("a", 4), nodes[2].address("b", 4)))
    finally:
        tables.budgets.put(key, budget)
    assert found.hops[0].hop.reason == "CONNTRACK_BUDGET"


def test_nothing_of_a_probe_is_left(nodes: dict[int, TestedNode]) -> None:
    """No map of either node has changed: no flow, no count, no place."""
    for node in nodes.values():
        node.switch("vxlan")
    nodes[2].isolate("b", ingress=True)
    before = {number: all_maps(node) for number, node in nodes.items()}
    for version in (4, 6):
        for protocol in (TCP, UDP):
            for pod in ("a", "b"):
                follow(nodes, path(nodes[1].address("a", version), nodes[2].address(pod, version), 53, protocol))
    for number, node in nodes.items():
        after = all_maps(node)
        assert {name for name in after if after[name] != before[number][name]} == set()
