"""May a pod start: is its object here, is its policy compiled, and does the compilation know this very pod.

Owns the decision that an ADD waits for. Promises: a pod is ready only when the local watch holds its object with the
uid that the kubelet named, the rules of the identity it has *now* are here, and the frontier of that identity's shard
covers the pod's own object in the present epoch of ``objects``: so no policy that selects the pod can be missing.
Absence is never taken for permission. Everything that it looks at is an argument; asked again after any change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from kit.identity import identity_of, stands_for
from proto.objects import Namespace, Pod
from proto.policy import CompiledPolicy, Frontier, Revision
from services.dataplane.core.cni import PodRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What identities are computed from, as far as the local watches hold it."""

    cluster_uid: str
    """Uid of the namespace ``kube-system``; empty while unknown."""
    relevant: Set[str]
    namespaces: Mapping[str, Namespace]

    def identity(self, pod: Pod) -> int | None:
        """The pod's identity now; None while its namespace or the cluster's uid is unknown."""
        namespace = self.namespaces.get(pod.namespace)
        if namespace is None or not self.cluster_uid:
            return None
        return identity_of(stands_for(pod, namespace, self.relevant), self.cluster_uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The pod may start, as this identity."""

    pod: Pod
    identity: int
    policy: CompiledPolicy


@dataclass(frozen=True, slots=True)
class NotYet:
    """What is missing, as a sentence for the kubelet's event."""

    why: str


def admit(
    wanted: PodRef,
    pod: Pod | None,
    seen: Revision,
    knowledge: Knowledge,
    rules: Mapping[int, CompiledPolicy],
    frontiers: Iterable[Frontier],
) -> Admitted | NotYet:
    """Whether ``wanted`` may start; ``seen`` is the revision of its object as the local watch holds it."""
    name = f"{wanted.namespace}/{wanted.name}"
    if pod is None:
        return NotYet(f"pod {name} has not reached this node's watch yet")
    if wanted.uid and pod.uid != wanted.uid:
        return NotYet(f"pod {name} is known with uid {pod.uid}, the runtime starts {wanted.uid}")
    identity = knowledge.identity(pod)
    if identity is None:
        return NotYet(f"namespace {wanted.namespace} has not reached this node's watch yet")
    policy = rules.get(identity)
    if policy is None:
        return NotYet(f"the policy of {name} (identity {identity:016x}) is not compiled yet")
    if not any(_covers(frontier, identity, seen) for frontier in frontiers):
        return NotYet(f"the policy service has not compiled up to pod {name} yet")
    return Admitted(pod=pod, identity=identity, policy=policy)


def _covers(frontier: Frontier, identity: int, seen: Revision) -> bool:
    return frontier.shard == identity % frontier.shards and frontier.revision.covers(seen)


def least(frontiers: Iterable[Frontier]) -> Revision | None:
    """The revision that every shard has reached; None when a shard is missing or they are of different epochs."""
    known = list(frontiers)
    if not known:
        return None
    shards = max(frontier.shards for frontier in known)
    current = {frontier.shard: frontier.revision for frontier in known if frontier.shards == shards}
    if len(current) < shards or len({revision.epoch for revision in current.values()}) != 1:
        return None
    return min(current.values())
