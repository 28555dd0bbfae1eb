"""The diagnosis of a mesh: findings of all agents joined, each cause first, with what follows from it beneath.

Pure. What agents say is grouped by precedence: a finding that shares what it is about with one of a lower precedence is
a consequence of that one. Two findings are made here, of what no agent can say of itself: an agent that does not
answer, and clocks that are apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from statistics import median
from typing import Literal

import msgspec

from cli.reports import affinity, policy
from cli.reports.paths import Path, concerns, names_of
from cli.reports.paths import tables as path_tables
from cli.reports.table import Cell, Table, Tone, bad, dim, good
from cli.reports.text import ago
from kit.standing import key_of
from proto.codec import Malformed, decode_segment
from proto.findings import (
    AGENT,
    NETWORK,
    DoctorRequest,
    Expected,
    Finding,
    Findings,
    Fix,
    Observed,
    node_name,
    object_name,
)
from proto.subjects import role_of_user

GRAMMAR = "dns, node NODE, service NAMESPACE/NAME, policy NAMESPACE/NAME, SOURCE TARGET, or nothing for all"
_OBJECT = re.compile(r"[^/]+/[^/]+")
APART_MS = 2_000
"""Milliseconds that a clock may be off the median of all: less than any lease, and more than a slow answer."""


class Answered(msgspec.Struct, frozen=True):
    """One agent's answer, and when the question left and the answer came: milliseconds of this machine."""

    user: str
    findings: Findings
    asked_ms: int
    came_ms: int


class Reported(msgspec.Struct, frozen=True):
    """A finding and the agent that reports it; empty: found by this command."""

    agent: str
    finding: Finding


class Cause(msgspec.Struct, frozen=True):
    """A finding that no other explains, and those that it explains."""

    agent: str
    finding: Finding
    consequences: tuple[Reported, ...] = ()


class NotLooked(msgspec.Struct, frozen=True):
    """A check that an agent could not make."""

    agent: str
    check: str
    why: str


class Diagnosis(msgspec.Struct, frozen=True):
    """What `airmesh doctor` says."""

    well: bool
    """Nothing was found, and no path of a connection ends before its time."""
    asked_at: int
    """Unix seconds of this machine."""
    asked: DoctorRequest
    causes: tuple[Cause, ...]
    agents: tuple[str, ...]
    """Users that answered."""
    checked: tuple[str, ...]
    """Codes that were looked for."""
    unchecked: tuple[NotLooked, ...] = ()
    left_out: int = 0
    paths: tuple[Path, ...] = ()
    """Of a connection: each way of its packets, by family and backend."""


Outcome = Literal["verified", "undone", "failed", "left"]
"""Of a fix: its finding is gone; it did not help and was undone; it could not be run; nor could it be undone."""


class Applied(msgspec.Struct, frozen=True):
    """What became of a fix."""

    code: str
    about: str
    node: str
    command: str
    outcome: Outcome
    why: str = ""


class Repaired(msgspec.Struct, frozen=True):
    """What `airmesh doctor --fix` says: the fixes that were applied, and what is found after them."""

    applied: tuple[Applied, ...]
    after: Diagnosis


def question(*words: str) -> DoctorRequest | None:
    """What these arguments name by :data:`GRAMMAR`; None for anything else. Raises Usage of a connection."""
    match words:
        case ():
            return DoctorRequest()
        case ("dns",):
            return DoctorRequest(kind="dns")
        case ("node", name) if name and "/" not in name:
            return DoctorRequest(kind="node", name=name)
        case ("service" | "policy" as kind, name) if _OBJECT.fullmatch(name):
            return DoctorRequest(kind=kind, name=name)
        case (source, target):
            asked = policy.question(source, target)
            return DoctorRequest(
                kind="connection",
                source=asked.source,
                destination=asked.destination,
                port=asked.port,
                protocol=asked.protocol,
            )
        case _:
            return None


def diagnosis(asked: DoctorRequest, answers: Sequence[Answered], expected: Collection[str], asked_at: int) -> Diagnosis:
    """``expected``: users that should answer."""
    answered = by_user(answers)
    agents = {of_user(user) for user in answered}
    found = [
        Reported(agent=one.user, finding=finding) for one in answered.values() for finding in one.findings.findings
    ]
    seen = [(of_user(one.user)[1], clients) for one in answered.values() for clients in one.findings.affinities]
    found += [Reported(agent="", finding=one) for one in affinity.check(seen)]
    found += [Reported(agent="", finding=one) for one in silent(expected, agents)]
    found += [Reported(agent="", finding=one) for one in clocks_apart(list(answered.values()))]
    return Diagnosis(
        well=not found,
        asked_at=asked_at,
        asked=asked,
        causes=causes(found),
        agents=tuple(sorted(answered)),
        checked=tuple(sorted({code for one in answered.values() for code in one.findings.checked})),
        unchecked=tuple(
            NotLooked(agent=user, check=missed.check, why=missed.why)
            for user in sorted(answered)
            for missed in answered[user].findings.unchecked
        ),
        left_out=sum(one.findings.left_out for one in answered.values()),
    )


