"""Traces: spans with W3C trace context, and their way out: OTLP, when it is asked for.

Nothing leaves the process unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set.

Without an endpoint a span costs two random numbers: ids still travel (headers, KV envelopes) and stand in the logs, so
one pod's ADD can be followed through the logs of all services. The OpenTelemetry SDK is imported only when it exports;
an idle service stays small.

Source: https://www.w3.org/TR/trace-context/ (``00-<32 hex trace id>-<16 hex span id>-<2 hex flags>``).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from chassis.telemetry.otlp import Otlp

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_current: ContextVar[Span | None] = ContextVar("airmesh_span", default=None)

Attribute = str | int | float | bool


class Recorder(Protocol):
    """What an exporter keeps of one span."""

    def event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Something happened within the span, now."""

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """More attributes of the whole span."""

    def end(self, error: BaseException | None) -> None:
        """The span is over."""


class Span:
    """One piece of work. Events carry the reasons of decisions."""

    __slots__ = ("_recorder", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, recorder: Recorder | None) -> None:
        self.trace_id = trace_id
        """32 hex digits."""
        self.span_id = span_id
        """16 hex digits."""
        self._recorder = recorder

    @property
    def traceparent(self) -> str:
        """W3C header value that makes another span a child of this one."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    def event(self, name: str, **attributes: object) -> None:
        """Note that something was decided or happened, with its reason."""
        if self._recorder is not None:
            self._recorder.event(name, _attributes(attributes))

    def set(self, **attributes: object) -> None:
        """Attributes that became known during the work."""
        if self._recorder is not None:
            self._recorder.set(_attributes(attributes))


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
        trace_id, parent_id = _parent(parent)
        recorder: Recorder | None = None
        if self._otlp is None:
            span = Span(trace_id or secrets.token_hex(16), secrets.token_hex(8), None)
        else:
            trace_id, span_id, recorder = self._otlp.start(name, trace_id, parent_id, _attributes(attributes))
            span = Span(trace_id, span_id, recorder)
        token = _current.set(span)
        error: BaseException | None = None
        try:
            yield span
        except BaseException as raised:
            error = raised
            raise
        finally:
            _current.reset(token)
            if recorder is not None:
                recorder.end(error)

    def stop(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        if self._otlp is not None:
            self._otlp.stop()


def current_traceparent() -> str:
    """Trace context of the running task for a header or an envelope; empty outside of any span."""
    span = _current.get()
    return span.traceparent if span is not None else ""


def current_trace_id() -> str:
    """Trace id of the running task; empty outside of any span."""
    span = _current.get()
    return span.trace_id if span is not None else ""


def _parent(parent: str) -> tuple[str, str]:
    match = _TRACEPARENT.fullmatch(parent) if parent else None
    if match is not None:
        return match[1], match[2]
    span = _current.get()
    return (span.trace_id, span.span_id) if span is not None else ("", "")


def _attributes(values: Mapping[str, object]) -> dict[str, Attribute]:
    return {
        key.replace("__", "."): value if isinstance(value, str | int | float | bool) else str(value)
        for key, value in values.items()
    }
