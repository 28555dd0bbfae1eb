"""Publishes this node's endpoints and acknowledgements to the other nodes.

Owns ``endpoints.<node>.slot.*`` with its marker, and ``acks.<node>``. Promises: a durable outbox without a
queue: what should be on the bus is computed from the registry (whose truth is the journal) and compared with what the
bus has, so after a lost bucket or a time without NATS everything is put again, and nothing twice: what was put counts
as there until the view has come as far. The completeness marker of an epoch is written only after all of it. Nothing
here is ever waited for by an ADD.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Set
from itertools import islice
from typing import Any

from chassis.bus.client import Bus
from chassis.bus.entry import Entry
from chassis.faults import Unavailable
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from proto.addresses import Endpoint
from proto.codec import encode_segment, endpoint_key
from proto.net import Address
from proto.policy import Ack, Revision
from proto.subjects import ACKS, ENDPOINTS
from proto.sync import Complete, complete_key
from services.dataplane.core.endpoint.slots import assign
from services.dataplane.endpoint.registry import Registry
from services.dataplane.feed import Feed

AT_ONCE = 64
LOOK_SECONDS = 3.0
"""An acknowledgement that somebody else wrote over, or that cannot be read, is written again within this time."""
REFRESH_SECONDS = 30.0
"""An unchanged acknowledgement is written again after this long: readers see that the node lives."""

Published = Callable[[Set[Address], str, int, int], None]
"""Takes the addresses in slots of this node, and epoch, number of lists and sequence of the view of ``endpoints``."""


class EndpointsOut:
    """Keeps this node's part of ``endpoints``."""

    def __init__(self, bus: Bus, feed: Feed, registry: Registry, log: Log, published: Published) -> None:
        """``published`` is told what stands in the slots, once other nodes know that it is all."""
        self._kv = bus.bucket(ENDPOINTS)
        self._feed = feed
        self._registry = registry
        self._log = log
        self._published = published
        self._marker = complete_key(encode_segment(feed.node))
        self._assigned: dict[Address, int] = {}
        """Slots of the addresses that this agent has put there."""
        self._unheard: dict[str, tuple[int, Endpoint]] = {}
        """By key, revision and value of a put that the view has not come to."""
        self._lists = 0
        """How often the view had been listed when they were put: a list begins a life of its own."""

    async def apply(self, dirty: Dirty) -> Done | Again:
        """Puts what is missing or differs, deletes what is no more, then says that all is there. What other nodes
        publish is no reason to look.
        """
        view, node = self._feed.endpoints, self._feed.node
        published, local = dirty.by_cursor
        if not (dirty.full or local) and published and not any(map(self._concerns, published)):
            return Done()
        if not view.epoch or not view.synced:
            return Again(after=1.0)
        entries = {
            entry.address: (entry, one.traceparent)
            for one in self._registry.up.values()
            for entry in one.published(node)
        }
        slots = self._feed.published_endpoints()
        self._assigned = assign(entries, self._assigned, {number: entry.address for number, entry in slots.items()})
        wanted = {endpoint_key(node, number): entries[address] for address, number in self._assigned.items()}
        present = {endpoint_key(node, number): entry for number, entry in slots.items()} | self._put_and_unheard()
        epoch = view.epoch
        if self._is_complete(epoch):
            addresses = frozenset(entry.address for entry in slots.values())
            self._published(addresses, epoch, view.resyncs, view.sequence)
        await _all_of(
            self._put(key, entry, traceparent)
            for key, (entry, traceparent) in wanted.items()
            if present.get(key) != entry
        )
        await _all_of(self._delete(key) for key in present if key not in wanted)
        if not self._is_complete(epoch):
            await self._kv.put(self._marker, Complete(epoch=epoch))
            self._log.info("endpoints-complete", epoch=epoch, endpoints=len(wanted))
        return Done()

    def _put_and_unheard(self) -> dict[str, Endpoint]:
        """What was put since the view was listed, and is not in it yet."""
        view = self._feed.endpoints
        of_this_list = self._unheard if self._lists == view.resyncs else {}
        self._unheard = {key: put for key, put in of_this_list.items() if put[0] > view.sequence}
        self._lists = view.resyncs
        return {key: entry for key, (_, entry) in self._unheard.items()}

    async def _put(self, key: str, entry: Endpoint, traceparent: str) -> None:
        self._unheard[key] = await self._kv.put(key, entry, traceparent=traceparent), entry

    async def _delete(self, key: str) -> None:
        self._unheard.pop(key, None)
        await self._kv.delete(key)

    def _is_complete(self, epoch: str) -> bool:
        """Whether the marker of this node stands for the epoch."""
        marker = self._feed.endpoints.marks.get(self._marker)
        return marker is not None and bool(marker.value == Complete(epoch=epoch))

    def _concerns(self, key: str) -> bool:
        """Whether a key of ``endpoints`` is this node's, or a marker."""
        return key.startswith("_") or self._feed.is_published_endpoint(key)


async def _all_of(writes: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Many writes, :data:`AT_ONCE` of them on their way; all have ended when this raises what one of them raised."""
    rest = iter(writes)
    while chunk := list(islice(rest, AT_ONCE)):
        for outcome in await asyncio.gather(*chunk, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


class AckOut:
    """Keeps ``acks.<node>``."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._kv = bus.bucket(ACKS)
        self._key = encode_segment(node)
        self._node = node
        self._last: Ack | None = None
        self._written = 0.0
        self._looked = 0.0

    async def write(self, rules: Revision, endpoints: tuple[int, str], pods: int, *, ready: bool, now: float) -> bool:
        """Writes when anything changed, or after :data:`REFRESH_SECONDS`. Raises Unavailable."""
        ack = Ack(
            node=self._node,
            rules=rules,
            endpoints=endpoints[0],
            endpoints_epoch=endpoints[1],
            pods=pods,
            ready=ready,
        )
        if ack == self._last and now - self._written < REFRESH_SECONDS and await self._stands(ack, now):
            return False
        await self._kv.put(self._key, ack)
        self._last, self._written, self._looked = ack, now, now
        return True

    async def _stands(self, ack: Ack, now: float) -> bool:
        """False when something else than our last word is on the bus, found out every :data:`LOOK_SECONDS`."""
        if now - self._looked < LOOK_SECONDS:
            return True
        self._looked = now
        try:
            found = await self._kv.look(self._key, Ack)
        except Unavailable:
            return True
        return isinstance(found, Entry) and found.value == ack
