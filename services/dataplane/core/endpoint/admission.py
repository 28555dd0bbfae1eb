"""The admission wait of ADD: whether the pod's object has arrived and its policy is compiled for this very pod.

Owns the decision that an ADD waits for. Promises: a pod is ready only when the local watch holds its object with the
uid that the kubelet named (of a static pod, that of the pod and not of its mirror), the rules of the identity it has
*now* are here, and the frontier of that identity's shard covers the pod's own object and its namespace's in the present
epoch of ``objects``: so no policy that selects the pod can be missing. The identity is computed from what that frontier
was compiled from, or newer: with the relevant label keys that it names, and with namespaces at least as new as those it
knows. Where one watch is ahead of another, the pod waits. Absence is never taken for permission. Everything that it
looks at is an argument; asked again after any change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kit.identity import Computed
from proto.identity import RelevantKeys
from proto.objects import Namespace, Pod
from proto.policy import CompiledPolicy, Frontier, Revision
from services.dataplane.core.cni.request import PodRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What identities are computed from, as far as the local watches hold it."""

    cluster_uid: str
    """Uid of the namespace ``kube-system``; empty while unknown."""
    namespaces: Mapping[str, Namespace]
    namespaces_at: int
    """Sequence in ``objects`` of the last change of a namespace before which none is missing here."""
    records_at: Revision
    """Epoch of ``identities``, and the sequence up to which its records are here."""
    computed: Computed = field(default_factory=Computed)
    """What was computed before."""

    def identity(self, pod: Pod, relevant: RelevantKeys) -> int | None:
        """The pod's identity under these relevant keys; None while its namespace or the cluster's uid is unknown."""
        namespace = self.namespaces.get(pod.namespace)
        if namespace is None or not self.cluster_uid:
            return None
        return self.computed.identity(pod, namespace, relevant.of(pod.namespace), self.cluster_uid)


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
    """Whether ``wanted`` may start; ``seen`` is the later revision of its object and its namespace's, as the local
    watch holds them.
    """
    name = f"{wanted.namespace}/{wanted.name}"
    if pod is None:
        return NotYet(f"pod {name} has not reached this node's watch yet")
    if wanted.uid and not pod.runs_as(wanted.uid):
        return NotYet(f"pod {name} is known with uid {pod.uid}, the runtime starts {wanted.uid}")
    why = NotYet(f"the policy service has not compiled up to pod {name} yet")
    for frontier in sorted(current(frontiers), key=lambda frontier: frontier.revision, reverse=True):
        if not frontier.revision.covers(seen):
            continue
        identity = knowledge.identity(pod, frontier.relevant)
        if identity is None:
            return NotYet(f"namespace {wanted.namespace} has not reached this node's watch yet")
        if frontier.shard != identity % frontier.shards:
            continue
        if frontier.namespaces > knowledge.namespaces_at:
            return NotYet(f"a change of a namespace that pod {name} was compiled after has not reached this node yet")
        if frontier.identities.sequence and not knowledge.records_at.covers(frontier.identities):
            return NotYet(f"the identities that the policy of {name} is about have not all reached this node yet")
        policy = rules.get(identity)
        if policy is not None:
            return Admitted(pod=pod, identity=identity, policy=policy)
        why = NotYet(
            f"the policy service gives {name} (identity {identity:016x}) no rules: its namespace has spent its budget"
            f" of identities, or it has too many labels; see the events of the pod and of namespace {wanted.namespace}"
        )
    return why


def current(frontiers: Iterable[Frontier]) -> list[Frontier]:
    """Frontiers of the shards that there are now; those of another number of shards are left over."""
    known = list(frontiers)
    shards = max((frontier.shards for frontier in known), default=0)
    return [frontier for frontier in known if frontier.shards == shards]


def least(frontiers: Iterable[Frontier]) -> Revision | None:
    """The revision that every shard has reached; None when a shard is missing or they are of different epochs."""
    known = {frontier.shard: frontier for frontier in current(frontiers)}
    if not known or len(known) < next(iter(known.values())).shards:
        return None
    if len({frontier.revision.epoch for frontier in known.values()}) != 1:
        return None
    return min(frontier.revision for frontier in known.values())


def pod_of(pods: Iterable[Pod], uid: str) -> Pod | None:
    """The pod that was started under a uid. Anybody can write the annotation that makes an object a mirror: a uid of
    the API server's comes first, and where several mirrors claim one there is none.
    """
    found = [pod for pod in pods if pod.runs_as(uid)]
    own = [pod for pod in found if pod.uid == uid] or found
    return own[0] if len(own) == 1 else None
