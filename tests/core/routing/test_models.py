"""Which model a pair of nodes takes, and the path that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from msgspec import structs

from kit.models import HOST_GW
from kit.models import Model as Traits
from proto.net import Address
from proto.routes import NodeRoutes
from services.routing.core.choice import choose
from services.routing.core.faults import Fault
from services.routing.core.fib import OTHER_MTU, Device, Entry, Replace, Snapshot, Uplink
from services.routing.core.models import MODELS, path_by
from services.routing.core.models.contract import Model, NodeContext, Pair, Path
from services.routing.core.plan import plan
from tests.core.routing.test_plan import FAB0, N1, N2, claim, mesh, node

JUMBO = Uplink(name="fab1", index=4, up=True, mtu=9000, addresses=(ip_interface("192.0.2.1/24"),))
FAR = node("n3", "198.51.100.3", "10.244.0.128/26")
PAPER = Traits(name="paper", overhead={4: 20})


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A model on paper, IPv4 alone: reaches whoever has an address, by a device of its own."""

    traits: Traits = PAPER

    def device(self, own: NodeContext, underlay: int) -> Device | Fault | None:
        return None

    def entries(self, link: int, outer: Address) -> tuple[Entry, ...]:
        return ()

    def path(self, pair: Pair) -> Path | Fault:
        outer = next((address for address in pair.peer.underlay if address.version == 4), None)
        if pair.family not in self.traits.overhead or outer is None:
            return Fault(f"paper carries no IPv{pair.family}", "ask for another model")
        mtu = min(pair.mtu(uplink) for uplink in pair.links) - self.traits.overhead[4]
        return Path(model="paper", via=outer, link=77, mtu=mtu, link_mtu=1480)


BOTH: dict[str, Model] = {**MODELS, "paper": Tunnel()}


def pair(
    reported: NodeRoutes = N2, family: int = 4, *links: Uplink, models: tuple[str, ...] = ("host-gw", "paper")
) -> Pair:
    return Pair(peer=structs.replace(reported, models=models), family=family, own=NodeContext(links=links or (FAB0,)))


def path_to(made: Pair, asked: Sequence[str], models: Mapping[str, Model] = MODELS) -> Path | Fault:
    """Where nothing leads there and nothing was measured."""
    found = choose(made, tuple(asked), "", {}, 0.0, models)
    assert (found.path is None) == bool(found.faults)
    return found.path or found.faults[0]


@pytest.mark.parametrize(("family", "via"), [(4, "172.30.0.12"), (6, "fd00:172:30::12")])
def test_host_gw_goes_by_the_link_that_both_are_on(family: int, via: str) -> None:
    found = path_to(pair(N2, family, JUMBO, FAB0), ["host-gw"])
    assert isinstance(found, Path)
    assert (found.model, found.via, found.link, found.device) == ("host-gw", ip_address(via), 3, "fab0")
    assert (found.mtu, found.link_mtu, found.onlink, found.source) == (1500, 1500, False, None)
    other = path_to(pair(node("n5", "192.0.2.5"), 4, FAB0, JUMBO), ["host-gw"])
    assert isinstance(other, Path)
    assert (other.via, other.link, other.mtu, other.link_mtu) == (ip_address("192.0.2.5"), 4, 9000, 9000)
    assert (other.local, other.remote) == (ip_address("192.0.2.1"), ip_address("192.0.2.5"))


@pytest.mark.parametrize(
    ("reported", "family", "asked", "model"),
    [
        (N2, 4, ("host-gw", "paper"), "host-gw"),
        (FAR, 4, ("host-gw", "paper"), "paper"),
        (N2, 4, ("paper",), "paper"),
        (FAR, 4, ("host-gw",), "n3 (198.51.100.3) is not on a link of this node"),
        (N2, 6, ("paper",), "paper carries no IPv6"),
        (FAR, 6, ("host-gw", "paper"), "paper carries no IPv6"),
        (N2, 4, ("of-another-release",), "this node cannot do of-another-release"),
    ],
)
def test_the_first_that_serves_the_pair_is_taken_and_nothing_else(
    reported: NodeRoutes, family: int, asked: tuple[str, ...], model: str
) -> None:
    found = path_to(pair(reported, family), asked, BOTH)
    assert model in (found.model if isinstance(found, Path) else found.fault)
    assert isinstance(found, Path) is (model in BOTH)


