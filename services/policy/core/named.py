"""Label keys that live selectors name: what identities and their records are made of.

Two things follow from them. Keys that differ from pod to pod are left out of identities unless they are named
(:func:`relevant_keys`); and a record shows only the labels that are named, of others only that they are there. What a
policy names of pods in its own namespace counts for that namespace alone, so that no tenant's policies renumber or
rewrite another's identities; only a peer with a namespace selector names keys of everybody's pods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from typing import Literal, NamedTuple

from kit.selectors import keys_named
from proto.identity import RelevantKeys, is_unstable
from proto.policy import SelectorPeer
from services.policy.core.model import Policy


class NamedKey(NamedTuple):
    """A label key that some live selector names."""

    of: Literal["pod", "namespace"]
    scope: str
    """Namespace whose pods it is asked of; empty = any."""
    key: str


def named_by(policy: Policy) -> frozenset[NamedKey]:
    """What the policy's outcome can depend on."""
    return frozenset(_named(policy))


def _named(policy: Policy) -> Iterator[NamedKey]:
    yield from _asked(policy.subject, ())
    for rule in (*policy.ingress, *policy.egress):
        for peer in rule.selectors:
            # Who names a key of everybody's pods names it of its own, too: see :class:`Foreign`.
            yield from _asked(peer, (policy.name.namespace,) if policy.name.namespace else ())


def _asked(selector: SelectorPeer, more: Iterable[str]) -> Iterator[NamedKey]:
    """Keys that the selector asks of pods, in its own scope and ``more``, and of namespaces."""
    for key in keys_named(selector.pod_selector):
        yield from (NamedKey("pod", scope, key) for scope in (selector.namespace, *more))
    yield from (NamedKey("namespace", "", key) for key in keys_named(selector.namespace_selector))


class Naming:
    """Counts who names what."""

    def __init__(self) -> None:
        self._counts: Counter[NamedKey] = Counter()

    @property
    def keys(self) -> Set[NamedKey]:
        """All that some policy names."""
        return self._counts.keys()

    def change(self, old: Policy | None, new: Policy | None) -> bool:
        """A policy came, changed or went; whether :attr:`keys` are others than before."""
        before = frozenset() if old is None else named_by(old)
        after = frozenset() if new is None else named_by(new)
        changed = any(key not in self._counts for key in after - before)
        self._counts.update(after - before)
        for key in before - after:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                changed = True
        return changed


def relevant_keys(named: Iterable[NamedKey]) -> RelevantKeys:
    """The unstable ones among the pod label keys, as nodes are told them."""
    by_scope: dict[str, set[str]] = {}
    for name in named:
        if name.of == "pod" and is_unstable(name.key):
            by_scope.setdefault(name.scope, set()).add(name.key)
    everywhere = by_scope.pop("", set())
    return RelevantKeys(
        keys=tuple(sorted(everywhere)),
        by_namespace=tuple(
            (namespace, tuple(sorted(everywhere | keys)))
            for namespace, keys in sorted(by_scope.items())
            if not keys <= everywhere
        ),
    )


class Foreign:
    """Unstable keys that only policies of other namespaces name: a namespace's budget does not count them."""

    def __init__(self, named: Iterable[NamedKey] = ()) -> None:
        self._everywhere = set[str]()
        self._own: dict[str, set[str]] = {}
        for name in named:
            if name.of == "pod" and is_unstable(name.key):
                (self._own.setdefault(name.scope, set()) if name.scope else self._everywhere).add(name.key)

    def of(self, namespace: str) -> frozenset[str]:
        """Of pods in the namespace."""
        return frozenset(self._everywhere - self._own.get(namespace, set()))


class Shown:
    """Which label keys records show: by namespace, as sets that are made once."""

    def __init__(self, named: Iterable[NamedKey] = ()) -> None:
        self.named = frozenset(named)
        self.namespace_keys = frozenset(name.key for name in self.named if name.of == "namespace")
        self._everywhere = frozenset(name.key for name in self.named if name.of == "pod" and not name.scope)
        self._own: dict[str, set[str]] = {}
        for name in self.named:
            if name.of == "pod" and name.scope:
                self._own.setdefault(name.scope, set()).add(name.key)

    def pod_keys(self, namespace: str) -> Set[str]:
        """Of pods in the namespace."""
        own = self._own.get(namespace)
        return self._everywhere if own is None else self._everywhere | own
