"""The cut address space: disjoint, exact, the same in any order, and numbers that mean the same for ever."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.net import Address
from proto.objects import IPBlock
from proto.policy import CidrSet
from services.policy.core.cidrs import Block, canonical, number_of, numbers_within, partition, set_number


def block(text: str) -> Block:
    """``10.0.0.0/8!10.1.0.0/16``: a CIDR and its exceptions."""
    cidr, *excepted = map(ip_network, text.split("!"))
    return canonical(IPBlock(cidr, tuple(excepted)))


@pytest.mark.parametrize(
    ("blocks", "pieces"),
    [
        ("10.0.0.0/8", "10.0.0.0/8={0}"),
        ("10.0.0.0/8 10.0.0.0/8", "10.0.0.0/8={0}"),
        ("10.0.0.0/8 10.0.0.0/9", "10.0.0.0/9={0,1} 10.128.0.0/9={0}"),
        ("10.0.0.0/30!10.0.0.1/32", "10.0.0.0/32={0} 10.0.0.2/31={0}"),
        ("10.0.0.0/31 10.0.0.2/31", "10.0.0.0/31={0} 10.0.0.2/31={1}"),
        ("10.0.0.0/30!10.0.0.0/31 10.0.0.0/31", "10.0.0.0/31={1} 10.0.0.2/31={0}"),
        ("10.0.0.0/30!10.0.0.0/30", ""),
        ("10.0.0.0/30!10.0.0.0/16", ""),
        ("10.0.0.0/30!fd00::/8", "10.0.0.0/30={0}"),
        ("10.0.0.0/30!11.0.0.0/8", "10.0.0.0/30={0}"),
        ("0.0.0.0/0", "0.0.0.0/0={0}"),
        ("0.0.0.0/0 10.0.0.1/32", None),
        ("fd00::/64 fd00::/65", "fd00::/65={0,1} fd00::8000:0:0:0/65={0}"),
        ("10.0.0.0/8 fd00::/8", "10.0.0.0/8={0} fd00::/8={1}"),
        ("::ffff:10.0.0.0/104", ""),
        ("", ""),
    ],
)
def test_partition(blocks: str, pieces: str | None) -> None:
    cut = [block(text) for text in blocks.split()]
    found = partition(cut)
    if pieces is None:
        assert len(found.prefixes) == 33
        return
    sets = {
        set_number([cut[i] for i in {*range(8)} if i < len(cut) and i in chosen]): chosen for chosen in subsets(cut)
    }
    text = " ".join(f"{p.prefix}={{{','.join(map(str, sorted(sets[p.number])))}}}" for p in found.prefixes)
    assert text == pieces


def subsets(cut: list[Block]) -> list[frozenset[int]]:
    distinct = [i for i, b in enumerate(cut) if b not in cut[:i]]
    return [frozenset(i for bit, i in enumerate(distinct) if mask >> bit & 1) for mask in range(1 << len(distinct))]


def test_an_ipv6_block_never_holds_mapped_ipv4() -> None:
    found = partition([block("::/0")])
    mapped = ip_network("::ffff:0:0/96")
    assert not any(entry.prefix.overlaps(mapped) for entry in found.prefixes)
    assert number_of(found.prefixes, ip_address("2001:db8::1")) != 0
    assert number_of(found.prefixes, ip_address("::fffe:255.255.255.255")) != 0
    assert number_of(found.prefixes, ip_address("::1:0:0:0")) != 0
    assert number_of(found.prefixes, ip_address("::ffff:10.0.0.1")) == 0


def test_numbers_are_for_ever() -> None:
    """Golden: another release must give the same number to the same set, or nodes would mix them up."""
    assert set_number([]) == 0
    assert set_number([block("10.0.0.0/8!10.2.0.0/16!10.1.0.0/16"), block("fd00::/8")]) == 0x7AEF13D269B3DAA8
    assert (
        set_number([block("fd00::/8"), block("10.0.0.0/8!10.1.0.0/16!10.2.0.0/16!10.1.0.0/16")]) == 0x7AEF13D269B3DAA8
    )


FOUR = ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/30", "10.0.0.4/30", "10.0.0.2/32")
SIX = ("::/0", "fd00::/8", "fd00::/126", "fd00::2/128")
TEXTS = st.sampled_from([*FOUR, *SIX])
BLOCKS = st.lists(st.lists(TEXTS, min_size=1, max_size=4).map("!".join).map(block), max_size=6)
NEAR = ("10.0.0.0", "10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.1.1", "11.0.0.0", "255.255.255.255")
NEAR6 = ("::", "fd00::", "fd00::2", "fd00::3", "fd00::4", "ff00::")
ADDRESSES = st.sampled_from([ip_address(text) for text in (*NEAR, *NEAR6)])


@settings(max_examples=300, deadline=None)
@given(BLOCKS, ADDRESSES, st.integers())
def test_an_address_is_in_the_set_of_exactly_the_blocks_that_hold_it(
    blocks: list[Block], address: Address, order: int
) -> None:
    found = partition(blocks)
    shuffled = blocks.copy()
    Random(order).shuffle(shuffled)
    assert partition(shuffled).prefixes == found.prefixes
    number = number_of(found.prefixes, address)
    assert number == set_number({one for one in blocks if one.holds(address)})
    for one in blocks:
        assert (number in found.numbers_by_block[one]) == one.holds(address)
    for index, entry in enumerate(found.prefixes):
        assert not any(
            entry.prefix.overlaps(other.prefix) for other in found.prefixes[index + 1 :] if same(entry, other)
        )


def same(one: CidrSet, other: CidrSet) -> bool:
    return one.prefix.version == other.prefix.version


@settings(max_examples=300, deadline=None)
@given(BLOCKS, BLOCKS, ADDRESSES)
def test_lines_for_another_partition_never_allow_more_than_the_block(
    before: list[Block], now: list[Block], address: Address
) -> None:
    old = partition(before)
    number = number_of(old.prefixes, address)
    within = numbers_within(old.prefixes, now)
    for one in now:
        if number in within[one]:
            assert one.holds(address), "an address outside the block was let in"
        if one in before and number:
            assert (number in within[one]) == one.holds(address), "a block that stays must go on working"


def test_a_number_clash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.policy.core.cidrs.set_number", lambda members: 7 if [*members] else 0)
    found = partition([block("10.0.0.0/8"), block("11.0.0.0/8")])
    assert found.clashes == (7,)
    assert found.prefixes == ()
    assert all(not numbers for numbers in found.numbers_by_block.values())
