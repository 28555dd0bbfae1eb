"""A change of the Corefile from its proposal to its end: written, read by every server, judged, and kept or taken back.

Every text that is written over another goes this way, one at a time, whoever it follows from. The servers that run are
the proof: CoreDNS loads a new text beside the old one and goes on with the old one when it refuses it (plugin/reload),
which it counts. So a text is taken back when a server refuses it, when fewer servers answer than before, or when
failures or P99 are worse than in the minute before. A text that was taken back is not written again until settings or
a person ask for another one.

Owns the table of states (:data:`STEPS`), and what is a sign of what. Pure: time (Unix seconds) is an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from proto.dns import (
    ChangeState,
    DnsChange,
    DnsMeasured,
    DnsOutcome,
    DnsProposal,
    DnsServerText,
    DnsTuning,
    Settings,
    digest_of,
)
from services.dns.core.decision import ByHand, Chosen

JUDGED_SECONDS = 60.0
"""How long a text is measured once every server has read it."""
OVERDUE_SECONDS = 300.0
"""A kubelet needs up to two minutes to show a pod a new ConfigMap, CoreDNS 15 s to read it and 5 s to switch."""
SILENT_SECONDS = 30.0
"""A server that is gone for so long was not only moved to another node."""
REFUSED_SECONDS = 86400.0
"""What was taken back is not proposed again for so long."""
PAST = 16
"""Changes that ended and are remembered."""
SETTINGS, EDIT = "settings", "edit"
"""Names of changes that nobody proposed: of our text by other settings of the service, and of a person's text.
How names are answered by a person's text is the person's to judge."""
_MORE_FAILURES = 0.02
_CLEARLY = 0.2
_FEW = 20
_SLOWER_MS = 10.0


class Sign(Enum):
    """What is seen of a change."""

    WRITTEN = "written"
    EMPTY = "it changes nothing"
    READ = "every server has read it"
    REFUSED = "a server refused it"
    SILENT = "servers do not answer any more"
    WORSE = "names are answered worse"
    GOOD = "names are answered as well as before"
    OVERDUE = "nothing was seen of it"
    OVERTAKEN = "another text was written"
    REVERTED = "a person took it back"


STEPS: Mapping[tuple[ChangeState, Sign], ChangeState] = {
    ("proposed", Sign.WRITTEN): "applied",
    ("proposed", Sign.EMPTY): "kept",
    ("proposed", Sign.REVERTED): "taken-back",
    ("applied", Sign.READ): "judged",
    ("applied", Sign.REFUSED): "taken-back",
    ("applied", Sign.SILENT): "taken-back",
    ("applied", Sign.OVERDUE): "kept",
    ("applied", Sign.OVERTAKEN): "overtaken",
    ("applied", Sign.REVERTED): "taken-back",
    ("judged", Sign.REFUSED): "taken-back",
    ("judged", Sign.SILENT): "taken-back",
    ("judged", Sign.WORSE): "taken-back",
    ("judged", Sign.GOOD): "kept",
    ("judged", Sign.OVERDUE): "kept",
    ("judged", Sign.OVERTAKEN): "overtaken",
    ("judged", Sign.REVERTED): "taken-back",
    ("kept", Sign.REVERTED): "taken-back",
}
"""State and sign → the next state; any other pair changes nothing."""
UNDER_WAY: frozenset[ChangeState] = frozenset({"proposed", "applied", "judged"})
_WRITTEN: frozenset[ChangeState] = frozenset({"applied", "judged"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is seen of the servers now."""

    text: str
    """Digest of the present Corefile."""
    servers: Mapping[str, DnsServerText]
    """Those that told their metrics."""
    silent_for: float
    """Seconds for which fewer servers have answered than before the change."""
    measured: DnsMeasured
    """Since every server has read the text."""


def is_under_way(change: DnsChange | None) -> bool:
    """Whether another change has to wait."""
    return change is not None and change.state in UNDER_WAY


def sign(change: DnsChange, seen: Seen, *, now: float) -> tuple[Sign, str] | None:
    """What is seen of a change that was written, in words; None: nothing new."""
    if change.state not in _WRITTEN:
        return None
    if seen.text not in (change.after, digest_of(change.before)):
        return Sign.OVERTAKEN, Sign.OVERTAKEN.value
    before = {one.server: one for one in change.servers}
    for one in seen.servers.values():
        known = before.get(one.server)
        if one.failed > (known.failed if known is not None else 0):
            return Sign.REFUSED, f"the server {one.server} refused it (coredns_reload_failed_total)"
    if seen.silent_for >= SILENT_SECONDS:
        answering = len(seen.servers)
        return Sign.SILENT, f"{answering} of {len(before)} servers answer since it was written"
    waited = now - change.since
    if change.state == "applied":
        if len(seen.servers) >= max(1, len(before)) and all(
            _has_read(one, before.get(one.server)) for one in seen.servers.values()
        ):
            return Sign.READ, f"all {len(seen.servers)} servers have read it"
    else:
        worse = judge(change.measured, seen.measured, early=waited < JUDGED_SECONDS)
        if worse is not None and change.name != EDIT:
            return Sign.WORSE, worse
        if waited >= JUDGED_SECONDS and seen.measured.queries + seen.measured.asked > 0:
            return Sign.GOOD, _compared(change.measured, seen.measured)
    if waited >= OVERDUE_SECONDS:
        return Sign.OVERDUE, "it is not proved: no server was seen to read it, or none tells its metrics"
    return None


def _has_read(now: DnsServerText, before: DnsServerText | None) -> bool:
    """A server that is new since has read nothing else; the others show another digest than before."""
    return before is None or now.version != before.version


