"""What the policy maps hold, and the steps of every change to them.

Owns ``am_subjects``, ``am_selected`` and the three maps of scopes, as values: :meth:`PolicyMaps.settle` gives the
steps, whoever takes them says whether they fitted. Promises:

* A change costs what it changes: the maps are not read; what they hold is known here.
* Entries of scopes and of selector sets never change their value (their names are hashes of their content), so a change
  is: entries that nobody names yet are added; then a subject (both directions at once) or an identity flips to them in
  one update; then the generation is raised; then what nobody names any more goes. No state in between allows more than
  both ends.
* The generation is raised when a subject's policy has changed or an identity has lost a selector. What only gains needs
  none: a flow that is denied has no entry, and one that was revoked is judged again with each packet.
* What does not fit hurts the newest of the largest tenant: these subjects become isolated without a rule in the
  direction concerned. Removals never wait for additions, and nobody keeps a right because the new state has no room.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeAlias

from proto.policy import CidrSet, CompiledPolicy, Direction, PortMatch, SelectorPeer
from services.dataplane.core import maps as m
from services.dataplane.core.layout import (
    SCOPE_FIXED_BITS,
    CidrNumber,
    IdentityKey,
    PeerMatch,
    PrefixKey,
    ScopeBits,
    ScopePeerKey,
    ScopePortKey,
    ScopeRule,
    ScopeRuleKey,
    SelectorSet,
    Subject,
    SubjectKey,
)
from services.dataplane.core.scopes import Scope, digest, fixed_peers, port_entries, rule_entries, rule_entry, scope_of
from services.dataplane.core.selection import Selection

SLICE = 500
"""Identities, or entries of a scope, that are seen to before others have their turn."""


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


@dataclass(frozen=True, slots=True)
class Rooms:
    """How many entries the maps have room for."""

    scopes: Sizes
    selected: int


ROOMS = Rooms(Sizes(m.SCOPE_PEERS.entries, m.SCOPE_PORTS.entries, m.SCOPE_RULES.entries), m.SELECTED.entries)
"""As the maps are made."""


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


Step: TypeAlias = Fill | Select | Flip | Bump | Clear | None
"""None: others may have their turn."""
Steps: TypeAlias = Generator[Step, bool, None]
Side: TypeAlias = tuple[int, Direction]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The policy of an identity that lives here."""

    policy: CompiledPolicy
    namespace: str
    scopes: tuple[Scope | None, Scope | None]
    why: str = ""
    """Not empty: the maps cannot say it, and it is isolated whole."""


@dataclass(slots=True)
class _Held:
    """A scope that is in the maps."""

    scope: Scope
    bits: tuple[tuple[int, int], ...]
    """(bit of a selector, rules that name it)."""
    mask: int
    sizes: Sizes

    def of(self, mask: int) -> int:
        """Rules that name a selector of a set."""
        found = 0
        if mask & self.mask:
            for bit, rules in self.bits:
                if mask & bit:
                    found |= rules
        return found


@dataclass(slots=True)
class _Set:
    """A selector set that is in the maps."""

    content: bytes
    mask: int
    users: int = 0


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


