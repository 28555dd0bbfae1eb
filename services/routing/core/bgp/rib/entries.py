"""Entries of an update group's log: what a prefix had and has, and whole tables as such entries.

A whole table is made into entries as they are read, since all of them at once take long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from services.routing.core.bgp.values import Attributes, Prefix


@dataclass(frozen=True, slots=True)
class Sent:
    """One path of a prefix, as it is sent."""

    attributes: Attributes | None
    """None: the peer has some, and is to be sent them again."""
    source: str
    """The peer that it was learnt from, which is not sent it."""


Paths = tuple[Sent | None, ...]
"""The paths of a prefix: the number of one, from 1, is its path identifier. None: not for this peer."""
NOTHING: Paths = ()
Entry = tuple[Prefix, Paths, Paths]
"""A prefix that changed, its paths before and after."""


class Everything(Sequence[Entry]):
    """All of a table as it was."""

    def __init__(self, table: Mapping[Prefix, Paths]) -> None:
        self._prefixes = list(table)
        self._paths = list(table.values())

    def __len__(self) -> int:
        return len(self._prefixes)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return list(map(self._entry, self._prefixes[index], self._paths[index]))
        return self._entry(self._prefixes[index], self._paths[index])

    def _entry(self, prefix: Prefix, paths: Paths) -> Entry:
        return prefix, NOTHING, paths


class Again(Everything):
    """All that a peer has, as entries that send it again."""

    def _entry(self, prefix: Prefix, paths: Paths) -> Entry:
        return prefix, unknown(paths), paths


class Folded:
    """Changes that some peers lack, one for each prefix: what it had before the first, and what it has now.

    Peers that lack the same share them until one of them begins to read. Then they are as they are, and what the others
    lack besides is added to a copy.

    Args:
        known: Changes that these ones follow.
    """

    def __init__(self, known: Folded | None = None) -> None:
        self._changes: dict[Prefix, Entry] = dict(known._changes) if known is not None else {}
        self._entries: list[Entry] | None = None

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def is_read(self) -> bool:
        """Nothing more may be added."""
        return self._entries is not None

    def add(self, entries: Iterable[Entry]) -> None:
        """These changes follow; a prefix that came and went meanwhile is none. Raises ValueError when they are read."""
        if self.is_read:
            raise ValueError("Changes that are read take no more: add them to a copy.")
        changes = self._changes
        for entry in entries:
            prefix, _, now = entry
            before = changes.get(prefix)
            if before is None:
                changes[prefix] = entry
            elif before[1] or now:
                changes[prefix] = prefix, before[1], now
            else:
                del changes[prefix]

    def entries(self) -> Sequence[Entry]:
        """All of them, in the order in which the prefixes changed first; the same object for all who ask."""
        if self._entries is None:
            self._entries = list(self._changes.values())
        return self._entries


def unknown(paths: Paths) -> Paths:
    """The paths as those of a peer that is to be sent them again, or to lose them."""
    return tuple(path and Sent(None, path.source) for path in paths)
