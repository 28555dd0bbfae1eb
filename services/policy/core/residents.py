"""Residents: the identities that a node may publish, for the ownership check of ``endpoints``.

Owns the book of identities by node, kept up by the pods that :class:`services.policy.core.identities.Roster` has
recomputed, and the grace: an identity that the last pod of a node has just left (relabelled, deleted) stays for a
while, since the node learns of it later than we do. What stands in the bucket is the memory of that, so a copy that has
just started takes nothing away sooner. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from proto.objects import Pod


class Book:
    """Feed it with :meth:`follow`; ``changed`` holds the nodes whose identities are others than before."""

    def __init__(self) -> None:
        self.changed: set[str] = set()
        self._by_key: dict[str, tuple[str, frozenset[int]]] = {}
        self._by_node: dict[str, Counter[int]] = {}
        self._left: dict[str, dict[int, float]] = {}

    def follow(
        self, keys: Iterable[str], pods: Mapping[str, Pod], identities_at: Callable[[str], frozenset[int]]
    ) -> None:
        """The pods of these keys have these identities now."""
        for key in keys:
            node, before = self._by_key.pop(key, ("", frozenset()))
            if node:
                counts = self._by_node[node]
                counts.subtract(before)
                self._by_node[node] = +counts
                self.changed.add(node)
            pod, after = pods.get(key), identities_at(key)
            if pod is not None and after:
                self._by_key[key] = pod.node, after
                self._by_node.setdefault(pod.node, Counter()).update(after)
                self.changed.add(pod.node)

    @property
    def nodes(self) -> Iterator[str]:
        """Nodes that some identity lives on."""
        return (node for node, counts in self._by_node.items() if counts)

    def wanted(self, node: str, published: Collection[int], now: float, grace: float) -> tuple[int, ...]:
        """What is to be published of a node of which this is published: who lives there, and who just has."""
        present = self._by_node.get(node, Counter())
        left = self._left.get(node, {})
        gone = {identity: left.get(identity, now) for identity in published if identity not in present}
        if gone:
            self._left[node] = gone
        else:
            self._left.pop(node, None)
        kept = {identity for identity, since in gone.items() if now - since < grace}
        return tuple(sorted(present.keys() | kept))

    def expiring(self, now: float, grace: float) -> float | None:
        """Seconds until the next identity has been gone for the grace; the nodes where one has are ``changed``."""
        waits = []
        for node, gone in self._left.items():
            wait = min(gone.values()) + grace - now
            if wait <= 0:
                self.changed.add(node)
            else:
                waits.append(wait)
        return min(waits, default=None)