class PolicyMaps:
    """See the module. ``want``, ``unwant`` and ``selection`` say what should be; ``settle`` makes it so."""

    def __init__(self, rooms: Rooms = ROOMS) -> None:
        self.selection = Selection()
        self.rooms = rooms
        self.wanted: dict[int, Wanted] = {}
        self.subjects: dict[int, Subject] = {}
        """As ``am_subjects`` holds them."""
        self.selected: dict[int, int] = {}
        """As ``am_selected`` holds them."""
        self.refused: dict[Side, Sizes] = {}
        """Directions that are isolated without a rule because there is no room, and what they would take."""
        self.unselected: dict[int, None] = {}
        """Identities that ``am_selected`` has no room for: they match nothing."""
        self.changed = 0
        """Updates since the start."""
        self._held: dict[int, _Held] = {}
        self._sets: dict[int, _Set] = {}
        self._numbers: dict[int, bytes] = {}
        self._by_scope: dict[bytes, int] = {}
        self._users: dict[int, set[Side]] = {}
        self._unsettled: dict[int, None] = {}
        self._taken = Sizes()

    # --- what should be ---

    def want(self, policy: CompiledPolicy, namespace: str) -> Wanted:
        """The identity of a policy lives here. Costs nothing when it is known."""
        identity = policy.identity
        known = self.wanted.get(identity)
        if known is not None and known.policy is policy:
            return known
        try:
            scopes, why = (scope_of(policy, Direction.INGRESS), scope_of(policy, Direction.EGRESS)), ""
        except (ValueError, IndexError) as error:
            scopes, why = (None, None), str(error)
        for direction in Direction:
            if known is not None and _content(known.scopes[direction]) != _content(scopes[direction]):
                self.refused.pop((identity, direction), None)  # what was too large is not what is wanted now
        wanted = Wanted(policy, namespace, scopes, why)
        self.wanted[identity] = wanted
        self._use(identity, scopes)
        self._unsettled[identity] = None
        return wanted

    def unwant(self, identity: int) -> None:
        """The identity does not live here any more: denied, should it still send."""
        self.wanted.pop(identity, None)
        self._use(identity, (None, None))
        for direction in Direction:
            self.refused.pop((identity, direction), None)
        self._unsettled[identity] = None

    def adopt(self, subjects: Mapping[int, Subject], keep: Collection[int]) -> None:
        """What the kernel holds of an earlier life. ``keep``: identities that live here; if their rules are not known,
        what was in force goes on.
        """
        self.subjects = dict(subjects)
        self._unsettled.update({identity: None for identity in subjects if identity not in keep})

    def _use(self, identity: int, scopes: tuple[Scope | None, Scope | None]) -> None:
        for users in self._users.values():
            users.difference_update({(identity, direction) for direction in Direction})
        for direction, scope in zip(Direction, scopes, strict=True):
            if scope is not None:
                self._users.setdefault(self._number(scope), set()).add((identity, direction))

    def _number(self, scope: Scope) -> int:
        number = self._by_scope.get(scope.content)
        if number is None:
            number = digest(scope.content, self._numbers)
            self._numbers[number] = scope.content
            self._by_scope[scope.content] = number
        return number

    # --- the steps ---

    def settle(self) -> Steps:
        """Steps that make the maps what they should be. Two of these may take turns wherever one gives None."""
        yield from self._flip(final=False)  # what needs nothing new: rights are taken away first
        yield from self._index()
        yield from self._select()
        yield from self._fill()
        yield from self._flip(final=False)
        yield from self._clear()
        self._release()
        yield from self._select(tidying=True)
        yield from self._clear_sets()

    def _scopes_wanted(self) -> Iterator[tuple[int, Scope]]:
        for number, users in list(self._users.items()):
            if self._is_wanted(number):
                identity, direction = next(iter(users))
                scope = self.wanted[identity].scopes[direction]
                assert scope is not None
                yield number, scope

    def _index(self) -> Steps:
        missing = {
            selector: None
            for number, scope in self._scopes_wanted()
            if number not in self._held
            for selector in scope.selectors
            if not self.selection.has(selector)
        }
        for selector in missing:
            yield from self._index_one(selector)
            yield None

    def _index_one(self, selector: SelectorPeer) -> Steps:
        for _ in self.selection.index(selector):
            yield None

    def _select(self, *, tidying: bool = False) -> Steps:
        """Identities get the sets that match them now; ``tidying``: only selectors that nobody uses have gone."""
        while dirty := list(islice(self.selection.dirty, SLICE)):
            yield from self._select_some(dirty, tidying=tidying)
            yield None

    def _select_some(self, identities: list[int], *, tidying: bool) -> Steps:
        for identity in identities:
            self.selection.dirty.pop(identity, None)
        masks = {identity: self.selection.set_of(identity) for identity in identities}
        numbers = {mask: self._set_number(mask) for mask in set(masks.values()) if mask}
        yield from self._fill_sets({numbers[mask]: mask for mask in numbers}, tidying=tidying)
        yield from self._flip_identities(masks, {mask: n for mask, n in numbers.items() if n in self._sets})

    def _set_number(self, mask: int) -> int:
        content = self.selection.content(mask)
        return digest(content, {number: one.content for number, one in self._near(content)})

    def _near(self, content: bytes) -> Iterator[tuple[int, _Set]]:
        """Sets that could have the number of this content."""
        number = digest(content, {})
        one = self._sets.get(number)
        if one is not None and one.content != content:
            yield from self._sets.items()

    def _fill_sets(self, sets: Mapping[int, int], *, tidying: bool) -> Steps:
        """Brings selector sets into the maps of scopes; those that do not fit stay out."""
        for number, mask in sets.items():
            known = self._sets.get(number)
            if known is not None and known.mask == mask:
                continue
            entries = self._new_peers_of_set(number, mask)
            if not self._fits(Sizes(len(entries))) and not tidying:
                yield from self._make_room({key.scope: Sizes(1) for key in entries})
                entries = self._new_peers_of_set(number, mask)
            if not self._fits(Sizes(len(entries))):
                continue
            if entries and not (yield Fill(peers=entries)):
                yield Clear(peers=tuple(entries))
                continue
            if known is None:
                self._sets[number] = _Set(self.selection.content(mask), mask)
            else:  # the same selectors, let go of and taken up again
                known.mask = mask
            for key in entries:
                self._grow(key.scope, Sizes(1))

    def _fits(self, more: Sizes) -> bool:
        return self._taken.plus(more).within(self.rooms.scopes)

    def _new_peers_of_set(self, number: int, mask: int) -> dict[ScopePeerKey, ScopeBits]:
        known = self._sets.get(number)
        there = self._peers_of_set(number, known.mask) if known is not None else {}
        return {key: bits for key, bits in self._peers_of_set(number, mask).items() if key not in there}

    def _peers_of_set(self, number: int, mask: int) -> dict[ScopePeerKey, ScopeBits]:
        return {
            ScopePeerKey(scope=scope, kind=PeerMatch.SELECTOR_SET, peer=number): ScopeBits(bits=bits)
            for scope, held in self._held.items()
            if (bits := held.of(mask))
        }

    def _grow(self, scope: int, by: Sizes) -> None:
        held = self._held[scope]
        held.sizes = held.sizes.plus(by)
        self._taken = self._taken.plus(by)

    def _flip_identities(self, masks: Mapping[int, int], numbers: Mapping[int, int]) -> Steps:
        removes: dict[int, None] = {}
        upserts: dict[int, int] = {}
        lost = False
        in_force, denies = self._in_force()
        room = self.rooms.selected - len(self.selected)
        for identity, mask in masks.items():
            number, before = numbers.get(mask, 0), self.selected.get(identity, 0)
            old = self._sets[before].mask if before else 0
            if mask and not number:
                self.unselected[identity] = None
                if before and not (old ^ mask) & in_force:
                    continue  # as good as what has no room
            if number == before:
                continue
            if number and not before and room <= 0:
                self.unselected[identity] = None
                continue
            new = mask if number else 0
            lost = lost or bool((old & ~new | (new & ~old if denies else 0)) & in_force)
            if number:
                upserts[identity] = number
                self.unselected.pop(identity, None)
            else:
                removes[identity] = None
            room += bool(before) - bool(number)
        if removes or upserts:
            yield from self._flip_sets(removes, upserts)
        if lost:
            yield Bump()

    def _flip_sets(self, removes: dict[int, None], upserts: dict[int, int]) -> Steps:
        fits = yield Select(
            removes=tuple(IdentityKey(identity=identity) for identity in removes),
            upserts={IdentityKey(identity=one): SelectorSet(number=number) for one, number in upserts.items()},
        )
        if not fits:  # none of them: what they had may be more than what they should have
            yield Select(removes=tuple(IdentityKey(identity=identity) for identity in upserts))
            self.unselected.update(dict.fromkeys(upserts))
            removes, upserts = {**removes, **dict.fromkeys(upserts)}, {}
        for identity in (*removes, *upserts):
            before = self.selected.pop(identity, 0)
            if before:
                self._sets[before].users -= 1
        for identity, number in upserts.items():
            self.selected[identity] = number
            self._sets[number].users += 1
        self.changed += len(removes) + len(upserts)

    def _in_force(self) -> tuple[int, bool]:
        mask, denies = 0, False
        for held in self._held.values():
            mask |= held.mask
            denies = denies or held.scope.denies
        return mask, denies

    def _fill(self) -> Steps:
        """Scopes that are wanted and not in the maps, the oldest policies first."""
        for number, scope in sorted(self._scopes_wanted(), key=lambda one: min(self._age(one[0]))):
            if number not in self._held:
                yield from self._fill_scope(number, scope)
                yield None

    def _age(self, number: int) -> Iterator[tuple[int, int]]:
        return ((self.wanted[side[0]].policy.revision.sequence, side[0]) for side in self._users[number])

    def _fill_scope(self, number: int, scope: Scope) -> Steps:
        if not self._is_wanted(number) or not all(self.selection.has(selector) for selector in scope.selectors):
            return  # another turn has changed what is wanted
        bits = tuple((self.selection.bit(selector), rules) for selector, rules in scope.selectors.items())
        held = _Held(scope, bits, sum(bit for bit, _ in bits), Sizes())
        peers = fixed_peers(number, scope)
        for name, one in self._sets.items():
            found = held.of(one.mask)
            if found:
                peers[ScopePeerKey(scope=number, kind=PeerMatch.SELECTOR_SET, peer=name)] = ScopeBits(bits=found)
        ports, rules = port_entries(number, scope), rule_entries(number, scope)
        sizes = Sizes(len(peers), len(ports), len(rules))
        if not self._fits(sizes):
            yield from self._make_room({number: sizes})
            if not self._is_wanted(number):
                return
        fits = self._fits(sizes)
        if fits and not (yield Fill(peers=peers, ports=ports, rules=rules)):
            yield Clear(rules=tuple(rules), ports=tuple(ports), peers=tuple(peers))
            fits = False
        if not fits:
            self._refuse(self._users.get(number, ()), sizes)
            return
        self._held[number] = held
        self._grow(number, sizes)
        self.changed += sum(sizes)
        self._unsettled.update({identity: None for identity, _ in self._users.get(number, ())})

    def _is_wanted(self, number: int) -> bool:
        return any(side not in self.refused for side in self._users.get(number, ()))

    # --- room ---

    def _make_room(self, more: Mapping[int, Sizes]) -> Steps:
        """Room for so many entries more of these scopes, at the cost of the newest of the largest tenant."""
        sizes = {number: held.sizes for number, held in self._held.items()}
        for number, by in more.items():
            sizes[number] = sizes.get(number, Sizes()).plus(by)
        refused = refusals(self._demands(sizes), self.rooms.scopes)
        for side in refused:
            if side not in self.refused:
                self._refuse([side], sizes[self._scope_number(side)])
        # Old scopes of those that wait for their new ones are no reason to refuse anybody: they go before.
        yield from self._flip(final=True)
        yield from self._clear()  # not the selectors: whoever asks for room goes by them

    def _demands(self, sizes: Mapping[int, Sizes]) -> list[Demand]:
        return [
            Demand(side, self.wanted[side[0]].namespace, self.wanted[side[0]].policy.revision.sequence, number, size)
            for number, size in sizes.items()
            for side in self._users.get(number, ())
            if side not in self.refused
        ]

    def _scope_number(self, side: Side) -> int:
        scope = self.wanted[side[0]].scopes[side[1]]
        assert scope is not None
        return self._by_scope[scope.content]

    def _refuse(self, sides: Iterable[Side], sizes: Sizes) -> None:
        for side in sides:
            self.refused[side] = sizes
            self._unsettled[side[0]] = None

    def admit_again(self) -> None:
        """Gives those who were refused another chance, if there may be room now: before a pass that is not in haste."""
        sizes = {number: held.sizes for number, held in self._held.items()}
        back, self.refused = self.refused, {}
        for side, size in back.items():
            sizes.setdefault(self._scope_number(side), size)
        refused = refusals(self._demands(sizes), self.rooms.scopes)
        self.refused = {side: sizes[self._scope_number(side)] for side in refused}
        self._unsettled.update({side[0]: None for side in back.keys() ^ refused})
        if len(self.selected) < self.rooms.selected:
            self.selection.dirty.update(self.unselected)
            self.unselected = {}

    # --- subjects ---

    def _subject(self, identity: int, *, final: bool) -> Subject | None:
        """What ``am_subjects`` is to say; None while a scope of it is on its way."""
        wanted = self.wanted[identity]
        isolated = [wanted.policy.ingress_isolated, wanted.policy.egress_isolated]
        scopes = [0, 0]
        for direction, scope in zip(Direction, wanted.scopes, strict=True):
            if scope is None:
                isolated[direction] = isolated[direction] or bool(wanted.why)
                continue
            number = self._by_scope[scope.content]
            if (identity, direction) not in self.refused and number in self._held:
                scopes[direction] = number
            elif final or (identity, direction) in self.refused:
                isolated[direction] = True
            else:
                return None
        return Subject(
            ingress=scopes[0],
            egress=scopes[1],
            ingress_isolated=isolated[0],
            egress_isolated=isolated[1],
            revision=wanted.policy.revision.sequence & 0xFFFFFFFF,
        )

    def _flip(self, *, final: bool) -> Steps:
        """Subjects get their policies. ``final``: those whose scopes are not in the maps do without."""
        removes, upserts, told = [], {}, False
        for identity in list(self._unsettled):
            before = self.subjects.get(identity)
            if identity not in self.wanted:
                if before is not None:
                    removes.append(SubjectKey(identity=identity))
                self._unsettled.pop(identity)
                continue
            subject = self._subject(identity, final=final)
            if subject is None:
                continue
            self._unsettled.pop(identity)
            if subject != before:
                upserts[SubjectKey(identity=identity)] = subject
                told = told or before is None or _says(before) != _says(subject)
        if not removes and not upserts:
            return
        yield Flip(removes=tuple(removes), upserts=upserts)
        for key in removes:
            del self.subjects[key.identity]
        self.subjects.update({key.identity: subject for key, subject in upserts.items()})
        self.changed += len(removes) + len(upserts)
        if removes or told:
            yield Bump()

    # --- what nobody names ---

    def _clear(self) -> Steps:
        """Scopes that no subject names."""
        named = {number for one in self.subjects.values() for number in (one.ingress, one.egress)}
        wanted = {number for number, _ in self._scopes_wanted()}
        for number in [number for number in self._held if number not in named and number not in wanted]:
            yield self._forget(number)
        for number in [number for number, users in self._users.items() if not users and number not in self._held]:
            del self._users[number]
            self._by_scope.pop(self._numbers.pop(number))

    def _release(self) -> None:
        """Selectors that no scope names."""
        used = {selector for held in self._held.values() for selector in held.scope.selectors}
        used.update(selector for number, scope in self._scopes_wanted() for selector in scope.selectors)
        self.selection.release([selector for selector in self.selection.in_use if selector not in used])

    def _forget(self, number: int) -> Clear:
        """A scope leaves the maps."""
        held = self._held.pop(number)
        self._taken = self._taken.plus(Sizes(*(-size for size in held.sizes)))
        peers = list(fixed_peers(number, held.scope))
        peers += [
            ScopePeerKey(scope=number, kind=PeerMatch.SELECTOR_SET, peer=name)
            for name, one in self._sets.items()
            if held.of(one.mask)
        ]
        ports, rules = tuple(port_entries(number, held.scope)), tuple(rule_entries(number, held.scope))
        self.changed += len(peers) + len(ports) + len(rules)
        return Clear(rules=rules, ports=ports, peers=tuple(peers))

    def _clear_sets(self) -> Steps:
        """Selector sets that no identity has."""
        for number in [number for number, one in self._sets.items() if not one.users]:
            one = self._sets.pop(number)
            entries = self._peers_of_set(number, one.mask)
            for key in entries:
                self._grow(key.scope, Sizes(-1))
            if entries:
                yield Clear(peers=tuple(entries))
        held = 0
        for one in self._sets.values():
            held |= one.mask
        self.selection.reuse(held)

    # --- what the maps should hold, for whoever compares ---

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._unsettled or self.selection.dirty)

    @property
    def taken(self) -> Sizes:
        """Entries in the maps of scopes."""
        return self._taken

    @property
    def kept(self) -> set[int]:
        """Scopes of an earlier life that subjects still name: what they say is not known here, and stays."""
        named = {number for one in self.subjects.values() for number in (one.ingress, one.egress)}
        return named - self._held.keys() - {0}

    def peer(self, key: ScopePeerKey) -> ScopeBits | None:
        """What ``am_scope_peer`` should say."""
        held = self._held.get(key.scope)
        if held is None:
            return None
        match key.kind:
            case PeerMatch.SELECTOR_SET:
                one = self._sets.get(key.peer)
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
        held = self._held.get(key.scope)
        port = PortMatch(key.protocol, key.port, max(0, key.prefixlen - SCOPE_FIXED_BITS - 8))
        bits = held.scope.ports.get(port, 0) if held is not None else 0
        return ScopeBits(bits=bits) if bits else None

    def rule(self, key: ScopeRuleKey) -> ScopeRule | None:
        """What ``am_scope_rule`` should say."""
        held = self._held.get(key.scope)
        return rule_entry(held.scope, key.index) if held is not None else None

    def entries(self) -> Iterator[Fill]:
        """All that the maps of scopes should hold, scope by scope."""
        for number, held in list(self._held.items()):
            peers = fixed_peers(number, held.scope)
            for name, one in self._sets.items():
                found = held.of(one.mask)
                if found:
                    peers[ScopePeerKey(scope=number, kind=PeerMatch.SELECTOR_SET, peer=name)] = ScopeBits(bits=found)
            yield Fill(peers=peers, ports=port_entries(number, held.scope), rules=rule_entries(number, held.scope))


def _content(scope: Scope | None) -> bytes:
    return scope.content if scope is not None else b""


def _says(subject: Subject) -> tuple[int, int, bool, bool]:
    """All but the revision."""
    return subject.ingress, subject.egress, subject.ingress_isolated, subject.egress_isolated


def cidrs_of(prefixes: Iterable[CidrSet]) -> dict[PrefixKey, CidrNumber]:
    """``am_cidrs`` for prefixes of a partition; those in no policy CIDR have no entry."""
    return {PrefixKey.of(entry.prefix): CidrNumber(number=entry.number) for entry in prefixes if entry.number}
