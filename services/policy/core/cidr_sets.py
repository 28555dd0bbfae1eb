"""What all policies name by ipBlock: whose is taken, and the partition of each namespace, kept up with both.

A policy costs as many prefixes as it writes: each CIDR and each exception, however often. What one policy, one
namespace and the cluster may cost is bounded (:class:`services.policy.core.limits.Limits`). Past a bound policies are
refused, the newest first, and of the largest namespace first where it is the cluster's sum; the answer depends on the
present policies alone. A refused policy goes on isolating what it selects, its other peers hold, and its ipBlocks allow
nothing. Only the namespaces whose policies or whose held partitions changed are cut anew.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from proto.objects import IPBlock
from proto.policy import CidrPartition, Direction
from services.policy.core.cidrs import Area, Partition, TooMuchOverlap, area_of, numbers_within, partition
from services.policy.core.limits import Limits, Problem, about_policies
from services.policy.core.model import Policy, PolicyName

RuleIndex = tuple[Direction, int]
"""A rule of a policy: its direction, and its place among the rules of it."""


class Cost(NamedTuple):
    """What a policy's ipBlocks cost; in the order in which they are taken."""

    created: int
    """Unix seconds."""
    name: PolicyName
    prefixes: int


@dataclass(slots=True)
class _Named:
    """A policy that names ipBlocks."""

    key: str
    policy: Policy
    cost: Cost
    areas: dict[RuleIndex, Area] | None = None
    """Worked out when the policy is taken for the first time."""


def block_rules(policy: Policy) -> dict[RuleIndex, tuple[IPBlock, ...]]:
    """Rules with ipBlocks; none of a policy without a namespace, which has no partition."""
    if not policy.name.namespace:
        return {}
    return {
        (direction, index): rule.blocks
        for direction in Direction
        for index, rule in enumerate(policy.rules(direction))
        if rule.blocks
    }


