"""Whether the process that runs BFD is run before others: as long as it takes little of a CPU.

Its packets are due every 50 ms, on a machine that may have no CPU to spare. So it asks for the scheduling class
SCHED_RR, where it may have it, and else for the best nice value. Measured with 32 sessions for 10 s, on two cores that
13 other processes wanted: as an ordinary process sessions went down 106 times, before others never.

A process of that class that never rests would take a CPU from everybody, and anybody on the link can send packets to
it: once it has taken more than :data:`MOST_SHARE` of a CPU for a second it is an ordinary process, until it has taken
less than half of that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

MOST_SHARE = 0.5
"""Of one CPU; 100 sessions at 50 ms took a third."""
WINDOW_US = 1_000_000


def is_first(share: float, *, first: bool) -> bool:
    """Whether it is to be run before others, by the share of a CPU that it took and whether it was."""
    return share <= (MOST_SHARE if first else MOST_SHARE / 2)


class Priority:
    """``look`` often; it asks for what is right when a second has passed."""

    def __init__(self, clock: Callable[[], int], used: Callable[[], int]) -> None:
        """``used``: microseconds of CPU that this process has taken."""
        self._clock = clock
        self._used = used
        self._since = clock(), used()
        self._first = True
        _ask(first=True)

    def look(self) -> None:
        """Judges the time since the last judgement, if it was long enough."""
        now = self._clock()
        if now - self._since[0] < WINDOW_US:
            return
        used = self._used()
        share = (used - self._since[1]) / (now - self._since[0])
        self._since = now, used
        first = is_first(share, first=self._first)
        if first is not self._first:
            self._first = first
            _ask(first=first)


def _ask(*, first: bool) -> None:
    policy, priority = (os.SCHED_RR, 1) if first else (os.SCHED_OTHER, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    with suppress(OSError):
        os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
