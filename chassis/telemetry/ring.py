"""The spans that an agent keeps in memory, for whoever asks what became of a change (``airmesh trace``).

A fixed number of slots. A span that goes on has one; once it has ended it is kept as MessagePack, in a slot for each
:data:`SLOT_BYTES` that it has begun. Each span has an *owner*, the namespace or the node that it is about. When the
ring is full, the owner that has the most slots loses its oldest span: who makes many, or large ones, loses its own
alone. Nothing here waits, allocates beyond the bounds, or reaches the bus.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from chassis.telemetry.spans import Attribute
from proto import traces

MOST_SPANS = 1024
"""Slots of one agent, and so the most spans."""
SLOT_BYTES = 768
"""Of MessagePack; an ADD with its events has 500."""
MOST_ATTRIBUTES = 16
MOST_EVENTS = 16
MOST_TEXT = 256
"""Characters of an attribute or an error; what is longer is cut and ends in an ellipsis."""
MOST_ANSWERED_BYTES = 384 << 10
"""About as many bytes of text has an answer at most."""

_Attributes = dict[str, Attribute]
_Packed = tuple[str, str, str, str, int, float, str, _Attributes, list[tuple[str, float, _Attributes]], tuple[str, ...]]
_NO_TEXT = ("true", "false", "nan", "inf")
"""Begin with a letter, and may be no text."""
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Packed)


class Contents:
    """All that is known of a span."""

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
        self, trace_id: str, span_id: str, parent_id: str, name: str, start_ns: int, links: tuple[str, ...]
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.name = name
        self.start_ns = start_ns
        self.begun = 0.0
        self.seconds = -1.0
        """How long it took; negative while it goes on."""
        self.error = ""
        self.attributes: _Attributes = {}
        self.events: list[tuple[str, float, _Attributes]] = []
        self.links = links

    def packed(self) -> bytes:
        """In the order of :data:`_Packed`."""
        values = (
            self.trace_id,
            self.span_id,
            self.parent_id,
            self.name,
            self.start_ns,
            self.seconds,
            self.error,
            self.attributes,
            self.events,
            self.links,
        )
        try:
            return _ENCODER.encode(values)
        except (UnicodeEncodeError, OverflowError):  # a lone surrogate, a number too large: as text
            events = [(_plain(name), after, dict(_pairs(attributes))) for name, after, attributes in self.events]
            attributes = dict(_pairs(self.attributes))
            return _ENCODER.encode(
                (*values[:3], _plain(self.name), *values[4:6], _plain(self.error), attributes, events, self.links)
            )

    @classmethod
    def of(cls, packed: bytes) -> Contents:
        """What :meth:`packed` made."""
        values = _DECODER.decode(packed)
        trace_id, span_id, parent_id, name, start_ns, seconds, error, attributes, events, links = values
        contents = cls(trace_id, span_id, parent_id, name, start_ns, links)
        contents.seconds, contents.error = seconds, error
        contents.attributes, contents.events = attributes, events
        return contents


class KeptSpan:
    """A span that is kept from its begin; a ``Recorder``."""

    __slots__ = ("_contents", "_packed", "slots")

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
        start_ns = time.time_ns() - int(waited * 1e9)
        contents = Contents(trace_id, span_id, parent_id, name[:MOST_TEXT], start_ns, tuple(links))
        contents.begun = time.monotonic() - waited
        self._contents: Contents | None = contents
        self._packed = b""
        self.slots = 1
        """Of the ring; 0 once it is out of it."""
        self.set(attributes)

    def event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Something happened within the span, now; past MOST_EVENTS, or after its end, it is not kept."""
        contents = self._contents
        if contents is not None and len(contents.events) < MOST_EVENTS:
            after = time.monotonic() - contents.begun
            contents.events.append((name[:MOST_TEXT], after, _bounded({}, attributes)))

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """More attributes of the whole span, up to MOST_ATTRIBUTES."""
        if self._contents is not None:
            _bounded(self._contents.attributes, attributes)

    def end(self, error: BaseException | None) -> None:
        """The span is over."""
        contents = self._contents
        if contents is None:
            return
        contents.seconds = time.monotonic() - contents.begun
        if error is not None:
            contents.error = _cut(f"{type(error).__name__}: {error}")
        self._packed, self._contents = contents.packed(), None

    @property
    def contents(self) -> Contents:
        """All that is known of it; of one that has ended made anew at each call."""
        return self._contents or Contents.of(self._packed)

    @property
    def size(self) -> int:
        """Bytes, once it has ended."""
        return len(self._packed)

    def published(self) -> traces.Span:
        """As others are told of it."""
        contents = self.contents
        return traces.Span(
            trace_id=contents.trace_id,
            span_id=contents.span_id,
            parent_id=contents.parent_id,
            name=_plain(contents.name),
            start_ns=contents.start_ns,
            duration_us=-1 if contents.seconds < 0 else round(contents.seconds * 1e6),
            error=_plain(contents.error),
            attributes=_pairs(contents.attributes),
            events=tuple(
                traces.SpanEvent(name=_plain(name), after_us=round(after * 1e6), attributes=_pairs(attributes))
                for name, after, attributes in contents.events
            ),
            links=contents.links,
        )

    def answers(self, asked: traces.SpansRequest) -> bool:
        """Whether it is asked for. Of one that has ended most is ruled out by its bytes."""
        if self._packed and not all(word in self._packed for word in _words(asked)):
            return False
        contents = self.contents
        if asked.trace_id:
            return contents.trace_id == asked.trace_id
        known = contents.attributes
        return bool(asked.attributes) and all(
            name in known and _text(known[name]) == value for name, value in asked.attributes
        )


