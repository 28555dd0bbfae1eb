"""A span: one piece of work, with W3C trace context; the current one of the running task.

Source: https://www.w3.org/TR/trace-context/ (``00-<32 hex trace id>-<16 hex span id>-<2 hex flags>``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_current: ContextVar[Span | None] = ContextVar("airmesh_span", default=None)

Attribute = str | int | float | bool


class Recorder(Protocol):
    """What is kept of one span."""

    def event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Something happened within the span, now."""

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """More attributes of the whole span."""

    def end(self, error: BaseException | None) -> None:
        """The span is over."""


class Span:
    """One piece of work. Events carry the reasons of decisions."""

    __slots__ = ("_recorder", "owner", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, recorder: Recorder | None = None, owner: str = "") -> None:
        self.trace_id = trace_id
        """32 hex digits."""
        self.span_id = span_id
        """16 hex digits."""
        self.owner = owner
        """The namespace or node that it is about; empty for what is about none."""
        self._recorder = recorder

    @property
    def traceparent(self) -> str:
        """W3C header value that makes another span a child of this one."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    def event(self, name: str, **attributes: object) -> None:
        """Note that something was decided or happened, with its reason."""
        if self._recorder is not None:
            self._recorder.event(name, plain(attributes))

    def set(self, **attributes: object) -> None:
        """Attributes that became known during the work."""
        if self._recorder is not None:
            self._recorder.set(plain(attributes))

    def end(self, error: BaseException | None) -> None:
        """It is over; ``error`` is why it failed, if it did."""
        if self._recorder is not None:
            self._recorder.end(error)


@contextmanager
def entered(span: Span) -> Iterator[None]:
    """The span is the current one of this task within the block."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


def current_traceparent() -> str:
    """Trace context of the running task for a header or an envelope; empty outside of any span."""
    span = _current.get()
    return span.traceparent if span is not None else ""


def current_trace_id() -> str:
    """Trace id of the running task; empty outside of any span."""
    span = _current.get()
    return span.trace_id if span is not None else ""


def context_of(traceparent: str) -> tuple[str, str]:
    """Trace id and span id of a traceparent; both empty when it is none."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return (match[1], match[2]) if match is not None else ("", "")


def parent_of(traceparent: str) -> tuple[str, str]:
    """Trace id and span id of what a new span hangs on: this traceparent, else the current span; else both empty."""
    given = context_of(traceparent)
    if given[0]:
        return given
    span = _current.get()
    return (span.trace_id, span.span_id) if span is not None else ("", "")


def current_owner() -> str:
    """Owner of the running task's span; empty outside of any."""
    span = _current.get()
    return span.owner if span is not None else ""


def plain(values: Mapping[str, object]) -> dict[str, Attribute]:
    """Attributes by their names with dots; what OpenTelemetry has no type for becomes text."""
    return {
        key.replace("__", "."): value if isinstance(value, str | int | float | bool) else str(value)
        for key, value in values.items()
    }
