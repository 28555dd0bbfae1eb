"""DNS: the desired CoreDNS configuration (decided by ``dns``, written to Kubernetes by ``cluster``) and what was seen
of it.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec


def digest_of(corefile: str) -> str:
    """Names a text of the Corefile: 32 hex digits."""
    return blake2b(corefile.encode(), digest_size=16).hexdigest()


class CoreDNSDecision(msgspec.Struct, frozen=True):
    """Value of ``dns.coredns``: the whole desired state, with the reason."""

    namespace: str
    corefile: str
    """The text that was there, with what the settings ask for."""
    replicas: int
    reason: str
    of: str = ""
    """:func:`digest_of` the text that :attr:`corefile` was made of, and may be written over; empty = there was none."""


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
