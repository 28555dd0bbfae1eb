"""Pods as label selectors see them: each set of labels of a namespace once, with how many pods have it and one of them.

A cluster has far fewer of these than pods, so a check may look at all of them for each selector. Pods that have
finished are left out: no flow is theirs. Host-network pods are here, marked, since a selector that means them is a
fault of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kit.selectors import EVERYTHING, selects
from proto.identity import NamedPort
from proto.objects import Namespace, Peer, Pod, Selector
from services.policy.core.identities import FINISHED


@dataclass(slots=True, kw_only=True)
class Group:
    """Pods of one namespace that have the same labels and are of the same sort of network."""

    namespace: str
    labels: Mapping[str, str]
    host_network: bool
    example: str
    """Name of one of them, the first by the alphabet."""
    count: int = 0
    ports: set[NamedPort] = field(default_factory=set)
    """Named container ports that any of them has."""


class Population:
    """All groups of pods, by namespace, and the namespaces."""

    def __init__(self, pods: Iterable[Pod], namespaces: Iterable[Namespace]) -> None:
        self.namespaces: dict[str, Mapping[str, str]] = {one.name: dict(one.labels) for one in namespaces}
        """Labels of each namespace."""
        found: dict[tuple[str, bool, object], Group] = {}
        for pod in pods:
            if pod.phase in FINISHED:
                continue
            key = pod.namespace, pod.host_network, pod.labels
            group = found.get(key)
            if group is None:
                group = found[key] = Group(
                    namespace=pod.namespace, labels=dict(pod.labels), host_network=pod.host_network, example=pod.name
                )
            group.count += 1
            group.example = min(group.example, pod.name)
            group.ports.update(pod.named_ports)
        self._groups: dict[str, list[Group]] = {}
        for group in found.values():
            self._groups.setdefault(group.namespace, []).append(group)
        for groups in self._groups.values():
            groups.sort(key=lambda one: one.example)

    def of(self, namespaces: Iterable[str]) -> Iterator[Group]:
        """Groups of these namespaces, host-network ones too."""
        for namespace in namespaces:
            yield from self._groups.get(namespace, ())

    def everywhere(self) -> Iterator[Group]:
        """Groups of all namespaces."""
        return self.of(sorted(self._groups))

    def selected(self, selector: Selector, namespaces: Iterable[str]) -> list[Group]:
        """Groups of these namespaces that the selector selects, host-network ones too."""
        return [group for group in self.of(namespaces) if selects(selector, group.labels)]

    def namespaces_of(self, peer: Peer, home: str) -> list[str]:
        """Namespaces that a peer speaks of: those that its selector selects, or the policy's own."""
        if peer.namespace_selector is None:
            return [home]
        return [name for name, labels in sorted(self.namespaces.items()) if selects(peer.namespace_selector, labels)]

    def peers(self, peer: Peer, home: str) -> list[Group]:
        """Groups that a peer of selectors names, host-network ones too; none for an ipBlock."""
        if peer.ip_block is not None:
            return []
        return self.selected(peer.pod_selector or EVERYTHING, self.namespaces_of(peer, home))


def counted(groups: Iterable[Group]) -> str:
    """``3 pods (shop/web-1 …)``; ``no pod`` for none."""
    them = list(groups)
    total = sum(group.count for group in them)
    if not total:
        return "no pod"
    example = f"{them[0].namespace}/{them[0].example}"
    return f"1 pod ({example})" if total == 1 else f"{total} pods ({example} and others)"
