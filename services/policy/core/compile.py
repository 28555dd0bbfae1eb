"""Compiling: all policies that select one identity become the lines of that identity.

Source: networking.k8s.io/v1 NetworkPolicy. A pod that no policy selects in a direction is not isolated in it and takes
everything. One that some policy selects is isolated: only what a rule of a selecting policy allows passes; rules add
up, none takes away. A rule without peers allows any peer, one without ports any port of any protocol. A peer is an
ipBlock (which holds for pod addresses too) or selectors of pods and namespaces; a peer that is neither, or both, is
refused by the API and allows nothing here. Replies are the datapath's matter, as is a pod's traffic to itself.

The output depends on its arguments alone, and on no order among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from proto.identity import NamedPort
from proto.objects import NetworkPolicy, Peer, PolicyRule
from proto.policy import CompiledPolicy, CompiledRule, Direction, PeerKind, Revision, RuleSource, Verdict
from services.policy.core.identities import Member
from services.policy.core.limits import Limits, Problem, estimated_size
from services.policy.core.ports import PortMatch, has_names, resolve
from services.policy.core.selectors import EVERYTHING, selects

RANK = 1000
"""Rank of every NetworkPolicy line: they only ever allow, so none need precede another."""

MOST_NAMED = 64
"""Isolating policies named for each direction: they tell a person why, so beyond this they need not be whole."""

UNREVISED = Revision(epoch="", sequence=0)
"""Revision of a policy that has not been published yet; the publisher puts its own in."""


class PeerRef(NamedTuple):
    """A selector peer with the namespace it is read in."""

    namespace: str
    """The policy's own when the peer has no namespace selector, else empty."""
    peer: Peer


EVERYONE = PeerRef("", Peer(namespace_selector=EVERYTHING))
"""Every pod of the cluster."""


class Peers(Protocol):
    """What compiling asks of the rest of the cluster."""

    def members_of(self, ref: PeerRef) -> Iterable[Member]:
        """Identities that the peer's selectors match."""

    def numbers_of(self, policy: NetworkPolicy, direction: Direction, index: int) -> Collection[int]:
        """Numbers of the CIDR sets that lie in the ipBlocks of a rule."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One identity's policy, its revision still :data:`UNREVISED`, and what went wrong on the way."""

    policy: CompiledPolicy
    problems: tuple[Problem, ...] = ()


def selects_member(policy: NetworkPolicy, member: Member) -> bool:
    """Whether the policy applies to pods of this identity."""
    return policy.namespace == member.facts.namespace and selects(policy.pod_selector, member.labels)


def peer_ref(policy: NetworkPolicy, peer: Peer) -> PeerRef | None:
    """The selectors of a peer; None when it is an ipBlock or says nothing that the API takes."""
    if peer.ip_block is not None or (peer.pod_selector is None and peer.namespace_selector is None):
        return None
    return PeerRef(policy.namespace if peer.namespace_selector is None else "", peer)


def ref_matches(ref: PeerRef, member: Member) -> bool:
    """Whether the member is among those the peer's selectors match."""
    peer = ref.peer
    if peer.namespace_selector is None:
        if member.facts.namespace != ref.namespace:
            return False
    elif not selects(peer.namespace_selector, member.namespace_labels):
        return False
    return peer.pod_selector is None or selects(peer.pod_selector, member.labels)


def refs_of(policy: NetworkPolicy) -> frozenset[PeerRef]:
    """Every selector peer whose members the policy's lines depend on."""
    refs = {ref for rule in (*policy.ingress, *policy.egress) for peer in rule.peers if (ref := peer_ref(policy, peer))}
    if any(not rule.peers and has_names(rule.ports) for rule in policy.egress):
        refs.add(EVERYONE)
    return frozenset(refs)


@dataclass(frozen=True, slots=True)
class Lines:
    """What a set of policies compiles to, for every identity that exactly these select."""

    rules: tuple[CompiledRule, ...]
    sources: tuple[RuleSource, ...]
    too_much: tuple[tuple[Direction, str], ...] = ()
    """Directions that are denied whole, and what there is too much of."""


def subject_ports(member: Member, policies: Iterable[NetworkPolicy]) -> tuple[NamedPort, ...]:
    """The part of a subject that its lines depend on, besides which policies select it: ports that ingress names."""
    named = any(has_names(rule.ports) for policy in policies if policy.applies_ingress for rule in policy.ingress)
    return member.facts.named_ports if named else ()


def compile_lines(
    ports: tuple[NamedPort, ...], policies: Iterable[NetworkPolicy], peers: Peers, limits: Limits
) -> Lines:
    """Lines of a subject with these :func:`subject_ports`, selected by exactly ``policies``."""
    ordered = in_order(policies)
    too_much: list[tuple[Direction, str]] = []
    lines: dict[Line, RuleSource] = {}
    for direction in Direction:
        found = _lines(ports, ordered, direction, peers, limits.lines)
        if found is None:
            too_much.append((direction, f"more than {limits.lines} lines"))
        else:
            lines |= found
    rules, sources = _numbered(lines)
    if (size := estimated_size(rules, sources)) > limits.size:
        return Lines((), (), tuple((direction, f"some {size} bytes") for direction in Direction))
    return Lines(rules, sources, tuple(too_much))


