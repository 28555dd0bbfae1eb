"""Compiling: all policies that select one identity become the rules of that identity.

Tiers, orders and what isolates are those of ``core.model``; ``core.tiers`` makes one list of them, of which the first
rule that matches decides. What no rule matches is denied where the subject is isolated, otherwise allowed. Replies are
the datapath's matter, as is a pod's traffic to itself.

Selectors stay selectors: each node asks them of the identities there are. So what is compiled does not depend on who
else exists, and no tenant's labels cost another one rules. The one exception are named ports of egress, which are each
peer's own: such a rule becomes one for each number that a port of that name has among the peers, at most
:attr:`Limits.named_ports` of them.

What a node is told is never narrower or wider than what was written: a direction that has too much, or an action that
nodes do not enforce (:attr:`Limits.actions`), is denied whole and told on its policies.

The output depends on its arguments alone, and on no order among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Protocol

import msgspec

from kit.selectors import EVERYTHING, may_select
from proto.identity import IdentityRecord, NamedPort
from proto.policy import (
    CompiledPolicy,
    CompiledRule,
    Direction,
    PortMatch,
    Revision,
    RuleSource,
    SelectorPeer,
    Verdict,
)
from services.policy.core.identities import Member
from services.policy.core.limits import Limits, Problem, about_policies
from services.policy.core.model import Action, Policy, PolicyName, Rule
from services.policy.core.ports import has_names, names_of, resolve
from services.policy.core.tiers import NOTHING, Clause, RuleList, Unenforceable, prepend

PRECEDENCE = 1000
"""Rank of a direction's first rules. It grows by one wherever a rule that denies comes after one that allows."""

MOST_NAMED = 64
"""Isolating policies named for each direction: they tell a person why, so beyond this they need not be whole."""

UNREVISED = Revision(epoch="", sequence=0)
"""Revision of a policy that has not been published yet; the publisher puts its own in."""

EVERYONE = (SelectorPeer(namespace_selector=EVERYTHING),)
"""Every pod of the cluster."""

_tier = attrgetter("tier")
_action = attrgetter("action")
_precedence = attrgetter("tier", "order", "name")


class Ported(NamedTuple):
    """A container port that a named port of egress stands for, and among which peers."""

    port: NamedPort
    peers: tuple[SelectorPeer, ...]


class Peers(Protocol):
    """What compiling asks of the rest of the cluster."""

    def ports_of(
        self, refs: tuple[SelectorPeer, ...], names: Collection[tuple[str, int]], home: str, most: int
    ) -> tuple[tuple[Ported, ...], int]:
        """Ports of these names and protocols among the peers' members, at most so many, and how many there are.

        Those of the namespace ``home`` come first, then those that the most namespaces have.
        """

    def numbers_of(self, policy: Policy, direction: Direction, rule_index: int) -> Collection[int]:
        """Numbers of the CIDR sets that lie in the ipBlocks of the rule at this place of the direction's rules."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One identity's policy, its revision still :data:`UNREVISED`, and what went wrong on the way."""

    policy: CompiledPolicy
    record: IdentityRecord | None
    """What others are told of it; None for one that may be nobody's peer."""
    problems: tuple[Problem, ...] = ()


def selects_member(policy: Policy, member: Member) -> bool:
    """Whether the policy applies to pods of this identity; what is not told of one that lingers may be what it asks."""
    subject = policy.subject
    if subject.namespace_selector is None:
        if subject.namespace != member.namespace:
            return False
    elif subject.namespace not in ("", member.namespace) or not may_select(
        subject.namespace_selector, member.namespace_labels, member.hidden_namespace_keys
    ):
        return False
    return subject.pod_selector is None or may_select(subject.pod_selector, member.labels, member.hidden_keys)


def named_refs_of(policy: Policy) -> dict[SelectorPeer, frozenset[tuple[str, int]]]:
    """Peers whose members' ports the policy's rules depend on, and of which names and protocols."""
    found: dict[SelectorPeer, frozenset[tuple[str, int]]] = {}
    for rule in policy.egress:
        names = names_of(rule.ports)
        for ref in _pods(rule) if names else ():
            found[ref] = found.get(ref, frozenset()) | names
    return found


class Denial(NamedTuple):
    """A direction that is denied whole."""

    direction: Direction
    how: str
    """What it would take."""
    reason: str
    """As in ``ObjectFault``."""


