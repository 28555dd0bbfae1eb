"""How long the event loop is held: every callback and every step of a task is timed, the longest of a minute is told.

While one runs, nothing else of the service does: no request is answered, no heartbeat sent. ``LoopHolds.watch`` puts a
clock around whatever is scheduled on a loop from then on (0.2 µs a callback), also on uvloop, whose handles cannot be
derived from. Steps of tasks come by ``call_soon``, so they are among them.

Two figures, since a process can be kept waiting by others:

- seconds on the clock, from the callback's begin to its end: what a waiting request feels;
- of those, seconds that the loop's thread had a CPU: what the callback itself is to blame for. The thread's clock is a
  system call, so it is read once a millisecond, before a callback: the figure is up to that much too high, never too
  low, whatever the loop itself did before.

Not timed is what the loop does between callbacks: waiting, and handing what a socket received (at most 256 KiB at a
time) to its protocol. Holds below a millisecond count as none.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import Gauge

from chassis.telemetry.log import Log

WINDOW = 60
"""Seconds that a hold is told for, and up to SLOT more."""
SLOT = 5
NOTABLE = 0.02
"""Seconds on the clock from which a hold is a line at debug; from LONG it is a warning."""
LONG = 0.1
SHORTEST = 0.001

_CLOCK = Gauge("airmesh_loop_hold_seconds", "Longest time that one callback held the event loop in the last 60 s")
_CPU = Gauge("airmesh_loop_hold_cpu_seconds", "Most CPU time that one callback held the event loop in the last 60 s")


@dataclass(slots=True)
class Longest:
    """The longest hold of a window; zeros when none took a millisecond."""

    seconds: float = 0.0
    """On the clock."""
    cpu: float = 0.0
    """Most CPU time of one; not always of the same one."""
    by: str = ""
    """What held it for ``seconds``: a task by name and function, or a callback."""


class LoopHolds:
    """The holds of one loop. Made, and asked, in the loop's thread."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.perf_counter) -> None:
        self._log = log
        self._clock = clock
        self._slots: deque[tuple[int, Longest]] = deque(maxlen=WINDOW // SLOT + 1)
        self._cpu = time.thread_time()
        self._read = clock()
        """When the thread's CPU time was read."""

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Time what is scheduled from now on, and tell it on the page of metrics."""
        timed = self._timing()

        def later(schedule: Callable[..., Any]) -> Callable[..., Any]:
            def scheduled(when: Any, callback: Callable[..., object], *args: object, **named: Any) -> Any:
                if callback is timed:  # call_at asks call_later, or the other way round
                    return schedule(when, callback, *args, **named)
                return schedule(when, timed, callback, *args, **named)

            return scheduled

        for name in ("call_soon", "call_soon_threadsafe"):
            setattr(loop, name, partial(getattr(loop, name), timed))
        for name in ("call_later", "call_at", "add_reader", "add_writer"):
            setattr(loop, name, later(getattr(loop, name)))
        _CLOCK.set_function(lambda: self.longest().seconds)
        _CPU.set_function(lambda: self.longest().cpu)

    def forget(self) -> None:
        """Begin again: what held the loop until now does not count."""
        self._slots.clear()

    def longest(self) -> Longest:
        """Of the last WINDOW seconds."""
        since = int(self._clock() // SLOT) - WINDOW // SLOT
        found = Longest()
        for slot, longest in self._slots:
            if slot >= since:
                _take(found, longest)
        return found

    def _timing(self) -> Callable[..., None]:
        clock = self._clock

        def timed(callback: Callable[..., object], *args: object) -> None:
            began = clock()
            if began - self._read > SHORTEST:
                self._cpu, self._read = time.thread_time(), began
            try:
                callback(*args)
            finally:
                took = clock() - began
                if took >= SHORTEST:
                    self._look(callback, began, took)

        return timed

    def _look(self, callback: Callable[..., object], began: float, took: float) -> None:
        used = min(took, time.thread_time() - self._cpu)
        slot = int((began + took) // SLOT)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append((slot, Longest()))
        by = name_of(callback)
        _take(self._slots[-1][1], Longest(took, used, by))
        if took >= NOTABLE:
            say = self._log.warning if took >= LONG else self._log.debug
            say("loop-held", seconds=round(took, 4), cpu=round(used, 4), by=by)


def name_of(callback: Callable[..., object]) -> str:
    """A task's name and its coroutine's function; else the function."""
    while isinstance(callback, partial):
        callback = callback.func
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coroutine = owner.get_coro()
        return f"{owner.get_name()} ({getattr(coroutine, '__qualname__', type(coroutine).__name__)})"
    return getattr(callback, "__qualname__", type(callback).__name__)


def _take(found: Longest, other: Longest) -> None:
    if other.seconds > found.seconds:
        found.seconds, found.by = other.seconds, other.by
    found.cpu = max(found.cpu, other.cpu)
