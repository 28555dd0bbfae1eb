"""Messages that wait to be shown: the newest are kept, and what is given up is counted."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from cli.backlog import AGE, BATCH, MOST, SAID_EVERY, Backlog


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def shown(waiting: Backlog[int], until: int) -> tuple[list[int], list[int]]:
    """What is shown up to that message, and what is said of the rest."""
    messages: list[int] = []
    lost: list[int] = []
    following = waiting.follow(lambda: None, lost.append)
    async with asyncio.timeout(10), aclosing(following):
        async for message in following:
            messages.append(message)
            if message == until:
                break
    return messages, lost


async def test_the_oldest_go_where_they_are_too_many() -> None:
    waiting = Backlog[int](Clock())
    for one in range(MOST + 7):
        await waiting.put(one)
    messages, lost = await shown(waiting, MOST + 6)
    assert messages == list(range(7, MOST + 7))
    assert lost == [7]


async def test_what_waited_too_long_goes_while_a_newer_one_waits() -> None:
    clock = Clock()
    waiting = Backlog[int](clock)
    for one in range(3):
        await waiting.put(one)
    clock.now += AGE + 1
    assert list(waiting.take()) == [2], "the last one is shown, however old"
    await waiting.put(3)
    assert await shown(waiting, 3) == ([3], [2])


async def test_it_is_said_at_most_once_a_second_and_at_the_end() -> None:
    clock = Clock()
    waiting = Backlog[int](clock)
    lost: list[int] = []
    following = waiting.follow(lambda: None, lost.append)
    for one in range(MOST + 1):
        await waiting.put(one)
    for one in range(BATCH * 4):
        assert await anext(following) == 1 + one * 2, "one is shown, and the oldest goes for each two that come"
        await waiting.put(0)
        await waiting.put(0)
    assert lost == [1 + BATCH]
    clock.now += SAID_EVERY
    for _ in range(BATCH):
        await anext(following)
    assert len(lost) == 2
    await waiting.put(0)
    await following.aclose()
    assert sum(lost) == 1 + BATCH * 4


async def test_what_comes_meanwhile_is_read_between_two_turns() -> None:
    waiting = Backlog[int](Clock())
    for one in range(BATCH * 3):
        await waiting.put(one)
    read: list[int] = []

    async def reader() -> None:
        while True:
            read.append(1)
            await asyncio.sleep(0)

    task = asyncio.create_task(reader())
    await shown(waiting, BATCH * 3 - 1)
    task.cancel()
    assert len(read) >= 2


async def test_it_is_idle_when_nothing_comes() -> None:
    waiting = Backlog[int]()
    idle: list[bool] = []

    def stop() -> None:
        idle.append(True)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await anext(waiting.follow(stop, lambda _: None))
    assert idle == [True]
