"""The benchmark of lookups, for a moment: how many queries a lookup is, by `ndots` and C library, is exact.

Source: resolv.conf(5), ndots; musl src/network/lookup_name.c (name_from_dns_search).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.dns import ways
from bench.dns.__main__ import RECIPE, read_form
from bench.dns.ground import GLIBC, MUSL, Load, compiled, ground, make_pod
from services.dns.core.corefile import render
from services.dns.core.samples import since
from tests.kubeapi import KubeApi

pytestmark = pytest.mark.privileged
LOAD = Load(lookups=40, interval_us=1000, fresh=200)
FAMILIES, SEARCHED = 2, 4
"""A and AAAA; the search list of a pod on a node with a domain of its own."""


@pytest.fixture(scope="module")
def programs(kube_api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_pod(kube_api)
    return compiled(tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize(
    ("way", "queries"),
    [
        pytest.param(ways.kubeadm(read_form("kubeadm")), FAMILIES * (SEARCHED + 1), id="kubeadm"),
        pytest.param(
            ways.node_local(read_form("nodelocal"), read_form("kubeadm")), FAMILIES * (SEARCHED + 1), id="node-local"
        ),
        pytest.param(ways.ours(render(RECIPE), ndots=ways.FEWER_NDOTS), FAMILIES, id="ndots"),
    ],
)
def test_queries_of_a_lookup(kube_api: KubeApi, programs: Path, tmp_path: Path, way: ways.Way, queries: int) -> None:
    with ground(way, kube_api, programs, tmp_path, delay_us=1000) as on:
        for library in (GLIBC, MUSL):
            before = on.counts()
            looked = on.look_up(library, LOAD, 1)
            asked = since(before, on.counts()).queries
            assert looked.failed == 0
            assert len(looked.us) == LOAD.lookups
            sent_again = asked - queries * LOAD.lookups
            assert 0 <= sent_again < LOAD.lookups, (library, asked)
