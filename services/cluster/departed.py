"""Deletes what nodes that are gone left in the buckets: the shell of ``core.departed``.

``cluster`` does it because it knows first and best which Nodes there are, and already writes what all others are made
from: the right to delete these keys adds nothing to its key's power. Owns no value: it deletes, each key at exactly the
revision that was quiet, so whoever writes in the same moment keeps what it wrote. Does nothing while the list of Nodes
may be old (no list yet, the watch is broken), while ``blocks`` or the mirror is not in sync, or without the lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Set
from itertools import islice

import msgspec
from prometheus_client import Counter

from chassis.bus.client import KV, Bus, View
from chassis.bus.entry import Entry, Unreadable
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Dirty, Done
from chassis.telemetry.log import Log
from proto.addresses import Block
from proto.codec import encode_segment
from proto.subjects import ACKS, ENDPOINTS, LEASES, ROUTES
from services.cluster.core.cache import Cache
from services.cluster.core.departed import Quiet, Written, departed, writer_of

AT_ONCE = 64
SLICE = 512
"""Keys looked at before the event loop gets its turn."""

_DELETED = Counter("airmesh_departed_keys_deleted", "Keys of nodes that are gone", ["bucket"])


class Anything(msgspec.Struct):
    """Any value: that it is there is all that counts."""

    gateway: bool = False
    """It is that of a machine that never was a node (``proto.routes.NodeRoutes``)."""


class Departures:
    """``fresh``: the list of Nodes is as the API has it now. ``grace`` in seconds."""

    def __init__(  # noqa: PLR0913 - what it must be sure of, each by name
        self,
        bus: Bus,
        *,
        lease: Election,
        nodes: Cache,
        fresh: Callable[[], bool],
        objects: View,
        blocks: View,
        grace: float,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lease = lease
        self._nodes = nodes
        self._fresh = fresh
        self._objects = objects
        self._blocks = blocks
        self._grace = grace
        self._log = log
        self._clock = clock
        self._buckets: dict[str, KV] = {}
        self._views: dict[str, View] = {}
        for bucket in (ENDPOINTS, ACKS, ROUTES, LEASES):
            kv = self._buckets[bucket.name] = bus.bucket(bucket)
            self._views[bucket.name] = kv.watch(_anything, markers=(), name=f"left-in-{bucket.name}")
        self._watched: Mapping[str, Quiet] = {}

    @property
    def views(self) -> Mapping[str, View]:
        """What nodes have written, by bucket."""
        return self._views

    async def apply(self, _dirty: Dirty) -> Done:
        """One pass; raises Unavailable."""
        if not self._sure():
            self._watched = {}
            return Done()
        written = await self._written_by_others(self._there() | self._holders())
        if not self._sure():
            self._watched = {}
            return Done()
        there, holders = self._there(), self._holders()
        found = departed(written, there, holders, self._watched, now=self._clock(), grace=self._grace)
        self._watched = found.watched
        for node, keys in found.delete.items():
            count = await self._delete(node, keys)
            self._log.info("departed", node=node, deleted=count, of=len(keys))
        return Done()

    def _sure(self) -> bool:
        views = (self._objects, self._blocks, *self._views.values())
        return self._lease.held and self._nodes.synced and self._fresh() and all(view.synced for view in views)

    def _there(self) -> set[str]:
        """Nodes that the API has; one that cannot be read is there too."""
        return {encode_segment(name) for _, name in (*self._nodes.known, *self._nodes.faults)}

    def _holders(self) -> set[str]:
        blocks = (entry.value for entry in self._blocks.entries.values())
        return {encode_segment(block.node) for block in blocks if isinstance(block, Block) and block.node}

    def _gateways(self) -> set[str]:
        """Machines that are no nodes and say so: one key each of its own, and a node that lies so keeps no other's."""
        entries = self._views[ROUTES.name].entries.items()
        return {key for key, entry in entries if isinstance(entry.value, Anything) and entry.value.gateway}

    async def _written_by_others(self, known: Set[str]) -> dict[str, set[Written]]:
        """All keys that none of these nodes wrote, by their writer: :data:`SLICE` at a time, each as it is then."""
        written: dict[str, set[Written]] = {}
        known = known | self._gateways()
        for name, view in self._views.items():
            for held in (view.entries, view.marks, view.unreadable):
                keys = iter(tuple(held))
                while some := tuple(islice(keys, SLICE)):
                    for key in some:
                        node = writer_of(name, key)
                        if node and node not in known and (there := held.get(key)) is not None:
                            revision = there.revision if isinstance(there, Entry) else 0
                            written.setdefault(node, set()).add((name, key, revision))
                    await asyncio.sleep(0)
        return written

    async def _delete(self, node: str, keys: frozenset[Written]) -> int:
        """How many were deleted. Ends when the node is there again."""
        deleted = 0
        rest = iter(sorted(keys))
        while chunk := list(islice(rest, AT_ONCE)):
            if not self._sure() or node in self._there() or node in self._holders():
                return deleted
            outcomes = await asyncio.gather(*(self._delete_one(*one) for one in chunk), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                deleted += outcome
        return deleted

    async def _delete_one(self, name: str, key: str, revision: int) -> bool:
        kv = self._buckets[name]
        if not revision:
            found = await kv.look(key, Anything)
            if not isinstance(found, Unreadable):
                return False
            revision = found.revision
        if await kv.delete(key, revision) is not None:
            return False  # somebody wrote it: the next pass sees
        _DELETED.labels(name).inc()
        return True


def _anything(key: str) -> type[msgspec.Struct] | None:
    """Every key of a node's; what is nobody's is not looked at."""
    return None if key.startswith("_") else Anything
