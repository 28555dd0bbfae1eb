"""Entries of an update group's log: what a prefix had and has, and whole tables as such entries.

A whole table is made into entries as they are read, since all of them at once take long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def __init__(self, known: Mapping[Prefix, Paths], owed: dict[Prefix, tuple[Paths, Paths]]) -> None:
        """``known``: what the peer has of each prefix; ``owed``: what it lacks, before and after."""
        super().__init__(known)
        self._owed = owed

    def _entry(self, prefix: Prefix, paths: Paths) -> Entry:
        return prefix, unknown(paths), self._owed[prefix][1] if prefix in self._owed else paths


def unknown(paths: Paths) -> Paths:
    """The paths as those of a peer that is to be sent them again, or to lose them."""
    return tuple(path and Sent(None, path.source) for path in paths)
