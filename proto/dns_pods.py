"""Pods' DNS as the datapath measured it on each pod's own link: answers, latencies, retries, names.

Asked of all dataplane agents at once on ``proto.subjects.DNS_PODS``, and answered with a ``proto.requests.Reply`` whose
body is :class:`PodDnsReport`. Whose answer it is, is known by the key that it came with. Nothing of it is stored on the
bus. Counters are exact; names, and what is said of search lists, come from samples (the last 32 answers and retries of
a pod in each pass of its agent).
"""

from __future__ import annotations

import msgspec

MAX_PODS = 512
"""Pods of one answer: at most some 1,800 bytes each, and a message has at most a megabyte."""
MAX_NAMES = 8
"""Names of one pod."""
MAX_NAME_TEXT = 100
"""Characters of a name; what is longer is cut and ends with ``...``."""
LATENCY_BUCKETS = 24
LATENCY_UNIT_NS = 1024
"""Nanoseconds: the first bucket is below it, bucket n from ``2**(n - 1)`` to ``2**n`` of it."""


class PodDnsRequest(msgspec.Struct, frozen=True):
    """``$SRV.DNS-PODS`` → :class:`PodDnsReport`, from each agent that is asked; others stay silent."""

    nodes: tuple[str, ...] = ()
    """Only agents of these nodes answer; none: all."""
    namespace: str = ""
    """Only pods of this namespace; empty: of all."""


class PodDnsName(msgspec.Struct, frozen=True):
    """A name that a pod asks for: in lower case, without the final dot."""

    name: str
    sampled: int
    """Samples of it."""
    nxdomain: int = 0
    """Those among them that said that it does not exist."""
    retried: int = 0
    """Those among them that were queries sent again."""


class PodDns(msgspec.Struct, frozen=True):
    """One pod's DNS in the last minute or so."""

    namespace: str
    pod: str
    seconds: float
    """That the counts are of."""
    queries: int
    """Retries included."""
    tcp_queries: int = 0
    answers: tuple[tuple[str, int], ...] = ()
    """By RCODE, sorted; ``NODATA`` stands for NOERROR without an answer (RFC 2308), ``TRUNCATED`` for TC."""
    retries: int = 0
    timeouts: int = 0
    """Queries without an answer for five seconds."""
    late: int = 0
    """Answers that came after that."""
    displaced: int = 0
    """Queries of which nothing more is known: the pod had too many in flight."""
    unmatched: int = 0
    """Answers to no query that is known."""
    unread: int = 0
    """Packets that hold no single message, or not its beginning."""
    latency: tuple[int, ...] = ()
    """Answers by how long they took: :data:`LATENCY_BUCKETS` counts."""
    sampled: int = 0
    sampled_nxdomain: int = 0
    searched: int = 0
    """Of these, those that a search list asked for in vain: the same name with less after it was answered next."""
    names: tuple[PodDnsName, ...] = ()
    """Those most asked for, at most :data:`MAX_NAMES`."""
    names_sampled: int = 0
    """All samples that :attr:`names` are the most frequent of; of the last one to two minutes."""


class PodDnsReport(msgspec.Struct, frozen=True):
    """What one node's agent answers: pods that asked for most first."""

    node: str
    measured: bool = True
    """False: measuring is off on this node."""
    pods: tuple[PodDns, ...] = ()
    """At most :data:`MAX_PODS`."""
    left_out: int = 0
    """Pods that found no room in this answer."""
