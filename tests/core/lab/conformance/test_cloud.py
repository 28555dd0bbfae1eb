"""The lab's cloud: where it stands, and that its addresses are nobody else's."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest

from lab import topology
from lab.cluster import sysctls
from lab.conformance import cloud
from lab.topology import plan

POOLS = [ip_network(flag.partition("=")[2]) for flag in cloud.FLAGS if "pool" in flag]
SOURCES = [ip_interface(flag.partition("=")[2]).ip for flag in cloud.FLAGS if "source" in flag]
OTHERS = [
    topology.FABRIC4,
    topology.FABRIC6,
    topology.MANAGEMENT4,
    topology.SERVICES4,
    topology.SERVICES6,
    ip_network("172.30.0.0/16"),  # what the suite takes for the nodes' network
    ip_network("203.0.113.0/24"),  # what the suite itself uses for external addresses and for another Service network
    ip_network("10.244.0.0/16"),
]


def test_it_runs_beside_the_nodes_and_keeps_its_argv() -> None:
    argv = cloud.outside(plan("air", 3), ["ip", "route"])
    assert argv[:2] == ["nsenter", "--net=/run/netns/am-air-fab"]
    assert argv[-2:] == ["ip", "route"]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_its_addresses_are_nobody_elses(other: object) -> None:
    network = ip_network(str(other))
    assert not any(pool.version == network.version and pool.overlaps(network) for pool in POOLS)
    assert not any(source in network for source in SOURCES)


def test_an_outside_host_is_in_no_pool_and_of_both_families() -> None:
    assert not any(source in pool for source in SOURCES for pool in POOLS)
    assert {pool.version for pool in POOLS} == {source.version for source in SOURCES} == {4, 6}


def test_an_outside_host_takes_another_way_for_each_connection() -> None:
    reported = sysctls.outside_settings()
    assert reported["ipv4/fib_multipath_hash_policy"] == reported["ipv6/fib_multipath_hash_policy"] == "1"