class CidrSets:
    """Partitions by namespace. ``admit`` after a batch of ``put``; then ``cut`` every namespace of ``uncut``."""

    def __init__(self, limits: Limits) -> None:
        self.partitions: dict[str, Partition] = {}
        """By namespace; only of those that name any address."""
        self.uncut: set[str] = set()
        """Namespaces that :meth:`cut` has to be called for."""
        self._limits = limits
        self._budget = Budget(limits)
        self._named: dict[PolicyName, _Named] = {}
        self._by_namespace: dict[str, set[PolicyName]] = {}
        self._refused: dict[PolicyName, Problem] = {}
        self._overlapping: dict[str, dict[PolicyName, Problem]] = {}
        self._held: Mapping[str, tuple[CidrPartition, ...]] = {}
        self._numbers: dict[str, dict[Area, frozenset[int]]] = {}
        self._turned: dict[str, set[PolicyName]] = {}
        """Policies that were refused and are taken now, or the other way, since their namespace was cut."""
        self._stale = False

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was refused, on which policy; and sets whose numbers clash."""
        clashes = (
            Problem(
                fault=f"two different sets of ipBlock rules of namespace {namespace} share the number {number:016x}:"
                " neither allows anything",
                remedy="change any CIDR or except of the ipBlocks concerned",
            )
            for namespace, found in self.partitions.items()
            for number in found.clashes
        )
        overlapping = (problem for found in self._overlapping.values() for problem in found.values())
        return (*self._refused.values(), *overlapping, *clashes)

    def put(self, key: str, old: Policy | None, new: Policy | None) -> None:
        """The policy of this key was ``old`` and is ``new`` (None = not there)."""
        before, after = block_rules(old) if old else {}, block_rules(new) if new else {}
        if old is not None and before:
            name = old.name
            self._named.pop(name, None)
            self._budget.remove(name)
            self._by_namespace[name.namespace].discard(name)
            if not self._by_namespace[name.namespace]:
                del self._by_namespace[name.namespace]
            self.uncut.add(name.namespace)
            self._stale = True
        if new is not None and after:
            name = new.name
            cost = Cost(new.created, name, sum(1 + len(b.excepted) for blocks in after.values() for b in blocks))
            self._named[name] = _Named(key, new, cost)
            self._budget.put(cost)
            self._by_namespace.setdefault(name.namespace, set()).add(name)
            self.uncut.add(name.namespace)
            self._stale = True

    def hold(self, held: Mapping[str, tuple[CidrPartition, ...]]) -> None:
        """Partitions that some node may still have in force, by namespace, beside the wanted one."""
        for namespace in held.keys() | self._held.keys():
            if _digests(held.get(namespace, ())) != _digests(self._held.get(namespace, ())):
                self.uncut.add(namespace)
        self._held = held

    def admit(self) -> None:
        """Decide anew which policies are taken, if any changed; namespaces where that changed are to be cut."""
        if not self._stale:
            return
        self._stale = False
        refused = self._budget.refused()
        for name in refused.keys() ^ self._refused.keys():
            self._turned.setdefault(name.namespace, set()).add(name)
            self.uncut.add(name.namespace)
        self._refused = refused

    def cut(self, namespace: str) -> set[str]:
        """Cut one namespace; returns the keys of policies whose rules' numbers are other than before."""
        self.uncut.discard(namespace)
        taken = sorted(name for name in self._by_namespace.get(namespace, ()) if name not in self._refused)
        found, overlapping = self._partition([self._named[name] for name in taken])
        numbers = dict(found.numbers_by_area)
        for held in self._held.get(namespace, ()):
            for area, within in numbers_within(held.prefixes, found.numbers_by_area).items():
                numbers[area] |= within
        before, old_overlapping = self._numbers.pop(namespace, {}), self._overlapping.pop(namespace, {})
        self.partitions.pop(namespace, None)
        if found.prefixes:
            self.partitions[namespace] = found
        if numbers:
            self._numbers[namespace] = numbers
        if overlapping:
            self._overlapping[namespace] = overlapping
        moved = {area for area in numbers.keys() | before.keys() if numbers.get(area) != before.get(area)}
        turned = (overlapping.keys() ^ old_overlapping.keys()) | self._turned.pop(namespace, set())
        return {
            named.key
            for name in self._by_namespace.get(namespace, ())
            if (named := self._named[name]) and (name in turned or not moved.isdisjoint((named.areas or {}).values()))
        }

    def _partition(self, taken: list[_Named]) -> tuple[Partition, dict[PolicyName, Problem]]:
        """Of the oldest policies that stay within the bound on overlap, and what is said of the others."""
        ordered = sorted(taken, key=lambda named: named.cost)
        known = self.partitions.get(ordered[0].cost.name.namespace) if ordered else Partition()
        areas = [_areas(named) for named in ordered]
        wanted = {area for own in areas for area in own.values()}
        if known is not None and known.numbers_by_area.keys() == wanted:
            return known, {}
        try:
            return partition(wanted, self._limits.memberships), {}
        except TooMuchOverlap:
            pass
        fits, beyond, found = 0, len(ordered), Partition()
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            try:
                found = partition({a for own in areas[:middle] for a in own.values()}, self._limits.memberships)
                fits = middle
            except TooMuchOverlap:
                beyond = middle
        return found, {named.cost.name: _overlap_problem(named.cost.name, self._limits) for named in ordered[fits:]}

    def numbers_of(self, policy: Policy, direction: Direction, index: int) -> frozenset[int]:
        """Numbers of the sets that a rule's ipBlocks hold; none while the policy is refused."""
        name = policy.name
        named = self._named.get(name)
        if named is None or name in self._refused or name in self._overlapping.get(name.namespace, ()):
            return frozenset()
        area = _areas(named).get((direction, index))
        return frozenset() if area is None else self._numbers.get(name.namespace, {}).get(area, frozenset())


class _Spent(NamedTuple):
    """What the policies of one namespace cost."""

    taken: tuple[Cost, ...]
    """The oldest first."""
    prefixes: int
    """Of those that are taken."""
    refused: Mapping[PolicyName, Problem]


