"""Indexes between policies and identities: which policy selects whom, and what its named ports stand for.

Each index has one way in and one way out, keyed alike, so that a policy or member that leaves takes with it exactly
what it brought. Every change returns the identities whose compiled policy it can alter; nothing is compiled here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

from proto.identity import NamedPort
from proto.policy import Direction, SelectorPeer
from services.policy.core.cidr_sets import CidrSets
from services.policy.core.compile import Ported, named_refs_of, selects_member
from services.policy.core.identities import Member
from services.policy.core.limits import Limits
from services.policy.core.model import Policy

K = TypeVar("K")
V = TypeVar("V")

Names = Collection[tuple[str, int]]
"""Names of ports with their protocols."""


class Matches:
    """Policies by the identities they select, ports by peers that have them.

    ``ports_of`` and ``numbers_of`` are what :class:`services.policy.core.compile.Peers` asks for.
    """

    def __init__(self, limits: Limits) -> None:
        self.policies: dict[str, Policy] = {}
        self.members: dict[int, Member] = {}
        self.members_by_namespace: dict[str, set[int]] = {}
        self.sets = CidrSets(limits)
        self._members_by_label: dict[tuple[str, str], set[int]] = {}
        self._subjects: dict[str, set[int]] = {}
        self._selecting: dict[int, set[str]] = {}
        self._ports: dict[SelectorPeer, dict[NamedPort, dict[str, int]]] = {}
        """Ports of the members that a peer names, with how many members of each namespace have them."""
        self._users_by_ref: dict[SelectorPeer, set[str]] = {}
        self._refs_by_namespace: dict[str, set[SelectorPeer]] = {}
        self._policies_by_namespace: dict[str, set[str]] = {}
        """By the namespace of their subjects; empty for those that may select in any."""

    def ports_of(
        self, refs: tuple[SelectorPeer, ...], names: Names, home: str, most: int
    ) -> tuple[tuple[Ported, ...], int]:
        """See :class:`services.policy.core.compile.Peers`."""
        having: dict[NamedPort, list[SelectorPeer]] = {}
        for ref in refs:
            for port in self._ports.get(ref, ()):
                if (port.name, port.protocol) in names:
                    having.setdefault(port, []).append(ref)
        chosen = sorted(having)
        if len(chosen) > most:
            chosen = sorted(sorted(having, key=lambda port: self._worth(port, having[port], home))[:most])
        return tuple(Ported(port, tuple(having[port])) for port in chosen), len(having)

    def _worth(self, port: NamedPort, refs: Iterable[SelectorPeer], home: str) -> tuple[bool, int, NamedPort]:
        """Sorts first what the policy's own namespace has, then what the most namespaces have.

        Not what the most identities have: of these one tenant has as many as it likes.
        """
        namespaces = {namespace for ref in refs for namespace in self._ports[ref][port]}
        return home not in namespaces, -len(namespaces), port

    def numbers_of(self, policy: Policy, direction: Direction, rule_index: int) -> Collection[int]:
        """See :class:`services.policy.core.compile.Peers`."""
        return self.sets.numbers_of(policy, direction, rule_index)

    def keys_selecting(self, identity: int) -> Collection[str]:
        """Keys of the policies that select the identity."""
        return self._selecting.get(identity, ())

    def selecting(self, identity: int) -> list[Policy]:
        """Policies that select the identity."""
        return [self.policies[key] for key in self.keys_selecting(identity)]

    def subjects_of(self, policy_keys: Iterable[str]) -> set[int]:
        """Identities that any of these policies selects."""
        return {identity for key in policy_keys for identity in self._subjects.get(key, ())}

    def with_label(self, of: str, key: str) -> Collection[int]:
        """Identities of which the pods, or the namespace, have a label of this key that is known."""
        return self._members_by_label.get((of, key), ())

    def add_member(self, member: Member) -> set[int]:
        """A member appeared: itself, and whoever has ports that only now mean something, is to be compiled."""
        namespace = member.namespace
        self.members[member.identity] = member
        self.members_by_namespace.setdefault(namespace, set()).add(member.identity)
        for rule_index in _labels_of(member):
            self._members_by_label.setdefault(rule_index, set()).add(member.identity)
        for scope in (namespace, ""):
            for key in self._policies_by_namespace.get(scope, ()):
                if selects_member(self.policies[key], member):
                    self._link(key, member.identity)
        return {member.identity} | self._count_ports(member, 1)

    def remove_member(self, identity: int) -> set[int]:
        """A member is gone: whoever had its ports is to be compiled (and itself, to be dropped)."""
        member = self.members.pop(identity)
        for key in self._selecting.pop(identity, set()):
            self._subjects[key].discard(identity)
        for rule_index in _labels_of(member):
            _discard(self._members_by_label, rule_index, identity)
        _discard(self.members_by_namespace, member.namespace, identity)
        return {identity} | self._count_ports(member, -1)

    def _count_ports(self, member: Member, step: int) -> set[int]:
        if not member.named_ports:
            return set()
        dirty: set[int] = set()
        own, any_namespace = (self._refs_by_namespace.get(namespace, ()) for namespace in (member.namespace, ""))
        candidate = member.candidate
        for ref in (*own, *any_namespace):
            if candidate.is_in(ref) and self._count(ref, member, step):
                dirty |= self.subjects_of(self._users_by_ref[ref])
        return dirty

    def _count(self, ref: SelectorPeer, member: Member, step: int) -> bool:
        """Count a member's ports in or out; True when what the peer's ports stand for may be another now."""
        ports = self._ports[ref]
        altered = False
        for port in set(member.named_ports):
            counts = ports.setdefault(port, {})
            counts[member.namespace] = counts.get(member.namespace, 0) + step
            altered |= counts[member.namespace] == max(step, 0)
            if not counts[member.namespace]:
                del counts[member.namespace]
            if not counts:
                del ports[port]
        return altered

    def put_policy(self, key: str, policy: Policy | None) -> set[int]:
        """The policy of this key is as given now (None = gone): whom it selected or selects is to be compiled."""
        old = self.policies.get(key)
        if old == policy:
            return set()
        dirty = set(self._subjects.get(key, ()))
        self.sets.put(key, old, policy)
        if old is not None:
            self._remove_policy(key, old)
        if policy is not None:
            self._add_policy(key, policy)
            dirty |= self._subjects[key]
        return dirty

    def _add_policy(self, key: str, policy: Policy) -> None:
        self.policies[key] = policy
        self._policies_by_namespace.setdefault(policy.subject.namespace, set()).add(key)
        self._subjects[key] = set()
        for identity in self._members_of(policy.subject.namespace):
            if selects_member(policy, self.members[identity]):
                self._link(key, identity)
        for ref in named_refs_of(policy):
            if ref not in self._users_by_ref:
                self._add_ref(ref)
            self._users_by_ref[ref].add(key)

    def _remove_policy(self, key: str, policy: Policy) -> None:
        for ref in named_refs_of(policy):
            self._users_by_ref[ref].discard(key)
            if not self._users_by_ref[ref]:
                del self._users_by_ref[ref], self._ports[ref]
                _discard(self._refs_by_namespace, ref.namespace, ref)
        for identity in self._subjects.pop(key):
            _discard(self._selecting, identity, key)
        _discard(self._policies_by_namespace, policy.subject.namespace, key)
        del self.policies[key]

    def _add_ref(self, ref: SelectorPeer) -> None:
        self._users_by_ref[ref] = set()
        self._refs_by_namespace.setdefault(ref.namespace, set()).add(ref)
        self._ports[ref] = {}
        for identity in self._members_of(ref.namespace):
            member = self.members[identity]
            if member.named_ports and member.candidate.is_in(ref):
                self._count(ref, member, 1)

    def _members_of(self, namespace: str) -> Collection[int]:
        """Of a namespace; of all when it is empty."""
        return self.members_by_namespace.get(namespace, ()) if namespace else self.members.keys()

    def _link(self, key: str, identity: int) -> None:
        self._subjects[key].add(identity)
        self._selecting.setdefault(identity, set()).add(key)


def _labels_of(member: Member) -> Iterable[tuple[str, str]]:
    yield from (("pod", key) for key in member.labels)
    yield from (("namespace", key) for key in member.namespace_labels)


def _discard(index: dict[K, set[V]], key: K, value: V) -> None:
    """Take the value out of the key's set, and the key out when its set is empty."""
    index[key].discard(value)
    if not index[key]:
        del index[key]
