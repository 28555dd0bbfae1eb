"""Reconcile loops on a real server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from chassis.bus.view import Cursor
from chassis.faults import Unavailable
from chassis.runtime.reconcile import Again, Dirty, Done, Loop
from tests.conftest import RuntimeFor
from tests.natsd import NatsServer, runtime_of


async def until(holds: Any, seconds: float) -> float:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"not so after {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - started


class Passes:
    def __init__(self, outcomes: list[Any] | None = None) -> None:
        self.seen: list[Dirty] = []
        self.times: list[float] = []
        self.outcomes = outcomes or []

    async def apply(self, dirty: Dirty) -> Done | Again:
        self.seen.append(dirty)
        self.times.append(time.monotonic())
        outcome = self.outcomes.pop(0) if self.outcomes else Done()
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, Done | Again)
        return outcome


async def test_changes_are_gathered_into_one_pass(runtime_for: RuntimeFor) -> None:
    runtime, passes, one, two = await runtime_for("dns"), Passes(), Cursor(), Cursor()
    Loop(runtime, "x", cursors=[one, two], apply=passes.apply, period=60)
    await until(lambda: len(passes.seen) == 1, 2)
    assert passes.seen[0].full
    for key in "abc":
        one.mark(key)
        two.mark(key.upper())
        await asyncio.sleep(0)
    await until(lambda: len(passes.seen) == 2, 2)
    await asyncio.sleep(0.05)
    assert passes.seen[1:] == [
        Dirty(full=False, keys=frozenset("abcABC"), by_cursor=(frozenset("abc"), frozenset("ABC")))
    ]


async def test_a_full_pass_comes_with_the_period_even_amid_changes(runtime_for: RuntimeFor) -> None:
    runtime, passes, cursor = await runtime_for("dns"), Passes(), Cursor()
    began = time.monotonic()
    Loop(runtime, "x", cursors=[cursor], apply=passes.apply, period=0.3)
    for _ in range(100):
        cursor.mark("a")
        await asyncio.sleep(0.01)
    full = [at for at, dirty in zip(passes.times, passes.seen, strict=True) if dirty.full]
    assert 3 <= len(full) <= (time.monotonic() - began) / 0.3 + 2
    assert len(passes.seen) > 20


async def test_a_failed_pass_keeps_its_keys_and_comes_again(runtime_for: RuntimeFor) -> None:
    runtime, cursor = await runtime_for("dns"), Cursor()
    passes = Passes([Done(), Unavailable("no"), OSError("no"), Done()])
    Loop(runtime, "x", cursors=[cursor], apply=passes.apply, period=60)
    await until(lambda: len(passes.seen) == 1, 2)
    cursor.mark("a")
    await until(lambda: len(passes.seen) == 2, 2)
    cursor.mark("b")
    await until(lambda: len(passes.seen) == 4, 3)
    assert passes.seen[3].keys == {"a", "b"}
    assert passes.seen[3].full
    assert passes.times[2] - passes.times[1] >= 0.05
    assert passes.times[3] - passes.times[2] >= 0.1
    cursor.mark("c")
    await until(lambda: len(passes.seen) == 5, 1)
    assert passes.seen[4].keys == {"c"}
    assert not passes.seen[4].full


async def test_again_and_poke(runtime_for: RuntimeFor) -> None:
    runtime = await runtime_for("dns")
    passes = Passes([Again(after=0.1)])
    loop = Loop(runtime, "x", cursors=[], apply=passes.apply, period=60)
    await until(lambda: len(passes.seen) == 2, 1)
    assert passes.times[1] - passes.times[0] >= 0.09
    loop.poke()
    await until(lambda: len(passes.seen) == 3, 1)
    assert all(dirty.full for dirty in passes.seen)


async def test_a_poke_in_the_middle_of_a_full_pass_is_seen_to_after_it(runtime_for: RuntimeFor) -> None:
    """What it is about may have been looked at already."""
    runtime, passes = await runtime_for("dns"), Passes()

    async def apply(dirty: Dirty) -> Done | Again:
        if not passes.seen:
            loop.poke()
        return await passes.apply(dirty)

    loop = Loop(runtime, "x", cursors=[], apply=apply, period=60)
    await until(lambda: len(passes.seen) == 2, 1)
    assert [dirty.full for dirty in passes.seen] == [True, True]


async def test_again_with_what_changed_until_then(runtime_for: RuntimeFor) -> None:
    runtime, cursor = await runtime_for("dns"), Cursor()
    passes = Passes([Again(after=0.15, full=False), Again(after=0.15, full=False)])
    Loop(runtime, "x", cursors=[cursor], apply=passes.apply, period=60)
    await until(lambda: len(passes.seen) == 1, 1)
    cursor.mark("a")
    await until(lambda: len(passes.seen) == 3, 1)
    await asyncio.sleep(0.3)
    assert [(dirty.full, *dirty.keys) for dirty in passes.seen] == [(True,), (False, "a"), (False,)]
    assert passes.times[2] - passes.times[1] >= 0.14, "the pass between asks for its own"


async def test_an_unknown_error_ends_the_service(nats_server: NatsServer) -> None:
    with pytest.raises(ExceptionGroup) as ended:  # noqa: PT012
        async with runtime_of(nats_server, "dns") as runtime:
            Loop(runtime, "x", cursors=[], apply=Passes([ZeroDivisionError()]).apply)
            await asyncio.sleep(1)
    assert ended.group_contains(ZeroDivisionError)


async def test_at_a_stop_a_loop_ends_before_what_was_there_before_it(runtime_for: RuntimeFor) -> None:
    runtime = await runtime_for("dns")
    running, seen_at_the_end = [0], []

    async def let_go() -> None:
        seen_at_the_end.append(running[0])

    async def slow(_dirty: Dirty) -> Done:
        running[0] += 1
        try:
            await asyncio.sleep(30)
        finally:
            running[0] -= 1
        return Done()

    runtime.on_stop(let_go)
    Loop(runtime, "x", cursors=[], apply=slow)
    await until(lambda: running == [1], 2)
    await runtime.stop()
    assert seen_at_the_end == [0]
