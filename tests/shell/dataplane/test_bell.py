"""A ring is heard once no call of the runtime is being served, and never much later than that."""

from __future__ import annotations

import asyncio
import time

from services.dataplane.bell import LONGEST, QUIET, Bell, Courtesy


async def test_without_courtesy_it_is_heard_at_once() -> None:
    bell = Bell()
    cursor = bell.cursor()
    bell.ring("a")
    bell.ring("b")
    assert cursor.take() == {"a", "b"}


async def test_a_burst_of_calls_is_heard_as_one() -> None:
    courtesy = Courtesy()
    bell = Bell(courtesy)
    cursor = bell.cursor()
    for number in range(5):
        with courtesy.call():
            await asyncio.sleep(QUIET)
            bell.ring(str(number))
        assert not cursor.pending, "the runtime's next call comes first"
    assert await asyncio.wait_for(cursor.changed(), 1) == {"0", "1", "2", "3", "4"}


async def test_calls_without_end_do_not_keep_it_from_being_heard() -> None:
    courtesy = Courtesy()
    bell = Bell(courtesy)
    cursor = bell.cursor()
    began = time.monotonic()
    with courtesy.call():
        bell.ring("a")
        assert await asyncio.wait_for(cursor.changed(), 4 * LONGEST) == {"a"}
        assert time.monotonic() - began >= LONGEST
        bell.ring("b")
        assert await asyncio.wait_for(cursor.changed(), 4 * LONGEST) == {"b"}, "the next waits again, and is heard"
