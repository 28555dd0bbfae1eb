"""`airmesh events`: the published events, one line each.

Only subjects of the published contract (`proto.events`) are shown; a subject of a later release is passed over.
"""

from __future__ import annotations

import msgspec

from cli.reports.table import Cell, Tone, dim
from cli.reports.text import identity
from proto.codec import Malformed, decode_segment, encode_segment
from proto.dns import DnsUpstream
from proto.events import EVENTS_BY_SUBJECT
from proto.findings import Finding
from proto.subjects import EVENTS, OBJECT_FAULT, node_of


def kind_of(subject: str) -> type[msgspec.Struct] | None:
    """Type of the body told on ``subject``; None for a subject this release does not know."""
    of_each_node = f"{subject.rpartition('.')[0]}.*"
    return EVENTS_BY_SUBJECT.get(subject) or EVENTS_BY_SUBJECT.get(of_each_node)


def check_speaker(subject: str, event: msgspec.Struct) -> None:
    """Raises Malformed for what a node tells in the name of another: the subject says whose key it was sent with."""
    node, named = node_of(subject), getattr(event, "node", "")
    if node is not None and named and encode_segment(named) != node:
        raise Malformed(f"node {decode_segment(node)} tells it in the name of {named[:64]!r}")


class PrintedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event as `--output json` prints it: subject, trace context, and the published body."""

    subject: str
    traceparent: str
    event: msgspec.Struct


def line(clock: str, printed: PrintedEvent) -> tuple[Cell, ...]:
    """Time, what, and the fields of the body."""
    what = printed.subject.removeprefix(f"{EVENTS}.")
    tone = Tone.WARN if {"fault", OBJECT_FAULT} & set(what.split(".")) else Tone.STRONG
    fields = "  ".join(
        f"{name}={_field(name, getattr(printed.event, name))}" for name in printed.event.__struct_fields__
    )
    return dim(clock), Cell(what, tone), Cell(fields)


def _field(name: str, value: object) -> str:
    return identity(value) if name == "identity" and isinstance(value, int) else _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, Finding):
        return f"{value.code} {value.about}: {value.cause}"
    if isinstance(value, DnsUpstream):
        return f"{value.address}: {value.answers}, P99 {value.p99_ms:.1f} ms"
    if isinstance(value, tuple):
        return "[" + " ".join(_plain(part) for part in value) + "]"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
