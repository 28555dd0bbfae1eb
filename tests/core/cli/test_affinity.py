"""Session affinity of all nodes together: when clients on one backend are no chance."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import comb
from random import Random

import pytest

from cli.reports.affinity import CHANCE, at_least, check, join
from cli.reports.doctor import Answered, diagnosis
from proto.findings import AFFINITY, AffinityClients, DoctorRequest, Findings

BACKENDS = ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")


def seen(*pods: int, **more: object) -> AffinityClients:
    fields = {
        "service": "shop/web",
        "port": 80,
        "protocol": 6,
        "family": 4,
        "seconds": 10800,
        "backends": BACKENDS[: len(pods)],
        "pods": pods,
    }
    return AffinityClients(**{**fields, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(("least", "trials", "n"), [(0, 9, 2), (1, 1, 3), (9, 9, 2), (30, 40, 2), (700, 900, 3)])
def test_the_tail_of_the_binomial_is_the_exact_one(least: int, trials: int, n: int) -> None:
    p = Fraction(1, n)
    exact = sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(least, trials + 1))
    assert at_least(least, trials, 1 / n) == pytest.approx(float(exact), rel=1e-9)


def test_what_is_chance_on_each_node_is_a_fault_of_all_together() -> None:
    nodes = [(f"n{number}", seen(7, 0)) for number in range(3)]
    for node in nodes:
        assert not list(check([node]))
    (finding,) = check(nodes)
    assert (finding.code, finding.about) == (AFFINITY, "Service shop/web")
    assert finding.cause.startswith("21 of 21 clients of shop/web keep the backend 10.0.0.1:80")
    assert "10.0.0.1:80 21, 10.0.0.2:80 0" in finding.observed[0].text


def test_a_client_from_outside_counts_once_whoever_knows_it() -> None:
    outside = tuple((f"192.0.2.{number}", 0) for number in range(20))
    assert not list(check([(node, seen(0, 0, outside=outside)) for node in ("n1", "n2", "n3")]))
    assert list(check([("n1", seen(1, 0, outside=outside))]))
    (joined,) = join([("n1", seen(0, 0, outside=(("192.0.2.1", 7), ("192.0.2.2", -1))))])
    assert joined.clients.total() == 0, "an index of no backend"


def test_the_fewest_backends_of_a_node_make_the_bound() -> None:
    """A node that has only near ones to give says nothing about chance among all."""
    local = seen(14, 0, backends=BACKENDS[:2])
    assert not list(check([("n1", local), ("n2", seen(0, 0, 0))]))
    assert list(check([("n1", seen(14, 0, 0)), ("n2", seen(0, 0, 0))]))


def test_by_chance_nothing_is_found() -> None:
    random = Random(7)
    for _ in range(400):
        n = random.randint(2, 3)
        counts = [0] * n
        for _ in range(random.choice((3, 21, 60, 400))):
            counts[random.randrange(n)] += 1
        assert not list(check([("n1", seen(*counts))]))


def test_many_clients_unevenly_are_no_fault_while_most_are_not_on_one() -> None:
    counts = (6000, 4000)
    assert at_least(counts[0], sum(counts), 0.5) < CHANCE
    assert not list(check([("n1", seen(*counts))]))


def test_who_stands_behind_one_address_is_one_client() -> None:
    def at(flows: int, busiest: int) -> list[tuple[str, AffinityClients]]:
        gateway = seen(0, 0, outside=(("192.0.2.9", 1),), flows=flows, busiest="192.0.2.9", busiest_flows=busiest)
        return [("n1", gateway), ("n2", seen(0, 0))]

    (finding,) = check(at(40, 38))
    assert "38 of 40 flows from outside to shop/web come from 192.0.2.9" in finding.cause
    assert not list(check(at(29, 29)))
    assert not list(check(at(40, 35)))


def test_what_makes_no_sense_is_left_out() -> None:
    assert not list(check([]))
    assert not list(check([("n1", seen(50, backends=BACKENDS[:2])), ("n2", seen(50))]))
    assert not list(check([("n1", seen(50, 0, service="shop/web; reboot"))])), "it becomes part of a command"
    (joined,) = join([("n1", seen(1 << 62, -5))])
    assert joined.clients.total() == 65_536


@pytest.mark.parametrize("well", [lambda: seen(3, 4), lambda: seen(40, 0)])
def test_the_command_joins_what_nodes_say(well: Callable[[], AffinityClients]) -> None:
    reported = Findings(at_ms=0, checked=(AFFINITY,), affinities=(well(),))
    report = diagnosis(
        DoctorRequest(), [Answered(user="dataplane-n1", findings=reported, asked_ms=0, came_ms=0)], ("dataplane-n1",), 0
    )
    assert report.well == (well().pods == (3, 4))
    assert [cause.agent for cause in report.causes] == [""] * (not report.well)
