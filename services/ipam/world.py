"""Mirrors of the buckets as one snapshot, decoded once and updated by what changed.

Owns the indexes (blocks by network, owners by owner and family, claims by address, pods by uid). A look costs what has
changed since the last one, not the size of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from chassis.bus.client import Bus
from chassis.bus.view import View
from kit.pools import Pools, judge_pools
from proto import codec
from proto.addresses import ACKNOWLEDGED_KEY, AcknowledgedEndpoints, Block, BlockReport, Claim, OwnerRecord
from proto.net import Address, Network
from proto.objects import KIND_OF, IPPool, Node, Owner, Pod
from proto.subjects import BLOCKS, CLAIMS, OBJECTS, OWNERS
from services.ipam.block_allocation import REPORTED
from services.ipam.core.evidence import Evidence
from services.ipam.core.seen import Seen

NODES, PODS, POOLS = (codec.kind_prefix(KIND_OF[kind]) for kind in (Node, Pod, IPPool))

K = TypeVar("K")
V = TypeVar("V")


class Index(Generic[K, V]):
    """The values of a view that are of one type, by a key of their own."""

    def __init__(self, view: View, kind: type[V], key_of: Callable[[V], K]) -> None:
        self._view = view
        self._kind = kind
        self._key_of = key_of
        self._cursor = view.cursor()
        self._by_raw: dict[str, K] = {}
        self.values: dict[K, V] = {}

    def refresh(self) -> bool:
        """Take in what changed; True when anything did."""
        dirty = self._cursor.take()
        for raw in dirty:
            entry = self._view.entries.get(raw)
            old = self._by_raw.pop(raw, None)
            if old is not None:
                self.values.pop(old, None)
            if entry is not None and isinstance(entry.value, self._kind):
                key = self._key_of(entry.value)
                self._by_raw[raw] = key
                self.values[key] = entry.value
        return bool(dirty)


class World:
    """The views of one copy of ``ipam``; :meth:`look` is the argument of its decisions."""

    def __init__(self, bus: Bus) -> None:
        kinds: Mapping[str, type] = {"": Block, REPORTED: BlockReport, ACKNOWLEDGED_KEY: AcknowledgedEndpoints}
        self.blocks = bus.bucket(BLOCKS).watch(kinds, markers=(), name="blocks")
        self.owners = bus.bucket(OWNERS).watch({"": OwnerRecord}, markers=(), name="owners")
        self.claims = bus.bucket(CLAIMS).watch({"": Claim}, markers=(), name="claims")
        self.objects = bus.bucket(OBJECTS).watch(
            {NODES: Node, PODS: Pod, POOLS: IPPool},
            prefixes=(NODES, PODS, POOLS),
            markers=(NODES, PODS, POOLS),
            name="objects",
        )
        self._blocks: Index[Network, Block] = Index(self.blocks, Block, lambda block: block.cidr)
        self._owners: Index[tuple[Owner, int], OwnerRecord] = Index(
            self.owners, OwnerRecord, lambda record: (record.owner, record.address.version)
        )
        self._claims: Index[Address, Claim] = Index(self.claims, Claim, lambda claim: claim.address)
        self._nodes: Index[str, Node] = Index(self.objects, Node, lambda node: node.name)
        self._pods: Index[str, Pod] = Index(self.objects, Pod, lambda pod: pod.uid)
        self._ippools: Index[str, IPPool] = Index(self.objects, IPPool, lambda pool: pool.name)
        self._pools = Pools()
        self._evidence = Evidence({}, {})

    @property
    def of_addresses(self) -> tuple[View, View, View]:
        """The views of the buckets that this service writes."""
        return self.blocks, self.owners, self.claims

    def look(self) -> Seen:
        """The present state, and whether it may be decided upon."""
        changed = [index.refresh() for index in (self._blocks, self._ippools)]
        for index in (self._owners, self._claims):
            index.refresh()
        moved = [index.refresh() for index in (self._nodes, self._pods)]
        if any(moved):
            self._evidence = Evidence(self._nodes.values, self._pods.values)
        if any(changed):
            in_use = frozenset(block.pool for block in self._blocks.values.values() if block.node)
            self._pools = judge_pools(self._ippools.values.values(), in_use)
        return Seen(
            blocks=self._blocks.values,
            owners=self._owners.values,
            claims=self._claims.values,
            nodes=self._nodes.values,
            pods=self._pods.values,
            ippools=self._ippools.values,
            pools=self._pools,
            evidence=self._evidence,
            reports=self._reports(),
            epochs=(self.blocks.epoch, self.owners.epoch, self.claims.epoch),
            not_synced=self._not_synced(),
            complete=all(view.scope_complete() for view in self.of_addresses),
            whole_blocks=self.blocks.scope_complete(),
            whole_claims=self.claims.scope_complete(),
        )

    def _not_synced(self) -> str:
        return next((view.why() for view in (*self.of_addresses, self.objects) if not view.synced), "")

    def _reports(self) -> tuple[BlockReport, ...]:
        marks: Mapping[str, Any] = self.blocks.marks
        return tuple(entry.value for entry in marks.values() if isinstance(entry.value, BlockReport))
