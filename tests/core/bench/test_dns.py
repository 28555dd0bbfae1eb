"""The tables of the benchmark of lookups, and the forms that it compares with."""

from __future__ import annotations

import pytest

from bench.dns import ways
from bench.dns.__main__ import read_form
from bench.dns.report import Looked, Run, report


def runs(way: str, p99: float, queries: int) -> list[Run]:
    looked = Looked(us=(1000.0,) * 97 + (p99 * 1000,) * 3, failed=0)
    return [Run(way=way, load="hot", library="musl", looked=looked, queries=queries * 100) for _ in range(3)]


def test_a_row_has_quantiles_queries_and_ratios_to_both_peers() -> None:
    text = report([*runs(ways.KUBEADM, 40, 10), *runs(ways.NODELOCAL, 20, 10), *runs(ways.WITH_NDOTS, 10, 2)])
    assert "hot, musl" in text
    assert "| airmesh, tuned, ndots 2 | 1.00 | 10.00 | 2.00 | 0.25 [0.25-0.25] | 0.5 [0.5-0.5] |" in text


def test_lookups_that_failed_are_reported() -> None:
    failed = Run(way=ways.KUBEADM, load="hot", library="glibc", looked=Looked(us=(1.0,), failed=3), queries=4)
    whole = Run(way=ways.NODELOCAL, load="hot", library="glibc", looked=Looked(us=(1.0,), failed=0), queries=4)
    assert "kubeadm (3 failed)" in report([failed, whole])


def test_rounds_that_a_peer_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        report([*runs(ways.KUBEADM, 40, 10), *runs(ways.NODELOCAL, 20, 10)[:2]])


def test_the_peers_are_the_installers_own_but_for_addresses() -> None:
    way = ways.node_local(read_form("nodelocal"), read_form("kubeadm"))
    behind, near = way.corefiles
    assert near == read_form("nodelocal")
    assert {*behind.splitlines()} - {*read_form("kubeadm").splitlines()} == {
        "    bind 10.96.0.11",
        "    health 10.96.0.11:8080 {",
    }


def test_a_pods_resolv_conf_is_the_kubelets() -> None:
    assert ways.ours("", ndots=2).resolv_conf.splitlines() == [
        "nameserver 10.96.0.10",
        "search bench-dns.svc.cluster.local svc.cluster.local cluster.local compute.internal",
        "options ndots:2",
    ]
