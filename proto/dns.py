"""DNS: the desired CoreDNS configuration (decided by ``dns``, written to Kubernetes by ``cluster``) and what was seen
of it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

import msgspec

Settings = tuple[tuple[str, str], ...]
"""Tuned settings of the Corefile by name, sorted, e.g. ``("capacity", "20000")``."""
ChangeState = Literal["proposed", "applied", "judged", "kept", "taken-back", "overtaken"]
"""Of a change: decided; written; read by every server and being judged; in force; the text before is back; a person
has written another text meanwhile."""


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


class DnsUpstream(msgspec.Struct, frozen=True):
    """A resolver that CoreDNS asked (plugin/forward), as all servers saw it together."""

    address: str
    """Address and port."""
    answers: int
    p50_ms: float
    p99_ms: float
    """As in :class:`DnsReport`."""


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
    cache_evictions: int = 0
    """Answers that the cache let go of for want of room."""
    asked: int = 0
    """Questions that ``dns`` itself asked of the servers, one of each."""
    unanswered: int = 0
    """Of :attr:`asked`, those with no answer, or with another than the name's."""
    upstreams: tuple[DnsUpstream, ...] = ()
    """Those that answered, the most asked first."""
    upstream_checks_failed: int = 0
    """Checks of upstreams that had no answer (``coredns_proxy_healthcheck_failures_total``)."""


class DnsMeasured(msgspec.Struct, frozen=True):
    """What a change is judged by, over a minute before it and as long after it."""

    queries: int = 0
    failures: int = 0
    """Answers of SERVFAIL."""
    p99_ms: float = 0.0
    """What one in 100 useful answers is slower than, were each of them the slowest of its lookup's queries."""
    asked: int = 0
    unanswered: int = 0


class DnsServerText(msgspec.Struct, frozen=True):
    """What a server says of its Corefile: ``coredns_reload_version_info`` and ``coredns_reload_failed_total``."""

    server: str
    version: str = ""
    """Digest of the text that it read last; empty until it has read a second one."""
    failed: int = 0
    """Texts that it refused since it started."""


class DnsProposal(msgspec.Struct, frozen=True):
    """A tuning decision that may be applied."""

    name: str
    settings: Settings
    """What it sets."""
    evidence: str
    effect: str
    """What is expected of it."""


class DnsChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the Corefile, with the way back."""

    name: str
    """Of the proposal; ``settings`` when it follows from the service's settings, ``edit`` from a person's text."""
    state: ChangeState
    settings: Settings = ()
    """All tuned settings with it."""
    settings_before: Settings = ()
    before: str = ""
    """The whole text that it was made of."""
    after: str = ""
    """:func:`digest_of` the text that it writes."""
    measured: DnsMeasured = DnsMeasured()
    """Before it."""
    servers: tuple[DnsServerText, ...] = ()
    """Before it."""
    since: float = 0.0
    """Unix seconds of the last step."""
    evidence: str = ""
    outcome: str = ""
    """Why the last step was taken, in words."""


class DnsOutcome(msgspec.Struct, frozen=True):
    """How a change ended."""

    name: str
    state: ChangeState
    at: float
    """Unix seconds."""
    outcome: str


class DnsTuning(msgspec.Struct, frozen=True, kw_only=True):
    """Value of ``dns.tuning``: all that a copy of ``dns`` needs to go on where another ended."""

    mode: Literal["observe", "advise", "act"]
    settings: Settings = ()
    """In force beside those of the service's own environment."""
    proposals: tuple[DnsProposal, ...] = ()
    change: DnsChange | None = None
    """The latest."""
    past: tuple[DnsOutcome, ...] = ()
    """The last ones that ended, the latest first."""
    request: str = ""
    """Which request was answered last."""


class DnsWish(msgspec.Struct, frozen=True):
    """Value of ``dns.wish``: the last request, until the copy with the lease has taken it."""

    request: str
    verb: Literal["apply", "revert"]
    name: str


class DnsChangeRequest(msgspec.Struct, frozen=True):
    """``airmesh.v1.dns.change``: a person applies a proposal, or takes a change back (without a name the latest)."""

    verb: Literal["apply", "revert"]
    name: str = ""


class DnsChangeAnswer(msgspec.Struct, frozen=True):
    """The request is taken; how it goes on is told in ``dns.tuning``."""

    request: str
    said: str
