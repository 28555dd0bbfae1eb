"""What must be written to the mirror: the objects that the API serves against those that the bucket holds.

Promises that an object which can no longer be understood keeps its last good entry (as long as it is the same object,
by uid), and that equal values are never written again: a node's heartbeat changes nothing that anybody reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proto.objects import KubernetesObject, NetworkPolicy

Name = tuple[str, str]
"""Namespace (empty for a cluster-wide kind) and name."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Keys to write with their values, and keys to delete; both sorted by key."""

    upserts: tuple[tuple[str, KubernetesObject], ...] = ()
    deletes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.upserts or self.deletes)


def name_of(value: KubernetesObject) -> Name:
    """Namespace and name of an object."""
    return getattr(value, "namespace", ""), value.name


def diff(
    desired: Mapping[str, KubernetesObject],
    held: Mapping[str, KubernetesObject],
    broken: Mapping[Name, str],
    keys: Iterable[str],
) -> Difference:
    """Difference for ``keys`` only.

    ``broken``: objects that cannot be understood, with the uid they have now; ``desired`` may have a stand-in for one,
    which is written only where the bucket holds nothing better.
    """
    upserts = []
    deletes = []
    for key in sorted(set(keys)):
        wanted, there = desired.get(key), held.get(key)
        kept = there is not None and _is_kept(there, broken)
        if wanted is not None:
            if wanted != there and (not kept or _is_stand_in(there)):
                upserts.append((key, wanted))
        elif there is not None and not kept:
            deletes.append(key)
    return Difference(tuple(upserts), tuple(deletes))


def _is_kept(there: KubernetesObject, broken: Mapping[Name, str]) -> bool:
    uid = broken.get(name_of(there))
    if uid is None:
        return False
    return uid in ("", getattr(there, "uid", uid))


def _is_stand_in(there: KubernetesObject | None) -> bool:
    return isinstance(there, NetworkPolicy) and there.stand_in
