"""The calculation graph: the cluster's objects in, every identity's compiled policy out, only what changed recompiled.

Contract, in the order that matters:

1. The output is a function of the present state alone. Objects may come in any order, twice, or not at all and later;
   a graph that lived through a year of changes equals one that was fed the last state.
2. :meth:`Graph.put` is cheap and only notes; :meth:`Graph.settle` brings the indexes up to date, :meth:`Graph.cut` the
   CIDR sets of one namespace; then it is known which identities have to be compiled, and :meth:`Graph.compile` compiles
   one; :meth:`Graph.trim` tells which have to be once more, for their namespace's budget. Between settling and the last
   compile the caller may pause (so that a large cluster does not hold up everything else) but must not feed.
3. ``None`` for a value means that the object is gone, never that it is unknown. Whoever feeds waits until it knows all.

Besides the objects there are some facts about what is published and what nodes hold at this moment, also state: which
identities linger, with which relevant label keys nodes compute, which CIDR partitions may still be in force, which
identities have records, and which label keys these go on showing (:meth:`Graph.hold`).

What is compiled for an identity depends on the policies that select it and on its own ports, never on who else exists,
but for named ports of egress.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from proto.identity import NamedPort, RelevantKeys
from proto.objects import KubernetesObject, Namespace, Node, Pod
from proto.policy import CidrPartition, Direction, RuleSource
from services.policy.core.budget import Refusals, refusals
from services.policy.core.cidrs import Partition
from services.policy.core.compile import (
    Compiled,
    Rules,
    compile_member,
    compile_rules,
    cut,
    refuse,
    size_beside_rules,
    source_of,
    subject_ports,
)
from services.policy.core.dialects import read
from services.policy.core.identities import NO_KEYS, Member, Roster, Turnover
from services.policy.core.limits import Limits, Problem, about_pods, about_policies
from services.policy.core.matches import Matches
from services.policy.core.model import Policy
from services.policy.core.named import Foreign, NamedKey, Naming, Shown, relevant_keys
from services.policy.core.sizes import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What kernels may hold at this moment, beside what they are about to be told."""

    lingering: Mapping[int, Member] = field(default_factory=dict)
    """Identities whose last pod is gone, not long ago."""
    relevants: frozenset[RelevantKeys] = frozenset()
    """Relevant label keys that nodes compute identities with, beside those that are wanted."""
    partitions: Mapping[str, tuple[CidrPartition, ...]] = field(default_factory=dict)
    """Partitions of each namespace, beside the wanted one, that some node may still have in force."""
    recorded: Set[int] = frozenset()
    """Identities that have a record: where a namespace has too many, these go before new ones."""
    named: frozenset[NamedKey] = frozenset()
    """Label keys that policies named a while ago, which records go on showing."""


NOTHING_HELD = Held()
NOTHING_REFUSED = Refusals()
DEFAULT_LIMITS = Limits()


