"""Who is the active copy: a key in ``leases`` that is renewed, and taken over when it rests.

Judged by this process' monotonic clock alone: a record that has not changed for its ``seconds`` may be taken, and who
has not managed to renew for two thirds of that time (counted from before the last write that succeeded) has lost it, so
the loser stops before the winner begins. ``epoch`` counts the changes of holder and fences what the holder does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from chassis.bus import Bus
from chassis.entry import Entry
from chassis.faults import Fault, Missing, Unavailable
from chassis.kv import KV, Conflict
from chassis.log import Log
from kit import backoff
from proto import leases
from proto.codec import Malformed, UnknownVersion
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


class Lease:
    """``held`` tells whether this copy is the active one. Begins at once; gives up the lease at a graceful stop."""

    def __init__(self, runtime: _Runtime, key: str, seconds: float = 6.0) -> None:
        self._kv: KV = runtime.bus.bucket(LEASES)
        self._bus = runtime.bus
        self._log = runtime.log
        self._holder = runtime.instance
        self._key = key
        self._seconds = seconds
        self._held = False
        self._epoch = 0
        self._good_until = 0.0
        self._observed: tuple[int, float] = (-1, 0.0)
        self._event = asyncio.Event()
        runtime.spawn(f"lease {key}", self._run())
        runtime.on_stop(self._release)

    @property
    def held(self) -> bool:
        """True while this copy may act; ends by itself when renewing fails for too long."""
        return self._held and time.monotonic() < self._good_until

    @property
    def epoch(self) -> int:
        """Epoch of the lease as last seen; ours while held."""
        return self._epoch

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
                await self._turn()
                failures = 0
            except (Fault, Malformed, UnknownVersion) as error:
                early = isinstance(error, Unavailable | Missing) and failures < PATIENCE
                say = self._log.debug if early else self._log.warning
                say("lease-turn", key=self._key, error=error)
                wait = backoff.delay(failures, random.random(), first=min(0.2, wait), longest=wait)  # noqa: S311
                failures += 1
            if self._held and time.monotonic() >= self._good_until:
                self._lose("it could not be renewed in time")
            if self._held:
                wait = max(0.05, min(wait, self._good_until - time.monotonic()))
            await asyncio.sleep(wait)

    async def _turn(self) -> None:
        before = time.monotonic()
        deadline = self._seconds / 4
        entry = await self._kv.get(self._key, leases.Lease, timeout=deadline)
        if entry is not None and entry.value.holder == self._holder:
            await self._write(entry, entry.value.epoch, before, deadline)
            return
        if self._held:
            self._lose("another copy holds it" if entry is not None else "its record is gone")
        if entry is None or self._rests(entry):
            await self._write(entry, max(self._epoch, entry.value.epoch if entry else 0) + 1, before, deadline)

    def _rests(self, entry: Entry[leases.Lease]) -> bool:
        """True when the record has not changed for its time, or its holder gave it up."""
        now = time.monotonic()
        self._epoch = entry.value.epoch
        if not entry.value.holder:
            return True
        if entry.revision != self._observed[0]:
            self._observed = (entry.revision, now)
            return False
        return now - self._observed[1] >= entry.value.seconds

    async def _write(self, entry: Entry[leases.Lease] | None, epoch: int, before: float, deadline: float) -> None:
        renewals = entry.value.renewals + 1 if entry is not None else 0
        record = leases.Lease(holder=self._holder, epoch=epoch, renewals=renewals, seconds=self._seconds)
        if entry is None:
            written = await self._kv.create(self._key, record, timeout=deadline)
        else:
            written = await self._kv.update(self._key, record, entry.revision, timeout=deadline)
        if isinstance(written, Conflict):
            return
        self._epoch = epoch
        self._good_until = before + self._seconds * 2 / 3
        if not self._held:
            self._held = True
            self._log.info("lease-held", key=self._key, epoch=epoch)
            self._event.set()

    def _lose(self, why: str) -> None:
        self._held = False
        self._log.warning("lease-lost", key=self._key, epoch=self._epoch, why=why)
        self._event.set()

    async def _release(self) -> None:
        if not self._held:
            return
        self._held = False
        self._event.set()
        entry = await self._kv.get(self._key, leases.Lease, timeout=1)
        if entry is not None and entry.value.holder == self._holder:
            record = leases.Lease(
                holder="", epoch=entry.value.epoch, renewals=entry.value.renewals + 1, seconds=self._seconds
            )
            await self._kv.update(self._key, record, entry.revision, timeout=1)
