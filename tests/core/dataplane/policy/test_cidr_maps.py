"""CIDR partitions in the map: apart by namespace, and exact at every moment of a change."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_network

from hypothesis import given
from hypothesis import strategies as st

from proto.policy import CidrPartition, CidrSet, Revision
from services.dataplane.core.policy.cidr_maps import CidrEntries, cidr_change, cidrs_of, fitting, namespace_hash


def sets(space: str, *entries: str) -> CidrPartition:
    """``10.0.0.0/8=7``: a prefix and the number of its set."""
    cut = tuple(CidrSet(ip_network(prefix), int(number)) for prefix, number in (text.split("=") for text in entries))
    return CidrPartition(Revision(epoch="e", sequence=1), cut, space, "digest")


def test_each_namespace_has_its_own_cidr_sets_and_holes_are_reported() -> None:
    entries = cidrs_of(sets("x", "10.0.0.0/8=7", "10.1.0.0/16=0")) | cidrs_of(sets("y", "10.0.0.0/8=9"))
    assert {(key.namespace, key.prefixlen, str(key.address)): value.number for key, value in entries.items()} == {
        (namespace_hash("x"), 64 + 96 + 8, "10.0.0.0"): 7,
        (namespace_hash("x"), 64 + 96 + 16, "10.1.0.0"): 0,
        (namespace_hash("y"), 64 + 96 + 8, "10.0.0.0"): 9,
    }
    assert namespace_hash("x") != namespace_hash("y")
    assert namespace_hash("") == bytes(8)


NESTED = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "11.0.0.0/8")
CUTS = st.dictionaries(st.sampled_from(NESTED), st.integers(0, 2))
LOOKED_UP = tuple(
    IPv4Address(text) for text in ("10.1.1.1", "10.1.1.2", "10.1.2.1", "10.2.0.1", "11.0.0.1", "12.0.0.1")
)


@given(CUTS, CUTS)
def test_an_address_is_at_every_moment_in_its_old_set_or_in_its_new_one(
    before: dict[str, int], after: dict[str, int]
) -> None:
    old, new = (cidrs_of(sets("x", *(f"{p}={n}" for p, n in cut.items()))) for cut in (before, after))
    live = dict(old)
    steps = cidr_change(old, new)
    for key in (*steps.upserts, *steps.deletes):
        if key in steps.upserts:
            live[key] = steps.upserts[key]
        else:
            del live[key]
        for host in LOOKED_UP:
            assert _set_at(live, host) in (_set_at(old, host), _set_at(new, host))
    assert live == new


def _set_at(entries: CidrEntries, host: IPv4Address) -> int:
    """What the trie says: the longest prefix that holds the address."""
    holding = [key for key in entries if host in IPv4Network((str(key.address), key.prefixlen - 64 - 96))]
    return entries[max(holding, key=lambda key: key.prefixlen)].number if holding else 0


def test_the_largest_namespace_goes_without_when_the_map_is_too_small() -> None:
    partitions = {
        "small": sets("small", "10.0.0.0/8=1"),
        "large": sets("large", "10.0.0.0/8=1", "11.0.0.0/8=2", "12.0.0.0/8=2"),
        "middle": sets("middle", "10.0.0.0/8=1", "11.0.0.0/8=1"),
    }
    assert fitting(partitions, 6) == {"small", "middle", "large"}
    assert fitting(partitions, 5) == {"small", "middle"}
    assert fitting({}, 0) == frozenset()
