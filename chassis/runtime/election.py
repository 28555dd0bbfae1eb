"""Leader election: a key in ``leases`` that the active copy renews and another takes over once it expires.

Judged by this process' monotonic clock alone: a record that has not changed for its ``seconds`` may be taken, and who
has not managed to renew for two thirds of that time (counted from before the last write that succeeded) has lost it, so
the loser stops before the winner begins. ``epoch`` grows with each change of holder, also when the store is lost, and
fences what the holder does. ``chassis.runtime.terms`` decides; here it is read, written by compare-and-set, and told.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from msgspec import structs

from chassis.bus.client import Bus
from chassis.bus.entry import Unreadable
from chassis.bus.kv import KV, Conflict
from chassis.faults import Fault, Missing, SettingsFault, Unavailable
from chassis.runtime.terms import MAX_SECONDS, Found, Mine, Renew, judge, meant
from chassis.telemetry.log import Log
from kit import backoff
from kit.once import Once
from proto import leases
from proto.codec import UnknownVersion
from proto.subjects import LEASES

PATIENCE = 4
"""Failed turns in a row that are not worth a warning: the bus or its buckets are just coming up."""


class _Runtime(Protocol):
    log: Log
    bus: Bus

    @property
    def instance(self) -> str: ...

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, None], /) -> None: ...

    def on_stop(self, callback: Callable[[], Awaitable[None]], /) -> None: ...


class Election:
    """``held`` tells whether this copy is the active one. Begins at once; gives up the lease at a graceful stop.

    Raises SettingsFault for ``seconds`` that other copies would not believe.
    """

    def __init__(self, runtime: _Runtime, key: str, seconds: float = 6.0) -> None:
        if not 0 < seconds <= MAX_SECONDS:
            raise SettingsFault(f"seconds of the lease {key}", str(seconds), f"use more than 0, at most {MAX_SECONDS}")
        self._kv: KV = runtime.bus.bucket(LEASES)
        self._bus = runtime.bus
        self._log = runtime.log
        self._key = key
        self._mine = Mine(holder=runtime.instance, seconds=seconds)
        self._seconds = seconds
        self._held = False
        self._good_until = 0.0
        self._once: Once[type] = Once(every=seconds)
        self._event = asyncio.Event()
        runtime.spawn(f"lease {key}", self._run())
        runtime.on_stop(self._release)

    @property
    def held(self) -> bool:
        """True while this copy may act; ends by itself when renewing fails for too long."""
        return self._held and time.monotonic() < self._good_until

    @property
    def epoch(self) -> int:
        """Epoch of the lease as last seen; ours while held. Never goes back."""
        return self._mine.term if self._held else self._mine.known

    async def changed(self) -> bool:
        """Wait until ``held`` changes; returns what it is now. A lease that runs out counts as a change."""
        await self._event.wait()
        self._event.clear()
        return self.held

    async def _run(self) -> None:
        await self._bus.wait_connected()
        failures = 0
        while True:
            wait = self._seconds / 3
            try:
                await self._attempt()
                failures = 0
            except Fault as error:
                early = isinstance(error, Unavailable | Missing) and failures < PATIENCE
                say = self._log.debug if early else self._log.warning
                say("lease-attempt", key=self._key, error=error)
                wait = backoff.delay(failures, random.random(), first=min(0.2, wait), longest=wait)  # noqa: S311
                failures += 1
            if self._held and time.monotonic() >= self._good_until:
                self._lose("it could not be renewed in time")
            if self._held:
                wait = max(0.05, min(wait, self._good_until - time.monotonic()))
            await asyncio.sleep(wait)

    async def _attempt(self) -> None:
        before = time.monotonic()
        deadline = self._seconds / 4
        found = await self._look(deadline)
        self._report(found)
        mine = replace(self._mine, held=self.held)
        self._mine, step = judge(mine, found, now=time.monotonic(), clock=time.time())
        if not isinstance(step, Renew):
            if self._held:
                self._lose(step.why)
            return
        if self._held and step.epoch != self._mine.term:
            self._lose("its record is gone" if found is None else "its record is not as it was written")
        await self._write(found, step, before, deadline)

    async def _look(self, deadline: float) -> Found | None:
        there = await self._kv.look(self._key, leases.Lease, timeout=deadline)
        if there is None:
            return None
        return Found(revision=there.revision, record=there.why if isinstance(there, Unreadable) else there.value)

    def _report(self, found: Found | None) -> None:
        """Once, as long as it is so: that what stands there is no record, and what helps."""
        record = None if found is None else found.record
        why = meant(record) if isinstance(record, leases.Lease) else record
        if self._once.take([type(why)] if isinstance(why, ValueError) else [], time.monotonic()):
            remedy = f"none is needed: its holder mends it, or another copy takes it after {self._seconds} s"
            if isinstance(why, UnknownVersion):
                remedy = "leave it to the newer release; if that runs no more, delete this key"
            self._log.warning("lease-unreadable", key=self._key, bucket=LEASES.on_server, why=str(why), remedy=remedy)

    async def _write(self, found: Found | None, step: Renew, before: float, deadline: float) -> None:
        # Remembered before it is written: a write that times out may have happened, and is known again by its epoch.
        self._mine = replace(self._mine, term=step.epoch, known=max(self._mine.known, step.epoch))
        record = leases.Lease(holder=self._mine.holder, epoch=step.epoch, renewals=step.renewals, seconds=self._seconds)
        if found is None:
            written = await self._kv.create(self._key, record, timeout=deadline)
        else:
            written = await self._kv.update(self._key, record, found.revision, timeout=deadline)
        if isinstance(written, Conflict):
            return
        self._good_until = before + self._seconds * 2 / 3
        if not self._held:
            self._held = True
            self._log.info("lease-held", key=self._key, epoch=step.epoch)
            self._event.set()

    def _lose(self, why: str) -> None:
        self._held = False
        self._log.warning("lease-lost", key=self._key, epoch=self._mine.term, why=why)
        self._event.set()

    async def _release(self) -> None:
        if not self._held:
            return
        self._held = False
        self._event.set()
        found = await self._look(1)
        if found is None or not isinstance(found.record, leases.Lease):
            return
        last = found.record
        if last.holder == self._mine.holder and last.epoch == self._mine.term:
            record = structs.replace(last, holder="", renewals=last.renewals + 1)
            await self._kv.update(self._key, record, found.revision, timeout=1)
