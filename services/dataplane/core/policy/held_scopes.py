"""The scopes and selector sets that the maps hold now, and the entries that follow from them.

Owns the three maps of scopes, as values: whatever scopes and sets are held, the entries are those of each with each,
and none of them is written down here, so the memory that this takes does not grow with entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from proto.policy import PortMatch, SelectorPeer
from services.dataplane.core.datapath.policy_layout import (
    SCOPE_FIXED_BITS,
    PeerMatch,
    ScopeBits,
    ScopePeerKey,
    ScopePortKey,
    ScopeRule,
    ScopeRuleKey,
)
from services.dataplane.core.policy.scopes import Scope, digest, fixed_peers, port_entries, rule_entries, rule_entry
from services.dataplane.core.policy.selection import Selection
from services.dataplane.core.policy.steps import NOTHING, Clear, Fill, Sizes


@dataclass(slots=True)
class Held:
    """A scope that is in the maps."""

    scope: Scope
    bits: tuple[tuple[int, int], ...]
    """(bit of a selector, rules that name it)."""
    mask: int
    sizes: Sizes = NOTHING

    def of(self, mask: int) -> int:
        """Rules that name a selector of a set."""
        found = 0
        if mask & self.mask:
            for bit, rules in self.bits:
                if mask & bit:
                    found |= rules
        return found


@dataclass(slots=True)
class HeldSet:
    """A selector set that is in the maps."""

    content: bytes
    mask: int
    users: int = 0


class HeldScopes:
    """See the module."""

    def __init__(self) -> None:
        self.scopes: dict[int, Held] = {}
        self.sets: dict[int, HeldSet] = {}
        self.taken = Sizes()
        """Entries in the maps."""
        self.uses: Counter[SelectorPeer] = Counter()
        """How many scopes name a selector."""
        self._unused: dict[int, None] = {}
        """Sets that no identity has."""
        self._in_force: tuple[int, bool] | None = None

    def set_number(self, content: bytes) -> int:
        """The number of a set: another one than those that other sets have."""
        one = self.sets.get(digest(content, {}))
        if one is None or one.content == content:
            return digest(content, {})
        return digest(content, {number: other.content for number, other in self.sets.items()})

    def prepare(self, number: int, scope: Scope, selection: Selection) -> tuple[Held, Fill]:
        """A scope that is to be held, and its entries."""
        bits = tuple((selection.bit(selector), rules) for selector, rules in scope.selectors.items())
        held = Held(scope, bits, sum(bit for bit, _ in bits))
        return held, self._entries(number, held)

    def _entries(self, number: int, held: Held) -> Fill:
        return Fill(
            peers=fixed_peers(number, held.scope) | self._peers_of_scope(number, held),
            ports=port_entries(number, held.scope),
            rules=rule_entries(number, held.scope),
        )

    def _peers_of_scope(self, number: int, held: Held) -> dict[ScopePeerKey, ScopeBits]:
        return {
            ScopePeerKey(scope=number, kind=PeerMatch.SELECTOR_SET, peer=name): ScopeBits(bits=bits)
            for name, one in self.sets.items()
            if (bits := held.of(one.mask))
        }

    def put(self, number: int, held: Held, sizes: Sizes) -> None:
        """The entries of a scope are in the maps."""
        self.scopes[number] = held
        self._in_force = None
        self.uses.update(held.scope.selectors.keys())
        self._grow(number, sizes)

    def drop(self, number: int) -> Clear:
        """A scope leaves the maps."""
        held = self.scopes.pop(number)
        self._in_force = None
        self.uses.subtract(held.scope.selectors.keys())
        for selector in held.scope.selectors:
            if not self.uses[selector]:
                del self.uses[selector]
        self.taken = self.taken.plus(Sizes(*(-size for size in held.sizes)))
        entries = self._entries(number, held)
        return Clear(rules=tuple(entries.rules), ports=tuple(entries.ports), peers=tuple(entries.peers))

    def peers_of_set(self, number: int, mask: int) -> dict[ScopePeerKey, ScopeBits]:
        """Entries of a selector set in all scopes."""
        return {
            ScopePeerKey(scope=scope, kind=PeerMatch.SELECTOR_SET, peer=number): ScopeBits(bits=bits)
            for scope, held in self.scopes.items()
            if (bits := held.of(mask))
        }

    def new_peers_of_set(self, number: int, mask: int) -> dict[ScopePeerKey, ScopeBits]:
        """Those of them that are not in the maps yet."""
        known = self.sets.get(number)
        there = self.peers_of_set(number, known.mask) if known is not None else {}
        return {key: bits for key, bits in self.peers_of_set(number, mask).items() if key not in there}

    def put_set(self, number: int, content: bytes, mask: int, entries: dict[ScopePeerKey, ScopeBits]) -> None:
        """The entries of a selector set are in the maps."""
        known = self.sets.get(number)
        if known is None:
            self.sets[number] = HeldSet(content, mask)
            self._unused[number] = None
        else:  # the same selectors, let go of and taken up again
            known.mask = mask
        for key in entries:
            self._grow(key.scope, Sizes(1))

    def enter_set(self, number: int) -> None:
        """An identity more has this set."""
        self.sets[number].users += 1
        self._unused.pop(number, None)

    def leave_set(self, number: int) -> None:
        """An identity has another set now, or none."""
        one = self.sets[number]
        one.users -= 1
        if not one.users:
            self._unused[number] = None

    def drop_unused_sets(self) -> Iterator[Clear]:
        """Selector sets that no identity has leave the maps."""
        unused, self._unused = self._unused, {}
        for number in unused:
            entries = self.peers_of_set(number, self.sets.pop(number).mask)
            for key in entries:
                self._grow(key.scope, Sizes(-1))
            if entries:
                yield Clear(peers=tuple(entries))

    def _grow(self, scope: int, by: Sizes) -> None:
        held = self.scopes[scope]
        held.sizes = held.sizes.plus(by)
        self.taken = self.taken.plus(by)

    def in_force(self) -> tuple[int, bool]:
        """Selectors that some scope names, as a mask; and whether some rule denies."""
        if self._in_force is None:
            mask, denies = 0, False
            for held in self.scopes.values():
                mask |= held.mask
                denies = denies or held.scope.denies
            self._in_force = mask, denies
        return self._in_force

    def sets_in_use(self) -> int:
        """Every bit that some set has."""
        mask = 0
        for one in self.sets.values():
            mask |= one.mask
        return mask

    def peer(self, key: ScopePeerKey) -> ScopeBits | None:
        """What ``am_scope_peer`` should say."""
        held = self.scopes.get(key.scope)
        if held is None:
            return None
        match key.kind:
            case PeerMatch.SELECTOR_SET:
                one = self.sets.get(key.peer)
                bits = held.of(one.mask) if one is not None else 0
            case PeerMatch.CIDR_SET:
                bits = held.scope.cidr_sets.get(key.peer, 0)
            case PeerMatch.ANY_POD:
                bits = 0 if key.peer else held.scope.any_pod
            case _:
                bits = 0 if key.peer else held.scope.anybody
        return ScopeBits(bits=bits) if bits else None

    def port(self, key: ScopePortKey) -> ScopeBits | None:
        """What ``am_scope_port`` should say."""
        held = self.scopes.get(key.scope)
        port = PortMatch(key.protocol, key.port, max(0, key.prefixlen - SCOPE_FIXED_BITS - 8))
        bits = held.scope.ports.get(port, 0) if held is not None else 0
        return ScopeBits(bits=bits) if bits else None

    def rule(self, key: ScopeRuleKey) -> ScopeRule | None:
        """What ``am_scope_rule`` should say."""
        held = self.scopes.get(key.scope)
        return rule_entry(held.scope, key.index) if held is not None else None

    def entries(self) -> Iterator[Fill]:
        """All that the maps should hold, scope by scope."""
        for number, held in list(self.scopes.items()):
            yield self._entries(number, held)
