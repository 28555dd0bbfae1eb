"""Spans that agents keep of late, and how they are asked for: the story of one change, with no tracing backend.

Each agent keeps a bounded number of its spans in memory (``chassis.telemetry.ring``) and answers
``proto.subjects.SPANS`` with a ``proto.requests.Reply`` whose body is :class:`Spans`. Whose answer it is, is known by
the key that it came with. Trace context as in https://www.w3.org/TR/trace-context/.
"""

from __future__ import annotations

import msgspec

Attributes = tuple[tuple[str, str], ...]
"""Pairs of name and text, in the order they were set."""

MAX_SPANS = 512
"""Spans of one answer; the latest are told."""


class SpanEvent(msgspec.Struct, frozen=True):
    """Something that was decided or happened within a span."""

    name: str
    after_us: int
    """Microseconds since the span began."""
    attributes: Attributes = ()


class Span(msgspec.Struct, frozen=True):
    """One piece of work of an agent."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    parent_id: str
    """16 hex digits, or empty: the first of its trace."""
    name: str
    start_ns: int
    """Wall clock of its agent, nanoseconds since 1970."""
    duration_us: int
    """Microseconds; -1 while it goes on."""
    error: str = ""
    """Why it failed; empty when it did not."""
    attributes: Attributes = ()
    events: tuple[SpanEvent, ...] = ()
    links: tuple[str, ...] = ()
    """Traceparents of spans in other traces that the same work is part of: changes that were taken in together."""


class SpansRequest(msgspec.Struct, frozen=True):
    """``$SRV.SPANS`` → :class:`Spans`: those of one trace, or those that have all of these attributes."""

    trace_id: str = ""
    attributes: Attributes = ()


class Spans(msgspec.Struct, frozen=True):
    """The oldest first."""

    spans: tuple[Span, ...]
    left_out: int = 0
    """Spans that were found and are not here, since an answer has a bound."""
