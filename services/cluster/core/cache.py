"""The informer cache of one kind: its objects as the API last served them, parsed; the desired state of the mirror.

Owns the rule for what cannot be understood: the object's last good version stays, the fault is kept beside it until the
object is mended or gone; for a policy that never had a good version, one stands in that isolates what it selects, and
encryption that a FelixConfiguration asks for counts beside whatever is wrong with it. A
pod without a node is known, but is nobody's yet and has no key. A cache is ``synced`` once a whole list has come; until
then it says nothing about what is absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from proto.objects import FelixConfiguration, Kind, KubernetesObject, NetworkPolicy, Pod
from services.cluster.core.conditions import KINDS as CONDITIONED
from services.cluster.core.conditions import Condition, shown
from services.cluster.core.diff import Name
from services.cluster.core.felix import encrypting
from services.cluster.core.parse import Malformed, read
from services.cluster.core.policies import closed
from services.cluster.core.unserved import Unserved

BREATH = 32
"""Objects of a whole list that are read without a pause: some 50 µs each."""


class _Identity(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0


class _Identified(msgspec.Struct):
    metadata: _Identity = msgspec.field(default_factory=_Identity)


@dataclass(frozen=True, slots=True)
class Known:
    """One object: its last good version, and the bytes it was read from where somebody asks more.

    Without a ``value`` it cannot be understood, and never could since it is what ``uid`` names.
    """

    uid: str
    value: KubernetesObject | None
    raw: bytes = b""
    stand_in: KubernetesObject | None = None
    """What is mirrored while there never was a good version: for a policy, one that isolates."""
    generation: int = 0
    """``metadata.generation``; 0: the kind has none."""
    conditions: tuple[Condition, ...] = ()
    """Ours, of the kinds that have any."""


class Cache:
    """Objects of one kind. ``keep_raw``: keep the API's own bytes of each object beside it."""

    def __init__(self, kind: Kind, *, keep_raw: bool = False) -> None:
        self.kind = kind
        self.lists = 0
        """Whole lists that have come."""
        self.known: dict[Name, Known] = {}
        self.faults: dict[Name, Malformed] = {}
        self.unserved: dict[Name, tuple[Unserved, ...]] = {}
        """What good objects ask for that is left out; only of those that do."""
        self.with_conditions: set[Name] = set()
        """Objects that have conditions of ours."""
        self._keep_raw = keep_raw
        self._dirty: set[Name] = set()

    @property
    def synced(self) -> bool:
        """A whole list has come: what is not here does not exist."""
        return self.lists > 0

    def replacing(self, raws: Iterable[bytes]) -> Iterator[None]:
        """A whole list has come: what is not in it is gone. Pauses after every :data:`BREATH` objects; nothing else may
        be fed until it is through.
        """
        seen: set[Name] = set()
        for count, raw in enumerate(raws, 1):
            name = self.upsert(raw)
            if name is not None:
                seen.add(name)
            if count % BREATH == 0:
                yield
        for count, name in enumerate((self.known.keys() | self.faults.keys()) - seen, 1):
            self._forget(name)
            if count % BREATH == 0:
                yield
        self.lists += 1

    def upsert(self, raw: bytes) -> Name | None:
        """One object as it is now; its name, or ``None`` when it has none that can be read."""
        identity = _identity(raw)
        if identity is None:
            return None
        name = (identity.namespace, identity.name)
        before = self.known.get(name)
        kept = raw if self._keep_raw else b""
        stand_in: KubernetesObject | None = None
        try:
            value, left_out = read(self.kind, raw)
        except Malformed as fault:
            self.faults[name] = fault
            same = before is not None and before.uid == identity.uid
            value = before.value if before is not None and same else None
            if self.kind.type is FelixConfiguration:
                value = encrypting(value if isinstance(value, FelixConfiguration) else None, raw)
            if value is None:
                self.unserved.pop(name, None)
            stand_in = closed(raw) if value is None and self.kind.type is NetworkPolicy else None
        else:
            self.faults.pop(name, None)
            self.unserved.pop(name, None)
            if left_out:
                self.unserved[name] = left_out
        conditions = shown(raw) if self.kind.type in CONDITIONED else ()
        self.known[name] = Known(identity.uid, value, kept, stand_in, identity.generation, conditions)
        (self.with_conditions.add if conditions else self.with_conditions.discard)(name)
        if before is None or before != self.known[name]:
            self._mark(name)
        return name

    def remove(self, raw: bytes) -> None:
        """One object is gone; ``raw`` is its last version."""
        identity = _identity(raw)
        if identity is not None:
            self._forget((identity.namespace, identity.name))

    def take_dirty(self) -> frozenset[Name]:
        """Names that changed since the last call."""
        dirty, self._dirty = frozenset(self._dirty), set()
        return dirty

    def _forget(self, name: Name) -> None:
        if self.known.pop(name, None) is not None:
            self._mark(name)
        self.faults.pop(name, None)
        self.unserved.pop(name, None)
        self.with_conditions.discard(name)

    def _mark(self, name: Name) -> None:
        self._dirty.add(name)


def has_key(value: KubernetesObject | None) -> bool:
    """Whether the object has a key in the mirror."""
    return value is not None and not (isinstance(value, Pod) and not value.node)


def _identity(raw: bytes) -> _Identity | None:
    try:
        read: Any = msgspec.json.decode(raw, type=_Identified)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return read.metadata if read.metadata.name else None
