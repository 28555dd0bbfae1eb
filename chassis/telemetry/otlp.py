"""Spans through the OpenTelemetry SDK; imported only in a process that exports (see ``chassis.telemetry.traces``).

Spans go out over OTLP/HTTP in batches from the SDK's own thread; its queue is bounded, what does not fit is dropped.
The SDK reads the endpoint, headers and time-outs from the standard ``OTEL_…`` variables.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from chassis.telemetry.spans import Attribute, context_of

FLUSH_MS = 1500
STOP_SECONDS = 2.0
"""A receiver that does not answer would hold the SDK for many seconds; a service that stops does not wait for it."""
EXPORT_SECONDS = 3


class _Recorder:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        self._span.add_event(name, dict(attributes))

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        self._span.set_attributes(dict(attributes))

    def end(self, error: BaseException | None) -> None:
        if error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._span.end()


class Otlp:
    """A tracer provider of our own; the global one stays as it is."""

    def __init__(self, service: str, instance: str) -> None:
        resource = Resource.create(
            {"service.name": service, "service.namespace": "airmesh", "service.instance.id": instance}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(timeout=EXPORT_SECONDS), schedule_delay_millis=500)
        )
        self._tracer = self._provider.get_tracer("airmesh")

    def start(
        self,
        name: str,
        trace_id: str,
        parent_id: str,
        attributes: Mapping[str, Attribute],
        links: Sequence[str] = (),
        waited: float = 0.0,
        kind: str = "INTERNAL",
    ) -> tuple[str, str, _Recorder]:
        """Trace id, span id and recorder of a new span; empty ids of a parent begin a new trace.

        ``links`` are traceparents of other traces; ``waited`` is for how many seconds the span has been going on;
        ``kind`` is a name of OpenTelemetry's SpanKind.
        """
        context = None
        if trace_id:
            context = set_span_in_context(NonRecordingSpan(_remote(trace_id, parent_id)))
        others = [context_of(link) for link in links]
        span = self._tracer.start_span(
            name,
            context=context,
            kind=SpanKind[kind],
            attributes=dict(attributes),
            links=[Link(_remote(*other)) for other in others if other[0]],
            start_time=time.time_ns() - int(waited * 1e9),
        )
        made = span.get_span_context()
        return f"{made.trace_id:032x}", f"{made.span_id:016x}", _Recorder(span)

    def stop(self) -> None:
        """Export what is queued, for at most STOP_SECONDS."""
        last = threading.Thread(target=self._stop, name="otlp-stop", daemon=True)
        last.start()
        last.join(STOP_SECONDS)

    def _stop(self) -> None:
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


def _remote(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(1))
