"""Reads what the programs measured of pods' DNS, answers for it, and shows it on /metrics.

Owns how often the records are read, and that those of pods that are gone are removed. Programs measure whether or not
the agent lives; what is older than the agent is in the counters and in no report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from chassis.runtime.service import Runtime
from proto.dns_pods import LATENCY_UNIT_NS, PodDnsReport, PodDnsRequest
from proto.subjects import DNS_PODS
from services.dataplane.core.datapath.layout import EndpointKey
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.monitor.dns_pods import PodName, PodsDns, answers_by_rcode
from services.dataplane.datapath.tables import Tables
from services.dataplane.settings import Settings

READ_EVERY = 2.0
"""Seconds: a pod's record holds as many samples as a pod gives that asks for sixteen names a second."""
AT_ONCE = 64
"""Records that one system call reads: room for them is made each time, and a record has 7.8 KB."""
MOST_ASKING = 10
"""Pods that are named on /metrics."""


class DnsMeasurements:
    """DNS of the pods of one node."""

    def __init__(self, tables: Tables, endpoints: LocalEndpoints, node: str, *, measured: bool = True) -> None:
        self._tables = tables
        self._local = endpoints
        self._node = node
        self._measured = measured
        self._strangers: frozenset[int] = frozenset()
        self.pods = PodsDns()

    async def keep(self) -> None:
        """Reads again and again; for ever."""
        while True:
            await self.read()
            await asyncio.sleep(READ_EVERY)

    async def read(self) -> None:
        """One look at all records. One that belongs to no pod at two looks in turn is removed."""
        found = await asyncio.to_thread(self._tables.dns_pods.items, AT_ONCE)
        records = {key.endpoint: record for key, record in found.items()}
        names = {
            one.index: PodName(namespace=one.first.namespace, pod=one.first.pod) for one in self._local.up.values()
        }
        strangers = frozenset(records.keys() - names.keys())
        for number in strangers & self._strangers:
            self._tables.dns_pods.remove(EndpointKey(endpoint=number))
            del records[number]
        self._strangers = strangers
        self.pods.observe(time.monotonic(), time.monotonic_ns(), records, names)

    def answer(self, asked: PodDnsRequest) -> PodDnsReport | None:
        """What this node answers; None when it is not asked."""
        if not self._measured:
            return (
                PodDnsReport(node=self._node, measured=False) if self._node in (asked.nodes or (self._node,)) else None
            )
        return self.pods.report(asked, self._node, time.monotonic())


class DnsMetrics(Collector):
    """What was measured, as of the last look."""

    def __init__(self, pods: PodsDns) -> None:
        self._pods = pods

    def collect(self) -> Iterator[Metric]:
        """The families: of the node, and the pods that ask most."""
        totals = self._pods.totals
        queries = CounterMetricFamily(
            "airmesh_dns_queries", "DNS queries of pods, retries included", labels=["protocol"]
        )
        queries.add_metric(["udp"], totals.queries - totals.tcp_queries)
        queries.add_metric(["tcp"], totals.tcp_queries)
        yield queries
        answers = CounterMetricFamily("airmesh_dns_answers", "DNS answers to pods", labels=["rcode"])
        for rcode, count in sorted(answers_by_rcode(totals).items()):
            answers.add_metric([rcode], count)
        yield answers
        yield CounterMetricFamily("airmesh_dns_retries", "DNS queries that pods sent again", value=totals.retries)
        yield CounterMetricFamily(
            "airmesh_dns_timeouts", "DNS queries without an answer for five seconds", value=totals.timeouts
        )
        yield CounterMetricFamily(
            "airmesh_dns_unread", "Packets of pods to or from port 53 that hold no single message", value=totals.unread
        )
        yield _histogram(totals.latency)
        asking = GaugeMetricFamily(
            "airmesh_dns_queries_per_second", "Of the pods that ask most", labels=["namespace", "pod"]
        )
        for pod in self._pods.most_asking(time.monotonic(), MOST_ASKING):
            if pod.queries and pod.seconds > 0:
                asking.add_metric([pod.namespace, pod.pod], pod.queries / pod.seconds)
        yield asking


def _histogram(latency: tuple[int, ...]) -> Metric:
    family = HistogramMetricFamily("airmesh_dns_seconds", "How long DNS answers to pods took")
    buckets, seen = [], 0
    for bucket, count in enumerate(latency):
        seen += count
        buckets.append((f"{(1 << bucket) * LATENCY_UNIT_NS / 1e9:.9g}", seen))
    family.add_metric([], [*buckets, ("+Inf", seen)], sum_value=None)
    return family


async def start(runtime: Runtime[Settings], tables: Tables, endpoints: LocalEndpoints) -> DnsMeasurements:
    """Reads, answers and shows from now on, until the service stops."""
    settings = runtime.settings
    measurements = DnsMeasurements(tables, endpoints, settings.node, measured=settings.measure_dns)
    await runtime.bus.serve_everyone(DNS_PODS, PodDnsRequest, measurements.answer)
    runtime.spawn("dns-measurements", measurements.keep())
    runtime.on_stop(_shown(measurements.pods))
    return measurements


def _shown(pods: PodsDns) -> Callable[[], Awaitable[None]]:
    collector = DnsMetrics(pods)
    REGISTRY.register(collector)

    async def hide() -> None:
        REGISTRY.unregister(collector)

    return hide
