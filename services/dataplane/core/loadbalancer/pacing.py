"""Pacing of Service updates: a namespace whose endpoints change much waits between its updates.

Owns the bound of what one tenant's changing endpoints cost a node: after a turn of many entries a namespace waits
:data:`REST` times as long as the turn took by estimate, so it has a part of one processor at most. A turn of few is
free. Nobody waits for another. What waits is not lost: it is reckoned at the next turn, from what is there then. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

PER_ENTRY = 15e-6
"""Seconds that an entry takes: its endpoint chosen, its slot found, its bytes written."""
REST = 4
LITTLE = 2000
"""Entries of a turn that costs nothing."""

Name = tuple[str, str]
"""Namespace and name of a Service."""


class Pacing:
    """When each namespace may have its next turn."""

    def __init__(self) -> None:
        self._not_before: dict[str, float] = {}

    def take(self, work: Mapping[Name, int], now: float) -> tuple[frozenset[Name], frozenset[Name]]:
        """Of Services with so many entries to reckon: those that are reckoned now, and those that wait."""
        self._not_before = {namespace: at for namespace, at in self._not_before.items() if at > now}
        now_due = frozenset(name for name in work if name[0] not in self._not_before)
        entries: dict[str, int] = defaultdict(int)
        for name in now_due:
            entries[name[0]] += work[name]
        for namespace, amount in entries.items():
            if amount > LITTLE:
                self._not_before[namespace] = now + amount * PER_ENTRY * REST
        return now_due, frozenset(work) - now_due

    def wait(self, later: Iterable[Name], now: float) -> float:
        """Seconds until the first of these may be reckoned; 0 without any."""
        return min((max(self._not_before.get(name[0], now) - now, 0.01) for name in later), default=0.0)
