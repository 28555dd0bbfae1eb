"""`airmesh dns report`: what agents measured, put together and drawn."""

from __future__ import annotations

from cli.reports.dns_pods import MOST_NAMES, pods_dns, tables
from proto.dns import DnsReport, DnsUpstream
from proto.dns_pods import PodDns, PodDnsName, PodDnsReport

FAST = (0, 0, 0, 0, 0, 0, 0, 0, 0, 98, 1, 0, 0, 1)
"""98 answers below 0.53 ms, one below 1.05, one below 8.4."""


def pod(name: str, queries: int, **more: object) -> PodDns:
    namespace, _, pod = name.partition("/")
    return PodDns(namespace=namespace, pod=pod, seconds=60.0, queries=queries, **more)  # type: ignore[arg-type]


WEB = pod(
    "shop/web",
    600,
    answers=(("NODATA", 100), ("NOERROR", 100), ("NXDOMAIN", 300)),
    latency=FAST,
    timeouts=2,
    retries=3,
    sampled=40,
    sampled_nxdomain=20,
    searched=15,
    names=(PodDnsName(name="www.example.com", sampled=30, nxdomain=20, retried=1), PodDnsName(name="db", sampled=10)),
    names_sampled=40,
)
API = pod("prod/api", 6000, names=(PodDnsName(name="db", sampled=25),), names_sampled=60)


def test_each_pod_has_its_figures_and_who_asks_most_is_first() -> None:
    report = pods_dns({"n1": PodDnsReport(node="n9", pods=(WEB,)), "n2": PodDnsReport(node="n2", pods=(API,))}, ("n1",))
    api, web = report.pods
    assert (api.node, api.pod, api.queries_per_second, api.p99_ms, api.queries_per_useful_answer) == (
        "n2",
        "api",
        100.0,
        None,
        None,
    )
    assert (web.node, web.p50_ms, web.p99_ms) == ("n1", 0.524, 1.049)
    assert (web.nxdomain_share, web.queries_per_useful_answer, web.searched_share) == (0.6, 6.0, 0.75)
    assert (report.together.queries, report.together.queries_per_second) == (6600, 110.0)
    assert (report.together.p50_ms, report.together.timeouts, report.together.retries) == (0.524, 2, 3)


def test_a_name_stands_once_with_who_asks_for_it_most() -> None:
    report = pods_dns({"n1": PodDnsReport(node="n1", pods=(WEB, API))}, ())
    assert [
        (one.name, one.sampled, one.share, one.nxdomain, one.retried, one.asked_most_by) for one in report.names
    ] == [
        ("db", 35, 0.35, 0, 0, "prod/api"),
        ("www.example.com", 30, 0.3, 20, 1, "shop/web"),
    ]


def test_of_many_names_those_most_asked_for_are_shown() -> None:
    pods = tuple(
        pod(f"n/p{number}", 1, names=(PodDnsName(name=f"name{number:02}", sampled=number),), names_sampled=number)
        for number in range(1, MOST_NAMES + 10)
    )
    names = pods_dns({"n1": PodDnsReport(node="n1", pods=pods)}, ()).names
    assert len(names) == MOST_NAMES
    assert names[0].name == f"name{MOST_NAMES + 9}"


def test_who_is_silent_and_where_nothing_is_measured_is_named() -> None:
    off = PodDnsReport(node="n2", measured=False)
    report = pods_dns({"n1": PodDnsReport(node="n1", left_out=4), "n2": off}, ("n1", "n2", "n3"))
    assert (report.silent, report.unmeasured, report.left_out) == (("n3",), ("n2",), 4)
    missing = tables(report)[-1]
    assert [row[0] for row in missing.rows] == ["n3", "n2"]
    assert "4 pods" in tables(report)[1].note
    assert tables(pods_dns({"n1": PodDnsReport(node="n1")}, ("n1",)))[-1].title != missing.title


def test_of_nothing_there_are_no_figures() -> None:
    report = pods_dns({}, ())
    assert (report.pods, report.names) == ((), ())
    assert (report.together.p99_ms, report.together.nxdomain_share) == (None, None)


def test_what_coredns_counts_stands_beside_it() -> None:
    counted = DnsReport(
        10.0, 2, 50, (("NOERROR", 50),), 0.5, 2.0, cache_hits=30, cache_misses=10,
        upstreams=(DnsUpstream("192.0.2.53:53", 10, 8.0, 250.0),),
    )  # fmt: skip
    drawn = {table.title: table for table in tables(pods_dns({}, (), counted))}
    assert drawn["CoreDNS in the last 10 s"].rows == (("2", "50", "NOERROR 50", "0.5 ms", "2.0 ms", "75 %"),)
    assert drawn["Upstreams that CoreDNS asked"].rows == (("192.0.2.53:53", "10", "8.0 ms", "250.0 ms"),)
    assert not any("CoreDNS" in table.title for table in tables(pods_dns({}, ())))
