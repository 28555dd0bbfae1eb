"""Which sessions of the mesh stay though it is off, and until when: tables of what else leads where they led."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from services.routing.core.bgp.make_before_break import DEADLINE, PATIENCE, REPORTED_FOR, Handover
from services.routing.core.bgp.peers import Action, FilterRule
from services.routing.core.bgp.resources import peering
from services.routing.core.bgp.values import Attributes, Family, Origin
from tests.core.routing.bgp.rib_speaker import OURS, V4, Speaker, attributes, prefix
from tests.core.routing.bgp.test_resources import MESH_OFF, MESH_ON, A, objects

MESH = {"mesh/n2": "172.31.0.2", "mesh/n3": "172.31.0.3"}
KEPT = dict.fromkeys(MESH, DEADLINE)
"""Seconds for which the other nodes keep this one's routes."""
HOPS = {**MESH, "tor/172.31.0.1": "172.31.0.1", "rr/172.31.0.9": "172.31.0.9"}
BLOCK, OTHER = "10.244.2.0/26", "10.244.3.0/26"


def node(*said: str, own: str = "", reject: str = "", unreached: str = "") -> Speaker:
    """A node that peers have told of prefixes (``peer: prefix prefix``), and that has decided."""
    one = Speaker()
    for name, address in HOPS.items():
        external = name.startswith("tor")
        rules: dict[str, Any] = {}
        if reject and external:
            network = ip_network(reject)
            rules["imports"] = (FilterRule(action=Action.REJECT, family=V4, network=network),)
        one.up(name, 65001 if external else OURS, address, **rules)
    if unreached:
        one.reach[unreached] = None
    for row in said:
        name, texts = row.split(": ")
        path = (65001, 65100) if name.startswith("tor") else ()
        one.learn(name, texts, attributes(*path, hop=HOPS[name]))
    for text in own.split():
        one.tables.originate(V4, prefix(text), Attributes(origin=Origin.IGP))
    one.decide()
    return one


def lacking(one: Speaker, *, routed: str = "") -> str:
    """``peer: first prefix that it alone leads to`` of each peer that stays."""
    found = Handover().after(KEPT, one.tables, {ip_network(text) for text in routed.split()}, 0.0)
    return " ".join(f"{name}: {stay.network}" for name, stay in sorted(found.staying.items()))


@pytest.mark.parametrize(
    ("said", "more", "expected"),
    [
        pytest.param((), {}, "", id="nothing-was-carried"),
        pytest.param((f"mesh/n2: {BLOCK}",), {}, f"mesh/n2: {BLOCK}", id="nobody-else"),
        pytest.param((f"mesh/n2: {BLOCK}", f"tor/172.31.0.1: {BLOCK}"), {}, "", id="a-switch-has-it"),
        pytest.param((f"mesh/n2: {BLOCK}", f"rr/172.31.0.9: {BLOCK}"), {}, "", id="a-reflector-has-it"),
        pytest.param((f"mesh/n2: {BLOCK}", f"mesh/n3: {BLOCK}"), {}, f"mesh/n2: {BLOCK} mesh/n3: {BLOCK}",
                     id="another-that-goes-is-none"),
        pytest.param((f"mesh/n2: {BLOCK}", f"mesh/n3: {OTHER}", f"tor/172.31.0.1: {OTHER}"), {}, f"mesh/n2: {BLOCK}",
                     id="each-session-by-itself"),
        pytest.param((f"mesh/n2: {BLOCK}", "tor/172.31.0.1: 10.244.0.0/17"), {}, "", id="a-wider-one"),
        pytest.param((f"mesh/n2: {BLOCK}", "tor/172.31.0.1: 10.244.2.0/27"), {}, f"mesh/n2: {BLOCK}",
                     id="a-part-of-it-is-not-all"),
        pytest.param((f"mesh/n2: {BLOCK}", "tor/172.31.0.1: 0.0.0.0/0"), {}, f"mesh/n2: {BLOCK}",
                     id="never-the-default-route"),
        pytest.param((f"mesh/n2: {BLOCK}", f"tor/172.31.0.1: {BLOCK}"), {"reject": BLOCK}, f"mesh/n2: {BLOCK}",
                     id="what-a-filter-rejects-is-none"),
        pytest.param((f"mesh/n2: {BLOCK}", f"tor/172.31.0.1: {BLOCK}"), {"unreached": HOPS["tor/172.31.0.1"]},
                     f"mesh/n2: {BLOCK}", id="what-is-not-reached-is-none"),
        pytest.param((f"mesh/n2: {BLOCK}",), {"unreached": MESH["mesh/n2"]}, "", id="what-led-nowhere-needs-nothing"),
        pytest.param(("mesh/n2: 10.96.0.0/12",), {"own": "10.96.0.0/12"}, "", id="what-is-ours-too"),
        pytest.param(("mesh/n2: 10.244.1.7/32",), {"own": "10.244.1.0/26"}, "mesh/n2: 10.244.1.7/32",
                     id="a-kept-address-out-of-our-block"),
    ],
)  # fmt: skip
def test_what_a_session_stays_for(said: tuple[str, ...], more: dict[str, str], expected: str) -> None:
    assert lacking(node(*said, **more)) == expected


def test_a_route_of_the_pair_itself_is_enough() -> None:
    one = node(f"mesh/n2: {BLOCK} {OTHER}")
    assert lacking(one, routed=BLOCK) == f"mesh/n2: {OTHER}"
    assert lacking(one, routed=f"{BLOCK} {OTHER}") == ""


