"""The steps in which the policy maps change, and who must do without where a map has no room for all.

Owns the vocabulary between ``core.policy.maps``, which plans, and ``enforce``, which acts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from proto.policy import Direction
from services.dataplane.core.datapath import maps as m
from services.dataplane.core.datapath.policy_layout import (
    IdentityKey,
    ScopeBits,
    ScopePeerKey,
    ScopePortKey,
    ScopeRule,
    ScopeRuleKey,
    SelectorSet,
    Subject,
    SubjectKey,
)


class Sizes(NamedTuple):
    """Entries in the three maps of scopes."""

    peers: int = 0
    ports: int = 0
    rules: int = 0

    def plus(self, other: Sizes) -> Sizes:
        """Both together."""
        return Sizes(self.peers + other.peers, self.ports + other.ports, self.rules + other.rules)

    def within(self, room: Sizes) -> bool:
        """Whether there is room in each map."""
        return self.peers <= room.peers and self.ports <= room.ports and self.rules <= room.rules


NOTHING = Sizes()


@dataclass(frozen=True, slots=True)
class Rooms:
    """How many entries the maps have room for."""

    scopes: Sizes
    selected: int


ROOMS = Rooms(Sizes(m.SCOPE_PEERS.entries, m.SCOPE_PORTS.entries, m.SCOPE_RULES.entries), m.SELECTED.entries)
"""As the maps are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeRoom:
    """So many entries are asked for: who can makes the maps larger and says so in ``PolicyMaps.rooms`` before the next
    step. Others may have their turn meanwhile.
    """

    scopes: Sizes
    selected: int

    def is_crowded(self, rooms: Rooms) -> bool:
        """Whether more than four fifths of a map are asked for (as ``core.datapath.sizes`` has it)."""
        pairs = zip((*self.scopes, self.selected), (*rooms.scopes, rooms.selected), strict=True)
        return any(asked * 5 > room * 4 for asked, room in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """Entries that nobody names yet. Answered with whether they fitted."""

    peers: Mapping[ScopePeerKey, ScopeBits] = field(default_factory=dict)
    ports: Mapping[ScopePortKey, ScopeBits] = field(default_factory=dict)
    rules: Mapping[ScopeRuleKey, ScopeRule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Identities get other selector sets. Removals first. Answered with whether it fitted."""

    removes: tuple[IdentityKey, ...] = ()
    upserts: Mapping[IdentityKey, SelectorSet] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Subjects get other policies. Removals first."""

    removes: tuple[SubjectKey, ...] = ()
    upserts: Mapping[SubjectKey, Subject] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bump:
    """Live flows are to be judged again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear:
    """Entries that nobody names any more. Rules go first: a packet on its way that finds none is denied."""

    rules: tuple[ScopeRuleKey, ...] = ()
    ports: tuple[ScopePortKey, ...] = ()
    peers: tuple[ScopePeerKey, ...] = ()


Step: TypeAlias = MakeRoom | Fill | Select | Flip | Bump | Clear | None
"""None: others may have their turn."""
Steps: TypeAlias = Generator[Step, bool, None]
Side: TypeAlias = tuple[int, Direction]


@dataclass(frozen=True, slots=True)
class Demand:
    """What one direction of a subject takes of the maps."""

    side: Side
    namespace: str
    age: int
    scope: int
    sizes: Sizes


def refusals(demands: Iterable[Demand], room: Sizes) -> set[Side]:
    """Who must do without: of the namespace that takes most of a map that is too full, the newest, until all fits.

    Who shares a scope is as old as the oldest of them: the scope is there for him in any case.
    """
    left = list(demands)
    refused: set[Side] = set()
    for index, limit in enumerate(room):
        while sum({one.scope: one.sizes[index] for one in left}.values()) > limit:
            taken: dict[str, dict[int, int]] = {}
            for one in left:
                taken.setdefault(one.namespace, {})[one.scope] = one.sizes[index]
            largest = max(taken, key=lambda namespace: (sum(taken[namespace].values()), namespace))
            born: dict[int, tuple[int, Side]] = {}
            for one in left:
                if one.namespace == largest and one.sizes[index]:
                    born[one.scope] = min(born.get(one.scope, (one.age, one.side)), (one.age, one.side))
            newest = max(born, key=lambda scope: born[scope])
            gone = {one.side for one in left if (one.namespace, one.scope) == (largest, newest)}
            refused |= gone
            left = [one for one in left if one.side not in gone]
    return refused
