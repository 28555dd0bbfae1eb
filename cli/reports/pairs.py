"""`airmesh routes`: by which model packets go from node to node; `airmesh routes explain`: why, and what was measured.

Each end of a pair says what its own kernel does, so a pair has two rows of each family; more where pools of a family
ask for different models, since each of them has routes of its own. An answer counts under the node whose key it came
with, whatever it says of itself (``cli.reports.micro`` knows agents likewise).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

import msgspec

from cli.reports.table import Cell, Table, Tone, bad, dim, good
from cli.reports.text import ago
from proto.codec import Malformed, decode_segment
from proto.net import Address
from proto.pairs import MAX_PAIRS, GivenUp, Measurement, Pairs, PairState, State
from proto.subjects import role_of_user

A = TypeVar("A", bound=msgspec.Struct)
MOST_NAMED = 8
"""Pairs without a way that `airmesh status` names; others are counted."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a pair of nodes, for packets of pods of one family."""

    node: str
    """Whose kernel it is."""
    peer: str
    family: int
    asked: tuple[str, ...] = ()
    model: str = ""
    pending: str = ""
    via: Address | None = None
    device: str = ""
    mtu: int = 0
    since: int = 0
    """Unix seconds; 0: from before its agent started."""
    state: State
    why: str = ""
    given_up: tuple[GivenUp, ...] = ()
    measured: tuple[Measurement, ...] = ()


