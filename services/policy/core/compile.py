"""Compiling: all policies that select one identity become the rules of that identity.

Source: networking.k8s.io/v1 NetworkPolicy. A pod that no policy selects in a direction is not isolated in it and takes
everything. One that some policy selects is isolated: only what a rule of a selecting policy allows passes; rules add
up, none takes away. A rule without peers allows any peer, one without ports any port of any protocol. A peer is an
ipBlock (which holds for pod addresses too) or selectors of pods and namespaces; a peer that is neither, or both, is
refused by the API and allows nothing here. Replies are the datapath's matter, as is a pod's traffic to itself.

Selectors stay selectors: each node asks them of the identities there are. So what is compiled does not depend on who
else exists, and no tenant's labels cost another one rules. The one exception are named ports of egress, which are each
peer's own: such a rule becomes one for each number that a port of that name has among the peers, at most
:attr:`Limits.named_ports` of them.

The output depends on its arguments alone, and on no order among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from kit.selectors import EVERYTHING, may_select
from proto.identity import IdentityRecord, NamedPort
from proto.objects import IPBlock, NetworkPolicy, Peer, PolicyRule
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
from services.policy.core.ports import has_names, names_of, resolve

RANK = 1000
"""Rank of every NetworkPolicy rule: they only ever allow, so none need precede another."""

MOST_NAMED = 64
"""Isolating policies named for each direction: they tell a person why, so beyond this they need not be whole."""

UNREVISED = Revision(epoch="", sequence=0)
"""Revision of a policy that has not been published yet; the publisher puts its own in."""

EVERYONE = SelectorPeer(namespace_selector=EVERYTHING)
"""Every pod of the cluster."""


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

    def numbers_of(self, block: IPBlock) -> Collection[int]:
        """Numbers of the CIDR sets that lie in the block."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One identity's policy, its revision still :data:`UNREVISED`, and what went wrong on the way."""

    policy: CompiledPolicy
    record: IdentityRecord | None
    """What others are told of it; None for one that may be nobody's peer."""
    problems: tuple[Problem, ...] = ()


def selects_member(policy: NetworkPolicy, member: Member) -> bool:
    """Whether the policy applies to pods of this identity; what is not told of one that lingers may be what it asks."""
    return policy.namespace == member.namespace and may_select(policy.pod_selector, member.labels, member.hidden_keys)


def peer_ref(policy: NetworkPolicy, peer: Peer) -> SelectorPeer | None:
    """The selectors of a peer; None when it is an ipBlock or says nothing that the API takes."""
    if peer.ip_block is not None or (peer.pod_selector is None and peer.namespace_selector is None):
        return None
    home = policy.namespace if peer.namespace_selector is None else ""
    return SelectorPeer(namespace=home, namespace_selector=peer.namespace_selector, pod_selector=peer.pod_selector)


def peer_block(peer: Peer) -> IPBlock | None:
    """The ipBlock of a peer; None when it is of selectors, or says both, which the API does not take."""
    return peer.ip_block if peer.pod_selector is None and peer.namespace_selector is None else None


def named_refs_of(policy: NetworkPolicy) -> dict[SelectorPeer, frozenset[tuple[str, int]]]:
    """Peers whose members' ports the policy's rules depend on, and of which names and protocols."""
    found: dict[SelectorPeer, frozenset[tuple[str, int]]] = {}
    for rule in policy.egress if policy.applies_egress else ():
        names = names_of(rule.ports)
        for ref in _refs(policy, rule) if names else ():
            found[ref] = found.get(ref, frozenset()) | names
    return found


def blocks_of(policy: NetworkPolicy) -> frozenset[IPBlock]:
    """Every ipBlock that the policy names, in a direction it applies to."""
    rules = (*(policy.ingress if policy.applies_ingress else ()), *(policy.egress if policy.applies_egress else ()))
    return frozenset(block for rule in rules for peer in rule.peers if (block := peer_block(peer)))


@dataclass(frozen=True, slots=True)
class Rules:
    """What a set of policies compiles to, for every identity that exactly these select."""

    rules: tuple[CompiledRule, ...] = ()
    selectors: tuple[SelectorPeer, ...] = ()
    sources: tuple[RuleSource, ...] = ()
    too_much: tuple[tuple[Direction, str], ...] = ()
    """Directions that are denied whole, and what there is too much of."""
    left_out: tuple[tuple[RuleSource, int], ...] = ()
    """Rules whose named ports have more numbers than are allowed, and how many they have."""
    size: int = 0
    """Bytes that they take as a value of the bus."""


def subject_ports(member: Member, policies: Iterable[NetworkPolicy]) -> tuple[NamedPort, ...]:
    """The part of a subject that its rules depend on, besides which policies select it: ports that ingress names."""
    named = any(has_names(rule.ports) for policy in policies if policy.applies_ingress for rule in policy.ingress)
    return member.named_ports if named else ()


