"""`airmesh dns report`: DNS of pods as the datapath measured it on their links, in the last minute, and CoreDNS' own.

An answer counts under the node whose key it came with, as with pairs (`cli.reports.pairs.by_node`). Names are what pods
ask for, so they say whatever a pod likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

import msgspec

from cli.reports import dns
from cli.reports.table import Cell, Table, Tone, bad, dim
from kit.latency import quantile, summed
from proto.dns import DnsReport
from proto.dns_pods import LATENCY_UNIT_NS, MAX_NAMES, MAX_PODS, PodDns, PodDnsName, PodDnsReport

USEFUL = "NOERROR"
MOST_NAMES = 20
"""Rows of the table of names."""
SLOW_MS = 1000.0
"""A P99 from which on it is marked."""


class PodFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One pod, or all of them together."""

    node: str
    namespace: str
    pod: str
    queries: int
    queries_per_second: float
    tcp_queries: int = 0
    answers: tuple[tuple[str, int], ...] = ()
    p50_ms: float | None = None
    """Upper bound of the bucket that holds the quantile; none: nothing was answered."""
    p99_ms: float | None = None
    timeouts: int = 0
    retries: int = 0
    nxdomain_share: float | None = None
    """Of the answers."""
    queries_per_useful_answer: float | None = None
    searched_share: float | None = None
    """Of the names that do not exist, by samples: those that a search list asked for in vain."""
    truncated: int = 0
    late: int = 0
    displaced: int = 0
    unmatched: int = 0
    unread: int = 0


class NameFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A name, and the pod that asks for it most."""

    name: str
    sampled: int
    share: float
    """Of all samples."""
    nxdomain: int
    retried: int
    asked_most_by: str
    """``namespace/pod``."""


class PodsDns(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh dns report`."""

    together: PodFigures
    pods: tuple[PodFigures, ...] = ()
    """Those that ask most first."""
    names: tuple[NameFigures, ...] = ()
    """Those most asked for first."""
    silent: tuple[str, ...] = ()
    """Nodes whose agents did not answer."""
    unmeasured: tuple[str, ...] = ()
    """Nodes on which measuring is off."""
    left_out: int = 0
    """Pods that found no room in their agents' answers."""
    coredns: DnsReport | None = None
    """What CoreDNS counted since the report before; None where `dns` has not told yet."""


def pods_dns(reported: Mapping[str, PodDnsReport], nodes: Iterable[str], coredns: DnsReport | None = None) -> PodsDns:
    """What agents answered, by node; ``nodes`` are those that should have."""
    pods = [(node, one) for node, report in sorted(reported.items()) for one in islice(report.pods, MAX_PODS)]
    figures = [_figures(node, one) for node, one in pods]
    return PodsDns(
        together=_together([one for _, one in pods]),
        pods=tuple(sorted(figures, key=lambda one: (-one.queries_per_second, one.namespace, one.pod))),
        names=_names([one for _, one in pods]),
        silent=tuple(sorted(set(nodes) - reported.keys())),
        unmeasured=tuple(sorted(node for node, report in reported.items() if not report.measured)),
        left_out=sum(report.left_out for report in reported.values()),
        coredns=coredns,
    )


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _milliseconds(latency: tuple[int, ...], share: float) -> float | None:
    bound = quantile(latency, share)
    return None if bound is None else round(bound * LATENCY_UNIT_NS / 1e6, 3)


def _figures(node: str, pod: PodDns, per_second: float | None = None) -> PodFigures:
    answers = dict(pod.answers)
    useful = answers.get(USEFUL, 0)
    rate = pod.queries / pod.seconds if pod.seconds > 0 else 0.0
    return PodFigures(
        node=node,
        namespace=pod.namespace,
        pod=pod.pod,
        queries=pod.queries,
        queries_per_second=round(rate if per_second is None else per_second, 2),
        tcp_queries=pod.tcp_queries,
        answers=pod.answers,
        p50_ms=_milliseconds(pod.latency, 0.5),
        p99_ms=_milliseconds(pod.latency, 0.99),
        timeouts=pod.timeouts,
        retries=pod.retries,
        nxdomain_share=_share(answers.get("NXDOMAIN", 0), sum(answers.values())),
        queries_per_useful_answer=round(pod.queries / useful, 2) if useful else None,
        searched_share=_share(pod.searched, pod.sampled_nxdomain),
        truncated=answers.get("TRUNCATED", 0),
        late=pod.late,
        displaced=pod.displaced,
        unmatched=pod.unmatched,
        unread=pod.unread,
    )


