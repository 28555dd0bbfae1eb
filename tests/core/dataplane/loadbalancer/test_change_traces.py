"""How many spans Services' changes make, whose they are, and that none is made twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.telemetry.traces import Telemetry
from services.dataplane.core.loadbalancer.change_traces import AT_ONCE, OF_ONE, PER_SECOND, ChangeTraces

WEB, DB = ("shop", "web"), ("shop", "db")
PASS = 0.02
"""Seconds for which the loop gathers changes."""
SERVICES = 1000
"""Made one after the other: 50 seconds, after which nothing is left of what may be made at once."""


def trace(number: int) -> str:
    return f"00-{number + 1:032x}-{'cd' * 8}-01"


def test_a_change_is_chosen_until_it_is_written() -> None:
    traces = ChangeTraces()
    traces.put(WEB, trace(1))
    traces.put(DB, trace(2))
    traces.put(WEB, "")
    assert traces.choose({WEB}, 1.0) == {trace(1): WEB}
    assert traces.choose({WEB, DB}, 1.0) == {trace(1): WEB, trace(2): DB}, "the pass failed: it comes again"
    traces.keep({DB})
    assert traces.choose({WEB, DB}, 1.0) == {trace(2): DB}
    traces.keep(())
    assert traces.choose({WEB, DB}, 1.0) == {}


def test_of_a_service_that_waits_the_latest_changes_stay() -> None:
    traces = ChangeTraces()
    for number in range(1000):
        traces.put(WEB, trace(number))
    assert list(traces.choose({WEB}, 1.0)) == [trace(number) for number in range(1000 - OF_ONE, 1000)]


def test_who_changes_much_misses_its_own_alone() -> None:
    traces, now = ChangeTraces(), 0.0
    for count in range(100):
        now += PASS
        loud = [("loud", f"s{number}") for number in range(40)]
        for number, name in enumerate(loud):
            traces.put(name, trace(count * 1000 + number))
        if count % 10 == 9:
            traces.put(WEB, trace(count * 1000 + 999))
        chosen = traces.choose({*loud, WEB}, now)
        assert (WEB in chosen.values()) == (count % 10 == 9)
        traces.keep(())


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 2)), max_size=20))
def test_there_are_never_more_spans_than_the_time_allows(passes: list[tuple[int, float]]) -> None:
    traces, now, made = ChangeTraces(), 0.0, 0
    for changes, rest in passes:
        now += rest
        names = [(f"n{number % 7}", f"s{number}") for number in range(changes)]
        for number, name in enumerate(names):
            traces.put(name, trace(number))
        chosen = traces.choose(names, now)
        assert len(chosen) <= min(changes, AT_ONCE)
        made += len(chosen)
        assert made <= AT_ONCE + now * PER_SECOND + 1e-6
        traces.keep(())


def test_services_made_at_twenty_a_second_have_a_span_for_each_of_their_objects() -> None:
    """Service and EndpointSlice, and the slice again when its pod is ready: sixty changes a second, and as many spans,
    which `bench.tracing` says the cost of.
    """
    traces, telemetry, made = ChangeTraces(), Telemetry("dataplane", "a", {}), 0
    for number in range(SERVICES):
        name = ("shop", f"s{number}")
        for change in range(3):
            traces.put(name, trace(3 * number + change))
        chosen = traces.choose({name}, number / 20)
        with telemetry.together("loadbalancer.apply", chosen.keys()):
            made += len(chosen)
        traces.keep(())
    assert made == 3 * SERVICES
    assert len(telemetry.ring) == 1024, "and what is kept of them is bounded"
