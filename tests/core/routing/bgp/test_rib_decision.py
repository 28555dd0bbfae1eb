"""Which path wins, at which step, and which share its traffic, whatever came first."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.routing.core.bgp.rib.decision import BEYOND, SAME_NEXT_HOP, STEPS, TIES
from services.routing.core.bgp.rib.paths import Reach
from services.routing.core.bgp.values import Attributes, Origin, Segment, SegmentKind
from tests.core.routing.bgp.rib_speaker import OURS, V4, V6, Speaker, as_path, attributes, prefix

P = "192.0.2.0/24"
PLAIN = attributes(65001, 65100, hop="172.31.0.1")
OTHER = attributes(65001, 65100, hop="172.31.1.1")
"""Equal to the first in all but the next hop."""

# What makes the path of tor-a better than that of tor-b, or worse: the step, and both paths.
CASES: list[tuple[str, Attributes, Attributes]] = [
    ("long-lived stale", PLAIN, replace(OTHER, communities=(0xFFFF0006,), local_pref=900)),
    ("local preference", replace(PLAIN, local_pref=101), OTHER),
    ("local preference", PLAIN, replace(OTHER, local_pref=99)),
    ("local preference", PLAIN, replace(OTHER, communities=(0xFFFF0000,))),
    ("length of the AS path", PLAIN, attributes(65001, 65100, 65101, hop="172.31.1.1")),
    ("length of the AS path", PLAIN, attributes(65001, {65100}, {65101}, hop="172.31.1.1")),
    ("origin", PLAIN, replace(OTHER, origin=Origin.EGP)),
    ("origin", replace(PLAIN, origin=Origin.EGP), replace(OTHER, origin=Origin.INCOMPLETE)),
    ("MED", PLAIN, replace(OTHER, med=1)),
    ("MED", replace(PLAIN, med=3), replace(OTHER, med=10)),
]


def speaker(*peers: tuple[str, int, str], **settings: Any) -> Speaker:
    made = Speaker(**settings)
    for name, asn, address in peers:
        made.up(name, asn, address, first_asn_checked=False)
    return made


@pytest.mark.parametrize("first", ["tor-a", "tor-b"])
@pytest.mark.parametrize(("step", "better", "worse"), CASES)
def test_a_step_decides_whoever_came_first(step: str, better: Attributes, worse: Attributes, first: str) -> None:
    one = speaker(("tor-a", 65001, "172.31.9.1"), ("tor-b", 65001, "172.31.1.1"))  # the address speaks for tor-b
    sent = {"tor-a": better, "tor-b": worse}
    for name in sorted(sent, key=lambda name: name != first):
        one.learn(name, P, sent[name])
    assert one.used() == {P: "tor-a"}
    why = one.tables.why(V4, prefix(P))
    assert [(standing.path.source.name, standing.used, standing.lost_at) for standing in why] == [
        ("tor-a", True, ""),
        ("tor-b", False, step),
    ]


def test_the_own_route_is_before_a_shorter_one_but_after_a_preferred_one() -> None:
    one = speaker(("tor-a", 65001, "172.31.0.1"))
    one.tables.originate(V4, prefix(P), attributes(65000, 65000, 65000))
    one.learn("tor-a", P, PLAIN)
    assert one.used() == {P: "own"}
    assert one.tables.why(V4, prefix(P))[1].lost_at == "begun by this speaker"
    one.learn("tor-a", P, replace(PLAIN, local_pref=200))
    assert one.used() == {P: "tor-a"}


def test_an_external_path_is_before_an_internal_one() -> None:
    one = speaker(("rr", OURS, "172.31.0.1"), ("tor-a", 65001, "172.31.9.1"))
    one.learn("rr", P, attributes(65001, 65100, hop="172.31.7.7"))
    one.learn("tor-a", P, PLAIN)
    assert one.used() == {P: "tor-a"}
    assert one.tables.why(V4, prefix(P))[1].lost_at == "external before internal"


def test_the_nearer_next_hop_is_better_and_only_what_it_concerns_is_decided_again() -> None:
    one = speaker(("node-1", OURS, "172.31.0.1"), ("node-2", OURS, "172.31.1.1"))
    one.reach = {"172.31.0.1": Reach(10), "172.31.1.1": Reach(20)}
    one.learn("node-1", f"{P} 198.51.100.0/24", PLAIN)
    one.learn("node-2", P, OTHER)
    one.learn("node-2", "203.0.113.0/24", attributes(65001, hop="172.31.5.5"))
    assert one.used() == {P: "node-1", "198.51.100.0/24": "node-1", "203.0.113.0/24": "node-2"}
    assert one.tables.why(V4, prefix(P))[1].lost_at == "interior cost"
    one.reach["172.31.0.1"] = Reach(30)
    one.tables.next_hops_changed([IPv4Address("172.31.0.1")])
    before = one.tables._loc[V4].decided
    assert one.decide() == {P: "node-2"}
    assert one.tables._loc[V4].decided - before == 2
    one.reach["172.31.0.1"] = None
    one.tables.next_hops_changed()
    assert one.decide() == {"198.51.100.0/24": ""}
    assert one.tables.why(V4, prefix("198.51.100.0/24"))[0].lost_at == "its next hop is not reached"
    one.reach["172.31.0.1"] = Reach(10)
    one.tables.next_hops_changed()
    assert one.decide() == {P: "node-1", "198.51.100.0/24": "node-1"}


# Equal to the interior cost: what is said of two internal paths by the steps after it.
TIED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("router id", {"router_id": "1.1.1.1"}, {"router_id": "1.1.1.2"}),
    ("router id", {"originator_id": IPv4Address("1.1.1.1")}, {"originator_id": IPv4Address("1.1.1.2")}),
    ("router id", {"router_id": "1.1.1.9", "originator_id": IPv4Address("1.1.1.1")}, {"router_id": "1.1.1.2"}),
    (
        "length of the cluster list",
        {"router_id": "1.1.1.1", "cluster_list": (IPv4Address("3.3.3.3"),)},
        {"router_id": "1.1.1.1", "cluster_list": (IPv4Address("3.3.3.3"), IPv4Address("3.3.3.4"))},
    ),
    ("address of the peer", {"router_id": "1.1.1.1"}, {"router_id": "1.1.1.1"}),
]


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("step", "better", "worse"), TIED)
def test_ties_are_broken_in_order(
    step: str, better: dict[str, Any], worse: dict[str, Any], first: int, most: int
) -> None:
    one = Speaker(most_paths=most)
    peers = [("node-a", "172.31.0.1", better), ("node-b", "172.31.1.1", worse)]
    for name, address, said in peers[::-1] if first else peers:
        more = {key: value for key, value in said.items() if key != "router_id"}
        one.up(name, OURS, address, router_id=said.get("router_id", "9.9.9.9"))
        one.learn(name, P, attributes(65001, hop=address, **more))
    assert one.used() == {P: "node-a node-b" if most > 1 else "node-a"}
    lost = one.tables.why(V4, prefix(P))[1]
    assert (lost.used, lost.lost_at) == ((True, step) if most > 1 else (False, BEYOND))


def test_med_is_compared_within_one_system_alone() -> None:
    """The classic of RFC 3345: by pairs, in the order of arrival, each of the three could win."""
    paths = {
        "node-1": attributes(65001, 65100, hop="172.31.1.1", med=10),
        "node-2": attributes(65002, 65100, hop="172.31.2.1", med=5),
        "node-3": attributes(65001, 65100, hop="172.31.3.1", med=0),
    }
    outcomes = set()
    for order in permutations(paths):
        one = Speaker()
        one.reach = {"172.31.1.1": Reach(1), "172.31.2.1": Reach(2), "172.31.3.1": Reach(3)}
        for name in order:
            one.up(name, OURS, f"172.31.{name[-1]}.1")
            one.learn(name, P, paths[name])
            one.decide()
        outcomes.add(one.used()[P])
        assert {standing.path.source.name: standing.lost_at for standing in one.tables.why(V4, prefix(P))} == {
            "node-2": "",
            "node-1": "MED",
            "node-3": "interior cost",
        }
    assert outcomes == {"node-2"}


def test_confederations_do_not_lengthen_a_path() -> None:
    inner = Segment(SegmentKind.CONFED_SEQUENCE, (65500, 65501, 65502))
    one = speaker(("tor-a", 65001, "172.31.0.1"), ("tor-b", 65001, "172.31.1.1"))
    one.learn("tor-a", P, replace(PLAIN, as_path=(inner, *as_path(65001))))
    one.learn("tor-b", P, OTHER)
    assert one.used() == {P: "tor-a"}


def test_two_switches_in_different_systems_are_used_together() -> None:
    """The mission's third scenario: AS 64512 with switches in AS 65001 and AS 65002."""
    one = speaker(("tor-a", 65001, "172.31.0.1"), ("tor-b", 65002, "172.31.1.1"))
    one.learn("tor-b", P, attributes(65002, 65200, hop="172.31.1.1"))
    one.learn("tor-a", P, attributes(65001, 65100, hop="172.31.0.1"))
    assert one.used() == {P: "tor-a tor-b"}
    one.tables.peer_down("tor-a")
    assert one.decide() == {P: "tor-b"}
    one.up("tor-a", 65001, "172.31.0.1")
    one.learn("tor-a", P, attributes(65001, 65100, 65101, hop="172.31.0.1"))
    assert one.decide() == {}, "a longer path is no equal"


