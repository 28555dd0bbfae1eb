"""The verdict of compiled rules on one new flow: the datapath's lookups, in Python.

A rule matches when one of its peers is the flow's (any peer, a CIDR set of its address, a selector that its identity is
in) and one of its ports is. Of those that match, the lowest rank wins, a deny before an allow of the same rank, then
the first. None: denied when the subject is isolated in that direction, allowed otherwise. A subject without compiled
policy is unknown and denied.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kit.selectors import Candidate
from proto.policy import CompiledPolicy, CompiledRule, Direction, PortMatch, Verdict

_PORTED = frozenset({6, 17, 132})
"""Protocols with ports: TCP, UDP, SCTP. A flow of another has port 0 and matches rules of any port only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEnd:
    """The other end of a flow, as the subject's policy sees it."""

    candidate: Candidate | None
    """What selectors see of it; None when it is no pod."""
    cidr_set: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether the flow may begin, and the rule that said so (None: no rule did, isolation or its absence)."""

    allowed: bool
    rule: CompiledRule | None = None


class Book:
    """One identity's rules, ready for many questions."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self.policy = policy
        self._rules = {
            direction: [rule for rule in policy.rules if rule.direction is direction] for direction in Direction
        }

    def judge(self, direction: Direction, peer: FlowEnd, protocol: int, port: int) -> Judgement:
        """Verdict on a flow; ``port`` is the destination's, in either direction."""
        found = [
            rule
            for rule in self._rules[direction]
            if matches_port(rule.ports, protocol, port) and self._matches_peer(rule, peer)
        ]
        if found:
            best = min(found, key=lambda rule: (rule.precedence, rule.verdict))
            return Judgement(best.verdict is Verdict.ALLOW, best)
        isolated = self.policy.ingress_isolated if direction is Direction.INGRESS else self.policy.egress_isolated
        return Judgement(not isolated)

    def _matches_peer(self, rule: CompiledRule, peer: FlowEnd) -> bool:
        if rule.any_peer or (peer.cidr_set and peer.cidr_set in rule.cidr_sets):
            return True
        candidate = peer.candidate
        return candidate is not None and any(candidate.is_in(self.policy.selectors[at]) for at in rule.selectors)


def matches_port(ports: Collection[PortMatch], protocol: int, port: int) -> bool:
    """Whether one of the rule's protocols and port prefixes holds the flow's."""
    known = port if protocol in _PORTED else 0
    return any(
        match.protocol == 0
        or (match.protocol == protocol and (match.bits == 0 or (known ^ match.port) >> (16 - match.bits) == 0))
        for match in ports
    )
