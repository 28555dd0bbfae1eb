"""Tells how this node's BGP speaker is, as often as the CalicoNodeStatus objects that name the node ask for it.

``cluster`` hears it and writes it. Where no object asks nothing is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from chassis.bus.client import Bus
from proto.bgp import BgpStatus
from proto.codec import kind_prefix
from proto.objects import KIND_OF, CalicoNodeStatus
from proto.subjects import OBJECTS, event_subject
from services.routing.core.bgp.status import period

LOOK = 1.0
"""Seconds from one look at the objects to the next: the shortest period."""


class StatusReporter:
    """``run`` for ever; ``status`` gives what is told."""

    def __init__(self, bus: Bus, node: str, status: Callable[[], BgpStatus]) -> None:
        self._bus = bus
        self._node = node
        self._status = status
        prefix = kind_prefix(KIND_OF[CalicoNodeStatus])
        self._view = bus.bucket(OBJECTS).watch(
            {prefix: CalicoNodeStatus}, prefixes=(prefix,), markers=(), name="node-statuses"
        )

    async def run(self) -> None:
        """Looks each second who asks."""
        due = time.monotonic()
        while True:
            values = (entry.value for entry in self._view.entries.values())
            seconds = period((one for one in values if isinstance(one, CalicoNodeStatus)), self._node)
            if seconds and time.monotonic() >= due:
                due = time.monotonic() + seconds
                self._bus.publish(event_subject("routing", "bgp-status"), self._status())
            due = min(due, time.monotonic() + seconds) if seconds else time.monotonic()
            await asyncio.sleep(LOOK)
