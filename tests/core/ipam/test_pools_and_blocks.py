"""Blocks chosen: tables."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.pools import Pools, judge_pools
from proto.addresses import Block
from proto.net import Network
from proto.objects import IPPool, Node
from services.ipam.core.blocks import Exhausted, Holder, choose_block, overlapping


def pool(name: str, cidr: str, size: int = 26, **more: Any) -> IPPool:
    return IPPool(name=name, cidr=ip_network(cidr), block_size=size, **more)


HOLDER = Holder("n1", "uid-n1", "nonce")


def held(**holders: str) -> dict[Network, Block]:
    made: dict[Network, Block] = {}
    for name, text in holders.items():
        for cidr in text.split():
            made[ip_network(cidr)] = Block(ip_network(cidr), "a", "" if name == "nobody" else name, "u", 7, "x")
    return made


@pytest.mark.parametrize(
    ("pools", "blocks", "kept", "chosen"),
    [
        ([pool("a", "10.0.0.0/24")], {}, "", "10.0.0.0/26"),
        ([pool("a", "10.0.0.0/24")], {"n2": "10.0.0.0/26"}, "", "10.0.0.64/26"),
        ([pool("a", "10.0.0.0/24")], {"n2": "10.0.0.0/26 10.0.0.128/26"}, "", "10.0.0.64/26"),
        ([pool("a", "10.0.0.0/24")], {"n2": "10.0.0.0/25"}, "", "10.0.0.128/26"),
        ([pool("a", "10.0.0.0/24")], {"n2": "10.0.0.32/27"}, "", "10.0.0.64/26"),
        ([pool("a", "10.0.0.0/24")], {"nobody": "10.0.0.0/26"}, "", "10.0.0.0/26"),
        ([pool("a", "10.0.0.0/24")], {}, "10.0.0.0/26", "10.0.0.64/26"),
        ([pool("a", "10.0.0.0/26"), pool("b", "10.1.0.0/24")], {"n2": "10.0.0.0/26"}, "", "10.1.0.0/26"),
        ([pool("a", "10.0.0.0/26")], {"n2": "10.0.0.0/26"}, "", "every block of IPPool a is held"),
        (
            [pool("a", "10.0.0.0/24", node_selector="has(gpu)")],
            {},
            "",
            "no enabled IPPool of this family takes the node",
        ),
        ([pool("a", "10.0.0.0/24", disabled=True)], {}, "", "no enabled IPPool of this family takes the node"),
    ],
)
def test_the_smallest_free_block(pools: list[IPPool], blocks: dict[str, str], kept: str, chosen: str) -> None:
    judged: Pools = judge_pools(pools)
    node = Node(name="n1", uid="uid-n1")
    mine = tuple(sound for sound in judged.enabled(4) if sound.takes(node))
    got = choose_block(mine, held(**blocks), HOLDER, kept=frozenset(ip_network(text) for text in kept.split()), now=100)
    assert (got.why if isinstance(got, Exhausted) else str(got.cidr)).startswith(chosen)


def test_the_epoch_of_a_block_only_rises() -> None:
    pools = judge_pools([pool("a", "10.0.0.0/24")]).enabled(4)
    first = choose_block(pools, {}, HOLDER, now=100)
    again = choose_block(pools, held(nobody="10.0.0.0/26"), HOLDER, now=3)
    assert isinstance(first, Block)
    assert isinstance(again, Block)
    assert (first.epoch, again.epoch) == (100, 8), "the clock of now, or one more than the last holder's"


@given(st.integers(20, 32), st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(20, 32)), max_size=20))
def test_a_chosen_block_overlaps_nothing_that_is_held(size: int, others: list[tuple[int, int]]) -> None:
    cidrs = [ip_network(((10 << 24) + index, length), strict=False) for index, length in others]
    blocks = {cidr: Block(cidr, "a", "n2", "u", 7, "x") for cidr in cidrs}
    got = choose_block(judge_pools([pool("a", "10.0.0.0/16", size)]).enabled(4), blocks, HOLDER)
    if isinstance(got, Block):
        assert overlapping(blocks.values(), got.cidr) is None
        assert got.cidr not in blocks
    else:
        assert size <= 24, "in a pool this wide there is room for a small one"


def test_a_block_is_found_in_a_pool_of_2_to_the_66_blocks() -> None:
    pools = judge_pools([pool("a", "fd00::/56", 122)]).enabled(6)
    got = choose_block(pools, {}, HOLDER)
    assert isinstance(got, Block)
    assert got.cidr == ip_network("fd00::/122")
