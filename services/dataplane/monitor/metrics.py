"""What a node's dataplane measures of itself, for /metrics.

Owns the names: CNI calls by verb and outcome, endpoints, flows in use, packets and bytes by verdict and direction. The
packet counters live in the kernel's maps and are read only when somebody asks, so they cost nothing otherwise and
survive a restart of the agent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator

from prometheus_client import REGISTRY, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.dataplane.core.conntrack import fills as core
from services.dataplane.core.conntrack.fills import Fill, Share
from services.dataplane.core.datapath.layout import NODE
from services.dataplane.core.datapath.shares import Pressure
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.datapath.tables import Tables

MAX_GROUPS = 50
"""Namespaces (or nodes) that are named for each table."""

CNI_SECONDS = Histogram(
    "airmesh_cni_seconds",
    "CNI calls, by verb and the code of their answer (0: success)",
    ["verb", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 20),
)


class DatapathMetrics(Collector):
    """Reads the maps at each scrape."""

    def __init__(self, tables: Tables, endpoints: LocalEndpoints, pressure: Callable[[], Iterable[Pressure]]) -> None:
        self._tables = tables
        self._local = endpoints
        self._pressure = pressure

    def collect(self) -> Iterator[Metric]:
        """The families, with present values."""
        endpoints = GaugeMetricFamily("airmesh_endpoints", "Pod interfaces of this node")
        endpoints.add_metric([], len(self._local.up))
        yield endpoints
        flows = GaugeMetricFamily("airmesh_conntrack_flows", "Conntrack entries of all pods")
        budgets = {key.endpoint: budget for key, budget in self._tables.budgets.items().items()}
        present = core.fills(budgets, self._tables.flows.entries)
        flows.add_metric([], sum(fill.used for share, fill in present.items() if share.endpoint != NODE))
        yield flows
        entries = GaugeMetricFamily("airmesh_conntrack_entries", "Conntrack entries that the table takes")
        entries.add_metric([], self._tables.flows.entries)
        yield entries
        yield self._spent(present)
        packets = CounterMetricFamily("airmesh_packets", "Packets by verdict", labels=["reason", "direction"])
        size = CounterMetricFamily("airmesh_bytes", "Bytes by verdict", labels=["reason", "direction"])
        for (reason, direction), counted in self._tables.metrics().items():
            labels = [reason.name.lower(), direction.name.lower()]
            packets.add_metric(labels, counted.packets)
            size.add_metric(labels, counted.bytes)
        yield packets
        yield size
        yield from self._shares()

    def _spent(self, present: dict[Share, Fill]) -> Metric:
        """Pods whose flows of a direction are nearly as many as they may have."""
        spent = GaugeMetricFamily(
            "airmesh_conntrack_budget_fill",
            "Part of a pod's conntrack budget that is used, where it is four fifths or more",
            labels=["namespace", "pod", "direction"],
        )
        pods = {one.index: one.first for one in self._local.up.values()}
        for share, fill in present.items():
            if share.endpoint in pods and fill.part >= core.RAISED:
                pod = pods[share.endpoint]
                spent.add_metric([pod.namespace, pod.pod, share.direction.name.lower()], fill.part)
        return spent

    def _shares(self) -> Iterator[Metric]:
        """How full the tables are that tenants fill."""
        asked = GaugeMetricFamily("airmesh_table_asked", "Entries that the cluster asks a table for", labels=["table"])
        room = GaugeMetricFamily("airmesh_table_room", "Entries that a table gives away now", labels=["table"])
        refused = GaugeMetricFamily(
            "airmesh_table_refused",
            "Objects without an entry, since their group asks for most",
            labels=["table", "group"],
        )
        for one in self._pressure():
            asked.add_metric([one.table], one.asked)
            room.add_metric([one.table], one.room)
            for group, count in sorted(one.refused.items())[:MAX_GROUPS]:
                refused.add_metric([one.table, group], count)
        yield asked
        yield room
        yield refused


def register(
    tables: Tables, endpoints: LocalEndpoints, pressure: Callable[[], Iterable[Pressure]] = tuple
) -> Callable[[], Awaitable[None]]:
    """Shows them on /metrics; call what it returns before the maps are let go of."""
    collector = DatapathMetrics(tables, endpoints, pressure)
    REGISTRY.register(collector)

    async def hide() -> None:
        REGISTRY.unregister(collector)

    return hide
