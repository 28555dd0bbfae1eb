"""One thread that does blocking work for the event loop, in order.

Owns the hand-over and nothing of the work. Promises: jobs run one at a time in the order they were given; a job that
was given up on is still finished, never torn off half way; the queue is bounded. It stands beside the standard
executors because a hand-over is a good part of what an ADD costs: theirs goes through locks and two futures that are
made in Python.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class OneThread:
    """See the module. Daemonic: an agent that dies does not wait for it."""

    def __init__(self, name: str, limit: int = 1024) -> None:
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._limit = limit
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[], T], *, timeout: float | None = 30.0) -> T:
        """Result of ``job``. Raises what it raises, TimeoutError after ``timeout`` seconds, queue.Full at once when
        more jobs wait than ``limit``.
        """
        if self._jobs.qsize() >= self._limit:
            raise queue.Full
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((done, job))
        if timeout is None:
            return await done
        late = loop.call_later(timeout, _settle, done, None, TimeoutError())
        try:
            return await done
        finally:
            late.cancel()

    def close(self) -> bool:
        """Ends the thread after the jobs that are waiting; False when it still works after five seconds."""
        self._jobs.put(None)
        self._thread.join(5)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            done, job = item
            try:
                result, fault = job(), None
            except BaseException as error:  # whatever it is, it belongs to who asked
                result, fault = None, error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                done.get_loop().call_soon_threadsafe(_settle, done, result, fault)


def _settle(done: asyncio.Future[Any], result: object, fault: BaseException | None) -> None:
    if done.done():  # given up on
        return
    if fault is None:
        done.set_result(result)
    else:
        done.set_exception(fault)
