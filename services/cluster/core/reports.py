"""Events about objects that cannot be used or are not honoured whole: one on the object, one on the bus.

Promises that the same sentence about the same object is told once an hour and not more; an Event's name follows from
object, sentence and hour, so that two copies, or a restart, do not tell it twice; that no namespace is told of more
than :data:`MOST` objects of a kind, and none waits for another's.

Source: k8s.io/api core/v1 Event (kept an hour by the API server).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from proto.objects import Kind
from services.cluster.core.diff import Name
from services.cluster.core.parse import NAMES

HOUR = 3600.0
MOST = 32
"""Objects of one kind and namespace that are told of at a time: a thousand pods of one workload say the same."""
MAX_MESSAGE = 1024
FAULT = "AirmeshFault"
"""Reason of an Event on an object that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One sentence about one object."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    sentence: str
    reason: str = FAULT
    """CamelCase, of the Event."""

    @property
    def fault(self) -> str:
        """The sentence up to its remedy."""
        return self.sentence.rpartition("; ")[0] or self.sentence

    @property
    def remedy(self) -> str:
        """What to do."""
        return self.sentence.rpartition("; ")[2]


def bounded(reports: Iterable[Report]) -> dict[Report, None]:
    """The first :data:`MOST` of each kind and namespace, in turns: of all namespaces the first, then their second."""
    counts: Counter[tuple[str, str]] = Counter()
    taken: list[tuple[int, Report]] = []
    for report in reports:
        whose = report.kind.kind, report.namespace
        if report.namespace and counts[whose] >= MOST:
            continue
        counts[whose] += 1
        taken.append((counts[whose], report))
    return dict.fromkeys(report for _, report in sorted(taken, key=lambda entry: entry[0]))


def first(names: Iterable[Name]) -> Iterator[Name]:
    """The first :data:`MOST` of each namespace, and all that have none: no sentence is made of one that is not told."""
    counts: Counter[str] = Counter()
    for name in names:
        counts[name[0]] += 1
        if not name[0] or counts[name[0]] <= MOST:
            yield name


def rfc3339(at: float) -> str:
    """A moment in Unix seconds as RFC 3339."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def event_path(report: Report) -> str:
    """Where its Event is posted; those about cluster-wide objects live in ``default``."""
    return f"/api/v1/namespaces/{report.namespace or 'default'}/events"


def event_body(report: Report, *, now: float, stamp: str, instance: str) -> Mapping[str, Any]:
    """A core/v1 Event. ``now`` in Unix seconds, ``stamp`` the same as RFC 3339."""
    hour = int(now // HOUR)
    digest = blake2b(f"{report.uid} {report.sentence} {hour}".encode(), digest_size=8).hexdigest()
    kind = NAMES[report.kind.type]
    subject = {"apiVersion": report.kind.api_version, "kind": kind, "name": report.name, "uid": report.uid}
    if report.namespace:
        subject["namespace"] = report.namespace
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{report.name[:200].rstrip('-.')}.{digest}", "namespace": report.namespace or "default"},
        "involvedObject": subject,
        "type": "Warning",
        "reason": report.reason,
        "action": "Read",
        "message": report.sentence[:MAX_MESSAGE],
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
        "source": {"component": "airmesh-cluster"},
        "reportingComponent": "airmesh.io/cluster",
        "reportingInstance": instance[:128],
    }
