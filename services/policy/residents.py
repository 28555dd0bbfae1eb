"""Publishing which identities may live on each node: ``identities._residents.<node>``.

A node may write any identity into its own entries of ``endpoints``; we see every pod's object and compute its identity
ourselves, so that readers need believe no node. Owns these keys. Written with the shard that the node hashes to, before
its frontier: whoever sees a frontier at S may start a pod of S, and the others know by then that it may live there. A
node without identities has no key.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterable
from functools import partial

from chassis.bus.client import KV, View
from chassis.telemetry.log import Log
from proto import codec
from proto.policy import Revision
from proto.residents import RESIDENTS_PREFIX, RESIDENTS_SCOPE, Residents, residents_key
from proto.sync import Complete, complete_key
from services.policy.core.graph import Graph
from services.policy.core.plan import Step, complete_step, residents_step
from services.policy.core.residents import Book
from services.policy.publish import Fence, Unpublished, Writer, together

BREATH = 64
"""Nodes compared before the event loop gets its turn."""


def shard_of(node: str, shards: int) -> int:
    """The shard whose holder speaks of a node."""
    return zlib.crc32(node.encode()) % shards


class ResidentsOut:
    """``grace`` is how many seconds an identity stays after its last pod has left the node."""

    def __init__(self, kv: KV, view: View, graph: Graph, shards: int, grace: float, log: Log) -> None:
        self._log = log
        self._writer = Writer(kv, view)
        self._view = view
        self._graph = graph
        self._shards = shards
        self._grace = grace
        self._book = Book()

    def mark(self, keys: Iterable[str]) -> None:
        """Of these keys of ``identities`` another value is published than before."""
        for key in keys:
            scope, _, segment = key.partition(".")
            if scope == RESIDENTS_PREFIX:
                self._book.changed.add(codec.decode_segment(segment))

    def follow(self) -> None:
        """Take in what the graph has settled, and whose time is over."""
        roster = self._graph.roster
        self._book.follow(roster.moved, self._graph.pods, roster.identities_at)
        roster.moved.clear()
        self._book.expiring(time.monotonic(), self._grace)

    @property
    def expiry(self) -> float | None:
        """Seconds until something has to be published without any change."""
        return self._book.expiring(time.monotonic(), self._grace)

    async def publish(self, shard: int, revision: Revision, fence: Fence, *, everything: bool) -> None:
        """Of the nodes of this shard that changed, or of all. Raises Behind, NotHolder, Unavailable."""
        nodes = {*self._book.nodes, *self._published()} if everything else set(self._book.changed)
        mine = sorted(node for node in nodes if shard_of(node, self._shards) == shard)
        writes = []
        for count, node in enumerate(mine, 1):
            key = residents_key(codec.encode_segment(node))
            entry = self._writer.latest(key)
            present = () if entry is None else entry.value.identities
            wanted = self._book.wanted(node, present, time.monotonic(), self._grace)
            if wanted:
                value = Residents(identities=wanted, revision=revision)
                step = residents_step(value, None if entry is None else entry.value)
                if step is not Step.KEEP:
                    writes.append(self._write(key, value, fence))
            elif entry is not None:
                writes.append(self._delete(key, fence))
            if count % BREATH == 0:
                await asyncio.sleep(0)
        await together(writes)
        self._book.changed.difference_update(mine)

    async def _write(self, key: str, value: Residents, fence: Fence) -> None:
        """What the bus does not take of one node is that node's matter: its new pods wait to be believed."""
        try:
            await self._writer.write(key, value, partial(residents_step, value), fence)
        except Unpublished as why:
            self._log.error("residents-not-published", key=key, error=why)

    async def _delete(self, key: str, fence: Fence) -> None:
        await self._writer.delete(key, lambda _: True, fence)

    async def complete(self, epoch: str, fence: Fence) -> None:
        """Say that every node's residents are there, once they are; by whoever speaks for all shards."""
        key, marker = complete_key(RESIDENTS_SCOPE), Complete(epoch=epoch)
        entry = self._writer.latest(key)
        if entry is not None and entry.value == marker:
            return
        if all(self._writer.latest(residents_key(codec.encode_segment(node))) is not None for node in self._book.nodes):
            await self._writer.write(key, marker, partial(complete_step, marker), fence)

    def _published(self) -> set[str]:
        prefix = f"{RESIDENTS_PREFIX}."
        return {codec.decode_segment(key[len(prefix) :]) for key in self._view.marks if key.startswith(prefix)}
