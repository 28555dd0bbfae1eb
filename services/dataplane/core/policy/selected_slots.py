"""Slots of ``am_selected`` by namespace; where it has no room, the newest of the largest namespace gives one.

Pure bookkeeping of identities by namespace, in the order in which they came. A removal frees its place before anybody
is asked to give one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain

from services.dataplane.core.datapath.shares import newest_of_the_largest


class SelectedSlots:
    """Identities that have an entry."""

    def __init__(self) -> None:
        self._slots: dict[str, dict[int, None]] = {}
        self._whose: dict[int, str] = {}

    def enter(self, identity: int, namespace: str) -> None:
        """An identity has an entry now; one that had it keeps its place."""
        if identity not in self._whose:
            self._whose[identity] = namespace
            self._slots.setdefault(namespace, {})[identity] = None

    def leave(self, identity: int) -> None:
        """It has none any more."""
        namespace = self._whose.pop(identity)
        del self._slots[namespace][identity]
        if not self._slots[namespace]:
            del self._slots[namespace]

    def givers(self, fresh: Mapping[int, str], removes: Mapping[int, None], over: int) -> list[int]:
        """Who goes without an entry when these come (with their namespaces) and those go. ``over``: entries that there
        are, less those that there is room for.
        """
        short = over - len(removes) + len(fresh)
        if short <= 0 or not fresh:
            return []
        coming: dict[str, list[int]] = {}
        for identity, namespace in fresh.items():
            coming.setdefault(namespace, []).append(identity)
        sizes = Counter({namespace: len(slots) for namespace, slots in self._slots.items()})
        sizes.update({namespace: len(identities) for namespace, identities in coming.items()})
        sizes.subtract(self._whose[identity] for identity in removes)

        def newest_first(namespace: str) -> Iterator[int]:
            slots = self._slots.get(namespace, {})
            return chain(reversed(coming.get(namespace, [])), (one for one in reversed(slots) if one not in removes))

        return newest_of_the_largest(sizes, newest_first, short)
