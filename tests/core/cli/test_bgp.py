"""`airmesh bgp`: from agents' answers to what a person sees, and whether all is well."""

from __future__ import annotations

import io
from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace

from cli import show
from cli.reports import bgp
from cli.reports.table import Table
from proto.bgp import BgpFault, BgpPath, BgpRoutes, BgpSessions, PrefixCount, RoutesTable, SessionReport, Standing

NOW = 1_800_000_000
UP = SessionReport(
    peer="rack/172.31.0.1",
    address=ip_address("172.31.0.1"),
    asn=65001,
    local_asn=64512,
    state="Established",
    since=NOW - 190,
    families=(PrefixCount(4, received=12, sent=3), PrefixCount(6, received=2, sent=1, stale=2)),
)
DOWN = SessionReport(
    peer="rack/fe80::1",
    address=ip_address("fe80::1"),
    asn=65001,
    local_asn=64512,
    state="Active",
    port=1790,
    interface="eth1",
    why="fe80::1, port 1790 does not answer",
    remedy="see whether its address is right",
)
ONE = BgpSessions(node="n9", speaks=True, asn=64512, sessions=(UP,))
NOBODY = BgpSessions(node="n9")


def page(tables: tuple[Table, ...]) -> str:
    out = io.StringIO()
    show.tables(show.console(out), tables)
    return " ".join(out.getvalue().split())


WELL: list[tuple[dict[str, BgpSessions], tuple[str, ...], bool]] = [
    ({"n1": ONE}, ("n1",), True),
    ({"n1": ONE, "n2": NOBODY}, ("n1", "n2"), True),
    ({}, (), True),
    ({"n1": replace(ONE, sessions=(UP, DOWN))}, ("n1",), False),
    ({"n1": replace(ONE, faults=(BgpFault("a password is not there", "make the Secret"),))}, ("n1",), False),
    ({"n1": replace(ONE, left_out=1)}, ("n1",), False),
    ({"n1": ONE}, ("n1", "n2"), False),
]


@pytest.mark.parametrize(("answers", "nodes", "well"), WELL)
def test_well_is_when_all_that_is_asked_for_is_established(
    answers: dict[str, BgpSessions], nodes: tuple[str, ...], well: bool
) -> None:
    assert bgp.sessions(answers, nodes, NOW).well is well


def test_a_session_is_under_the_node_whose_key_it_came_with() -> None:
    report = bgp.sessions({"n1": replace(ONE, sessions=(UP, DOWN))}, ("n1",), NOW)
    seen = page(bgp.session_tables(report))
    assert "n1 rack/172.31.0.1 172.31.0.1 65001 Established 3 min 10 s ago" in seen
    assert "12 IPv4, 2 IPv6, 2 of IPv6 stale 3 IPv4, 1 IPv6" in seen
    assert "n1 rack/fe80::1 [fe80::1]:1790%eth1 65001 Active – – –" in seen
    assert "Not established node peer why what to do n1 rack/fe80::1 fe80::1, port 1790 does not answer see" in seen
    assert "n9" not in seen


def test_what_is_not_among_the_sessions_is_named() -> None:
    fault = BgpFault("a password is not there", "make the Secret")
    answers = {"n1": replace(ONE, left_out=7, faults=(fault,)), "n2": NOBODY}
    seen = page(bgp.session_tables(bgp.sessions(answers, ("n1", "n2", "n3"), NOW)))
    assert "no routing agent answers for: n3; not asked to speak BGP: n2; 7 sessions found no room" in seen
    assert "n1 a password is not there make the Secret" in seen
    assert "no node is asked to speak BGP" in page(bgp.session_tables(bgp.sessions({"n2": NOBODY}, (), NOW)))


NET = ip_network("10.1.0.0/16")
PATH = BgpPath(
    prefix=NET,
    peer="rack/172.31.0.1",
    standing="best",
    why="the only path",
    next_hop=ip_address("172.31.0.1"),
    as_path="65001 {65002 65003}",
    origin="incomplete",
    med=5,
    local_pref=100,
    communities=("65001:7", "no-export"),
    path_id=3,
    stale=True,
)


def test_a_path_is_a_row() -> None:
    own = BgpPath(prefix=ip_network("fd00::/64"), peer="", standing="best", why="the only path", origin="igp")
    seen = page(bgp.route_tables(bgp.routes(BgpRoutes("n9", paths=(PATH, own), left_out=4), "n1", "chosen", None)))
    assert "Routes of n1 (2 paths)" in seen
    assert (
        "10.1.0.0/16 rack/172.31.0.1 best 172.31.0.1 65001 {65002 65003} "
        "stale, preference 100, MED 5, origin incomplete, path 3, 65001:7, no-export the only path"
    ) in seen
    assert "fd00::/64 this node best – – the only path" in seen
    assert "4 more prefixes found no room" in seen


@pytest.mark.parametrize(
    ("table", "standing", "well"),
    [
        ("chosen", "best", True),
        ("chosen", "used", True),
        ("chosen", "unused", False),
        ("chosen", "rejected", False),
        ("received", "unused", True),
        ("received", "rejected", False),
        ("sent", "sent", True),
        ("sent", "withheld", False),
    ],
)
def test_a_prefix_that_is_asked_about_is_well_where_a_path_counts(
    table: RoutesTable, standing: Standing, well: bool
) -> None:
    answer = BgpRoutes("n1", speaks=True, paths=(replace(PATH, standing=standing),))
    assert bgp.routes(answer, "n1", table, NET).well is well
    assert bgp.routes(answer, "n1", table, None).well


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("10.1.2.3/16", "10.1.0.0/16"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("fd00::7", "fd00::7/128"),
        ("10.1.2", None),
        ("web", None),
        ("10.0.0.0/33", None),
    ],
)
def test_a_prefix_or_an_address_names_a_prefix(text: str, expected: str | None) -> None:
    assert bgp.prefix_named(text) == (ip_network(expected) if expected else None)
