"""Pairs of nodes on no common link: served by what BGP has learnt, or told that no peer leads there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest

from kit.model_settings import ModelSettings
from kit.models import ENCRYPTS, HOST_GW, IPIP, VXLAN
from proto.net import Network
from services.routing.core.bgp_pairs import by_bgp
from services.routing.core.choice import Choice, choose
from services.routing.core.fib import Remove, Snapshot
from services.routing.core.mesh import Mesh
from services.routing.core.models.contract import Pair as PairOf
from services.routing.core.models.tunnel import PATIENCE
from services.routing.core.pairs import Memory
from services.routing.core.plan import Plan, plan
from tests.core.routing.test_choice import ALL, CONTEXT, NOW, Measured
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
def test_where_a_tunnel_is_asked_for_learnt_routes_lead_there_until_there_is_one_and_that_is_a_fault(
    asked: tuple[str, ...],
) -> None:
    found = planned(EVERYTHING, meshed(asked))
    choice = pair(found)
    assert (choice.model, choice.state) == ("bgp", "pending")
    assert choice.pending in asked
    (fault,) = choice.faults
    assert "is not there" in fault.fault
    assert fault in found.faults
    without = pair(planned(by(NEAR), meshed(asked)))
    assert (without.model, without.state, without.faults) == ("", "none", choice.faults)


# What is asked for, what led there, what was measured, what BGP leads to of two prefixes, and the peer:
# what is taken, how, and what it waits for.
@pytest.mark.parametrize(
    ("asked", "before", "measured", "learnt", "far", "expected"),
    [
        pytest.param("host-gw", "", "", "both", True, "bgp taken", id="as-they-are"),
        pytest.param("host-gw", "", "", "one", True, " none", id="not-to-all-of-it"),
        pytest.param("host-gw", "vxlan", "vxlan=works", "none", True, "vxlan pending bgp", id="to-bgp-waits"),
        pytest.param("host-gw", "vxlan", "vxlan=works", "one", True, "vxlan pending bgp", id="to-bgp-waits-for-all"),
        pytest.param("host-gw", "vxlan", "vxlan=fails", "one", True, "vxlan pending bgp", id="whatever-fails"),
        pytest.param("host-gw", "vxlan", "vxlan=works", "both", True, "bgp taken", id="to-bgp"),
        pytest.param("host-gw", "vxlan", "vxlan=works", "both", False, "vxlan pending host-gw", id="to-a-common-link"),
        pytest.param("vxlan", "", "", "both", True, "bgp pending vxlan", id="from-bgp-waits"),
        pytest.param("vxlan", "", "vxlan=fails", "both", True, "bgp pending vxlan", id="from-bgp-not-answered"),
        pytest.param("vxlan", "", "vxlan=works", "both", True, "vxlan taken", id="from-bgp"),
        pytest.param("vxlan", "", "", "one", True, "vxlan taken", id="bgp-leads-not-to-all"),
        pytest.param("ipip vxlan", "", "ipip=fails vxlan=works", "both", True, "vxlan given-up", id="the-first-fails"),
        pytest.param("ipip vxlan", "", "ipip=? vxlan=works", "both", True, "bgp pending ipip", id="the-first-is-tried"),
        pytest.param("vxlan", "vxlan", "vxlan=fails", "both", True, "vxlan taken", id="always-is-never-given-up"),
        pytest.param("vxlan", "ipip", "vxlan=?", "both", True, "ipip pending vxlan", id="between-tunnels"),
        pytest.param("", "vxlan", "", "both", True, "vxlan taken", id="what-is-asked-is-not-known"),
        pytest.param("wireguard", "", "", "both", True, " none", id="encrypted-or-not-at-all"),
    ],
)  # fmt: skip
def test_a_change_to_bgp_and_from_it(
    asked: str, before: str, measured: str, learnt: str, far: bool, expected: str
) -> None:
    one, other = (ip_network(text) for text in FAR.split())
    leads = {"both": {one, other}, "one": {one}, "none": set()}[learnt]
    words = dict(part.split("=") for part in measured.split())
    peer = msgspec.structs.replace(N3 if far else N2, models=ALL)
    of = PairOf(peer=peer, family=4, own=CONTEXT)
    evidence = Measured(words).of(of)
    without = replace(choose(of, tuple(asked.split()), before, evidence, NOW), before=before)
    found = by_bgp(without, peer.node, [one, other], leads.__contains__, evidence)
    assert f"{found.model} {found.state} {found.pending}".rstrip() == expected
    assert (found.path is None) is (found.model in ("", "bgp"))
    assert found.why


def test_who_speaks_no_bgp_leaves_no_tunnel_for_what_the_fabric_should_do() -> None:
    of = PairOf(peer=msgspec.structs.replace(N3, models=ALL), family=4, own=CONTEXT)
    for asked, before in ((("host-gw",), "vxlan"), (("vxlan",), "")):
        without = replace(choose(of, asked, before, {}, NOW), before=before)
        assert by_bgp(without, "n3", [POOL], lambda _: True, {}, speaks=False) == without


def test_a_family_that_must_be_encrypted_is_not_served_by_learnt_routes() -> None:
    settings = ModelSettings(encrypted=frozenset({4}))
    found = planned(EVERYTHING, meshed(settings=settings))
    four = pair(found, family=4)
    assert (four.asked, four.learnt, four.model) == ((ENCRYPTS,), False, "")
    assert [fault.about for fault in four.faults] == [("FelixConfiguration", "default")]
    assert pair(found, family=6).model == "bgp"