def by_user(answers: Iterable[Answered]) -> dict[str, Answered]:
    """What copies of one service answer, as one: a finding counts once, and what one could look at is looked at."""
    found: dict[str, Answered] = {}
    for one in answers:
        before = found.get(one.user)
        found[one.user] = one if before is None else _both(before, one)
    return found


def _both(one: Answered, other: Answered) -> Answered:
    mine, others = one.findings, other.findings
    checked = dict.fromkeys((*mine.checked, *others.checked))
    missed = dict.fromkeys((*mine.unchecked, *others.unchecked))
    both = msgspec.structs.replace(
        mine,
        findings=tuple({key_of(each): each for each in (*others.findings, *mine.findings)}.values()),
        checked=tuple(checked),
        unchecked=tuple(each for each in missed if not checked.keys() >= set(each.check.split(", "))),
        left_out=max(mine.left_out, others.left_out),
        affinities=mine.affinities or others.affinities,
    )
    return msgspec.structs.replace(one, findings=both)


def of_connection(report: Diagnosis, followed: Sequence[Path]) -> Diagnosis:
    """A diagnosis of one connection: without findings about other nodes, pods and Services, with the paths of its
    packets.
    """
    names, target = names_of(followed), report.asked.destination
    if "/" in target:
        names |= {object_name("Service", *target.split("/"))}
    kept = tuple(cause for cause in report.causes if concerns(cause.finding, names))
    return msgspec.structs.replace(
        report,
        causes=kept,
        paths=tuple(one.shown() for one in followed),
        well=not kept and all(one.well for one in followed),
    )


def of_user(user: str) -> tuple[str, str]:
    """Service and node of a user; an unknown name stands for itself."""
    try:
        role, segment = role_of_user(user)
        return role.name, decode_segment(segment) if segment else ""
    except (ValueError, Malformed):
        return user, ""


def causes(found: Iterable[Reported]) -> tuple[Cause, ...]:
    """Each finding under the first of a lower precedence that explains it."""
    ordered = sorted(found, key=lambda one: (one.finding.precedence, one.finding.code, one.finding.about, one.agent))
    roots: list[tuple[Reported, list[Reported]]] = []
    for one in ordered:
        under = next((beneath for root, beneath in roots if explains(root.finding, one.finding)), None)
        if under is None:
            roots.append((one, []))
        else:
            under.append(one)
    return tuple(Cause(agent=root.agent, finding=root.finding, consequences=tuple(beneath)) for root, beneath in roots)


def explains(cause: Finding, other: Finding) -> bool:
    """Whether ``other`` follows from ``cause``, which comes before it and shares what it is about; or is the same, seen
    from the other end of a pair: what lies between two nodes is one cause.
    """
    if cause.about.startswith("Pair ") and (cause.code, cause.about) == (other.code, other.about):
        return cause.precedence >= NETWORK
    if cause.precedence >= other.precedence:
        return False
    reached = {cause.about, *cause.affects}
    nodes = {name for name in reached if name.startswith("Node ")}
    words = other.about.split(" ")
    ends = {node_name(end) for end in words[1:]} if words[0] in ("Pair", "Node") else set()
    return other.about in reached or bool(ends & nodes)


def silent(expected: Iterable[str], agents: set[tuple[str, str]]) -> Iterable[Finding]:
    """A finding for each agent that should have answered and did not."""
    for user in sorted(expected):
        service, node = of_user(user)
        if (service, node) not in agents:
            where = f"of node {node}" if node else "of the cluster"
            yield Finding(
                code="agent-silent",
                fault="nodes-apart",
                about=node_name(node) if node else f"Agent {service}",
                node=node,
                cause=f"the agent {service} {where} does not answer: what it left in the kernel goes on, unchanged",
                expected=Expected(text=f"an answer of {service} {where}", object=node_name(node) if node else ""),
                observed=(Observed(where="agent", text=f"user {user} answered nothing before the others were done"),),
                fixes=(
                    Fix(
                        command=_restart(service, node),
                        risk="none for packets: programs, maps and routes stay while the agent starts again",
                        on="cluster",
                    ),
                ),
                precedence=AGENT,
            )


