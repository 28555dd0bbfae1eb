"""Drops (and, if asked for, new flows) from the ring buffer to the bus.

Owns the publishing of flow events. Promises: bounded (a token bucket for the node, on top of the programs' own per
endpoint), and honest: what is not sent is counted in the next event of its reason. Never raises into the event loop.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace

from chassis.bus.client import Bus
from proto.addresses import Endpoint
from proto.codec import encode_segment, identity_key
from proto.identity import IdentityRecord
from proto.net import Address
from proto.objects import Node
from proto.subjects import flow_subject
from services.dataplane.core.datapath.layout import Event
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.monitor.flows import Budget, Interpreter, verdict_of
from services.dataplane.core.monitor.names import Names, nodes_at
from services.dataplane.core.policy.history import PolicyHistory
from services.dataplane.feed import Feed

NAMES_SECONDS = 1.0
"""Nodes, pods of this node and interfaces are gathered at most this often."""


class FlowEvents:
    """Sink of the ring buffer's reader."""

    def __init__(
        self,
        bus: Bus,
        feed: Feed,
        endpoints: LocalEndpoints,
        history: PolicyHistory,
        *,
        endpoint_at: Callable[[Address], Endpoint | None],
        per_second: float,
    ) -> None:
        """``endpoint_at``: the pod that lives at an address."""
        self._bus = bus
        self._feed = feed
        self._local = endpoints
        self._history = history
        self._endpoint_at = endpoint_at
        self._budget = Budget(per_second=per_second, burst=per_second)
        self._subject = encode_segment(feed.node)
        self._names = Names()
        self._named_at = 0.0

    def take(self, events: list[Event]) -> None:
        """Publishes a batch."""
        now = time.monotonic()
        if now - self._named_at > NAMES_SECONDS:
            self._names, self._named_at = names_now(self._feed, self._local, self._endpoint_at), now
        self._names = self._with_newcomers(self._names, events)
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

    def _with_newcomers(self, names: Names, events: list[Event]) -> Names:
        """The names with pods that came since they were gathered. A number that is nobody's even now is kept as one, so
        that who sends many of it costs one look.
        """
        endpoints = {event.endpoint for event in events} - names.by_endpoint.keys()
        interfaces = {event.ifindex for event in events} - names.interfaces.keys()
        if not endpoints and not interfaces:
            return names
        return replace(
            names,
            by_endpoint={**dict.fromkeys(endpoints, ""), **names.by_endpoint, **_by_endpoint(self._local)},
            interfaces={**{one: f"#{one}" for one in interfaces}, **names.interfaces, **_interfaces()},
        )


def names_now(feed: Feed, endpoints: LocalEndpoints, endpoint_at: Callable[[Address], Endpoint | None]) -> Names:
    """Names as they are known at this moment."""

    def namespace_of(identity: int) -> str | None:
        entry = feed.identities.entries.get(identity_key(identity))
        return entry.value.namespace if entry is not None and isinstance(entry.value, IdentityRecord) else None

    return Names(
        endpoint_at=endpoint_at,
        namespace_of=namespace_of,
        nodes=nodes_at(feed.all_of(Node)),
        by_endpoint=_by_endpoint(endpoints),
        interfaces=_interfaces(),
    )


def _by_endpoint(endpoints: LocalEndpoints) -> dict[int, str]:
    return {one.index: f"{one.first.namespace}/{one.first.pod}" for one in endpoints.up.values()}


def _interfaces() -> dict[int, str]:
    return dict(socket.if_nameindex())
