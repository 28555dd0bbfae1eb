"""What CalicoNodeStatus asks for and what is written into it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from proto.bgp import MAX_STATUS, BgpStatus, PeerStatus, RouteStatus
from proto.objects import KIND_OF, CalicoNodeStatus
from services.cluster.core.node_status import status_body, status_path
from services.cluster.core.parse import Malformed, parse
from services.cluster.core.spellings import AGAIN

KIND = KIND_OF[CalicoNodeStatus]
V3 = next(kind for kind in AGAIN if kind.type is CalicoNodeStatus)
NOW = "2026-01-31T12:00:00Z"
BOOTED = 1_769_860_800
REPORTED = BgpStatus(
    node="n1",
    speaks=True,
    families=(4,),
    router_id="10.0.0.1",
    booted=BOOTED,
    configured=BOOTED + 60,
    peers=(
        PeerStatus(ip_address("10.0.0.2"), "NodeMesh", "Established", BOOTED + 1),
        PeerStatus(ip_address("10.0.9.1"), "NodePeer", "Active"),
        PeerStatus(ip_address("fd00::9"), "GlobalPeer", "OpenSent", BOOTED + 2),
    ),
    routes=(
        RouteStatus(ip_network("10.244.0.0/26"), forwarding=False),
        RouteStatus(
            ip_network("10.244.1.0/26"),
            forwarding=True,
            gateway=ip_address("10.0.0.2"),
            interface="eth0",
            peer=ip_address("10.0.0.2"),
            kind="NodeMesh",
        ),
        RouteStatus(
            ip_network("fd00:1::/64"), forwarding=False, gateway=ip_address("fd00::9"), peer=ip_address("fd00::9"),
            kind="GlobalPeer",
        ),
    ),
    established=(7, 0),
    others=(1, 1),
)  # fmt: skip
DAEMON = {
    "version": "airmesh v1",
    "routerID": "10.0.0.1",
    "lastBootTime": "2026-01-31 12:00:00",
    "lastReconfigurationTime": "2026-01-31 12:01:00",
}


def asked(spec: dict[str, Any]) -> CalicoNodeStatus:
    found = parse(KIND, {"metadata": {"name": "x", "uid": "u"}, "spec": spec})
    assert isinstance(found, CalicoNodeStatus)
    return found


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"node": "n1"}, CalicoNodeStatus("x", "n1")),
        ({"node": "n1", "classes": ["BGP", "Agent", "BGP"]}, CalicoNodeStatus("x", "n1", ("BGP", "Agent"))),
        ({"node": "n1", "updatePeriodSeconds": 0}, CalicoNodeStatus("x", "n1", period_seconds=0)),
        ({"node": "n1", "updatePeriodSeconds": 30, "new": 1}, CalicoNodeStatus("x", "n1", period_seconds=30)),
    ],
)
def test_what_is_asked_for(spec: dict[str, Any], expected: CalicoNodeStatus) -> None:
    assert asked(spec) == expected


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, "spec.node"),
        ({"node": ""}, "spec.node"),
        ({"node": "n1", "classes": ["All"]}, "spec.classes[0]"),
        ({"node": "n1", "updatePeriodSeconds": -1}, "spec.updatePeriodSeconds"),
    ],
)
def test_what_means_nothing(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(Malformed) as refused:
        asked(spec)
    assert refused.value.path == path


def written(*classes: str, reported: BgpStatus = REPORTED) -> dict[str, Any]:
    body = status_body(KIND, asked({"node": "n1", "classes": list(classes)}), reported, "airmesh v1", NOW)
    assert (body["apiVersion"], body["kind"]) == ("crd.projectcalico.org/v1", "CalicoNodeStatus")
    assert body["metadata"] == {"name": "x"}
    found: dict[str, Any] = body["status"]
    assert found.pop("lastUpdated") == NOW
    return found


def test_each_class_is_what_is_asked_for() -> None:
    assert written() == {}
    assert written("Agent") == {
        "agent": {"birdV4": {"state": "Ready"} | DAEMON, "birdV6": {"state": "NotReady"} | DAEMON}
    }
    assert written("BGP") == {
        "bgp": {
            "numberEstablishedV4": 7,
            "numberNotEstablishedV4": 1,
            "numberEstablishedV6": 0,
            "numberNotEstablishedV6": 1,
            "peersV4": [
                {"peerIP": "10.0.0.2", "type": "NodeMesh", "state": "Established", "since": "2026-01-31 12:00:01"},
                {"peerIP": "10.0.9.1", "type": "NodePeer", "state": "Active", "since": ""},
            ],
            "peersV6": [
                {"peerIP": "fd00::9", "type": "GlobalPeer", "state": "OpenSent", "since": "2026-01-31 12:00:02"}
            ],
        }
    }
    assert written("Routes") == {
        "routes": {
            "routesV4": [
                {
                    "type": "RIB",
                    "destination": "10.244.0.0/26",
                    "gateway": "N/A",
                    "interface": "N/A",
                    "learnedFrom": {"sourceType": "Static"},
                },
                {
                    "type": "FIB",
                    "destination": "10.244.1.0/26",
                    "gateway": "10.0.0.2",
                    "interface": "eth0",
                    "learnedFrom": {"sourceType": "NodeMesh", "peerIP": "10.0.0.2"},
                },
            ],
            "routesV6": [
                {
                    "type": "RIB",
                    "destination": "fd00:1::/64",
                    "gateway": "fd00::9",
                    "interface": "N/A",
                    "learnedFrom": {"sourceType": "BGPPeer", "peerIP": "fd00::9"},
                }
            ],
        }
    }
    assert written("Agent", "BGP", "Routes").keys() == {"agent", "bgp", "routes"}


def test_a_node_that_speaks_no_bgp_is_not_ready() -> None:
    found = written("Agent", "BGP", "Routes", reported=BgpStatus("n1", speaks=False, families=(4, 6)))
    assert {one["state"] for one in found["agent"].values()} == {"NotReady"}
    assert found["bgp"]["peersV4"] == found["routes"]["routesV4"] == []


def test_what_a_node_lies_stays_bounded() -> None:
    """Its agent tells at most so much; whoever has its key may tell more, and other times than there are."""
    peers = tuple(PeerStatus(ip_address(f"10.1.{n >> 8}.{n & 255}"), "NodeMesh", "Idle", 1 << 62) for n in range(2000))
    routes = tuple(RouteStatus(ip_network(f"10.{n >> 8}.{n & 255}.0/24"), forwarding=True) for n in range(2000))
    found = written("BGP", "Routes", reported=BgpStatus("n1", speaks=True, peers=peers, routes=routes))
    assert len(found["bgp"]["peersV4"]) == len(found["routes"]["routesV4"]) == MAX_STATUS
    assert {one["since"] for one in found["bgp"]["peersV4"]} == {""}


def test_where_it_is_written_is_how_the_api_has_the_object() -> None:
    assert status_path(V3, "x") == "/apis/projectcalico.org/v3/caliconodestatuses/x/status"
    assert status_body(V3, asked({"node": "n1"}), REPORTED, "v", NOW)["apiVersion"] == "projectcalico.org/v3"
