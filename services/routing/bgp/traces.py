"""The trace of a batch of UPDATE messages: read from peers, decided, written to the kernel, sent on to other peers.

Each batch begins a trace. One pass may work for several batches, where the first was not done: then each trace has the
pass' spans, linked with those of the first. Without a batch nothing is traced, and a span costs the same however many
prefixes there are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from chassis.telemetry.spans import Span
from chassis.telemetry.traces import TOGETHER, Telemetry
from services.routing.bgp.router import Router, Worked


class Traces:
    """Of one agent's BGP loop."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._causes: list[str] = []

    def begin(self, router: Router) -> None:
        """Before a pass: what has been read since the last one is what it works for."""
        now = asyncio.get_running_loop().time()
        batch = router.batches.take(now)
        if batch is None:
            return
        with self._telemetry.span(
            "bgp.receive",
            waited=now - batch.begun,
            airmesh__peers=", ".join(batch.peers),
            airmesh__messages=batch.messages,
            airmesh__prefixes=batch.prefixes,
        ) as span:
            batch.trace_id, batch.at = span.trace_id, int(time.time())
            self._causes = [*self._causes, span.traceparent][-TOGETHER:]

    async def work(self, router: Router) -> None:
        """A pass of the router."""
        with self._telemetry.together("bgp.decide", self._causes) as span:
            worked = await router.work()
            if span is not None:
                span.set(airmesh__changes=worked.changes)
        self._advertised(worked)

    def _advertised(self, worked: Worked) -> None:
        if worked.sent:
            waited = asyncio.get_running_loop().time() - worked.sent_at
            peers, messages = ", ".join(worked.sent), sum(worked.sent.values())
            with self._telemetry.together(
                "bgp.advertise", self._causes, waited=waited, airmesh__peers=peers, airmesh__messages=messages
            ):
                pass

    @contextmanager
    def installing(self) -> Iterator[Span | None]:
        """Around what is written to the kernel in a pass."""
        with self._telemetry.together("bgp.install", self._causes) as span:
            yield span

    def end(self, router: Router) -> None:
        """After a pass: what is decided is done."""
        if not router.rib.undecided:
            self._causes = []