class End(msgspec.Struct, frozen=True, kw_only=True):
    """What one end says of the way to the other."""

    node: str
    answered: bool
    pairs: tuple[Pair, ...] = ()


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh routes explain`."""

    well: bool
    """Both ends answered, and each has a way to the other in every family that it knows of."""
    asked_at: int
    """Unix seconds of this machine."""
    ends: tuple[End, ...]
    notes: tuple[str, ...] = ()
    """What is true of both ends together, a sentence each."""


def by_node(answers: Iterable[tuple[str, A]], service: str = "routing") -> dict[str, A]:
    """Answers by the node whose agent's key they came with; of an agent that answers twice the last."""
    found: dict[str, A] = {}
    for user, answer in answers:
        try:
            role, segment = role_of_user(user)
            node = decode_segment(segment) if segment else ""
        except (ValueError, Malformed):
            continue
        if role.name == service and node:
            found[node] = answer
    return found


def pairs_of(node: str, answer: Pairs) -> tuple[Pair, ...]:
    """The pairs that a node tells."""
    return tuple(_pair(node, reported) for reported in islice(answer.pairs, MAX_PAIRS))


def _pair(node: str, reported: PairState) -> Pair:
    fields = {name: getattr(reported, name) for name in reported.__struct_fields__}
    return Pair(node=node, **fields)


def listed(answers: Mapping[str, Pairs], of_node: str = "") -> tuple[Pair, ...]:
    """All pairs, by node, other node and family; of one node those that it is an end of."""
    found = [
        pair
        for node in sorted(answers)
        for pair in pairs_of(node, answers[node])
        if not of_node or of_node in (pair.node, pair.peer)
    ]
    return tuple(sorted(found, key=lambda pair: (pair.node, pair.peer, pair.family)))


def without_a_way(answers: Mapping[str, Pairs]) -> tuple[str, ...]:
    """What of the answers is not well, a sentence each."""
    found = [pair for pair in listed(answers) if pair.state == "none"]
    reported = [f"node {pair.node} has no way to IPv{pair.family} pods of {pair.peer}: {pair.why}" for pair in found]
    more = len(reported) - MOST_NAMED
    return (*reported[:MOST_NAMED], *((f"{more} more pairs have no way: airmesh routes",) if more > 0 else ()))


def explained(nodes: tuple[str, str], answers: Mapping[str, Pairs], asked_at: int) -> Explained:
    """What both ends of a pair say; ``answers`` with what was measured."""
    ends = []
    for node, peer in (nodes, nodes[::-1]):
        answer = answers.get(node)
        reported = pairs_of(node, answer) if answer is not None else ()
        ends.append(
            End(node=node, answered=answer is not None, pairs=tuple(pair for pair in reported if pair.peer == peer))
        )
    well = all(end.answered and end.pairs and all(pair.model for pair in end.pairs) for end in ends)
    return Explained(well=well, asked_at=asked_at, ends=tuple(ends), notes=tuple(_together(*ends)))


def _together(one: End, other: End) -> Iterable[str]:
    theirs = {(pair.family, pair.asked): pair for pair in other.pairs}
    for pair in one.pairs:
        back = theirs.get((pair.family, pair.asked))
        if back is not None and pair.model and back.model and pair.model != back.model:
            yield (
                f"IPv{pair.family}: {one.node} sends by {pair.model}, {other.node} by {back.model}; each takes what "
                "the other can receive, and a change moves one end after the other"
            )


def table(pairs: tuple[Pair, ...], asked_at: int, silent: tuple[str, ...], left_out: int) -> Table:
    """All pairs, one direction a row."""
    notes = []
    if silent:
        notes.append(f"no routing agent answers for: {', '.join(silent)}")
    if left_out:
        notes.append(f"{left_out} pairs found no room in their agents' answers: name one with --node")
    return Table(
        title=f"Pairs ({len(pairs)})",
        columns=("from", "to", "family", "model", "next hop", "device", "mtu", "since", "state"),
        rows=tuple(
            (
                Cell(pair.node, Tone.STRONG),
                Cell(pair.peer, Tone.STRONG),
                f"IPv{pair.family}",
                *_way(pair),
                _since(pair, asked_at),
                _state(pair),
            )
            for pair in pairs
        ),
        note="; ".join(notes),
        empty="no routing agent tells of any",
    )


def explained_tables(report: Explained) -> tuple[Table, ...]:
    """A table for each end, then what was given up and measured at both."""
    shown = [
        _end(end, end.node, peer.node, report.asked_at)
        for end, peer in zip(report.ends, report.ends[::-1], strict=True)
    ]
    pairs = [pair for end in report.ends for pair in end.pairs]
    given_up = tuple(
        (*_named(pair), Cell(one.model, Tone.WARN), one.why, _when(one.at, report.asked_at))
        for pair in pairs
        for one in pair.given_up
    )
    if given_up:
        shown.append(Table(title="Given up", columns=("from", "to", "family", "model", "why", "when"), rows=given_up))
    measured = tuple(
        (
            *_named(pair),
            one.model,
            one.what,
            good("answered") if one.answered else bad(one.why or "no answer"),
            str(one.bytes) if one.bytes else dim("–"),
            f"{one.round_trip_us / 1000:.2f} ms" if one.round_trip_us else dim("–"),
            _when(one.at, report.asked_at),
        )
        for pair in pairs
        for one in pair.measured
    )
    columns = ("from", "to", "family", "model", "what", "answer", "bytes", "round trip", "when")
    shown.append(Table(title="Measured", columns=columns, rows=measured, empty="nothing yet"))
    if report.notes:
        rows = tuple((Cell(note, Tone.WARN),) for note in report.notes)
        shown.append(Table(title="Both ends", columns=("what",), rows=rows))
    return tuple(shown)


def _end(end: End, node: str, peer: str, asked_at: int) -> Table:
    why = (
        "it has no pods of that node to reach" if end.answered else "its routing agent does not answer: airmesh status"
    )
    return Table(
        title=f"From {node} to pods of {peer}",
        columns=("family", "asked for", "model", "next hop", "device", "mtu", "since", "state", "why"),
        rows=tuple(
            (
                f"IPv{pair.family}",
                ", ".join(pair.asked),
                *_way(pair),
                _since(pair, asked_at),
                _state(pair),
                pair.why,
            )
            for pair in end.pairs
        ),
        empty=why,
    )


def _named(pair: Pair) -> tuple[str | Cell, ...]:
    return Cell(pair.node, Tone.STRONG), Cell(pair.peer, Tone.STRONG), f"IPv{pair.family}"


def _way(pair: Pair) -> tuple[str | Cell, ...]:
    """Model, next hop, device, MTU."""
    return (
        pair.model or bad("none"),
        str(pair.via) if pair.via is not None else dim("–"),
        pair.device or dim("–"),
        str(pair.mtu) if pair.mtu else dim("–"),
    )


def _state(pair: Pair) -> Cell:
    if pair.state == "taken":
        return good("taken")
    if pair.state == "none":
        return bad("no way")
    return Cell(f"pending: {pair.pending}" if pair.state == "pending" else "given up", Tone.WARN)


def _since(pair: Pair, asked_at: int) -> str | Cell:
    if not pair.model:
        return dim("–")
    return f"{ago(max(0, asked_at - pair.since))} ago" if pair.since else dim("before its agent")


def _when(at: int, asked_at: int) -> str | Cell:
    """Time of day by the node's own clock, and how long ago by ours."""
    if not at:
        return dim("not yet")
    try:
        clock = datetime.fromtimestamp(at, UTC).strftime("%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return dim("at no time")
    return f"{clock}, {ago(max(0, asked_at - at))} ago"
