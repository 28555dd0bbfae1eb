"""What is shown of a speaker's tables: each path with what became of it, bounded, and counted as it is listed."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.bgp import MAX_PATHS, BgpPath, BgpRoutes, BgpRoutesRequest, RoutesTable, is_named
from proto.codec import encode
from services.routing.core.bgp.peers import Action, FilterRule
from services.routing.core.bgp.reports import counts, routes
from services.routing.core.bgp.values import Attributes, Origin, covering, network_of, prefix_of
from tests.core.routing.bgp.rib_speaker import V4, V6, Speaker, attributes, prefix

P, WIDE, TEN = "10.1.0.0/16", "10.0.0.0/8", "10.1.2.0/24"
OWN = "192.168.7.0/26"
PEERS = ("rack/172.31.0.1", "rack/172.31.1.1", "mesh/n2")
A, B, MESH = PEERS
REJECT = FilterRule(action=Action.REJECT, family=V4, network=ip_network(TEN))


def speaker() -> Speaker:
    """Two switches of AS 65001 and 65002 and a node of the mesh; 10.1.2.0/24 is rejected of the second switch."""
    one = Speaker()
    one.up(A, 65001, "172.31.0.1", families=(V4, V6))
    one.up(B, 65002, "172.31.1.1", imports=(REJECT,))
    one.up(MESH, 64512, "172.31.0.12")
    one.tables.originate(V4, prefix(OWN), Attributes(origin=Origin.IGP))
    one.learn(A, f"{P} {WIDE}", attributes(65001, hop="172.31.0.1", med=5, communities=(65001 << 16 | 7, 0xFFFF0007)))
    one.learn(B, P, attributes(65002, hop="172.31.1.1"))
    one.learn(B, f"{WIDE} {TEN}", attributes(65002, 65003, {65009, 65010}, hop="172.31.1.1"))
    one.decide()
    return one


def ask(one: Speaker, table: RoutesTable = "chosen", text: str = "", peer: str = "") -> BgpRoutes:
    asked = BgpRoutesRequest(node="n1", table=table, prefix=ip_network(text) if text else None, peer=peer)
    return routes(one.tables, asked, asked.node, PEERS)


def seen(found: BgpRoutes) -> list[str]:
    return [f"{path.prefix} {path.peer or 'own'} {path.standing}: {path.why}".rstrip(": ") for path in found.paths]


CASES: list[tuple[RoutesTable, str, str, list[str]]] = [
    (
        "chosen",
        "",
        "",
        [
            f"{WIDE} {A} best: better than others by length of the AS path",
            f"{WIDE} {B} unused: another is better by length of the AS path",
            f"{P} {A} best: better than others by router id",
            f"{P} {B} used: as good as the best one: it shares the traffic",
            f"{OWN} own best: the only path",
        ],
    ),
    (
        "chosen",
        TEN,
        "",
        [
            f"{WIDE} {A} best: better than others by length of the AS path",
            f"{WIDE} {B} unused: another is better by length of the AS path",
            f"{P} {A} best: better than others by router id",
            f"{P} {B} used: as good as the best one: it shares the traffic",
            f"{TEN} {B} rejected: a rule of a filter rejects it",
        ],
    ),
    ("chosen", "192.0.2.1/32", "", []),
    ("chosen", "fd00::/64", "", []),
    (
        "received",
        "",
        "172.31.1.1",
        [
            f"{WIDE} {B} unused: another is better by length of the AS path",
            f"{P} {B} used: as good as the best one: it shares the traffic",
            f"{TEN} {B} rejected: a rule of a filter rejects it",
        ],
    ),
    (
        "received",
        P,
        "rack",
        [
            f"{WIDE} {A} best: better than others by length of the AS path",
            f"{WIDE} {B} unused: another is better by length of the AS path",
            f"{P} {A} best: better than others by router id",
            f"{P} {B} used: as good as the best one: it shares the traffic",
        ],
    ),
    ("received", "", "n2", []),
    ("sent", "", "n2", [f"{WIDE} {MESH} sent", f"{P} {MESH} sent", f"{OWN} {MESH} sent"]),
    ("sent", OWN, "", [f"{OWN} {MESH} sent", f"{OWN} {A} sent", f"{OWN} {B} sent"]),
    (
        "sent",
        P,
        A,
        [f"{WIDE} {A} withheld: it was learnt from this peer", f"{P} {A} withheld: it was learnt from this peer"],
    ),
]


@pytest.mark.parametrize(
    ("table", "text", "peer", "expected"), CASES, ids=lambda part: part if isinstance(part, str) else ""
)
def test_each_path_is_shown_with_what_became_of_it(
    table: RoutesTable, text: str, peer: str, expected: list[str]
) -> None:
    found = ask(speaker(), table, text, peer)
    assert seen(found) == expected
    assert found.left_out == 0
    assert found.speaks


def test_attributes_are_in_the_words_of_routers() -> None:
    [path] = [path for path in ask(speaker(), "received", WIDE, A).paths if str(path.prefix) == WIDE]
    assert path == BgpPath(
        prefix=ip_network(WIDE),
        peer=A,
        standing="best",
        why="better than others by length of the AS path",
        next_hop=ip_address("172.31.0.1"),
        as_path="65001",
        origin="igp",
        med=5,
        communities=("65001:7", "no-llgr"),
    )
    [other] = [path for path in ask(speaker(), "received", WIDE, B).paths if str(path.prefix) == WIDE]
    assert other.as_path == "65002 65003 {65009 65010}"


def test_a_next_hop_that_is_not_reached_is_the_reason() -> None:
    one = speaker()
    one.reach["172.31.0.1"] = one.reach["172.31.1.1"] = None
    one.tables.next_hops_changed()
    one.decide()
    assert seen(ask(one, "chosen", P))[-1] == f"{P} {B} unused: its next hop is not reached"


def test_a_path_that_is_kept_over_a_restart_is_stale() -> None:
    one = speaker()
    one.tables.peer_down(A, keep=(V4,))
    one.decide()
    assert {path.peer for path in ask(one).paths if path.stale} == {A}
    assert [(count.family, count.received, count.stale, count.sent) for count in counts(one.tables, A)] == [
        (4, 2, 2, 0),
        (6, 0, 0, 0),
    ]


def test_several_paths_of_a_peer_are_found_by_their_prefix() -> None:
    one = Speaker()
    one.up(A, 65001, "172.31.0.1", receives_paths=True)
    for number in (1, 2):
        one.learn(A, f"{P} {WIDE}", attributes(65001, hop=f"172.31.0.{number}"), path_id=number)
    one.learn(A, TEN, attributes(64512, hop="172.31.0.1"), path_id=7)
    one.decide()
    assert [(path.path_id, path.standing) for path in ask(one, "received", P, A).paths] == [
        (1, "best"),
        (2, "used"),
        (1, "best"),
        (2, "used"),
    ]
    assert [path.path_id for path in ask(one, "chosen", TEN).paths if path.standing == "rejected"] == [7]


@pytest.mark.parametrize("table", ["chosen", "received", "sent"])
def test_an_answer_is_bounded_by_paths(table: RoutesTable) -> None:
    one = Speaker()
    one.up(A, 65001, "172.31.0.1")
    one.up(MESH, 64512, "172.31.0.12")
    many = [f"10.{high}.{low}.0/24" for high in range(10) for low in range(250)]
    one.learn(A, many, attributes(65001))
    one.decide()
    found = ask(one, table)
    assert len(found.paths) == MAX_PATHS
    assert found.left_out == len(many) - MAX_PATHS
    assert len(encode(found)) < 1 << 20


def test_an_answer_is_bounded_by_bytes() -> None:
    one = Speaker()
    one.up(A, 65001, "172.31.0.1")
    large = tuple((65001, number, number) for number in range(1000))
    one.learn(A, [f"10.1.{low}.0/24" for low in range(200)], attributes(65001, large_communities=large))
    one.decide()
    found = ask(one, "received")
    assert 0 < len(found.paths) < 200
    assert len(found.paths) + found.left_out == 200
    assert len(encode(found)) < 1 << 20


@given(st.integers(0, (1 << 32) - 1), st.integers(0, 32))
def test_what_holds_a_prefix_are_its_supernets(number: int, length: int) -> None:
    network = IPv4Network((number >> (32 - length) << (32 - length), length))
    supernets = [network.supernet(new_prefix=shorter) for shorter in range(length, -1, -1)]
    assert [network_of(V4, one) for one in covering(prefix_of(network)[1])] == supernets


NETWORKS = st.sampled_from([f"10.{n}.0.0/16" for n in range(6)])
CHANGES = st.lists(st.tuples(st.sampled_from((A, B)), st.booleans(), NETWORKS), max_size=30)


@given(CHANGES)
def test_what_is_counted_is_what_is_listed(changes: list[tuple[str, bool, str]]) -> None:
    """After each change, asked twice: a count is remembered as long as it holds."""
    one = speaker()
    for peer, come, text in changes:
        if come:
            one.learn(peer, text, attributes(65001 if peer == A else 65002, hop="172.31.0.1"))
        else:
            one.unlearn(peer, text)
        one.decide()
        for name in PEERS:
            [count, *_] = counts(one.tables, name)
            assert count.sent == len(list(one.tables.sent(name, V4)))
            assert count.received == len(list(one.tables.received(name, V4)))


@pytest.mark.parametrize(
    ("peer", "asked", "named"),
    [
        (A, "", True),
        (A, A, True),
        (A, "rack", True),
        (A, "172.31.0.1", True),
        (A, "172.31.0", False),
        ("mesh/n2/ipv6", "n2", True),
        ("mesh/n2", "n", False),
    ],
)
def test_a_peer_is_named_by_a_part_of_its_name(peer: str, asked: str, named: bool) -> None:
    assert is_named(peer, asked) is named


def test_an_answer_survives_the_wire() -> None:
    found = ask(speaker())
    plain: Any = msgspec.msgpack.decode(encode(found))
    assert [path["prefix"] for path in plain["paths"]] == [WIDE, WIDE, P, P, OWN]
