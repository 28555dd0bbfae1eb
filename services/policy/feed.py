"""The way in: local mirrors of ``objects``, ``rules`` and ``identities``, and what the graph is fed from them.

The graph is given the mirror's present state, never its events: whatever key is dirty is looked up, and a full pass
compares all. A batch and its revision are taken in one breath, so that a revision never promises what was not fed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chassis.bus import Bus, View
from proto import codec
from proto.identity import IdentityRecord, IdentitySet, RelevantKeys
from proto.objects import KIND_OF, KubernetesObject, Namespace, NetworkPolicy, Node, Pod
from proto.policy import CidrPartition, CompiledPolicy, Frontier, Revision
from proto.subjects import IDENTITIES, OBJECTS, RULES

CIDRS_KEY = "_cidrs"
FRONTIER_KEY = "_frontier"
RELEVANT_KEY = "_relevant"

_COMPILED_FROM = tuple(codec.kind_prefix(KIND_OF[kind]) for kind in (Namespace, Pod, NetworkPolicy))
_POLICIES = codec.kind_prefix(KIND_OF[NetworkPolicy])
_EXPLAINED_FROM = codec.kind_prefix(KIND_OF[Node])


@dataclass(frozen=True, slots=True)
class Life:
    """Which life of the two buckets it is that we write to, as our mirrors know it."""

    rules: str
    """Epoch of ``rules``."""
    identities: str
    """Epoch of ``identities``."""
    lists: tuple[int, int]
    """How often each was listed: more than before means that the mirror may be of another life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Changes of ``objects``, all of them up to ``revision`` since the batch before."""

    changes: tuple[tuple[str, KubernetesObject | None], ...]
    revision: Revision
    trace: str
    """Traceparent of one of the changes, a policy's if there is one; empty when none had any."""


class Feed:
    """The three mirrors, read in the words of the core."""

    def __init__(self, bus: Bus) -> None:
        kinds: dict[str, type] = {codec.kind_prefix(KIND_OF[kind]): kind for kind in (Namespace, Pod, NetworkPolicy)}
        kinds[_EXPLAINED_FROM] = Node
        self.objects: View = bus.bucket(OBJECTS).watch(
            kinds, prefixes=tuple(kinds), markers=_COMPILED_FROM, name="objects"
        )
        self.rules: View = bus.bucket(RULES).watch(
            {"": CompiledPolicy, CIDRS_KEY: CidrPartition, FRONTIER_KEY: Frontier}, markers=(), name="rules"
        )
        self.identities: View = bus.bucket(IDENTITIES).watch(
            {"": IdentityRecord, RELEVANT_KEY: RelevantKeys}, markers=(), name="identities"
        )
        self._fed: dict[str, KubernetesObject] = {}

    @property
    def revision(self) -> Revision:
        """How far ``objects`` is known."""
        return Revision(epoch=self.objects.epoch, sequence=self.objects.sequence)

    @property
    def life(self) -> Life:
        """The buckets that we write to, as they are known now."""
        return Life(self.rules.epoch, self.identities.epoch, (self.rules.resyncs, self.identities.resyncs))

    def collect(self, keys: Iterable[str], *, full: bool) -> Batch:
        """What is other than when last collected, among ``keys`` (or all): take it, and put it."""
        looked_at = (self._fed.keys() | self.objects.entries.keys()) if full else set(keys)
        changes: list[tuple[str, KubernetesObject | None]] = []
        trace = ""
        for key in looked_at:
            entry = self.objects.entries.get(key)
            value = None if entry is None else entry.value
            old = self._fed.get(key)
            if value is old or value == old:
                continue
            if value is None:
                del self._fed[key]
            else:
                self._fed[key] = value
            changes.append((key, value))
            if entry is not None and entry.traceparent and (not trace or key.startswith(_POLICIES)):
                trace = entry.traceparent
        return Batch(changes=tuple(changes), revision=self.revision, trace=trace)

    def unsynced(self) -> dict[str, str]:
        """Why each mirror that is not in sync is not."""
        views = {"objects": self.objects, "rules": self.rules, "identities": self.identities}
        return {name: view.why() for name, view in views.items() if not view.synced}

    def records(self) -> dict[int, IdentitySet]:
        """What the published identities stand for."""
        return {entry.value.identity: entry.value.stands_for for entry in self.identities.entries.values()}

    def published(self) -> set[int]:
        """Identities that have rules."""
        return {entry.value.identity for entry in self.rules.entries.values()}

    def relevant(self) -> RelevantKeys | None:
        """The relevant keys that nodes compute with; None before any were published."""
        entry = self.identities.marks.get(RELEVANT_KEY)
        return None if entry is None else entry.value

    def partitions(self) -> dict[str, CidrPartition]:
        """The published partitions by namespace."""
        found = (entry.value for entry in self.rules.marks.values() if isinstance(entry.value, CidrPartition))
        return {partition.namespace: partition for partition in found}


def cidrs_key(namespace: str) -> str:
    """Key of a namespace's partition in ``rules``."""
    return f"{CIDRS_KEY}.{codec.encode_segment(namespace)}"


def frontier_key(shard: int) -> str:
    """Key of a shard's frontier in ``rules``."""
    return f"{FRONTIER_KEY}.{shard}"
