"""What was measured of a way: when it is proved, when it fails, and the search for the largest packet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing.core.evidence import LOST, NEAR, RETURNS, SMALL, TRIES, Evidence, Verdict


def path_of(evidence: Evidence, passes: int, now: float = 0.0) -> tuple[Evidence, int]:
    """As the prober does it until the search has ended, over a path that lets packets of this size through."""
    sent = 0
    while not evidence.search.done:
        size = evidence.search.size
        sent += 1
        evidence = evidence.answer(now, size, 0) if size <= passes else evidence.loss(now, size)
        assert sent < 200
    return evidence, sent


def proved(most: int = 1450, now: float = 0.0) -> Evidence:
    return path_of(Evidence().for_most(most).answer(now, SMALL, 300), most, now)[0]


def test_a_way_is_proved_by_a_small_and_the_largest_packet() -> None:
    fresh = Evidence().for_most(1450)
    small = fresh.answer(1.0, SMALL, 250)
    assert (small.verdict, small.round_trip_us) == (Verdict.UNKNOWN, 250)
    whole = small.answer(2.0, 1450, 0)
    assert (whole.verdict, whole.since, whole.mtu) == (Verdict.WORKS, 2.0, 1450)
    assert fresh.answer(1.0, 1450, 0).verdict is Verdict.UNKNOWN, "a small one is what is counted"


@given(st.integers(1280, 9000), st.integers(64, 9000))
def test_the_largest_packet_is_found(most: int, passes: int) -> None:
    evidence, sent = path_of(Evidence().for_most(most).answer(0.0, SMALL, 0), passes)
    found = evidence.mtu or SMALL
    assert found <= max(passes, SMALL)
    assert min(most, passes) - found <= NEAR
    assert sent <= TRIES * 14
    assert evidence.verdict is (Verdict.WORKS if found >= 1280 else Verdict.FAILS)


def test_one_lost_packet_is_no_evidence() -> None:
    evidence = proved()
    for count in range(1, LOST + 1):
        evidence = evidence.loss(count, SMALL)
        assert evidence.verdict is (Verdict.WORKS if count < LOST else Verdict.FAILS)
    assert (evidence.failures, evidence.since) == (1, LOST)
    for count in range(1, RETURNS + 1):
        evidence = evidence.answer(10.0 + count, SMALL, 0)
        assert evidence.verdict is (Verdict.FAILS if count < RETURNS else Verdict.WORKS)
    assert evidence.since == 10.0 + RETURNS
    assert evidence.answer(99.0, SMALL, 0).since == 10.0 + RETURNS, "it goes on"


def test_losses_between_answers_are_no_failure() -> None:
    evidence = proved()
    for count in range(50):
        evidence = evidence.loss(count, SMALL) if count % 2 else evidence.answer(count, SMALL, 0)
    assert evidence.verdict is Verdict.WORKS


def test_a_path_that_becomes_narrow_is_seen_and_one_that_grows_too() -> None:
    evidence = proved(1450)
    for _ in range(TRIES):
        assert evidence.mtu == 1450
        evidence = evidence.loss(1.0, 1450)
    narrow, _ = path_of(evidence, 1400)
    assert 1400 - NEAR <= narrow.mtu <= 1400
    assert narrow.verdict is Verdict.WORKS
    again = narrow.again()
    while not again.search.done:
        assert again.mtu == narrow.mtu, "what is known to pass, while larger ones are tried"
        again = again.loss(2.0, again.search.size)
    assert again.mtu == narrow.mtu
    grown, _ = path_of(narrow.again(), 1450)
    assert grown.mtu == 1450


def test_large_packets_say_nothing_while_small_ones_are_lost() -> None:
    evidence = proved().loss(1.0, SMALL)
    for _ in range(TRIES * 3):
        evidence = evidence.loss(1.0, 1450)
    assert evidence.mtu == 1450


@pytest.mark.parametrize(("before", "after", "mtu"), [(1450, 1400, 1400), (1400, 1450, 1400), (1450, 1450, 1450)])
def test_what_would_fit_changes(before: int, after: int, mtu: int) -> None:
    evidence = proved(before).for_most(after)
    assert evidence.mtu == mtu
    assert evidence.verdict is Verdict.WORKS, "packets that are known to pass go on"
