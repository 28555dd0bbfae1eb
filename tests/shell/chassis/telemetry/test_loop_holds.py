"""The longest hold of the event loop: seen on both loops, whoever holds it, for a minute, and blamed by name."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from prometheus_client import REGISTRY

from chassis.telemetry.log import Log
from chassis.telemetry.loop_holds import SLOT, WINDOW, Longest, LoopHolds

HELD = 0.05
LOOPS = [pytest.param(uvloop.new_event_loop, id="uvloop"), pytest.param(asyncio.new_event_loop, id="asyncio")]
Factory = Callable[[], asyncio.AbstractEventLoop]


class Clock:
    """Seconds that go on, plus what is added."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.perf_counter() + self.ahead


def sleep() -> None:
    time.sleep(HELD)


def burn() -> None:
    end = time.thread_time() + HELD
    while time.thread_time() < end:
        pass


async def in_a_task(hold: Callable[[], None]) -> None:
    async def step() -> None:
        await asyncio.sleep(0)
        hold()
        await asyncio.sleep(0)

    await asyncio.create_task(step(), name="busy one")


async def in_a_callback(hold: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(hold)
    await asyncio.sleep(0)


async def in_a_callback_of_another_thread(hold: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(loop.call_soon_threadsafe, hold)
    await asyncio.sleep(0)


async def in_a_timer(hold: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(0.001, hold)
    await asyncio.sleep(0.01)


async def at_a_time(hold: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() + 0.001, hold)
    await asyncio.sleep(0.01)


async def when_there_is_to_read(hold: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    done = loop.create_future()

    def read() -> None:
        loop.remove_reader(reading)
        hold()
        done.set_result(None)

    loop.add_reader(reading, read)
    os.write(writing, b"x")
    await done
    os.close(reading)
    os.close(writing)


async def in_one_that_fails(hold: Callable[[], None]) -> None:
    async def fail() -> None:
        hold()
        raise ValueError("as it should")

    with pytest.raises(ValueError, match="as it should"):
        await asyncio.create_task(fail())


WAYS = [
    in_a_task,
    in_a_callback,
    in_a_callback_of_another_thread,
    in_a_timer,
    at_a_time,
    when_there_is_to_read,
    in_one_that_fails,
]


def run(factory: Factory, what: Callable[[LoopHolds], Awaitable[None]]) -> list[str]:
    """Lines of the log, at debug, of a loop that is watched."""
    lines = io.StringIO()

    async def watched() -> None:
        holds = LoopHolds(Log("dns", "debug", lines))
        holds.watch(asyncio.get_running_loop())
        await what(holds)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(watched())
    return [line for line in lines.getvalue().splitlines() if json.loads(line)["event"] == "loop-held"]


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_holds_the_loop_is_seen(factory: Factory, way: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
    found: list[Longest] = []

    async def held(holds: LoopHolds) -> None:
        await way(sleep)
        found.append(holds.longest())

    said = run(factory, held)
    assert HELD <= found[0].seconds < 1
    assert found[0].cpu < HELD / 2, "who waits takes no CPU"
    assert said


@pytest.mark.parametrize("factory", LOOPS)
def test_an_idle_loop_is_held_by_nobody(factory: Factory) -> None:
    found: list[Longest] = []

    async def idle(holds: LoopHolds) -> None:
        for _ in range(20):
            await asyncio.sleep(0.01)
        found.append(holds.longest())

    run(factory, idle)
    assert found[0].cpu < 0.005


@pytest.mark.parametrize("factory", LOOPS)
def test_many_short_steps_are_no_long_one(factory: Factory) -> None:
    found: list[Longest] = []

    async def busy(holds: LoopHolds) -> None:
        for _ in range(100):
            end = time.thread_time() + 0.0005
            while time.thread_time() < end:
                pass
            await asyncio.sleep(0)
        found.append(holds.longest())

    run(factory, busy)
    assert found[0].cpu < 0.005


class Reader(asyncio.Protocol):
    """Takes its time with what a socket received, which no callback of the loop does."""

    def __init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        burn()
        self.done.set_result(data)
        asyncio.get_running_loop().call_soon(sleep)


@pytest.mark.parametrize("factory", LOOPS)
def test_what_the_loop_itself_took_is_no_callbacks(factory: Factory) -> None:
    found: list[Longest] = []

    async def reading(holds: LoopHolds) -> None:
        mine, other = socket.socketpair()
        transport, reader = await asyncio.get_running_loop().create_connection(Reader, sock=mine)
        other.sendall(b"x")
        await reader.done
        await asyncio.sleep(0.001)
        transport.close()
        other.close()
        found.append(holds.longest())

    run(factory, reading)
    assert found[0].seconds >= HELD
    assert found[0].cpu < HELD / 2


def test_who_held_it_is_named_and_what_it_took_of_the_cpu() -> None:
    found: list[Longest] = []

    async def held(holds: LoopHolds) -> None:
        await in_a_task(burn)
        found.append(holds.longest())

    lines = run(uvloop.new_event_loop, held)
    assert HELD <= found[0].cpu <= found[0].seconds
    assert found[0].by == "busy one (in_a_task.<locals>.step)"
    assert found[0].by in {json.loads(line)["by"] for line in lines}


def test_it_is_on_the_page_for_a_minute_and_a_shorter_one_does_not_hide_it() -> None:
    clock, page = Clock(), []

    async def watch() -> None:
        LoopHolds(Log("dns", "error"), clock).watch(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watch())
        runner.run(in_a_callback(lambda: time.sleep(4 * HELD)))
        for clock.ahead in (1, 20, WINDOW - 1, WINDOW + SLOT + 1):
            runner.run(in_a_callback(lambda: time.sleep(0.002)))
            page.append(REGISTRY.get_sample_value("airmesh_loop_hold_seconds") or 0.0)
    assert min(page[:3]) >= 4 * HELD
    assert 0.002 <= page[3] < 4 * HELD
