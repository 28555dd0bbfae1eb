"""The input of the compiler: local mirrors of ``objects``, ``rules`` and ``identities``, and what the graph is fed from
them.

The graph is given the mirror's present state, never its events: whatever key is dirty is looked up, and a full pass
compares all. A batch and its revision are taken in one breath, so that a revision never promises what was not fed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass

from chassis.bus.client import Bus, View
from proto import codec
from proto.identity import IdentityRecord, RelevantKeys
from proto.objects import KIND_OF, KubernetesObject, Namespace, Node, Pod
from proto.policy import Ack, CidrPartition, CompiledPolicy, Frontier, Revision
from proto.residents import RESIDENTS_PREFIX, Residents
from proto.subjects import ACKS, IDENTITIES, OBJECTS, RULES
from services.policy.core.dialects import DIALECTS
from services.policy.settings import MAX_SHARDS

CIDRS_KEY = "_cidrs"
FRONTIER_KEY = "_frontier"
RELEVANT_KEY = "_relevant"

_KINDS = {codec.kind_prefix(KIND_OF[kind]): kind for kind in (Namespace, Pod, *DIALECTS)}
_COMPILED_FROM = tuple(_KINDS)
_NAMESPACES = f"{codec.kind_prefix(KIND_OF[Namespace])}."
_POLICIES = tuple(codec.kind_prefix(KIND_OF[kind]) for kind in DIALECTS)
_EXPLAINED_FROM = codec.kind_prefix(KIND_OF[Node])


@dataclass(frozen=True, slots=True)
class Incarnation:
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
    namespaces: int
    """Sequence of the last change of a namespace among all up to ``revision``."""
    traces: tuple[str, ...]
    """Traceparents of the changes, removals too, those of policies first."""


class Feed:
    """The mirrors, read in the words of the core."""

    def __init__(self, bus: Bus) -> None:
        kinds: dict[str, type] = {**_KINDS, _EXPLAINED_FROM: Node}
        self.objects: View = bus.bucket(OBJECTS).watch(
            kinds, prefixes=tuple(kinds), markers=_COMPILED_FROM, name="objects"
        )
        self.rules: View = bus.bucket(RULES).watch(
            {"": CompiledPolicy, CIDRS_KEY: CidrPartition, FRONTIER_KEY: Frontier}, markers=(), name="rules"
        )
        self.identities: View = bus.bucket(IDENTITIES).watch(
            {"": IdentityRecord, RELEVANT_KEY: RelevantKeys, RESIDENTS_PREFIX: Residents}, markers=(), name="identities"
        )
        self.acks: View = bus.bucket(ACKS).watch({"": Ack}, markers=(), name="acks")
        """What each node's kernel holds: nothing that is compiled depends on it."""
        self._fed: dict[str, KubernetesObject] = {}
        self._namespaces: tuple[int, int] = -1, 0
        """Of which list of ``objects``, and the last sequence of a namespace in it."""

    @property
    def revision(self) -> Revision:
        """How far ``objects`` is known."""
        return Revision(epoch=self.objects.epoch, sequence=self.objects.sequence)

    @property
    def incarnation(self) -> Incarnation:
        """The buckets that we write to, as they are known now."""
        return Incarnation(self.rules.epoch, self.identities.epoch, (self.rules.resyncs, self.identities.resyncs))

    def collect(self, keys: Iterable[str], *, full: bool) -> Batch:
        """What is other than when last collected, among ``keys`` (or all): take it, and put it."""
        looked_at: Set[str] = (self._fed.keys() | self.objects.entries.keys()) if full else set(keys)
        changes: list[tuple[str, KubernetesObject | None]] = []
        traces: tuple[dict[str, None], dict[str, None]] = {}, {}
        followed = bool(self._fed)  # what was there before this copy began is no change of now
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
            traceparent = self.objects.removed_in(key) if entry is None else entry.traceparent
            if traceparent and followed:
                traces[not key.startswith(_POLICIES)][traceparent] = None
        return Batch(
            changes=tuple(changes),
            revision=self.revision,
            namespaces=self._last_namespace(looked_at),
            traces=(*traces[0], *traces[1]),
        )

    def _last_namespace(self, keys: Collection[str]) -> int:
        """What an earlier life of the bucket held says nothing: its sequences may be ones that this one never reaches,
        and nodes would wait for them for ever.
        """
        entries, listed = self.objects.entries, self.objects.listed
        incarnation, last = self._namespaces
        if incarnation != self.objects.resyncs:
            incarnation, last, keys = self.objects.resyncs, 0, entries.keys()
        known = (key for key in keys if key.startswith(_NAMESPACES) and listed(key))
        found = (entries[key].revision for key in known)
        self._namespaces = incarnation, max(last, *found, 0)
        return self._namespaces[1]

    def unsynced(self) -> dict[str, str]:
        """Why each mirror that is not in sync is not."""
        views = {"objects": self.objects, "rules": self.rules, "identities": self.identities}
        return {name: view.why() for name, view in views.items() if not view.synced}

    def record_of(self, identity: int) -> IdentityRecord | None:
        """The published record of an identity."""
        entry = self.identities.entries.get(codec.identity_key(identity))
        return None if entry is None else entry.value

    def last_record(self, mine: Callable[[int], bool]) -> int:
        """Sequence of the last record of an identity that is ``mine``."""
        view = self.identities
        entries = (entry for key, entry in view.entries.items() if view.listed(key))
        return max((entry.revision for entry in entries if mine(entry.value.identity)), default=0)

    def has_rules(self, identity: int) -> bool:
        """Whether rules of an identity are published."""
        return codec.identity_key(identity) in self.rules.entries

    def published(self) -> set[int]:
        """Identities that have rules or a record."""
        return set(identities_in((self.rules.entries, self.identities.entries)))

    def relevant(self) -> RelevantKeys | None:
        """The relevant keys that every shard had got to; None before any were published."""
        entry = self.identities.marks.get(RELEVANT_KEY)
        return None if entry is None else entry.value

    def relevants(self, shards: int) -> frozenset[RelevantKeys]:
        """The relevant keys that nodes may compute with: of each frontier."""
        frontiers = (entry.value for key, entry in self.rules.marks.items() if key.startswith(FRONTIER_KEY))
        found = {frontier.relevant for frontier in frontiers if frontier.shards == shards}
        published = self.relevant()
        return frozenset(found if published is None else found | {published})

    def published_up_to(self, shards: int) -> Revision | None:
        """Revision that the frontier of every shard has got to; None before all have, in one epoch."""
        marks = (self.rules.marks.get(frontier_key(shard)) for shard in range(shards))
        revisions = [entry.value.revision for entry in marks if entry is not None]
        one_epoch = len({revision.epoch for revision in revisions}) == 1
        return min(revisions) if len(revisions) == shards and one_epoch else None

    def surplus_frontiers(self, shards: int) -> list[str]:
        """Keys of frontiers of shards that there are no more."""
        return [
            frontier_key(number) for number in range(shards, MAX_SHARDS) if frontier_key(number) in self.rules.marks
        ]

    def partitions(self) -> dict[str, CidrPartition]:
        """The published partitions by namespace."""
        found = (entry.value for entry in self.rules.marks.values() if isinstance(entry.value, CidrPartition))
        return {partition.namespace: partition for partition in found}

    def spoilt_partitions(self) -> list[str]:
        """Namespaces whose partition is there and cannot be read."""
        keys = [key for key in self.rules.unreadable if key.startswith(f"{CIDRS_KEY}.")]
        found = []
        for key in keys:
            with suppress(codec.Malformed):
                found.append(codec.decode_segment(key.removeprefix(f"{CIDRS_KEY}.")))
        return found


def identities_in(sources: Iterable[Iterable[str]]) -> Iterator[int]:
    """Identities whose key in ``rules`` or ``identities`` is among these; keys that are none are not ours."""
    for key in {key for keys in sources for key in keys if not key.startswith("_")}:
        with suppress(codec.Malformed):
            yield codec.parse_identity(key)


def cidrs_key(namespace: str) -> str:
    """Key of a namespace's partition in ``rules``."""
    return f"{CIDRS_KEY}.{codec.encode_segment(namespace)}"


def frontier_key(shard: int) -> str:
    """Key of a shard's frontier in ``rules``."""
    return f"{FRONTIER_KEY}.{shard}"
