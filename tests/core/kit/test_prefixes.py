"""Prefixes against a naive oracle that counts addresses one by one (in small worlds) or searches all prefixes."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.prefixes import Network, PrefixTable, overlap, partition, subtract


def small4(number: int, length: int) -> Network:
    return IPv4Network((0x0A000000 | (number << (32 - length) & 0xFF), length))


small = st.builds(
    lambda length, number: small4(number % (1 << (length - 24)), length), st.integers(24, 32), st.integers(0, 255)
)
any4 = st.builds(
    lambda n, length: IPv4Network((n, length), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
any6 = st.builds(
    lambda n, length: IPv6Network((n, length), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)
)


def addresses(prefixes: object) -> set[int]:
    return {int(address) for prefix in prefixes for address in prefix}  # type: ignore[attr-defined]


@given(small, st.lists(small, max_size=6))
def test_subtract_counts_addresses(whole: Network, holes: list[Network]) -> None:
    left = subtract(whole, holes)
    assert addresses(left) == addresses([whole]) - addresses(holes)
    assert sum(prefix.num_addresses for prefix in left) == len(addresses(left)), "disjoint"


@given(st.dictionaries(small, st.frozensets(st.sampled_from("abcd"), min_size=1), max_size=8))
def test_partition_counts_addresses(sets: dict[Network, frozenset[str]]) -> None:
    cut = partition(sets)
    assert addresses(cut) == addresses(sets)
    assert sum(prefix.num_addresses for prefix in cut) == len(addresses(cut)), "disjoint"
    for prefix, carried in cut.items():
        for address in prefix:
            around = frozenset[str]().union(*(value for p, value in sets.items() if address in p))
            assert carried == around


@given(st.lists(st.tuples(st.one_of(any4, any6), st.integers())), st.integers(0, 2**128 - 1))
def test_longest_match(entries: list[tuple[Network, int]], number: int) -> None:
    table = PrefixTable(entries)
    held = dict(entries)
    assert len(table) == len(held)
    assert dict(table) == held
    for address in (ip_address(number % 2**32), ip_address(number.to_bytes(16, "big"))):
        matching = [prefix for prefix in held if prefix.version == address.version and address in prefix]
        best = max(matching, key=lambda prefix: prefix.prefixlen, default=None)
        assert table.lookup(address) == (None if best is None else (best, held[best]))
    for prefix in held:
        table.remove(prefix)
    assert len(table) == 0


@given(st.one_of(any4, any6), st.one_of(any4, any6))
def test_overlap_is_that_of_ipaddress(one: Network, other: Network) -> None:
    expected = one.version == other.version and one.overlaps(other)
    assert overlap(one, other) == expected


@pytest.mark.parametrize(
    ("whole", "holes", "left"),
    [
        ("10.0.0.0/8", [], ["10.0.0.0/8"]),
        ("10.0.0.0/8", ["10.0.0.0/8"], []),
        ("10.0.0.0/8", ["0.0.0.0/0"], []),
        ("10.0.0.0/30", ["10.0.0.1/32"], ["10.0.0.0/32", "10.0.0.2/31"]),
        ("10.0.0.0/8", ["fd00::/8"], ["10.0.0.0/8"]),
        ("::/0", ["8000::/1"], ["::/1"]),
    ],
)
def test_subtract_table(whole: str, holes: list[str], left: list[str]) -> None:
    assert subtract(ip_network(whole), map(ip_network, holes)) == tuple(map(ip_network, left))