def _together(pods: list[PodDns]) -> PodFigures:
    answers: dict[str, int] = {}
    for pod in pods:
        for rcode, count in pod.answers:
            answers[rcode] = answers.get(rcode, 0) + count
    total = PodDns(
        namespace="",
        pod="",
        seconds=max((pod.seconds for pod in pods), default=0.0),
        queries=sum(pod.queries for pod in pods),
        tcp_queries=sum(pod.tcp_queries for pod in pods),
        answers=tuple(sorted(answers.items())),
        retries=sum(pod.retries for pod in pods),
        timeouts=sum(pod.timeouts for pod in pods),
        late=sum(pod.late for pod in pods),
        displaced=sum(pod.displaced for pod in pods),
        unmatched=sum(pod.unmatched for pod in pods),
        unread=sum(pod.unread for pod in pods),
        latency=summed(pod.latency for pod in pods),
        sampled_nxdomain=sum(pod.sampled_nxdomain for pod in pods),
        searched=sum(pod.searched for pod in pods),
    )
    return _figures("", total, sum(pod.queries / pod.seconds for pod in pods if pod.seconds > 0))


def _names(pods: list[PodDns]) -> tuple[NameFigures, ...]:
    """Each name once. A pod's samples stand for all that it asked in the same time, which others' may not."""
    asked: dict[str, list[tuple[PodDns, PodDnsName]]] = {}
    for pod in pods:
        for one in islice(pod.names, MAX_NAMES):
            asked.setdefault(one.name, []).append((pod, one))
    sampled = sum(pod.names_sampled for pod in pods)
    found = [
        NameFigures(
            name=name,
            sampled=sum(one.sampled for _, one in uses),
            share=_share(sum(one.sampled for _, one in uses), sampled) or 0.0,
            nxdomain=sum(one.nxdomain for _, one in uses),
            retried=sum(one.retried for _, one in uses),
            asked_most_by="/".join(_asks_most(uses)),
        )
        for name, uses in asked.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.sampled, one.name))[:MOST_NAMES])


def _asks_most(uses: list[tuple[PodDns, PodDnsName]]) -> tuple[str, str]:
    pod, _ = max(uses, key=lambda use: use[1].sampled)
    return pod.namespace, pod.pod


def tables(report: PodsDns) -> tuple[Table, ...]:
    """All together, the pods, the names, and what is missing."""
    columns = ("queries/s", "P50", "P99", "timeouts", "retries", "NXDOMAIN", "of search lists", "queries/useful answer")
    shown = [
        Table(title="DNS of all pods, last minute", columns=columns, rows=(_cells(report.together),)),
        Table(
            title="Pods that ask most",
            columns=("pod", "node", *columns),
            rows=tuple((f"{one.namespace}/{one.pod}", one.node, *_cells(one)) for one in report.pods),
            empty="no pod asked anything",
            note=f"{report.left_out} pods found no room" if report.left_out else "",
        ),
        Table(
            title="Names asked for most, by samples",
            columns=("name", "share", "NXDOMAIN", "sent again", "most by"),
            rows=tuple(_name_row(one) for one in report.names),
        ),
    ]
    if report.coredns is not None:
        shown += dns.counts(report.coredns)
    missing = (
        *((node, bad("its agent does not answer")) for node in report.silent),
        *((node, dim("measuring is off: AIRMESH_MEASURE_DNS")) for node in report.unmeasured),
    )
    if missing:
        shown.append(Table(title="Not measured", columns=("node", "why"), rows=missing))
    return tuple(shown)


def _cells(one: PodFigures) -> tuple[str | Cell, ...]:
    useful = one.queries_per_useful_answer
    return (
        f"{one.queries_per_second:.1f}",
        _time(one.p50_ms),
        _time(one.p99_ms),
        Cell(str(one.timeouts), Tone.BAD if one.timeouts else Tone.PLAIN),
        Cell(str(one.retries), Tone.WARN if one.retries else Tone.PLAIN),
        _percent(one.nxdomain_share),
        _percent(one.searched_share),
        "–" if useful is None else f"{useful:.1f}",
    )


def _time(milliseconds: float | None) -> Cell:
    if milliseconds is None:
        return dim("–")
    return Cell(f"{milliseconds:.1f} ms", Tone.WARN if milliseconds >= SLOW_MS else Tone.PLAIN)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _name_row(one: NameFigures) -> tuple[str | Cell, ...]:
    return one.name, _percent(one.share), str(one.nxdomain), str(one.retried), one.asked_most_by