class Budget:
    """Which policies' ipBlocks are taken: a change costs its namespace, and all while too much is named in all."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._costs: dict[str, dict[PolicyName, Cost]] = {}
        self._spent: dict[str, _Spent] = {}
        self._stale: set[str] = set()
        self._total = 0

    def put(self, cost: Cost) -> None:
        """A policy costs this now."""
        self._costs.setdefault(cost.name.namespace, {})[cost.name] = cost
        self._stale.add(cost.name.namespace)

    def remove(self, name: PolicyName) -> None:
        """The policy is gone, or names no ipBlock any more."""
        costs = self._costs.get(name.namespace, {})
        if costs.pop(name, None) is not None:
            self._stale.add(name.namespace)
        if not costs:
            self._costs.pop(name.namespace, None)

    def refused(self) -> dict[PolicyName, Problem]:
        """Policies whose ipBlocks are not taken, and why; the same for any order of changes that led here."""
        for namespace in self._stale:
            if (before := self._spent.pop(namespace, None)) is not None:
                self._total -= before.prefixes
            if namespace in self._costs:
                self._spent[namespace] = _namespace_budget(self._costs[namespace].values(), self._limits)
                self._total += self._spent[namespace].prefixes
        self._stale.clear()
        refused = {name: problem for spent in self._spent.values() for name, problem in spent.refused.items()}
        if self._total > self._limits.prefixes:
            refused |= _cluster_budget(self._spent, self._total, self._limits)
        return refused


def _namespace_budget(costs: Iterable[Cost], limits: Limits) -> _Spent:
    """The oldest that fit into what one policy and one namespace may have."""
    refused: dict[PolicyName, Problem] = {}
    taken: list[Cost] = []
    used = 0
    for cost in sorted(costs):
        if cost.prefixes > limits.policy_prefixes:
            kind, most = cost.name.kind.kind, limits.policy_prefixes
            why = f"names {cost.prefixes} CIDRs and exceptions, a {kind} may name {most}"
            refused[cost.name] = _problem(cost.name, why)
        elif used + cost.prefixes > limits.namespace_prefixes:
            why = (
                f"names {cost.prefixes} CIDRs and exceptions beside {used} of older policies,"
                f" namespace {cost.name.namespace} may have {limits.namespace_prefixes}"
            )
            refused[cost.name] = _problem(cost.name, why)
        else:
            taken.append(cost)
            used += cost.prefixes
    return _Spent(tuple(taken), used, refused)


def _cluster_budget(spent: Mapping[str, _Spent], total: int, limits: Limits) -> dict[PolicyName, Problem]:
    """Of those that fit into their namespaces: the newest of the largest namespace go until all fit together."""
    refused: dict[PolicyName, Problem] = {}
    taken = {namespace: list(one.taken) for namespace, one in spent.items()}
    largest = [(-one.prefixes, namespace) for namespace, one in spent.items() if one.taken]
    heapq.heapify(largest)
    while total > limits.prefixes:
        used, namespace = heapq.heappop(largest)
        newest = taken[namespace].pop()
        total -= newest.prefixes
        why = (
            f"is the newest with ipBlocks in namespace {namespace}, which names the most CIDRs,"
            f" and all namespaces together may name {limits.prefixes}"
        )
        refused[newest.name] = _problem(newest.name, why)
        if taken[namespace]:
            heapq.heappush(largest, (used + newest.prefixes, namespace))
    return refused


def _problem(name: PolicyName, why: str) -> Problem:
    return Problem(
        fault=f"{name} {why}: its ipBlocks allow nothing",
        remedy="use fewer or wider CIDRs and exceptions",
        about=about_policies("TooManyCIDRs", (name,)),
    )


def _overlap_problem(name: PolicyName, limits: Limits) -> Problem:
    return _problem(
        name, f"overlaps too many ipBlock rules of its namespace (more than {limits.memberships} pairs of rule and set)"
    )


def _areas(named: _Named) -> dict[RuleIndex, Area]:
    if named.areas is None:
        named.areas = {index: area_of(blocks) for index, blocks in block_rules(named.policy).items()}
    return named.areas


def _digests(partitions: Iterable[CidrPartition]) -> tuple[str, ...]:
    return tuple(sorted(partition.digest for partition in partitions))
