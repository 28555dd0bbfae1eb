"""A bell between loops of one agent: whoever waits hears what has changed since it last listened.

Owns nothing but cursors (those of the chassis' views, so a loop listens to both alike). Promises: a ring is never lost
and never queued twice.
"""

from __future__ import annotations

from chassis.view import Cursor


class Bell:
    """Rung by one part, heard by any number of others."""

    def __init__(self) -> None:
        self._cursors: list[Cursor] = []

    def cursor(self) -> Cursor:
        """A new listener, which hears everything from now on."""
        cursor = Cursor()
        self._cursors.append(cursor)
        return cursor

    def ring(self, key: str = "") -> None:
        """Something changed."""
        for cursor in self._cursors:
            cursor.mark(key)
