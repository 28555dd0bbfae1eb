"""A fault is told once while it lasts, again when it returns, and never too often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kit.once import Once


def test_once_while_it_lasts_and_again_when_it_returns() -> None:
    once: Once[str] = Once(every=10)
    assert once.take(["a", "b"], 0) == ("a", "b")
    assert [once.take(["a", "b"], at) for at in range(1, 100)] == [()] * 99
    assert once.take(["a"], 100) == ()
    assert once.take(["a", "b"], 101) == ("b",)


def test_a_fault_that_comes_and_goes_is_reported_each_so_many_seconds() -> None:
    once: Once[str] = Once(every=10)
    reported = [at for at in range(60) if once.take(["a"] if at % 2 == 0 else [], at)]
    assert reported == [0, 10, 20, 30, 40, 50]


def test_one_that_returned_too_soon_is_reported_later_if_it_stays() -> None:
    once: Once[str] = Once(every=10)
    assert once.take(["a"], 0) == ("a",)
    assert once.take([], 1) == ()
    assert [at for at in range(2, 40) if once.take(["a"], at)] == [10]


def test_one_that_lasts_is_reported_again_where_that_is_asked_for() -> None:
    once: Once[str] = Once(every=10, again=100)
    assert [at for at in range(250) if once.take(["a"], at)] == [0, 100, 200]


def test_what_was_not_reported_stays_due() -> None:
    once: Once[str] = Once(every=10)
    assert once.due(["a", "b", "c"], 0) == ("a", "b", "c")
    assert once.reported("a", 0)
    assert once.due(["a", "b", "c"], 1) == ("b", "c")
    assert [once.lasts(key) for key in "ab"] == [True, False]


def test_what_happens_is_reported_each_so_many_seconds() -> None:
    once: Once[str] = Once(every=10)
    assert [at for at in range(25) if once.happens("a", at)] == [0, 10, 20]
    assert once.happens("b", 24)


def test_more_than_there_is_room_for_waits_and_nothing_is_remembered_for_ever() -> None:
    once: Once[int] = Once(every=10, most=3)
    assert once.take(range(5), 0) == (0, 1, 2)
    assert once.take(range(1, 5), 10) == (3,), "the first is gone, and its time is over"
    for at in range(20, 2000):
        once.happens(at, at)
        assert len(once) <= 3
    assert once.take([], 10_000) == ()
    assert len(once) == 0


@given(st.lists(st.tuples(st.integers(0, 7), st.sets(st.integers(0, 5))), max_size=40))
def test_two_tellings_of_one_fault_are_never_closer_and_none_is_forgotten(looks: list[tuple[int, set[int]]]) -> None:
    once: Once[int] = Once(every=5, again=20)
    now, reported, since = 100, dict[int, int](), dict[int, int]()
    for wait, present in looks:
        now += wait
        since = {key: since.get(key, now) for key in present}
        for key in once.take(sorted(present), now):
            assert now - reported.get(key, -10) >= 5
            reported[key] = now
        for key, began in since.items():
            assert reported.get(key, -10) >= began or now - reported[key] < 5, "told in this spell, or just before it"
