"""The calculation graph: the cluster's objects in, every identity's compiled policy out, only what changed recompiled.

Contract, in the order that matters:

1. The output is a function of the present state alone. Objects may come in any order, twice, or not at all and later;
   a graph that lived through a year of changes equals one that was fed the last state.
2. :meth:`Graph.put` is cheap and only notes; :meth:`Graph.settle` brings the indexes up to date, :meth:`Graph.cut` the
   CIDR sets of one namespace; then it is known which identities have to be compiled, and :meth:`Graph.compile` compiles
   one. Between settling and the last compile the caller may pause (so that a large cluster does not hold up everything
   else) but must not feed.
3. ``None`` for a value means that the object is gone, never that it is unknown. Whoever feeds waits until it knows all.

Besides the objects there are three facts about what nodes hold at this moment, also state: which identities linger,
which set of relevant label keys is in force, and which CIDR partitions may still be (:meth:`Graph.hold`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proto.identity import IdentitySet, NamedPort
from proto.objects import KubernetesObject, Namespace, NetworkPolicy, Node, Pod
from proto.policy import CidrPartition, Direction, RuleSource
from services.policy.core.cidrs import Partition
from services.policy.core.compile import Compiled, Lines, compile_lines, compile_member, refuse, subject_ports
from services.policy.core.identities import Roster, relevant_keys
from services.policy.core.limits import Limits, Problem
from services.policy.core.matches import Matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What kernels may hold at this moment, beside what they are about to be told."""

    lingering: Mapping[int, IdentitySet] = field(default_factory=dict)
    """Identities whose last pod is gone, not long ago."""
    relevant: frozenset[str] = frozenset()
    """Relevant label keys that nodes compute identities with."""
    partitions: Mapping[str, tuple[CidrPartition, ...]] = field(default_factory=dict)
    """Partitions of each namespace, beside the wanted one, that some node may still have in force."""


NOTHING_HELD = Held()
DEFAULT_LIMITS = Limits()


class Graph:
    """Compiled policy of every identity, kept up with the objects it comes from."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.compiled: dict[int, Compiled] = {}
        """By identity; complete when :attr:`dirty` is empty."""
        self.dirty: set[int] = set()
        """Identities that :meth:`compile` has to be called for."""
        self.relevant: frozenset[str] = frozenset()
        """Relevant label keys that the present policies need."""
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        """By the key they came with."""
        self.roster = Roster()
        self._limits = limits
        self._matches = Matches(limits)
        self._held = NOTHING_HELD
        self._pending: dict[str, NetworkPolicy | None] = {}
        self._names: dict[str, str] = {}
        self._lines: dict[tuple[frozenset[tuple[str, str]], tuple[NamedPort, ...]], Lines] = {}

    @property
    def ready(self) -> bool:
        """Whether identities can be computed at all: the namespace ``kube-system`` is known."""
        return bool(self.roster.cluster_uid)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All that is wrong with the present state, sorted."""
        found = {problem for compiled in self.compiled.values() for problem in compiled.problems}
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
        elif isinstance(value, NetworkPolicy):
            self._pending[key] = value
        elif isinstance(value, Node):
            self.nodes[key] = value

    def _remove(self, key: str) -> None:
        if self.pods.pop(key, None) is not None:
            self.roster.put_pod(key, None)
        elif (name := self._names.pop(key, None)) is not None:
            self.roster.put_namespace(name, None)
        elif self.nodes.pop(key, None) is None and (key in self._matches.policies or key in self._pending):
            self._pending[key] = None

    def hold(self, held: Held) -> None:
        """What kernels may hold is this now."""
        self.roster.linger(held.lingering)
        self._matches.sets.hold(held.partitions)
        self._held = held

    def settle(self) -> None:
        """Take everything fed so far into account, but for the CIDR sets of :attr:`uncut`."""
        self._lines.clear()
        self._settle_policies()
        self.roster.use_relevant(frozenset({self.relevant, self._held.relevant}))
        turnover = self.roster.refresh()
        for identity in turnover.gone:
            self.dirty |= self._matches.remove_member(identity)
        for member in turnover.appeared:
            self.dirty |= self._matches.add_member(member)
        self.dirty |= set(turnover.clashed)
        self._matches.sets.admit()

    def cut(self, namespace: str) -> None:
        """Bring the CIDR sets of one namespace up to date; those whose lines name them become dirty."""
        self.dirty |= self._matches.subjects_of(self._matches.sets.cut(namespace))

    def _settle_policies(self) -> None:
        for key, policy in self._pending.items():
            self.dirty |= self._matches.put_policy(key, policy)
        if self._pending:
            self.relevant = relevant_keys(self._matches.policies.values())
        self._pending.clear()

    def compile(self, identity: int) -> bool:
        """Compile one identity of :attr:`dirty`; True when its policy is another than before (or it is gone)."""
        self.dirty.discard(identity)
        before = self.compiled.get(identity)
        after = self._compiled(identity)
        if after is None:
            self.compiled.pop(identity, None)
        else:
            self.compiled[identity] = after
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
            return None
        policies = self._matches.selecting(identity)
        ports = subject_ports(member, policies)
        # Identities that the same policies select have the same lines: most of a cluster compiles to a few sets.
        same = frozenset((policy.namespace, policy.name) for policy in policies), ports
        if same not in self._lines:
            self._lines[same] = compile_lines(ports, policies, self._matches, self._limits)
        return compile_member(member, policies, self._lines[same])

    def facts(self, identity: int) -> IdentitySet | None:
        """What an identity stands for; None for one that is not there or is refused."""
        member = self._matches.members.get(identity)
        return None if member is None else member.facts

    def isolating(self, identity: int, direction: Direction) -> tuple[RuleSource, ...]:
        """Policies that isolate the identity in one direction, sorted."""
        return tuple(
            RuleSource(kind="NetworkPolicy", namespace=policy.namespace, name=policy.name, index=-1)
            for policy in sorted(self._matches.selecting(identity), key=lambda policy: policy.name)
            if (policy.applies_ingress if direction is Direction.INGRESS else policy.applies_egress)
        )

    def run(self) -> frozenset[int]:
        """Settle and compile all at once; returns the identities whose policy changed."""
        self.settle()
        for namespace in sorted(self.uncut):
            self.cut(namespace)
        return frozenset(identity for identity in sorted(self.dirty) if self.compile(identity))
