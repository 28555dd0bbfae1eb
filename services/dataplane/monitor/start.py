"""The tasks of monitoring: flow events from the ring buffer, and the node's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chassis.runtime.service import Runtime
from proto.addresses import Endpoint
from proto.net import Address
from services.dataplane.core.datapath.layout import Event
from services.dataplane.core.datapath.shares import Pressure
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.policy.history import PolicyHistory
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import Feed
from services.dataplane.monitor.flow_events import FlowEvents
from services.dataplane.monitor.metrics import register
from services.dataplane.monitor.ring import EventReader
from services.dataplane.settings import Settings


def start(
    runtime: Runtime[Settings],
    tables: Tables,
    *,
    feed: Feed,
    endpoints: LocalEndpoints,
    history: PolicyHistory,
    endpoint_at: Callable[[Address], Endpoint | None],
    pressure: Callable[[], Iterable[Pressure]],
    also: Callable[[list[Event]], None],
) -> None:
    """Tells from now on, until the service stops. ``endpoint_at`` says which pod lives at an address, ``pressure`` how
    full the tables are that are shared; ``also`` hears of all events, too.
    """
    hide_metrics = register(tables, endpoints, pressure)
    per_second = runtime.settings.flow_events_per_second
    flows = FlowEvents(runtime.bus, feed, endpoints, history, endpoint_at=endpoint_at, per_second=per_second)

    def take(events: list[Event]) -> None:
        also(events)
        flows.take(events)

    reader = EventReader(tables.events_fd, take)
    reader.start()

    async def stop_reader() -> None:
        reader.stop()

    runtime.on_stop(stop_reader)
    runtime.on_stop(hide_metrics)
