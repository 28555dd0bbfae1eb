"""A map that follows what it should hold: written by differences, compared with the kernel from time to time.

Promises: an entry that changed costs one write; what may not go yet, or found no room, is tried again at each pass, and
keeps nothing else from being written or removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

from services.dataplane.core.datapath.wire import Record
from services.dataplane.datapath.maps import Table, TableFull

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)


class FollowedMap(Generic[K, V]):
    """One map."""

    def __init__(self, table: Table[K, V]) -> None:
        self.table = table
        self.actual: dict[K, V] = {}
        """What is in it, as far as is known."""
        self._dirty: set[K] = set()
        self._released: set[K] = set()
        """Entries of this agent's own that are surely over: whoever they were of is known."""
        self.without_room = 0
        """Entries that the map does not take."""

    def compare(self, actual: dict[K, V], wanted: Mapping[K, V]) -> None:
        """The map was read: whatever is not as it should be is written at the next :meth:`write`."""
        self.actual = actual
        self._dirty = {key for key, value in wanted.items() if actual.get(key) != value}
        self._dirty |= actual.keys() - wanted.keys()
        self._released &= self._dirty

    def changed(self, keys: Collection[K], wanted: Mapping[K, V]) -> None:
        """These have become something else, or gone."""
        self._dirty |= set(keys)
        for key in keys:
            if key in wanted:
                self._released.discard(key)
            else:
                self._released.add(key)

    def follow(self, wanted: Mapping[K, V]) -> None:
        """All that is to be in it: of a map so small that it costs nothing to compare."""
        self.changed(
            [key for key in wanted.keys() | self.actual.keys() if wanted.get(key) != self.actual.get(key)], wanted
        )

    def write(self, wanted: Mapping[K, V], may_go: Callable[[], bool]) -> int:
        """Makes the map so; ``may_go`` is asked about entries that nobody wants and whose owner is not known. Returns
        how many entries were written or removed.
        """
        if not self._dirty:
            return 0
        upserts = {key: wanted[key] for key in self._dirty if key in wanted and self.actual.get(key) != wanted[key]}
        late = {key for key in self._dirty if key not in wanted and key in self.actual}
        gone = late & self._released
        if late - gone and may_go():
            gone = late
        left: frozenset[Record] = frozenset()
        try:
            self.table.apply(upserts, gone)
        except TableFull as full:  # all the others are written, and what had to go is gone
            left = full.keys
        self.actual.update({key: value for key, value in upserts.items() if key not in left})
        for key in gone:
            del self.actual[key]
        self.without_room = len(left)
        self._dirty = {key for key in upserts if key in left} | (late - gone)
        self._released &= self._dirty
        return len(upserts) - len(left) + len(gone)
