"""Deduplication of faults: each is reported once while it lasts, and again when it returns.

Owns the rule for every part that tells a person or an object what is wrong. A fault that came is told at once; it is
told again when it was gone in between, and, where ``again`` says so, while it lasts; none is told more often than each
``every`` seconds, however it comes and goes. What others can make grow is bounded: past ``most`` faults a new one is
told when there is room again. Times are seconds of any clock that does not go back, given by the caller.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Once(Generic[K]):
    """The faults of one part, by what makes two of them the same."""

    def __init__(self, *, every: float = 60.0, again: float = inf, most: int = 1024) -> None:
        self._every = every
        self._again = again
        self._most = most
        self._at: dict[K, float] = {}
        self._lasting: set[K] = set()

    def __len__(self) -> int:
        """Faults that are remembered, at most ``most``."""
        return len(self._at)

    def due(self, present: Iterable[K], now: float) -> tuple[K, ...]:
        """Those to tell now of ``present``, which are all faults that there are; in their order.

        Whoever cannot tell all of them at once says which it told by :meth:`reported`; :meth:`take` does both.
        """
        found = dict.fromkeys(present)
        self._lasting &= found.keys()
        self._forget(now, found)
        return tuple(key for key in found if now - self._at.get(key, -inf) >= self._wait(key))

    def reported(self, key: K, now: float) -> bool:
        """Notes that a fault is being told; False when it has no room, and then it must not be."""
        if not self._note(key, now):
            return False
        self._lasting.add(key)
        return True

    def take(self, present: Iterable[K], now: float) -> tuple[K, ...]:
        """What :meth:`due` says, noted as told."""
        return tuple(key for key in self.due(present, now) if self.reported(key, now))

    def happens(self, key: K, now: float) -> bool:
        """Whether to tell of a fault that happens and has no end that anybody sees; noted as told when it is."""
        if now - self._at.get(key, -inf) < self._every:
            return False
        self._forget(now, ())
        return self._note(key, now)

    def lasts(self, key: K) -> bool:
        """Whether a fault has been told and was there at every look since."""
        return key in self._lasting

    def _note(self, key: K, now: float) -> bool:
        if key not in self._at and len(self._at) >= self._most:
            return False
        self._at[key] = now
        return True

    def _wait(self, key: K) -> float:
        return max(self._again, self._every) if key in self._lasting else self._every

    def _forget(self, now: float, but: Iterable[K]) -> None:
        kept = frozenset(but)
        self._at = {key: at for key, at in self._at.items() if key in kept or now - at < self._every}
