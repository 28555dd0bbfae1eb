"""From API objects to a node's speaker and peers: tables in the objects' own notation, and every order of arrival."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chassis.telemetry.log import Log
from proto.net import Address
from proto.objects import (
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    IPPool,
    KubernetesObject,
    Node,
    NodeBGP,
    SecretKey,
)
from services.cluster.core.bgp import SEVERITIES
from services.cluster.core.parse import parse_object
from services.routing.core.bgp.configuration import LOG_LEVELS
from services.routing.core.bgp.peers import Action, Peer, SessionSettings
from services.routing.core.bgp.resources import Objects, Peering, addresses_of, peering, router_id
from services.routing.core.bgp.values import AddPath, Family
from services.routing.core.faults import Fault
from tests.core.states import Driver, every_order, follow

SCENARIO = Path(__file__).parents[4] / "examples" / "scenarios" / "ai-bgp-ecmp.yaml"
GROUPS = ("crd.projectcalico.org/v1", "projectcalico.org/v3")
KEY = SecretKey("bgp", "tor")
POOLS = (IPPool("pods", ip_network("10.244.0.0/16"), 26), IPPool("pods6", ip_network("fd00:10:244::/56"), 122))

# A node a row: name | addresses | labels | annotations (as: AS number, rr: cluster id, v4, v6)
NODES = """
n1 | 172.30.0.11 fd00:172::11 | rack=a |
n2 | 172.30.0.12 fd00:172::12 | rack=a |
n3 | 172.30.0.13              | rack=b | as=64513
r1 | 172.30.0.21 fd00:172::21 | rr=    | rr=244.0.0.1
r2 | 172.30.0.22 fd00:172::22 | rr=    | rr=244.0.0.1
"""


def nodes_of(table: str) -> dict[str, Node]:
    found = {}
    for row in table.strip().splitlines():
        name, addresses, labels, said = (cell.strip() for cell in row.split("|"))
        said_of = dict(pair.split("=") for pair in said.split())
        bgp = NodeBGP(
            ipv4=ip_address(said_of["v4"]) if "v4" in said_of else None,
            ipv6=ip_address(said_of["v6"]) if "v6" in said_of else None,
            asn=int(said_of["as"]) if "as" in said_of else None,
            cluster_id=ip_address(said_of["rr"]) if "rr" in said_of else None,
        )
        found[name] = Node(
            name=name,
            uid=f"uid-{name}",
            labels=tuple(sorted((pair.split("=")[0], pair.split("=")[1]) for pair in labels.split())),
            addresses=tuple(map(ip_address, addresses.split())),
            bgp=bgp if said else None,
        )
    return found


def objects_of(text: str, group: str = GROUPS[0]) -> list[KubernetesObject]:
    """YAML without apiVersion and uid, each object on a line of its own: ``Kind name: {spec}``."""
    found: list[KubernetesObject] = []
    for row in text.strip().splitlines():
        head, spec = row.strip().split(": ", 1)
        kind, name = head.split()
        written = {"apiVersion": group, "kind": kind, "metadata": {"name": name, "uid": "u"}}
        one = parse_object({**written, "spec": yaml.safe_load(spec)})
        assert one is not None
        found.append(one)
    return found


def objects(me: str, text: str, nodes: str = NODES, **more: Any) -> Objects:
    parsed = objects_of(text)
    return Objects(
        me=me,
        nodes=nodes_of(nodes),
        configurations=tuple(one for one in parsed if isinstance(one, BGPConfiguration)),
        peers=tuple(one for one in parsed if isinstance(one, BGPPeer)),
        filters={one.name: one for one in parsed if isinstance(one, BGPFilter)},
        **{"pools": POOLS, **more},
    )


def made(me: str, text: str, nodes: str = NODES, **more: Any) -> Peering:
    return peering(objects(me, text, nodes, **more))


def named(found: Peering) -> dict[str, Peer]:
    return {peer.name: peer for peer in found.peers}


def only(found: Peering) -> Peer:
    (peer,) = found.peers
    return peer


MESH_ON = "BGPConfiguration default: {asNumber: 64512}"
MESH_OFF = "BGPConfiguration default: {asNumber: 64512, nodeToNodeMeshEnabled: false}"


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("me", ["n1", "n2"])
def test_the_scenario_of_two_switches(group: str, me: str) -> None:
    """Node mesh off, AS 64512, an eBGP session to each of two switches, nothing else."""
    parsed = [
        parse_object({**one, "apiVersion": group, "metadata": {**one["metadata"], "uid": "u"}})
        for one in yaml.safe_load_all(SCENARIO.read_text())
    ]
    found = peering(
        Objects(
            me=me,
            nodes=nodes_of(NODES),
            configurations=tuple(one for one in parsed if isinstance(one, BGPConfiguration)),
            peers=tuple(one for one in parsed if isinstance(one, BGPPeer)),
            pools=POOLS,
        )
    )
    own = nodes_of(NODES)[me].addresses[0]
    assert found.faults == ()
    assert found.speaker is not None
    assert (found.speaker.asn, found.speaker.router_id, found.speaker.listen_port) == (64512, own, 179)
    said_of = {
        p.name: (str(p.session.address), p.session.peer_asn, p.session.local_asn, p.session.local) for p in found.peers
    }
    assert said_of == {
        "tor-a/172.31.0.1": ("172.31.0.1", 65001, 64512, own),
        "tor-b/172.31.1.1": ("172.31.1.1", 65002, 64512, own),
    }
    for peer in found.peers:
        assert peer.session.external
        assert peer.session.bfd
        assert not peer.session.passive
        assert peer.session.families == frozenset(Family)
        assert peer.tables.default_import
        assert peer.tables.default_export


@pytest.mark.parametrize(
    ("me", "text", "peers"),
    [
        ("n1", "", None),
        ("n1", "BGPConfiguration node.n1: {listenPort: 1790}", None),
        ("n9", MESH_ON, None),
        ("n1", MESH_ON, "mesh/n2 mesh/n2/ipv6 mesh/n3"),
        ("n3", MESH_ON, "mesh/n1 mesh/n2"),
        ("r1", MESH_ON, ""),
        ("n1", MESH_OFF, ""),
        ("n1", "BGPPeer a: {peerIP: 10.0.0.1, asNumber: 1}", "a/10.0.0.1 mesh/n2 mesh/n2/ipv6 mesh/n3"),
        ("n1", f"{MESH_OFF}\nBGPPeer a: {{peerIP: 10.0.0.1, asNumber: 1, node: n2}}", ""),
        ("n2", f"{MESH_OFF}\nBGPPeer a: {{peerIP: 10.0.0.1, asNumber: 1, node: n2}}", "a/10.0.0.1"),
        ("n3", f"{MESH_OFF}\nBGPPeer a: {{peerIP: 10.0.0.1, asNumber: 1, nodeSelector: rack == 'a'}}", ""),
        ("n1", f"{MESH_OFF}\nBGPPeer a: {{peerIP: 10.0.0.1, asNumber: 1, nodeSelector: rack == 'a'}}", "a/10.0.0.1"),
        ("n1", f"{MESH_OFF}\nBGPPeer a: {{peerIP: 172.30.0.11, asNumber: 64512}}", ""),
        ("n1", f"{MESH_OFF}\nBGPPeer a: {{node: n1, peerSelector: rack == 'b'}}", "a/172.30.0.13"),
        ("n3", f"{MESH_OFF}\nBGPPeer a: {{node: n1, peerSelector: rack == 'b'}}", "a/172.30.0.11"),
        ("n3", f"{MESH_OFF}\nBGPPeer a: {{node: n1, peerSelector: rack == 'b', reversePeering: Manual}}", ""),
        (
            "n1",
            f"{MESH_OFF}\nBGPPeer a: {{nodeSelector: '!has(rr)', peerSelector: has(rr)}}",
            "a/172.30.0.21 a/172.30.0.22 a/fd00:172::21 a/fd00:172::22",
        ),
        (
            "r1",
            f"{MESH_OFF}\nBGPPeer a: {{nodeSelector: '!has(rr)', peerSelector: has(rr)}}",
            "a/172.30.0.11 a/172.30.0.12 a/172.30.0.13 a/fd00:172::11 a/fd00:172::12",
        ),
        (
            "r1",
            f"{MESH_OFF}\nBGPPeer a: {{peerSelector: has(rr), nodeSelector: has(rr)}}",
            "a/172.30.0.22 a/fd00:172::22",
        ),
    ],
)
def test_who_peers_with_whom(me: str, text: str, peers: str | None) -> None:
    found = made(me, text) if text else peering(Objects(me=me, nodes=nodes_of(NODES)))
    assert (None if found.speaker is None else " ".join(sorted(named(found)))) == peers
    assert found.faults == ()


def test_between_two_nodes_one_side_connects() -> None:
    """And both sides of each session agree on addresses, systems and ports."""
    text = f"""{MESH_ON}
    BGPConfiguration node.n2: {{listenPort: 1790}}
    BGPPeer a: {{nodeSelector: '!has(rr)', peerSelector: has(rr)}}
    """
    ports = {"n2": 1790}
    sessions: dict[tuple[Address, Address], tuple[str, SessionSettings]] = {}
    for me in nodes_of(NODES):
        for peer in made(me, text).peers:
            assert peer.session.local is not None
            sessions[peer.session.local, peer.session.address] = (me, peer.session)
    assert len(sessions) == 2 * (3 + 1 + 6 + 4), "mesh in both families, then with the reflectors"
    for (local, address), (me, session) in sessions.items():
        other, back = sessions[address, local]
        assert (session.local_asn, session.peer_asn) == (back.peer_asn, back.local_asn)
        assert session.passive is not back.passive
        assert session.passive is (int(address) > int(local))
        assert session.port == ports.get(other, 179)
        assert session.families == back.families == {Family.IPV4 if address.version == 4 else Family.IPV6}
        assert me != other


def test_a_session_over_ipv6_carries_ipv4_where_no_other_does() -> None:
    nodes = "n1 | fd00::1 |  |\nn2 | fd00::2 10.0.0.2 |  |\nn3 | fd00::3 10.0.0.3 |  |"
    for me, other in (("n1", "n2"), ("n2", "n1")):
        session = named(made(me, MESH_ON, nodes))[f"mesh/{other}/ipv6"].session
        assert session.families == set(Family)
        assert session.extended_next_hops == {Family.IPV4}
    apart = named(made("n2", MESH_ON, nodes))
    assert apart["mesh/n3/ipv6"].session.families == {Family.IPV6}
    assert apart["mesh/n3/ipv6"].session.extended_next_hops == frozenset()
    assert apart["mesh/n3"].session.families == {Family.IPV4}


A = "peerIP: 10.0.0.1, asNumber: 65001"


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (A, {}),
        ("peerIP: '10.0.0.1:1790', asNumber: 65001", {"port": 1790}),
        ("peerIP: 10.0.0.1, asNumber: 64512", {"peer_asn": 64512, "bfd": False, "internal": True}),
        (f"{A}, localASNumber: 65001", {"local_asn": 65001, "bfd": False, "internal": True}),
        (f"{A}, sourceAddress: None", {"local": None}),
        (f"{A}, ttlSecurity: 2, maxRestartTime: 1m", {"hops": 2, "restart_seconds": 60}),
        (f"{A}, keepaliveTime: 1s, maxRestartTime: 0s", {"hold_seconds": 3, "restart_seconds": 0}),
        (f"{A}, password: {{secretKeyRef: {{name: bgp, key: tor}}}}", {"password": "secret"}),
        (
            "peerIP: '[fd00::1]:1790', asNumber: 65001",
            {
                "address": ip_address("fd00::1"),
                "port": 1790,
                "local": ip_address("fd00:172::11"),
                "extended_next_hops": frozenset({Family.IPV4}),
            },
        ),
    ],
)
def test_how_a_session_is_held(spec: str, changes: dict[str, Any]) -> None:
    found = made("n1", f"{MESH_OFF}\nBGPPeer a: {{{spec}}}", passwords={KEY: "secret"})
    plain = only(made("n1", f"{MESH_OFF}\nBGPPeer a: {{{A}}}")).session
    internal = changes.pop("internal", False)
    add_path = {"add_path": tuple((family, AddPath.BOTH) for family in Family)} if internal else {}
    assert only(found).session == replace(plain, **{**changes, **add_path})
    assert found.faults == ()


def test_a_node_without_ipv6_offers_ipv4_alone_over_ipv4() -> None:
    session = only(made("n3", f"{MESH_OFF}\nBGPPeer a: {{{A}}}")).session
    assert session.families == {Family.IPV4}
    assert (session.local_asn, session.local) == (64513, ip_address("172.30.0.13"))


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (A, {}),
        (f"{A}, keepOriginalNextHop: true", {"keep_next_hop": True}),
        (f"{A}, nextHopMode: Keep", {"keep_next_hop": True}),
        (f"{A}, nextHopMode: Self", {}),
        ("peerIP: 10.0.0.1, asNumber: 64512, keepOriginalNextHop: true", {}),
        (f"{A}, numAllowedLocalASNumbers: 1", {"allowed_own_asn": 1}),
    ],
)
def test_what_passes_beside_the_rules(spec: str, changes: dict[str, Any]) -> None:
    plain = only(made("n1", f"{MESH_OFF}\nBGPPeer a: {{{A}}}")).tables
    found = only(made("n1", f"{MESH_OFF}\nBGPPeer a: {{{spec}}}")).tables
    assert replace(found, imports=(), exports=()) == replace(plain, imports=(), exports=(), **changes)


@pytest.mark.parametrize(
    ("more", "leaving"),
    [
        ({}, False),
        ({"ready": True}, False),
        ({"unschedulable": True}, True),
        ({"leaving": True}, True),
        ({"unschedulable": True, "leaving": True}, True),
    ],
)
def test_who_is_cordoned_or_about_to_be_deleted_leaves(more: dict[str, bool], leaving: bool) -> None:
    text = f"{MESH_ON}\nBGPPeer a: {{{A}}}"
    before = objects("n1", text)
    changed = {**before.nodes, "n1": msgspec.structs.replace(before.nodes["n1"], **more)}
    after = peering(replace(before, nodes=changed))
    assert after.speaker is not None
    assert after.speaker.leaving is leaving
    assert {peer.tables.leaving for peer in after.peers} == {leaving}
    others = {peer.tables.leaving for peer in peering(replace(before, me="n2", nodes=changed)).peers}
    assert others == {False}


def test_a_reflectors_peers_without_its_cluster_id_are_clients() -> None:
    text = f"""{MESH_OFF}
    BGPPeer a: {{nodeSelector: has(rr), peerSelector: all()}}
    BGPPeer b: {{peerIP: 10.0.0.1, asNumber: 64512, node: r1}}
    BGPPeer c: {{peerIP: 10.0.0.2, asNumber: 65001, node: r1}}
    """
    found = named(made("r1", text))
    clients = {name: peer.tables.client for name, peer in found.items() if ":" not in name}
    assert clients == {
        "a/172.30.0.11": True,
        "a/172.30.0.12": True,
        "a/172.30.0.13": False,  # of another system
        "a/172.30.0.22": False,  # of the same cluster
        "b/10.0.0.1": True,
        "c/10.0.0.2": False,
    }
    assert {peer.tables.cluster_id for peer in found.values()} == {IPv4Address("244.0.0.1")}
    assert not any(peer.tables.client for peer in made("n1", text).peers)


@pytest.mark.parametrize(
    ("row", "identifier", "addresses"),
    [
        ("n1 | 172.30.0.11 172.30.0.12 |  |", "172.30.0.11", "172.30.0.11"),
        ("n1 | 172.30.0.11 |  | v4=10.0.0.1 v6=fd00::1", "10.0.0.1", "10.0.0.1 fd00::1"),
        ("n1 | fd00::1 172.30.0.11 |  |", "172.30.0.11", "172.30.0.11 fd00::1"),
    ],
)
def test_a_nodes_addresses_and_router_id(row: str, identifier: str, addresses: str) -> None:
    node = nodes_of(row)["n1"]
    assert " ".join(map(str, addresses_of(node).values())) == addresses
    assert str(router_id(node)) == identifier


def test_a_router_id_without_ipv4_is_made_of_the_name() -> None:
    one, other = (router_id(nodes_of(f"{name} | fd00::1 |  |")[name]) for name in ("n1", "n2"))
    assert one == router_id(nodes_of("n1 | fd00::9 |  |")["n1"])
    assert IPv4Address(0) not in (one, other)
    assert one != other


@pytest.mark.parametrize(
    ("me", "text", "nodes", "about", "part"),
    [
        ("n1", MESH_ON, "n1 |  | |", ("Node", "n1"), "has no address"),
        (
            "n1",
            f"BGPPeer b: {{{A}}}\nBGPPeer a: {{peerIP: 10.0.0.1, asNumber: 65009}}",
            NODES,
            ("BGPPeer", "b"),
            "10.0.0.1 is the peer that BGPPeer a names too",
        ),
        (
            "n1",
            f"BGPPeer a: {{{A}}}\nBGPPeer b: {{peerIP: '10.0.0.1:1790', asNumber: 1, nodeSelector: has(rack)}}",
            NODES,
            ("BGPPeer", "a"),
            "BGPPeer b names too",
        ),
        (
            "n1",
            f"BGPPeer a: {{{A}, nodeSelector: has(rack)}}\nBGPPeer b: {{peerIP: 10.0.0.1, asNumber: 1, node: n1}}",
            NODES,
            ("BGPPeer", "a"),
            "BGPPeer b names too",
        ),
        (
            "n1",
            f"BGPPeer a: {{{A}, filters: [x, y]}}\nBGPFilter y: {{}}",
            NODES,
            ("BGPPeer", "a"),
            "no BGPFilter x, so",
        ),
        (
            "n1",
            "BGPPeer a: {node: n1, peerSelector: has(rack)}\nBGPPeer b: {nodeSelector: has(rack), peerSelector: all()}",
            NODES,
            ("BGPPeer", "b"),
            "172.30.0.12 (and 2 more) is the peer that BGPPeer a names too",
        ),
        (
            "n1",
            "BGPPeer a: {peerIP: 172.30.0.13, asNumber: 64512}",
            NODES,
            ("BGPPeer", "a"),
            "172.30.0.13 is node n3 of AS 64513, not of AS 64512",
        ),
        (
            "n1",
            "BGPPeer a: {peerIP: 10.0.0.1, asNumber: 64512, nextHopMode: Self}",
            NODES,
            ("BGPPeer", "a"),
            "nextHopMode Self counts for peers of other systems",
        ),
        (
            "n1",
            MESH_OFF,
            f"{NODES}n7 | 172.30.0.17 | | v4=172.30.0.11",
            ("Node", "n1"),
            "node n7 has the router id 172.30.0.11 of node n1 too",
        ),
        (
            "n1",
            "BGPConfiguration default: {prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [red]}]}",
            NODES,
            ("BGPConfiguration", "default"),
            "the community 'red'",
        ),
        (
            "n1",
            "BGPConfiguration default: {nodeMeshPassword: {secretKeyRef: {name: bgp, key: mesh}}}",
            NODES,
            ("BGPConfiguration", "default"),
            "Secret bgp, key mesh is not on this node",
        ),
        (
            "n1",
            f"BGPPeer a: {{{A}, password: {{secretKeyRef: {{name: bgp, key: other}}}}}}",
            NODES,
            ("BGPPeer", "a"),
            "Secret bgp, key other is not on this node, so no session is held",
        ),
        (
            "n1",
            f"BGPPeer a: {{{A}, password: {{secretKeyRef: {{name: bgp, key: long}}}}}}",
            NODES,
            ("BGPPeer", "a"),
            "has 81 octets, so no session is held",
        ),
    ],
)
def test_what_cannot_be_honoured_is_said_once(
    me: str, text: str, nodes: str, about: tuple[str, str], part: str
) -> None:
    passwords = {KEY: "secret", SecretKey("bgp", "long"): "é" * 40 + "x"}
    found = made(me, text, nodes, passwords=passwords)
    (fault,) = found.faults
    assert fault.about == about
    assert part in fault.fault
    assert fault.remedy
    assert "secret" not in str(found)
    held = {peer.session.address: peer for peer in found.peers}
    assert len(held) == len(found.peers), "one session with an address"
    if "assword" in text:
        assert not any(peer.name.startswith("mesh/") for peer in found.peers if about[0] == "BGPConfiguration")
        assert ip_address("10.0.0.1") not in held


def test_an_explicit_peer_comes_before_the_mesh() -> None:
    found = made("n1", f"{MESH_ON}\nBGPPeer a: {{peerIP: 172.30.0.12, asNumber: 64512, maxRestartTime: 7s}}")
    assert set(named(found)) == {"a/172.30.0.12", "mesh/n2/ipv6", "mesh/n3"}
    assert named(found)["a/172.30.0.12"].session.restart_seconds == 7
    assert found.faults == ()


def test_gateways_of_peers_that_are_held() -> None:
    text = f"""{MESH_OFF}
    BGPPeer a: {{{A}, reachableBy: 172.30.0.1}}
    BGPPeer b: {{peerIP: 10.0.0.2, asNumber: 1, reachableBy: 10.1.0.2, password: {{secretKeyRef: {{name: x, key: y}}}}}}
    """
    assert made("n1", text).gateways == ((ip_address("10.0.0.1"), ip_address("172.30.0.1")),)


def test_ranges_of_services_are_no_routes_of_this_node() -> None:
    ranges = "serviceClusterIPs: [{cidr: 10.96.0.0/12}], serviceExternalIPs: [{cidr: 'fd00::/64'}]"
    found = made("n1", f"BGPConfiguration default: {{{ranges}}}")
    assert found.unprogrammed == (ip_network("10.96.0.0/12"), ip_network("fd00::/64"))


def test_each_severity_that_is_understood_is_a_level_of_the_log() -> None:
    assert LOG_LEVELS.keys() == set(SEVERITIES)
    lines = io.StringIO()
    for severity, level in LOG_LEVELS.items():
        log = Log("routing", level, stream=lines)
        for least in ("debug", "info", "warning", "error"):
            getattr(log, least)("said", severity=severity)
    heard = Counter(json.loads(line)["severity"] for line in lines.getvalue().splitlines())
    assert heard == {"Trace": 4, "Debug": 4, "Info": 3, "Warning": 2, "Error": 1}


def test_what_is_set_of_the_speaker() -> None:
    text = """
    BGPConfiguration default: {asNumber: 7, bindMode: NodeIP, listenPort: 1790, logSeverityScreen: error}
    BGPConfiguration node.n1: {asNumber: 8, listenPort: 1791}
    """
    speaker = made("n1", text).speaker
    assert speaker is not None
    assert (speaker.asn, speaker.listen_port, speaker.log_severity) == (7, 1791, "Error")
    assert speaker.listen_addresses == nodes_of(NODES)["n1"].addresses
    reflector = made("r2", text).speaker
    assert reflector is not None
    assert (reflector.listen_port, reflector.cluster_id) == (1790, IPv4Address("244.0.0.1"))


# Objects of one cluster, as they could be one after another.
STATES = [
    objects_of(text)
    for text in (
        MESH_ON,
        f"{MESH_OFF}\nBGPPeer a: {{{A}}}\nBGPPeer b: {{peerIP: 10.0.0.2, asNumber: 65002}}",
        f"{MESH_ON}\nBGPPeer a: {{{A}, filters: [x]}}\nBGPPeer b: {{peerIP: 10.0.0.1, asNumber: 65002, node: n1}}",
        f"BGPPeer a: {{{A}, filters: [x]}}\nBGPFilter x: {{exportV4: [{{action: Reject}}]}}",
        f"{MESH_OFF}\nBGPPeer c: {{peerSelector: has(rr), filters: [y, x]}}\nBGPFilter x: {{}}",
    )
]


class Speaker(Driver[Any, Any]):
    """Keeps objects by key, as they come; asks for the whole peering at each settling."""

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}

    def put(self, key: Any, value: Any) -> None:
        self.known.pop(key, None)
        if value is not None:
            self.known[key] = value

    def settle(self) -> object:
        return spoken(self.known)


def spoken(known: Mapping[Any, Any]) -> Peering:
    return peering(
        Objects(
            me="n1",
            nodes={key[1]: one for key, one in known.items() if key[0] == "Node"},
            configurations=tuple(one for key, one in known.items() if key[0] == "BGPConfiguration"),
            peers=tuple(one for key, one in known.items() if key[0] == "BGPPeer"),
            filters={key[1]: one for key, one in known.items() if key[0] == "BGPFilter"},
            pools=tuple(one for key, one in known.items() if key[0] == "IPPool"),
        )
    )


@every_order(seeds=6)
def test_the_present_objects_decide_and_not_their_order(expander: str, seed: int) -> None:
    """The oracle is given the same objects in the order of their names."""
    nodes = list(nodes_of(NODES).values())
    states = [
        {(type(one).__name__, one.name): one for one in (*state, *nodes[: 2 + index], *POOLS[: index % 3])}
        for index, state in enumerate(STATES)
    ]
    follow(Speaker, lambda present: spoken(dict(sorted(present.items()))), states, expander, seed)


TEXTS = st.sampled_from(
    (
        MESH_ON,
        "BGPPeer a: {peerIP: 10.0.0.1, asNumber: 65001}",
        "BGPPeer b: {peerIP: 10.0.0.1, asNumber: 65002, node: n1}",
        "BGPPeer c: {peerIP: 172.30.0.12, asNumber: 64512}",
        "BGPPeer d: {peerSelector: all()}",
        "BGPPeer e: {nodeSelector: has(rr), peerSelector: has(rack), reversePeering: Manual}",
        "BGPPeer f: {peerIP: 'fd00:172::12', asNumber: 64512, localASNumber: 65100, filters: [x]}",
    )
)


@given(st.lists(TEXTS, unique=True, min_size=1), st.sampled_from(("n1", "n3", "r1")))
def test_whatever_is_asked_for_no_two_sessions_have_one_address_and_none_is_with_itself(
    texts: list[str], me: str
) -> None:
    found = made(me, "\n".join(texts))
    addresses = [peer.session.address for peer in found.peers]
    assert len(set(addresses)) == len(addresses)
    assert not set(addresses) & set(nodes_of(NODES)[me].addresses)
    names = [peer.name for peer in found.peers]
    assert all(one < other for one, other in pairwise(names)), "each name once, in order"
    for peer in found.peers:
        if "f/" in peer.name:
            assert {rule.action for rule in (*peer.tables.imports, *peer.tables.exports)} == {Action.REJECT}
            assert len(peer.tables.imports) == len(Family)


def test_a_filter_that_is_not_there_is_named_with_the_remedy() -> None:
    found = made("n1", f"BGPPeer a: {{{A}, filters: [x]}}").faults
    assert found == (
        Fault(
            "there is no BGPFilter x, so no route passes from or to 10.0.0.1",
            "make the BGPFilter, or remove it from spec.filters",
            about=("BGPPeer", "a"),
        ),
    )
