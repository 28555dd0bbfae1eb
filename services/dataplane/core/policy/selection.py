"""Which selectors in use on this node match which identities: kept while both come and go.

Owns the membership of the selectors that some scope in the maps names. An identity's matches are one set, and
identities with equal sets share it (``am_selected``), so what a rule costs grows with the ways in which identities
differ for this node's policies, not with their number. Promises: a record that comes, changes or goes costs the
selectors in use, those of other namespaces not counted; a new selector costs one pass over the identities that it may
match, in slices, and one that goes those that it matches. An identity without a record matches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from kit.selectors import Candidate
from proto.identity import IdentityRecord
from proto.policy import SelectorPeer

SLICE = 1000
"""Identities that are asked before others have their turn: a few milliseconds."""

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class Selection:
    """Sets of selectors are masks here: each selector in use has a bit while it is in use."""

    def __init__(self) -> None:
        self.records: dict[int, IdentityRecord] = {}
        self._of_namespace: dict[str, dict[int, None]] = {}
        self._slots: dict[SelectorPeer, int] = {}
        self._selectors: dict[int, SelectorPeer] = {}
        self._asked: dict[str, dict[SelectorPeer, None]] = {}
        self._free: list[int] = []
        self._retired: set[int] = set()
        self._ready = 0
        self._masks: dict[int, int] = {}
        self._sharing: dict[int, set[int]] = {}
        """Identities by the mask that they have."""
        self._naming: dict[int, set[int]] = {}
        """Masks by the slots of the selectors in them."""
        self.visits = 0
        """Identities that :meth:`release` has looked at since the start."""
        self.dirty: dict[int, None] = {}
        """Identities whose set may have changed; whoever has seen to one takes it out."""

    def learn(self, record: IdentityRecord) -> None:
        """A record has come, or says something else."""
        identity = record.identity
        before = self.records.get(identity)
        if before is record or before == record:
            return
        if before is not None and before.namespace != record.namespace:
            self._of_namespace[before.namespace].pop(identity, None)
        self.records[identity] = record
        self._of_namespace.setdefault(record.namespace, {})[identity] = None
        candidate, mask = Candidate.of(record), 0
        for namespace in (record.namespace, ""):
            for selector in self._asked.get(namespace, ()):
                if candidate.is_in(selector):
                    mask |= 1 << self._slots[selector]
        self._set(identity, mask)

    def forget(self, identity: int) -> None:
        """Nobody has the identity any more."""
        record = self.records.pop(identity, None)
        if record is None:
            return
        mine = self._of_namespace[record.namespace]
        mine.pop(identity, None)
        if not mine:
            del self._of_namespace[record.namespace]
        self._set(identity, 0)

    def _set(self, identity: int, mask: int) -> None:
        before = self._masks.get(identity, 0)
        if before == mask:
            return
        if mask:
            self._masks[identity] = mask
            self._share(identity, mask)
        else:
            del self._masks[identity]
        if before:
            self._part(identity, before)
        self.dirty[identity] = None

    def _share(self, identity: int, mask: int) -> None:
        if mask not in self._sharing:
            self._sharing[mask] = set()
            for slot in _slots_of(mask):
                self._naming.setdefault(slot, set()).add(mask)
        self._sharing[mask].add(identity)

    def _part(self, identity: int, mask: int) -> None:
        self._sharing[mask].discard(identity)
        if self._sharing[mask]:
            return
        del self._sharing[mask]
        for slot in _slots_of(mask):
            self._naming[slot].discard(mask)
            if not self._naming[slot]:
                del self._naming[slot]

    def has(self, selector: SelectorPeer) -> bool:
        """Whether every identity has been asked."""
        slot = self._slots.get(selector)
        return slot is not None and bool(self._ready >> slot & 1)

    def bit(self, selector: SelectorPeer) -> int:
        """The selector's bit in a mask."""
        return 1 << self._slots[selector]

    def index(self, selector: SelectorPeer) -> Iterator[None]:
        """Brings a selector into use; stops between slices. Until it is through, no mask shows it."""
        slot = self._slots.get(selector)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._slots) + len(self._retired)
            self._slots[selector], self._selectors[slot] = slot, selector
            self._asked.setdefault(selector.namespace, {})[selector] = None
        bit = 1 << slot
        asked = list(self._of_namespace.get(selector.namespace, ()) if selector.namespace else self.records)
        for start in range(0, len(asked), SLICE):
            if start:
                yield
                if self._slots.get(selector) != slot:  # given up meanwhile
                    return
            for identity in asked[start : start + SLICE]:
                record = self.records.get(identity)
                if record is not None and Candidate.of(record).is_in(selector):
                    self._set(identity, self._masks.get(identity, 0) | bit)
        if not self._ready & bit:
            self._ready |= bit
            for identity in asked:
                if self._masks.get(identity, 0) & bit:
                    self.dirty[identity] = None

    def release(self, selectors: Iterable[SelectorPeer]) -> None:
        """No scope names them any more. Their bits are free for others after :meth:`reuse`."""
        gone = 0
        masks: set[int] = set()
        for selector in selectors:
            slot = self._slots.pop(selector)
            masks |= self._naming.get(slot, set())
            del self._selectors[slot]
            mine = self._asked[selector.namespace]
            del mine[selector]
            if not mine:
                del self._asked[selector.namespace]
            self._retired.add(slot)
            gone |= 1 << slot
        self._ready &= ~gone
        for mask in masks:
            for identity in tuple(self._sharing[mask]):
                self.visits += 1
                self._set(identity, mask & ~gone)

    @property
    def has_retired(self) -> bool:
        """Whether :meth:`reuse` may free a bit."""
        return bool(self._retired)

    def reuse(self, held: int) -> None:
        """Bits of selectors that were released may stand for others, but for those in ``held``."""
        free = [slot for slot in self._retired if not held >> slot & 1]
        self._free += free
        self._retired.difference_update(free)

    def set_of(self, identity: int) -> int:
        """Selectors that match an identity, as a mask."""
        return self._masks.get(identity, 0) & self._ready

    def content(self, mask: int) -> bytes:
        """What a set says, whatever the bits are today: equal for equal sets of selectors."""
        return _encode(sorted(_encode(self._selectors[slot]) for slot in _slots_of(mask)))

    @property
    def in_use(self) -> tuple[SelectorPeer, ...]:
        """Selectors that identities are asked for."""
        return tuple(self._slots)


def _slots_of(mask: int) -> Iterator[int]:
    """Positions of the bits of a mask."""
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1
