"""A pod's DNS record as values: what was counted, and the samples that are new.

A query that has waited for :data:`~.dns_layout.DNS_TIMEOUT` is a timeout, whether its cell was taken since (then the
programs have counted it) or not (then it is found here, at each reading). So nothing in the kernel is changed by
whoever reads, and the sum never goes down.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from operator import add, sub

from services.dataplane.core.datapath.dns_layout import (
    DNS_BUCKETS,
    DNS_NAME_WORDS,
    DNS_OUTCOMES,
    DNS_SAMPLES,
    DNS_TIMEOUT,
    DnsOutcome,
    DnsPod,
)

_CELL = struct.Struct("<QQ")
_SAMPLE = struct.Struct(f"<IIIHH{DNS_NAME_WORDS * 8}s")
_NO_OUTCOMES, _NO_LATENCY = (0,) * DNS_OUTCOMES, (0,) * DNS_BUCKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counters of :class:`DnsPod`, which says what each counts; of several pods or of a span of time, too."""

    queries: int = 0
    tcp_queries: int = 0
    retries: int = 0
    timeouts: int = 0
    late: int = 0
    displaced: int = 0
    unmatched: int = 0
    unread: int = 0
    outcomes: tuple[int, ...] = _NO_OUTCOMES
    """Answers by :class:`DnsOutcome`."""
    latency: tuple[int, ...] = _NO_LATENCY
    """Answers by the power of two of how long they took (:data:`~.dns_layout.DNS_TICK`)."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            queries=self.queries + other.queries,
            tcp_queries=self.tcp_queries + other.tcp_queries,
            retries=self.retries + other.retries,
            timeouts=self.timeouts + other.timeouts,
            late=self.late + other.late,
            displaced=self.displaced + other.displaced,
            unmatched=self.unmatched + other.unmatched,
            unread=self.unread + other.unread,
            outcomes=tuple(map(add, self.outcomes, other.outcomes)),
            latency=tuple(map(add, self.latency, other.latency)),
        )

    def since(self, before: Counts) -> Counts:
        """What was counted after ``before``, an earlier state of the same counters."""
        return Counts(
            queries=self.queries - before.queries,
            tcp_queries=self.tcp_queries - before.tcp_queries,
            retries=self.retries - before.retries,
            timeouts=self.timeouts - before.timeouts,
            late=self.late - before.late,
            displaced=self.displaced - before.displaced,
            unmatched=self.unmatched - before.unmatched,
            unread=self.unread - before.unread,
            outcomes=tuple(map(sub, self.outcomes, before.outcomes)),
            latency=tuple(map(sub, self.latency, before.latency)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer, or a query that was sent again (:attr:`DnsOutcome.RETRIED`)."""

    labels: tuple[str, ...]
    """Of the name asked for, in lower case; what is not printable is escaped as in RFC 1035 5.1."""
    is_whole: bool
    """False: the name goes on after these labels."""
    outcome: DnsOutcome


def read_counts(record: DnsPod, now: int) -> Counts:
    """What a record has counted at ``now`` (CLOCK_MONOTONIC, ns)."""
    starts = range(0, DNS_OUTCOMES * DNS_BUCKETS, DNS_BUCKETS)
    waiting = (asked for _, asked in _CELL.iter_unpack(record.cells) if asked)
    return Counts(
        queries=record.queries,
        tcp_queries=record.tcp_queries,
        retries=record.retries,
        timeouts=record.timeouts + sum(now - asked >= DNS_TIMEOUT for asked in waiting),
        late=record.late,
        displaced=record.displaced,
        unmatched=record.unmatched,
        unread=record.unread,
        outcomes=tuple(sum(record.answers[at : at + DNS_BUCKETS]) for at in starts),
        latency=tuple(sum(record.answers[bucket::DNS_BUCKETS]) for bucket in range(DNS_BUCKETS)),
    )


def new_samples(record: DnsPod, after: int) -> list[Sample]:
    """The samples with a number above ``after`` that are still there, oldest first. One that is being written, or makes
    no sense, is left out.
    """
    first = max(after, record.sampled - DNS_SAMPLES) + 1
    found: list[Sample] = []
    for number in range(first, record.sampled + 1):
        at = number % DNS_SAMPLES * _SAMPLE.size
        has, end, outcome, _, _, name = _SAMPLE.unpack_from(record.samples, at)
        if has != number & 0xFFFFFFFF or outcome not in _OUTCOMES:
            continue
        labels, is_whole = _name(name[:end])
        found.append(Sample(labels=labels, is_whole=is_whole, outcome=DnsOutcome(outcome)))
    return found


_OUTCOMES = frozenset(DnsOutcome)


def _name(raw: bytes) -> tuple[tuple[str, ...], bool]:
    """The whole labels of a name on the wire (RFC 1035 3.1), and whether they are all of it."""
    labels, at = [], 0
    while at < len(raw) and 0 < raw[at] < 64 and at + raw[at] < len(raw):
        labels.append("".join(map(_character, raw[at + 1 : at + 1 + raw[at]])))
        at += 1 + raw[at]
    return tuple(labels), raw[at:] == b"\0"


def _character(byte: int) -> str:
    letter = chr(byte)
    if letter in "\\.":
        return f"\\{letter}"
    return letter.lower() if 0x20 < byte < 0x7F else f"\\{byte:03}"