def compile_member(member: Member, policies: Iterable[NetworkPolicy], lines: Lines) -> Compiled:
    """Policy of ``member``, which exactly ``policies`` select and whose lines are ``lines``."""
    ordered = in_order(policies)
    return Compiled(
        CompiledPolicy(
            identity=member.identity,
            revision=UNREVISED,
            ingress_isolated=any(policy.applies_ingress for policy in ordered),
            egress_isolated=any(policy.applies_egress for policy in ordered),
            rules=lines.rules,
            sources=lines.sources,
            isolated_by=tuple(
                _source(policy, -1 - direction)
                for direction, applies in ((Direction.INGRESS, _ingress), (Direction.EGRESS, _egress))
                for policy in [policy for policy in ordered if applies(policy)][:MOST_NAMED]
            ),
            namespace=member.facts.namespace,
        ),
        tuple(_too_many(member, ordered, direction, how) for direction, how in lines.too_much),
    )


def in_order(policies: Iterable[NetworkPolicy]) -> list[NetworkPolicy]:
    """By namespace and name: of two rules that say the same, the first in this order is named as the source."""
    return sorted(policies, key=lambda policy: (policy.namespace, policy.name))


def refuse(identity: int, problem: Problem) -> Compiled:
    """Deny everything to and from an identity, and say why."""
    policy = CompiledPolicy(identity=identity, revision=UNREVISED, ingress_isolated=True, egress_isolated=True)
    return Compiled(policy, (problem,))


class Line(NamedTuple):
    """What a compiled line matches; two rules that match the same are one line."""

    direction: Direction
    peer_kind: PeerKind
    peer: int
    match: PortMatch


def _ingress(policy: NetworkPolicy) -> bool:
    return policy.applies_ingress


def _egress(policy: NetworkPolicy) -> bool:
    return policy.applies_egress


def _source(policy: NetworkPolicy, index: int) -> RuleSource:
    return RuleSource(kind="NetworkPolicy", namespace=policy.namespace, name=policy.name, index=index)


def _lines(
    ports: tuple[NamedPort, ...], policies: Iterable[NetworkPolicy], direction: Direction, peers: Peers, most: int
) -> dict[Line, RuleSource] | None:
    """Lines of one direction, each with the first rule that gives it; None when there are more than ``most``."""
    lines: dict[Line, RuleSource] = {}
    for policy in policies:
        for index, rule in enumerate(_rules(policy, direction)):
            source = _source(policy, index)
            numbers = peers.numbers_of(policy, direction, index)
            for line in _rule_lines(ports, policy, rule, direction, peers, numbers):
                lines.setdefault(line, source)
                if len(lines) > most:
                    return None
    return lines


def _rules(policy: NetworkPolicy, direction: Direction) -> tuple[PolicyRule, ...]:
    if direction is Direction.INGRESS:
        return policy.ingress if policy.applies_ingress else ()
    return policy.egress if policy.applies_egress else ()


def _rule_lines(
    ports: tuple[NamedPort, ...],
    policy: NetworkPolicy,
    rule: PolicyRule,
    direction: Direction,
    peers: Peers,
    numbers: Iterable[int],
) -> Iterator[Line]:
    by_peer = direction is Direction.EGRESS and has_names(rule.ports)
    shared = resolve(rule.ports, ports if direction is Direction.INGRESS else ())
    if not rule.peers:
        yield from (Line(direction, PeerKind.ANY, 0, match) for match in shared)
        names = tuple(port for port in rule.ports if port.port_name is not None) if by_peer else ()
        for other in peers.members_of(EVERYONE) if names else ():
            for match in resolve(names, other.facts.named_ports):
                yield Line(direction, PeerKind.IDENTITY, other.identity, match)
    for number in numbers:
        yield from (Line(direction, PeerKind.CIDR_SET, number, match) for match in shared)
    for peer in rule.peers:
        if (ref := peer_ref(policy, peer)) is not None:
            for other in peers.members_of(ref):
                matches = resolve(rule.ports, other.facts.named_ports) if by_peer else shared
                yield from (Line(direction, PeerKind.IDENTITY, other.identity, match) for match in matches)


def _numbered(lines: dict[Line, RuleSource]) -> tuple[tuple[CompiledRule, ...], tuple[RuleSource, ...]]:
    sources = tuple(sorted(set(lines.values()), key=lambda source: (source.namespace, source.name, source.index)))
    index_of = {source: index for index, source in enumerate(sources)}
    rules = sorted(
        CompiledRule(
            direction=line.direction,
            peer_kind=line.peer_kind,
            peer=line.peer,
            protocol=line.match[0],
            port=line.match[1],
            port_bits=line.match[2],
            rank=RANK,
            verdict=Verdict.ALLOW,
            rule=index_of[source],
        )
        for line, source in lines.items()
    )
    return tuple(rules), sources


def _too_many(member: Member, policies: Iterable[NetworkPolicy], direction: Direction, how: str) -> Problem:
    names = ", ".join(f"{policy.namespace}/{policy.name}" for policy in policies if _rules(policy, direction))
    labels = " ".join(f"{key}={value}" for key, value in member.facts.pod_labels) or "no labels"
    pods = f"pods in {member.facts.namespace} with {labels}"
    return Problem(
        fault=f"{direction.name.lower()} of {pods} would take {how}: denied whole",
        remedy=f"use fewer or wider peers and ports in NetworkPolicies {names}",
    )