def _restart(service: str, node: str) -> str:
    of_node = f" --field-selector spec.nodeName={node}" if node else ""
    return f"kubectl -n airmesh-system delete pod -l app.kubernetes.io/name={service}{of_node}"


def clocks_apart(answers: Sequence[Answered]) -> Iterable[Finding]:
    """A finding for each node whose clock is off the median of all agents'."""
    offsets = {one.user: one.findings.at_ms - (one.asked_ms + one.came_ms) // 2 for one in answers}
    if len(offsets) < 3:
        return
    middle = median(offsets.values())
    seen: set[str] = set()
    for one in sorted(answers, key=lambda one: one.user):
        service, node = of_user(one.user)
        apart = offsets[one.user] - middle
        if abs(apart) <= APART_MS + (one.came_ms - one.asked_ms) // 2 or (node or service) in seen:
            continue
        seen.add(node or service)
        where = f"node {node}" if node else f"the machine of {service}"
        side = "ahead of" if apart > 0 else "behind"
        yield Finding(
            code="clocks-apart",
            fault="nodes-apart",
            about=node_name(node) if node else f"Agent {service}",
            node=node,
            cause=f"the clock of {where} is {abs(apart) / 1000:.1f} s {side} the others",
            expected=Expected(text=f"at most {APART_MS / 1000:.0f} s off the median of {len(offsets)} agents"),
            observed=(Observed(where="clock", text=f"{one.user} says {one.findings.at_ms} ms since 1970"),),
            fixes=(
                Fix(
                    command="chronyc makestep || systemctl restart systemd-timesyncd",
                    risk="the clock jumps: leases and certificates are judged by the new time",
                ),
            ),
            precedence=AGENT,
        )


def tables(report: Diagnosis) -> tuple[Table, ...]:
    """A table of causes, then one for each with its evidence; last what could not be looked at."""
    rows = tuple(
        (
            Cell(cause.finding.code, Tone.BAD),
            cause.finding.about,
            cause.finding.node or dim("–"),
            cause.finding.cause,
            str(len(cause.consequences)) if cause.consequences else dim("–"),
        )
        for cause in report.causes
    )
    note = f"{len(report.agents)} agents looked for {len(report.checked)} faults"
    columns = ("what", "about", "node", "cause", "follow from it")
    shown = [Table(title=f"Causes ({len(rows)})", columns=columns, rows=rows, note=note, empty="nothing is wrong")]
    shown += [_evidence(cause, report.asked_at) for cause in report.causes]
    shown += path_tables(report.paths)
    if report.unchecked:
        unlooked = tuple((one.agent, one.check, Cell(one.why, Tone.WARN)) for one in report.unchecked)
        shown.append(Table(title="Not looked at", columns=("agent", "check", "why"), rows=unlooked))
    return tuple(shown)


def repaired_tables(report: Repaired) -> tuple[Table, ...]:
    """What was applied, then what is found still."""
    rows = tuple(
        (one.code, one.node, one.command, good("verified") if one.outcome == "verified" else bad(one.outcome), one.why)
        for one in report.applied
    )
    columns = ("what", "node", "fix", "outcome", "why")
    applied = Table(title="Fixes", columns=columns, rows=rows, empty="none may be applied by a program")
    return applied, *tables(report.after)


def _beneath(cause: Finding, other: Finding) -> tuple[str, Cell]:
    if other.code == cause.code:
        return f"seen by {other.node}", dim("; ".join(seen.text for seen in other.observed))
    return "follows", dim(f"{other.code}: {other.cause}")


def _evidence(cause: Cause, asked_at: int) -> Table:
    one = cause.finding
    asks = f" ({' '.join(part for part in (one.expected.object, one.expected.revision) if part)})"
    rows: list[tuple[str | Cell, ...]] = [("expected", one.expected.text + (asks if asks != " ()" else ""))]
    rows += [(f"found: {seen.where}", bad(seen.text)) for seen in one.observed]
    if one.since:
        change = f", after {one.change}" if one.change else ""
        rows.append(("since", f"{ago(max(0, asked_at - one.since))} ago{change}"))
    for fix in one.fixes:
        rows.append((f"fix on the {fix.on}", Cell(fix.command, Tone.STRONG)))
        rows.append(("  its risk", fix.risk))
    rows += [_beneath(one, under.finding) for under in cause.consequences]
    return Table(title=f"{one.code}: {one.about}", columns=("", ""), rows=tuple(rows))
