"""One thread for blocking work: in order, bounded, and whoever gives up on a job leaves it to end well."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from services.dataplane.one_thread import OneThread


@pytest.fixture
def thread() -> Iterator[OneThread]:
    made = OneThread("work", limit=8)
    yield made
    assert made.close()


class Held:
    """A job that works until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.let_go.wait(10)
        self.ended.set()
        return "done"


async def begun(held: Held) -> None:
    assert await asyncio.to_thread(held.begun.wait, 5)


async def test_jobs_run_one_at_a_time_in_their_order_on_one_thread(thread: OneThread) -> None:
    order: list[tuple[int, str]] = []

    def job(number: int) -> int:
        order.append((number, threading.current_thread().name))
        return number

    results = await asyncio.gather(*(thread.run(lambda number=number: job(number)) for number in range(8)))  # type: ignore[misc]
    assert results == list(range(8))
    assert order == [(number, "work") for number in range(8)]


@pytest.mark.parametrize("error", [ValueError("no"), OSError(5, "io"), SystemExit(3), KeyboardInterrupt()])
async def test_what_a_job_raises_is_its_askers_and_the_thread_goes_on(thread: OneThread, error: BaseException) -> None:
    def fails() -> None:
        raise error

    caught: list[BaseException] = []
    try:
        await thread.run(fails)
    except BaseException as raised:
        caught.append(raised)
    assert caught == [error]
    assert await thread.run(lambda: 7) == 7


async def test_a_job_that_takes_too_long_is_given_up_on_and_still_finished(thread: OneThread) -> None:
    held = Held()
    with pytest.raises(TimeoutError):
        await thread.run(held, timeout=0.02)
    assert not held.ended.is_set(), "never torn off half way"
    held.let_go.set()
    assert await thread.run(held.ended.is_set), "what comes after it waits for its end"


async def test_an_asker_that_is_cancelled_leaves_its_job_to_end(thread: OneThread) -> None:
    held = Held()
    asker = asyncio.create_task(thread.run(held))
    await begun(held)
    asker.cancel()
    with suppress(asyncio.CancelledError):
        await asker
    held.let_go.set()
    assert await thread.run(held.ended.is_set)


async def test_without_a_deadline_it_waits(thread: OneThread) -> None:
    held = Held()
    asker = asyncio.create_task(thread.run(held, timeout=None))
    await begun(held)
    held.let_go.set()
    assert await asker == "done"


async def test_the_queue_is_bounded_and_says_so_at_once(thread: OneThread) -> None:
    held = Held()
    first = asyncio.create_task(thread.run(held))
    await begun(held)
    waiting = [asyncio.create_task(thread.run(lambda: 1)) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(queue.Full):
        await thread.run(lambda: 1)
    held.let_go.set()
    assert await asyncio.gather(first, *waiting) == ["done", *[1] * 8]
    assert await thread.run(lambda: 2) == 2, "there is room again"


async def test_jobs_that_wait_are_done_before_it_closes() -> None:
    thread, held, done = OneThread("work"), Held(), list[int]()
    first = asyncio.create_task(thread.run(held))
    await begun(held)
    rest = [asyncio.create_task(thread.run(lambda number=number: done.append(number))) for number in range(3)]  # type: ignore[misc]
    await asyncio.sleep(0)
    held.let_go.set()
    assert await asyncio.to_thread(thread.close)
    await asyncio.gather(first, *rest)
    assert done == [0, 1, 2]


def test_a_loop_that_has_ended_does_not_end_the_thread() -> None:
    """A job of an agent that stops may outlive the loop that asked for it."""
    thread, held = OneThread("work"), Held()

    async def asks_and_leaves() -> None:
        asker = asyncio.create_task(thread.run(held))
        await begun(held)
        asker.cancel()

    asyncio.run(asks_and_leaves())
    held.let_go.set()
    assert asyncio.run(thread.run(lambda: "another loop")) == "another loop"
    assert held.ended.is_set()
    assert thread.close()