def compile_rules(
    ports: tuple[NamedPort, ...], policies: Iterable[NetworkPolicy], peers: Peers, limits: Limits
) -> Rules:
    """Rules of a subject with these :func:`subject_ports`, selected by exactly ``policies``."""
    ordered = in_order(policies)
    clauses: list[Clause] = []
    too_much: list[tuple[Direction, str]] = []
    left_out: list[tuple[RuleSource, int]] = []
    for direction in Direction:
        found = _fitting(_clauses(ports, ordered, direction, peers, limits, left_out), limits)
        if isinstance(found, str):
            too_much.append((direction, found))
        else:
            clauses += found
    made = _numbered(clauses)
    size = _size(made)
    if size > limits.size:
        return Rules(too_much=tuple((direction, f"more than {limits.size} bytes") for direction in Direction))
    return Rules(made.rules, made.selectors, made.sources, tuple(too_much), tuple(left_out), size)


def compile_member(member: Member, policies: Iterable[NetworkPolicy], rules: Rules, record: IdentityRecord) -> Compiled:
    """Policy of ``member``, which exactly ``policies`` select, with these rules; ``record`` is what is told of it."""
    ordered = in_order(policies)
    return Compiled(
        CompiledPolicy(
            identity=member.identity,
            revision=UNREVISED,
            ingress_isolated=any(policy.applies_ingress for policy in ordered),
            egress_isolated=any(policy.applies_egress for policy in ordered),
            rules=rules.rules,
            selectors=rules.selectors,
            sources=rules.sources,
            isolated_by=tuple(
                _source(policy, -1 - direction)
                for direction, applies in ((Direction.INGRESS, _ingress), (Direction.EGRESS, _egress))
                for policy in [policy for policy in ordered if applies(policy)][:MOST_NAMED]
            ),
        ),
        record,
        (
            *(_too_many(member, ordered, direction, how) for direction, how in rules.too_much),
            *(_left_out(source, count) for source, count in rules.left_out),
        ),
    )


def cut(member: Member, policies: Iterable[NetworkPolicy], record: IdentityRecord, most: int) -> Compiled:
    """Nothing passes: the rules of the member's namespace take too much in all, and its own are among the largest."""
    names = [(policy.namespace, policy.name) for policy in in_order(policies)]
    problem = Problem(
        fault=f"the rules of namespace {member.namespace} take more than {most} bytes in all: {member.described}, whose"
        " rules are among the largest, are denied whole",
        remedy=f"use fewer and smaller NetworkPolicies, or fewer different labels, in namespace {member.namespace}",
        about=about_policies("PolicyTooLarge", names),
    )
    return Compiled(denied(member.identity), record, (problem,))


def in_order(policies: Iterable[NetworkPolicy]) -> list[NetworkPolicy]:
    """By namespace and name: of two rules that say the same, the first in this order is named as the source."""
    return sorted(policies, key=lambda policy: (policy.namespace, policy.name))


def denied(identity: int, revision: Revision = UNREVISED) -> CompiledPolicy:
    """Policy that allows nothing to or from an identity."""
    return CompiledPolicy(identity=identity, revision=revision, ingress_isolated=True, egress_isolated=True)


def refuse(identity: int, problem: Problem) -> Compiled:
    """Deny everything to and from an identity, and say why."""
    return Compiled(denied(identity), None, (problem,))


class Clause(NamedTuple):
    """A rule before its peers have numbers."""

    direction: Direction
    source: RuleSource
    ports: tuple[PortMatch, ...]
    any_peer: bool
    selectors: tuple[SelectorPeer, ...]
    cidr_sets: tuple[int, ...]


def _ingress(policy: NetworkPolicy) -> bool:
    return policy.applies_ingress


def _egress(policy: NetworkPolicy) -> bool:
    return policy.applies_egress


def _source(policy: NetworkPolicy, index: int) -> RuleSource:
    return RuleSource(kind="NetworkPolicy", namespace=policy.namespace, name=policy.name, index=index)


def _policy_rules(policy: NetworkPolicy, direction: Direction) -> tuple[PolicyRule, ...]:
    if direction is Direction.INGRESS:
        return policy.ingress if policy.applies_ingress else ()
    return policy.egress if policy.applies_egress else ()


def _refs(policy: NetworkPolicy, rule: PolicyRule) -> tuple[SelectorPeer, ...]:
    """Selector peers of the rule, each once; everyone when it names no peer at all."""
    if not rule.peers:
        return (EVERYONE,)
    return tuple(dict.fromkeys(ref for peer in rule.peers if (ref := peer_ref(policy, peer)) is not None))


