"""Spans over OTLP/HTTP, by the OpenTelemetry SDK: imported only in a process that exports (``telemetry/traces.py``).

A span that has ended waits as the ring keeps it (``ring.py``), and becomes the SDK's own when its batch is sent: by the
SDK's thread, so that the work that is traced costs no more than with nothing sent. The queue is bounded, what does not
fit is dropped. A batch costs a millisecond however few spans are in it, so it waits for five seconds, as is the SDK's
own rule. The SDK reads that time, the endpoint, headers and time-outs from the standard ``OTEL_…`` variables.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from chassis.telemetry.ring import KeptSpan
from chassis.telemetry.spans import context_of

FLUSH_MS = 1500
STOP_SECONDS = 2.0
"""A receiver that does not answer would hold the SDK for many seconds; a service that stops does not wait for it."""
EXPORT_SECONDS = 3
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("airmesh")


class _Ended:
    """A span in the SDK's queue, which asks it for its context alone: whether it is sampled."""

    __slots__ = ("kept", "kind")

    context = SpanContext(1, 1, is_remote=False, trace_flags=_SAMPLED)

    def __init__(self, kept: KeptSpan, kind: str) -> None:
        self.kept = kept
        self.kind = kind


class _Resource(Resource):
    """Of this process, and so the same as itself alone: spans are grouped by it, and to compare its texts took longer
    than all else of a span.
    """

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class _Exporter(SpanExporter):
    """Makes spans of the SDK of those that waited, and sends them."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._sending = OTLPSpanExporter(timeout=EXPORT_SECONDS)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._sending.export([self._made(span) for span in cast("Sequence[_Ended]", spans)])

    def shutdown(self) -> None:
        self._sending.shutdown()  # type: ignore[no-untyped-call]

    def _made(self, ended: _Ended) -> ReadableSpan:
        of = ended.kept.contents
        attributes, status = dict(of.attributes), Status()
        if of.error:
            attributes["error.type"] = of.error.partition(":")[0]
            status = Status(StatusCode.ERROR, of.error)
        return ReadableSpan(
            of.name,
            context=_context(of.trace_id, of.span_id),
            parent=_context(of.trace_id, of.parent_id, is_remote=True) if of.parent_id else None,
            resource=self._resource,
            attributes=attributes,
            events=[Event(name, more or None, of.start_ns + int(after * 1e9)) for name, after, more in of.events],
            links=[Link(_context(*other, is_remote=True)) for other in map(context_of, of.links) if other[0]],
            kind=SpanKind[ended.kind],
            status=status,
            start_time=of.start_ns,
            end_time=of.start_ns + int(of.seconds * 1e9),
            instrumentation_scope=_SCOPE,
        )


class Otlp:
    """Sends spans that have ended."""

    def __init__(self, service: str, instance: str) -> None:
        about = {"service.name": service, "service.namespace": "airmesh", "service.instance.id": instance}
        resource = Resource.create(about)
        exporter = _Exporter(_Resource(resource.attributes, resource.schema_url))
        self._queue = BatchSpanProcessor(exporter)

    def put(self, kept: KeptSpan, kind: str) -> None:
        """Send a span that has ended, with the next batch; ``kind`` is a name of OpenTelemetry's SpanKind."""
        self._queue.on_end(cast("ReadableSpan", _Ended(kept, kind)))

    def stop(self) -> None:
        """Export what is queued, for at most STOP_SECONDS."""
        last = threading.Thread(target=self._stop, name="otlp-stop", daemon=True)
        last.start()
        last.join(STOP_SECONDS)

    def _stop(self) -> None:
        self._queue.force_flush(FLUSH_MS)
        self._queue.shutdown()  # type: ignore[no-untyped-call]


def _context(trace_id: str, span_id: str, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=is_remote, trace_flags=_SAMPLED)
