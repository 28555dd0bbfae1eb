"""`airmesh routes` and `airmesh routes explain`: from agents' answers to what a person sees."""

from __future__ import annotations

import io
from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace

from cli import show
from cli.reports import pairs, routes
from cli.reports.table import Table
from proto.pairs import MAX_PAIRS, GivenUp, Measurement, Pairs, PairState
from proto.routes import NodeRoutes

NOW = 1_800_000_000
TAKEN = PairState(
    peer="n2",
    family=4,
    asked=("vxlan",),
    model="vxlan",
    via=ip_address("172.30.0.12"),
    device="am-vxlan",
    mtu=1450,
    since=NOW - 190,
    state="taken",
    why="the IPPool asks for it",
    measured=(Measurement("vxlan", "largest", answered=True, bytes=1450, round_trip_us=310, at=NOW - 3),),
)
BACK = PairState(
    peer="n1",
    family=4,
    asked=("vxlan",),
    model="host-gw",
    pending="vxlan",
    via=ip_address("172.30.0.11"),
    device="eth0",
    mtu=1500,
    state="pending",
    why="a probe by vxlan is not answered yet",
)
LOST = PairState(peer="n2", family=6, asked=("ipip",), state="none", why="IPIP carries IPv4 alone")


def page(tables: tuple[Table, ...]) -> str:
    out = io.StringIO()
    show.tables(show.console(out), tables)
    return " ".join(out.getvalue().split())


def answers(*pairs_of_n1: PairState, **others: tuple[PairState, ...]) -> dict[str, Pairs]:
    return {"n1": Pairs("n1", pairs_of_n1)} | {node: Pairs(node, reported) for node, reported in others.items()}


def test_whose_answer_it_is_the_key_says() -> None:
    lie = Pairs("n9", (TAKEN,))
    users = ("routing-n1", "routing-n1=2Eexample", "dataplane-n3", "ipam", "routing", "routing-=zz", "stranger")
    assert pairs.by_node((user, lie) for user in users) == {"n1": lie, "n1.example": lie}


def test_each_direction_is_a_row() -> None:
    report = routes.routes([], [], answers(TAKEN, n2=(BACK,)), asked_at=NOW)
    seen = page(routes.tables(report))
    assert "Pairs (2)" in seen
    assert "n1 n2 IPv4 vxlan 172.30.0.12 am-vxlan 1450 3 min 10 s ago taken" in seen
    assert "n2 n1 IPv4 host-gw 172.30.0.11 eth0 1500 before its agent pending: vxlan" in seen
    assert report.well


def test_a_pair_without_a_way_is_not_well() -> None:
    reported = answers(TAKEN, LOST)
    report = routes.routes([], [], reported, asked_at=NOW)
    assert not report.well
    assert "n1 n2 IPv6 none – – – – no way" in page(routes.tables(report))
    assert pairs.without_a_way(reported) == ("node n1 has no way to IPv6 pods of n2: IPIP carries IPv4 alone",)


def test_of_many_pairs_without_a_way_some_are_named_and_others_counted() -> None:
    many = tuple(PairState(peer=f"n{number:02}", family=4, state="none", why="-") for number in range(20, 50))
    reported = pairs.without_a_way(answers(*many))
    assert len(reported) == pairs.MOST_NAMED + 1
    assert reported[-1] == "22 more pairs have no way: airmesh routes"


def test_who_does_not_answer_is_named() -> None:
    offers = [NodeRoutes(node, (), (ip_network("10.244.0.0/26"),)) for node in ("n1", "n2", "n3")]
    report = routes.routes(offers, [], {"n1": Pairs("n1", (TAKEN,), left_out=7)})
    assert (report.silent, report.left_out) == (("n2", "n3"), 7)
    assert "no routing agent answers for: n2, n3; 7 pairs found no room" in page(routes.tables(report))


def test_one_node_may_be_chosen() -> None:
    offers = [NodeRoutes(node, (), (ip_network(f"10.244.{at}.0/26"),)) for at, node in enumerate(("n1", "n2", "n3"))]
    other = PairState(peer="n3", family=4, model="host-gw", state="taken")
    report = routes.routes(offers, [], answers(TAKEN, other, n2=(BACK, other)), of_node="n1")
    assert [(pair.node, pair.peer) for pair in report.pairs] == [("n1", "n2"), ("n1", "n3"), ("n2", "n1")]
    assert [route.node for route in report.routes] == ["n1"]


def test_an_answer_that_is_too_long_is_cut() -> None:
    long = Pairs("n1", tuple(PairState(peer=f"x{number}", family=4) for number in range(MAX_PAIRS + 9)))
    assert len(pairs.listed({"n1": long})) == MAX_PAIRS


def test_a_pair_is_explained_at_both_ends() -> None:
    report = pairs.explained(("n1", "n2"), answers(TAKEN, n2=(BACK,)), NOW)
    seen = page(pairs.explained_tables(report))
    assert report.well
    assert "From n1 to pods of n2" in seen
    assert "From n2 to pods of n1" in seen
    assert "the IPPool asks for it" in seen
    assert "largest answered 1450 0.31 ms" in seen
    assert "3 s ago" in seen
    assert "IPv4: n1 sends by vxlan, n2 by host-gw" in seen


def test_pools_that_ask_for_different_models_are_not_mixed_up() -> None:
    plain = PairState(peer="n2", family=4, asked=("host-gw",), model="host-gw", state="taken")
    both = answers(TAKEN, plain, n2=(replace(plain, peer="n1"), replace(TAKEN, peer="n1")))
    assert pairs.explained(("n1", "n2"), both, NOW).notes == ()


def test_what_was_given_up_is_shown_with_its_reason() -> None:
    tried = PairState(
        peer="n2",
        family=4,
        asked=("ipip", "vxlan"),
        model="vxlan",
        state="given-up",
        given_up=(GivenUp("ipip", "5 probes in a row were not answered", NOW - 60),),
        measured=(Measurement("ipip", "small", answered=False, at=NOW - 5, why="no answer within 1 s"),),
    )
    seen = page(pairs.explained_tables(pairs.explained(("n1", "n2"), answers(tried), NOW)))
    assert "ipip 5 probes in a row were not answered" in seen
    assert "1 min 0 s ago" in seen
    assert "no answer within 1 s" in seen


@pytest.mark.parametrize(
    "reported",
    [
        answers(TAKEN),
        answers(TAKEN, n2=()),
        answers(LOST, n2=(BACK,)),
        answers(TAKEN, LOST, n2=(BACK,)),
    ],
    ids=["one end is silent", "one end knows nothing", "no way", "no way in one family"],
)
def test_half_an_explanation_is_not_well(reported: dict[str, Pairs]) -> None:
    assert not pairs.explained(("n1", "n2"), reported, NOW).well


@pytest.mark.parametrize("at", [-(1 << 62), 1 << 62])
def test_no_time_that_a_node_reports_breaks_the_page(at: int) -> None:
    odd = PairState(
        peer="n2",
        family=4,
        model="vxlan",
        since=at,
        state="taken",
        measured=(Measurement("vxlan", "small", answered=True, at=at),),
    )
    assert "at no time" in page(pairs.explained_tables(pairs.explained(("n1", "n2"), answers(odd), NOW)))