class SpanRing:
    """The latest spans, in ``most`` slots (0: :data:`MOST_SPANS`)."""

    def __init__(self, most: int = 0) -> None:
        self._most = most or MOST_SPANS
        self._by_owner: dict[str, deque[KeptSpan]] = {}
        self._slots: dict[str, int] = {}
        """Of each owner."""
        self._by_size: dict[int, dict[str, None]] = {}
        """Owners by how many slots each has, in the order in which they came to have them."""
        self._largest = 0
        self._taken = 0

    def __len__(self) -> int:
        """Spans that are kept."""
        return sum(map(len, self._by_owner.values()))

    def put(self, owner: str, span: KeptSpan) -> None:
        """Keep a span that has begun; costs the same however many there are."""
        owner = owner[:MOST_TEXT]
        if self._taken >= self._most:
            self._drop_one()
        self._by_owner.setdefault(owner, deque()).append(span)
        self._add(owner, span.slots)

    def settle(self, owner: str, span: KeptSpan) -> None:
        """The span has ended: it has as many slots as it is large, unless it is out of the ring by now."""
        more = span.size // SLOT_BYTES + 1 - span.slots if span.slots else 0
        if more > 0:
            span.slots += more
            self._add(owner[:MOST_TEXT], more)
            while self._taken > self._most:
                self._drop_one()

    def _drop_one(self) -> None:
        owner = next(iter(self._by_size[self._largest]))
        spans = self._by_owner[owner]
        span = spans.popleft()
        if not spans:
            del self._by_owner[owner]
        self._add(owner, -span.slots)
        span.slots = 0

    def _add(self, owner: str, slots: int) -> None:
        before = self._slots.pop(owner, 0)
        now = before + slots
        self._taken += slots
        if before:
            del self._by_size[before][owner]
            if not self._by_size[before]:
                del self._by_size[before]
        if now:
            self._slots[owner] = now
            self._by_size.setdefault(now, {})[owner] = None
        self._largest = max(self._largest, now)
        while self._largest and self._largest not in self._by_size:  # as often as the span had slots
            self._largest -= 1

    def find(self, asked: traces.SpansRequest) -> traces.Spans:
        """The spans that are asked for, the oldest first. Of too many the latest."""
        found = sorted(
            (span.published() for span in self._all() if span.answers(asked)), key=lambda span: span.start_ns
        )
        spans: list[traces.Span] = []
        room = MOST_ANSWERED_BYTES
        for span in reversed(found[-traces.MAX_SPANS :]):
            room -= _size(span)
            if room < 0:
                break
            spans.append(span)
        return traces.Spans(spans=tuple(reversed(spans)), left_out=len(found) - len(spans))

    def _all(self) -> Iterator[KeptSpan]:
        for spans in self._by_owner.values():
            yield from spans


def _words(asked: traces.SpansRequest) -> Iterator[bytes]:
    """What stands in the bytes of each span that is asked for; a number, or yes and no, has other bytes."""
    if asked.trace_id:
        yield asked.trace_id.encode()
        return
    for name, value in asked.attributes:
        yield name.encode()
        if value not in _NO_TEXT and value[:1].isalpha() and value.isascii():
            yield value.encode()


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
