"""The tour's judgement of ways between nodes: a route and the wire that tell two stories are a disagreement."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from rich.console import Console

from lab.cluster.packets import IPIP, PLAIN, VXLAN, WIREGUARD, Packet
from lab.topology import Fabric, plan
from lab.tour import tables
from lab.tour.probes import Pod
from lab.tour.ways import BGP, NONE, Way, addresses_of, counted, model_of, pairs, ways, words

N1, N2 = plan("air", 2, Fabric.ROUTED).nodes
R1, R2 = plan("air", 2, Fabric.TOR).nodes
WAY = Way(source="n1", destination="n2", family=4, model=VXLAN, route="dev am-vxlan", packets={VXLAN: 9}, crossed=True)


def pod(name: str, node: str, number: int) -> Pod:
    addresses = (ip_address(f"10.244.0.{number}"), ip_address(f"fd00:10:244::{number:x}"))
    return Pod(
        namespace="shop", name=name, uid=name, workload=f"shop/{name}", node=node, addresses=addresses, ports=(),
        labels=(), ready=True,
    )  # fmt: skip


A, B = pod("a", "n1", 1), pod("b", "n2", 2)


@pytest.mark.parametrize(
    ("route", "model"),
    [
        ({"dev": "am-vxlan", "gateway": "172.30.1.12"}, VXLAN),
        ({"dev": "am-vxlan6", "gateway": "fd00:172:30:1::12"}, VXLAN),
        ({"dev": "am-ipip", "gateway": "172.30.1.12"}, IPIP),
        ({"dev": "am-wg"}, WIREGUARD),
        ({"dev": "am-wg2"}, WIREGUARD),
        ({"dev": "fab0", "gateway": "172.30.1.12"}, "host-gw"),
        ({"dev": "fab0", "gateway": "fd00:172:30:1::12"}, "host-gw"),
        ({"dev": "fab0", "via": {"family": "inet6", "host": "fd00:172:30:1::12"}}, "host-gw"),
        ({"dev": "fab0", "gateway": "172.30.0.254"}, NONE),
        ({"dev": "fab0"}, NONE),
        ({"error": "RTNETLINK answers: Network is unreachable"}, NONE),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_route_is_of_a_model(route: dict[str, Any], model: str) -> None:
    assert model_of(route, addresses_of(N2)) == model


HOP_A, HOP_B = {"gateway": "172.31.0.1", "dev": "fab0", "flags": []}, {"gateway": "172.31.1.1", "dev": "fab1"}
BY_BOTH = {"dst": "10.244.0.64/26", "protocol": "185", "nexthops": [HOP_A, HOP_B]}


@pytest.mark.parametrize(
    ("route", "model"),
    [
        (BY_BOTH, BGP),
        ({"protocol": "185", **HOP_A}, BGP),
        ({"protocol": "185", "nexthops": [{"via": {"family": "inet6", "host": "fe80::1"}, "dev": "fab0"}]}, BGP),
        ({**BY_BOTH, "dst": "default", "protocol": "boot"}, NONE),
        ({"protocol": "185", "dev": "fab0"}, NONE),
        ({"protocol": "186", "dev": "am-vxlan", "gateway": "172.30.0.12"}, VXLAN),
        ({"error": "RTNETLINK answers: Permission denied"}, NONE),
    ],
    ids=["both", "one", "over-6", "default", "on-link", "tunnel", "refused"],
)
def test_behind_switches_a_route_is_one_that_was_learnt(route: dict[str, Any], model: str) -> None:
    assert model_of(route, addresses_of(R2), R1.uplinks) == model


@pytest.mark.parametrize(("route", "unused"), [(BY_BOTH, ""), ({"protocol": "185", **HOP_B}, "fab0")])
def test_a_learnt_route_leads_by_every_switch(route: dict[str, Any], unused: str) -> None:
    (way,) = ways({("n1", "n2", 4): route}, {("n1", "n2", 4): {PLAIN: 9}}, {("n1", "n2", 4)}, (R1, R2))
    assert (f"n1 → n2 IPv4: the route does not lead by {unused} (via" in way.disagreement) == bool(unused)
    assert bool(way.disagreement) == bool(unused)


def test_a_route_in_words() -> None:
    route = {"gateway": "172.30.1.12", "dev": "am-vxlan", "metrics": [{"mtu": 1400}]}
    assert words(route) == "via 172.30.1.12 dev am-vxlan mtu 1400"
    assert words({"error": "unreachable"}) == "unreachable"
    assert words(BY_BOTH) == "via 172.31.0.1 dev fab0, via 172.31.1.1 dev fab1"


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (WAY, ""),
        (replace(WAY, packets={}, crossed=False), ""),
        (replace(WAY, model="host-gw", packets={PLAIN: 3}), ""),
        (replace(WAY, model=BGP, packets={PLAIN: 3}), ""),
        (replace(WAY, model=BGP, packets={VXLAN: 3}), "3 in VXLAN"),
        (replace(WAY, packets={}), "nothing was seen on the wire in VXLAN"),
        (replace(WAY, packets={VXLAN: 9, PLAIN: 1}), "the route is vxlan's, and on the wire were 1 as they are"),
        (replace(WAY, packets={PLAIN: 1}, crossed=False), "1 as they are"),
        (replace(WAY, model="host-gw", packets={IPIP: 2}), "2 in IP protocol 4"),
        (replace(WAY, model=NONE, packets={}, crossed=False, route="via 172.30.0.254 dev fab0"), "no route (via"),
    ],
)
def test_a_way_agrees_or_says_what_is_wrong(way: Way, said: str) -> None:
    assert (said in way.disagreement) if said else not way.disagreement
    out = io.StringIO()
    tables.ways(Console(file=out, width=200), [way])
    assert ("✓" in out.getvalue()) == (not said)


def test_every_pair_of_nodes_with_pods_has_a_way_in_each_family() -> None:
    found = [(one.name, other.name, address.version) for one, other, address in pairs((N1, N2), (A, B))]
    assert found == [("n1", "n2", 4), ("n1", "n2", 6), ("n2", "n1", 4), ("n2", "n1", 6)]
    assert list(pairs((N1, N2), (A,))) == [(N2, N1, A.addresses[0]), (N2, N1, A.addresses[1])]


def test_packets_are_counted_for_the_pair_whose_pods_they_are_of() -> None:
    outer = (N1.fabric4, N2.fabric4)
    seen = Counter(
        {
            ("n1", Packet(VXLAN, *outer, A.addresses[0], B.addresses[0], 4096)): 5,
            ("n1", Packet(VXLAN, *outer, A.addresses[1], B.addresses[1], 4096)): 2,
            ("n1", Packet(PLAIN, A.addresses[0], B.addresses[0])): 1,
            ("n2", Packet(PLAIN, A.addresses[0], B.addresses[0])): 9,  # forwarded by n2: not its pod's
            ("n1", Packet(PLAIN, *outer)): 7,  # the nodes' own
            ("n1", Packet(PLAIN, A.addresses[0], ip_address("10.244.0.9"))): 7,  # nobody that we know
        }
    )
    assert counted(seen.items(), (N1, N2), (A, B)) == {
        ("n1", "n2", 4): {VXLAN: 5, PLAIN: 1},
        ("n1", "n2", 6): {VXLAN: 2},
    }


def test_what_is_encrypted_counts_for_the_nodes() -> None:
    seen = Counter(
        {
            ("n2", Packet(WIREGUARD, N2.fabric6, N1.fabric6)): 4,
            ("n2", Packet(WIREGUARD, A.addresses[0], A.addresses[1])): 1,
        }
    )
    assert counted(seen.items(), (N1, N2), (A, B)) == {("n2", "n1", 4): {WIREGUARD: 4}, ("n2", "n1", 6): {WIREGUARD: 4}}


def test_routes_counts_and_connections_come_together() -> None:
    routes = {("n1", "n2", 4): {"dev": "am-ipip", "gateway": "172.30.1.12"}, ("n2", "n1", 4): {"error": "unreachable"}}
    forth, back = ways(routes, {("n1", "n2", 4): {IPIP: 3}}, {("n1", "n2", 4)}, (N1, N2))
    assert (forth.model, forth.packets, forth.crossed, forth.disagreement) == (IPIP, {IPIP: 3}, True, "")
    assert (back.model, back.crossed) == (NONE, False)
    assert back.disagreement == "n2 → n1 IPv4: no route (unreachable)"
