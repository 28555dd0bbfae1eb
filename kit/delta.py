"""What must be done so that what is becomes what should be: the diff that every reconcile loop plans with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from operator import eq
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
D = TypeVar("D")
A = TypeVar("A")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta(Generic[K, D, A]):
    """``upserts``: absent or different; ``deletes``: there and not wanted, with what is there; the rest stays.

    Keys come in the order of their mapping, so a caller that cares for order gives ordered mappings.
    """

    upserts: Mapping[K, D]
    deletes: Mapping[K, A]
    unchanged: frozenset[K]

    @property
    def empty(self) -> bool:
        """True when nothing must be done."""
        return not self.upserts and not self.deletes


def delta(desired: Mapping[K, D], actual: Mapping[K, A], same: Callable[[D, A], bool] = eq) -> Delta[K, D, A]:
    """Compare by key; ``same`` tells whether what is there is already what is wanted (equality unless given)."""
    upserts: dict[K, D] = {}
    unchanged: list[K] = []
    for key, wanted in desired.items():
        if key in actual and same(wanted, actual[key]):
            unchanged.append(key)
        else:
            upserts[key] = wanted
    deletes = {key: there for key, there in actual.items() if key not in desired}
    return Delta(upserts=upserts, deletes=deletes, unchanged=frozenset(unchanged))
