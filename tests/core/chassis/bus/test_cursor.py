"""A cursor loses no change and repeats none, whoever waits and whenever they look."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.bus.cursor import Cursor


def test_changes_are_gathered_until_they_are_taken() -> None:
    cursor = Cursor()
    assert (cursor.pending, cursor.take()) == (False, frozenset())
    cursor.mark("a", "b")
    cursor.mark("b")
    assert (cursor.pending, cursor.take()) == (True, frozenset("ab"))
    assert (cursor.pending, cursor.take()) == (False, frozenset())


def test_a_mark_without_keys_only_wakes() -> None:
    """As the news that a bucket is in sync, though nothing in it has changed."""
    cursor = Cursor()
    cursor.mark()
    assert cursor.pending
    assert cursor.take() == frozenset()


def test_others_changes_neither_wake_nor_are_kept() -> None:
    cursor = Cursor("a.", "_")
    cursor.mark("b.1", "a")
    assert (cursor.pending, cursor.take()) == (False, frozenset())
    cursor.mark("a.1", "b.1", "_epoch")
    assert (cursor.pending, cursor.take()) == (True, frozenset({"a.1", "_epoch"}))
    cursor.mark()
    assert (cursor.pending, cursor.take()) == (True, frozenset())


@given(st.lists(st.one_of(st.sets(st.sampled_from("abcdef"), max_size=3), st.none()), max_size=20))
def test_every_key_is_seen_after_its_last_mark_and_not_again(steps: list[set[str] | None]) -> None:
    """None stands for a look."""
    cursor, expected, woken = Cursor(), set[str](), False
    for step in steps:
        if step is None:
            assert cursor.pending == woken
            assert cursor.take() == expected
            expected, woken = set(), False
        else:
            cursor.mark(*step)
            expected, woken = expected | step, True
    assert cursor.take() == expected


async def test_who_waits_is_woken_once_with_all_that_came() -> None:
    cursor = Cursor()
    waiting = asyncio.create_task(cursor.changed())
    await asyncio.sleep(0)
    assert not waiting.done()
    cursor.mark("a")
    cursor.mark("b")
    assert await waiting == {"a", "b"}
    assert not cursor.pending


async def test_waiting_alone_takes_nothing() -> None:
    cursor = Cursor()
    cursor.mark("a")
    await cursor.wait()
    await cursor.wait()
    assert await cursor.changed() == {"a"}


async def test_a_wait_that_is_given_up_loses_nothing() -> None:
    cursor = Cursor()
    waiting = asyncio.create_task(cursor.changed())
    await asyncio.sleep(0)
    waiting.cancel()
    cursor.mark("a")
    await asyncio.gather(waiting, return_exceptions=True)
    assert cursor.take() == {"a"}


@pytest.mark.parametrize("before", [True, False])
async def test_one_event_may_stand_for_many_cursors(before: bool) -> None:
    """Also for what was marked before it was asked to."""
    one, other, event = Cursor(), Cursor(), asyncio.Event()
    if before:
        one.mark("a")
    one.wakes(event)
    other.wakes(event)
    assert event.is_set() == before
    event.clear()
    other.mark("b")
    assert event.is_set()
    assert (one.take(), other.take()) == (frozenset("a" if before else ""), frozenset("b"))


async def test_another_event_takes_the_place_of_the_first() -> None:
    cursor, first, second = Cursor(), asyncio.Event(), asyncio.Event()
    cursor.wakes(first)
    cursor.wakes(second)
    cursor.mark("a")
    assert (first.is_set(), second.is_set()) == (False, True)
