"""The one function that computes a security identity, so that every service and every rebuild gets the same number."""

from __future__ import annotations

from collections.abc import Set
from hashlib import blake2b

from proto.identity import FIRST_COMPUTED, IdentitySet, is_unstable
from proto.objects import Labels, Namespace, Pod


def stands_for(pod: Pod, namespace: Namespace, relevant: Set[str] = frozenset()) -> IdentitySet:
    """The facts that a pod's identity is computed from.

    ``relevant`` are the unstable label keys that a live selector names in this namespace
    (``proto.identity.RelevantKeys.of``).
    """
    return IdentitySet(
        namespace=namespace.name,
        namespace_labels=namespace.labels,
        pod_labels=_stable(pod.labels, relevant),
        service_account=pod.service_account,
        named_ports=tuple(sorted(pod.named_ports)),
    )


def _stable(labels: Labels, relevant: Set[str]) -> Labels:
    return tuple(sorted(pair for pair in labels if pair[0] in relevant or not is_unstable(pair[0])))


def identity_of(facts: IdentitySet, cluster_uid: str) -> int:
    """64-bit keyed hash of the facts; the key is the uid of the ``kube-system`` namespace. Never a reserved number."""
    salt = 0
    while True:
        digest = blake2b(key=cluster_uid.encode()[:64], digest_size=8, salt=salt.to_bytes(2, "big"))
        for part in _parts(facts):
            digest.update(len(part).to_bytes(4, "big") + part)
        number = int.from_bytes(digest.digest(), "big")
        if number >= FIRST_COMPUTED:
            return number
        salt += 1


class Computed:
    """Identities by namespace and name of their pod, so that one is computed anew only when what it is made of is
    another object: labels of a pod may be some 700 KB, and all pods of a node are asked for after each change.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Pod, Namespace, Set[str], str, int]] = {}

    def identity(self, pod: Pod, namespace: Namespace, relevant: Set[str], cluster_uid: str) -> int:
        """:func:`identity_of` what the pod :func:`stands_for`."""
        known = self._known.get((pod.namespace, pod.name))
        if known is not None:
            of_pod, of_namespace, of_relevant, of_cluster, number = known
            if of_pod is pod and of_namespace is namespace and (of_relevant, of_cluster) == (relevant, cluster_uid):
                return number
        number = identity_of(stands_for(pod, namespace, relevant), cluster_uid)
        self._known[pod.namespace, pod.name] = (pod, namespace, relevant, cluster_uid, number)
        return number

    def forget(self, namespace: str, name: str) -> None:
        """The pod has changed or is gone; whoever keeps this has to say so, or what it was stays in memory."""
        self._known.pop((namespace, name), None)

    def __len__(self) -> int:
        return len(self._known)


def digest_of(facts: IdentitySet) -> str:
    """Hex blake2b-128 of the facts: tells whether two parties that name one number mean the same."""
    digest = blake2b(digest_size=16)
    for part in _parts(facts):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.hexdigest()


def _parts(facts: IdentitySet) -> list[bytes]:
    parts = [facts.namespace.encode(), facts.service_account.encode()]
    for section in (facts.namespace_labels, facts.pod_labels):
        parts.append(len(section).to_bytes(4, "big"))
        parts += [text.encode() for pair in section for text in pair]
    parts += [f"{port.name}/{port.protocol}/{port.port}".encode() for port in facts.named_ports]
    return parts
