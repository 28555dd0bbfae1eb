"""What the rules of each namespace take in all, and whose are cut where that is too much: the largest."""

from __future__ import annotations

from collections.abc import Iterator


class Sizes:
    """Sizes of identities' rules by namespace; :meth:`settle` after any change says for whom the answer changed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._namespace_of: dict[int, str] = {}
        self._sizes: dict[str, dict[int, int]] = {}
        self._totals: dict[str, int] = {}
        self._cut: dict[str, frozenset[int]] = {}
        self._touched: set[str] = set()

    def note(self, identity: int, namespace: str, size: int) -> None:
        """The identity's rules would take so many bytes."""
        sizes = self._sizes.setdefault(namespace, {})
        if sizes.get(identity) == size:
            return
        self._totals[namespace] = self._totals.get(namespace, 0) + size - sizes.get(identity, 0)
        sizes[identity] = size
        self._namespace_of[identity] = namespace
        self._touched.add(namespace)

    def forget(self, identity: int) -> None:
        """The identity is gone."""
        namespace = self._namespace_of.pop(identity, None)
        if namespace is None:
            return
        self._totals[namespace] -= self._sizes[namespace].pop(identity)
        self._touched.add(namespace)

    def is_cut(self, identity: int, namespace: str) -> bool:
        """Whether the identity has to do without its rules."""
        return identity in self._cut.get(namespace, ())

    def settle(self) -> frozenset[int]:
        """Identities that are cut and were not before, or the other way round."""
        changed: set[int] = set()
        for namespace in self._touched:
            before, after = self._cut.pop(namespace, frozenset()), self._over(namespace)
            if after:
                self._cut[namespace] = after
            changed |= before ^ after
            if not self._sizes[namespace]:
                del self._sizes[namespace], self._totals[namespace]
        self._touched.clear()
        return frozenset(changed)

    def _over(self, namespace: str) -> frozenset[int]:
        total, over = self._totals[namespace], set[int]()
        if total > self._most:
            for identity in self._by_size(namespace):
                if total <= self._most:
                    break
                over.add(identity)
                total -= self._sizes[namespace][identity]
        return frozenset(over)

    def _by_size(self, namespace: str) -> list[int]:
        sizes = self._sizes[namespace]
        return sorted(sizes, key=lambda identity: (-sizes[identity], identity))

    def largest(self) -> Iterator[int]:
        """All that are not cut, the largest of the namespace that takes the most first."""
        for namespace in sorted(self._totals, key=lambda name: (-self._totals[name], name)):
            yield from (one for one in self._by_size(namespace) if not self.is_cut(one, namespace))
