"""DNS of the pods of a node: the last minute of each, and all that was counted since the agent began.

:meth:`PodsDns.observe` is given what the kernel has, again and again; :meth:`PodsDns.report` is what is published. Each
pod has marks of its counters, ten seconds apart, and a report is the difference from the oldest of the last minute. A
record that is there when the agent begins is older than the agent: its past is in the totals and in no report.
Bounded: by pods of the node, :data:`MARKS` marks and ``2 * MAX_COUNTED`` names each. Moments are seconds of a clock
that does not go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proto.dns_pods import (
    MAX_NAME_TEXT,
    MAX_NAMES,
    MAX_PODS,
    PodDns,
    PodDnsName,
    PodDnsReport,
    PodDnsRequest,
)
from services.dataplane.core.datapath.dns_layout import DnsOutcome, DnsPod
from services.dataplane.core.monitor.dns_counts import Counts, new_samples, read_counts
from services.dataplane.core.monitor.dns_names import SearchList, TopNames, most, text_of

NOTHING = Counts()
MARK_EVERY = 10.0
MARKS = 7
"""Of each pod: the oldest is a minute old."""
NAMES_FOR = 60.0
"""Seconds after which the names of a pod are counted anew; those before stay for as long again."""
RCODES = {DnsOutcome.USEFUL: "NOERROR", DnsOutcome.EMPTY: "NODATA"}
"""What answers are called where not as their outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodName:
    """Whose an endpoint number is."""

    namespace: str
    pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What was counted up to a moment."""

    moment: float
    counts: Counts = NOTHING
    sampled: int = 0
    sampled_nxdomain: int = 0
    searched: int = 0


@dataclass(slots=True, kw_only=True)
class _Measured:
    """One pod."""

    name: PodName
    marks: deque[Mark]
    counts: Counts = NOTHING
    last_sample: int = 0
    """Number of the newest sample that was read."""
    sampled: int = 0
    """Samples read."""
    search: SearchList = field(default_factory=SearchList)
    names: TopNames = field(default_factory=TopNames)
    former_names: TopNames = field(default_factory=TopNames)
    names_since: float = 0.0

    def mark(self, moment: float) -> Mark:
        return Mark(
            moment=moment,
            counts=self.counts,
            sampled=self.sampled,
            sampled_nxdomain=self.search.sampled_nxdomain,
            searched=self.search.searched,
        )


class PodsDns:
    """The pods of one node."""

    def __init__(self) -> None:
        self._pods: dict[int, _Measured] = {}
        self._gone = NOTHING
        self._began = False

    def observe(self, moment: float, now: int, records: Mapping[int, DnsPod], pods: Mapping[int, PodName]) -> None:
        """Takes in what the kernel has at ``moment``, ``now`` in ns of CLOCK_MONOTONIC: records by endpoint number, and
        whose the numbers are. Without a name a record waits; without a record a pod is let go of.
        """
        for number in self._pods.keys() - records.keys():
            self._gone += self._pods.pop(number).counts
        for number, record in records.items():
            if number in pods:
                self._read(moment, now, number, record, pods[number])
        self._began = True

    def _read(self, moment: float, now: int, number: int, record: DnsPod, name: PodName) -> None:
        counts, pod = read_counts(record, now), self._pods.get(number)
        if pod is None:
            pod = self._pods[number] = _Measured(name=name, marks=deque(maxlen=MARKS), names_since=moment)
            if not self._began:
                pod.counts, pod.last_sample = counts, record.sampled
            pod.marks.append(pod.mark(moment))
        pod.counts = counts
        self._read_samples(pod, moment, record)
        if moment - pod.marks[-1].moment >= MARK_EVERY:
            pod.marks.append(pod.mark(moment))

    def _read_samples(self, pod: _Measured, moment: float, record: DnsPod) -> None:
        if moment - pod.names_since >= NAMES_FOR:
            pod.former_names, pod.names, pod.names_since = pod.names, TopNames(), moment
        for sample in new_samples(record, pod.last_sample):
            pod.sampled += 1
            pod.search.add(sample)
            pod.names.add(text_of(sample, MAX_NAME_TEXT), sample.outcome)
        pod.last_sample = record.sampled

    @property
    def totals(self) -> Counts:
        """All that was counted on the node."""
        return sum((pod.counts for pod in self._pods.values()), self._gone)

    def report(self, asked: PodDnsRequest, node: str, moment: float) -> PodDnsReport | None:
        """The answer of ``node``; None when it is not asked."""
        if asked.nodes and node not in asked.nodes:
            return None
        return _report(node, (one for one in self._last_minute(moment) if asked.namespace in ("", one.namespace)))

    def most_asking(self, moment: float, count: int) -> list[PodDns]:
        """The pods that asked most in the last minute."""
        return sorted(self._last_minute(moment), key=_by_queries)[:count]

    def _last_minute(self, moment: float) -> list[PodDns]:
        return [_figures(pod, moment) for pod in self._pods.values()]


def _by_queries(pod: PodDns) -> tuple[int, str, str]:
    return -pod.queries, pod.namespace, pod.pod


def _report(node: str, pods: Iterable[PodDns]) -> PodDnsReport:
    found = sorted((one for one in pods if one.queries or one.unread or one.timeouts), key=_by_queries)
    return PodDnsReport(node=node, pods=tuple(found[:MAX_PODS]), left_out=max(0, len(found) - MAX_PODS))


def _figures(pod: _Measured, moment: float) -> PodDns:
    before = pod.marks[0]
    counts = pod.counts.since(before.counts)
    parts = (pod.names, pod.former_names)
    return PodDns(
        namespace=pod.name.namespace,
        pod=pod.name.pod,
        seconds=moment - before.moment,
        queries=counts.queries,
        tcp_queries=counts.tcp_queries,
        answers=tuple(sorted(answers_by_rcode(counts).items())),
        retries=counts.retries,
        timeouts=counts.timeouts,
        late=counts.late,
        displaced=counts.displaced,
        unmatched=counts.unmatched,
        unread=counts.unread,
        latency=counts.latency,
        sampled=pod.sampled - before.sampled,
        sampled_nxdomain=pod.search.sampled_nxdomain - before.sampled_nxdomain,
        searched=pod.search.searched - before.searched,
        names=tuple(
            PodDnsName(name=name, sampled=one.sampled, nxdomain=one.nxdomain, retried=one.retried)
            for name, one in most(parts, MAX_NAMES)
        ),
        names_sampled=sum(part.sampled for part in parts),
    )


def answers_by_rcode(counts: Counts) -> dict[str, int]:
    """Answers by what they are called, those that there are."""
    return {
        RCODES.get(outcome, outcome.name): counts.outcomes[outcome]
        for outcome in DnsOutcome
        if outcome is not DnsOutcome.RETRIED and counts.outcomes[outcome]
    }
