"""Reclaims orphaned blocks of deleted Nodes: the shell of ``core.orphaned``.

Owns what is read about a node that ``objects`` does not have, and both writes. Nothing is written on the word of a
view alone: just before each write the leader is asked whether ``objects`` is the bucket that was seen, and whole, that
the Node is not in it, and that the block's record still is the one that was judged. Every copy does it; a copy that
cannot read the signs of life takes nothing back.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from chassis.bus.entry import Entry
from chassis.runtime.reconcile import Done
from chassis.telemetry.log import Log
from proto import codec
from proto.addresses import Block, BlockReport, Endpoint
from proto.objects import KIND_OF, Node
from proto.policy import Ack
from proto.sync import Complete, complete_key
from services.ipam.block_allocation import Fence, Look, reported_key
from services.ipam.core.orphaned import Signs, Watched, absent_holders, reclaim
from services.ipam.core.seen import Seen
from services.ipam.store import Store, compare_and_set

T = TypeVar("T", bound=msgspec.Struct)
KnownToAll = Callable[[tuple[Block, ...]], Awaitable[tuple[Block, ...]]]
"""Those of some rested blocks of which every live node knows that their pods have left."""


class Readable(Protocol):
    """The part of ``chassis.bus.kv.KV`` that reads."""

    async def get(self, key: str, kind: type[T], /) -> Entry[T] | None:
        """The record as the leader has it."""

    async def list(self, kind: type[T], prefix: str, /) -> dict[str, Entry[T]]:
        """All records below a prefix."""


class Reclaimer:
    """``read``: ``objects``, ``acks`` and ``endpoints``; ``objects_epoch`` is that of the view which ``look`` reads."""

    def __init__(
        self,
        blocks: Store,
        read: tuple[Readable, Readable, Readable],
        look: Look,
        objects_epoch: Callable[[], str],
        fence: Fence,
        known_to_all: KnownToAll,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blocks = blocks
        self._objects, self._acks, self._endpoints = read
        self._look = look
        self._objects_epoch = objects_epoch
        self._fence = fence
        self._known_to_all = known_to_all
        self._log = log
        self._clock = clock
        self._watched = Watched()

    async def sweep(self, grace: float, cooldown: float) -> Done:
        """One pass; ``grace`` and ``cooldown`` in seconds. Raises Refused, Unavailable: then nothing more is done."""
        seen = self._look()
        if seen.not_synced or not seen.complete:
            self._watched = Watched()
            return Done()
        signs = {node: await self._signs(node, seen) for node in absent_holders(seen.blocks.values(), set(seen.nodes))}
        found = reclaim(
            seen.blocks.values(),
            set(seen.nodes),
            signs,
            self._watched,
            now=self._clock(),
            grace=grace,
            cooldown=cooldown,
        )
        self._watched = found.watched
        for before, after in found.unmark:
            if await self._change(before, after):
                self._log.info("block-kept", block=before.cidr, node=before.node)
        for before, after in found.mark:
            if await self._is_gone(before.node) and await self._change(before, after):
                self._log.warning("block-orphaned", block=before.cidr, node=before.node, seconds=cooldown)
        known = frozenset(await self._known_to_all(tuple(before for before, _ in found.free)))
        for before, after in found.free:
            if before in known and await self._is_gone(before.node) and await self._change(before, after):
                self._log.warning("block-taken-back", block=before.cidr, node=before.node)
        await self._forget(seen)
        return Done()

    async def _forget(self, seen: Seen) -> None:
        """That a node has spoken, of a node that is gone and holds nothing any more."""
        holders = {block.node for block in seen.blocks.values()}
        for report in seen.reports:
            if report.node in seen.nodes or report.node in holders or not await self._is_gone(report.node):
                continue
            entry = await self._blocks.get(reported_key(report.node), BlockReport)
            if entry is not None and entry.value == report:
                await self._blocks.delete(entry.key, entry.revision)
                self._log.info("report-forgotten", node=report.node)

    async def _signs(self, node: str, seen: Seen) -> Signs:
        """All that was written in the name of the node, as the leaders have it."""
        segment = codec.encode_segment(node)
        try:
            report = await self._blocks.get(reported_key(node), BlockReport)
            ack = await self._acks.get(segment, Ack)
            endpoints = await self._endpoints.list(Endpoint, f"{segment}.>")
        except (codec.Malformed, codec.UnknownVersion) as error:
            self._log.warning("signs-unreadable", node=node, why=error)
            return Signs(occupied=True)
        entries = [*endpoints.values(), *(entry for entry in (report, ack) if entry is not None)]
        occupied = any(entry.value.pod_uid in seen.pods for entry in endpoints.values())
        occupied = occupied or any(pod.node == node for pod in seen.pods.values())
        return Signs(tuple(sorted(entry.revision for entry in entries)), occupied)

    async def _is_gone(self, node: str) -> bool:
        """Whether the leader's ``objects``, the bucket that was seen, is whole and does not have the Node."""
        await self._fence()
        scope = codec.kind_prefix(KIND_OF[Node])
        whole = await self._objects.get(complete_key(scope), Complete)
        if whole is None or whole.value.epoch != self._objects_epoch():
            return False
        return await self._objects.get(codec.object_key(Node(name=node, uid="")), Node) is None

    async def _change(self, before: Block, after: Block) -> bool:
        key = codec.block_key(before.cidr)
        entry = await self._blocks.get(key, Block)
        if entry is None or entry.value != before:
            return False
        return await compare_and_set(self._blocks, key, after, entry) is not None