def test_both_nodes_must_do_a_model() -> None:
    found = path_to(pair(N2, 4, models=("host-gw",)), ("paper",), BOTH)
    assert isinstance(found, Fault)
    assert "n2 cannot do paper, only host-gw" in found.fault
    assert found.of_others
    assert path_by("paper", pair(N2, 4, models=()), BOTH) == path_to(pair(N2, 4, models=()), ("paper",), BOTH)
    assert path_to(pair(N2, 4, models=()), ("host-gw", "paper"), BOTH) == path_to(
        pair(N2, 4, models=()), ("paper",), BOTH
    )


def test_each_prefix_goes_by_the_model_that_its_pool_asks_for() -> None:
    """Addresses of a pool that asks for what this node cannot do have no route; those of others have."""
    asking = {ip_network("10.244.0.64/26"): ("gre",), ip_network("10.244.1.0/26"): ("gre",)}
    kept = (claim("10.244.1.7", "n2"), claim("10.244.2.7", "n2"))
    planned = plan(mesh(N1, N2, claims=kept, pools=asking), Snapshot(uplinks=(FAB0,)))
    reached = {operation.route.destination for operation in planned.changes if operation.route.via}
    assert reached == {ip_network("fd00:10:244::40/122"), ip_network("10.244.2.7/32")}
    assert [fault.fault for fault in planned.faults] == ["this node cannot do gre"]
    assert HOST_GW.name in planned.faults[0].remedy


@pytest.mark.parametrize(
    ("own", "reported", "mtu"),
    [
        pytest.param(1500, 1500, 1500, id="equal"),
        pytest.param(1500, 1400, 1400, id="the-other's-is-smaller"),
        pytest.param(1400, 1500, 1400, id="ours-is-smaller"),
        pytest.param(1500, 9000, 1500, id="the-other-has-jumbo-frames"),
        pytest.param(9000, 0, 9000, id="the-other-does-not-say"),
        pytest.param(1500, 1, 1280, id="less-than-ipv6-needs"),
        pytest.param(1500, -7, 1280, id="nonsense"),
        pytest.param(1200, 1500, 1200, id="our-own-as-it-is"),
    ],
)
def test_a_pair_takes_the_smaller_mtu_of_both_ends(own: int, reported: int, mtu: int) -> None:
    peer, uplink = structs.replace(N2, mtu=reported), replace(FAB0, mtu=own)
    for family in (4, 6):
        found = path_to(pair(peer, family, uplink), ["host-gw"])
        assert isinstance(found, Path)
        assert (found.mtu, found.link_mtu) == (mtu, own)
    tunnelled = path_to(pair(peer, 4, uplink), ["paper"], BOTH)
    assert isinstance(tunnelled, Path)
    assert tunnelled.mtu == mtu - 20


def test_the_routes_of_a_pair_carry_its_mtu_where_the_interface_takes_more() -> None:
    """One node's small link makes no other pair's packets small; a host route of a kept address carries it, too."""
    small = structs.replace(N2, mtu=1400)
    third = structs.replace(node("n3", "172.30.0.13 fd00:172:30::13", "10.244.0.128/26"), mtu=1500)
    kept = (claim("10.244.1.7", "n2"), claim("10.244.1.8", "n3"))
    held = {"n2": "10.244.0.64/26 fd00:10:244::40/122", "n3": "10.244.0.128/26"}
    made = mesh(N1, small, third, claims=kept, held=held)
    planned = plan(made, Snapshot(uplinks=(FAB0,)))
    mtus = {str(route.destination): route.mtu for route in planned.desired.values()}
    assert mtus == {
        "10.244.0.64/26": 1400,
        "fd00:10:244::40/122": 1400,
        "10.244.1.7/32": 1400,
        "10.244.0.128/26": 0,
        "10.244.1.8/32": 0,
    }
    equal = plan(made, Snapshot(uplinks=(replace(FAB0, mtu=1400),))).desired.values()
    assert {route.mtu for route in equal} == {0}, "the interface says it already"


def test_a_route_whose_mtu_differs_is_replaced_in_place() -> None:
    small = structs.replace(N2, mtu=1400)
    wanted = plan(mesh(N1, small), Snapshot(uplinks=(FAB0,))).desired
    there = tuple(wanted.values())
    assert plan(mesh(N1, small), Snapshot(uplinks=(FAB0,), routes=there)).operations == ()
    for other in (0, 1300, OTHER_MTU):
        drifted = tuple(replace(route, mtu=other) if route.mtu else route for route in there)
        planned = plan(mesh(N1, small), Snapshot(uplinks=(FAB0,), routes=drifted))
        assert {(type(one), one.route.mtu) for one in planned.changes} == {(Replace, 1400)}
    grown = plan(mesh(N1, structs.replace(N2, mtu=1500)), Snapshot(uplinks=(FAB0,), routes=there))
    assert {(type(one), one.route.mtu) for one in grown.changes} == {(Replace, 0)}
