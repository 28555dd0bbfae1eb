"""Findings of a standing check: which come, which are gone and since when each lasts, by what look after look finds.

A finding comes when two looks in a row have found it, and is gone when two in a row have not: what is seen once, in the
middle of a change of the cluster, is no fault. A look that could not check says nothing, and leaves a finding as it
was. Two findings are the same by code, by what they are about and by node. At most
:data:`proto.findings.MAX_FINDINGS` are kept; a new one waits for room. Times are Unix seconds, given by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from proto.findings import MAX_FINDINGS, Finding

Key = tuple[str, str, str]
"""Code, what it is about, node."""


class State(Enum):
    """What is known of a finding that some look has found."""

    SEEN_ONCE = "seen once"
    LASTS = "lasts"
    MISSED_ONCE = "missed once"


_NEXT: Mapping[tuple[State | None, bool], State | None] = {
    (None, True): State.SEEN_ONCE,
    (State.SEEN_ONCE, True): State.LASTS,
    (State.SEEN_ONCE, False): None,
    (State.LASTS, True): State.LASTS,
    (State.LASTS, False): State.MISSED_ONCE,
    (State.MISSED_ONCE, True): State.LASTS,
    (State.MISSED_ONCE, False): None,
}
"""By state (None: never seen, or gone) and whether this look has found it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What one look has changed."""

    came: tuple[Finding, ...] = ()
    gone: tuple[Finding, ...] = ()
    """As they were found last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    state: State
    finding: Finding


def key_of(finding: Finding) -> Key:
    """What makes two findings the same."""
    return finding.code, finding.about, finding.node


class Standing:
    """The findings of one agent's standing check, or of all agents' together."""

    def __init__(self) -> None:
        self._kept: dict[Key, _Kept] = {}

    @property
    def lasting(self) -> tuple[Finding, ...]:
        """Findings that have come and are not gone, with since when and after which change."""
        return tuple(one.finding for one in self._kept.values() if one.state is not State.SEEN_ONCE)

    @property
    def settled(self) -> bool:
        """Whether another look is not needed to know what has come and what is gone."""
        return all(one.state is State.LASTS for one in self._kept.values())

    def look(
        self,
        found: Iterable[Finding],
        now: int,
        *,
        unknown: Callable[[Finding], bool],
        change: Callable[[Finding], str] = lambda _: "",
    ) -> News:
        """Takes in what a look has found.

        ``unknown``: whether this look could not say if a finding, as it was found last, is still there. ``change``: the
        change that came just before one that is seen for the first time; empty: none is known.
        """
        present = {key_of(one): one for one in found}
        came, gone = list[Finding](), list[Finding]()
        for key, kept in tuple(self._kept.items()):
            one = present.pop(key, None)
            if one is None and unknown(kept.finding):
                continue
            state = _NEXT[kept.state, one is not None]
            if state is None:
                del self._kept[key]
                if kept.state is State.MISSED_ONCE:
                    gone.append(kept.finding)
                continue
            finding = kept.finding if one is None else _dated(one, kept.finding.since, kept.finding.change)
            self._kept[key] = _Kept(state=state, finding=finding)
            if kept.state is State.SEEN_ONCE:
                came.append(finding)
        for key, one in present.items():
            if len(self._kept) < MAX_FINDINGS:
                self._kept[key] = _Kept(state=State.SEEN_ONCE, finding=_dated(one, now, change(one)))
        return News(came=tuple(came), gone=tuple(gone))

    def dated(self, finding: Finding) -> Finding:
        """The same finding with what is known here of since when it lasts."""
        kept = self._kept.get(key_of(finding))
        return finding if kept is None else _dated(finding, kept.finding.since, kept.finding.change)


def _dated(finding: Finding, since: int, change: str) -> Finding:
    """What the check itself says of these comes first."""
    return msgspec.structs.replace(
        finding, since=finding.since or since, change=finding.change if finding.since else finding.change or change
    )
