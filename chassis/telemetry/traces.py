"""Traces: makes spans (``spans.py``), and sends them out over OTLP (``otlp.py``) when that is asked for.

Nothing leaves the process unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set.

Without an endpoint a span costs two random numbers: ids still travel (headers, KV envelopes) and stand in the logs, so
one pod's ADD can be followed through the logs of all services. The OpenTelemetry SDK is imported only when it exports;
an idle service stays small.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chassis.telemetry.spans import Recorder, Span, entered, parent_of, plain

if TYPE_CHECKING:
    from chassis.telemetry.otlp import Otlp


class Telemetry:
    """Makes spans; exports them when the environment names an OTLP endpoint (else it only makes ids)."""

    def __init__(self, service: str, instance: str, environ: Mapping[str, str]) -> None:
        self._service = service
        self._otlp: Otlp | None = None
        if environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            from chassis.telemetry.otlp import Otlp  # noqa: PLC0415 - the SDK is heavy: only for one who exports

            self._otlp = Otlp(service, instance)

    @contextmanager
    def span(self, name: str, parent: str = "", **attributes: object) -> Iterator[Span]:
        """A span around a block; child of ``parent`` (a traceparent), else of the current span, else a new trace."""
        trace_id, parent_id = parent_of(parent)
        recorder: Recorder | None = None
        if self._otlp is None:
            span = Span(trace_id or secrets.token_hex(16), secrets.token_hex(8), None)
        else:
            trace_id, span_id, recorder = self._otlp.start(name, trace_id, parent_id, plain(attributes))
            span = Span(trace_id, span_id, recorder)
        error: BaseException | None = None
        try:
            with entered(span):
                yield span
        except BaseException as raised:
            error = raised
            raise
        finally:
            if recorder is not None:
                recorder.end(error)

    def stop(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        if self._otlp is not None:
            self._otlp.stop()
