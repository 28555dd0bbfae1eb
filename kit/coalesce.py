"""A set of dirty keys that never grows beyond a bound: past it "everything" is dirty, which is always a true answer."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Generic[K]):
    """What was dirty. With ``everything``, ``keys`` is empty and all keys must be looked at."""

    keys: frozenset[K]
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.keys)


class DirtySet(Generic[K]):
    """Marks coalesce by key; :meth:`take` gives them all at once and begins anew."""

    def __init__(self, bound: int) -> None:
        if bound < 1:
            raise ValueError(f"a dirty set must hold at least one key, not {bound}")
        self._bound = bound
        self._keys: set[K] = set()
        self._everything = False

    def __bool__(self) -> bool:
        return self._everything or bool(self._keys)

    def mark(self, keys: Iterable[K]) -> None:
        """These changed."""
        if self._everything:
            return
        self._keys.update(keys)
        if len(self._keys) > self._bound:
            self.mark_everything()

    def mark_everything(self) -> None:
        """Anything may have changed."""
        self._everything = True
        self._keys.clear()

    def take(self, most: int | None = None) -> Batch[K]:
        """All that is dirty, or any ``most`` keys of it; what is taken is clean."""
        if self._everything:
            self._everything = False
            return Batch(keys=frozenset(), everything=True)
        if most is None or most >= len(self._keys):
            taken = frozenset(self._keys)
            self._keys.clear()
            return Batch(keys=taken)
        chosen = frozenset(key for key, _ in zip(self._keys, range(most), strict=False))
        self._keys -= chosen
        return Batch(keys=chosen)

    def give_back(self, batch: Batch[K]) -> None:
        """A batch that could not be worked off is dirty again."""
        if batch.everything:
            self.mark_everything()
        else:
            self.mark(batch.keys)
