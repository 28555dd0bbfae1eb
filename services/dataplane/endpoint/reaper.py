"""Removes retired links and the flows of their endpoints, in batches: conntrack is read once for all of them.

Owns what awaits removal. No packet reaches a link any more when it is retired, so nobody waits for its removal. Links
that an agent retired and died before it removed them are removed by the next one.
"""

from __future__ import annotations

import asyncio

from chassis.telemetry.log import Log
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.endpoint.links import Links

REAP_EVERY = 0.25
_LEFT = 0
"""Stands for links whose indices nobody knows any more."""


class Reaper:
    """The retired links of one node."""

    def __init__(self, links: Links, thread: NamespaceThread, collector: FlowCollector, log: Log) -> None:
        self._links = links
        self._thread = thread
        self._collector = collector
        self._log = log
        self._waiting: list[int] = []

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
            if not self._waiting:
                continue
            batch, self._waiting = self._waiting, []
            try:
                await self._thread.run(self._links.reap)
            except OSError as error:
                self._log.warning("reap-failed", error=error)
            if indices := {index for index in batch if index != _LEFT}:
                await asyncio.to_thread(self._collector.forget_endpoints, indices)
