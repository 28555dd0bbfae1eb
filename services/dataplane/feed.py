"""What this node watches on the bus, as typed state: its pods, and what all nodes need to know.

Owns the views and the meaning of their keys. Promises: nothing here is "empty" before it is in sync; whoever sweeps
asks :meth:`Feed.complete` first. Entries the codec refuses keep their last good value (the views see to that). The
sequence that a frontier must cover is the *key's* revision: the stream sequence of the object's last change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec

from chassis.bus.client import Bus, View
from chassis.bus.cursor import Cursor
from chassis.bus.entry import Entry
from kit.identity import Computed
from kit.model_settings import ModelSettings, model_settings
from kit.pools import Pools, any_overlap, judge_pools
from proto.addresses import ACKNOWLEDGED_KEY, AcknowledgedEndpoints, Block, BlockReport, Claim, Endpoint
from proto.codec import Malformed, decode_segment, encode_segment, identity_key, join, kind_prefix, split
from proto.identity import IdentityRecord
from proto.net import Address, Network
from proto.objects import (
    KIND_OF,
    EndpointSlice,
    FelixConfiguration,
    IPPool,
    KubernetesObject,
    Namespace,
    Node,
    Pod,
    Service,
)
from proto.policy import CidrPartition, CompiledPolicy, Frontier, Revision
from proto.residents import RESIDENTS_PREFIX, Residents
from proto.routes import NodeRoutes
from proto.slots import slot_of
from proto.subjects import BLOCKS, CLAIMS, ENDPOINTS, IDENTITIES, OBJECTS, ROUTES, RULES
from services.dataplane.core.cni.request import PodRef
from services.dataplane.core.endpoint.admission import Knowledge
from services.dataplane.core.ipam.addressing import Supply, supply_of
from services.dataplane.core.ipcache.entries import APISERVER

T = TypeVar("T", bound=KubernetesObject)
N = TypeVar("N")
V = TypeVar("V")

GATHER = 0.02
"""Seconds for which loops that follow many objects gather changes."""
WATCHED: tuple[type[KubernetesObject], ...] = (
    Pod,
    Namespace,
    Node,
    Service,
    EndpointSlice,
    IPPool,
    FelixConfiguration,
)
OPTIONAL = FelixConfiguration
"""A kind that the cluster may not have: then nobody says that all of it is here, and nothing waits for that."""
_PREFIXES: dict[type[KubernetesObject], str] = {kind: kind_prefix(KIND_OF[kind]) for kind in WATCHED}
_OF_SERVERS = f"{_PREFIXES[EndpointSlice]}.{encode_segment(APISERVER[0])}."
_FRONTIER = "_frontier."
_CIDRS = "_cidrs."


def object_kind(key: str) -> type[msgspec.Struct] | None:
    """Type of an object by its key; None for what this node has no use for."""
    return next((kind for kind, prefix in _PREFIXES.items() if key.startswith(f"{prefix}.")), None)


def rules_kind(key: str) -> type[msgspec.Struct] | None:
    """Type of an entry of ``rules``."""
    if key.startswith(_FRONTIER):
        return Frontier
    if key.startswith(_CIDRS):
        return CidrPartition
    return None if key.startswith("_") else CompiledPolicy


def identities_kind(key: str) -> type[msgspec.Struct] | None:
    """Type of an entry of ``identities``."""
    if key.startswith(f"{RESIDENTS_PREFIX}."):
        return Residents
    return None if key.startswith("_") else IdentityRecord


def blocks_kind(key: str) -> type[msgspec.Struct] | None:
    """Type of an entry of ``blocks``."""
    if key.startswith("_reported."):
        return BlockReport
    if key == ACKNOWLEDGED_KEY:
        return AcknowledgedEndpoints
    return None if key.startswith("_") else Block


def endpoints_kind(key: str) -> type[msgspec.Struct] | None:
    """Type of an entry of ``endpoints``."""
    return None if key.startswith("_") else Endpoint


def routes_kind(key: str) -> type[msgspec.Struct] | None:
    """Type of an entry of ``routes``."""
    return None if key.startswith("_") else NodeRoutes


def claims_kind(key: str) -> type[msgspec.Struct] | None:
    """Type of an entry of ``claims``."""
    return None if key.startswith("_") else Claim


class Rules(Mapping[int, CompiledPolicy]):
    """Compiled policies by identity, read through the view."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __getitem__(self, identity: int) -> CompiledPolicy:
        policy = self._view.entries[identity_key(identity)].value
        assert isinstance(policy, CompiledPolicy)
        return policy

    def __iter__(self) -> Iterator[int]:
        return (int(key, 16) for key in self._view.entries)

    def __len__(self) -> int:
        return len(self._view.entries)