class LeftOut(NamedTuple):
    """A rule whose named ports have more numbers than are allowed."""

    policy: PolicyName
    rule: int
    """Its index."""
    numbers: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What a set of policies compiles to, for every identity that exactly these select."""

    rules: tuple[CompiledRule, ...] = ()
    selectors: tuple[SelectorPeer, ...] = ()
    sources: tuple[RuleSource, ...] = ()
    isolated: tuple[bool, bool] = (False, False)
    """By direction."""
    isolated_by: tuple[RuleSource, ...] = ()
    """Policies that isolate, at most :data:`MOST_NAMED` in each direction."""
    denied: tuple[Denial, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    size: int = 0
    """Bytes that they take as a value of the bus."""


def subject_ports(member: Member, policies: Iterable[Policy]) -> tuple[NamedPort, ...]:
    """The part of a subject that its rules depend on, besides which policies select it: ports that ingress names."""
    named = any(has_names(rule.ports) for policy in policies for rule in policy.ingress)
    return member.named_ports if named else ()


def compile_rules(ports: tuple[NamedPort, ...], policies: Iterable[Policy], peers: Peers, limits: Limits) -> Rules:
    """Rules of a subject with these :func:`subject_ports`, selected by exactly ``policies``."""
    ordered = in_order(policies)
    tiers = [list(group) for _, group in groupby(ordered, key=_tier)]
    clauses: list[Clause] = []
    isolated: dict[Direction, bool] = {}
    isolated_by = _isolated_by(ordered)
    denials: list[Denial] = []
    left_out: list[LeftOut] = []
    for direction in Direction:
        try:
            decided = _rule_list(ports, tiers, direction, peers, limits, left_out)
            clauses += _fitting(decided.clauses, limits)
        except Unenforceable as why:
            denials.append(Denial(direction, str(why), why.reason))
            isolated[direction] = _concerned(ordered, direction)
        else:
            isolated[direction] = decided.isolated
    made = _numbered(clauses)
    size = _size(made)
    if size > limits.size:
        how = f"more than {limits.size} bytes"
        return Rules(
            isolated=_both(_concerned(ordered, direction) for direction in Direction),
            isolated_by=isolated_by,
            denied=tuple(Denial(direction, how, "PolicyTooLarge") for direction in Direction),
        )
    return Rules(
        rules=made.rules,
        selectors=made.selectors,
        sources=made.sources,
        isolated=_both(isolated.values()),
        isolated_by=isolated_by,
        denied=tuple(denials),
        left_out=tuple(left_out),
        size=size,
    )


def compile_member(member: Member, policies: Iterable[Policy], rules: Rules, record: IdentityRecord) -> Compiled:
    """Policy of ``member``, which exactly ``policies`` select, with these rules; ``record`` is what is told of it."""
    return Compiled(
        CompiledPolicy(
            identity=member.identity,
            revision=UNREVISED,
            ingress_isolated=rules.isolated[Direction.INGRESS],
            egress_isolated=rules.isolated[Direction.EGRESS],
            rules=rules.rules,
            selectors=rules.selectors,
            sources=rules.sources,
            isolated_by=rules.isolated_by,
            namespace=member.namespace,
        ),
        record,
        (*(_denied(member, policies, denial) for denial in rules.denied), *map(_left_out, rules.left_out)),
    )


def cut(member: Member, policies: Iterable[Policy], record: IdentityRecord, most: int) -> Compiled:
    """Nothing passes: the rules of the member's namespace take too much in all, and its own are among the largest."""
    problem = Problem(
        fault=f"the rules of namespace {member.namespace} take more than {most} bytes in all: {member.described}, whose"
        " rules are among the largest, are denied whole",
        remedy=f"use fewer and smaller policies, or fewer different labels, in namespace {member.namespace}",
        about=about_policies("PolicyTooLarge", (policy.name for policy in in_order(policies))),
    )
    return Compiled(denied(member.identity), record, (problem,))


def in_order(policies: Iterable[Policy]) -> list[Policy]:
    """By precedence, then by name: of two rules that say the same, the first in this order is named as the source."""
    return sorted(policies, key=_precedence)


def denied(identity: int, revision: Revision = UNREVISED) -> CompiledPolicy:
    """Policy that allows nothing to or from an identity."""
    return CompiledPolicy(identity=identity, revision=revision, ingress_isolated=True, egress_isolated=True)


def refuse(identity: int, problem: Problem) -> Compiled:
    """Deny everything to and from an identity, and say why."""
    return Compiled(denied(identity), None, (problem,))


def source_of(name: PolicyName, index: int) -> RuleSource:
    """A rule of the policy, as nodes are told of it; negative where the policy itself is meant."""
    return RuleSource(kind=name.kind.kind, namespace=name.namespace, name=name.name, index=index)


