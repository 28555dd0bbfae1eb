"""Which routes a node wants, in the notation of ``ip route``."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from msgspec import structs

from proto.addresses import IPAM_HOLDER, Block, Claim
from proto.net import Network
from proto.objects import Owner
from proto.routes import NodeRoutes
from services.routing.core.fib import Kind, Remove, Replace, Route, Snapshot, Uplink
from services.routing.core.mesh import Mesh
from services.routing.core.plan import offered, plan

FAB0 = Uplink(
    name="fab0", index=3, up=True, addresses=(ip_interface("172.30.0.11/24"), ip_interface("fd00:172:30::11/64"))
)


def route(text: str) -> Route:
    """``[unreachable] PREFIX [via ADDRESS] [dev fab0] [proto N] metric N``."""
    words = text.split()
    unreachable = words[0] == "unreachable"
    if unreachable:
        words = words[1:]
    fields = dict(zip(words[1::2], words[2::2], strict=True))
    return Route(
        destination=ip_network(words[0]),
        via=ip_address(fields["via"]) if "via" in fields else None,
        link=3 if "dev" in fields else 0,
        kind=Kind.UNREACHABLE if unreachable else Kind.UNICAST,
        metric=int(fields.get("metric", "0")),
        protocol=int(fields.get("proto", "186")),
    )


def said(routed: Route) -> str:
    return str(routed).replace("dev 3", "dev fab0")


def blocks(**holders: str) -> dict[Network, Block]:
    """``n1="10.244.0.0/26 10.244.4.0/26"``; ``ipam=`` for blocks of kept addresses."""
    made: dict[Network, Block] = {}
    for holder, text in holders.items():
        name = IPAM_HOLDER if holder == "ipam" else holder
        for cidr in text.split():
            made[ip_network(cidr)] = Block(ip_network(cidr), "p", name, f"uid-{name}", 5, "n")
    return made


def node(name: str, underlay: str, prefixes: str = "") -> NodeRoutes:
    return NodeRoutes(
        node=name,
        underlay=tuple(ip_address(text) for text in underlay.split()),
        prefixes=tuple(ip_network(text) for text in prefixes.split()),
    )


def claim(address: str, on: str) -> Claim:
    return Claim(ip_address(address), Owner("shop", "StatefulSet", "db", 0), on, "u", "c", "eth0", 9, "n")


N1 = node("n1", "172.30.0.11 fd00:172:30::11", "10.244.0.0/26")
N2 = node("n2", "172.30.0.12 fd00:172:30::12", "10.244.0.64/26 fd00:10:244::40/122")
HELD = {"n1": "10.244.0.0/26", "n2": "10.244.0.64/26 fd00:10:244::40/122", "ipam": "10.244.1.0/26"}
TO_N2 = [
    "10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64",
    "fd00:10:244::40/122 via fd00:172:30::12 dev fab0 metric 64",
]
REFUSED = ["unreachable 10.244.0.0/26 metric 4096", "unreachable 10.244.1.0/26 metric 4096"]


def mesh(
    *nodes: NodeRoutes, me: str = "n1", claims: tuple[Claim, ...] = (), held: dict[str, str] | None = None, **sync: Any
) -> Mesh:
    state: dict[str, Any] = {
        "blocks_complete": True,
        "claims_complete": True,
        "reported": frozenset(reported.node for reported in nodes),
        **sync,
    }
    return Mesh(
        me=me,
        routes={reported.node: reported for reported in nodes},
        claims=claims,
        blocks=blocks(**(HELD if held is None else held)),
        **state,
    )


def operations(made: Mesh, *kernel: str, uplinks: tuple[Uplink, ...] = (FAB0,)) -> list[str]:
    planned = plan(made, Snapshot(routes=tuple(route(text) for text in kernel), uplinks=uplinks))
    signs = {Replace: "+", Remove: "-"}
    return sorted(f"{signs[type(operation)]} {said(operation.route)}" for operation in planned.changes)


def faults(made: Mesh, *kernel: str, uplinks: tuple[Uplink, ...] = (FAB0,)) -> str:
    planned = plan(made, Snapshot(routes=tuple(route(text) for text in kernel), uplinks=uplinks))
    return "\n".join(fault.fault for fault in planned.faults)


def plus(*routes: str) -> list[str]:
    return sorted(f"+ {text}" for text in routes)


def test_from_nothing_all_is_added() -> None:
    assert operations(mesh(N1, N2)) == plus(*TO_N2, *REFUSED)


def test_what_is_there_is_left_alone() -> None:
    assert operations(mesh(N1, N2), *TO_N2, *REFUSED) == []


@pytest.mark.parametrize(
    ("on", "address", "wanted"),
    [
        ("n2", "10.244.1.7", ["10.244.1.7/32 via 172.30.0.12 dev fab0 metric 64"]),
        ("n2", "fd00:10:244:1::7", ["fd00:10:244:1::7/128 via fd00:172:30::12 dev fab0 metric 64"]),
        ("n1", "10.244.1.7", []),
        ("", "10.244.1.7", []),
        ("n2", "10.244.0.66", []),
        ("n9", "10.244.1.7", []),
    ],
    ids=["elsewhere", "elsewhere-v6", "here", "nobody", "in-that-node's-block", "unknown-node"],
)
def test_kept_addresses(on: str, address: str, wanted: list[str]) -> None:
    assert operations(mesh(N1, N2, claims=(claim(address, on),)), *TO_N2, *REFUSED) == plus(*wanted)


def test_a_moved_node_replaces_the_route_in_place() -> None:
    moved = node("n2", "172.30.0.99 fd00:172:30::12", "10.244.0.64/26 fd00:10:244::40/122")
    assert operations(mesh(N1, moved), *TO_N2, *REFUSED) == ["+ 10.244.0.64/26 via 172.30.0.99 dev fab0 metric 64"]


OLD = "10.244.0.128/26 via 172.30.0.13 dev fab0 metric 64"


@pytest.mark.parametrize(
    ("sync", "held", "removed"),
    [
        ({}, {}, True),
        ({"blocks_complete": False}, {}, False),
        ({"claims_complete": False}, {}, False),
        ({}, {"n3": "10.244.0.128/26"}, False),
        ({"reported": {"n1", "n2", "n3"}}, {"n3": "10.244.0.128/26"}, True),
        ({}, {"n1": "10.244.0.0/26 10.244.0.128/26"}, True),
    ],
    ids=["all-known", "blocks-not", "claims-not", "holder-is-silent", "holder-withdrew", "mine-now"],
)
def test_removal_waits_until_it_is_sure(sync: dict[str, Any], held: dict[str, str], removed: bool) -> None:
    made = mesh(N1, N2, held={**HELD, **held}, **sync)
    assert (f"- {OLD}" in operations(made, *TO_N2, *REFUSED, OLD)) is removed


KEPT = "10.244.1.7/32 via 172.30.0.13 dev fab0 metric 64"


@pytest.mark.parametrize(
    ("on", "reported", "removed"),
    [
        ("n3", {"n1", "n2"}, False),
        ("n3", {"n1", "n2", "n3"}, True),
        ("n1", {"n1", "n2"}, True),
        ("", {"n1", "n2"}, True),
    ],
    ids=["holder-is-silent", "holder-has-no-address", "mine-now", "nobodys"],
)
def test_the_way_to_a_kept_address_stays_while_its_holder_is_silent(on: str, reported: set[str], removed: bool) -> None:
    made = mesh(N1, N2, claims=(claim("10.244.1.7", on),), reported=reported)
    assert (f"- {KEPT}" in operations(made, *TO_N2, *REFUSED, KEPT)) is removed


def test_who_speaks_in_anothers_name_is_reported() -> None:
    assert faults(mesh(N1, N2, impostors=(("n2", "n3"),))) == (
        "node n2 tells routes in the name of 'n3', which is not believed"
    )


@pytest.mark.parametrize(
    ("made", "uplinks", "of_others"),
    [
        (mesh(N1, N2, impostors=(("n2", "n3"),)), (FAB0,), True),
        (mesh(N1, node("n2", "172.30.0.11", "10.244.0.64/26")), (FAB0,), True),
        (mesh(N1, node("n2", "192.0.2.7", "10.244.0.64/26")), (FAB0,), True),
        (mesh(N1, node("n2", "", "10.244.0.64/26")), (FAB0,), True),
        (mesh(N1, node("n2", "172.30.0.12", "10.244.0.0/26")), (FAB0,), True),
        (mesh(N1, N2), (Uplink(name="fab0", index=3, up=False, addresses=FAB0.addresses),), False),
    ],
    ids=["impostor", "takes-our-address", "far-away", "without-address", "announces-our-block", "our-own-link-is-down"],
)
def test_what_another_reports_makes_nobody_else_unready(
    made: Mesh, uplinks: tuple[Uplink, ...], of_others: bool
) -> None:
    found = plan(made, Snapshot(uplinks=uplinks)).faults
    assert {fault.of_others for fault in found} == {of_others}


def test_a_prefix_that_its_announcer_does_not_hold_is_rejected() -> None:
    greedy = node("n2", "172.30.0.12", "0.0.0.0/0 10.244.0.0/26 10.244.0.64/26")
    assert operations(mesh(N1, greedy)) == plus("10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64", *REFUSED)


@pytest.mark.parametrize(
    ("prefixes", "sync", "reported"),
    [
        ("10.244.0.0/26", {}, "node n2 announces 10.244.0.0/26, but node n1 holds 10.244.0.0/26; it is not believed"),
        ("10.244.1.0/24", {}, "node n2 announces 10.244.1.0/24, but ipam holds 10.244.1.0/26; it is not believed"),
        ("10.244.1.64/26", {}, ""),
        ("10.244.0.64/26", {}, ""),
        ("10.244.0.0/26", {"blocks_complete": False}, ""),
    ],
    ids=["ours", "around-ipams", "nobodys-yet", "its-own", "blocks-are-not-known"],
)
def test_who_announces_what_another_holds_is_named(prefixes: str, sync: dict[str, Any], reported: str) -> None:
    assert faults(mesh(N1, node("n2", "172.30.0.12", prefixes), **sync)) == reported


def test_a_node_that_announces_everything_is_one_fault_and_no_work_without_end() -> None:
    many = " ".join(["10.244.0.0/26", "10.244.1.0/26", *(f"10.245.{n}.0/24" for n in range(200))])
    assert faults(mesh(N1, node("n2", "172.30.0.12", many))).count("announces") == 1


def test_what_a_node_announces_and_does_not_hold_asks_for_no_path_to_it() -> None:
    pools = {ip_network("10.9.0.0/16"): ("of-another-release",)}
    greedy = node("n2", "172.30.0.12", "10.9.0.0/26 10.244.0.64/26")
    found = plan(mesh(N1, greedy, pools=pools), Snapshot(uplinks=(FAB0,)))
    assert found.faults == ()
    assert len([route for route in found.desired.values() if route.via is not None]) == 1


@pytest.mark.parametrize(
    "foreign",
    [
        "192.0.2.0/24 via 172.30.0.1 dev fab0 proto 4 metric 0",
        "10.244.0.192/26 via 172.30.0.1 dev fab0 proto 186 metric 20",
        "10.244.0.5/32 dev fab0 proto 187 metric 0",
        "0.0.0.0/0 via 172.30.0.1 dev fab0 proto 3 metric 0",
    ],
    ids=["static", "bgp-suite", "dataplane", "default"],
)
def test_routes_of_others_are_not_ours(foreign: str) -> None:
    assert operations(mesh(N1, N2), *TO_N2, *REFUSED, foreign) == []
    assert faults(mesh(N1, N2), *TO_N2, *REFUSED, foreign) == ""


@pytest.mark.parametrize(("protocol", "metric"), [(4, 0), (4, 64), (187, 64)])
def test_a_route_of_others_in_the_way_is_a_fault_and_stays(protocol: int, metric: int) -> None:
    other = f"10.244.0.64/26 via 172.30.0.1 dev fab0 proto {protocol} metric {metric}"
    done = operations(mesh(N1, N2), other, *REFUSED)
    assert ("+ " + TO_N2[0] in done) is (metric == 0), "beside it when that is possible, never over it"
    assert not any(line.startswith("-") for line in done)
    assert "not ours" in faults(mesh(N1, N2), other)


@pytest.mark.parametrize(
    ("nodes", "uplinks", "text"),
    [
        ((node("n2", "192.0.2.7", "10.244.0.64/26"),), (FAB0,), "n2 (192.0.2.7) is not on a link of this node"),
        ((node("n2", "172.30.0.12", "fd00:10:244::40/122"),), (FAB0,), "n2 has no IPv6 address"),
        ((node("n2", "172.30.0.11", "10.244.0.64/26"),), (FAB0,), "which is this node's own"),
        ((N2,), (Uplink(name="fab0", index=3, up=False, addresses=FAB0.addresses),), "not on a link"),
    ],
)
def test_a_node_that_cannot_be_reached_is_a_fault_and_no_black_hole(
    nodes: tuple[NodeRoutes, ...], uplinks: tuple[Uplink, ...], text: str
) -> None:
    assert text in faults(mesh(N1, *nodes), uplinks=uplinks)
    assert operations(mesh(N1, *nodes), uplinks=uplinks) == plus(*REFUSED)


def test_a_gateway_holds_nothing() -> None:
    assert operations(
        mesh(N1, N2, me="", held={"n1": "10.244.0.0/26", "n2": "10.244.0.64/26"}), uplinks=(GATEWAY,)
    ) == plus("10.244.0.0/26 via 172.30.0.11 dev fab0 metric 64", "10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64")


GATEWAY = Uplink(name="fab0", index=3, up=True, addresses=(ip_interface("172.30.0.2/24"),))


def test_what_a_node_offers() -> None:
    link_local = Uplink(name="fab0", index=3, up=True, addresses=(*FAB0.addresses, ip_interface("fe80::1/64")))
    assert offered("n1", blocks(**HELD), (link_local,)) == structs.replace(N1, mtu=1500)
    small = Uplink(name="fab1", index=4, up=False, mtu=1400)
    assert offered("n1", blocks(**HELD), (link_local, small)).mtu == 1400, "pods' links have that of the smallest"
    assert offered("n1", blocks(**HELD), ()).mtu == 0


def test_an_address_on_the_loopback_is_what_others_learn_of_the_node() -> None:
    """In its family: each uplink's own address is reached by that uplink alone."""
    tor0 = Uplink(
        name="tor0", index=3, up=True, addresses=(ip_interface("172.31.0.2/24"), ip_interface("fd00:31::2/64"))
    )
    tor1 = Uplink(name="tor1", index=4, up=True, addresses=(ip_interface("172.31.1.2/24"),))
    addresses = tuple(map(ip_interface, ("127.0.0.1/8", "::1/128", "10.9.9.9/32")))
    lo = Uplink(name="lo", index=1, up=True, mtu=65536, addresses=addresses)
    offer = offered("n1", {}, (tor0, tor1), loopback=lo)
    assert [str(address) for address in offer.underlay] == ["10.9.9.9", "fd00:31::2"]
    assert offer.mtu == 1500, "of the uplinks"
    assert len(offered("n1", {}, (tor0, tor1)).underlay) == 3


def test_a_missing_uplink_is_reported() -> None:
    planned = plan(mesh(N1), Snapshot(uplinks=(), missing=("fab0",)))
    assert "no interface fab0" in planned.faults[0].fault
