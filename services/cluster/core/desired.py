"""The desired content of ``objects``: by key, of all kinds, as far as the caches say it.

Promises that a changed name touches each key that its object has or had: the one that it has now, the one that it had
here, and, where the object could never be read here, whichever the bucket holds of another object of that name from
before this incarnation. That last key is not known, so the whole kind is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from proto.objects import KubernetesObject
from services.cluster.core.cache import Known, has_key
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
        self._unread: dict[type, dict[Name, str]] = {}

    def unread(self, kind: type) -> Mapping[Name, str]:
        """Names that could never be read here, with their uid, as of when ``values`` is."""
        return self._unread.get(kind, {})

    def take_one(self, kind: type, name: Name, known: Known | None) -> Touched:
        """Take in one object of a cache, as it is known now."""
        keys, unreadable = set[str](), self._unread.setdefault(kind, {})
        value = (known.value or known.stand_in) if known is not None else None
        before, unread = self._key_of.pop((kind, name), None), unreadable.pop(name, None)
        if known is not None and known.value is None:
            unreadable[name] = known.uid
        if before is not None:
            self.values.pop(before, None)
            keys.add(before)
        if value is not None and has_key(value):
            key = self._key(value)
            self.values[key] = value
            self._key_of[kind, name] = key
            keys.add(key)
        return Touched(keys, unread is not None and (known is None or known.uid != unread))
