"""Writers to the servers of compose.yaml: each counts upwards in a key of its own, and notes what was acknowledged.

They are `dns` to the servers, and write leases of no service: nothing of the mesh reads or removes them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from chassis.bus.client import Bus
from chassis.faults import Unavailable
from chassis.runtime.settings import BaseSettings
from lab.compose import keys
from proto.leases import Lease
from proto.subjects import LEASES
from tests.nats_cluster import insist
from tests.natsd import runtime_as

T = TypeVar("T")
WRITERS = 3
URLS = [f"nats://{address}:4222" for address in keys.SERVERS.values()]


def lease_key(number: int) -> str:
    return f"dns.written-{number}"


class Writers:
    """They write while this is entered, in a thread of their own."""

    def __init__(self, secrets: Path) -> None:
        self._settings = BaseSettings(
            nats_url=",".join(URLS),
            nats_seed_file=secrets / "seeds" / "dns.seed",
            nats_user="dns",
            nats_ca_file=secrets / "ca.crt",
            instance="writer",
        )
        self.acknowledged = dict.fromkeys(range(WRITERS), 0)
        self.waited = 0.0
        """Longest time between two acknowledgements of one writer, in seconds, since it was last set to 0."""
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._begun: Future[Bus] = Future()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), name="writers")

    def __enter__(self) -> Self:
        self._thread.start()
        self._begun.result(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)

    async def _run(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                made = [await stack.enter_async_context(runtime_as("dns", self._settings)) for _ in range(WRITERS)]
                self._begun.set_result(made[0].bus)
                counting = [asyncio.create_task(self._count(number, one.bus)) for number, one in enumerate(made)]
                await self._end.wait()
                for task in counting:
                    task.cancel()
                await asyncio.gather(*counting, return_exceptions=True)
        except BaseException as error:
            if not self._begun.done():
                self._begun.set_exception(error)
            raise

    async def _count(self, number: int, bus: Bus) -> None:
        kv = bus.bucket(LEASES)
        count, last = 0, time.monotonic()
        while True:
            count += 1
            try:
                await kv.put(lease_key(number), Lease(holder="writer", epoch=1, renewals=count, seconds=1.0), timeout=2)
            except Unavailable:
                await asyncio.sleep(0.1)  # it may have happened, or not
            else:
                self.acknowledged[number] = count
                now = time.monotonic()
                self.waited, last = max(self.waited, now - last), now
            await asyncio.sleep(0.02)

    # --- from the thread of the test

    def sum(self) -> int:
        """How many writes were acknowledged in all."""
        return sum(self.acknowledged.values())

    def lost(self) -> dict[int, tuple[int, int]]:
        """Keys that are behind what was acknowledged before this was asked: what is there, what was acknowledged."""
        found = {}
        for number, acknowledged in dict(self.acknowledged).items():
            there = self.lease(lease_key(number))
            count = there.renewals if there is not None else 0
            if count < acknowledged:
                found[number] = (count, acknowledged)
        return found

    def lease(self, key: str) -> Lease | None:
        """Who is the active copy."""
        return self._ask(self._lease(key))

    async def _lease(self, key: str) -> Lease | None:
        kv = self._begun.result().bucket(LEASES)
        entry = await insist(lambda: kv.get(key, Lease, timeout=2))
        return entry.value if entry is not None else None

    def _ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(90)
