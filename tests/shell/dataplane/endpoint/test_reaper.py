"""Retired links go in batches: one removal, and one reading of conntrack, for all that waited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from chassis.telemetry.log import Log
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.endpoint import reaper
from services.dataplane.endpoint.reaper import Reaper
from tests.natsd import Lines


class Kernel:
    """Links and conntrack, as far as the reaper sees them: what it asks of them, in order."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.refuses = 0
        self.keeps = 0
        """How often flows are not let go of."""
        self.busy: asyncio.Event | None = None

    def reap(self) -> None:
        self.asked.append("links")
        if self.refuses:
            self.refuses -= 1
            raise OSError(16, "Device or resource busy")

    def forget_endpoints(self, endpoints: Collection[int]) -> int:
        self.asked.append(frozenset(endpoints))
        if self.keeps:
            self.keeps -= 1
            raise OSError(12, "Cannot allocate memory")
        return len(endpoints)


class Running:
    """A reaper that runs."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.lines = Lines()
        self.faults: list[str] = []
        self.thread = NamespaceThread()
        self.reaper = Reaper(
            cast("Any", self.kernel),
            self.thread,
            cast("Any", self.kernel),
            Log("dataplane", stream=cast("Any", self.lines)),
            lambda fault, remedy: self.faults.append(fault),
        )

    async def until(self, count: int) -> list[object]:
        """What was asked, once it is so much."""
        async with asyncio.timeout(20):
            while len(self.kernel.asked) < count:
                await asyncio.sleep(0.005)
        return self.kernel.asked

    async def rounds(self, count: int = 3) -> None:
        await asyncio.sleep(count * reaper.REAP_EVERY)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "REAP_EVERY", 0.02)
    monkeypatch.setattr(reaper, "LONGEST_WAIT", 0.04)


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    world = Running()
    task = asyncio.create_task(world.reaper.reap())
    try:
        yield world
        assert not task.done(), "it goes on for ever"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        world.thread.close()


async def test_nothing_is_asked_of_the_kernel_while_nothing_waits() -> None:
    async with running() as world:
        await world.rounds()
        assert world.kernel.asked == []


async def test_those_that_waited_go_together_links_first() -> None:
    """A flow that a link still makes would come back after its endpoint was forgotten."""
    async with running() as world:
        for index in (7, 9, 7):
            world.reaper.retire(index)
        assert await world.until(2) == ["links", {7, 9}]
        await world.rounds()
        assert len(world.kernel.asked) == 2
        world.reaper.retire(11)
        assert (await world.until(4))[2:] == ["links", {11}]


async def test_links_of_an_agent_that_died_go_without_flows_to_forget() -> None:
    async with running() as world:
        world.reaper.retire_left()
        world.reaper.retire_left()
        assert await world.until(1) == ["links"]
        await world.rounds()
        assert world.kernel.asked == ["links"], "nobody knows their indices"


async def test_links_that_were_left_go_with_those_that_wait_already() -> None:
    async with running() as world:
        world.reaper.retire(7)
        world.reaper.retire_left()
        assert await world.until(2) == ["links", {7}]
        await world.rounds()
        assert len(world.kernel.asked) == 2


async def test_a_refusal_of_the_kernel_is_reported_and_flows_go_all_the_same() -> None:
    """No packet reaches a retired link, so its flows need not wait; the reconciler sees the link and says so again."""
    async with running() as world:
        world.kernel.refuses = 1
        world.reaper.retire(7)
        assert await world.until(2) == ["links", {7}]
        (line,) = world.lines.named("reap-failed")
        assert "Device or resource busy" in line["error"]
        world.reaper.retire_left()
        assert (await world.until(3))[2:] == ["links"]
        assert len(world.lines.named("reap-failed")) == 1


async def test_flows_that_stay_are_reported_once_and_removed_later() -> None:
    """It had ended the service."""
    async with running() as world:
        world.kernel.keeps = 3
        world.reaper.retire(7)
        await world.until(3)
        world.reaper.retire(9)
        asked = await world.until(6)
        while world.kernel.keeps or asked[-1] != {7, 9}:
            asked = await world.until(len(asked) + 1)
        assert [one for one in asked if one == "links"] == ["links", "links"], "links wait for no flows"
        await world.rounds()
        assert world.kernel.asked[-1] == {7, 9}
        (line,) = world.lines.named("flows-not-removed")
        assert "Cannot allocate memory" in line["error"]
        (fault,) = world.faults
        assert "Cannot allocate memory" in fault


async def test_what_is_retired_meanwhile_waits_for_the_next_batch() -> None:
    async with running() as world:
        seen: list[int] = []
        first = world.kernel.forget_endpoints

        def and_another(endpoints: Collection[int]) -> int:
            seen.append(len(endpoints))
            if len(seen) == 1:
                world.reaper.retire(8)
            return first(endpoints)

        world.kernel.forget_endpoints = and_another  # type: ignore[method-assign]
        world.reaper.retire(7)
        assert await world.until(4) == ["links", {7}, "links", {8}]
