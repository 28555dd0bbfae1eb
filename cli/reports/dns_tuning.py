"""`airmesh dns plan` and `airmesh dns watch`: what is tuned, what is proposed and why, and how the latest change goes.

All of it is the value `dns.tuning`; a line of `watch` is printed when the state of a change or a report is another.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from cli.reports import dns_ndots
from cli.reports.dns_ndots import NdotsProposal
from cli.reports.table import Cell, Table, Tone, dim
from proto.dns import ChangeState, DnsChange, DnsReport, DnsTuning

_TONES: dict[ChangeState, Tone] = {"kept": Tone.GOOD, "taken-back": Tone.BAD}


class TuningState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh dns plan`; None where `dns` has not said anything yet."""

    tuning: DnsTuning | None
    report: DnsReport | None
    ndots: tuple[NdotsProposal, ...] = ()
    """Empty in what `watch` prints."""


def tables(state: TuningState) -> tuple[Table, ...]:
    """Proposals, the latest change, and those that ended."""
    tuning = state.tuning
    if tuning is None:
        return (
            Table(title="Tuning", columns=(), rows=(), empty="dns has measured nothing yet"),
            dns_ndots.table(state.ndots),
        )
    shown = [_in_force(tuning), _proposals(tuning), dns_ndots.table(state.ndots)]
    if tuning.change is not None:
        shown.append(_latest(tuning.change))
    if tuning.past:
        rows = tuple((_when(one.at), one.name, _state(one.state), one.outcome) for one in tuning.past)
        shown.append(Table(title="Ended", columns=("at", "change", "it is", "because"), rows=rows))
    return tuple(shown)


def _in_force(tuning: DnsTuning) -> Table:
    settings = ", ".join(f"{name} {value}" for name, value in tuning.settings) or dim("none")
    return Table(title="Tuning", columns=("mode", "tuned settings"), rows=((tuning.mode, settings),))


def _proposals(tuning: DnsTuning) -> Table:
    empty = "dns only observes" if tuning.mode == "observe" else "nothing measured asks for a change"
    return Table(
        title="Proposals",
        columns=("name", "sets", "evidence", "expected"),
        rows=tuple(
            (one.name, ", ".join(f"{name} {value}" for name, value in one.settings), one.evidence, one.effect)
            for one in tuning.proposals
        ),
        empty=empty,
    )


def _latest(change: DnsChange) -> Table:
    return Table(
        title="Latest change",
        columns=("change", "it is", "since", "because", "made for"),
        rows=((change.name, _state(change.state), _when(change.since), change.outcome or "–", change.evidence),),
    )


def _state(state: ChangeState) -> Cell:
    words = {"judged": "being judged", "taken-back": "taken back"}
    return Cell(words.get(state, state), _TONES.get(state, Tone.PLAIN))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def line(state: TuningState) -> str:
    """What `watch` prints: the last report, and the latest change."""
    report, tuning = state.report, state.tuning
    change = tuning.change if tuning is not None else None
    said = []
    if report is None:
        said.append("no report yet")
    else:
        failed = sum(count for code, count in report.answers_by_rcode if code == "SERVFAIL")
        rate = report.queries / max(report.seconds, 0.001)
        said.append(
            f"{report.servers} servers  {rate:.0f} queries/s  P99 {report.p99_ms:.1f} ms  "
            f"{failed} SERVFAIL  {report.unanswered} of {report.asked} checks unanswered"
        )
    if change is not None:
        said.append(f"{change.name}: {_state(change.state).text}, {change.outcome or change.evidence}")
    return "  |  ".join(said)
