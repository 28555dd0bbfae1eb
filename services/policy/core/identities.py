"""The security identities of all pods, and the labels that each number stands for.

A pod has an identity when it has a node, is not on the host's network and has not finished (a finished pod's address
may already be another's). Two pods with equal facts share one. An identity *lingers* for a while after its last pod is
gone or relabelled, since kernels learn of that at different moments: until then its rules and its place as a peer stay.
Of one that lingers only its record is known, so what no live selector named is unknown.

Label keys that differ from pod to pod of one workload are left out of the facts unless a live selector names one
(``core.named``). While nodes still compute with the keys in force and policies already want others, every pod has an
identity under each, so that none is ever without rules.

Two different sets of facts with one number are refused: that number allows nothing and is nobody's peer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from kit.identity import digest_of, identity_of, stands_for
from kit.selectors import NOTHING_HIDDEN, Candidate, hidden_key
from proto.identity import IdentityRecord, IdentitySet, NamedPort, RelevantKeys
from proto.objects import Labels, Namespace, Pod

KEY_NAMESPACE = "kube-system"
"""Its uid is the key of the hash, so the numbers differ from cluster to cluster."""

FINISHED = frozenset({"Succeeded", "Failed"})
"""Phases that a pod never leaves, with its network gone (core/v1 PodPhase)."""

NO_KEYS = RelevantKeys()

_LABEL, _PORT, _FIXED = 16, 48, 256
"""Bytes that a label, a named port and a record take beside their texts (measured from above)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An identity with what selectors and named ports ask of it."""

    identity: int
    digest: str
    """``kit.identity.digest_of`` the facts."""
    namespace: str
    labels: Mapping[str, str] = field(compare=False)
    namespace_labels: Mapping[str, str] = field(compare=False)
    service_account: str = field(compare=False)
    named_ports: tuple[NamedPort, ...] = field(compare=False)
    hidden_keys: frozenset[int] = NOTHING_HIDDEN
    """Of labels that are there with a value unknown here: the identity only lingers."""
    hidden_namespace_keys: frozenset[int] = NOTHING_HIDDEN
    size: int = field(compare=False, default=0)
    """Bytes that its record takes at most, whatever selectors name."""

    @property
    def most(self) -> int:
        """The greatest number of labels or ports of one sort that it has."""
        return max(
            len(self.labels) + len(self.hidden_keys),
            len(self.namespace_labels) + len(self.hidden_namespace_keys),
            len(self.named_ports),
        )

    @classmethod
    def of(cls, identity: int, facts: IdentitySet) -> Member:
        """The identity of some pod."""
        return cls(
            identity=identity,
            digest=digest_of(facts),
            namespace=facts.namespace,
            labels=dict(facts.pod_labels),
            namespace_labels=dict(facts.namespace_labels),
            service_account=facts.service_account,
            named_ports=facts.named_ports,
            size=_size(facts, 0),
        )

    @classmethod
    def from_record(cls, record: IdentityRecord) -> Member:
        """The identity of a published record."""
        hidden = len(record.hidden_pod_keys) + len(record.hidden_namespace_keys)
        return cls(
            identity=record.identity,
            digest=record.digest,
            namespace=record.namespace,
            labels=dict(record.pod_labels),
            namespace_labels=dict(record.namespace_labels),
            service_account=record.service_account,
            named_ports=record.named_ports,
            hidden_keys=frozenset(record.hidden_pod_keys),
            hidden_namespace_keys=frozenset(record.hidden_namespace_keys),
            size=_size(record, hidden),
        )

    def matches_record(self, record: IdentityRecord) -> bool:
        """Whether it is what :meth:`from_record` makes of the record."""
        return (
            (self.identity, self.digest) == (record.identity, record.digest)
            and len(self.hidden_keys) == len(record.hidden_pod_keys)
            and len(self.hidden_namespace_keys) == len(record.hidden_namespace_keys)
            and self.hidden_keys.issuperset(record.hidden_pod_keys)
            and self.hidden_namespace_keys.issuperset(record.hidden_namespace_keys)
        )

    @property
    def candidate(self) -> Candidate:
        """As selectors see it."""
        return Candidate(
            namespace=self.namespace,
            namespace_labels=self.namespace_labels,
            labels=self.labels,
            named_ports=self.named_ports,
            hidden_namespace_keys=self.hidden_namespace_keys,
            hidden_keys=self.hidden_keys,
        )

    @property
    def described(self) -> str:
        """``pods in shop with app=web``, for a sentence."""
        facts = sorted(self.labels.items())[:8]
        labels = " ".join(f"{key}={value}" for key, value in facts) or "no labels"
        return f"pods in {self.namespace} with {labels}{' …' if len(self.labels) > len(facts) else ''}"

    def record(self, pod_keys: Set[str], namespace_keys: Set[str]) -> IdentityRecord:
        """What is published of it while selectors name these label keys."""
        namespace_labels, hidden_namespace_keys = _shown(self.namespace_labels, namespace_keys)
        pod_labels, hidden_keys = _shown(self.labels, pod_keys)
        return IdentityRecord(
            identity=self.identity,
            digest=self.digest,
            namespace=self.namespace,
            namespace_labels=namespace_labels,
            pod_labels=pod_labels,
            hidden_namespace_keys=tuple(sorted(hidden_namespace_keys | self.hidden_namespace_keys)),
            hidden_pod_keys=tuple(sorted(hidden_keys | self.hidden_keys)),
            service_account=self.service_account,
            named_ports=self.named_ports,
        )


def _size(facts: IdentitySet | IdentityRecord, hidden: int) -> int:
    labels = (*facts.namespace_labels, *facts.pod_labels)
    texts = sum(_LABEL + len(key.encode()) + len(value.encode()) for key, value in labels)
    names = len(facts.namespace.encode()) + len(facts.service_account.encode())
    ports = sum(_PORT + len(port.name.encode()) for port in facts.named_ports)
    return _FIXED + names + texts + _LABEL * hidden + ports


def _shown(labels: Mapping[str, str], keys: Set[str]) -> tuple[Labels, frozenset[int]]:
    shown = tuple(sorted(pair for pair in labels.items() if pair[0] in keys))
    return shown, frozenset(hidden_key(key) for key in labels if key not in keys)


def has_identity(pod: Pod) -> bool:
    """Whether the pod is one that policies can apply to and name."""
    return bool(pod.node) and not pod.host_network and pod.phase not in FINISHED


@dataclass(frozen=True, slots=True)
class Turnover:
    """What a refresh changed."""

    appeared: tuple[Member, ...]
    gone: tuple[Member, ...]
    clashed: tuple[int, ...]
    """Numbers that are refused now and were not before, or the other way round."""


class Roster:
    """The book of identities in use, kept up by pods and namespaces as they come and go.

    Feed it with :meth:`put_pod`, :meth:`put_namespace` and :meth:`linger`; :meth:`refresh` recomputes what those
    touched. Without the uid of ``kube-system`` no identity can be computed and there are none.
    """

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.by_namespace: dict[str, dict[int, Member]] = {}
        self.clashes: set[int] = set()
        self._pods: dict[str, Pod] = {}
        self._keys_by_namespace: dict[str, set[str]] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._members_by_key: dict[str, tuple[Member, ...]] = {}
        self._uses: dict[int, dict[str, tuple[Member, int]]] = {}
        self._lingering: dict[int, Member] = {}
        self._relevants: frozenset[RelevantKeys] = frozenset({NO_KEYS})
        self._dirty: set[str] = set()
        self._touched: set[int] = set()
        self.used: set[int] = set()
        """Identities that a pod came to have or left; who follows them empties it."""
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
            mine = self._keys_by_namespace[old.namespace]
            mine.discard(key)
            if not mine:
                del self._keys_by_namespace[old.namespace]
        if pod is not None:
            self._pods[key] = pod
            self._keys_by_namespace.setdefault(pod.namespace, set()).add(key)
        self._dirty.add(key)

    def linger(self, members: Mapping[int, Member], changed: Iterable[int] | None = None) -> None:
        """Identities to keep although no pod may have them any more: all of them, replacing those given before.

        ``changed``: those of which it says something else than before; None: it may be any.
        """
        for identity in self._lingering.keys() | members.keys() if changed is None else changed:
            member = members.get(identity)
            if self._lingering.get(identity) == member:
                continue
            self._touched.add(identity)
            if member is None:
                del self._lingering[identity]
            else:
                self._lingering[identity] = member

    def lingers(self, identity: int) -> bool:
        """Whether no pod has the identity."""
        return identity not in self._uses

    def use_relevant(self, relevants: frozenset[RelevantKeys]) -> None:
        """Relevant keys to compute with: those in force on nodes, and those that policies want."""
        if relevants != self._relevants:
            self._relevants = relevants
            self._dirty |= self._pods.keys()

    def identity_of(self, pod: Pod, relevant: RelevantKeys) -> int | None:
        """Number of the pod under these relevant keys; None when it has no identity (yet)."""
        facts = self.facts_of(pod, relevant)
        return None if facts is None else identity_of(facts, self.cluster_uid)

    def facts_of(self, pod: Pod, relevant: RelevantKeys) -> IdentitySet | None:
        """What the pod's identity is computed from; None when it has none (yet)."""
        namespace = self._namespaces.get(pod.namespace)
        if namespace is None or not self.cluster_uid or not has_identity(pod):
            return None
        return stands_for(pod, namespace, relevant.of(pod.namespace))

    def in_use(self) -> dict[int, Member]:
        """Identities that some pod has now (those that only linger are left out)."""
        return {identity: member for identity, uses in self._uses.items() for member, _ in uses.values()}

    def user(self, identity: int) -> Member | None:
        """Who has the identity now: what :meth:`in_use` says of it."""
        return next((member for member, _ in reversed(self._uses.get(identity, {}).values())), None)

    def pods_of(self, namespace: str, identities: Collection[int]) -> Iterator[Pod]:
        """Pods of the namespace that have one of these identities."""
        for key in sorted(self._keys_by_namespace.get(namespace, ())):
            if any(member.identity in identities for member in self._members_by_key.get(key, ())):
                yield self._pods[key]

    def identities_at(self, key: str) -> frozenset[int]:
        """Identities of the pod of this key: one for each set of relevant keys."""
        return frozenset(member.identity for member in self._members_by_key.get(key, ()))

    def refresh(self) -> Turnover:
        """Recompute what was touched since the last call."""
        for key in self._dirty:
            self._recompute(key)
        self._dirty.clear()
        appeared: list[Member] = []
        gone: list[Member] = []
        clashed: list[int] = []
        for identity in sorted(self._touched):
            variants = {digest: member for digest, (member, _) in self._uses.get(identity, {}).items()}
            lingering = self._lingering.get(identity)
            if lingering is not None:
                variants.setdefault(lingering.digest, lingering)
            if (len(variants) > 1) != (identity in self.clashes):
                self.clashes ^= {identity}
                clashed.append(identity)
            member = next(iter(variants.values())) if len(variants) == 1 else None
            old = self.members.get(identity)
            if old == member:
                continue
            if old is not None:
                self._leave(old)
                gone.append(old)
            if member is not None:
                self.members[identity] = member
                self.by_namespace.setdefault(member.namespace, {})[identity] = member
                appeared.append(member)
        self._touched.clear()
        return Turnover(tuple(appeared), tuple(gone), tuple(clashed))

    def _leave(self, member: Member) -> None:
        del self.members[member.identity]
        left = self.by_namespace[member.namespace]
        del left[member.identity]
        if not left:
            del self.by_namespace[member.namespace]

    def _recompute(self, key: str) -> None:
        self.moved.add(key)
        for member in self._members_by_key.pop(key, ()):
            self._unuse(member)
        pod = self._pods.get(key)
        if pod is None:
            return
        found = {self.facts_of(pod, relevant) for relevant in self._relevants} - {None}
        held = tuple(self._use(facts) for facts in found if facts is not None)
        if held:
            self._members_by_key[key] = held

    def _use(self, facts: IdentitySet) -> Member:
        identity = identity_of(facts, self.cluster_uid)
        uses = self._uses.setdefault(identity, {})
        digest = digest_of(facts)
        member, count = uses.get(digest) or (Member.of(identity, facts), 0)
        uses[digest] = member, count + 1
        self._touched.add(identity)
        if not count:
            self.used.add(identity)
        return member

    def _unuse(self, member: Member) -> None:
        uses = self._uses[member.identity]
        known, count = uses[member.digest]
        if count > 1:
            uses[member.digest] = known, count - 1
        else:
            del uses[member.digest]
            self.used.add(member.identity)
            if not uses:
                del self._uses[member.identity]
        self._touched.add(member.identity)