class Namespaces(Mapping[str, Namespace]):
    """Namespaces by name, read through the view."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __getitem__(self, name: str) -> Namespace:
        found = self._feed.namespace(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (one.name for one in self._feed.all_of(Namespace))

    def __len__(self) -> int:
        return len(self._feed.all_of(Namespace))


class Followed(Generic[N, V]):
    """Values of some keys of a view, by what the keys name. To ask costs what changed since it was asked last."""

    def __init__(
        self, cursor: Cursor, entries: Mapping[str, Entry[Any]], kind: type[V], name_of: Callable[[str], N | None]
    ) -> None:
        """``name_of``: what a key names; None for keys that are not of these."""
        self._cursor = cursor
        self._entries = entries
        self._kind = kind
        self._name_of = name_of
        self._found: dict[N, V] = {}

    def now(self) -> Mapping[N, V]:
        """All of them; what is returned follows the next calls."""
        for key in self._cursor.take() if self._cursor.pending else ():
            name = self._name_of(key)
            if name is not None:
                entry = self._entries.get(key)
                if entry is not None and isinstance(entry.value, self._kind):
                    self._found[name] = entry.value
                else:
                    self._found.pop(name, None)
        return MappingProxyType(self._found)


class HeldBlocks:
    """Blocks as far as they are known: one that has gone from the bucket while that was not whole stays until it is."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._cursor = view.cursor()
        self._known: dict[str, Network] = {}
        self._unconfirmed: set[str] = set()

    def changes(self) -> Iterator[tuple[Network, Block | None]]:
        """What is another since this was asked last: networks, and the block of each, None where there is none."""
        for key in self._cursor.take() | self._unconfirmed:
            entry, known = self._view.entries.get(key), self._known.get(key)
            block = entry.value if entry is not None and isinstance(entry.value, Block) else None
            if block is None and known is not None and not self._view.scope_complete():
                self._unconfirmed.add(key)
                continue
            self._unconfirmed.discard(key)
            if known is not None and (block is None or block.cidr != known):
                yield self._known.pop(key), None
            if block is not None:
                self._known[key] = block.cidr
                yield block.cidr, block


