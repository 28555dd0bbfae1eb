"""Security identities: reserved numbers, and the labels that a computed number stands for.

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

    Labels are sorted pairs. Not in ``pod_labels``: unstable keys (:func:`is_unstable`) that no live selector names.
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
        "controller-uid",
        "job-name",
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
    }
)
"""Label keys that differ from pod to pod of one workload, or with the node a pod happens to be on: they would give each
pod an identity of its own, and a kept pod another one wherever it starts again."""

UNSTABLE_PREFIXES = (
    "batch.kubernetes.io/",
    "topology.kubernetes.io/",
    "failure-domain.beta.kubernetes.io/",
    "node.kubernetes.io/",
    "node-role.kubernetes.io/",
    "beta.kubernetes.io/",
)
"""Beginnings of such keys: of a Job's pods, and of the labels of a Node that Kubernetes copies to its pods."""


def is_unstable(key: str) -> bool:
    """Whether a pod label is left out of identities unless a live selector names it."""
    return key in UNSTABLE_LABELS or key.startswith(UNSTABLE_PREFIXES)


class IdentityRecord(msgspec.Struct, frozen=True):
    """Value of ``identities.<identity>``: what selectors can see of a number, and a digest of all it stands for.

    Labels that no live selector names are not told: their keys are in the two ``hidden_`` fields. What value a hidden
    label has is unknown, and a selector that depends on it does not match (``kit.selectors``).
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
    """Unstable label keys that a live policy's selector names: with which of them identities are computed.

    Part of each frontier (``proto.policy.Frontier``), which says since when. Value of ``identities._relevant``: those
    that every shard's frontier has got to.
    """

    keys: tuple[str, ...] = ()
    """Of pods in every namespace; sorted."""
    by_namespace: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Those of single namespaces, instead of ``keys``; sorted."""

    def of(self, namespace: str) -> frozenset[str]:
        """Those of pods in this namespace."""
        return frozenset(next((keys for name, keys in self.by_namespace if name == namespace), self.keys))
