"""Removes retired links and the flows of their endpoints, in batches: conntrack is read once for all of them.

Owns what awaits removal. No packet reaches a link any more when it is retired, so nobody waits for its removal. Links
that an agent retired and died before it removed them are removed by the next one. Flows that the kernel does not let go
of are told of once, and tried again with those that are retired meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from chassis.telemetry.log import Log
from kit import backoff
from kit.once import Once
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.endpoint.links import Links

REAP_EVERY = 0.25
LONGEST_WAIT = 5.0
"""Seconds at most until flows that could not be removed are tried again."""
_LEFT = 0
"""Stands for links whose indices nobody knows any more."""

Report = Callable[[str, str], None]
"""Publishes a fault and its remedy."""


class Reaper:
    """The retired links of one node."""

    def __init__(
        self, links: Links, thread: NamespaceThread, collector: FlowCollector, log: Log, report: Report
    ) -> None:
        self._links = links
        self._thread = thread
        self._collector = collector
        self._log = log
        self._report = report
        self._waiting: list[int] = []
        self._flows: set[int] = set()
        """Endpoints whose flows are to be removed."""
        self._failures = 0
        self._not_before = 0.0
        self._once: Once[str] = Once()

    def retire(self, index: int) -> None:
        """The link of this interface index is retired: it goes with the next batch, and so do its flows."""
        self._waiting.append(index)

    def retire_left(self) -> None:
        """Retired links are there, maybe of an agent that died."""
        if not self._waiting:
            self._waiting.append(_LEFT)

    async def reap(self) -> None:
        """Removes them, and their flows; for ever."""
        while True:
            await asyncio.sleep(REAP_EVERY)
            batch, self._waiting = self._waiting, []
            if batch:
                try:
                    await self._thread.run(self._links.reap)
                except OSError as error:
                    self._log.warning("reap-failed", error=error)
            self._flows.update(index for index in batch if index != _LEFT)
            if self._flows and time.monotonic() >= self._not_before:
                await self._forget()

    async def _forget(self) -> None:
        """Flows are removed, or stay for the next try."""
        endpoints = frozenset(self._flows)
        try:
            await asyncio.to_thread(self._collector.forget_endpoints, endpoints)
        except OSError as error:
            chance = random.random()  # noqa: S311 - spreads load
            wait = backoff.delay(self._failures, chance, first=REAP_EVERY, longest=max(REAP_EVERY, LONGEST_WAIT))
            self._failures += 1
            self._not_before = time.monotonic() + wait
            self._report_once([str(error)])
            return
        self._flows -= endpoints
        self._failures = 0
        self._report_once([])

    def _report_once(self, present: list[str]) -> None:
        for error in self._once.take(present, time.monotonic()):
            self._log.error("flows-not-removed", endpoints=sorted(self._flows)[:32], error=error)
            self._report(
                f"flows of pods that are gone cannot be removed from conntrack ({error}); it is tried again",
                "none is needed if it passes; else see the agent's log, and whether its maps are still pinned",
            )
