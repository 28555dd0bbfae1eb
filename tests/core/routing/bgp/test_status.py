"""What a node tells of its speaker where a CalicoNodeStatus asks for it."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from proto.bgp import MAX_STATUS, BgpStatus, PeerStatus, RouteStatus, SessionReport
from proto.objects import CalicoNodeStatus
from services.routing.core.bgp.peers import Peer, SessionSettings
from services.routing.core.bgp.status import Spoken, period, status
from services.routing.core.bgp.values import Attributes, Family, Origin, Prefix, network_of
from tests.core.routing.bgp.rib_speaker import NODE, OURS, V4, Speaker, attributes, prefix

BLOCK, OTHER = "10.244.0.0/26", "10.244.1.0/26"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("", 0),
        ("n1:10:BGP", 10),
        ("n2:10:BGP", 0),
        ("n1:0:BGP", 0),
        ("n1:10:", 0),
        ("n1:30:BGP n1:5:Agent n2:1:BGP", 5),
        ("n1:0:BGP n1:7:Routes", 7),
    ],
)
def test_how_often_somebody_asks(asked: str, expected: int) -> None:
    objects = []
    for number, text in enumerate(asked.split()):
        node, seconds, what = text.split(":")
        classes: Any = (what,) if what else ()
        objects.append(CalicoNodeStatus(f"x{number}", node, classes, int(seconds)))
    assert period(objects, "n1") == expected


def peer(name: str, address: str, kind: Any) -> Peer:
    session = SessionSettings(address=ip_address(address), local_asn=OURS, peer_asn=65001, router_id=NODE)
    return Peer(name=name, session=session, kind=kind)


PEERS = {
    "mesh/n2": peer("mesh/n2", "172.31.0.2", "NodeMesh"),
    "tor/172.31.0.1": peer("tor/172.31.0.1", "172.31.0.1", "GlobalPeer"),
    "tor6/fd00::1": peer("tor6/fd00::1", "fd00::1", "NodePeer"),
}


def session(name: str, state: Any, since: int = 0) -> SessionReport:
    return SessionReport(name, PEERS[name].session.address, 65001, OURS, state, since)


def reported(one: Speaker, *sessions: SessionReport, in_kernel: str = "") -> BgpStatus:
    def forwarding(family: Family, prefix: Prefix) -> bool:
        return str(network_of(family, prefix)) in in_kernel.split()

    spoken = Spoken(
        router_id=IPv4Address("10.0.0.1"), sessions=sessions, peers=PEERS, tables=one.tables, forwarding=forwarding
    )
    return status("n1", (6, 4), spoken, booted=5, configured=9)


def test_sessions_and_how_many_there_are() -> None:
    found = reported(
        Speaker(),
        session("mesh/n2", "Established", 7),
        session("tor/172.31.0.1", "Active"),
        session("tor6/fd00::1", "Established", 8),
    )
    assert (found.speaks, found.families, found.router_id, found.booted, found.configured) == (
        True,
        (4, 6),
        "10.0.0.1",
        5,
        9,
    )
    assert (found.established, found.others) == ((1, 1), (1, 0))
    assert found.peers == (
        PeerStatus(ip_address("172.31.0.2"), "NodeMesh", "Established", 7),
        PeerStatus(ip_address("172.31.0.1"), "GlobalPeer", "Active"),
        PeerStatus(ip_address("fd00::1"), "NodePeer", "Established", 8),
    )


def test_routes_that_are_chosen_and_the_nodes_own() -> None:
    one = Speaker()
    one.up("mesh/n2", OURS, "172.31.0.2", router_id="2.2.2.2")
    one.up("tor/172.31.0.1", 65001, "172.31.0.1")
    one.tables.originate(V4, prefix(BLOCK), Attributes(origin=Origin.IGP))
    one.learn("mesh/n2", OTHER, attributes(hop="172.31.0.2"))
    one.learn("tor/172.31.0.1", f"{OTHER} 10.1.0.0/24", attributes(65001, 65100))
    one.decide()
    learnt = RouteStatus(
        ip_network(OTHER), True, ip_address("172.31.0.2"), "eth0", ip_address("172.31.0.2"), "NodeMesh"
    )
    assert set(reported(one, in_kernel=OTHER).routes) == {
        RouteStatus(ip_network(BLOCK), forwarding=False),
        learnt,
        RouteStatus(
            ip_network("10.1.0.0/24"), False, ip_address("172.31.0.1"), "eth0", ip_address("172.31.0.1"), "GlobalPeer"
        ),
    }


def test_more_than_finds_room_is_counted_and_left_out() -> None:
    one = Speaker()
    for number in range(MAX_STATUS + 3):
        one.tables.originate(V4, prefix(f"10.{number >> 8}.{number & 255}.0/24"), Attributes(origin=Origin.IGP))
    one.decide()
    found = reported(one, *[session("mesh/n2", "Established")] * (MAX_STATUS + 2))
    assert (len(found.routes), len(found.peers)) == (MAX_STATUS, MAX_STATUS)
    assert found.established == (MAX_STATUS + 2, 0)


def test_a_node_that_speaks_no_bgp_says_so() -> None:
    assert status("n1", (4,), None, booted=5, configured=5) == BgpStatus("n1", False, (4,), "", 5, 5)
