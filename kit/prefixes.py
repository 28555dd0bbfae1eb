"""Prefixes of either family: longest match, difference, and the cut of overlapping prefixes into disjoint ones.

Works on ``ipaddress`` values; the two families never mix. Complexity is in prefixes, never in addresses, so ``::/0``
costs as much as a host route.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Generic, TypeVar

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
V = TypeVar("V")


class PrefixTable(Generic[V]):
    """A table of prefixes and values, asked by longest match. Setting a prefix again replaces its value."""

    def __init__(self, entries: Iterable[tuple[Network, V]] = ()) -> None:
        self._by_length: dict[tuple[int, int], dict[int, V]] = {}
        self._lengths: dict[int, list[int]] = {4: [], 6: []}
        for prefix, value in entries:
            self.set(prefix, value)

    def set(self, prefix: Network, value: V) -> None:
        """Put a prefix in, in place of what it had."""
        slot = (prefix.version, prefix.prefixlen)
        if slot not in self._by_length:
            self._by_length[slot] = {}
            lengths = self._lengths[prefix.version]
            lengths.append(prefix.prefixlen)
            lengths.sort(reverse=True)
        self._by_length[slot][int(prefix.network_address)] = value

    def remove(self, prefix: Network) -> None:
        """Take a prefix out; one that is not there is fine."""
        slot = (prefix.version, prefix.prefixlen)
        held = self._by_length.get(slot)
        if held is None:
            return
        held.pop(int(prefix.network_address), None)
        if not held:
            del self._by_length[slot]
            self._lengths[prefix.version].remove(prefix.prefixlen)

    def lookup(self, address: Address) -> tuple[Network, V] | None:
        """The longest prefix that holds the address, and its value."""
        bits = address.max_prefixlen
        number = int(address)
        for length in self._lengths[address.version]:
            base = number >> (bits - length) << (bits - length)
            held = self._by_length[address.version, length]
            if base in held:
                return _network(address.version, base, length), held[base]
        return None

    def __len__(self) -> int:
        return sum(len(held) for held in self._by_length.values())

    def __iter__(self) -> Iterator[tuple[Network, V]]:
        for (version, length), held in sorted(self._by_length.items()):
            for base in sorted(held):
                yield _network(version, base, length), held[base]


def subtract(whole: Network, holes: Iterable[Network]) -> tuple[Network, ...]:
    """What is left of ``whole`` without ``holes``: disjoint prefixes in order, as few as can be."""
    cut = sorted({hole for hole in holes if hole.version == whole.version and overlap(hole, whole)}, key=_order)
    return tuple(_subtract(whole, cut))


def _subtract(whole: Network, holes: list[Network]) -> Iterator[Network]:
    if not holes:
        yield whole
        return
    if any(hole.prefixlen <= whole.prefixlen for hole in holes):
        return
    for half in whole.subnets():
        yield from _subtract(half, [hole for hole in holes if overlap(hole, half)])


def partition(sets: Mapping[Network, frozenset[V]]) -> dict[Network, frozenset[V]]:
    """Cut prefixes that may nest into disjoint ones; each carries the union of what the prefixes around it carry.

    Together they cover exactly what was given. Neighbours that carry the same are not joined. Prefixes of one family
    either nest or do not meet, so this is a walk of a forest.
    """
    result: dict[Network, frozenset[V]] = {}
    stack: list[tuple[Network, frozenset[V], list[Network]]] = []

    def close() -> None:
        prefix, carried, children = stack.pop()
        for rest in subtract(prefix, children):
            result[rest] = carried

    for prefix in sorted(sets, key=_order):
        while stack and not overlap(stack[-1][0], prefix):
            close()
        around = stack[-1][1] if stack else frozenset[V]()
        if stack:
            stack[-1][2].append(prefix)
        stack.append((prefix, around | sets[prefix], []))
    while stack:
        close()
    return dict(sorted(result.items(), key=lambda item: _order(item[0])))


def overlap(one: Network, other: Network) -> bool:
    """True when some address is in both; False for different families."""
    if one.version != other.version:
        return False
    shorter, longer = (one, other) if one.prefixlen <= other.prefixlen else (other, one)
    shift = shorter.max_prefixlen - shorter.prefixlen
    return int(shorter.network_address) >> shift == int(longer.network_address) >> shift


def _order(prefix: Network) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def _network(version: int, base: int, length: int) -> Network:
    return ip_network((base.to_bytes(4 if version == 4 else 16, "big"), length))
