"""Indexes between policies and identities: which policy selects whom, and which peers its selectors match.

Each index has one way in and one way out, keyed alike, so that a policy or member that leaves takes with it exactly
what it brought. Every change returns the identities whose compiled policy it can alter; nothing is compiled here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from proto.objects import NetworkPolicy
from proto.policy import Direction
from services.policy.core.cidr_sets import CidrSets
from services.policy.core.compile import PeerRef, ref_matches, refs_of, selects_member
from services.policy.core.identities import Member
from services.policy.core.limits import Limits

K = TypeVar("K")
V = TypeVar("V")


class Matches:
    """Policies by the identities they select, members by peers that match them.

    ``members_of`` and ``numbers_of`` are what :class:`services.policy.core.compile.Peers` asks for.
    """

    def __init__(self, limits: Limits) -> None:
        self.policies: dict[str, NetworkPolicy] = {}
        self.members: dict[int, Member] = {}
        self.sets = CidrSets(limits)
        self._subjects: dict[str, set[int]] = {}
        self._selecting: dict[int, set[str]] = {}
        self._matched: dict[PeerRef, set[int]] = {}
        self._users_by_ref: dict[PeerRef, set[str]] = {}
        self._refs_by_namespace: dict[str, set[PeerRef]] = {}
        self._policies_by_namespace: dict[str, set[str]] = {}
        self._members_by_namespace: dict[str, set[int]] = {}

    def members_of(self, ref: PeerRef) -> Iterator[Member]:
        """Members that the peer's selectors match."""
        return (self.members[identity] for identity in self._matched.get(ref, ()))

    def numbers_of(self, policy: NetworkPolicy, direction: Direction, index: int) -> Collection[int]:
        """Numbers of the CIDR sets that lie in the ipBlocks of a rule."""
        return self.sets.numbers_of(policy, direction, index)

    def selecting(self, identity: int) -> list[NetworkPolicy]:
        """Policies that select the identity."""
        return [self.policies[key] for key in self._selecting.get(identity, ())]

    def subjects_of(self, policy_keys: Iterable[str]) -> set[int]:
        """Identities that any of these policies selects."""
        return {identity for key in policy_keys for identity in self._subjects.get(key, ())}

    def add_member(self, member: Member) -> set[int]:
        """A member appeared: itself, and whoever has it as a peer, is to be compiled."""
        namespace = member.facts.namespace
        self.members[member.identity] = member
        self._members_by_namespace.setdefault(namespace, set()).add(member.identity)
        dirty = {member.identity}
        for key in self._policies_by_namespace.get(namespace, ()):
            if selects_member(self.policies[key], member):
                self._link(key, member.identity)
        for ref in (*self._refs_by_namespace.get(namespace, ()), *self._refs_by_namespace.get("", ())):
            if ref_matches(ref, member):
                self._matched[ref].add(member.identity)
                dirty |= self.subjects_of(self._users_by_ref[ref])
        return dirty

    def remove_member(self, identity: int) -> set[int]:
        """A member is gone: whoever had it as a peer is to be compiled (and itself, to be dropped)."""
        member = self.members.pop(identity)
        namespace = member.facts.namespace
        dirty = {identity}
        for ref in (*self._refs_by_namespace.get(namespace, ()), *self._refs_by_namespace.get("", ())):
            if identity in self._matched[ref]:
                self._matched[ref].discard(identity)
                dirty |= self.subjects_of(self._users_by_ref[ref])
        for key in self._selecting.pop(identity, set()):
            self._subjects[key].discard(identity)
        _discard(self._members_by_namespace, namespace, identity)
        return dirty

    def put_policy(self, key: str, policy: NetworkPolicy | None) -> set[int]:
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

    def _add_policy(self, key: str, policy: NetworkPolicy) -> None:
        self.policies[key] = policy
        self._policies_by_namespace.setdefault(policy.namespace, set()).add(key)
        self._subjects[key] = set()
        for identity in self._members_by_namespace.get(policy.namespace, ()):
            if selects_member(policy, self.members[identity]):
                self._link(key, identity)
        for ref in refs_of(policy):
            if ref not in self._users_by_ref:
                self._add_ref(ref)
            self._users_by_ref[ref].add(key)

    def _remove_policy(self, key: str, policy: NetworkPolicy) -> None:
        for ref in refs_of(policy):
            self._users_by_ref[ref].discard(key)
            if not self._users_by_ref[ref]:
                del self._users_by_ref[ref], self._matched[ref]
                _discard(self._refs_by_namespace, ref.namespace, ref)
        for identity in self._subjects.pop(key):
            _discard(self._selecting, identity, key)
        _discard(self._policies_by_namespace, policy.namespace, key)
        del self.policies[key]

    def _add_ref(self, ref: PeerRef) -> None:
        self._users_by_ref[ref] = set()
        self._refs_by_namespace.setdefault(ref.namespace, set()).add(ref)
        candidates = self._members_by_namespace.get(ref.namespace, set()) if ref.namespace else self.members.keys()
        self._matched[ref] = {identity for identity in candidates if ref_matches(ref, self.members[identity])}

    def _link(self, key: str, identity: int) -> None:
        self._subjects[key].add(identity)
        self._selecting.setdefault(identity, set()).add(key)


def _discard(index: dict[K, set[V]], key: K, value: V) -> None:
    """Take the value out of the key's set, and the key out when its set is empty."""
    index[key].discard(value)
    if not index[key]:
        del index[key]
