"""CIDR sets: exact, the same in any order, no more prefixes than were written, numbers that mean the same for ever."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.net import Address
from proto.objects import IPBlock
from services.policy.core.cidrs import (
    Area,
    TooMuchOverlap,
    area_of,
    number_of,
    numbers_within,
    partition,
    set_number,
)
from tests.cpu_time import least


def block(text: str) -> IPBlock:
    """``10.0.0.0/8!10.1.0.0/16``: a CIDR and its exceptions."""
    cidr, *excepted = map(ip_network, text.split("!"))
    return IPBlock(cidr, tuple(excepted))


def area(text: str) -> Area:
    """Blocks with commas between: what one rule names."""
    return area_of(map(block, text.split(",")))


@pytest.mark.parametrize(
    ("areas", "prefixes"),
    [
        ("10.0.0.0/8", "10.0.0.0/8={0}"),
        ("10.0.0.0/8 10.0.0.0/8", "10.0.0.0/8={0}"),
        ("10.0.0.0/8 10.0.0.0/9", "10.0.0.0/8={0} 10.0.0.0/9={0,1}"),
        ("10.0.0.0/8,10.0.0.0/9", "10.0.0.0/8={0}"),
        ("10.0.0.0/8,11.0.0.0/8", "10.0.0.0/8={0} 11.0.0.0/8={0}"),
        ("10.0.0.0/30!10.0.0.1/32", "10.0.0.0/30={0} 10.0.0.1/32={}"),
        ("10.0.0.0/30!10.0.0.1/32,10.0.0.0/31", "10.0.0.0/30={0}"),
        ("10.0.0.0/31 10.0.0.2/31", "10.0.0.0/31={0} 10.0.0.2/31={1}"),
        ("10.0.0.0/30!10.0.0.0/31 10.0.0.0/31", "10.0.0.0/30={0} 10.0.0.0/31={1}"),
        ("10.0.0.0/24!10.0.0.0/25!10.0.0.0/26 10.0.0.0/26", "10.0.0.0/24={0} 10.0.0.0/25={} 10.0.0.0/26={1}"),
        ("10.0.0.0/30!10.0.0.0/30", ""),
        ("10.0.0.0/30!10.0.0.0/16", ""),
        ("10.0.0.0/30!fd00::/8", "10.0.0.0/30={0}"),
        ("10.0.0.0/30!11.0.0.0/8", "10.0.0.0/30={0}"),
        ("0.0.0.0/0", "0.0.0.0/0={0}"),
        ("0.0.0.0/0 10.0.0.1/32", "0.0.0.0/0={0} 10.0.0.1/32={0,1}"),
        ("fd00::/64 fd00::/65", "fd00::/64={0} fd00::/65={0,1}"),
        ("10.0.0.0/8 fd00::/8", "10.0.0.0/8={0} fd00::/8={1}"),
        ("::/0", "::/0={0} ::ffff:0:0/96={}"),
        ("::/0 0.0.0.0/0", "0.0.0.0/0={1} ::/0={0}"),
        ("::ffff:10.0.0.0/104", ""),
        ("", ""),
    ],
)
def test_partition(areas: str, prefixes: str) -> None:
    cut = [area(text) for text in areas.split()]
    found = partition(cut)
    sets = {
        set_number([cut[i] for i in {*range(8)} if i < len(cut) and i in chosen]): chosen for chosen in subsets(cut)
    }
    text = " ".join(f"{p.prefix}={{{','.join(map(str, sorted(sets[p.number])))}}}" for p in found.prefixes)
    assert text == prefixes


def subsets(cut: list[Area]) -> list[frozenset[int]]:
    distinct = [i for i, b in enumerate(cut) if b not in cut[:i]]
    return [frozenset(i for bit, i in enumerate(distinct) if mask >> bit & 1) for mask in range(1 << len(distinct))]


def test_an_ipv6_block_never_holds_mapped_ipv4() -> None:
    found = partition([area("::/0")])
    assert number_of(found.prefixes, ip_address("2001:db8::1")) != 0
    assert number_of(found.prefixes, ip_address("::fffe:255.255.255.255")) != 0
    assert number_of(found.prefixes, ip_address("::1:0:0:0")) != 0
    assert number_of(found.prefixes, ip_address("::ffff:10.0.0.1")) == 0


def test_numbers_are_for_ever() -> None:
    """Golden: another release must give the same number to the same set, or nodes would mix them up."""
    assert set_number([]) == 0
    one, other = area("10.0.0.0/8!10.2.0.0/16!10.1.0.0/16"), area("fd00::/8")
    assert set_number([one, other]) == 0x1A1ABB8B20884CF8
    assert set_number([other, area("10.0.0.0/8!10.1.0.0/16!10.2.0.0/16!10.1.0.0/16"), one]) == 0x1A1ABB8B20884CF8
    assert partition([one, other]).digest == "faebe25cca23d71a3c68438547487650"


FOUR = ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/30", "10.0.0.4/30", "10.0.0.2/32")
SIX = ("::/0", "fd00::/8", "fd00::/126", "fd00::2/128")
TEXTS = st.sampled_from([*FOUR, *SIX])
BLOCKS = st.lists(TEXTS, min_size=1, max_size=4).map("!".join)
AREAS = st.lists(st.lists(BLOCKS, min_size=1, max_size=3).map(",".join).map(area), max_size=6)
NEAR = ("10.0.0.0", "10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.1.1", "11.0.0.0", "255.255.255.255")
NEAR6 = ("::", "fd00::", "fd00::2", "fd00::3", "fd00::4", "ff00::")
ADDRESSES = st.sampled_from([ip_address(text) for text in (*NEAR, *NEAR6)])


@settings(max_examples=400, deadline=None)
@given(AREAS, ADDRESSES, st.integers())
def test_an_address_is_in_the_set_of_exactly_the_areas_that_hold_it(
    areas: list[Area], address: Address, order: int
) -> None:
    found = partition(areas)
    shuffled = areas.copy()
    Random(order).shuffle(shuffled)
    assert partition(shuffled) == found
    number = number_of(found.prefixes, address)
    assert number == set_number({one for one in areas if naively_holds(one, address)})
    for one in areas:
        assert (number in found.numbers_by_area[one]) == naively_holds(one, address)
    assert len({entry.prefix for entry in found.prefixes}) == len(found.prefixes)
    assert len(found.prefixes) <= len({text for one in areas for text in one.text.replace("!", "\n").split()}) + 1


def naively_holds(one: Area, address: Address) -> bool:
    """As the API's words say it, without a word of the code: in a block's CIDR, in none of its exceptions."""
    blocks = [[ip_network(text) for text in line.split("!")] for line in one.text.split("\n")]
    return any(address in cidr and not any(address in hole for hole in holes) for cidr, *holes in blocks)


@settings(max_examples=400, deadline=None)
@given(AREAS, AREAS, ADDRESSES)
def test_rules_for_another_partition_never_allow_more_than_the_area(
    before: list[Area], now: list[Area], address: Address
) -> None:
    old = partition(before)
    number = number_of(old.prefixes, address)
    within = numbers_within(old.prefixes, now)
    for one in now:
        if number in within[one]:
            assert one.holds(address), "an address outside the area was let in"
        if one in before and number:
            assert (number in within[one]) == one.holds(address), "an area that stays must go on working"


def test_an_ipv6_area_goes_on_when_all_of_ipv4_is_named_no_more() -> None:
    """In the kernel's trie 0.0.0.0/0 has the key of the hole in ::/0, which is not written then."""
    world4, world6 = area("0.0.0.0/0"), area("::/0")
    old = partition([world4, world6])
    assert len(old.prefixes) == 2
    assert numbers_within(old.prefixes, [world6]) == {world6: {number_of(old.prefixes, ip_address("::1"))}}
    assert number_of(old.prefixes, ip_address("::ffff:10.0.0.1")) == set_number([world4])


