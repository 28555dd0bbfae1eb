"""What the policy maps hold, and the steps of every change to them.

Owns ``am_subjects``, ``am_selected`` and the three maps of scopes, as values: :meth:`PolicyMaps.settle` gives the
steps, whoever takes them says whether they fitted. Promises:

* A change costs what it changes: the maps are not read; what they hold is known here. Of scopes and sets that no event
  is about none is looked at (``visits`` counts those that are).
* Entries of scopes and of selector sets never change their value (their names are hashes of their content), so a change
  is: entries that nobody names yet are added; then a subject (both directions at once) or an identity flips to them in
  one update; then the generation is raised; then what nobody names any more goes. No state in between allows more than
  both ends.
* The generation is raised when a subject's policy has changed or an identity has lost a selector. What only gains needs
  none: a flow that is denied has no entry, and one that was revoked is judged again with each packet.
* Room is asked for before it is spent, so that maps can become larger. What does not fit all the same hurts the newest
  of the largest tenant: these subjects become isolated without a rule in the direction concerned, these identities
  match nothing. Removals never wait for additions, and nobody keeps a right because the new state has no room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice

from proto.policy import CompiledPolicy, Direction, SelectorPeer
from services.dataplane.core.datapath.policy_layout import (
    IdentityKey,
    SelectorSet,
    Subject,
    SubjectKey,
)
from services.dataplane.core.policy.cidr_maps import namespace_hash
from services.dataplane.core.policy.held_scopes import HeldScopes
from services.dataplane.core.policy.history import number_of
from services.dataplane.core.policy.scope_uses import ScopeUses
from services.dataplane.core.policy.scopes import Scope, Wanted, scope_of
from services.dataplane.core.policy.selected_slots import SelectedSlots
from services.dataplane.core.policy.selection import Selection
from services.dataplane.core.policy.steps import (
    NOTHING,
    ROOMS,
    Bump,
    Clear,
    Demand,
    Fill,
    Flip,
    MakeRoom,
    Rooms,
    Select,
    Side,
    Sizes,
    Steps,
    refusals,
)

SLICE = 500
"""Identities that get their sets before others have their turn."""


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
        self.held = HeldScopes()
        """As the maps of scopes hold them."""
        self._slots = SelectedSlots()
        self._loose: set[SelectorPeer] = set()
        self._uses = ScopeUses()
        self.visits = 0
        """Scopes that were looked at since the start."""
        self._unsettled: dict[int, None] = {}

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
        wanted = Wanted(policy, namespace, scopes, number_of(policy), why)
        self.wanted[identity] = wanted
        self._use(identity, scopes)
        self._unsettled[identity] = None
        return wanted

    def wants(self, policy: CompiledPolicy) -> bool:
        """Whether this very policy is wanted already."""
        known = self.wanted.get(policy.identity)
        return known is not None and known.policy is policy

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
        self._uses.adopt(subjects.values())
        self._uses.unnamed.update(dict.fromkeys(self.held.scopes))
        self._unsettled.update({identity: None for identity in subjects if identity not in keep})

    def _use(self, identity: int, scopes: tuple[Scope | None, Scope | None]) -> None:
        for direction, scope in zip(Direction, scopes, strict=True):
            self._uses.want((identity, direction), scope, self.held.scopes)

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
        if self.selection.has_retired:
            self.selection.reuse(self.held.sets_in_use())

    def _scopes_missing(self) -> Iterator[tuple[int, Scope]]:
        """Scopes that are wanted and not in the maps."""
        for number in list(self._uses.missing):
            self.visits += 1
            if number not in self.held.scopes and self._is_wanted(number):
                identity, direction = next(iter(self._uses.users(number)))
                scope = self.wanted[identity].scopes[direction]
                assert scope is not None
                yield number, scope

    def _index(self) -> Steps:
        missing = {
            selector: None
            for _, scope in self._scopes_missing()
            for selector in scope.selectors
            if not self.selection.has(selector)
        }
        for selector in missing:
            self._loose.add(selector)
            for _ in self.selection.index(selector):
                yield None
            yield None

    def _select(self, *, tidying: bool = False) -> Steps:
        """Identities get the sets that match them now; ``tidying``: only selectors that nobody uses have gone."""
        while dirty := list(islice(self.selection.dirty, SLICE)):
            if not tidying:
                yield from self._ask_for_sets(dirty)
            yield from self._select_some(dirty, tidying=tidying)
            yield None

    def _ask_for_sets(self, identities: list[int]) -> Steps:
        found = {identity: mask for identity in identities if (mask := self.selection.set_of(identity))}
        fresh = sum(identity not in self.selected for identity in found)
        masks = set(found.values())
        if self._asks(Sizes(len(masks) * len(self.held.scopes)), fresh).is_crowded(self.rooms):  # at the very most
            numbers = {self.held.set_number(self.selection.content(mask)): mask for mask in masks}
            peers = sum(len(self.held.new_peers_of_set(number, mask)) for number, mask in numbers.items())
            yield from self._ask(Sizes(peers), fresh)

    def _select_some(self, identities: list[int], *, tidying: bool) -> Steps:
        for identity in identities:
            self.selection.dirty.pop(identity, None)
        masks = {identity: self.selection.set_of(identity) for identity in identities}
        numbers = {mask: self.held.set_number(self.selection.content(mask)) for mask in set(masks.values()) if mask}
        yield from self._fill_sets({numbers[mask]: mask for mask in numbers}, tidying=tidying)
        yield from self._flip_identities(masks, {mask: n for mask, n in numbers.items() if n in self.held.sets})

    def _fill_sets(self, sets: Mapping[int, int], *, tidying: bool) -> Steps:
        """Brings selector sets into the maps of scopes; those that do not fit stay out."""
        for number, mask in sets.items():
            known = self.held.sets.get(number)
            if known is not None and known.mask == mask:
                continue
            entries = self.held.new_peers_of_set(number, mask)
            if not self._fits(Sizes(len(entries))) and not tidying:
                yield from self._make_room({key.scope: Sizes(1) for key in entries})
                entries = self.held.new_peers_of_set(number, mask)
            if not self._fits(Sizes(len(entries))):
                continue
            if entries and not (yield Fill(peers=entries)):
                yield Clear(peers=tuple(entries))
                continue
            self.held.put_set(number, self.selection.content(mask), mask, entries)
            self.changed += len(entries)

    def _fits(self, more: Sizes) -> bool:
        return self.held.taken.plus(more).within(self.rooms.scopes)

    def _flip_identities(self, masks: Mapping[int, int], numbers: Mapping[int, int]) -> Steps:
        removes: dict[int, None] = {}
        upserts: dict[int, int] = {}
        lost = False
        in_force, denies = self.held.in_force()
        for identity, mask in masks.items():
            number, before = numbers.get(mask, 0), self.selected.get(identity, 0)
            old = self.held.sets[before].mask if before else 0
            if not mask:
                self.unselected.pop(identity, None)
            elif not number:
                self.unselected[identity] = None
                if before and not (old ^ mask) & in_force:
                    continue  # as good as what has no room
            if number == before:
                continue
            new = mask if number else 0
            lost = lost or bool((old & ~new | (new & ~old if denies else 0)) & in_force)
            if number:
                upserts[identity] = number
                self.unselected.pop(identity, None)
            else:
                removes[identity] = None
        for identity in self._givers(removes, upserts):
            upserts.pop(identity, None)
            self.unselected[identity] = None
            if before := self.selected.get(identity, 0):
                removes[identity] = None
                lost = lost or bool(self.held.sets[before].mask & in_force)
        if removes or upserts:
            yield from self._flip_sets(removes, upserts)
        if lost:
            yield Bump()

    def _givers(self, removes: Mapping[int, None], upserts: Mapping[int, int]) -> list[int]:
        """Who gives a place in ``am_selected``, or gets none."""
        fresh = {identity: self._namespace(identity) for identity in upserts if identity not in self.selected}
        return self._slots.givers(fresh, removes, len(self.selected) - self.rooms.selected)

    def _namespace(self, identity: int) -> str:
        record = self.selection.records.get(identity)
        return record.namespace if record is not None else ""

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
                self.held.leave_set(before)
            if before and identity not in upserts:
                self._slots.leave(identity)
        for identity, number in upserts.items():
            self.selected[identity] = number
            self._slots.enter(identity, self._namespace(identity))
            self.held.enter_set(number)
        self.changed += len(removes) + len(upserts)

    def _fill(self) -> Steps:
        """Scopes that are wanted and not in the maps, the oldest policies first."""
        for number, scope in sorted(self._scopes_missing(), key=lambda one: min(self._age(one[0]))):
            if number not in self.held.scopes and self._is_wanted(number):
                most = len(scope.cidr_sets) + 2 + len(self.held.sets)
                yield from self._ask(Sizes(most, len(scope.ports), len(scope.rules)))
                yield from self._fill_scope(number, scope)
                yield None

    def _age(self, number: int) -> Iterator[tuple[int, int]]:
        return ((self.wanted[side[0]].policy.revision.sequence, side[0]) for side in self._uses.users(number))

    def _fill_scope(self, number: int, scope: Scope) -> Steps:
        if number in self.held.scopes or not self._is_wanted(number):
            return  # another turn has changed what is wanted
        if not all(self.selection.has(selector) for selector in scope.selectors):
            return  # another turn has changed what is wanted
        held, entries = self.held.prepare(number, scope, self.selection)
        sizes = Sizes(len(entries.peers), len(entries.ports), len(entries.rules))
        if not self._fits(sizes):
            yield from self._make_room({number: sizes})
            if not self._is_wanted(number):
                return
        fits = self._fits(sizes)
        if fits and not (yield entries):
            yield Clear(rules=tuple(entries.rules), ports=tuple(entries.ports), peers=tuple(entries.peers))
            fits = False
        if not fits:
            self._refuse(self._uses.users(number), sizes)
            return
        self.held.put(number, held, sizes)
        self._uses.missing.pop(number, None)
        self._uses.unnamed[number] = None
        self.changed += sum(sizes)
        self._unsettled.update({identity: None for identity, _ in self._uses.users(number)})

    def _is_wanted(self, number: int) -> bool:
        return any(side not in self.refused for side in self._uses.users(number))

    # --- room ---

    def _asks(self, scopes: Sizes, selected: int) -> MakeRoom:
        return MakeRoom(scopes=self.held.taken.plus(scopes), selected=len(self.selected) + selected)

    def _ask(self, scopes: Sizes, selected: int = 0) -> Steps:
        """Larger maps are asked for before so many entries more find no room."""
        asked = self._asks(scopes, selected)
        if asked.is_crowded(self.rooms):
            yield asked

    @property
    def asked(self) -> MakeRoom:
        """Entries that all ask for, also those that are refused."""
        refused: dict[int, Sizes] = {self._uses.scope_of[side]: sizes for side, sizes in self.refused.items()}
        more = NOTHING
        for number, sizes in refused.items():
            if number not in self.held.scopes:
                more = more.plus(sizes)
        return self._asks(more, sum(identity not in self.selected for identity in self.unselected))

    def without(self) -> Counter[str]:
        """How many identities of each namespace match nothing here, since there is no room for them."""
        return Counter(self._namespace(identity) for identity in self.unselected if identity in self.selection.records)

    def _make_room(self, more: Mapping[int, Sizes]) -> Steps:
        """Room for so many entries more of these scopes, at the cost of the newest of the largest tenant."""
        sizes = {number: held.sizes for number, held in self.held.scopes.items()}
        for number, by in more.items():
            sizes[number] = sizes.get(number, Sizes()).plus(by)
        refused = refusals(self._demands(sizes), self.rooms.scopes)
        for side in refused:
            if side not in self.refused:
                self._refuse([side], sizes[self._uses.scope_of[side]])
        # Old scopes of those that wait for their new ones are no reason to refuse anybody: they go before.
        yield from self._flip(final=True)
        yield from self._clear()  # not the selectors: whoever asks for room goes by them

    def _demands(self, sizes: Mapping[int, Sizes]) -> list[Demand]:
        return [
            Demand(side, self.wanted[side[0]].namespace, self.wanted[side[0]].policy.revision.sequence, number, size)
            for number, size in sizes.items()
            for side in self._uses.users(number)
            if side not in self.refused
        ]

    def _refuse(self, sides: Iterable[Side], sizes: Sizes) -> None:
        for side in sides:
            self.refused[side] = sizes
            self._unsettled[side[0]] = None
            self._uses.unnamed[self._uses.scope_of[side]] = None

    def admit_again(self) -> None:
        """Gives those who were refused another chance, if there may be room now: before a pass that is not in haste."""
        sizes = {number: held.sizes for number, held in self.held.scopes.items()}
        back, self.refused = self.refused, {}
        for side, size in back.items():
            sizes.setdefault(self._uses.scope_of[side], size)
        refused = refusals(self._demands(sizes), self.rooms.scopes)
        self.refused = {side: sizes[self._uses.scope_of[side]] for side in refused}
        self._uses.unnamed.update({self._uses.scope_of[side]: None for side in refused})
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
            number = self._uses.scope_of[identity, direction]
            if (identity, direction) not in self.refused and number in self.held.scopes:
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
            policy=wanted.number,
            namespace=namespace_hash(wanted.namespace),
        )

    def _flip(self, *, final: bool) -> Steps:
        """Subjects get their policies. ``final``: those whose scopes are not in the maps do without."""
        removes, upserts, differs = [], {}, False
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
                differs = differs or before is None or _says(before) != _says(subject)
        if not removes and not upserts:
            return
        yield Flip(removes=tuple(removes), upserts=upserts)
        for key in removes:
            self._name(key.identity, None)
        for key, subject in upserts.items():
            self._name(key.identity, subject)
        self.changed += len(removes) + len(upserts)
        if removes or differs:
            yield Bump()

    def _name(self, identity: int, subject: Subject | None) -> None:
        """A subject's entry says something else now."""
        self._uses.name(self.subjects.pop(identity, None), subject)
        if subject is not None:
            self.subjects[identity] = subject

    # --- what nobody names ---

    def _clear(self) -> Steps:
        """Scopes that no subject names."""
        uses = self._uses
        while uses.unnamed:  # others may have their turn at each step, and add to it
            number, _ = uses.unnamed.popitem()
            self.visits += 1
            if number in self.held.scopes and not uses.is_named(number) and not self._is_wanted(number):
                self._loose.update(self.held.scopes[number].scope.selectors)
                gone = self.held.drop(number)
                if uses.users(number):
                    uses.missing[number] = None  # wanted again when it is not refused any more
                self.changed += len(gone.peers) + len(gone.ports) + len(gone.rules)
                yield gone
            uses.forget(number, self.held.scopes)

    def _release(self) -> None:
        """Selectors that no scope names."""
        loose, self._loose = self._loose, set()
        if loose:
            for _, scope in self._scopes_missing():
                self._loose.update(loose.intersection(scope.selectors))
        self.selection.release([one for one in loose if one not in self._loose and not self.held.uses[one]])

    def _clear_sets(self) -> Steps:
        """Selector sets that no identity has."""
        for gone in list(self.held.drop_unused_sets()):
            self.changed += len(gone.peers)
            yield gone

    # --- what the maps should hold, for whoever compares ---

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._unsettled or self.selection.dirty)

    @property
    def kept(self) -> set[int]:
        """Scopes of an earlier life that subjects still name: what they say is not known here, and stays."""
        named = {number for one in self.subjects.values() for number in (one.ingress, one.egress)}
        return named - self.held.scopes.keys() - {0}


def _content(scope: Scope | None) -> bytes:
    return scope.content if scope is not None else b""


def _says(subject: Subject) -> tuple[int, int, bool, bool, bytes]:
    """All that decides: which policy it is changes no right."""
    isolated = subject.ingress_isolated, subject.egress_isolated
    return (subject.ingress, subject.egress, *isolated, subject.namespace)
