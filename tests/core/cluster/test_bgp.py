"""BGP's kinds as people write them, in both spellings, and what the mesh makes of them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proto.objects import (
    KIND_OF,
    BGPConfiguration,
    BGPFilter,
    BGPFilterRule,
    BGPPeer,
    NamedCommunity,
    NodeBGP,
    PrefixAdvertisement,
    SecretKey,
)
from services.cluster.core.bgp_parts import asn, seconds
from services.cluster.core.cache import Cache
from services.cluster.core.malformed import Wrong
from services.cluster.core.parse import Malformed, parse_object
from tests.core.cluster.test_parse import read

SCENARIO = Path(__file__).parents[3] / "examples" / "scenarios" / "ai-bgp-ecmp.yaml"
GROUPS = ("crd.projectcalico.org/v1", "projectcalico.org/v3")
RANGE, RANGE6 = ip_network("10.0.0.0/8"), ip_network("fd00::/8")


@pytest.mark.parametrize("group", GROUPS)
def test_the_scenario_of_two_switches(group: str) -> None:
    written = list(yaml.safe_load_all(SCENARIO.read_text()))
    found = [parse_object({**one, "apiVersion": group, "metadata": {**one["metadata"], "uid": "u"}}) for one in written]
    assert found == [
        BGPConfiguration(name="default", log_severity="Info", node_mesh=False, asn=64512),
        BGPPeer(name="tor-a", peer_ip=ip_address("172.31.0.1"), asn=65001, node_selector="all()"),
        BGPPeer(name="tor-b", peer_ip=ip_address("172.31.1.1"), asn=65002, node_selector="all()"),
    ]


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("{}", {}),
        ("{asNumber: '1.10'}", {"asn": 65546}),
        ("{asNumber: '64512'}", {"asn": 64512}),
        ("{logSeverityScreen: dEbug, bindMode: NodeIP}", {"log_severity": "Debug", "bind_mode": "NodeIP"}),
        ("{logSeverityScreen: '', bindMode: '', serviceLoadBalancerAggregation: ''}", {}),
        ("{listenPort: 1790, nodeToNodeMeshEnabled: true}", {"listen_port": 1790, "node_mesh": True}),
        (
            "{communities: [{name: red, value: '65000:1'}, {name: large, value: '4294967295:0:7'}]}",
            {"communities": (NamedCommunity("red", (65000, 1)), NamedCommunity("large", (4294967295, 0, 7)))},
        ),
        (
            "{prefixAdvertisements: [{cidr: 10.1.2.3/8, communities: [red, '65000:2', '1:2:3']}]}",
            {"advertisements": (PrefixAdvertisement(RANGE, ((65000, 2), (1, 2, 3)), ("red",)),)},
        ),
        ("{prefixAdvertisements: []}", {"advertisements": ()}),
        (
            "{nodeMeshPassword: {secretKeyRef: {name: bgp, key: mesh, optional: true}}, nodeMeshMaxRestartTime: 1m30s}",
            {"mesh_password": SecretKey("bgp", "mesh"), "mesh_restart_seconds": 90},
        ),
        (
            "{serviceClusterIPs: [{cidr: 10.1.0.0/8}, {cidr: 10.0.0.0/8}], serviceExternalIPs: []}",
            {"cluster_ips": (RANGE,), "external_ips": ()},
        ),
        (
            "{serviceLoadBalancerIPs: [{cidr: 'fd00::/8'}], serviceLoadBalancerAggregation: Disabled}",
            {"load_balancer_ips": (RANGE6,), "load_balancer_aggregation": False},
        ),
        ("{ignoredInterfaces: [eth1], unheardOf: {a: 1}, asNumber: null}", {}),
    ],
)
def test_configuration(spec: str, changes: dict[str, Any]) -> None:
    assert read("BGPConfiguration", f"spec: {spec}", name="default") == BGPConfiguration(name="default", **changes)


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("peerIP: 10.0.0.1", {}),
        ("peerIP: '10.0.0.1:1790'", {"port": 1790}),
        ("peerIP: 'fd00::1'", {"peer_ip": ip_address("fd00::1")}),
        ("peerIP: '[fd00::1]'", {"peer_ip": ip_address("fd00::1")}),
        ("peerIP: '[fd00::1]:1790'", {"peer_ip": ip_address("fd00::1"), "port": 1790}),
        ("peerIP: 10.0.0.1, node: n1, nodeSelector: ''", {"node": "n1"}),
        ("peerIP: 10.0.0.1, nodeSelector: rack == 'a' || has(b)", {"node_selector": "rack == 'a' || has(b)"}),
        ("peerIP: 10.0.0.1, localASNumber: '0.7', nextHopMode: Keep", {"local_asn": 7, "next_hop_mode": "Keep"}),
        ("peerIP: 10.0.0.1, keepOriginalNextHop: true, nextHopMode: Auto", {"keep_original_next_hop": True}),
        ("peerIP: 10.0.0.1, password: {secretKeyRef: {name: bgp, key: tor}}", {"password": SecretKey("bgp", "tor")}),
        ("peerIP: 10.0.0.1, sourceAddress: None, reversePeering: ''", {"source_address": "None"}),
        ("peerIP: 10.0.0.1, maxRestartTime: 0s, keepaliveTime: 1.4s", {"restart_seconds": 0, "keepalive_seconds": 1}),
        ("peerIP: 10.0.0.1, numAllowedLocalASNumbers: 2, ttlSecurity: 1", {"allowed_local_asns": 2, "hops": 1}),
        ("peerIP: 10.0.0.1, reachableBy: 10.1.0.1", {"reachable_by": ip_address("10.1.0.1")}),
        ("peerIP: 10.0.0.1, filters: [b, a]", {"filters": ("b", "a")}),
    ],
)
def test_peer(spec: str, changes: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"name": "x", "peer_ip": ip_address("10.0.0.1"), "asn": 65001}
    assert read("BGPPeer", f"spec: {{{spec}, asNumber: 65001}}") == BGPPeer(**{**plain, **changes})


def test_peers_that_are_nodes() -> None:
    found = read(
        "BGPPeer", "spec: {nodeSelector: '!has(rr)', peerSelector: has(rr), asNumber: 0, reversePeering: Manual}"
    )
    assert found == BGPPeer(name="x", node_selector="!has(rr)", peer_selector="has(rr)", reverse_peering="Manual")


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("", {}),
        ("matchOperator: Equal, cidr: 10.9.0.0/8", {"cidr": RANGE, "operator": "Equal"}),
        ("matchOperator: In, cidr: 10.0.0.0/8, prefixLength: {min: 16, max: 24}", {"cidr": RANGE, "lengths": (16, 24)}),
        ("matchOperator: NotIn, cidr: 10.0.0.0/8, prefixLength: {max: 24}", {"operator": "NotIn", "lengths": (8, 24)}),
        ("matchOperator: In, cidr: 10.0.0.0/8, prefixLength: {min: 16}", {"lengths": (16, 32)}),
        ("matchOperator: In, cidr: 10.0.0.0/8, prefixLength: {}", {}),
        ("source: RemotePeers, interface: '*.calico'", {"source": "RemotePeers", "interface": "*.calico"}),
        ("peerType: eBGP, communities: {values: ['1:2']}", {"peer_type": "eBGP", "communities": ((1, 2),)}),
        ("asPathPrefix: [65001, '1.10']", {"as_path_prefix": (65001, 65546)}),
        (
            "operations: [{addCommunity: {value: '1:2:3'}}, {setPriority: {value: 9}}, {addCommunity: {value: '1:2'}}]",
            {"add_communities": ((1, 2, 3), (1, 2)), "priority": 9},
        ),
        (
            "operations: [{prependASPath: {prefix: [3, 4]}}, {prependASPath: {prefix: [1, 2]}}]",
            {"prepend": (1, 2, 3, 4)},
        ),
    ],
)
def test_rule_of_a_filter(rule: str, changes: dict[str, Any]) -> None:
    cidr = {"cidr": RANGE} if "cidr" in rule else {}
    found = read("BGPFilter", f"spec: {{exportV4: [{{action: Accept, {rule}}}, {{action: Reject}}]}}")
    expected = BGPFilterRule("Accept", **{**cidr, **changes})
    assert found == BGPFilter(name="x", export_v4=(expected, BGPFilterRule("Reject")))


def test_lists_of_a_filter() -> None:
    found = read(
        "BGPFilter",
        """
        spec:
          importV4: [{action: Reject, cidr: 10.0.0.0/8, matchOperator: NotEqual}]
          importV6: [{action: Accept, cidr: 'fd00::/8', matchOperator: In, prefixLength: {max: 64}}]
          exportV6: [{action: Reject}]
        """,
    )
    assert found == BGPFilter(
        name="x",
        import_v4=(BGPFilterRule("Reject", RANGE, "NotEqual"),),
        import_v6=(BGPFilterRule("Accept", RANGE6, lengths=(8, 64)),),
        export_v6=(BGPFilterRule("Reject"),),
    )


def test_what_annotations_say_of_a_nodes_speaker() -> None:
    annotations = """
      projectcalico.org/IPv4Address: 172.30.0.11/24
      projectcalico.org/IPv6Address: 'fd00::b'
      projectcalico.org/ASNumber: '1.10'
      projectcalico.org/RouteReflectorClusterID: 244.0.0.1
    """
    assert read("Node", "{}", meta=f"annotations: {annotations}").bgp == NodeBGP(
        ipv4=ip_address("172.30.0.11"), ipv6=ip_address("fd00::b"), asn=65546, cluster_id=ip_address("244.0.0.1")
    )
    assert read("Node", "{}", meta="{annotations: {projectcalico.org/IPv4Address: ''}}").bgp is None


def test_the_last_good_peer_stays() -> None:
    """A session goes on as it was until the mistake is mended."""
    cache = Cache(KIND_OF[BGPPeer])
    good = b'{"metadata": {"name": "x", "uid": "u"}, "spec": {"peerIP": "10.0.0.1", "asNumber": 65001}}'
    cache.upsert(good)
    cache.upsert(good.replace(b"65001", b"0"))
    known = cache.known["", "x"].value
    assert isinstance(known, BGPPeer)
    assert known.asn == 65001
    assert "spec.asNumber: is missing" in str(cache.faults["", "x"])
    cache.upsert(good.replace(b"65001", b"65002"))
    assert cache.faults == {}


@given(st.integers(1, (1 << 32) - 1).filter(lambda number: number != 23456))
def test_an_as_number_is_the_same_in_each_notation(number: int) -> None:
    assert asn(number, "p") == asn(str(number), "p") == asn(f"{number >> 16}.{number & 0xFFFF}", "p") == number


@given(st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_is_the_same_in_each_notation(minutes: int, rest: int, thousandths: int) -> None:
    whole = minutes * 60 + rest
    assert seconds(f"{minutes}m{rest}.{thousandths:03}s", "p", 0, 4095) in (whole, whole + 1)
    assert seconds(f"{whole}s", "p", 0, 4095) == seconds(f"{whole * 1000}ms", "p", 0, 4095) == whole


@given(st.text(max_size=20), st.sampled_from(("asNumber", "peerIP", "nodeSelector", "maxRestartTime", "reachableBy")))
def test_no_text_breaks_the_reader_of_peers(text: str, field: str) -> None:
    spec = {"peerIP": "10.0.0.1", "asNumber": 65001, field: text}
    written = {"apiVersion": GROUPS[0], "kind": "BGPPeer", "metadata": {"name": "x", "uid": "u"}, "spec": spec}
    try:
        assert isinstance(parse_object(written), BGPPeer)
    except Malformed as refused:
        assert refused.path == f"spec.{field}"
        assert refused.remedy


def test_a_wrong_duration_names_its_unit() -> None:
    with pytest.raises(Wrong, match=r"write e\.g\. 90s or 2m"):
        seconds("1 s", "p", 0, 10)
