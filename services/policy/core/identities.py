"""Who is there: the security identities of all pods, and what each number stands for.

A pod has an identity when it has a node, is not on the host's network and has not finished (a finished pod's address
may already be another's). Two pods with equal facts share one. An identity *lingers* for a while after its last pod is
gone or relabelled, since kernels learn of that at different moments: until then its rules and its place as a peer stay.

Label keys that differ from pod to pod of one workload are left out of the facts unless a live selector names one
(:func:`relevant_keys`). While nodes still compute with the set in force and policies already want another, every pod
has an identity under both, so that neither is ever without rules.

Two different sets of facts with one number are refused: that number allows nothing and is nobody's peer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kit.identity import identity_of, stands_for
from proto.identity import UNSTABLE_LABELS, IdentitySet
from proto.objects import Namespace, NetworkPolicy, Pod
from services.policy.core.selectors import keys_named

KEY_NAMESPACE = "kube-system"
"""Its uid is the key of the hash, so the numbers differ from cluster to cluster."""

FINISHED = frozenset({"Succeeded", "Failed"})
"""Phases that a pod never leaves, with its network gone (core/v1 PodPhase)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An identity with what selectors and named ports ask of it."""

    identity: int
    facts: IdentitySet
    labels: Mapping[str, str] = field(compare=False)
    namespace_labels: Mapping[str, str] = field(compare=False)

    @classmethod
    def of(cls, identity: int, facts: IdentitySet) -> Member:
        """Member with its labels as mappings."""
        return cls(
            identity=identity,
            facts=facts,
            labels=dict(facts.pod_labels),
            namespace_labels=dict(facts.namespace_labels),
        )


def has_identity(pod: Pod) -> bool:
    """Whether the pod is one that policies can apply to and name."""
    return bool(pod.node) and not pod.host_network and pod.phase not in FINISHED


def relevant_keys(policies: Iterable[NetworkPolicy]) -> frozenset[str]:
    """Unstable label keys that the pod selector of some policy or peer names."""
    return frozenset(key for policy in policies for key in pod_keys(policy)) & UNSTABLE_LABELS


def pod_keys(policy: NetworkPolicy) -> frozenset[str]:
    """Pod label keys that the policy's outcome can depend on."""
    peers = [peer for rule in (*policy.ingress, *policy.egress) for peer in rule.peers]
    return keys_named(policy.pod_selector).union(*(keys_named(peer.pod_selector) for peer in peers))


@dataclass(frozen=True, slots=True)
class Turnover:
    """What a refresh changed."""

    appeared: tuple[Member, ...]
    gone: tuple[int, ...]
    clashed: tuple[int, ...]
    """Numbers that are refused now and were not before, or the other way round."""


