"""DNS: what CoreDNS should be (decided by ``dns``, written to Kubernetes by ``cluster``) and what was seen of it."""

from __future__ import annotations

import msgspec


class CoreDNSDecision(msgspec.Struct, frozen=True):
    """Value of ``dns.coredns``: the whole desired state, with the reason."""

    namespace: str
    corefile: str
    replicas: int
    reason: str


class DnsReport(msgspec.Struct, frozen=True):
    """Value of ``dns.report`` and body of ``airmesh.v1.events.dns.report``: counts since the previous report."""

    seconds: float
    servers: int
    """CoreDNS servers that answered the scrape."""
    queries: int
    answers_by_rcode: tuple[tuple[str, int], ...]
    """Sorted pairs, e.g. ``("NOERROR", 120)``."""
    p50_ms: float
    p99_ms: float
    """Upper bounds of the histogram bucket that holds the quantile."""
    cache_hits: int = 0
    cache_misses: int = 0
