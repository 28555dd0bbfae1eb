"""`airmesh trace`: the spans of one change as a tree, from what all agents keep of them.

Which service of which node a span is of, the key says that its answer came with. A span that is linked with one of
another trace (several changes were taken in together) has what hangs on that one below it, too: so each change is shown
down to the kernels that it changed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime

import msgspec

from cli.reports.bgp import prefix_named
from cli.reports.table import Cell, Table, bad, dim
from proto.codec import decode_segment
from proto.subjects import role_of_user
from proto.traces import Span, Spans

_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_LINK = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
MOST_LINKED = 8
"""Other traces that are asked for because a span is linked with one of theirs."""
_DEPTH = 64
_NAMED = (
    "k8s.object.kind",
    "k8s.object.name",
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.node.name",
    "messaging.system",
    "messaging.operation.name",
    "messaging.destination.name",
)
"""Attributes that say what the tree's head, the columns and the names of spans say already."""


NAMESPACED = ("pod", "policy", "service")
"""What a name in a namespace can be of, by what a person calls it."""
GRAMMAR = (
    f"[{' | '.join(NAMESPACED)}] NAMESPACE/NAME, node NODE, route PREFIX [NODE], dns, or a trace id of 32 hex digits"
)
"""What `airmesh trace` takes."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked about: a trace by its id, or the last change of something."""

    trace_id: str = ""
    kind: str = ""
    """Of :data:`NAMESPACED`, node, route, or dns; empty: whichever there is of this name."""
    namespace: str = ""
    name: str = ""
    """Of a route its prefix."""
    node: str = ""
    """Where the route is; empty: wherever it changed last."""

    @property
    def text(self) -> str:
        """As a person wrote it."""
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return self.trace_id or f"{self.kind} {name} {self.node}".strip()


class HappenedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was decided or happened within a span."""

    name: str
    after_ms: float
    """Milliseconds since the trace began, by the clock of the span's agent."""
    attributes: dict[str, str]


