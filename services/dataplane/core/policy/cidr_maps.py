"""CIDR partitions as entries of ``am_cidrs``, and the order in which one becomes another.

Each namespace's entries are apart, by a hash of its name in their keys: a subject is judged by those of its own. The
prefixes of a partition lie in one another, and the longest that holds an address counts. So the order of a change
matters: longer ones are set before the shorter ones around them, and removed after these. Then each address is at every
moment in its old set or in its new one, and in no third.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

from proto.policy import CidrPartition
from services.dataplane.core.datapath.policy_layout import (
    CidrKey,
    CidrNumber,
)

CidrEntries: TypeAlias = dict[CidrKey, CidrNumber]


def namespace_hash(namespace: str) -> bytes:
    """Whose entries of ``am_cidrs`` are whose; all zero for no namespace."""
    return blake2b(namespace.encode(), digest_size=8).digest() if namespace else bytes(8)


def cidrs_of(partition: CidrPartition) -> CidrEntries:
    """Entries of ``am_cidrs`` for a partition; one with number 0 is a hole in the prefix around it."""
    namespace = namespace_hash(partition.namespace)
    return {CidrKey.of(namespace, entry.prefix): CidrNumber(number=entry.number) for entry in partition.prefixes}


def fitting(partitions: Mapping[str, CidrPartition], room: int) -> frozenset[str]:
    """Namespaces whose partitions the map takes: the smallest first, so that the largest is the first to go without."""
    taken: set[str] = set()
    for namespace in sorted(partitions, key=lambda name: (len(partitions[name].prefixes), name)):
        room -= len(partitions[namespace].prefixes)
        if room < 0:
            break
        taken.add(namespace)
    return frozenset(taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class CidrChange:
    """Steps in the order of the fields, each in the order that it has."""

    upserts: CidrEntries
    deletes: tuple[CidrKey, ...]

    def __len__(self) -> int:
        """How many entries change."""
        return len(self.upserts) + len(self.deletes)


def cidr_change(actual: Mapping[CidrKey, CidrNumber], wanted: Mapping[CidrKey, CidrNumber]) -> CidrChange:
    """Steps from what ``am_cidrs`` holds to what it should hold."""
    new = sorted((key for key, value in wanted.items() if actual.get(key) != value), key=_length, reverse=True)
    return CidrChange(
        upserts={key: wanted[key] for key in new},
        deletes=tuple(sorted((key for key in actual if key not in wanted), key=_length)),
    )


def _length(key: CidrKey) -> int:
    return key.prefixlen