def test_so_many_paths_are_used_and_each_next_hop_once() -> None:
    one = Speaker(most_paths=3)
    for number in range(1, 7):
        one.up(f"node-{number}", OURS, f"172.31.{number}.1")
        hop = f"172.31.{max(number, 2)}.1"
        one.learn(f"node-{number}", P, attributes(65001, hop=hop))
    assert one.used() == {P: "node-1 node-3 node-4"}
    lost = {standing.path.source.name: standing.lost_at for standing in one.tables.why(V4, prefix(P))}
    assert lost["node-2"] == SAME_NEXT_HOP
    assert lost["node-5"] == lost["node-6"] == BEYOND


def test_one_link_local_address_on_two_links_is_two_next_hops() -> None:
    one = Speaker()
    for name, asn, interface in (("tor-a", 65001, "eth0"), ("tor-b", 65002, "eth1")):
        one.up(name, asn, "fe80::1", families=[V6], interface=interface, router_id=f"1.1.1.{asn - 65000}")
        one.learn(name, "2001:db8:5::/48", attributes(asn, hop="fe80::1"))
    assert one.used(V6) == {"2001:db8:5::/48": "tor-a tor-b"}
    assert sorted(interface for _, interface in one.tables.next_hops()) == ["eth0", "eth1"]