class Roster:
    """The book of identities in use, kept up by pods and namespaces as they come and go.

    Feed it with :meth:`put_pod`, :meth:`put_namespace` and :meth:`linger`; :meth:`refresh` recomputes what those
    touched. Without the uid of ``kube-system`` no identity can be computed and there are none.
    """

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.clashes: set[int] = set()
        self._pods: dict[str, Pod] = {}
        self._keys_by_namespace: dict[str, set[str]] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._facts_by_key: dict[str, tuple[tuple[int, IdentitySet], ...]] = {}
        self._uses: dict[int, dict[IdentitySet, int]] = {}
        self._lingering: dict[int, IdentitySet] = {}
        self._relevants: frozenset[frozenset[str]] = frozenset({frozenset()})
        self._dirty: set[str] = set()
        self._touched: set[int] = set()
        self.moved: set[str] = set()
        """Keys of pods whose identities were computed anew; who follows them empties it."""

    @property
    def cluster_uid(self) -> str:
        """Key of the identity hash; empty while the namespace ``kube-system`` has not been seen."""
        namespace = self._namespaces.get(KEY_NAMESPACE)
        return "" if namespace is None else namespace.uid

    def put_namespace(self, name: str, namespace: Namespace | None) -> None:
        """A namespace is as given now; None = it is gone."""
        uid = self.cluster_uid
        if namespace is None:
            self._namespaces.pop(name, None)
        else:
            self._namespaces[name] = namespace
        self._dirty |= self._keys_by_namespace.get(name, set())
        if self.cluster_uid != uid:
            self._dirty |= self._pods.keys()

    def put_pod(self, key: str, pod: Pod | None) -> None:
        """The pod of this key is as given now; None = it is gone."""
        old = self._pods.pop(key, None)
        if old is not None:
            self._keys_by_namespace[old.namespace].discard(key)
        if pod is not None:
            self._pods[key] = pod
            self._keys_by_namespace.setdefault(pod.namespace, set()).add(key)
        self._dirty.add(key)

    def linger(self, facts_by_identity: Mapping[int, IdentitySet]) -> None:
        """Identities to keep although no pod may have them any more: all of them, replacing those given before."""
        for identity, facts in self._lingering.items():
            if facts_by_identity.get(identity) != facts:
                self._unuse(identity, facts)
        for identity, facts in facts_by_identity.items():
            if self._lingering.get(identity) != facts:
                self._use(identity, facts)
        self._lingering = dict(facts_by_identity)

    def use_relevant(self, relevants: frozenset[frozenset[str]]) -> None:
        """Sets of relevant keys to compute with: the one in force on nodes, and the one that policies want."""
        if relevants != self._relevants:
            self._relevants = relevants
            self._dirty |= self._pods.keys()

    def identities_of(self, pod: Pod, relevant: frozenset[str]) -> tuple[int, IdentitySet] | None:
        """Number and facts of the pod with this set of relevant keys; None when it has no identity (yet)."""
        namespace = self._namespaces.get(pod.namespace)
        if namespace is None or not self.cluster_uid or not has_identity(pod):
            return None
        facts = stands_for(pod, namespace, relevant)
        return identity_of(facts, self.cluster_uid), facts

    def in_use(self) -> dict[int, IdentitySet]:
        """Identities that some pod has now, with their facts (those that only linger are left out)."""
        return {identity: facts for held in self._facts_by_key.values() for identity, facts in held}

    def identities_at(self, key: str) -> frozenset[int]:
        """Identities of the pod of this key: one for each set of relevant keys."""
        return frozenset(identity for identity, _ in self._facts_by_key.get(key, ()))

    def refresh(self) -> Turnover:
        """Recompute what was touched since the last call."""
        for key in self._dirty:
            self._recompute(key)
        self._dirty.clear()
        appeared: list[Member] = []
        gone: list[int] = []
        clashed: list[int] = []
        for identity in sorted(self._touched):
            uses = self._uses.get(identity, {})
            if (len(uses) > 1) != (identity in self.clashes):
                self.clashes ^= {identity}
                clashed.append(identity)
            facts = next(iter(uses)) if len(uses) == 1 else None
            old = self.members.get(identity)
            if old is not None and old.facts != facts:
                del self.members[identity]
                gone.append(identity)
            if facts is not None and (old is None or old.facts != facts):
                self.members[identity] = Member.of(identity, facts)
                appeared.append(self.members[identity])
        self._touched.clear()
        return Turnover(tuple(appeared), tuple(gone), tuple(clashed))

    def _recompute(self, key: str) -> None:
        self.moved.add(key)
        for identity, facts in self._facts_by_key.pop(key, ()):
            self._unuse(identity, facts)
        pod = self._pods.get(key)
        if pod is None:
            return
        found = {self.identities_of(pod, relevant) for relevant in self._relevants}
        held = tuple(pair for pair in found if pair is not None)
        if held:
            self._facts_by_key[key] = held
        for identity, facts in held:
            self._use(identity, facts)

    def _use(self, identity: int, facts: IdentitySet) -> None:
        uses = self._uses.setdefault(identity, {})
        uses[facts] = uses.get(facts, 0) + 1
        self._touched.add(identity)

    def _unuse(self, identity: int, facts: IdentitySet) -> None:
        uses = self._uses[identity]
        uses[facts] -= 1
        if not uses[facts]:
            del uses[facts]
        if not uses:
            del self._uses[identity]
        self._touched.add(identity)
