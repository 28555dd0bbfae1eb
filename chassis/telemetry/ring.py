"""The spans that an agent keeps in memory, for whoever asks what became of a change (``airmesh trace``).

A fixed number, and of each no more than a fixed size. Each span has an *owner*, the namespace or the node that it is
about. When the ring is full, the owner that has the most spans loses its oldest: who makes many loses its own alone.
Nothing here waits, allocates beyond the bounds, or reaches the bus.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from chassis.telemetry.spans import Attribute
from proto import traces

MOST_SPANS = 1024
"""Spans of one agent; a bare one takes about 1 KiB."""
MOST_ATTRIBUTES = 16
MOST_EVENTS = 16
MOST_TEXT = 256
"""Characters of an attribute or an error; what is longer is cut and ends in an ellipsis."""
MOST_ANSWERED_BYTES = 384 << 10
"""About as many bytes of text has an answer at most."""


class KeptSpan:
    """A span that is kept from its begin; a ``Recorder``."""

    __slots__ = (
        "attributes",
        "begun",
        "error",
        "events",
        "links",
        "name",
        "parent_id",
        "seconds",
        "span_id",
        "start_ns",
        "trace_id",
    )

    def __init__(
        self,
        *,
        trace_id: str,
        span_id: str,
        parent_id: str,
        name: str,
        attributes: Mapping[str, Attribute],
        links: Sequence[str],
        waited: float,
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.name = name[:MOST_TEXT]
        self.begun = time.monotonic() - waited
        self.start_ns = time.time_ns() - int(waited * 1e9)
        self.seconds = -1.0
        """How long it took; negative while it goes on."""
        self.error = ""
        self.links = tuple(links)
        self.attributes: dict[str, Attribute] = {}
        self.events: list[tuple[str, float, dict[str, Attribute]]] = []
        self.set(attributes)

    def event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Something happened within the span, now; past MOST_EVENTS it is not kept."""
        if len(self.events) < MOST_EVENTS:
            self.events.append((name[:MOST_TEXT], time.monotonic() - self.begun, _bounded({}, attributes)))

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """More attributes of the whole span, up to MOST_ATTRIBUTES."""
        _bounded(self.attributes, attributes)

    def end(self, error: BaseException | None) -> None:
        """The span is over."""
        self.seconds = time.monotonic() - self.begun
        if error is not None:
            self.error = _cut(f"{type(error).__name__}: {error}")

    def published(self) -> traces.Span:
        """As others are told of it."""
        return traces.Span(
            trace_id=self.trace_id,
            span_id=self.span_id,
            parent_id=self.parent_id,
            name=_plain(self.name),
            start_ns=self.start_ns,
            duration_us=-1 if self.seconds < 0 else round(self.seconds * 1e6),
            error=_plain(self.error),
            attributes=_pairs(self.attributes),
            events=tuple(
                traces.SpanEvent(name=name, after_us=round(after * 1e6), attributes=_pairs(attributes))
                for name, after, attributes in self.events
            ),
            links=self.links,
        )

    def has(self, attributes: traces.Attributes) -> bool:
        """Whether it has all of these."""
        return all(name in self.attributes and _text(self.attributes[name]) == value for name, value in attributes)


class SpanRing:
    """The latest spans, at most ``most`` (0: :data:`MOST_SPANS`)."""

    def __init__(self, most: int = 0) -> None:
        self._most = most or MOST_SPANS
        self._by_owner: dict[str, deque[KeptSpan]] = {}
        self._by_size: dict[int, dict[str, None]] = {}
        """Owners by how many spans each has, in the order in which they came to have them."""
        self._largest = 0
        self._count = 0

    def __len__(self) -> int:
        """Spans that are kept."""
        return self._count

    def put(self, owner: str, span: KeptSpan) -> None:
        """Keep a span that has begun; costs the same however many there are."""
        if self._count >= self._most:
            self._drop_one()
        spans = self._by_owner.setdefault(owner[:MOST_TEXT], deque())
        spans.append(span)
        self._moved(owner[:MOST_TEXT], len(spans) - 1, len(spans))
        self._count += 1

    def _drop_one(self) -> None:
        owner = next(iter(self._by_size[self._largest]))
        spans = self._by_owner[owner]
        spans.popleft()
        self._moved(owner, len(spans) + 1, len(spans))
        if not spans:
            del self._by_owner[owner]
        self._count -= 1

    def _moved(self, owner: str, before: int, now: int) -> None:
        if before:
            del self._by_size[before][owner]
            if not self._by_size[before]:
                del self._by_size[before]
        if now:
            self._by_size.setdefault(now, {})[owner] = None
        self._largest = max(self._largest, now) if self._largest in self._by_size else now

    def find(self, asked: traces.SpansRequest) -> traces.Spans:
        """The spans that are asked for, the oldest first. Of too many the latest."""
        found = sorted(
            (span for span in self._all() if self._is_asked_for(span, asked)), key=lambda span: span.start_ns
        )
        spans: list[traces.Span] = []
        room = MOST_ANSWERED_BYTES
        for kept in reversed(found[-traces.MAX_SPANS :]):
            span = kept.published()
            room -= _size(span)
            if room < 0:
                break
            spans.append(span)
        return traces.Spans(spans=tuple(reversed(spans)), left_out=len(found) - len(spans))

    def _all(self) -> Iterator[KeptSpan]:
        for spans in self._by_owner.values():
            yield from spans

    @staticmethod
    def _is_asked_for(span: KeptSpan, asked: traces.SpansRequest) -> bool:
        if asked.trace_id:
            return span.trace_id == asked.trace_id
        return bool(asked.attributes) and span.has(asked.attributes)


def _bounded(into: dict[str, Attribute], attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    for name, value in attributes.items():
        if len(into) >= MOST_ATTRIBUTES and name not in into:
            break
        into[name[:MOST_TEXT]] = _cut(value) if isinstance(value, str) else value
    return into


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def _text(value: Attribute) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _pairs(attributes: Mapping[str, Attribute]) -> traces.Attributes:
    # A lone surrogate is no text for the wire.
    return tuple((_plain(name), _plain(_text(value))) for name, value in attributes.items())


def _plain(text: str) -> str:
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _size(span: traces.Span) -> int:
    pairs = [*span.attributes, *(pair for event in span.events for pair in event.attributes)]
    texts = sum(len(name) + len(value) for name, value in pairs)
    return 200 + len(span.error) + 64 * len(span.links) + 32 * len(span.events) + 4 * texts