def judge(before: DnsMeasured, after: DnsMeasured, *, early: bool) -> str | None:
    """What is worse than before, in words; ``early``: only what is clearly so counts."""
    failed, fails = _failures(before), _failures(after)
    if after.queries + after.asked >= _FEW and fails > failed + (_CLEARLY if early else _MORE_FAILURES):
        return f"{fails:.1%} of queries fail, {failed:.1%} before it"
    slower = after.p99_ms > 2 * before.p99_ms and after.p99_ms > before.p99_ms + _SLOWER_MS
    if not early and slower and min(before.queries, after.queries) >= 5 * _FEW:
        return f"P99 is {after.p99_ms:.1f} ms, {before.p99_ms:.1f} ms before it"
    return None


def _failures(measured: DnsMeasured) -> float:
    return (measured.failures + measured.unanswered) / max(1, measured.queries + measured.asked)


def _compared(before: DnsMeasured, after: DnsMeasured) -> str:
    return (
        f"failures {_failures(before):.1%} before, {_failures(after):.1%} after; "
        f"P99 {before.p99_ms:.1f} ms before, {after.p99_ms:.1f} ms after"
    )


def step(tuning: DnsTuning, seen: Sign, outcome: str, *, now: float) -> DnsTuning:
    """The latest change's next state, remembered when it ends there; the settings before it when it is taken back."""
    change = tuning.change
    state = STEPS.get((change.state, seen)) if change is not None else None
    if change is None or state is None:
        return tuning
    changed = msgspec.structs.replace(change, state=state, since=now, outcome=outcome)
    settings = change.settings_before if state == "taken-back" else tuning.settings
    past = tuning.past
    if state not in UNDER_WAY:
        past = (DnsOutcome(name=change.name, state=state, at=now, outcome=outcome), *past)[:PAST]
    return msgspec.structs.replace(tuning, change=changed, settings=settings, past=past)


def proposed(tuning: DnsTuning, proposal: DnsProposal, *, now: float) -> DnsTuning:
    """The proposal is the latest change, and its settings are in force from the next decision on."""
    settings = tuple(sorted({**dict(tuning.settings), **dict(proposal.settings)}.items()))
    return _changed(tuning, proposal.name, settings, proposal.evidence, now)


def removed(tuning: DnsTuning, name: str, settings: Collection[str], *, now: float) -> DnsTuning:
    """As :func:`proposed`, without settings that were applied before."""
    kept = tuple((key, value) for key, value in tuning.settings if key not in settings)
    return _changed(tuning, f"without {name}", kept, "a person asked for it", now)


def _changed(tuning: DnsTuning, name: str, settings: Settings, evidence: str, now: float) -> DnsTuning:
    change = DnsChange(
        name=name,
        state="proposed",
        settings=settings,
        settings_before=tuning.settings,
        since=now,
        evidence=evidence,
    )
    return msgspec.structs.replace(tuning, change=change, settings=settings)


def begun(
    tuning: DnsTuning,
    chosen: Chosen,
    measured: DnsMeasured,
    servers: Iterable[DnsServerText],
    *,
    ours: str | None = None,
    now: float,
) -> DnsTuning:
    """The change that a decision begins; the same tuning where it begins none. ``ours``: the text decided last."""
    change = tuning.change
    if chosen.of is None or chosen.text == chosen.of:
        return step(tuning, Sign.EMPTY, Sign.EMPTY.value, now=now)
    of, after = digest_of(chosen.of), digest_of(chosen.text)
    if change is not None and change.after:
        if change.state in _WRITTEN and (digest_of(change.before), change.after) == (of, after):
            return tuning
        if change.state == "taken-back" and (change.after, digest_of(change.before)) == (of, after):
            return tuning
    tuning = step(tuning, Sign.OVERTAKEN, Sign.OVERTAKEN.value, now=now)
    if change is None or change.state != "proposed":
        change = DnsChange(
            name=SETTINGS if chosen.of == ours else EDIT,
            state="proposed",
            settings=tuning.settings,
            settings_before=tuning.settings,
            evidence="the settings of dns are other ones" if chosen.of == ours else "a person wrote the text",
        )
    change = msgspec.structs.replace(change, before=chosen.of, after=after, measured=measured, servers=tuple(servers))
    return step(msgspec.structs.replace(tuning, change=change), Sign.WRITTEN, "it is written", now=now)


def refused(tuning: DnsTuning, *, now: float) -> frozenset[str]:
    """Names that are not proposed: what was taken back of late."""
    return frozenset(one.name for one in tuning.past if one.state == "taken-back" and now - one.at < REFUSED_SECONDS)


def held(chosen: Chosen, change: DnsChange | None) -> Chosen:
    """The text that there should be while a change is under way, and after one was taken back."""
    if change is None or chosen.of is None:
        return chosen
    present = digest_of(chosen.of)
    if change.state in _WRITTEN and present == change.after:
        return Chosen(chosen.of, chosen.of, chosen.by_hand)
    if change.state != "taken-back" or not change.after:
        return chosen
    if present == change.after:
        return Chosen(change.before, chosen.of, _taken_back(change))
    if digest_of(chosen.text) == change.after:
        return Chosen(chosen.of, chosen.of, _taken_back(change))
    return chosen


def _taken_back(change: DnsChange) -> ByHand:
    return ByHand(
        "CorefileTakenBack",
        f"the Corefile that airmesh wrote ({change.name}) was taken back: {change.outcome}",
        "correct what it was made of (the ConfigMap, the settings of dns); it is not tried again until then",
    )
