"""What a CoreDNS server counted, out of its metrics page, and what that makes for all servers since last time.

Reads the Prometheus text format, only the families that are asked for. A counter that went back means that the server
began anew: what it counts now is all new. Refuses pages larger than any CoreDNS would give.

Source: prometheus.io/docs/instrumenting/exposition_formats (text 0.0.4); coredns/plugin/metrics, plugin/cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from proto.dns import DnsReport

K = TypeVar("K")
MAX_PAGE = 1 << 20
"""Largest page in characters."""
MAX_LINE = 4096
"""Longest line: what reading one takes grows faster than it."""


class Unreadable(ValueError):
    """A page that is no metrics page: names the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counters of one server since it started, or of all since last time."""

    queries: int = 0
    by_rcode: Mapping[str, int] = field(default_factory=dict)
    durations: Mapping[float, int] = field(default_factory=dict)
    """Upper bound in seconds (inf last) → answers that took at most so long (cumulative)."""
    hits: int = 0
    misses: int = 0


def parse(page: str) -> Counts:
    """Counters of one page; raises :class:`Unreadable`."""
    if len(page) > MAX_PAGE:
        raise Unreadable(f"page of {len(page)} characters, more than {MAX_PAGE}")
    queries = hits = misses = 0
    by_rcode: dict[str, int] = {}
    durations: dict[float, int] = {}
    for name, labels, value in _samples(page):
        if name == "coredns_dns_requests_total":
            queries += value
        elif name == "coredns_dns_responses_total":
            rcode = labels.get("rcode", "?")
            by_rcode[rcode] = by_rcode.get(rcode, 0) + value
        elif name == "coredns_dns_request_duration_seconds_bucket":
            bound = _bound(labels.get("le", ""))
            durations[bound] = durations.get(bound, 0) + value
        elif name == "coredns_cache_hits_total":
            hits += value
        elif name == "coredns_cache_misses_total":
            misses += value
    return Counts(queries=queries, by_rcode=by_rcode, durations=durations, hits=hits, misses=misses)


def since(before: Counts | None, now: Counts) -> Counts:
    """What was counted after ``before`` (``None``: the server was not known, nothing can be said of it yet)."""
    if before is None:
        return Counts()
    if now.queries < before.queries:
        return now
    return Counts(
        queries=now.queries - before.queries,
        by_rcode=_less(now.by_rcode, before.by_rcode),
        durations=_less(now.durations, before.durations),
        hits=max(0, now.hits - before.hits),
        misses=max(0, now.misses - before.misses),
    )


def together(counts: Iterable[Counts]) -> Counts:
    """Sum over servers."""
    queries = hits = misses = 0
    by_rcode: dict[str, int] = {}
    durations: dict[float, int] = {}
    for one in counts:
        queries, hits, misses = queries + one.queries, hits + one.hits, misses + one.misses
        for rcode, count in one.by_rcode.items():
            by_rcode[rcode] = by_rcode.get(rcode, 0) + count
        for bound, count in one.durations.items():
            durations[bound] = durations.get(bound, 0) + count
    return Counts(queries=queries, by_rcode=by_rcode, durations=durations, hits=hits, misses=misses)


def quantile(durations: Mapping[float, int], share: float) -> float:
    """Upper bound in seconds of the bucket that holds the quantile; 0 when nothing was counted, inf beyond the last."""
    bounds = sorted(durations)
    if not bounds or durations[bounds[-1]] <= 0:
        return 0.0
    rank = share * durations[bounds[-1]]
    return next(bound for bound in bounds if durations[bound] >= rank)


def report(counts: Counts, *, seconds: float, servers: int) -> DnsReport:
    """The message about all servers' counts of the last ``seconds``."""
    return DnsReport(
        seconds=round(seconds, 3),
        servers=servers,
        queries=counts.queries,
        answers_by_rcode=tuple(sorted((rcode, n) for rcode, n in counts.by_rcode.items() if n)),
        p50_ms=quantile(counts.durations, 0.5) * 1000,
        p99_ms=quantile(counts.durations, 0.99) * 1000,
        cache_hits=counts.hits,
        cache_misses=counts.misses,
    )


def _less(now: Mapping[K, int], before: Mapping[K, int]) -> dict[K, int]:
    return {key: max(0, count - before.get(key, 0)) for key, count in now.items()}


def _samples(page: str) -> Iterator[tuple[str, Mapping[str, str], int]]:
    """Name, labels and value of CoreDNS' samples; each line is read by itself, whatever its family's type."""
    for number, line in enumerate(page.splitlines(), 1):
        if not line.startswith("coredns_"):
            continue
        if len(line) > MAX_LINE:
            raise Unreadable(f"line {number}: {len(line)} characters, more than {MAX_LINE}")
        try:
            ((sample,),) = (family.samples for family in text_string_to_metric_families(line))
        except (ValueError, IndexError):
            raise Unreadable(f"line {number}: {line[:80]!r} is no sample") from None
        if sample.value < 0 or not math.isfinite(sample.value):
            raise Unreadable(f"line {number}: {line[:80]!r} counts {sample.value}")
        yield sample.name, sample.labels, int(sample.value)


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Unreadable(f"{text[:20]!r} is no bound of a bucket") from None