def test_the_steps_are_those_of_the_rfcs_in_their_order() -> None:
    assert [step.name for step in (*STEPS, *TIES)] == [
        "long-lived stale",
        "local preference",
        "begun by this speaker",
        "length of the AS path",
        "origin",
        "MED",
        "external before internal",
        "interior cost",
        "router id",
        "length of the cluster list",
        "address of the peer",
        "name of the peer",
        "path identifier",
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(range(5)),
    st.lists(
        st.tuples(st.sampled_from([65001, 65002]), st.sampled_from([None, 1, 2]), st.sampled_from([1, 2, 3])),
        min_size=5,
        max_size=5,
    ),
)
def test_the_order_of_arrival_does_not_matter(order: list[int], said: list[tuple[int, int | None, int]]) -> None:
    def used(numbers: list[int]) -> dict[str, str]:
        one = Speaker(most_paths=2)
        one.reach = {f"172.31.{number}.1": Reach(cost) for number, (_, _, cost) in enumerate(said)}
        for number in numbers:
            asn, med, _ = said[number]
            one.up(f"node-{number}", OURS, f"172.31.{number}.1", router_id="7.7.7.7")
            one.learn(f"node-{number}", P, attributes(asn, hop=f"172.31.{number}.1", med=med))
            if number % 2:
                one.decide()
        return one.used()

    assert used(order) == used([0, 1, 2, 3, 4])