class HeldClaims:
    """Claims; what changed of them."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._cursor = view.cursor()
        self._known: dict[str, Address] = {}

    def changes(self) -> Iterator[tuple[Address, Claim | None]]:
        """What is another since this was asked last: addresses, and the claim on each, None where there is none."""
        for key in self._cursor.take():
            entry, known = self._view.entries.get(key), self._known.get(key)
            claim = entry.value if entry is not None and isinstance(entry.value, Claim) else None
            if known is not None and (claim is None or claim.address != known):
                yield self._known.pop(key), None
            if claim is not None:
                self._known[key] = claim.address
                yield claim.address, claim


def partition_of(key: str) -> str | None:
    """Namespace whose CIDR partition a key of ``rules`` is; None for other keys."""
    if key.startswith(_CIDRS):
        with suppress(Malformed):
            return decode_segment(key.removeprefix(_CIDRS))
    return None


def _shard_of(key: str) -> str | None:
    return key if key.startswith(_FRONTIER) else None


class Feed:
    """All views of one node."""

    def __init__(self, bus: Bus, node: str) -> None:
        self.node = node
        own = encode_segment(node)
        self._pod_prefix = join("core", "pod", node)
        scopes: dict[type[KubernetesObject], str] = {Pod: self._pod_prefix}
        self.objects = bus.bucket(OBJECTS).watch(
            object_kind,
            prefixes=tuple(scopes.get(kind, prefix) for kind, prefix in _PREFIXES.items()),
            markers=tuple(prefix for kind, prefix in _PREFIXES.items() if kind is not OPTIONAL),
            name="objects",
        )
        self.rules_view = bus.bucket(RULES).watch(rules_kind, name="rules")
        self.identities = bus.bucket(IDENTITIES).watch(identities_kind, name="identities")
        self.endpoints = bus.bucket(ENDPOINTS).watch(endpoints_kind, markers=(), name="endpoints")
        self.blocks = bus.bucket(BLOCKS).watch(blocks_kind, markers=(), name="blocks")
        self.claims = bus.bucket(CLAIMS).watch(claims_kind, name="claims")
        self.routes = bus.bucket(ROUTES).watch(routes_kind, markers=(), name="routes")
        self.rules = Rules(self.rules_view)
        self._own_endpoints = f"{own}."
        rules = self.rules_view
        self._frontiers = Followed(rules.cursor(), rules.marks, Frontier, _shard_of)
        self._partitions = Followed(rules.cursor(), rules.marks, CidrPartition, partition_of)
        self._published = Followed(self.endpoints.cursor(), self.endpoints.entries, Endpoint, self._own_slot)
        self._namespace_keys = self.changes(Namespace)
        self._pod_keys = self.changes(Pod)
        self._computed = Computed()
        self._namespaces_at = "", -1, 0
        """Epoch, which list of it, and the last sequence of a namespace known then."""
        self._records_at = Revision(epoch="", sequence=0)
        self._object_keys = self.objects.cursor()
        self._by_kind: dict[type, dict[str, Any]] = {kind: {} for kind in WATCHED}
        self._kind_of: dict[str, type] = {}
        self._lists: dict[type, tuple[Any, ...]] = {}
        self._versions: dict[type, int] = dict.fromkeys(WATCHED, 0)
        self._no_node = Node(name=node, uid="")
        self._supplied: tuple[Pools | None, Node | None, Supply] = None, None, Supply()
        self._judged: tuple[tuple[IPPool, ...], frozenset[str], Pools] = (), frozenset(), Pools()

    def complete(self, kind: type[KubernetesObject]) -> bool:
        """All objects of a kind are here, so what is not here does not exist."""
        return (self.objects.synced and kind is not OPTIONAL) or self.objects.scope_complete(_PREFIXES[kind])

    def all_of(self, kind: type[T]) -> Sequence[T]:
        """Objects of a kind, as far as they are here; costs what changed, and a copy when one of the kind did."""
        self._follow()
        if kind not in self._lists:
            self._lists[kind] = tuple(self._by_kind[kind].values())
        return self._lists[kind]

    def version(self, *kinds: type[KubernetesObject]) -> tuple[int, ...]:
        """Numbers that are others when objects of these kinds are."""
        self._follow()
        return tuple(self._versions[kind] for kind in kinds)

    def changes(self, *kinds: type[KubernetesObject], servers: bool = False) -> Cursor:
        """A cursor over ``objects`` of these kinds; ``servers``: over the slices that name the API's servers too. No
        change of another object wakes its reader; those of the watch itself and of markers do.
        """
        prefixes = [f"{_PREFIXES[kind]}." for kind in kinds]
        return self.objects.cursor(*prefixes, *((_OF_SERVERS,) if servers else ()))

    def _follow(self) -> None:
        """Sorts what changed by kind."""
        if not self._object_keys.pending:
            return
        entries = self.objects.entries
        for key in self._object_keys.take():
            entry = entries.get(key)
            value = None if entry is None else entry.value
            kind, before = None if value is None else type(value), self._kind_of.get(key)
            if before is not None and kind is not before:
                self._touch(before)
                del self._by_kind[before][key], self._kind_of[key]
            if kind in self._by_kind and (before is not kind or self._by_kind[kind][key] is not value):
                self._touch(kind)
                self._by_kind[kind][key], self._kind_of[key] = value, kind

    def _touch(self, kind: type) -> None:
        self._versions[kind] += 1
        self._lists.pop(kind, None)

    def namespace(self, name: str) -> Namespace | None:
        """A namespace."""
        entry = self.objects.entries.get(join("core", "namespace", "", name))
        return entry.value if entry is not None and isinstance(entry.value, Namespace) else None

    def pod(self, wanted: PodRef) -> tuple[Pod, Revision, str] | None:
        """A pod of this node, the revision of the last change of it or of its namespace, and its trace context."""
        entries = self.objects.entries
        entry = entries.get(f"{self._pod_prefix}.{join(wanted.namespace, wanted.name)}")
        if entry is None or not isinstance(entry.value, Pod):
            return None
        namespace = entries.get(join("core", "namespace", "", wanted.namespace))
        sequence = max(entry.revision, 0 if namespace is None else namespace.revision)
        return entry.value, Revision(epoch=self.objects.epoch, sequence=sequence), entry.traceparent

    def about(self, keys: Iterable[str]) -> tuple[set[tuple[str, str]], set[str]]:
        """Pods of this node (namespace and name), and namespaces, that keys of ``objects`` are about."""
        pods, namespaces = set[tuple[str, str]](), set[str]()
        of_pods, of_namespaces = f"{self._pod_prefix}.", f"{_PREFIXES[Namespace]}."
        for key in keys:
            with suppress(Malformed):
                if key.startswith(of_pods):
                    namespace, name = split(key)[-2:]
                    pods.add((namespace, name))
                elif key.startswith(of_namespaces):
                    namespaces.add(split(key)[-1])
        return pods, namespaces

    def traceparent(self, wanted: PodRef) -> str:
        """Trace context of a pod's object; empty while it is not here."""
        found = self.pod(wanted)
        return "" if found is None else found[2]

    def node_object(self) -> Node | None:
        """The Node object of this node."""
        entry = self.objects.entries.get(join("core", "node", "", self.node))
        return entry.value if entry is not None and isinstance(entry.value, Node) else None

    def model_settings(self) -> ModelSettings:
        """What is set of the models of routing on this node, as far as it is here."""
        return model_settings(self.all_of(FelixConfiguration), self.node)

    def supply(self) -> Supply:
        """What this node's pods are given addresses from; made again when a pool or the Node is another."""
        pools, node = self._pools(), self.node_object() or self._no_node
        known_pools, known_node, supply = self._supplied
        if pools is not known_pools or node is not known_node:
            supply = supply_of(pools, node)
            self._supplied = pools, node, supply
        return supply

    def _pools(self) -> Pools:
        """The pools, judged anew only when they, or the use of overlapping ones, changed."""
        listed = tuple(self.all_of(IPPool))
        in_use: frozenset[str] = frozenset()
        if any_overlap(listed):
            blocks = (entry.value for entry in self.blocks.entries.values())
            in_use = frozenset(block.pool for block in blocks if isinstance(block, Block) and block.node)
        known, used, judged = self._judged
        if (known, used) != (listed, in_use):
            judged = judge_pools(listed, in_use)
            self._judged = listed, in_use, judged
        return judged

    def knowledge(self) -> Knowledge:
        """What identities are computed from, now."""
        for key in self._pod_keys.take():
            if key.startswith(f"{self._pod_prefix}."):
                with suppress(Malformed):
                    self._computed.forget(*split(key)[-2:])
        system = self.namespace("kube-system")
        return Knowledge(
            cluster_uid=system.uid if system else "",
            namespaces=Namespaces(self),
            namespaces_at=self._namespaces_known(),
            records_at=self.records_at(),
            computed=self._computed,
        )

    def _namespaces_known(self) -> int:
        """Sequence of the last change of a namespace that is here with all before it: each kind has a consumer of its
        own, so what is known of pods says nothing about namespaces.
        """
        view = self.objects
        incarnation, listed, last = self._namespaces_at
        if incarnation != view.epoch:
            incarnation, listed, last = view.epoch, -1, 0
        if self.complete(Namespace):
            changed: Iterable[str] = self._namespace_keys.take()
            if listed != view.resyncs:
                listed, last, changed = view.resyncs, 0, view.entries
            prefix = f"{_PREFIXES[Namespace]}."
            # What is left of an earlier life until all kinds are listed has sequences of that life.
            entries = (view.entries.get(key) for key in changed if key.startswith(prefix) and view.listed(key))
            last = max(last, *(entry.revision for entry in entries if entry is not None), 0)
        self._namespaces_at = incarnation, listed, last
        return last

    def records_at(self) -> Revision:
        """Epoch of ``identities`` and the sequence up to which it is here; that of before while it is listed anew."""
        view = self.identities
        if view.synced or self._records_at.epoch != view.epoch:
            self._records_at = Revision(epoch=view.epoch, sequence=view.sequence if view.synced else 0)
        return self._records_at

    def frontiers(self) -> list[Frontier]:
        """How far each shard of policy is."""
        return list(self._frontiers.now().values())

    def partitions(self) -> Mapping[str, CidrPartition]:
        """What each namespace's policies name by CIDR; follows the view."""
        return self._partitions.now()

    def acknowledged(self) -> AcknowledgedEndpoints:
        """Up to which point of ``endpoints`` every live node's maps follow; of no epoch while nobody says it."""
        entry = self.blocks.marks.get(ACKNOWLEDGED_KEY)
        said = entry is not None and isinstance(entry.value, AcknowledgedEndpoints)
        return entry.value if entry is not None and said else AcknowledgedEndpoints(epoch="", sequence=0)

    def published_endpoints(self) -> dict[int, Endpoint]:
        """What stands in the slots of this node, as the bus has it, by number."""
        return dict(self._published.now())

    def is_published_endpoint(self, key: str) -> bool:
        """Whether a key of ``endpoints`` is of this node."""
        return key.startswith(self._own_endpoints)

    def _own_slot(self, key: str) -> int | None:
        return slot_of(key) if key.startswith(self._own_endpoints) else None
