"""The reconcile loop of every service: mark dirty, batch, plan, apply.

A loop has cursors of views (what changed) and one ``apply``. It waits for a change, gathers more of them for the
debounce time, and applies; every ``period`` it makes a full pass whether or not anything changed (drift). A failed pass
keeps its dirty keys and comes again after a back-off with jitter. ``apply`` is never run twice at once.

Times are in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import Counter, Gauge, Histogram

from chassis.bus.view import Cursor
from chassis.faults import Fault, Retryable
from chassis.telemetry.log import Log
from kit import backoff
from proto.codec import Malformed, UnknownVersion

_SECONDS = Histogram("airmesh_loop_apply_seconds", "Time of one pass", ["loop"])
_BATCH = Gauge("airmesh_loop_batch", "Keys of the last pass", ["loop"])
_FAILURES = Counter("airmesh_loop_failures", "Passes that failed", ["loop"])
_LAST = Gauge("airmesh_loop_last_success_seconds", "Unix time of the last pass that ended well", ["loop"])


@dataclass(frozen=True, slots=True)
class Done:
    """The pass is over; nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Again:
    """The pass is over; come again after so many seconds even if nothing changes."""

    after: float
    full: bool = True
    """False: with what changed until then, which may be nothing. Only until the next pass, which says so itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirty:
    """What to look at. ``full``: everything, whatever the keys say."""

    full: bool
    keys: frozenset[str] = frozenset()
    """Union of all cursors' keys."""
    by_cursor: tuple[frozenset[str], ...] = field(default=())
    """Keys of each cursor, in the order the cursors were given in."""


class Runner(Protocol):
    """What a loop needs of the runtime."""

    log: Log

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, None], /) -> None:
        """Start a task."""

    def on_stop(self, callback: Callable[[], Awaitable[None]], /) -> None:
        """Have something called at a graceful stop, before what was registered earlier."""


Apply = Callable[[Dirty], Awaitable[Done | Again]]


class Loop:
    """Runs ``apply`` from the moment it is made (its task belongs to the runtime). At a graceful stop it ends, in the
    middle of a pass if need be, before what was there earlier is let go of.
    """

    def __init__(
        self,
        runtime: Runner,
        name: str,
        *,
        cursors: Sequence[Cursor],
        apply: Apply,
        period: float = 5.0,
        debounce: float = 0.005,
    ) -> None:
        self._log = runtime.log
        self._name = name
        self._cursors = list(cursors)
        self._poke = Cursor()
        self._woken = asyncio.Event()
        for cursor in (*self._cursors, self._poke):
            cursor.wakes(self._woken)
        self._apply = apply
        self._period = period
        self._debounce = debounce
        self._full = True
        self._due = 0.0
        self._soon = math.inf
        """When a pass is due that need not be full."""
        self._failures = 0
        self.passes = 0
        """Passes that ended well."""
        self._task: asyncio.Task[Any] | None = None
        runtime.spawn(f"loop {name}", self._run())
        runtime.on_stop(self._end)

    def poke(self, full: bool = True) -> None:
        """Something outside of the views changed (the kernel, a timer): make a pass soon."""
        self._full = self._full or full
        self._poke.mark()

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        kept = [frozenset[str]() for _ in self._cursors]
        while True:
            await self._wait()
            self._woken.clear()
            taken = [cursor.take() | old for cursor, old in zip(self._cursors, kept, strict=True)]
            self._poke.take()
            full, self._full = self._full or time.monotonic() >= self._due, False
            dirty = Dirty(full=full, keys=frozenset().union(*taken), by_cursor=tuple(taken))
            good = await self._pass(dirty)
            kept = [frozenset[str]() for _ in self._cursors] if good else taken

    async def _wait(self) -> None:
        """Until something is dirty or a full pass is due; then a moment more, to gather what comes with it."""
        if self._failures:
            return
        left = min(self._due, self._soon) - time.monotonic()
        if left > 0 and not self._full:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._woken.wait()
        await asyncio.sleep(self._debounce)

    async def _pass(self, dirty: Dirty) -> bool:
        """One pass; True when it ended well."""
        started = time.monotonic()
        try:
            with _SECONDS.labels(self._name).time():
                outcome = await self._apply(dirty)
        except (Fault, Malformed, UnknownVersion, OSError, TimeoutError) as error:
            await self._failed(error)
            return False
        self._failures = 0
        self.passes += 1
        if dirty.full:
            self._due = started + self._period
        self._soon = math.inf
        if isinstance(outcome, Again):
            again = time.monotonic() + outcome.after
            self._due, self._soon = (min(self._due, again), math.inf) if outcome.full else (self._due, again)
        _BATCH.labels(self._name).set(len(dirty.keys))
        _LAST.labels(self._name).set(time.time())
        return True

    async def _failed(self, error: Exception) -> None:
        _FAILURES.labels(self._name).inc()
        wait = backoff.delay(self._failures, random.random(), first=0.1, longest=5.0)  # noqa: S311 - spreads load
        known = isinstance(error, Retryable)
        say = self._log.warning if known or self._failures else self._log.error
        say("loop-pass-failed", loop=self._name, attempt=self._failures, error=error, again_after=round(wait, 3))
        self._failures += 1
        self._full = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._poke.wait()
