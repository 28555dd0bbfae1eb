"""The tour's judgement of two switches: each way in which sessions, spread or held connections are wrong is seen."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lab.cluster.packets import Flow
from lab.tour import tables
from lab.tour.multipath import (
    FLOWS,
    Spread,
    Stage,
    by_switch,
    crossing,
    echoing,
    go_on,
    neighbors,
    targets_of,
)
from lab.tour.probes import Outcome, Pod, Port, Probe

NAMES = ("tor-a", "tor-b")
HTTP = Port(number=8080, protocol="tcp", name="http")
UDP = Port(number=9000, protocol="udp", name="echo")
ECHOES = Port(number=5432, protocol="tcp", name="postgres")


def pod(name: str, node: str, number: int) -> Pod:
    addresses = (ip_address(f"10.244.0.{number}"), ip_address(f"fd00:10:244::{number:x}"))
    return Pod(
        namespace="shop", name=name, uid=name, workload=f"shop/{name}", node=node, addresses=addresses, ports=(),
        labels=(), ready=True,
    )  # fmt: skip


A, B, C = pod("a", "n1", 1), pod("b", "n2", 2), pod("c", "n2", 3)


def outcome(source: Pod, target: Pod, port: Port, family: int = 4, *, connected: bool = True) -> Outcome:
    address = next(one for one in target.addresses if one.version == family)
    probe = Probe(source=source, target=target, address=address, port=port)
    return Outcome(probe=probe, allowed=connected, connected=connected, error="")


def flows(*numbers: int) -> frozenset[Flow]:
    return frozenset(Flow(A.addresses[0], number, B.addresses[0], 8080) for number in numbers)


def spread(a: frozenset[Flow], b: frozenset[Flow], connected: int = FLOWS) -> Spread:
    return Spread(
        source="n1", destination="n2", family=4, tried=FLOWS, connected=connected, flows={"tor-a": a, "tor-b": b}
    )


STAGE = Stage(
    what="tor-b dies", flows=64, broken=(), longest_ms=9.0, seconds=0.5, seen={"tor-a": 64, "tor-b": 0},
    used=("tor-a",), unused=("tor-b",),
)  # fmt: skip


def shown(draw: Any, *arguments: object) -> str:
    out = io.StringIO()
    draw(Console(file=out, width=240), *arguments)
    return out.getvalue()


@pytest.mark.parametrize(
    ("sessions", "over"),
    [
        ({"n1_v4": True, "n1_v6": False, "n2_v4": True}, ("IPv4",)),
        ({"n1_v4": True, "n1_v6": True}, ("IPv4", "IPv6")),
        ({"n1_v6": True}, ("IPv6",)),
        ({"n1_v4": False}, ()),
        ({"n2_v4": True, "n11_v4": True, "tor_b": True}, ()),
        ({}, ()),
    ],
)
def test_a_node_has_a_session_or_is_named(sessions: Mapping[str, bool], over: tuple[str, ...]) -> None:
    (one,) = neighbors({"tor-a": sessions}, ["n1"])
    assert one.over == over
    assert one.disagreement == ("" if over else "n1 has no session with tor-a")
    text = shown(tables.neighbors, [one])
    assert ("not established" in text) == (not over)


def test_every_node_is_asked_of_with_every_switch() -> None:
    found = neighbors({"tor-a": {"n1_v4": True}, "tor-b": {"n2_v4": True}}, ["n1", "n2"])
    assert [one.disagreement for one in found] == [
        "", "n1 has no session with tor-b", "n2 has no session with tor-a", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (spread(flows(*range(32)), flows(*range(32, 64))), ""),
        (spread(flows(*range(20)), flows(*range(20, 64))), ""),
        (spread(flows(*range(14)), flows(*range(14, 64))), "not spread evenly (14 by tor-a, 50 by tor-b)"),
        (spread(flows(*range(64)), flows()), "not spread evenly"),
        (spread(flows(*range(32)), flows(*range(31, 64))), "changed their switch"),
        (spread(flows(*range(32)), flows(*range(32, 63))), "63 connections passed the switches, and 64 were made"),
        (spread(flows(), flows()), "0 connections passed"),
        (spread(flows(*range(32)), flows(*range(32, 64)), connected=60), "4 of 64 connections failed"),
    ],
)
def test_a_spread_is_even_or_says_what_is_wrong(one: Spread, said: str) -> None:
    assert (said in one.disagreement) if said else not one.disagreement
    assert ("✓" in shown(tables.spreads, [one], NAMES)) == (not said)


@given(st.integers(1, 500), st.integers(0, 500))
def test_chi_square_of_two_is_the_squared_difference_by_the_sum(a: int, b: int) -> None:
    one = spread(flows(*range(a)), flows(*range(1000, 1000 + b)))
    assert one.chi_square == pytest.approx((a - b) ** 2 / (a + b))


def test_no_spread_of_five_hundred_fair_ones_is_a_disagreement() -> None:
    fair = random.Random(185)
    for _ in range(500):
        heads = fair.getrandbits(FLOWS).bit_count()
        one = spread(flows(*range(heads)), flows(*range(heads, FLOWS)))
        assert not one.disagreement


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (STAGE, ""),
        (replace(STAGE, used=NAMES, unused=(), seen={"tor-a": 30, "tor-b": 40}), ""),
        (replace(STAGE, broken=("reset", "reset")), "tor-b dies: 2 of 64 connections were lost (reset)"),
        (replace(STAGE, seconds=-1.0), "not all connections went on"),
        (replace(STAGE, seen={"tor-a": 63, "tor-b": 1}), "1 connections go by tor-b"),
        (replace(STAGE, seen={"tor-a": 60, "tor-b": 0}), "4 of 64 connections pass no switch"),
        (replace(STAGE, used=NAMES, unused=()), "no connection goes by tor-b"),
    ],
)
def test_held_connections_go_on_or_it_is_said_what_is_wrong(stage: Stage, said: str) -> None:
    assert (said in stage.disagreement) if said else not stage.disagreement
    assert ("✓" in shown(tables.stages, [stage], NAMES)) == (not said)


@pytest.mark.parametrize(
    ("began", "silent", "so"), [(1000, 0, True), (1001, 0, True), (999, 0, False), (1000, 1, False)]
)
def test_connections_go_on_when_all_had_an_echo_since(began: int, silent: int, *, so: bool) -> None:
    assert go_on({"began_unix_ms": began, "silent": silent, "broken": []}, 1000.0) is so


def test_flows_are_of_the_switch_they_came_to_and_of_their_pods_alone() -> None:
    own, others = Flow(A.addresses[0], 1, B.addresses[0], 8080), Flow(A.addresses[0], 1, B.addresses[0], 8081)
    back, six = Flow(B.addresses[0], 8080, A.addresses[0], 1), Flow(A.addresses[1], 1, B.addresses[1], 8080)
    seen = [("tor-a", own), ("tor-b", own), ("tor-b", six), ("tor-a", others), ("tor-a", back)]
    targets = {(address, 8080) for address in B.addresses}
    assert by_switch(seen, A, targets, NAMES) == {"tor-a": {own}, "tor-b": {own, six}}
    assert by_switch([], A, targets, NAMES) == {"tor-a": frozenset(), "tor-b": frozenset()}


def test_one_connection_a_node_and_family_that_crosses_the_fabric() -> None:
    local = outcome(B, C, HTTP)
    udp, denied = outcome(A, B, UDP), outcome(A, B, ECHOES, connected=False)
    made = [outcome(A, B, HTTP), outcome(A, C, HTTP), outcome(A, B, HTTP, 6), outcome(B, A, HTTP)]
    assert crossing([local, udp, denied, *made]) == {("n1", 4): made[0], ("n1", 6): made[2], ("n2", 4): made[3]}


def test_connections_are_held_with_a_pod_on_another_node_that_is_reached_in_each_family() -> None:
    assert echoing([outcome(A, B, ECHOES), outcome(A, C, ECHOES, 6), outcome(A, B, HTTP, 6)]) is None
    assert echoing([outcome(B, C, ECHOES), outcome(B, C, ECHOES, 6)]) is None
    assert echoing([outcome(A, B, ECHOES), outcome(A, B, ECHOES, 6, connected=False)]) is None
    assert echoing([outcome(A, C, ECHOES), outcome(A, B, ECHOES), outcome(A, B, ECHOES, 6)]) == (A, B, ECHOES)
    assert targets_of(B, ECHOES) == ("10.244.0.2:5432", "[fd00:10:244::2]:5432")
