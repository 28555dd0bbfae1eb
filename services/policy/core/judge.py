"""The verdict of compiled lines on one new flow: the datapath's lookups, in Python.

Three lookups (the peer's identity, its CIDR set, any peer); in each the longest matching port prefix; of those found,
the lowest rank wins, a deny before an allow of the same rank. Nothing found: denied when the subject is isolated in
that direction, allowed otherwise. A subject without compiled policy is unknown and denied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proto.policy import CompiledPolicy, CompiledRule, Direction, PeerKind, Verdict

_PORTED = frozenset({6, 17, 132})
"""Protocols with ports: TCP, UDP, SCTP. A flow of another has port 0 and matches lines of any protocol only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEnd:
    """The other end of a flow, as the subject's policy sees it."""

    identity: int
    cidr_set: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether the flow may begin, and the line that said so (None: no line did, isolation or its absence)."""

    allowed: bool
    rule: CompiledRule | None = None


class Book:
    """One identity's lines, indexed for many questions."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self.policy = policy
        lines: dict[tuple[Direction, PeerKind, int], list[CompiledRule]] = {}
        for rule in policy.rules:
            lines.setdefault((rule.direction, rule.peer_kind, rule.peer), []).append(rule)
        self._lines: Mapping[tuple[Direction, PeerKind, int], list[CompiledRule]] = lines

    def judge(self, direction: Direction, peer: FlowEnd, protocol: int, port: int) -> Judgement:
        """Verdict on a flow; ``port`` is the destination's, in either direction."""
        found: list[CompiledRule] = []
        for kind, number in (
            (PeerKind.IDENTITY, peer.identity),
            (PeerKind.CIDR_SET, peer.cidr_set),
            (PeerKind.ANY, 0),
        ):
            matching = [
                rule for rule in self._lines.get((direction, kind, number), ()) if matches_port(rule, protocol, port)
            ]
            if matching:
                found.append(max(matching, key=lambda rule: (rule.protocol != 0, rule.port_bits)))
        if found:
            best = min(found, key=lambda rule: (rule.rank, rule.verdict))
            return Judgement(best.verdict is Verdict.ALLOW, best)
        isolated = self.policy.ingress_isolated if direction is Direction.INGRESS else self.policy.egress_isolated
        return Judgement(not isolated)


def matches_port(rule: CompiledRule, protocol: int, port: int) -> bool:
    """Whether the line's protocol and port prefix hold the flow's."""
    if rule.protocol == 0:
        return True
    if rule.protocol != protocol:
        return False
    known = port if protocol in _PORTED else 0
    return rule.port_bits == 0 or (known ^ rule.port) >> (16 - rule.port_bits) == 0