def _isolated_by(ordered: Iterable[Policy]) -> tuple[RuleSource, ...]:
    ingress = [policy.name for policy in ordered if policy.isolates_ingress]
    egress = [policy.name for policy in ordered if policy.isolates_egress]
    return (
        *(source_of(name, -1 - Direction.INGRESS) for name in ingress[:MOST_NAMED]),
        *(source_of(name, -1 - Direction.EGRESS) for name in egress[:MOST_NAMED]),
    )


def _both(isolated: Iterable[bool]) -> tuple[bool, bool]:
    ingress, egress = isolated
    return ingress, egress


def _concerned(policies: Iterable[Policy], direction: Direction) -> bool:
    """Whether any of the policies says anything in this direction: then it is no right to have it denied."""
    return any(policy.isolates(direction) or policy.rules(direction) for policy in policies)


def _pods(rule: Rule) -> tuple[SelectorPeer, ...]:
    """Pods that may be the rule's peers."""
    return EVERYONE if rule.any_peer else rule.selectors


def _rule_list(
    ports: tuple[NamedPort, ...],
    tiers: Iterable[Sequence[Policy]],
    direction: Direction,
    peers: Peers,
    limits: Limits,
    left_out: list[LeftOut],
) -> RuleList:
    """What the tiers say of one direction; raises :class:`Unenforceable`. ``left_out``: see :func:`_clauses`."""
    decided = NOTHING
    for tier in reversed(list(tiers)):
        own = list(_clauses(ports, _ordered(tier, direction), direction, peers, limits, left_out))
        decided = prepend(own, decided, isolates=any(policy.isolates(direction) for policy in tier))
    return decided


def _ordered(tier: Iterable[Policy], direction: Direction) -> list[tuple[Policy, int, Rule]]:
    """The rules of a tier's policies as they are asked, each with its place in its policy."""
    rules = [(policy, rule_index, rule) for policy in tier for rule_index, rule in enumerate(policy.rules(direction))]
    if any(rule.order is not None for *_, rule in rules):
        rules.sort(key=lambda one: (one[0].order if one[2].order is None else one[2].order, one[0].name))
    return rules


def _clauses(
    ports: tuple[NamedPort, ...],
    rules: Iterable[tuple[Policy, int, Rule]],
    direction: Direction,
    peers: Peers,
    limits: Limits,
    left_out: list[LeftOut],
) -> Iterator[Clause]:
    """The rules with peers and ports; ``left_out`` takes those with too many numbers for their named ports."""
    for policy, rule_index, rule in rules:
        _check(policy, rule, limits)
        source = source_of(policy.name, rule.index)
        pods = _pods(rule)
        shared = tuple(sorted(resolve(rule.ports, ports if direction is Direction.INGRESS else ())))
        numbers = tuple(sorted(peers.numbers_of(policy, direction, rule_index))) if rule.blocks else ()
        if shared and rule.any_peer:
            yield Clause(direction, source, shared, True, (), (), rule.action)
        elif shared and (pods or numbers):
            yield Clause(direction, source, shared, False, pods, numbers, rule.action)
        names = names_of(rule.ports) if direction is Direction.EGRESS and pods else frozenset()
        if not names:
            continue
        found, count = peers.ports_of(pods, names, policy.name.namespace, limits.named_ports)
        if count > len(found):
            if rule.action is not Action.ALLOW:
                raise Unenforceable(f"{count} numbers for named ports of one rule, more than {limits.named_ports}")
            left_out.append(LeftOut(policy.name, rule.index, count))
        for port, having in found:
            match = PortMatch(port.protocol, port.port, 16)
            named = tuple(msgspec.structs.replace(ref, named_port=port) for ref in having)
            yield Clause(direction, source, (match,), False, named, (), rule.action)


def _check(policy: Policy, rule: Rule, limits: Limits) -> None:
    """Raise :class:`Unenforceable` for a rule that nodes do not enforce."""
    if rule.action not in limits.actions:
        raise Unenforceable(f"a rule that says {rule.action.name.lower()}, which no node enforces", "PolicyNotEnforced")
    if rule.blocks and not policy.subject.namespace:
        raise Unenforceable("ipBlocks of a policy without a namespace, which no node enforces", "PolicyNotEnforced")