def _clauses(
    ports: tuple[NamedPort, ...],
    policies: Iterable[NetworkPolicy],
    direction: Direction,
    peers: Peers,
    limits: Limits,
    left_out: list[tuple[RuleSource, int]],
) -> Iterator[Clause]:
    """The rules of one direction in order; ``left_out`` takes those with too many numbers for their named ports."""
    for policy in policies:
        for index, rule in enumerate(_policy_rules(policy, direction)):
            source = _source(policy, index)
            refs = _refs(policy, rule)
            shared = tuple(sorted(resolve(rule.ports, ports if direction is Direction.INGRESS else ())))
            numbers = {
                number for peer in rule.peers if (block := peer_block(peer)) for number in peers.numbers_of(block)
            }
            if shared and not rule.peers:
                yield Clause(direction, source, shared, True, (), ())
            elif shared and (refs or numbers):
                yield Clause(direction, source, shared, False, refs, tuple(sorted(numbers)))
            names = names_of(rule.ports) if direction is Direction.EGRESS else frozenset()
            if not names or not refs:
                continue
            found, count = peers.ports_of(refs, names, policy.namespace, limits.named_ports)
            if count > len(found):
                left_out.append((source, count))
            for port, having in found:
                match = PortMatch(port.protocol, port.port, 16)
                named = tuple(msgspec.structs.replace(ref, named_port=port) for ref in having)
                yield Clause(direction, source, (match,), False, named, ())


def _fitting(clauses: Iterable[Clause], limits: Limits) -> list[Clause] | str:
    """Rules that say the same are one, of the first; those of equal ports become one where there are too many.

    A sentence when there are too many even so.
    """
    said: dict[tuple[object, ...], Clause] = {}
    for clause in clauses:
        said.setdefault((clause.ports, clause.any_peer, clause.selectors, clause.cidr_sets), clause)
    found = list(said.values())
    if len(found) > limits.rules:
        by_ports: dict[tuple[PortMatch, ...], Clause] = {}
        for clause in found:
            first = by_ports.get(clause.ports)
            by_ports[clause.ports] = clause if first is None else _united(first, clause)
        found = list(by_ports.values())
    if len(found) > limits.rules:
        return f"{len(found)} rules of different ports, more than {limits.rules}"
    ports = len({match for clause in found for match in clause.ports})
    if ports > limits.ports:
        return f"{ports} ports and parts of port ranges, more than {limits.ports}"
    peers = len({peer for clause in found for peer in (*clause.selectors, *clause.cidr_sets)})
    if peers > limits.peers:
        return f"{peers} peers, more than {limits.peers}"
    return found


def _united(one: Clause, other: Clause) -> Clause:
    if one.any_peer or other.any_peer:
        return one._replace(any_peer=True, selectors=(), cidr_sets=())
    return one._replace(
        selectors=tuple(dict.fromkeys((*one.selectors, *other.selectors))),
        cidr_sets=tuple(sorted({*one.cidr_sets, *other.cidr_sets})),
    )


def _numbered(clauses: Collection[Clause]) -> Rules:
    sources = tuple(
        sorted({clause.source for clause in clauses}, key=lambda source: (source.namespace, source.name, source.index))
    )
    source_at = {source: index for index, source in enumerate(sources)}
    selectors = tuple(dict.fromkeys(peer for clause in clauses for peer in clause.selectors))
    selector_at = {peer: index for index, peer in enumerate(selectors)}
    rules = tuple(
        CompiledRule(
            direction=clause.direction,
            rank=RANK,
            verdict=Verdict.ALLOW,
            source=source_at[clause.source],
            any_peer=clause.any_peer,
            selectors=tuple(selector_at[peer] for peer in clause.selectors),
            cidr_sets=clause.cidr_sets,
            ports=clause.ports,
        )
        for clause in clauses
    )
    return Rules(rules, selectors, sources)


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


def _too_many(member: Member, policies: Iterable[NetworkPolicy], direction: Direction, how: str) -> Problem:
    concerned = [policy for policy in policies if _policy_rules(policy, direction)]
    names = ", ".join(f"{policy.namespace}/{policy.name}" for policy in concerned)
    return Problem(
        fault=f"{direction.name.lower()} of {member.described} would take {how}: denied whole",
        remedy=f"use fewer or wider peers and ports in NetworkPolicies {names}",
        about=about_policies("PolicyTooLarge", ((policy.namespace, policy.name) for policy in concerned)),
    )


def _left_out(source: RuleSource, count: int) -> Problem:
    name = f"{source.namespace}/{source.name}"
    return Problem(
        fault=f"the named ports of egress rule {source.index} of NetworkPolicy {name} have {count} numbers among its"
        " peers: those that the fewest namespaces use are denied",
        remedy=f"select fewer peers in NetworkPolicy {name}, or name ports by number",
        about=about_policies("NamedPortNumbers", ((source.namespace, source.name),)),
    )
