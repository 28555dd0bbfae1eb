"""The bounded dirty set: nothing that was marked is ever forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.coalesce import DirtySet

marks = st.lists(st.one_of(st.sets(st.integers(0, 9), max_size=4), st.just("take"), st.integers(1, 3)), max_size=30)


@given(st.integers(1, 6), marks)
def test_what_was_marked_is_taken_once_or_everything_is(bound: int, steps: list[object]) -> None:
    dirty: DirtySet[int] = DirtySet(bound)
    owed: set[int] = set()
    for step in [*steps, "take"]:
        if isinstance(step, set):
            dirty.mark(step)
            owed |= step
            continue
        batch = dirty.take(step if isinstance(step, int) else None)
        assert batch.everything or batch.keys <= owed
        owed = set() if batch.everything else owed - batch.keys
        assert len(batch.keys) <= bound
        if step == "take":
            assert not owed
            assert not dirty


def test_past_the_bound_everything_is_dirty() -> None:
    dirty: DirtySet[str] = DirtySet(2)
    dirty.mark(["a", "b", "a"])
    assert dirty.take().keys == {"a", "b"}
    dirty.mark(["a", "b", "c"])
    batch = dirty.take()
    assert batch.everything
    assert not dirty
    dirty.give_back(batch)
    assert dirty.take().everything


def test_given_back_is_dirty_again() -> None:
    dirty: DirtySet[str] = DirtySet(5)
    dirty.mark("ab")
    dirty.give_back(dirty.take())
    assert dirty.take(1).keys | dirty.take().keys == {"a", "b"}


def test_a_bound_must_hold_something() -> None:
    with pytest.raises(ValueError, match="at least one"):
        DirtySet(0)
