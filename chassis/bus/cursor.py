"""A cursor over a mirror: the coalesced set of keys that changed since its reader took them last, and a wait.

Bounded by the number of keys there are. Belongs to one loop: nothing here is safe to use from another thread.
"""

from __future__ import annotations

import asyncio


class Cursor:
    """One reader's set of keys that changed since it looked last; keys of markers are among them."""

    def __init__(self, *prefixes: str) -> None:
        """``prefixes`` of the keys that this reader has a use for; without any, all. It is woken by no other."""
        self._prefixes = prefixes
        self._dirty: set[str] = set()
        self._event = asyncio.Event()
        self._also: asyncio.Event | None = None

    def wakes(self, event: asyncio.Event) -> None:
        """Every mark also sets this event: one that a reader of several cursors waits for. Replaces an earlier one."""
        self._also = event
        if self.pending:
            event.set()

    @property
    def pending(self) -> bool:
        """True when :meth:`changed` would return at once."""
        return self._event.is_set()

    async def changed(self) -> frozenset[str]:
        """Wait until something changed (``synced`` included, then the set may be empty); clears the set."""
        await self._event.wait()
        return self.take()

    async def wait(self) -> None:
        """Wait as :meth:`changed` does, but take nothing."""
        await self._event.wait()

    def take(self) -> frozenset[str]:
        """What changed, without waiting; clears the set."""
        taken = frozenset(self._dirty)
        self._dirty.clear()
        self._event.clear()
        return taken

    def mark(self, *keys: str) -> None:
        """Make keys dirty (again); without any key only wake the reader."""
        if keys and self._prefixes:
            keys = tuple(key for key in keys if key.startswith(self._prefixes))
            if not keys:
                return
        self._dirty.update(keys)
        self._event.set()
        if self._also is not None:
            self._also.set()
