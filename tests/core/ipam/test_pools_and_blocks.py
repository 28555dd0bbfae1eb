"""Pools judged, blocks chosen: tables."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.addresses import Block
from proto.net import Network
from proto.objects import IPPool, Node
from services.ipam.core.blocks import Exhausted, Holder, choose_block, overlapping
from services.ipam.core.pools import Pools, judge_pools, parse_selector


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
        ([pool("a", "10.0.0.0/16", disabled=True), pool("b", "10.0.1.0/24")], "b: spec.cidr 10.0.1.0/24 overlaps"),
    ],
)
def test_pools_are_judged_in_one_sentence(pools: list[IPPool], problem: str) -> None:
    judged = judge_pools(pools)
    assert len(judged.problems) == (1 if problem else 0)
    assert problem in "".join(judged.problems)
    assert all("; " in sentence or "nodeSelector" in sentence for sentence in judged.problems), "with a remedy"


def test_a_new_pool_never_displaces_one_in_use() -> None:
    both = [pool("a-new", "10.0.0.0/8"), pool("z-old", "10.1.0.0/16")]
    assert [sound.name for sound in judge_pools(both, frozenset({"z-old"})).sound] == ["z-old"]
    assert [sound.name for sound in judge_pools(both).sound] == ["a-new"]


@pytest.mark.parametrize(
    ("selector", "labels", "selected"),
    [
        ("all()", {}, True),
        ("", {}, True),
        ("zone == 'east'", {"zone": "east"}, True),
        ("zone == 'east'", {"zone": "west"}, False),
        ("zone == 'east'", {}, False),
        ("zone != 'east'", {}, True),
        ('zone == "east"', {"zone": "east"}, True),
        ("has(gpu)", {"gpu": ""}, True),
        ("!has(gpu)", {"gpu": ""}, False),
        ("topology.kubernetes.io/zone in {'a', 'b'}", {"topology.kubernetes.io/zone": "b"}, True),
        ("zone not in {'a', 'b'}", {"zone": "c"}, True),
        ("zone not in {'a'}", {}, True),
        ("has(gpu) && zone == 'east'", {"gpu": "1", "zone": "east"}, True),
        ("has(gpu) && zone == 'east'", {"gpu": "1"}, False),
    ],
)
def test_node_selectors(selector: str, labels: dict[str, str], selected: bool) -> None:
    matches = parse_selector(selector)
    assert not isinstance(matches, str)
    assert matches(labels) is selected


@given(st.text(max_size=60))
def test_no_text_breaks_the_selector_reader(text: str) -> None:
    matches = parse_selector(text)
    assert isinstance(matches, str) or matches({}) in (True, False)


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
    cidrs = [ip_network(((10 << 24) + place, length), strict=False) for place, length in others]
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
