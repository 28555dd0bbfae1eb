"""The policy of one direction as content: a scope, named by a hash of what it says.

Owns the translation of compiled rules into bit vectors: rule j in precedence is bit j; which rules name a selector, a
CIDR set, anybody, a port. Identities with equal rules share a scope, and an agent that lost its memory finds the same
numbers in the kernel; no entry of a scope ever changes its value, since another value would be another scope. Among
nested ports (any protocol ⊃ a protocol ⊃ a port range ⊃ a port) the trie finds the longest, the language says the
lowest rank of all that match: so each prefix holds the rules of every prefix that contains it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import msgspec

from kit.selectors import EVERYTHING
from proto.policy import MAX_RULES, CompiledPolicy, CompiledRule, Direction, PortMatch, SelectorPeer
from services.dataplane.core.datapath.policy_layout import (
    PeerMatch,
    ScopeBits,
    ScopePeerKey,
    ScopePortKey,
    ScopeRule,
    ScopeRuleKey,
)

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def digest(content: bytes, taken: Mapping[int, bytes]) -> int:
    """A number of 64 bits for some content, never 0; another one than those that other content has ``taken``.

    A tenant who writes many policies could look for two contents of one hash: neither may pass for the other.
    """
    salt = 0
    while True:
        found = blake2b(content, digest_size=8, salt=salt.to_bytes(4, "little")).digest()
        number = int.from_bytes(found, "big")
        if number and taken.get(number, content) == content:
            return number
        salt += 1


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule without numbers of its policy's tables."""

    rule: CompiledRule
    selectors: tuple[SelectorPeer, ...]


@dataclass(frozen=True)
class Scope:
    """Rules in precedence. Every mapping is from what a packet may have to a vector of rules."""

    content: bytes
    """All that the rules say: equal for equal policies."""
    rules: tuple[_Rule, ...]

    @cached_property
    def anybody(self) -> int:
        """Rules that name every peer."""
        return sum(1 << j for j, one in enumerate(self.rules) if one.rule.any_peer)

    @cached_property
    def any_pod(self) -> int:
        """Rules that name every pod, those that name every peer among them."""
        return self.anybody | sum(
            1 << j for j, one in enumerate(self.rules) if any(names_every_pod(peer) for peer in one.selectors)
        )

    @cached_property
    def selectors(self) -> dict[SelectorPeer, int]:
        """By selector; one that names every pod is in :attr:`any_pod` instead."""
        found: dict[SelectorPeer, int] = {}
        for j, one in enumerate(self.rules):
            for peer in one.selectors:
                if not names_every_pod(peer):
                    found[peer] = found.get(peer, 0) | 1 << j
        return found

    @cached_property
    def cidr_sets(self) -> dict[int, int]:
        """By number of the CIDR set."""
        found: dict[int, int] = {}
        for j, one in enumerate(self.rules):
            for number in one.rule.cidr_sets:
                found[number] = found.get(number, 0) | 1 << j
        return found

    @cached_property
    def ports(self) -> dict[PortMatch, int]:
        """By port prefix, with the rules of every prefix that contains it."""
        return flat_ports((port, 1 << j) for j, one in enumerate(self.rules) for port in one.rule.ports)

    @cached_property
    def denies(self) -> bool:
        """Whether a peer may lose a right by matching more."""
        return any(not one.rule.verdict for one in self.rules)


def names_every_pod(peer: SelectorPeer) -> bool:
    """Whether a selector matches each identity there can be (``namespaceSelector: {}``): nobody need be asked."""
    return (
        not peer.namespace
        and peer.namespace_selector == EVERYTHING
        and peer.pod_selector in (None, EVERYTHING)
        and peer.named_port is None
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """The policy of an identity that lives here."""

    policy: CompiledPolicy
    namespace: str
    scopes: tuple[Scope | None, Scope | None]
    number: int = 0
    """Which policy it is (``policy_history.number_of``)."""
    why: str = ""
    """Not empty: the maps cannot say it, and it is isolated whole."""


def scope_of(policy: CompiledPolicy, direction: Direction) -> Scope | None:
    """The scope of one direction; None without rules. Raises ValueError for what the maps cannot say."""
    mine = [rule for rule in policy.rules if rule.direction == direction]
    if not mine:
        return None
    if len(mine) > MAX_RULES:
        raise ValueError(f"{len(mine)} rules for {direction.name.lower()}: at most {MAX_RULES} fit; name fewer")
    mine.sort(key=lambda rule: (rule.precedence, rule.verdict))
    rules = tuple(
        _Rule(rule, tuple(sorted({policy.selectors[index] for index in rule.selectors}, key=_encode))) for rule in mine
    )
    for port in {port for rule in mine for port in rule.ports}:
        ScopePortKey.of(0, port.protocol, port.port, port.bits)
    content = _encode(
        [
            (one.rule.verdict, one.rule.source, one.rule.any_peer, one.selectors, sorted(set(one.rule.cidr_sets)),
             sorted({_plain(port) for port in one.rule.ports}))
            for one in rules
        ]
    )  # fmt: skip
    return Scope(content, rules)


def flat_ports(ports: Iterable[tuple[PortMatch, int]]) -> dict[PortMatch, int]:
    """What the longest prefix of each port must say: the union of all that contain it."""
    own: dict[PortMatch, int] = {}
    for port, bits in ports:
        plain = _plain(port)
        own[plain] = own.get(plain, 0) | bits
    return {port: _union(port, own) for port in own}


def _plain(port: PortMatch) -> PortMatch:
    """One form for each prefix."""
    if not port.protocol:
        return PortMatch(0, 0, 0)
    return PortMatch(port.protocol, port.port & (0xFFFF << (16 - port.bits)) & 0xFFFF, port.bits)


def _union(port: PortMatch, own: Mapping[PortMatch, int]) -> int:
    found = own.get(PortMatch(0, 0, 0), 0)
    if port.protocol:
        for bits in range(port.bits + 1):
            found |= own.get(_plain(PortMatch(port.protocol, port.port, bits)), 0)
    return found


def fixed_peers(number: int, scope: Scope) -> dict[ScopePeerKey, ScopeBits]:
    """Entries of peers that are the same whoever there is."""
    found = {
        ScopePeerKey(scope=number, kind=PeerMatch.CIDR_SET, peer=cidr_set): ScopeBits(bits=bits)
        for cidr_set, bits in scope.cidr_sets.items()
    }
    for kind, bits in ((PeerMatch.ANYBODY, scope.anybody), (PeerMatch.ANY_POD, scope.any_pod)):
        if bits:
            found[ScopePeerKey(scope=number, kind=kind)] = ScopeBits(bits=bits)
    return found


def port_entries(number: int, scope: Scope) -> dict[ScopePortKey, ScopeBits]:
    """Entries of ports."""
    return {
        ScopePortKey.of(number, port.protocol, port.port, port.bits): ScopeBits(bits=bits)
        for port, bits in scope.ports.items()
    }


def rule_entries(number: int, scope: Scope) -> dict[ScopeRuleKey, ScopeRule]:
    """Entries of rules."""
    return {
        ScopeRuleKey(scope=number, index=j): ScopeRule(rule=one.rule.source, verdict=int(one.rule.verdict))
        for j, one in enumerate(scope.rules)
    }


def rule_entry(scope: Scope, index: int) -> ScopeRule | None:
    """What the rule of a bit says."""
    if index >= len(scope.rules):
        return None
    rule = scope.rules[index].rule
    return ScopeRule(rule=rule.source, verdict=int(rule.verdict))
