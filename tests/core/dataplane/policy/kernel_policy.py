"""The policy maps and the program that reads them, as the kernel has them: values, room, and what a flow meets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from proto.identity import FIRST_COMPUTED
from proto.policy import Direction, Verdict
from services.dataplane.core.datapath.policy_layout import (
    SCOPE_FIXED_BITS,
    IdentityKey,
    PeerMatch,
    ScopeBits,
    ScopePeerKey,
    ScopePortKey,
    ScopeRule,
    ScopeRuleKey,
    SelectorSet,
    Subject,
    SubjectKey,
)
from services.dataplane.core.policy.steps import Bump, Clear, Fill, Flip, MakeRoom, Rooms, Select, Step, Steps

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Probe:
    """A flow of a subject with a peer."""

    subject: int
    direction: Direction
    peer: int
    cidr_set: int
    protocol: int
    port: int


@dataclass
class Kernel:
    """Five maps. ``rooms`` bounds them; what does not fit is refused half way, as the kernel does."""

    rooms: Rooms | None = None
    subjects: dict[SubjectKey, Subject] = field(default_factory=dict)
    selected: dict[IdentityKey, SelectorSet] = field(default_factory=dict)
    peers: dict[ScopePeerKey, ScopeBits] = field(default_factory=dict)
    ports: dict[ScopePortKey, ScopeBits] = field(default_factory=dict)
    rules: dict[ScopeRuleKey, ScopeRule] = field(default_factory=dict)
    generation: int = 0

    def take(self, step: Step) -> bool:
        match step:
            case MakeRoom() | None:
                pass
            case Fill():
                most = self.rooms.scopes if self.rooms else (1 << 30,) * 3
                return (
                    _put(self.peers, step.peers, most[0])
                    and _put(self.ports, step.ports, most[1])
                    and _put(self.rules, step.rules, most[2])
                )
            case Select():
                for key in step.removes:
                    self.selected.pop(key, None)
                for identity, number in step.upserts.items():
                    if identity not in self.selected and self.rooms and len(self.selected) >= self.rooms.selected:
                        return False
                    self.selected[identity] = number
            case Flip():
                for subject in step.removes:
                    del self.subjects[subject]
                self.subjects.update(step.upserts)
            case Bump():
                self.generation += 1
            case Clear():
                for rule in step.rules:
                    self.rules.pop(rule, None)
                for port in step.ports:
                    self.ports.pop(port, None)
                for peer in step.peers:
                    self.peers.pop(peer, None)
        return True

    def run(self, steps: Steps) -> list[Step]:
        """Takes all of the steps."""
        taken: list[Step] = []
        fits = True
        try:
            step = next(steps)
            while True:
                taken.append(step)
                fits = self.take(step)
                step = steps.send(fits)
        except StopIteration:
            return taken

    def allows(self, probe: Probe) -> bool:
        """As ``bpf/policy.h`` judges."""
        subject = self.subjects.get(SubjectKey(identity=probe.subject))
        if subject is None:
            return False
        ingress = probe.direction is Direction.INGRESS
        scope = subject.ingress if ingress else subject.egress
        isolated = subject.ingress_isolated if ingress else subject.egress_isolated
        rules = self._named(scope, probe) & self._ports(scope, probe) if scope else 0
        if not rules:
            return not isolated
        rule = self.rules.get(ScopeRuleKey(scope=scope, index=(rules & -rules).bit_length() - 1))
        return rule is not None and rule.verdict == Verdict.ALLOW

    def _named(self, scope: int, probe: Probe) -> int:
        everybody = PeerMatch.ANY_POD if probe.peer >= FIRST_COMPUTED else PeerMatch.ANYBODY
        keys = [ScopePeerKey(scope=scope, kind=everybody)]
        chosen = self.selected.get(IdentityKey(identity=probe.peer))
        if chosen is not None:
            keys.append(ScopePeerKey(scope=scope, kind=PeerMatch.SELECTOR_SET, peer=chosen.number))
        if probe.cidr_set:
            keys.append(ScopePeerKey(scope=scope, kind=PeerMatch.CIDR_SET, peer=probe.cidr_set))
        found = 0
        for key in keys:
            found |= self.peers[key].bits if key in self.peers else 0
        return found

    def _ports(self, scope: int, probe: Probe) -> int:
        """Longest prefix match, as BPF_MAP_TYPE_LPM_TRIE does it."""
        best: ScopePortKey | None = None
        for key in self.ports:
            bits = key.prefixlen - SCOPE_FIXED_BITS
            if key.scope != scope or (bits >= 8 and key.protocol != probe.protocol):
                continue
            if bits > 8 and (probe.port ^ key.port) >> (16 - (bits - 8)):
                continue
            if best is None or key.prefixlen > best.prefixlen:
                best = key
        return self.ports[best].bits if best is not None else 0

    def maps(self) -> tuple[object, ...]:
        """All they hold, but for the revisions that subjects tell."""
        subjects = {
            key: (one.ingress, one.egress, one.ingress_isolated, one.egress_isolated)
            for key, one in self.subjects.items()
        }
        return subjects, self.selected, self.peers, self.ports, self.rules


def _put(table: dict[K, V], more: Mapping[K, V], most: int) -> bool:
    for key, value in more.items():
        assert table.get(key, value) == value, "no entry ever says something else"
        if key not in table and len(table) >= most:
            return False
        table[key] = value
    return True
