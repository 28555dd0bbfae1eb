"""Words that are no names here: pictures that the field has a word for, and where one of them is right all the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """``words`` are no part of a name; ``say`` is the field's word."""

    words: tuple[str, ...]
    """Parts of names, in lower case; one with ``_`` is several parts in a row."""
    say: str
    rooms: tuple[str, ...] = ("",)
    """Beginnings of paths: where the word was a picture. Elsewhere it means what it says."""
    sentences: bool = True
    """Refused in names of tests, too, which are sentences; not so where it is ordinary English there."""


RETIRED = (
    Retired(words=("anew",), say="again"),
    Retired(words=("around", "surroundings"), say="ipcache, or what the thing is", sentences=False),
    Retired(words=("bell", "bells"), say="signal"),
    Retired(
        words=("belief", "beliefs", "believe", "believed", "doubt", "doubted", "doubts"), say="accepted, rejection"
    ),
    Retired(words=("broom",), say="collection"),
    Retired(words=("condemned", "doomed"), say="deleting, expired"),
    Retired(words=("courtesy",), say="priority"),
    Retired(words=("deserted",), say="orphaned"),
    Retired(words=("door", "doors"), say="port forward, listener"),
    Retired(words=("front", "fronts"), say="frontend"),
    Retired(words=("gate",), say="admission wait, recovery barrier"),
    Retired(words=("hamlet",), say="minicluster"),
    Retired(words=("here", "whereabouts"), say="node context, locality", sentences=False),
    Retired(words=("keeper", "keeping"), say="reconciler, claims"),
    Retired(words=("life",), say="incarnation, lifecycle", sentences=False),
    Retired(
        words=("line", "lines"), say="rule", rooms=("services/dataplane/core/policy/", "services/dataplane/policy/")
    ),
    Retired(words=("place", "placed", "places"), say="hook, slot, index", sentences=False),
    Retired(words=("rank", "ranks"), say="precedence"),
    Retired(words=("steward",), say="controller"),
    Retired(words=("take_back", "taking_back"), say="reclaim"),
    Retired(words=("tell", "teller", "telling", "tells", "told"), say="report"),
    Retired(words=("turn", "turns"), say="compile loop, fair queue, pacing, attempt", sentences=False),
)

EXEMPT = {
    "services/dns/core/samples.py": {"rank": "of a quantile, as Prometheus calls it"},
}
"""By file: names of it that are right, and why."""
