"""Replicas: grows at once, shrinks late, and says why."""

from __future__ import annotations

from collections import deque
from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dns.core.sizing import AHEAD_SECONDS, Rule, ahead, is_quiet, scaled, size

RULE = Rule()
LONG = RULE.shrink_after


@pytest.mark.parametrize(
    ("nodes", "queries", "present", "quiet_for", "replicas"),
    [
        (0, 0, None, 0, 2),
        (1, 0, None, 0, 2),
        (3, 0, 2, 0, 2),
        (32, 0, 2, 0, 2),
        (33, 0, 2, 0, 3),
        (3, 5_000, 2, 0, 2),
        (3, 5_001, 2, 0, 3),
        (3, 13_000, 2, 0, 6),
        (1000, 0, 2, 0, 10),
        (3, 1e9, 2, 0, 10),
        (3, 0, 4, 0, 4),
        (3, 0, 4, LONG - 1, 4),
        (3, 0, 4, LONG, 3),
        (3, 0, 2, LONG * 9, 2),
        (3, 0, 1, 0, 2),
        (3, 0, 99, 0, 2),
    ],
)
def test_size(nodes: int, queries: float, present: int | None, quiet_for: float, replicas: int) -> None:
    found = size(RULE, nodes=nodes, queries=queries, present=present, quiet_for=quiet_for)
    assert found.replicas == replicas
    assert found.reason


@pytest.mark.parametrize(
    ("nodes", "queries", "present", "quiet"),
    [
        (3, 0, 3, True),
        (3, 0, 2, False),
        (33, 0, 3, False),
        (3, 3500, 3, True),
        (3, 3501, 3, False),
    ],
)
def test_quiet(nodes: int, queries: float, present: int, quiet: bool) -> None:
    assert is_quiet(RULE, nodes=nodes, queries=queries, present=present) == quiet


@given(st.integers(0, 5000), st.floats(0, 1e6), st.one_of(st.none(), st.integers(0, 20)), st.floats(0, 1e4))
def test_always_within_bounds_and_enough(nodes: int, queries: float, present: int | None, quiet_for: float) -> None:
    found = size(RULE, nodes=nodes, queries=queries, present=present, quiet_for=quiet_for)
    assert RULE.least <= found.replicas <= RULE.most
    enough = found.replicas * RULE.nodes_each >= nodes and found.replicas * RULE.queries_each >= queries
    assert enough or found.replicas == RULE.most


@given(st.integers(0, 160), st.floats(0, 50_000), st.integers(3, 10))
def test_what_shrinks_does_not_grow_back_at_the_same_load(nodes: int, queries: float, present: int) -> None:
    if is_quiet(RULE, nodes=nodes, queries=queries, present=present):
        smaller = size(RULE, nodes=nodes, queries=queries, present=present, quiet_for=LONG).replicas
        assert smaller == present - 1
        assert size(RULE, nodes=nodes, queries=queries, present=smaller, quiet_for=0).replicas == smaller


@pytest.mark.parametrize("wrong", [{"least": 0}, {"least": 3, "most": 2}, {"nodes_each": 0}, {"queries_each": 0.0}])
def test_figures_that_contradict_each_other(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="replica"):
        Rule(**wrong)


def test_an_autoscalers_number_stays_and_ours_is_reported_beside_it() -> None:
    wanted = size(RULE, nodes=40, queries=0, present=None, quiet_for=0)
    assert scaled("hpa", 3, wanted).reason == "hpa owns the Deployment's replicas"
    short = scaled("hpa", 2, wanted)
    assert short.replicas == 2
    assert short.reason.startswith("hpa owns the Deployment's replicas; else 3 for 40 nodes")


CARRIED = 30_000.0
"""Queries a second that one CoreDNS on two cores was measured to do: beyond it P99 passes any target."""


@pytest.mark.parametrize("begin", [1_000.0, 9_999.0, 50_000.0])
@pytest.mark.parametrize("ready", [5.0, 20.0])
def test_replicas_are_there_before_a_load_that_grows_tenfold_in_a_minute(begin: float, ready: float) -> None:
    """Rates are told each ten seconds; a replica serves ``ready`` seconds after it was decided."""
    rule = Rule(most=1000)

    def load(at: float) -> float:
        return begin * (1 + 9 * min(1.0, max(0.0, at) / 60))

    present = size(rule, nodes=3, queries=begin, present=None, quiet_for=0).replicas
    rates, serving, coming = deque([(-10.0, begin), (0.0, begin)], maxlen=6), present, deque[tuple[float, int]]()
    for at in range(1, 120):
        if at % 10 == 0:
            rates.append((at, (load(at - 10) + load(at)) / 2))
            present = size(rule, nodes=3, queries=ahead(rates, AHEAD_SECONDS), present=present, quiet_for=0).replicas
            coming.append((at + ready, present))
        while coming and coming[0][0] <= at:
            serving = coming.popleft()[1]
        assert load(at) < CARRIED * serving, (at, serving)


TARGET = 0.008
"""Seconds that P99 of an answer may wait for its turn: half of what counts as a slow upstream."""


def waiting(load: float, servers: int) -> float:
    """P99 in seconds of how long a query waits at one of so many servers (M/M/1: P(W > t) = ρ exp((λ - μ) t))."""
    each = load / servers
    return log(max(1.0, 100 * each / CARRIED)) / (CARRIED - each) if each < CARRIED else inf


@pytest.mark.parametrize("begin", [300.0, 4_999.0, 5_001.0, 12_500.0, 24_999.0])
@pytest.mark.parametrize("phase", [0.1, 3.0, 5.0, 9.9])
@pytest.mark.parametrize("ready", [5.0, 20.0])
def test_a_load_that_grows_tenfold_at_once_passes_no_target_and_the_room_is_given_back(
    begin: float, phase: float, ready: float
) -> None:
    """``phase``: seconds from a report to the step. The next report sees a part of it, the one after it all."""
    rule, period = Rule(most=1000), 10.0
    present = size(rule, nodes=3, queries=begin, present=None, quiet_for=0).replicas
    rates = deque([(-period * number, begin) for number in range(5, -1, -1)], maxlen=6)
    serving, coming = present, deque[tuple[float, int]]()
    for report in range(1, 8):
        for at in (number + period * (report - 1) for number in range(1, 11)):
            while coming and coming[0][0] <= at:
                serving = coming.popleft()[1]
            load = 10 * begin if at > phase else begin
            assert waiting(load, serving) <= TARGET, (at, load, serving)
        part = min(1.0, max(0.0, report * period - phase) / period)
        rates.append((report * period, begin * (1 + 9 * part)))
        present = size(rule, nodes=3, queries=ahead(rates, AHEAD_SECONDS), present=present, quiet_for=0).replicas
        coming.append((report * period + ready, present))
        if report == 2:
            assert 10 * begin <= present * rule.queries_each, "ten times more would be carried again"


def test_without_that_room_the_same_step_is_felt() -> None:
    """What the figure is for: at twice the load a replica a decision would land after P99 has passed its target."""
    rule = Rule(queries_each=5000.0)
    replicas = size(rule, nodes=3, queries=24_999.0, present=None, quiet_for=0).replicas
    assert waiting(249_990.0, replicas) > TARGET
