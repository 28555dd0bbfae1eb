"""Pools judged: which give addresses, and what is said of those that do not."""

from __future__ import annotations

from ipaddress import ip_network
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.models import HOST_GW
from kit.pools import any_overlap, judge_pools
from proto.objects import IPPool

AS_THEY_ARE = {HOST_GW.name: HOST_GW}
"""Models of a mesh that has no other."""


def pool(name: str, cidr: str, size: int = 26, **more: Any) -> IPPool:
    return IPPool(name=name, cidr=ip_network(cidr), block_size=size, **more)


@pytest.mark.parametrize(
    ("pools", "problem"),
    [
        ([pool("a", "10.0.0.0/16"), pool("b", "10.1.0.0/16")], ""),
        (
            [pool("a", "10.0.0.0/16"), pool("b", "10.0.128.0/20")],
            "b: spec.cidr 10.0.128.0/20 overlaps 10.0.0.0/16 of IPPool a",
        ),
        ([pool("a", "10.0.0.0/27")], "a: spec.cidr 10.0.0.0/27 is smaller than one block (/26)"),
        ([pool("a", "10.0.0.0/26")], ""),
        ([pool("a", "10.0.0.0/8", 19)], "blockSize 19 is outside 20-32"),
        ([pool("a", "fd00::/56", 122)], ""),
        ([pool("a", "fd00::/56", 64)], "blockSize 64 is outside 116-128"),
        ([pool("a", "10.0.0.0/16", node_selector="zone = east")], "nodeSelector 'zone = east' is not understood"),
        ([pool("a", "fd00::/56", 122), pool("b", "10.0.0.0/16")], ""),
        ([pool("a", "10.0.0.0/16", disabled=True), pool("b", "10.0.1.0/24")], ""),
        ([pool("a", "10.0.0.0/16", ipip_mode="Always")], "a: spec.ipipMode Always: pod packets cannot travel in IPIP"),
        ([pool("a", "10.0.0.0/16", ipip_mode="CrossSubnet")], "spec.ipipMode CrossSubnet"),
        ([pool("a", "10.0.0.0/16", vxlan_mode="CrossSubnet")], "spec.vxlanMode CrossSubnet"),
        ([pool("a", "fd00::/56", 122, vxlan_mode="Always")], "pod packets cannot travel in VXLAN"),
        ([pool("a", "10.0.0.0/16", vxlan_mode="Always", disabled=True)], ""),
        ([pool("a", "10.0.0.0/16", namespace_selector="team == 'a'")], "spec.namespaceSelector \"team == 'a'\""),
        ([pool("a", "10.0.0.0/16", namespace_selector=" all() ")], ""),
        ([pool("a", "10.0.0.0/16", allowed_uses=("Workload", "Tunnel"))], ""),
        ([pool("a", "10.0.0.0/16", allowed_uses=("Tunnel",))], "spec.allowedUses Tunnel: addresses are given to pods"),
        ([pool("a", "10.0.0.0/16", allowed_uses=("LoadBalancer",))], "spec.allowedUses LoadBalancer"),
        ([pool("a", "10.0.0.0/16", allowed_uses=("Workload", "LoadBalancer"))], "spec.allowedUses Workload, LoadB"),
        ([pool("a", "10.0.0.0/16", assignment_mode="Manual")], ""),
    ],
)
def test_pools_are_judged_in_one_sentence(pools: list[IPPool], problem: str) -> None:
    judged = judge_pools(pools, served=AS_THEY_ARE)
    assert len(judged.problems) == (1 if problem else 0)
    assert problem in "".join(judged.problems)
    assert all("; " in sentence for sentence in judged.problems), "with a remedy"
    assert [verdict.pool for verdict in judged.verdicts] == sorted(one.name for one in pools)
    assert not any(verdict.allocatable and verdict.refused for verdict in judged.verdicts)


def test_a_new_pool_never_displaces_one_in_use() -> None:
    both = [pool("a-new", "10.0.0.0/8"), pool("z-old", "10.1.0.0/16")]
    assert [sound.name for sound in judge_pools(both, frozenset({"z-old"})).sound] == ["z-old"]
    assert [sound.name for sound in judge_pools(both).sound] == ["a-new"]


@pytest.mark.parametrize(
    ("pools", "in_use", "gives", "sound"),
    [
        ([pool("a", "10.0.0.0/16", ipip_mode="Always"), pool("b", "10.0.1.0/24")], "", "b", "b"),
        ([pool("a", "10.0.0.0/16", disabled=True), pool("b", "10.0.1.0/24")], "", "b", "b"),
        ([pool("a", "10.0.0.0/16", disabled=True), pool("b", "10.0.1.0/24")], "a", "", "a"),
        ([pool("a", "10.0.0.0/16", ipip_mode="Always"), pool("b", "10.0.1.0/24")], "a", "", "a"),
        ([pool("a", "10.0.0.0/16", assignment_mode="Manual"), pool("b", "10.1.0.0/16")], "", "b", "a b"),
        ([pool("a", "10.0.0.0/16", node_selector="??"), pool("b", "10.1.0.0/16")], "", "b", "a b"),
    ],
)
def test_which_pool_gives(pools: list[IPPool], in_use: str, gives: str, sound: str) -> None:
    judged = judge_pools(pools, frozenset(in_use.split()), AS_THEY_ARE)
    assert [one.name for one in judged.enabled(4)] == gives.split()
    assert [one.name for one in judged.sound] == sound.split()


def test_a_block_of_a_pool_that_gives_nothing_is_still_known() -> None:
    judged = judge_pools([pool("a", "10.0.0.0/16"), pool("b", "10.0.0.0/8")])
    found = [judged.of(ip_network(text)) for text in ("10.0.0.0/26", "10.1.0.0/26", "11.0.0.0/26")]
    assert [(one.name, one.enabled) if one else None for one in found] == [("a", True), ("b", False), None]


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(4, 12), st.booleans()), max_size=8), st.randoms())
def test_no_address_is_in_two_pools_that_give(spans: list[tuple[int, int, bool]], chance: Random) -> None:
    pools = [
        pool(f"p{index}", str(ip_network((first << 24, length), strict=False)), disabled=disabled)
        for index, (first, length, disabled) in enumerate(spans)
    ]
    in_use = {one.name for one in pools if chance.random() < 0.5}
    giving = judge_pools(pools, in_use).enabled(4)
    assert not any(one is not other and one.cidr.overlaps(other.cidr) for one in giving for other in giving)
    naive = any(one is not other and one.cidr.overlaps(other.cidr) for one in pools for other in pools)
    assert any_overlap(pools) == naive
    chance.shuffle(pools)
    assert judge_pools(pools, in_use).enabled(4) == giving, "the order of arrival decides nothing"