def test_a_number_clash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.policy.core.cidrs._number", lambda _, count: 7 if count else 0)
    found = partition([area("10.0.0.0/8"), area("11.0.0.0/8")])
    assert found.clashes == (7,)
    assert {entry.number for entry in found.prefixes} == {0}
    assert all(not numbers for numbers in found.numbers_by_area.values())


def scattered(count: int, step: int = 7_155_193) -> list[IPv4Network]:
    return [IPv4Network((index * step % (1 << 32), 32)) for index in range(1, count + 1)]


def scattered6(count: int) -> list[IPv6Network]:
    return [IPv6Network(((0x2001 << 112) + (index * 7_155_193 << 64), 64)) for index in range(1, count + 1)]


def test_600_scattered_exceptions_are_601_prefixes() -> None:
    found = partition([area_of([IPBlock(IPv4Network("0.0.0.0/0"), tuple(scattered(600)))])])
    assert len(found.prefixes) == 601


@pytest.mark.parametrize(
    ("areas", "many"),
    [
        pytest.param(lambda many: [area_of([IPBlock(net)]) for net in scattered(many)], 4_000, id="rules"),
        pytest.param(lambda many: [area_of(map(IPBlock, scattered(many)))], 2_000, id="a rule of many blocks"),
        pytest.param(lambda many: [area_of([IPBlock(net)]) for net in scattered6(many)], 2_000, id="rules of IPv6"),
        pytest.param(
            lambda many: [
                area_of([IPBlock(IPv4Network("0.0.0.0/0"), tuple(scattered(1000, seed)))])
                for seed in range(7_000_001, 7_000_001 + many)
            ],
            20,
            id="rules of 1,000 exceptions each",
        ),
    ],
)
def test_cutting_costs_what_is_cut(areas: Callable[[int], list[Area]], many: int) -> None:
    """Ten times as much takes some ten times as long; comparing each with each would take a hundred times."""
    small, large = areas(many // 10), areas(many)
    some, all_ = partition(small).prefixes, partition(large).prefixes
    assert len(all_) >= len(large)
    assert least(2, lambda: partition(large)) < 50 * least(5, lambda: partition(small))
    assert least(2, lambda: numbers_within(all_, large)) < 50 * least(5, lambda: numbers_within(some, small))


def test_overlap_beyond_its_bound_is_refused_in_time() -> None:
    """2,000 rules on all addresses but one each: 4,000,000 pairs of a set and a member, of 200 rules a hundredth."""
    areas = [area_of([IPBlock(IPv4Network("0.0.0.0/0"), (hole,))]) for hole in scattered(2000)]

    def refused() -> None:
        with pytest.raises(TooMuchOverlap):
            partition(areas, most=100_000)

    assert least(3, refused) < 20 * least(3, lambda: partition(areas[:200]))
    assert number_of(partition(areas[:3]).prefixes, IPv4Address("9.9.9.9")) == set_number(areas[:3])