class Graph:
    """Compiled policy of every identity, kept up with the objects it comes from."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.compiled: dict[int, Compiled] = {}
        """By identity; complete when :attr:`dirty` is empty."""
        self._faulty: set[int] = set()
        """Identities whose compiled policy has problems."""
        self.dirty: set[int] = set()
        """Identities that :meth:`compile` has to be called for."""
        self.relevant = NO_KEYS
        """Relevant label keys that the present policies need."""
        self.refused: dict[str, Refusals] = {}
        """Identities that get neither rules nor record, by namespace, and why."""
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        """By the key they came with."""
        self.roster = Roster()
        self._limits = limits
        self._matches = Matches(limits)
        self._held = NOTHING_HELD
        self._sizes = Sizes(limits.rule_bytes)
        self._pending: dict[str, Policy | None] = {}
        self._names: dict[str, str] = {}
        self._naming = Naming()
        self._foreign = Foreign()
        self._shown = Shown()
        self._rules: dict[tuple[frozenset[str], tuple[NamedPort, ...]], Rules] = {}

    @property
    def ready(self) -> bool:
        """Whether identities can be computed at all: the namespace ``kube-system`` is known."""
        return bool(self.roster.cluster_uid)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All that is wrong with the present state, sorted."""
        found = {problem for identity in self._faulty for problem in self.compiled[identity].problems}
        for namespace, refusal in self.refused.items():
            found.update(refusal.problems(namespace, self.roster, self._limits))
        found.update(self._matches.sets.problems)
        return tuple(sorted(found))

    @property
    def partitions(self) -> Mapping[str, Partition]:
        """What each namespace's policies name by CIDR; complete when :attr:`uncut` is empty."""
        return self._matches.sets.partitions

    @property
    def uncut(self) -> frozenset[str]:
        """Namespaces that :meth:`cut` has to be called for."""
        return frozenset(self._matches.sets.uncut)

    def put(self, key: str, value: KubernetesObject | None) -> None:
        """The object of this key is as given now; None = it is gone. Kinds that policy does not depend on are ignored.

        A key stands for one kind for ever (keys of ``objects`` begin with it).
        """
        if value is None:
            self._remove(key)
        elif isinstance(value, Pod):
            self.pods[key] = value
            self.roster.put_pod(key, value)
        elif isinstance(value, Namespace):
            self._names[key] = value.name
            self.roster.put_namespace(value.name, value)
        elif isinstance(value, Node):
            self.nodes[key] = value
        elif (policy := read(value)) is not None:
            self._pending[key] = policy

    def _remove(self, key: str) -> None:
        if self.pods.pop(key, None) is not None:
            self.roster.put_pod(key, None)
        elif (name := self._names.pop(key, None)) is not None:
            self.roster.put_namespace(name, None)
        elif self.nodes.pop(key, None) is None and (key in self._matches.policies or key in self._pending):
            self._pending[key] = None

    def hold(self, held: Held, lingering: Iterable[int] | None = None) -> None:
        """What kernels may hold is this now. ``lingering``: of which identities it says something else than before of
        those that linger; None: it may be any.
        """
        self.roster.linger(held.lingering, lingering)
        self._matches.sets.hold(held.partitions)
        self._held = held

    @property
    def named(self) -> Set[NamedKey]:
        """Label keys that the policies of now name."""
        return self._naming.keys

    def settle(self) -> None:
        """Take everything fed so far into account, but for the CIDR sets of :attr:`uncut`."""
        self._rules.clear()
        self._settle_policies()
        self.roster.use_relevant(self._held.relevants | {self.relevant})
        self._settle_members(self.roster.refresh())
        if self._shown.named != self._naming.keys | self._held.named:
            self._settle_shown()
        self._matches.sets.admit()

    def cut(self, namespace: str) -> None:
        """Bring the CIDR sets of one namespace up to date; those whose rules name them become dirty."""
        self.dirty |= self._matches.subjects_of(self._matches.sets.cut(namespace))

    def _settle_policies(self) -> None:
        named_others = False
        for key, policy in self._pending.items():
            named_others |= self._naming.change(self._matches.policies.get(key), policy)
            self.dirty |= self._matches.put_policy(key, policy)
        if named_others:
            self.relevant = relevant_keys(self._naming.keys)
            self._foreign = Foreign(self._naming.keys)
        self._pending.clear()

    def _settle_members(self, turnover: Turnover) -> None:
        """Who is there, within the budgets of namespaces."""
        self.dirty |= set(turnover.clashed)
        for member in turnover.gone:
            if self._matches.members.get(member.identity) == member:
                self.dirty |= self._matches.remove_member(member.identity)
        touched = {member.namespace for member in (*turnover.gone, *turnover.appeared)} | self.refused.keys()
        for namespace in sorted(touched):
            foreign = self._foreign.of(namespace)
            refused = refusals(self.roster, namespace, self._held.recorded, self._limits, foreign)
            self.roster.used |= refused.identities ^ self.refused.get(namespace, NOTHING_REFUSED).identities
            if refused:
                self.refused[namespace] = refused
            else:
                self.refused.pop(namespace, None)
            wanted = self.roster.by_namespace.get(namespace, {}).keys() - refused.identities
            present = self._matches.members_by_namespace.get(namespace, set())
            for identity in sorted(present - wanted):
                self.dirty |= self._matches.remove_member(identity)
            for identity in sorted(wanted - present):
                self.dirty |= self._matches.add_member(self.roster.members[identity])

    def _settle_shown(self) -> None:
        """Records show other labels: those that have one of them are told anew."""
        before, self._shown = self._shown.named, Shown(self._naming.keys | self._held.named)
        for of, scope, key in before ^ self._shown.named:
            concerned = set(self._matches.with_label(of, key))
            if scope:
                concerned &= self._matches.members_by_namespace.get(scope, set())
            self.dirty |= concerned

    def compile(self, identity: int) -> bool:
        """Compile one identity of :attr:`dirty`; True when its policy is another than before (or it is gone)."""
        self.dirty.discard(identity)
        before = self.compiled.get(identity)
        after = self._compiled(identity)
        self._faulty.discard(identity)
        if after is None:
            self.compiled.pop(identity, None)
        else:
            self.compiled[identity] = after
            if after.problems:
                self._faulty.add(identity)
        return before != after

    def _compiled(self, identity: int) -> Compiled | None:
        if identity in self.roster.clashes:
            problem = Problem(
                fault=f"two different sets of labels share the identity {identity:016x}: both are denied everything",
                remedy="change any label of the pods or namespaces concerned",
            )
            return refuse(identity, problem)
        member = self._matches.members.get(identity)
        if member is None:
            self._sizes.forget(identity)
            return None
        policies = self._matches.selecting(identity)
        ports = subject_ports(member, policies)
        # Identities that the same policies select have the same rules: most of a cluster compiles to a few sets.
        same = frozenset(self._matches.keys_selecting(identity)), ports
        if same not in self._rules:
            self._rules[same] = compile_rules(ports, policies, self._matches, self._limits)
        record = member.record(self._shown.pod_keys(member.namespace), self._shown.namespace_keys)
        compiled = compile_member(member, policies, self._rules[same], record)
        self._sizes.note(identity, member.namespace, self._rules[same].size + size_beside_rules(compiled.policy))
        if self._sizes.is_cut(identity, member.namespace):
            return cut(member, policies, record, self._limits.rule_bytes)
        return compiled

    def trim(self) -> bool:
        """Once all is compiled: whether some are dirty again, since what a namespace's rules take in all changed."""
        self.dirty |= self._sizes.settle() & self.compiled.keys()
        return bool(self.dirty)

    def largest(self) -> Iterator[int]:
        """Identities by what their rules take, those of the namespace that takes the most first."""
        return self._sizes.largest()

    def in_use(self) -> dict[int, Member]:
        """Identities that some pod has now and that are not refused."""
        refused = frozenset[int]().union(*(refusal.identities for refusal in self.refused.values()))
        return {identity: member for identity, member in self.roster.in_use().items() if identity not in refused}

    def user(self, identity: int) -> Member | None:
        """Who has the identity now: what :meth:`in_use` says of it."""
        member = self.roster.user(identity)
        if member is not None and identity in self.refused.get(member.namespace, NOTHING_REFUSED).identities:
            return None
        return member

    def take_used(self) -> set[int]:
        """Identities of which :meth:`user` may say something else than when this was last called."""
        taken, self.roster.used = self.roster.used, set()
        return taken

    def member(self, identity: int) -> Member | None:
        """Who has the identity; None for one that is not there or is refused."""
        return self._matches.members.get(identity)

    @property
    def policies(self) -> Mapping[str, Policy]:
        """All policies by the key they came with."""
        return self._matches.policies

    def selecting(self, identity: int) -> list[Policy]:
        """Policies that select the identity, by their names."""
        return sorted(self._matches.selecting(identity), key=lambda policy: policy.name)

    def subjects_of(self, key: str) -> Set[int]:
        """Identities that the policy of this key selects, lingering ones included."""
        return self._matches.subjects_of((key,))

    def withheld(self, identity: int, why: str) -> Problem:
        """What is told of an identity that cannot be published as it should be."""
        member = self._matches.members.get(identity)
        if member is None:
            return Problem(fault=f"identity {identity:016x} cannot be published, and is denied: {why}", remedy="")
        policies = sorted(policy.name for policy in self._matches.selecting(identity))
        return Problem(
            fault=f"the policy of {member.described} cannot be published, so they are denied or wait: {why}",
            remedy=f"use fewer pods with labels of their own, and smaller policies, in {member.namespace}",
            about=(
                *about_pods(self.roster.pods_of(member.namespace, {identity}), "PolicyNotPublished"),
                *about_policies("PolicyNotPublished", policies),
            ),
        )

    def why_refused(self, identity: int) -> str:
        """One sentence about an identity without rules."""
        for namespace, refusal in self.refused.items():
            for problem in refusal.problems(namespace, self.roster, self._limits):
                if identity in refusal.identities:
                    return problem.fault
        return "it is not compiled yet"

    def isolating(self, identity: int, direction: Direction) -> tuple[RuleSource, ...]:
        """Policies that isolate the identity in one direction, sorted."""
        isolating = (policy.name for policy in self._matches.selecting(identity) if policy.isolates(direction))
        return tuple(source_of(name, -1) for name in sorted(isolating))

    def run(self) -> frozenset[int]:
        """Settle and compile all at once; returns the identities whose policy changed."""
        self.settle()
        for namespace in sorted(self.uncut):
            self.cut(namespace)
        changed = {identity for identity in sorted(self.dirty) if self.compile(identity)}
        if self.trim():
            changed |= {identity for identity in sorted(self.dirty) if self.compile(identity)}
        return frozenset(changed)
