"""A table as a peer sends it: many attribute sets, prefixes of usual lengths, packed into UPDATE messages. Pure.

Prefix lengths are spread as in the table of the Internet: six of ten are the longest that is commonly passed on. A
prefix belongs to an attribute set by a skewed draw, so that most sets have few prefixes and a few have hundreds. A
hundredth of the prefixes lies in a range that every speaker's import policy refuses, and a fifth of the sets carries a
community to which that policy gives a preference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from random import Random

from proto.net import Address, Network
from services.routing.core.bgp.codec.updates import Unwritable, UpdateWriter
from services.routing.core.bgp.values import Agreed, Asn, Attributes, Family, Origin, Prefix, Segment, SegmentKind

SENDER, SPEAKER, RECEIVER = 65001, 65002, 65003
"""AS numbers: of the peer that sends the table, the speaker that is measured, and the peer that it passes it to."""
PREFERRED = 65001 << 16 | 100
"""Community whose routes import policy prefers (local preference 200)."""
REFUSED: Mapping[Family, Network] = {Family.IPV4: IPv4Network("10.0.0.0/8"), Family.IPV6: IPv6Network("fd00::/8")}
"""Ranges that import policy refuses."""
LENGTHS: Mapping[Family, tuple[tuple[int, ...], tuple[int, ...]]] = {
    Family.IPV4: ((24, 23, 22, 21, 20, 19, 18, 17, 16), (600, 100, 110, 50, 50, 30, 20, 15, 25)),
    Family.IPV6: ((48, 44, 40, 36, 32, 29), (480, 120, 100, 80, 180, 40)),
}
"""Lengths of prefixes, and out of a thousand how many have each."""
PREFIXES_A_SET = 20
"""Prefixes for each attribute set, on the average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What the sender sends, and what has to arrive of it."""

    family: Family
    messages: tuple[bytes, ...]
    """UPDATEs, and End-of-RIB as the last."""
    paths: Mapping[Prefix, tuple[Asn, ...]]
    """The AS path of each prefix that import policy accepts, as the receiver has to get it."""
    count: int
    """Prefixes that are sent."""


def _prefixes(random: Random, family: Family, count: int) -> list[Prefix]:
    lengths, weights = LENGTHS[family]
    first, last = (1 << 24, 223 << 24) if family is Family.IPV4 else (0x2001 << 112, 0x2C00 << 112)
    martian = (10, 127, 169) if family is Family.IPV4 else ()
    found: dict[Prefix, None] = {}
    refused = REFUSED[family]
    while len(found) < count:
        length = random.choices(lengths, weights)[0]
        shift = family.bits - length
        if len(found) % 100 == 0:
            number = int(refused.network_address) | random.getrandbits(family.bits - refused.prefixlen)
        else:
            number = random.randrange(first, last)
            if number >> family.bits - 8 in martian:
                continue
        found[bytes((length,)) + (number >> shift << shift).to_bytes(family.bits // 8)[: (length + 7) // 8]] = None
    return list(found)


def number_of(random: Random) -> Asn:
    """Of a system; none of the three, whose number in a path would be a loop."""
    number = random.randrange(3000, 400_000)
    return number + 3 if SENDER <= number <= RECEIVER else number


def _attributes(random: Random, next_hop: Address) -> Attributes:
    middle = random.choices((1, 2, 3, 4, 5), (10, 30, 35, 17, 8))[0]
    numbers = (SENDER, *(number_of(random) for _ in range(middle)))
    if random.random() < 0.15:
        numbers += (numbers[-1],) * random.randrange(1, 4)
    communities = {SENDER << 16 | random.randrange(1000, 2000) for _ in range(random.randrange(5))}
    if random.random() < 0.2:
        communities.add(PREFERRED)
    return Attributes(
        origin=random.choices((Origin.IGP, Origin.INCOMPLETE), (85, 15))[0],
        as_path=(Segment(SegmentKind.SEQUENCE, numbers),),
        next_hop=next_hop,
        med=random.randrange(1000) if random.random() < 0.3 else None,
        communities=tuple(sorted(communities)),
        large_communities=((SENDER, 1, random.randrange(50)),) if random.random() < 0.1 else (),
    )


def _runs(random: Random, prefixes: Sequence[Prefix]) -> Iterator[list[Prefix]]:
    """The prefixes by attribute set, of which nearly all have few."""
    sets = max(1, len(prefixes) // PREFIXES_A_SET)
    runs: list[list[Prefix]] = [[] for _ in range(sets)]
    for prefix in prefixes:
        runs[int(sets * random.random() ** 1.6)].append(prefix)
    random.shuffle(runs)
    return (run for run in runs if run)


def is_refused(family: Family, prefix: Prefix) -> bool:
    """Import policy refuses the prefix."""
    return prefix[1:2] == REFUSED[family].network_address.packed[:1]


@lru_cache(4)
def table(family: Family, count: int, next_hop: str, seed: int = 15) -> Table:
    """So many prefixes by a next hop; the same ones for the same seed."""
    random, address = Random(seed), ip_address(next_hop)
    writer = UpdateWriter(Agreed(families=frozenset({family}), four_octets=True, external=True))
    messages: list[bytes] = []
    paths: dict[Prefix, tuple[Asn, ...]] = {}
    for run in _runs(random, _prefixes(random, family, count)):
        attributes = _attributes(random, address)
        written = writer.write(family, attributes, run)
        messages += () if isinstance(written, Unwritable) else written
        path = (SPEAKER, *attributes.as_path[0].numbers)
        paths |= {prefix: path for prefix in run if not is_refused(family, prefix)}
    messages.append(writer.end_of_rib(family))
    return Table(family=family, messages=tuple(messages), paths=paths, count=count)
