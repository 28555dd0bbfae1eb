"""Metrics pages, and what they add up to."""

from __future__ import annotations

import math
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.dns import DnsReport, DnsUpstream
from proto.objects import EndpointSlice, SliceEndpoint
from services.dns.core.samples import MAX_PAGE, Counts, Unreadable, parse, quantile, report, since, together
from services.dns.core.servers import servers

PAGE = (Path(__file__).parent / "coredns-metrics.txt").read_text()
"""What a CoreDNS 1.15.0 told after ten queries."""


def test_a_page_of_the_real_one() -> None:
    found = parse(PAGE)
    assert (found.queries, found.hits, found.misses) == (10, 4, 6)
    assert found.by_rcode == {"NOERROR": 3, "NXDOMAIN": 3, "SERVFAIL": 4}
    assert len(found.durations) == 17
    assert (found.durations[0.00025], found.durations[math.inf]) == (8, 10)


@pytest.mark.parametrize(
    ("page", "queries"),
    [
        ("", 0),
        ("# HELP coredns_dns_requests_total x\n", 0),
        ("other_total 7\n", 0),
        ("coredns_dns_requests_total 7", 7),
        ("coredns_dns_requests_total 7 1700000000000\n", 7),
        ('coredns_dns_requests_total{a="b"} 1\ncoredns_dns_requests_total{a="c"} 2\n', 3),
        ('coredns_dns_requests_total{a="}\\" {",b="\\\\"} 4\n', 4),
        ('coredns_dns_requests_total{a="b",} 5\n', 5),
        ("coredns_dns_requests_total 1e3\n", 1000),
    ],
)
def test_spellings(page: str, queries: int) -> None:
    assert parse(page).queries == queries


@pytest.mark.parametrize(
    "page",
    [
        "coredns_dns_requests_total\n",
        "coredns_dns_requests_total x\n",
        "coredns_dns_requests_total NaN\n",
        "coredns_dns_requests_total -1\n",
        "coredns_dns_requests_total +Inf\n",
        'coredns_dns_requests_total{a=b} 1\n',
        'coredns_dns_requests_total{a="b} 1\n',
        'coredns_dns_request_duration_seconds_bucket{le="x"} 1\n',
        "coredns_ <html>\n",
        "x" * (MAX_PAGE + 1),
        "coredns_x{a=\"" + "\\" * 10_000 + "\"} 1\n",
    ],
)  # fmt: skip
def test_pages_that_are_none(page: str) -> None:
    with pytest.raises(Unreadable):
        parse(page)


@given(st.text(max_size=200))
def test_no_page_does_anything_but_parse_or_be_unreadable(text: str) -> None:
    try:
        parse("coredns_" + text)
    except Unreadable:
        return


def counts(queries: int, **rcodes: int) -> Counts:
    return Counts(queries=queries, by_rcode=rcodes, durations={0.1: queries // 2, math.inf: queries})


@pytest.mark.parametrize(
    ("before", "now", "queries"),
    [(None, 100, 0), (0, 100, 100), (60, 100, 40), (100, 100, 0), (100, 7, 7)],
)
def test_since_last_time(before: int | None, now: int, queries: int) -> None:
    """A server that counts less than before began anew."""
    found = since(None if before is None else counts(before, NOERROR=before), counts(now, NOERROR=now))
    assert (found.queries, found.by_rcode.get("NOERROR", 0)) == (queries, queries)


def test_together() -> None:
    found = together([counts(4, NOERROR=3, NXDOMAIN=1), counts(6, NOERROR=6), Counts()])
    assert found.queries == 10
    assert found.by_rcode == {"NOERROR": 9, "NXDOMAIN": 1}
    assert found.durations == {0.1: 5, math.inf: 10}


@pytest.mark.parametrize(
    ("durations", "share", "bound"),
    [
        ({}, 0.5, 0.0),
        ({0.1: 0, math.inf: 0}, 0.5, 0.0),
        ({0.1: 5, 0.2: 9, math.inf: 10}, 0.5, 0.1),
        ({0.1: 5, 0.2: 9, math.inf: 10}, 0.51, 0.2),
        ({0.1: 5, 0.2: 9, math.inf: 10}, 0.99, math.inf),
        ({0.1: 10, math.inf: 10}, 0.99, 0.1),
    ],
)
def test_quantiles_are_bounds(durations: dict[float, int], share: float, bound: float) -> None:
    assert quantile(durations, share) == bound


def test_report() -> None:
    found = report(parse(PAGE), seconds=10.0004, servers=2)
    assert found == DnsReport(
        seconds=10.0,
        servers=2,
        queries=10,
        answers_by_rcode=(("NOERROR", 3), ("NXDOMAIN", 3), ("SERVFAIL", 4)),
        p50_ms=0.25,
        p99_ms=0.5,
        cache_hits=4,
        cache_misses=6,
    )


def slice_of(*endpoints: SliceEndpoint, service: str = "kube-dns", namespace: str = "kube-system") -> EndpointSlice:
    return EndpointSlice(namespace, "s", service, endpoints)


V4, V6, OTHER = ip_address("10.0.0.1"), ip_address("fd00::1"), ip_address("10.0.0.2")


def test_each_upstream_has_its_answers_and_times() -> None:
    """Those that answered nothing since last time are left out."""
    counts = Counts(
        queries=9,
        unhealthy=2,
        upstreams={
            "192.0.2.1:53": {0.001: 2, 0.016: 3, math.inf: 3},
            "192.0.2.2:53": {0.001: 90, 0.25: 100, math.inf: 100},
            "192.0.2.3:53": {0.001: 0, math.inf: 0},
        },
    )
    found = report(counts, seconds=10.0, servers=1)
    assert found.upstreams == (
        DnsUpstream("192.0.2.2:53", 100, 1.0, 250.0),
        DnsUpstream("192.0.2.1:53", 3, 1.0, 16.0),
    )
    assert found.upstream_checks_failed == 2


def test_each_server_once() -> None:
    found = servers(
        [
            slice_of(SliceEndpoint((V6,), pod_uid="a"), SliceEndpoint((ip_address("fd00::2"),), pod_uid="b")),
            slice_of(SliceEndpoint((V4,), pod_uid="a")),
            slice_of(SliceEndpoint((OTHER,), serving=False, pod_uid="c"), SliceEndpoint((), pod_uid="d")),
            slice_of(SliceEndpoint((OTHER,), pod_uid="e"), service="web"),
            slice_of(SliceEndpoint((OTHER,), pod_uid="f"), namespace="prod"),
        ],
        "kube-system",
        "kube-dns",
    )
    assert found == {"a": V4, "b": ip_address("fd00::2")}
