"""Security identities: what a number on a packet stands for.

An identity is a 64-bit number that every service computes alike from the same facts, so no allocator exists and a
rebuild gives the same numbers. The function that computes it is ``kit.identity.identity_of``; this module holds the
value it is computed from and the numbers that are reserved. Reserved numbers are below :data:`FIRST_COMPUTED`; the
computing function never returns one of them.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

FIRST_COMPUTED = 256
"""Smallest number a computed identity may have."""


class Reserved(IntEnum):
    """Identities that no pod has."""

    UNKNOWN = 0
    """Not yet known: judged as a stranger that no rule names."""
    HOST = 1
    """The node a packet is seen on: its own addresses, its kubelet, its hostNetwork pods."""
    WORLD = 2
    """Any address that belongs to nothing in the cluster."""
    KUBE_APISERVER = 3
    """The addresses behind the ``default/kubernetes`` Service."""
    REMOTE_NODE = 4
    """Another node of the cluster."""


class NamedPort(msgspec.Struct, frozen=True, order=True):
    """A container port with a name: what a policy's named port resolves to (core/v1 ContainerPort)."""

    name: str
    protocol: int
    """IANA protocol number: 6 TCP, 17 UDP, 132 SCTP."""
    port: int


class IdentitySet(msgspec.Struct, frozen=True):
    """All that a computed identity stands for; two pods with equal sets share one identity.

    Labels are sorted pairs. Left out of ``pod_labels``: the keys in :data:`UNSTABLE_LABELS`, unless a live selector
    names one of them.
    """

    namespace: str
    namespace_labels: tuple[tuple[str, str], ...]
    pod_labels: tuple[tuple[str, str], ...]
    service_account: str
    named_ports: tuple[NamedPort, ...] = ()


UNSTABLE_LABELS = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/controller-uid",
        "controller-uid",
    }
)
"""Label keys that differ from pod to pod of one workload: they would give each pod an identity of its own."""


class IdentityRecord(msgspec.Struct, frozen=True):
    """Value of ``identities.<identity>``: what selectors can see of a number, and a digest of all it stands for.

    Labels that no live selector names are not told: their keys are in the two ``hidden_`` fields. Whether a hidden label
    has some value is unknown, and a selector that depends on it does not match (``kit.selectors``).
    """

    identity: int
    digest: str
    """Hex blake2b-128 of the whole :class:`IdentitySet`: another digest under the same number is a collision."""
    namespace: str
    namespace_labels: tuple[tuple[str, str], ...] = ()
    pod_labels: tuple[tuple[str, str], ...] = ()
    hidden_namespace_keys: tuple[int, ...] = ()
    """64-bit hashes of keys (``kit.selectors.hidden_key``), sorted."""
    hidden_pod_keys: tuple[int, ...] = ()
    service_account: str = ""
    named_ports: tuple[NamedPort, ...] = ()


class RelevantKeys(msgspec.Struct, frozen=True):
    """Value of ``identities._relevant``: the :data:`UNSTABLE_LABELS` that a live policy's selector names, sorted.

    Whoever computes an identity must use this set; until it is known, it is empty.
    """

    keys: tuple[str, ...] = ()
