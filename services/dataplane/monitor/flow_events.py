"""Drops (and, if asked for, new flows) from the ring buffer to the bus.

Owns the publishing of flow events. Promises: bounded (a token bucket for the node, on top of the programs' own per
endpoint), and honest: what is not sent is counted in the next event of its reason. Never raises into the event loop.
"""

from __future__ import annotations

import socket
import time

from chassis.bus.client import Bus
from proto.codec import encode_segment
from proto.identity import IdentityRecord
from proto.objects import Node
from proto.subjects import flow_subject
from services.dataplane.core.datapath.layout import Event
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.monitor.flows import Budget, Interpreter, verdict_of
from services.dataplane.core.monitor.names import Names, names_of
from services.dataplane.core.policy.history import PolicyHistory
from services.dataplane.feed import Feed

NAMES_SECONDS = 1.0
"""Names are computed anew at most this often."""


class FlowEvents:
    """Sink of the ring buffer's reader."""

    def __init__(
        self, bus: Bus, feed: Feed, endpoints: LocalEndpoints, history: PolicyHistory, *, per_second: float
    ) -> None:
        self._bus = bus
        self._feed = feed
        self._local = endpoints
        self._history = history
        self._budget = Budget(per_second=per_second, burst=per_second)
        self._subject = encode_segment(feed.node)
        self._names = Names()
        self._named_at = 0.0

    def take(self, events: list[Event]) -> None:
        """Publishes a batch."""
        now = time.monotonic()
        if now - self._named_at > NAMES_SECONDS:
            self._names, self._named_at = self._name(), now
        interpreter = Interpreter(
            node=self._feed.node,
            names=self._names,
            policies=self._history.names,
            wall_offset=time.time_ns() - time.monotonic_ns(),
        )
        for event in events:
            missed = self._budget.take(event.reason, now)
            if missed is not None:
                self._bus.publish(flow_subject(self._subject, verdict_of(event)), interpreter.read(event, missed))

    def _name(self) -> Names:
        local = [entry for one in self._local.up.values() for entry in one.published(self._feed.node)]
        records = [
            entry.value for entry in self._feed.identities.entries.values() if isinstance(entry.value, IdentityRecord)
        ]
        pods = {one.index: f"{one.first.namespace}/{one.first.pod}" for one in self._local.up.values()}
        interfaces = dict(socket.if_nameindex())
        return names_of([*self._feed.foreign_endpoints(), *local], self._feed.all_of(Node), records, pods, interfaces)