class TracedSpan(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work of one agent."""

    trace_id: str
    span_id: str
    depth: int
    """0 for the first of the trace, 1 for what hangs on it, and so on."""
    service: str
    node: str
    """Empty for a service that is not of a node."""
    name: str
    after_ms: float
    """Milliseconds since the trace began."""
    milliseconds: float | None
    """How long it took; null while it goes on."""
    error: str
    attributes: dict[str, str]
    events: tuple[HappenedEvent, ...]


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """The story of one change."""

    target: str
    trace_id: str
    begun: str
    """RFC 3339, UTC; empty when no span is known."""
    milliseconds: float
    """From the begin of the first span to the end of the last."""
    spans: tuple[TracedSpan, ...]
    """Depth first, in the order of their begin: a span stands above those that hang on it."""
    notes: tuple[str, ...]
    """What is missing of it, a sentence each."""

    @property
    def well(self) -> bool:
        """There is something to show, and nothing failed."""
        return bool(self.spans) and not any(span.error for span in self.spans)


def target(*words: str) -> Target | None:
    """What these arguments name by :data:`GRAMMAR`; None for anything else."""
    match words:
        case (text,) if _TRACE_ID.fullmatch(text):
            return Target(trace_id=text)
        case ("dns",):
            return Target(kind="dns")
        case ("node", name) if name and "/" not in name:
            return Target(kind="node", name=name)
        case ("route", text, *nodes) if len(nodes) <= 1 and (prefix := prefix_named(text)) is not None:
            return Target(kind="route", name=str(prefix), node="".join(nodes))
        case (text,):
            return _object("", text)
        case (kind, text) if kind in NAMESPACED:
            return _object(kind, text)
    return None


def _object(kind: str, text: str) -> Target | None:
    namespace, _, name = text.partition("/")
    return Target(kind=kind, namespace=namespace, name=name) if namespace and name and "/" not in name else None


class _Heard(msgspec.Struct, frozen=True):
    """A span with whose key it came."""

    span: Span
    service: str
    node: str


def linked(answers: Iterable[tuple[str, Spans]]) -> tuple[str, ...]:
    """Ids of the other traces that spans are linked with, MOST_LINKED at most."""
    found = (_LINK.fullmatch(link) for _, spans in answers for span in spans.spans for link in span.links)
    return tuple(dict.fromkeys(match[1] for match in found if match is not None))[:MOST_LINKED]


def latest(answers: Iterable[tuple[str, Spans]], service: str) -> str:
    """Id of the trace that the latest span of these is of, as agents of this service tell it; empty when none does."""
    spans = [heard.span for heard in _heard(answers) if heard.service == service]
    return max(spans, key=lambda span: span.start_ns).trace_id if spans else ""


def trace(asked: Target, trace_id: str, answers: Collection[tuple[str, Spans]]) -> Trace:
    """The tree of one trace; ``answers``: users and what agents with their keys keep of it and of those linked with."""
    heard = sorted(set(_heard(answers)), key=lambda one: (one.span.start_ns, one.span.span_id))
    below: dict[tuple[str, str], list[_Heard]] = defaultdict(list)
    for one in heard:
        below[one.span.trace_id, one.span.parent_id].append(one)
    known = {(one.span.trace_id, one.span.span_id) for one in heard}
    mine = [one for one in heard if one.span.trace_id == trace_id]
    heads = [one for one in mine if (trace_id, one.span.parent_id) not in known]
    shown = list(_walk(heads, below, set()))
    start = min((one.span.start_ns for one, _ in shown), default=0)
    end = max((one.span.start_ns + max(one.span.duration_us, 0) * 1000 for one, _ in shown), default=0)
    begun = datetime.fromtimestamp(start / 1e9, UTC).isoformat(timespec="milliseconds") if shown else ""
    return Trace(
        target=asked.text,
        trace_id=trace_id,
        begun=begun.replace("+00:00", "Z"),
        milliseconds=_ms(end - start),
        spans=tuple(_traced(one, depth, start) for one, depth in shown),
        notes=tuple(_notes(heads, answers)),
    )


def _heard(answers: Iterable[tuple[str, Spans]]) -> Iterator[_Heard]:
    for user, spans in answers:
        try:
            role, segment = role_of_user(user)
            node = decode_segment(segment) if segment else ""
        except ValueError:
            continue
        for span in spans.spans:
            yield _Heard(span, role.name, node)


def _walk(
    heads: Iterable[_Heard], below: Mapping[tuple[str, str], list[_Heard]], seen: set[tuple[str, str]], depth: int = 0
) -> Iterator[tuple[_Heard, int]]:
    for one in heads:
        yield one, depth
        span = one.span
        links = (match.groups() for match in map(_LINK.fullmatch, span.links) if match is not None)
        for trace_id, span_id in ((span.trace_id, span.span_id), *links):
            if (trace_id, span_id) not in seen and depth < _DEPTH:  # who speaks of itself as its parent hangs nothing
                seen.add((trace_id, span_id))
                yield from _walk(below.get((trace_id, span_id), ()), below, seen, depth + 1)


def _traced(one: _Heard, depth: int, start: int) -> TracedSpan:
    span = one.span
    return TracedSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        depth=depth,
        service=one.service,
        node=one.node,
        name=span.name,
        after_ms=_ms(span.start_ns - start),
        milliseconds=None if span.duration_us < 0 else span.duration_us / 1000,
        error=span.error,
        attributes=dict(span.attributes),
        events=tuple(
            HappenedEvent(
                name=event.name,
                after_ms=round(_ms(span.start_ns - start) + event.after_us / 1000, 3),
                attributes=dict(event.attributes),
            )
            for event in span.events
        ),
    )


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)


def _notes(heads: Collection[_Heard], answers: Collection[tuple[str, Spans]]) -> Iterator[str]:
    if any(one.span.parent_id for one in heads):
        yield "a part is missing: an agent was restarted since, or keeps it no longer"
    left_out = sum(spans.left_out for _, spans in answers)
    if left_out:
        yield f"{left_out} more spans were left out of answers, which have a bound"


def tables(report: Trace) -> tuple[Table, ...]:
    """One line for each span and each event of one, in the order of the tree."""
    rows = tuple(row for number, span in enumerate(report.spans) for row in _rows(span, _branch(report.spans, number)))
    title = f"{report.target}  trace {report.trace_id}" if report.target != report.trace_id else report.trace_id
    if report.begun:
        title += f"  begun {report.begun}  took {_took(report.milliseconds)}"
    return (
        Table(
            title=title,
            columns=("after", "took", "agent", "what"),
            rows=rows,
            note="; ".join(report.notes),
            empty="no agent keeps a span of it any more; its id still stands in their logs",
        ),
    )


def _rows(span: TracedSpan, branch: tuple[str, str]) -> Iterator[tuple[str | Cell, ...]]:
    who = f"{span.service} {span.node}".strip()
    took = "goes on" if span.milliseconds is None else _took(span.milliseconds)
    words = [span.name, *_pairs({key: value for key, value in span.attributes.items() if key not in _NAMED})]
    what = branch[0] + "  ".join(words)
    yield _took(span.after_ms), took, who, bad(f"{what}  {span.error}") if span.error else what
    for event in span.events:
        yield (
            dim(_took(event.after_ms)),
            "",
            "",
            dim(f"{branch[1]}· {event.name}  {'  '.join(_pairs(event.attributes))}"),
        )


def _branch(spans: tuple[TracedSpan, ...], number: int) -> tuple[str, str]:
    """What is drawn left of a span, and of what belongs to it."""
    depth = min(spans[number].depth, _DEPTH)
    later = spans[number + 1 :]
    drawn = ""
    for level in range(1, depth + 1):
        after = next((span.depth for span in later if span.depth <= level), -1)
        if level < depth:
            drawn += "│  " if after == level else "   "
        else:
            last = after != level
            below = "│  " if later and later[0].depth > depth else "   "
            return f"{drawn}{'└─ ' if last else '├─ '}", f"{drawn}{'   ' if last else '│  '}{below}"
    return "", "│  " if later and later[0].depth > depth else "   "


def _pairs(attributes: Mapping[str, str]) -> list[str]:
    return [f"{key.removeprefix('airmesh.')}={value}" for key, value in attributes.items()]


def _took(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s" if abs(milliseconds) >= 10_000 else f"{milliseconds:.1f} ms"