def _fitting(clauses: Iterable[Clause], limits: Limits) -> list[Clause]:
    """Rules that say the same are one, the first; those of equal ports become one where there are too many.

    Only those that no rule of another action stands between. Raises :class:`Unenforceable` when even that does not fit.
    """
    said: dict[tuple[object, ...], Clause] = {}
    for clause in clauses:
        said.setdefault((clause.ports, clause.any_peer, clause.selectors, clause.cidr_sets), clause)
    found = list(said.values())
    if len(found) > limits.rules:
        by_ports: dict[tuple[int, tuple[PortMatch, ...]], Clause] = {}
        for run, (_, same) in enumerate(groupby(found, key=_action)):
            for clause in same:
                first = by_ports.get((run, clause.ports))
                by_ports[run, clause.ports] = clause if first is None else _united(first, clause)
        found = list(by_ports.values())
    if len(found) > limits.rules:
        raise Unenforceable(f"{len(found)} rules of different ports, more than {limits.rules}")
    ports = len({match for clause in found for match in clause.ports})
    if ports > limits.ports:
        raise Unenforceable(f"{ports} ports and parts of port ranges, more than {limits.ports}")
    peers = len({peer for clause in found for peer in (*clause.selectors, *clause.cidr_sets)})
    if peers > limits.peers:
        raise Unenforceable(f"{peers} peers, more than {limits.peers}")
    return found


def _united(one: Clause, other: Clause) -> Clause:
    if one.any_peer or other.any_peer:
        return one._replace(any_peer=True, selectors=(), cidr_sets=())
    return one._replace(
        selectors=tuple(dict.fromkeys((*one.selectors, *other.selectors))),
        cidr_sets=tuple(sorted({*one.cidr_sets, *other.cidr_sets})),
    )


_VERDICTS = (Verdict.DENY, Verdict.ALLOW)
"""By action: no rule that passes is left."""


def _numbered(clauses: Collection[Clause]) -> Rules:
    sources = tuple(sorted({clause.source for clause in clauses}, key=attrgetter("namespace", "name", "index", "kind")))
    source_at = {source: index for index, source in enumerate(sources)}
    selectors = tuple(dict.fromkeys(peer for clause in clauses for peer in clause.selectors))
    selector_at = {peer: index for index, peer in enumerate(selectors)}
    rules = tuple(
        CompiledRule(
            direction=clause.direction,
            precedence=precedence,
            verdict=_VERDICTS[clause.action],
            source=source_at[clause.source],
            any_peer=clause.any_peer,
            selectors=tuple(selector_at[peer] for peer in clause.selectors),
            cidr_sets=clause.cidr_sets,
            ports=clause.ports,
        )
        for clause, precedence in zip(clauses, _precedences(clauses), strict=True)
    )
    return Rules(rules, selectors, sources)


def _precedences(clauses: Iterable[Clause]) -> Iterator[int]:
    """Of equal ranks a rule that denies wins: those that are to lose to one that allows have a higher one."""
    precedence, before_it = PRECEDENCE, None
    for clause in clauses:
        if before_it is None or before_it.direction is not clause.direction:
            precedence = PRECEDENCE
        elif clause.action < before_it.action:
            precedence += 1
        before_it = clause
        yield precedence


def _size(made: Rules) -> int:
    """Bytes that the rules take as a value of the bus."""
    value = CompiledPolicy(
        identity=0,
        revision=UNREVISED,
        ingress_isolated=True,
        egress_isolated=True,
        rules=made.rules,
        selectors=made.selectors,
        sources=made.sources,
    )
    return len(msgspec.msgpack.encode(value))


def size_beside_rules(policy: CompiledPolicy) -> int:
    """Bytes that the rest of the policy takes, estimated from above."""
    return 256 + sum(_SOURCE + len(source.namespace) + len(source.name) for source in policy.isolated_by)


_SOURCE = 64
"""Bytes of a source beside its names."""


_REMEDIES = {
    "PolicyTooLarge": "use fewer or wider peers and ports in",
    "PolicyNotEnforced": "say the same by rules that allow, and by selectors, in",
}


def _denied(member: Member, policies: Iterable[Policy], denial: Denial) -> Problem:
    concerned = [policy.name for policy in in_order(policies) if policy.rules(denial.direction)]
    return Problem(
        fault=f"{denial.direction.name.lower()} of {member.described} would take {denial.how}: denied whole",
        remedy=f"{_REMEDIES[denial.reason]} {', '.join(map(str, concerned))}",
        about=about_policies(denial.reason, concerned),
    )


def _left_out(found: LeftOut) -> Problem:
    return Problem(
        fault=f"the named ports of egress rule {found.rule} of {found.policy} have {found.numbers} numbers among its"
        " peers: those that the fewest namespaces use are denied",
        remedy=f"select fewer peers in {found.policy}, or name ports by number",
        about=about_policies("NamedPortNumbers", (found.policy,)),
    )
