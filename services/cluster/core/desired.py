"""The desired content of ``objects``: by key, of all kinds, as far as the caches say it.

Promises that a changed name touches each key that its object has or had: the one that it has now, the one that it had
here, and, where the object could never be read here, whichever the bucket holds of another object of that name from
before this incarnation. That last key is not known, so the whole kind is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from proto.objects import KubernetesObject
from services.cluster.core.cache import Cache, has_key
from services.cluster.core.diff import Name


@dataclass(frozen=True, slots=True)
class Touched:
    """What is to be compared with the bucket."""

    keys: set[str] = field(default_factory=set)
    whole: bool = False
    """All keys of the kind."""


class Desired:
    """``values``: objects by key, stand-ins included. ``key``: the key of an object in the bucket."""

    def __init__(self, key: Callable[[KubernetesObject], str]) -> None:
        self._key = key
        self.values: dict[str, KubernetesObject] = {}
        self._key_of: dict[tuple[type, Name], str] = {}
        self._unread: dict[tuple[type, Name], str] = {}
        """Uids of the objects that could never be read here."""

    def take(self, cache: Cache) -> Touched:
        """Take in what changed in a cache."""
        kind, keys, whole = cache.kind.type, set[str](), False
        for name in cache.take_dirty():
            known = cache.known.get(name)
            value = (known.value or known.stand_in) if known is not None else None
            before, unread = self._key_of.pop((kind, name), None), self._unread.pop((kind, name), None)
            whole |= unread is not None and (known is None or known.uid != unread)
            if known is not None and known.value is None:
                self._unread[kind, name] = known.uid
            if before is not None:
                self.values.pop(before, None)
                keys.add(before)
            if value is not None and has_key(value):
                key = self._key(value)
                self.values[key] = value
                self._key_of[kind, name] = key
                keys.add(key)
        return Touched(keys, whole)
