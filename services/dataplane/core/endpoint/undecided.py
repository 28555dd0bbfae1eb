"""Endpoints whose identity may be another one now: kept by what changed, until each has been asked about.

Owns which endpoint is of which pod, and the endpoints that are undecided. Pure bookkeeping: whoever asks says what is
decided; one of which nothing can be said yet stays undecided, and is asked about again at every change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from services.dataplane.core.attachment import Attachment

K = TypeVar("K")

PodName = tuple[str, str]
"""Namespace and name; both empty while unknown."""


class Undecided:
    """``pods``: of all endpoints that there are. Every one is undecided to begin with."""

    def __init__(self, pods: Mapping[Attachment, PodName]) -> None:
        self.open: dict[Attachment, None] = {}
        """Those to ask about."""
        self._pod_of: dict[Attachment, PodName] = {}
        self._of_pod: dict[PodName, set[Attachment]] = {}
        self._of_namespace: dict[str, set[Attachment]] = {}
        for attachment, pod in pods.items():
            self.put(attachment, pod)

    def put(self, attachment: Attachment, pod: PodName) -> None:
        """The endpoint is there, or another than before."""
        self.drop(attachment)
        self._pod_of[attachment] = pod
        self._of_pod.setdefault(pod, set()).add(attachment)
        self._of_namespace.setdefault(pod[0], set()).add(attachment)
        self.open[attachment] = None

    def drop(self, attachment: Attachment) -> None:
        """The endpoint is gone."""
        pod = self._pod_of.pop(attachment, None)
        if pod is not None:
            self.open.pop(attachment, None)
            _discard(self._of_pod, pod, attachment)
            _discard(self._of_namespace, pod[0], attachment)

    def changed(self, pods: Iterable[PodName], namespaces: Iterable[str]) -> None:
        """Objects of these pods, or of these namespaces, are others now."""
        for pod in pods:
            self.open.update(dict.fromkeys(self._of_pod.get(pod, ())))
        for namespace in namespaces:
            self.open.update(dict.fromkeys(self._of_namespace.get(namespace, ())))

    def decided(self, attachment: Attachment) -> None:
        """The endpoint has the identity that it should have."""
        self.open.pop(attachment, None)


def _discard(index: dict[K, set[Attachment]], key: K, attachment: Attachment) -> None:
    index[key].discard(attachment)
    if not index[key]:
        del index[key]
