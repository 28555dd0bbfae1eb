"""`airmesh doctor --watch`: findings of all agents' standing checks, a line as each comes and goes.

A finding is told when two questions in a row have found it (``kit.standing``), so that one late answer is no agent that
is silent. Of an agent that does not answer nothing is said to be gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from cli.reports.doctor import Diagnosis, Reported
from cli.reports.table import Cell, Tone, bad, dim, good
from cli.reports.text import ago
from kit.standing import Key, Standing, key_of
from proto.findings import Finding

FIRST = 2
"""Questions after which what is found is new."""


class WatchedFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One line: a finding that lasted when the watch began, came, or is gone."""

    state: Literal["lasts", "came", "gone"]
    at: int
    """Unix seconds of this machine."""
    agent: str
    """That reports it; empty: found by this command."""
    follows: str
    """Code of the cause that explains it; empty: it is one."""
    finding: Finding


class Watched:
    """``take`` each diagnosis."""

    def __init__(self) -> None:
        self._standing = Standing()
        self._of: dict[Key, tuple[str, str]] = {}
        """Agent and cause of each finding, as they were last."""
        self._asked = 0

    def take(self, report: Diagnosis) -> tuple[WatchedFinding, ...]:
        """What has changed since the last one, causes before what follows from them."""
        self._asked += 1
        found = {key_of(one.finding): (one, follows) for one, follows in _every(report)}
        self._of |= {key: (one.agent, follows) for key, (one, follows) in found.items()}
        findings = [one.finding for one, _ in found.values()]
        news = self._standing.look(
            findings,
            report.asked_at,
            unknown=lambda one: self._agent(one) not in ("", *report.agents),
        )
        state: Literal["lasts", "came"] = "lasts" if self._asked <= FIRST else "came"
        lines = [self._line("gone", one, report) for one in news.gone]
        lines += [self._line(state, one, report) for one in news.came]
        kept = {key_of(one) for one in self._standing.lasting} | found.keys()
        self._of = {key: value for key, value in self._of.items() if key in kept}
        return tuple(lines)

    def _agent(self, finding: Finding) -> str:
        return self._of[key_of(finding)][0]

    def _line(self, state: Literal["lasts", "came", "gone"], finding: Finding, report: Diagnosis) -> WatchedFinding:
        agent, follows = self._of[key_of(finding)]
        return WatchedFinding(state=state, at=report.asked_at, agent=agent, follows=follows, finding=finding)


def _every(report: Diagnosis) -> Iterator[tuple[Reported, str]]:
    """Each finding with the code of the cause that it follows from."""
    for cause in report.causes:
        yield Reported(agent=cause.agent, finding=cause.finding), ""
        for under in cause.consequences:
            yield under, cause.finding.code


def line(clock: str, one: WatchedFinding) -> tuple[Cell, ...]:
    """Time, what became of it, the finding, since when it lasts and after which change."""
    finding = one.finding
    state = good(one.state) if one.state == "gone" else bad(one.state)
    since = f"since {ago(max(0, one.at - finding.since))} ago" if finding.since else ""
    more = [
        since,
        f"after: {finding.change}" if finding.change else "",
        f"follows from {one.follows}" * bool(one.follows),
    ]
    return (
        dim(clock),
        state,
        Cell(finding.code, Tone.STRONG),
        Cell(finding.about),
        Cell(finding.cause),
        dim(", ".join(part for part in more if part)),
    )
