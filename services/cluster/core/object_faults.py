"""What other services say of Kubernetes objects, gathered into one Event for each object and reason.

Owns the bounds: a speaker (a service, or one node's agent, known by the key it spoke with) has a rate and a number of
series it may open; all series together have a number. What is over is dropped and counted, so a stolen key costs the
API server about a write a second, and others nothing. A series is written when it is new, and again when more was
heard, but not within :data:`EVERY`. The speaker is told from the subject, never from the message. Pure: time is an
argument.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any

from proto.events import ObjectFault
from proto.objects import KINDS, Kind
from services.cluster.core.allowances import Allowances, Speaker
from services.cluster.core.parse import NAMES

EVERY = 30.0
"""Seconds between two writes of a series."""
BURST = 100
"""Faults that a speaker may tell at once."""
PER_SECOND = 1.0
"""Faults a second that a speaker may tell for long."""
MAX_SERIES = 4096
MAX_OPENED = 512
"""Series that one speaker may have opened."""
FORGET = 3600.0
"""Seconds after which a series that nobody speaks of is forgotten: as long as the API server keeps its Event."""
MAX_NAMED = 3
"""Speakers that a note names; others are counted."""
MAX_FAULT, MAX_REMEDY = 600, 250

_REASON = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")
_KINDS: Mapping[tuple[str, str], Kind] = {
    ("" if kind.group == "core" else kind.group, NAMES[kind.type]): kind for kind in KINDS
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What a series is about."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    reason: str


@dataclass(slots=True)
class Series:
    """Everything said of one object for one reason."""

    subject: Subject
    opened_by: Speaker
    first: float
    fault: str = ""
    remedy: str = ""
    last: float = 0.0
    count: int = 0
    speakers: dict[Speaker, None] = field(default_factory=dict)
    written: float = -EVERY
    """When it was last written."""
    unwritten: bool = True


def kind_named(fault: ObjectFault) -> Kind | None:
    """The kind that a fault names, None for one that is not mirrored."""
    return _KINDS.get((fault.group, fault.kind))


class Board:
    """All series that live, and what each speaker may still say."""

    def __init__(self) -> None:
        self.series: dict[Subject, Series] = {}
        self._allowances = Allowances(burst=BURST, per_second=PER_SECOND, most=MAX_SERIES)

    def allow(self, speaker: Speaker, now: float) -> bool:
        """Takes one from the speaker's allowance; False when nothing is left. Called first, for whatever it says."""
        return self._allowances.take(speaker, now)

    def hear(self, speaker: Speaker, subject: Subject, fault: ObjectFault, now: float) -> str:
        """Adds it to its series; returns why not, empty when it was taken."""
        if not _REASON.fullmatch(subject.reason):
            return "malformed"
        series = self.series.get(subject)
        if series is None:
            self._forget(now)
            opened = Counter(one.opened_by for one in self.series.values())[speaker]
            if opened >= MAX_OPENED or len(self.series) >= MAX_SERIES:
                return "too-many"
            series = self.series[subject] = Series(subject, speaker, now)
        series.fault, series.remedy = plain(fault.fault, MAX_FAULT), plain(fault.remedy, MAX_REMEDY)
        series.last, series.unwritten = now, True
        series.count += 1
        series.speakers[speaker] = None
        return ""

    def due(self, now: float) -> Iterator[Series]:
        """What is to be written: each speaker's first, then each one's second, so that none waits for a crowd."""
        given: Counter[Speaker] = Counter()
        found: list[tuple[int, float, Series]] = []
        for one in self.series.values():
            if one.unwritten and now - one.written >= EVERY:
                given[one.opened_by] += 1
                found.append((given[one.opened_by], one.last, one))
        yield from (one for _, _, one in sorted(found, key=lambda entry: entry[:2]))

    def next_due(self, now: float) -> float | None:
        """Seconds until something is to be written."""
        waits = [max(0.0, one.written + EVERY - now) for one in self.series.values() if one.unwritten]
        return min(waits, default=None)

    def _forget(self, now: float) -> None:
        for subject in [key for key, one in self.series.items() if now - one.last > FORGET]:
            del self.series[subject]


def event_path(series: Series) -> str:
    """Where its Event lives; those about cluster-wide objects live in ``default``."""
    return f"/api/v1/namespaces/{series.subject.namespace or 'default'}/events/{event_name(series)}"


def event_name(series: Series) -> str:
    """The same for the same object and reason, also after a restart."""
    subject = series.subject
    digest = blake2b(f"{subject.uid} {subject.reason}".encode(), digest_size=8).hexdigest()
    return f"{subject.name[:200]}.{digest}"


def event_body(series: Series, *, first: str, last: str, instance: str) -> Mapping[str, Any]:
    """A core/v1 Event for server-side apply. ``first`` and ``last`` are RFC 3339."""
    subject = series.subject
    involved = {
        "apiVersion": subject.kind.api_version,
        "kind": NAMES[subject.kind.type],
        "name": subject.name,
        "uid": subject.uid,
    }
    if subject.namespace:
        involved["namespace"] = subject.namespace
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event_name(series), "namespace": subject.namespace or "default"},
        "involvedObject": involved,
        "type": "Warning",
        "reason": subject.reason,
        "action": "Serve",
        "message": f"{series.fault}; {series.remedy} (says {named(series.speakers)})",
        "firstTimestamp": first,
        "lastTimestamp": last,
        "count": series.count,
        "source": {"component": f"airmesh-{series.opened_by[0]}"},
        "reportingComponent": "airmesh.io/cluster",
        "reportingInstance": instance[:128],
    }


def named(speakers: Collection[Speaker]) -> str:
    """Who says it, as a person reads it: the first :data:`MAX_NAMED`, and how many others."""
    first = [f"{service} on {node}" if node else service for service, node in islice(speakers, MAX_NAMED)]
    others = len(speakers) - len(first)
    return ", ".join(first) + (f" and {others} more" if others else "")


def plain(text: str, most: int) -> str:
    """One line of printable text."""
    line = "".join(char if char.isprintable() else " " for char in text[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"