def test_what_is_kept_over_a_restart_of_the_peer_counts() -> None:
    """The other node ends the session when it needs it no longer; this one still may."""
    one = node(f"mesh/n2: {BLOCK}")
    one.tables.peer_down("mesh/n2", keep={Family.IPV4})
    assert lacking(one) == f"mesh/n2: {BLOCK}"
    one.learn("tor/172.31.0.1", BLOCK, attributes(65001, 65100))
    assert lacking(one) == ""


def test_it_stays_for_so_long_at_most_and_is_reported() -> None:
    one = node(f"mesh/n2: {BLOCK}")
    at = 1000.0
    found = Handover().after(KEPT, one.tables, (), at)
    assert (list(found.staying), found.faults(at + PATIENCE - 1)) == (["mesh/n2"], ())
    found = found.after(KEPT, one.tables, (), at + PATIENCE)
    (fault,) = found.faults(at + PATIENCE)
    assert fault.about == ("BGPConfiguration", "default")
    assert "mesh/n2" in fault.fault
    assert BLOCK in fault.fault
    assert "airmesh bgp" in fault.remedy
    found = found.after(KEPT, one.tables, (), at + DEADLINE - 1)
    assert list(found.staying) == ["mesh/n2"]
    ended = found.after(KEPT, one.tables, (), at + DEADLINE)
    assert (list(ended.staying), list(ended.broken)) == ([], ["mesh/n2"])
    (fault,) = ended.faults(at + DEADLINE)
    assert "nothing but its session mesh/n2" in fault.fault
    later = ended.after({}, one.tables, (), at + DEADLINE + REPORTED_FOR - 1)
    assert later.faults(at + DEADLINE + REPORTED_FOR - 1) == (fault,)
    assert later.after({}, one.tables, (), at + DEADLINE + REPORTED_FOR) == Handover()


def test_the_time_of_a_session_goes_on_whatever_it_lacks() -> None:
    one = node(f"mesh/n2: {BLOCK}")
    found = Handover().after(KEPT, one.tables, (), 0.0)
    one.learn("mesh/n2", OTHER, attributes(hop=MESH["mesh/n2"]))
    one.learn("tor/172.31.0.1", BLOCK, attributes(65001, 65100))
    one.decide()
    found = found.after(KEPT, one.tables, (), 50.0)
    assert found.staying["mesh/n2"].network == ip_network(OTHER)
    assert found.after(KEPT, one.tables, (), DEADLINE).broken


@pytest.mark.parametrize("kept", [0.0, 5.0, DEADLINE - 1, DEADLINE, 4095.0])
def test_a_session_stays_for_the_other_node_as_long_as_that_would_keep_nothing_without(kept: float) -> None:
    """What this node needs is there; the other has all in all the same time as where it keeps routes."""
    one = node(f"mesh/n2: {BLOCK}", f"tor/172.31.0.1: {BLOCK}")
    going, at, rest = {"mesh/n2": kept}, 1000.0, DEADLINE - kept
    found = Handover().after(going, one.tables, (), at)
    assert list(found.staying) == (["mesh/n2"] if rest > 0 else [])
    if rest > 0:
        found = found.after(going, one.tables, (), at + rest - 0.5)
        assert list(found.staying) == ["mesh/n2"]
        assert found.faults(at + rest - 0.5) == (), "nothing is missing"
    found = found.after(going, one.tables, (), at + max(rest, 0.0))
    assert found == Handover()


def names(found: Any) -> list[str]:
    return [peer.name for peer in found.peers if peer.in_mesh]


def test_sessions_of_the_mesh_that_stay_are_those_that_it_had() -> None:
    on, off = objects("n1", MESH_ON), objects("n1", f"{MESH_OFF}\nBGPPeer a: {{{A}}}")
    whole = peering(on)
    assert names(whole) == ["mesh/n2", "mesh/n2/ipv6", "mesh/n3"]
    assert names(peering(off)) == []
    kept = peering(off, staying={"mesh/n2", "mesh/r1", "mesh/gone"})
    assert names(kept) == ["mesh/n2", "mesh/r1"], "of nodes that there are"
    was, stays = ({peer.name: peer.session for peer in one.peers} for one in (whole, kept))
    assert stays["mesh/n2"] == was["mesh/n2"], "the same session"
    assert "a/10.0.0.1" in stays
    rules = {peer.name: peer.tables.imports[-1] for peer in kept.peers}
    assert (rules["mesh/n2"].set_local_pref, rules["mesh/n2"].prepend) == (0, (64512,)), "any other path comes first"
    assert rules["a/10.0.0.1"].set_local_pref is None


def test_a_session_that_is_asked_for_by_itself_comes_before_one_of_the_mesh_that_stays() -> None:
    asked = objects("n1", f"{MESH_OFF}\nBGPPeer a: {{peerSelector: all(), nodeSelector: all()}}")
    assert names(peering(asked, staying={"mesh/n2"})) == []


def test_a_node_that_becomes_a_reflector_leaves_the_mesh_the_same_way() -> None:
    before = objects("n1", MESH_ON)
    after = replace(before, me="r1")
    assert names(peering(after)) == []
    assert names(peering(after, staying={"mesh/n1"})) == ["mesh/n1"]
