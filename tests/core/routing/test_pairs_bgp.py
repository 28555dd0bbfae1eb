"""Pairs of nodes on no common link: served by what BGP has learnt, or told that no peer leads there."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from kit.model_settings import ModelSettings
from kit.models import ENCRYPTS, HOST_GW, IPIP, VXLAN
from proto.net import Network
from services.routing.core.choice import Choice
from services.routing.core.fib import Remove, Snapshot
from services.routing.core.mesh import Mesh
from services.routing.core.models.tunnel import PATIENCE
from services.routing.core.pairs import Memory
from services.routing.core.plan import Plan, plan
from tests.core.routing.test_plan import FAB0, N1, TO_N2, mesh, node, route, said

NEAR, FAR, FAR6 = "10.244.0.64/26", "10.244.2.0/26 10.244.2.64/26", "fd00:10:244::80/122"
HELD = {"n1": "10.244.0.0/26", "n2": f"{NEAR} fd00:10:244::40/122", "n3": f"{FAR} {FAR6}"}
N2 = node("n2", "172.30.0.12 fd00:172:30::12", HELD["n2"])
N3 = node("n3", "198.51.100.3 fd00:99::3", HELD["n3"])
POOL, POOL6 = ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")
Learnt = Callable[[Network], bool]


def by(prefixes: str) -> Learnt:
    known = {ip_network(prefix) for prefix in prefixes.split()}
    return lambda network: network in known


EVERYTHING = by(f"{HELD['n2']} {HELD['n3']}")


def meshed(asked: tuple[str, ...] = (HOST_GW.name,), **more: Any) -> Mesh:
    pools: dict[str, Any] = {
        "pools": {POOL: asked, POOL6: asked},
        "names": {POOL: "pods", POOL6: "pods6"},
        "pools_complete": True,
    }
    return mesh(N1, N2, N3, held=HELD, **(pools | {"routes_complete": True, "settings_complete": True} | more))


def planned(learnt: Learnt | None, made: Mesh | None = None, *kernel: str) -> Plan:
    seen = Snapshot(routes=tuple(route(text) for text in kernel), uplinks=(FAB0,))
    return plan(made or meshed(), seen, Memory(learnt=learnt))


def pair(found: Plan, peer: str = "n3", family: int = 4) -> Choice:
    return next(choice for key, choice in found.pairs.items() if (key.peer, key.family) == (peer, family))


@pytest.mark.parametrize("family", [4, 6])
def test_learnt_routes_serve_a_pair_without_routes_of_its_own(family: int) -> None:
    found = planned(EVERYTHING)
    choice = pair(found, family=family)
    assert (choice.model, choice.state, choice.faults) == ("bgp", "taken", ())
    assert not found.faults
    assert sorted(said(one) for one in found.desired.values() if one.via) == sorted(TO_N2)


@pytest.mark.parametrize(
    ("learnt", "missing"),
    [
        ("", "10.244.2.0/26 (and 1 more) of node n3"),
        ("10.244.2.0/26", "10.244.2.64/26 of node n3"),
        (f"{FAR6} {NEAR}", "10.244.2.0/26 (and 1 more) of node n3"),
    ],
)
def test_what_no_peer_leads_to_is_a_fault_with_its_remedy(learnt: str, missing: str) -> None:
    found = planned(by(learnt))
    choice = pair(found)
    assert (choice.model, choice.state) == ("", "none")
    (fault,) = choice.faults
    assert missing in fault.fault
    assert fault.fault == choice.why
    assert "airmesh bgp" in fault.remedy
    assert fault.of_others, "the node is ready"
    assert fault.after == PATIENCE, "while sessions come up it is none"
    assert fault in found.faults


def test_each_family_is_served_by_its_own_routes() -> None:
    found = planned(by(FAR6))
    assert (pair(found, family=4).model, pair(found, family=6).model) == ("", "bgp")


def test_a_node_that_speaks_no_bgp_says_so_as_before() -> None:
    choice = pair(planned(None))
    assert choice.model == ""
    assert "BGP" not in choice.why


def test_on_a_common_link_the_pair_has_routes_of_its_own_whatever_is_learnt() -> None:
    for learnt in (EVERYTHING, by("")):
        choice = pair(planned(learnt), "n2")
        assert (choice.model, choice.learnt) == (HOST_GW.name, False)


def test_a_node_that_has_left_the_link_is_reached_by_learnt_routes() -> None:
    """The route of its own leads nowhere any more, and would hide the learnt one."""
    moved = mesh(
        N1,
        node("n2", "198.51.100.2", NEAR),
        held={"n1": "10.244.0.0/26", "n2": NEAR},
        pools={POOL: (HOST_GW.name,)},
        pools_complete=True,
        routes_complete=True,
    )
    found = planned(EVERYTHING, moved, TO_N2[0])
    assert pair(found, "n2").model == "bgp"
    assert [said(one.route) for one in found.changes if isinstance(one, Remove)] == [TO_N2[0]]


def test_before_the_pools_are_known_learnt_routes_serve() -> None:
    found = planned(EVERYTHING, meshed(pools={}, names={}, pools_complete=False))
    assert pair(found).model == "bgp"


@pytest.mark.parametrize("asked", [(VXLAN.name,), (HOST_GW.name, VXLAN.name), (HOST_GW.name, IPIP.name)])
def test_pools_that_ask_for_a_tunnel_are_not_served_by_learnt_routes(asked: tuple[str, ...]) -> None:
    choice = pair(planned(EVERYTHING, meshed(asked)))
    assert not choice.learnt
    assert "BGP" not in choice.why


def test_a_family_that_must_be_encrypted_is_not_served_by_learnt_routes() -> None:
    settings = ModelSettings(encrypted=frozenset({4}))
    found = planned(EVERYTHING, meshed(settings=settings))
    four = pair(found, family=4)
    assert (four.asked, four.learnt, four.model) == ((ENCRYPTS,), False, "")
    assert [fault.about for fault in four.faults] == [("FelixConfiguration", "default")]
    assert pair(found, family=6).model == "bgp"
