"""A signal is delivered once no call of the runtime is being served, and never much later than that."""

from __future__ import annotations

import asyncio
import time

from services.dataplane.signals import LONGEST, QUIET, CallPriority, Signal


async def test_without_calls_to_wait_for_it_is_heard_at_once() -> None:
    signal = Signal()
    cursor = signal.cursor()
    signal.notify("a")
    signal.notify("b")
    assert cursor.take() == {"a", "b"}


async def test_a_burst_of_calls_is_heard_as_one() -> None:
    priority = CallPriority()
    signal = Signal(priority)
    cursor = signal.cursor()
    for number in range(5):
        with priority.call():
            await asyncio.sleep(QUIET)
            signal.notify(str(number))
        assert not cursor.pending, "the runtime's next call comes first"
    assert await asyncio.wait_for(cursor.changed(), 20) == {"0", "1", "2", "3", "4"}


async def test_calls_without_end_do_not_keep_it_from_being_heard() -> None:
    priority = CallPriority()
    signal = Signal(priority)
    cursor = signal.cursor()
    began = time.monotonic()
    with priority.call():
        signal.notify("a")
        assert await asyncio.wait_for(cursor.changed(), 4 * LONGEST) == {"a"}
        assert time.monotonic() - began >= LONGEST
        signal.notify("b")
        assert await asyncio.wait_for(cursor.changed(), 4 * LONGEST) == {"b"}, "the next waits again, and is heard"
