"""The record in which the programs measure a pod's DNS: counters, a histogram, queries in flight, a sample of names.

Each pod that asks has one record of its own (:class:`DnsPod`), so whoever floods displaces its own queries and names
alone. Counters are added to by atomic instructions and exact. A *cell* is a query without an answer so far; a *set* of
:data:`DNS_WAYS` cells belongs to a digest of the question. A sample is one answer, or a query sent again, with its
question as it was on the wire. ``bpf/dns.h`` writes, ``core/monitor/dns_counts.py`` reads; what lies in the two rooms
is known to them alone, so a change there raises the map's ``revision``.

Units: nanoseconds of CLOCK_MONOTONIC; the buckets of the histogram are powers of two of :data:`DNS_TICK`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from services.dataplane.core.datapath.wire import U64, Counts216, Record, Room2048, Room4096

DNS_SETS = 32
"""Sets of cells of a pod, a power of two."""
DNS_WAYS = 4
"""Cells of a set."""
DNS_SAMPLES = 32
"""Samples that a record holds: the next takes the place of the oldest. A power of two."""
DNS_NAME_WORDS = 14
"""Words of 8 bytes of a question that are looked at: of a longer name the first 112 bytes."""
DNS_TICK_SHIFT = 10
DNS_TICK = 1 << DNS_TICK_SHIFT
"""Nanoseconds: bucket 0 is below it, bucket n is from ``2**(n - 1)`` to ``2**n`` of it."""
DNS_BUCKETS = 24
"""Of the histogram: the last begins at 4.3 s, and what has waited for five has timed out."""
DNS_TIMEOUT = 5_000_000_000
"""A query without an answer for so long has timed out (``RES_TIMEOUT`` of resolv.conf(5))."""
DNS_RETRY_FROM = 1_000_000_000
DNS_RETRY_UNTIL = 7_000_000_000
"""The same question from another port or with another id is a retry when an older one has waited for so long; sooner it
is another lookup of the same name beside it, later one that has nothing to do with it."""


class DnsOutcome(IntEnum):
    """What became of a query: a row of :attr:`DnsPod.answers`. Names of RFC 1035 4.1.1 where they are its RCODEs."""

    USEFUL = 0
    """NOERROR, with an answer."""
    EMPTY = 1
    """NOERROR without one: the name has no record of this type (NODATA, RFC 2308 2.2)."""
    FORMERR = 2
    SERVFAIL = 3
    NXDOMAIN = 4
    NOTIMP = 5
    REFUSED = 6
    OTHER = 7
    TRUNCATED = 8
    """TC is set, whatever the RCODE: the client asks again by TCP."""
    RETRIED = 9
    """Of samples alone: the query was sent again."""


DNS_OUTCOMES = DnsOutcome.RETRIED.value
"""Outcomes that an answer may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsPod(Record):
    """What was measured of one pod's DNS since its first query.

    The two rooms come first, so that a set of cells lies in one line of the processor's cache, and a sample in two.
    """

    cells: Room2048 = bytes(2048)
    samples: Room4096 = bytes(4096)
    queries: U64 = 0
    """Messages with a question to port 53 that were read, retries included."""
    tcp_queries: U64 = 0
    retries: U64 = 0
    timeouts: U64 = 0
    """Queries that had waited for DNS_TIMEOUT when something took their cell; those still in one are not counted."""
    late: U64 = 0
    """Answers to queries that had timed out; of those that are counted as timeouts."""
    displaced: U64 = 0
    """Queries whose cell another took sooner: nothing is known of their answers."""
    unmatched: U64 = 0
    """Answers to no query in flight: a second copy, or of one that was displaced or forgotten."""
    unread: U64 = 0
    """Packets to or from port 53 that are no single DNS message with one question."""
    sampled: U64 = 0
    """Samples written so far; the newest has this number."""
    answers: Counts216 = (0,) * (DNS_OUTCOMES * DNS_BUCKETS)
    """Answers by outcome and by how long they took: of each outcome in turn a histogram."""
