"""The process' Prometheus metrics, sent over OTLP as well: one set of numbers, two ways out.

Imported only in a process that exports (see ``chassis.telemetry``). Every ``OTEL_METRIC_EXPORT_INTERVAL`` milliseconds
(10,000 unless set) the registry of prometheus_client is read and sent as OTLP sums, gauges and histograms, cumulative
since the start of the process. Sending is done in a thread of its own; an export that fails is skipped, the next one
carries the same sums.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

CUMULATIVE = AggregationTemporality.CUMULATIVE


class MetricsExport:
    """Reads the registry and sends it, until stopped."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._started = time.time_ns()
        self._exporter = OTLPMetricExporter(timeout=3)
        self._seconds = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "10000")) / 1000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send a last time; waits half a second at most."""
        self._stop.set()
        self._thread.join(0.5)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._exporter.export(self._read(), timeout_millis=5000)
        self._exporter.export(self._read(), timeout_millis=1000)

    def _read(self) -> MetricsData:
        now = time.time_ns()
        metrics = list(translate(REGISTRY.collect(), self._started, now))
        scope = ScopeMetrics(scope=InstrumentationScope("airmesh"), metrics=metrics, schema_url="")
        return MetricsData([ResourceMetrics(resource=self._resource, scope_metrics=[scope], schema_url="")])


def translate(families: Iterable[Family], started: int, now: int) -> Iterator[Metric]:
    """OTLP metrics of Prometheus families; times in nanoseconds since 1970. Other types than the three are left out."""
    for family in families:
        data: Sum | Gauge | Histogram
        if family.type == "counter":
            points = [_number(sample, started, now) for sample in family.samples if sample.name.endswith("_total")]
            data = Sum(data_points=points, aggregation_temporality=CUMULATIVE, is_monotonic=True)
        elif family.type == "gauge":
            data = Gauge(data_points=[_number(sample, started, now) for sample in family.samples])
        elif family.type == "histogram":
            data = Histogram(data_points=_histogram(family.samples, started, now), aggregation_temporality=CUMULATIVE)
        else:
            continue
        if data.data_points:
            yield Metric(name=family.name, description=family.documentation, unit=family.unit, data=data)


def _number(sample: Sample, started: int, now: int) -> NumberDataPoint:
    return NumberDataPoint(
        attributes=dict(sample.labels), start_time_unix_nano=started, time_unix_nano=now, value=sample.value
    )


def _histogram(samples: Iterable[Sample], started: int, now: int) -> list[HistogramDataPoint]:
    """Prometheus counts each bucket from zero up to its bound; OTLP counts between bounds."""
    by_labels: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for sample in samples:
        labels = {key: value for key, value in sample.labels.items() if key != "le"}
        held = by_labels.setdefault(tuple(sorted(labels.items())), {})
        if sample.name.endswith("_bucket"):
            held[sample.labels["le"]] = sample.value
        elif sample.name.endswith("_sum"):
            held["sum"] = sample.value
    points: list[HistogramDataPoint] = []
    for key, held in by_labels.items():
        total = held.pop("sum", 0.0)
        upto = sorted((float(bound), int(count)) for bound, count in held.items())
        counts = [count - before for (_, count), (_, before) in zip(upto, [(0.0, 0), *upto[:-1]], strict=True)]
        points.append(
            HistogramDataPoint(
                attributes=dict(key),
                start_time_unix_nano=started,
                time_unix_nano=now,
                count=sum(counts),
                sum=total,
                bucket_counts=counts,
                explicit_bounds=[bound for bound, _ in upto[:-1]],
                min=None,  # type: ignore[arg-type]  # Prometheus keeps neither; the protocol has both as optional
                max=None,  # type: ignore[arg-type]
            )
        )
    return points
