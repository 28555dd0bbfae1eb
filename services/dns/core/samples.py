"""What a CoreDNS server counted, out of its metrics page, and what that makes for all servers since last time.

Reads the Prometheus text format, only the families that are asked for. A counter that went back means that the server
began anew: what it counts now is all new. Refuses pages larger than any CoreDNS would give.

Source: prometheus.io/docs/instrumenting/exposition_formats (text 0.0.4); coredns/plugin/{metrics,cache,reload},
plugin/pkg/proxy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from proto.dns import DnsReport, DnsUpstream

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
    evictions: int = 0
    fullest: int = 0
    """Entries of the fullest cache now."""
    upstreams: Mapping[str, Mapping[float, int]] = field(default_factory=dict)
    """Address and port of an upstream → its answers by duration, as in :attr:`durations`."""
    denied: int = 0
    """Upstreams' answers of NXDOMAIN."""
    unhealthy: int = 0
    """Checks of upstreams that failed."""
    refused: int = 0
    """Corefiles that were not loaded; the old one goes on."""
    version: str = ""
    """Digest of the Corefile read last; empty until there was a second one, and of all servers together."""


def parse(page: str) -> Counts:
    """Counters of one page; raises :class:`Unreadable`."""
    if len(page) > MAX_PAGE:
        raise Unreadable(f"page of {len(page)} characters, more than {MAX_PAGE}")
    found = _Sums()
    for name, labels, value in _samples(page):
        found.add(name, labels, value)
    return Counts(
        **found.sums,
        by_rcode=found.by_rcode,
        durations=found.durations,
        upstreams=found.upstreams,
        version=found.version,
    )


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
        evictions=max(0, now.evictions - before.evictions),
        fullest=now.fullest,
        upstreams={to: _less(durations, before.upstreams.get(to, {})) for to, durations in now.upstreams.items()},
        denied=max(0, now.denied - before.denied),
        unhealthy=max(0, now.unhealthy - before.unhealthy),
        refused=max(0, now.refused - before.refused),
    )


def together(counts: Iterable[Counts]) -> Counts:
    """Sum over servers, or over times; of the fullest cache the largest."""
    all_of = list(counts)
    addresses = {to for one in all_of for to in one.upstreams}
    return Counts(
        queries=sum(one.queries for one in all_of),
        by_rcode=_sum(one.by_rcode for one in all_of),
        durations=_sum(one.durations for one in all_of),
        hits=sum(one.hits for one in all_of),
        misses=sum(one.misses for one in all_of),
        evictions=sum(one.evictions for one in all_of),
        fullest=max((one.fullest for one in all_of), default=0),
        upstreams={to: _sum(one.upstreams.get(to, {}) for one in all_of) for to in sorted(addresses)},
        denied=sum(one.denied for one in all_of),
        unhealthy=sum(one.unhealthy for one in all_of),
        refused=sum(one.refused for one in all_of),
    )


def quantile(durations: Mapping[float, int], share: float) -> float:
    """Upper bound in seconds of the bucket that holds the quantile; 0 when nothing was counted, inf beyond the last."""
    bounds = sorted(durations)
    if not bounds or durations[bounds[-1]] <= 0:
        return 0.0
    rank = share * durations[bounds[-1]]
    return next(bound for bound in bounds if durations[bound] >= rank)


def report(counts: Counts, *, seconds: float, servers: int, asked: int = 0, unanswered: int = 0) -> DnsReport:
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
        cache_evictions=counts.evictions,
        asked=asked,
        unanswered=unanswered,
        upstreams=tuple(sorted(_upstreams(counts), key=lambda one: (-one.answers, one.address))),
        upstream_checks_failed=counts.unhealthy,
    )


def _upstreams(counts: Counts) -> Iterator[DnsUpstream]:
    for address, durations in counts.upstreams.items():
        if answers := max(durations.values(), default=0):
            p50_ms, p99_ms = (quantile(durations, share) * 1000 for share in (0.5, 0.99))
            yield DnsUpstream(address, answers, p50_ms, p99_ms)


_SUMS = {
    "coredns_dns_requests_total": "queries",
    "coredns_cache_hits_total": "hits",
    "coredns_cache_misses_total": "misses",
    "coredns_cache_evictions_total": "evictions",
    "coredns_proxy_healthcheck_failures_total": "unhealthy",
    "coredns_reload_failed_total": "refused",
}
MAX_UPSTREAMS = 64
"""Upstreams of one server that are told apart."""


class _Sums:
    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        self.by_rcode: dict[str, int] = {}
        self.durations: dict[float, int] = {}
        self.upstreams: dict[str, dict[float, int]] = {}
        self.version = ""

    def add(self, name: str, labels: Mapping[str, str], value: int) -> None:
        if name in _SUMS:
            self.sums[_SUMS[name]] = self.sums.get(_SUMS[name], 0) + value
            return
        match name:
            case "coredns_dns_responses_total":
                rcode = labels.get("rcode", "?")
                self.by_rcode[rcode] = self.by_rcode.get(rcode, 0) + value
            case "coredns_dns_request_duration_seconds_bucket":
                _count(self.durations, labels, value)
            case "coredns_cache_entries":
                self.sums["fullest"] = max(self.sums.get("fullest", 0), value)
            case "coredns_proxy_request_duration_seconds_bucket":
                to = labels.get("to", "?")
                if to in self.upstreams or len(self.upstreams) < MAX_UPSTREAMS:
                    _count(self.upstreams.setdefault(to, {}), labels, value)
            case "coredns_proxy_request_duration_seconds_count" if labels.get("rcode") == "NXDOMAIN":
                self.sums["denied"] = self.sums.get("denied", 0) + value
            case "coredns_reload_version_info":
                self.version = labels.get("value", "")
            case _:
                pass


def _count(durations: dict[float, int], labels: Mapping[str, str], value: int) -> None:
    bound = _bound(labels.get("le", ""))
    durations[bound] = durations.get(bound, 0) + value


def _sum(counts: Iterable[Mapping[K, int]]) -> dict[K, int]:
    found: dict[K, int] = {}
    for one in counts:
        for key, count in one.items():
            found[key] = found.get(key, 0) + count
    return found


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
