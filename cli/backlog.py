"""The messages of a stream that wait to be shown: bounded by number and by age, the newest kept.

A terminal, or the program behind a pipe, may take less than comes, and a person who looks for who attacks wants what is
dropped now. So the oldest are given up, and how many is said. A library's subscription does the opposite: a full one
refuses the newest and shows what was, ever later. Times are seconds of any clock that only rises.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from time import monotonic
from typing import Generic, TypeVar

MOST = 10_000
"""Messages that wait."""
AGE = 5.0
"""Seconds after which a message is given up while a newer one waits."""
BATCH = 16
"""Messages that are shown before what has come meanwhile is read."""
SAID_EVERY = 1.0
"""Seconds between two words of what was given up."""

M = TypeVar("M")


class Backlog(Generic[M]):
    """Filled by a subscription's callback (:meth:`put`), emptied by :meth:`follow`."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._waiting: deque[tuple[float, M]] = deque()
        self._filled = asyncio.Event()
        self._lost = 0
        self._said = clock() - SAID_EVERY

    async def put(self, message: M) -> None:
        """One more; the oldest goes where it is too many. Never waits."""
        if len(self._waiting) == MOST:
            self._give_up()
        self._waiting.append((self._clock(), message))
        self._filled.set()

    def take(self) -> Iterator[M]:
        """The next messages, oldest first, :data:`BATCH` at most; none when none waits."""
        for _ in range(BATCH):
            since = self._clock() - AGE
            while len(self._waiting) > 1 and self._waiting[0][0] < since:
                self._give_up()
            if not self._waiting:
                return
            yield self._waiting.popleft()[1]

    async def follow(self, idle: Callable[[], None], lost: Callable[[int], None]) -> AsyncGenerator[M, None]:
        """Messages for ever; ``idle`` is called each second that brings none, ``lost`` with how many were given up."""
        try:
            while True:
                for message in self.take():
                    yield message
                self._say(lost, SAID_EVERY)
                if self._waiting:
                    await asyncio.sleep(0)  # what has come meanwhile is read
                elif not await self._comes(1.0):
                    idle()
        finally:
            self._say(lost, 0)

    async def _comes(self, seconds: float) -> bool:
        self._filled.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._filled.wait()
        except TimeoutError:
            return False
        return True

    def _say(self, lost: Callable[[int], None], every: float) -> None:
        now = self._clock()
        if self._lost and now - self._said >= every:
            count, self._lost, self._said = self._lost, 0, now
            lost(count)

    def _give_up(self) -> None:
        self._waiting.popleft()
        self._lost += 1
