"""Block allocation: the shell of ``core.blocks`` and ``core.recovery``.

Owns every write to ``blocks`` but those of ``reclaim``. A grant is one compare-and-set on the block's key; a copy
that loses reads the record that won, and if that carries the asker's nonce, answers it: the same request, through
whichever copies, gets one block.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

import msgspec

from chassis.bus.entry import Entry
from chassis.faults import Damaged, Refused
from kit.pools import Pool
from proto.addresses import IPAM_HOLDER, Block, BlockReport
from proto.codec import block_key, encode_segment
from proto.net import Address, Network
from proto.requests import BlockGrant, BlockRequest
from proto.sync import EPOCH_KEY, Epoch
from services.ipam.core.blocks import (
    Exhausted,
    Holder,
    annotated,
    block_at,
    choose_block,
    granted,
    is_free,
    overlapping,
)
from services.ipam.core.recovery import GiveUp, Keep, Reporter, Write, judge_report
from services.ipam.core.seen import Seen
from services.ipam.store import Store, compare_and_set

ATTEMPTS = 64
MOST_ADDRESSES = 2048
"""Addresses of one family in all blocks of one node: a stolen key does not empty the pools."""
REPORTED = "_reported"

Look = Callable[[], Seen]
Fence = Callable[[], Awaitable[None]]
"""Raises Refused when a bucket is not the one that was seen; asked once before anything is given."""
Clock = Callable[[], float]


def reported_key(node: str) -> str:
    """Key of a node's :class:`BlockReport` in ``blocks``."""
    return f"{REPORTED}.{encode_segment(node)}"


def check_recovered(seen: Seen) -> None:
    """Raises Refused while nothing may be given away."""
    if seen.not_synced:
        raise Refused("not-synced", f"ipam is not in sync yet: {seen.not_synced}", retry=True)
    if not seen.complete:
        raise Refused("not-synced", "ipam waits until every node has said which blocks it holds", retry=True)


class BlockAllocation:
    """``store`` is ``blocks``, ``look`` what this copy sees, ``clock`` seconds since 1970."""

    def __init__(
        self, store: Store, look: Look, fence: Fence, clock: Clock = time.time, most: int = MOST_ADDRESSES
    ) -> None:
        self._store = store
        self._fence = fence
        self._look = look
        self._clock = clock
        self._most = most
        self._own = {4: asyncio.Lock(), 6: asyncio.Lock()}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._given: dict[Network, Block] = {}
        """Written by this copy and perhaps not seen yet."""

    async def allocate(self, request: BlockRequest) -> BlockGrant:
        """One more block for a node.

        Raises Refused: ``not-synced``, ``unknown-node``, ``pool-exhausted``, ``node-limit``.
        """
        seen = self._look()
        check_recovered(seen)
        node = seen.nodes.get(request.node)
        if node is None or (request.node_uid and node.uid != request.node_uid):
            raise Refused(
                "unknown-node", f"Node {request.node} (uid {request.node_uid}) is not in the cluster", retry=True
            )
        await self._fence()
        pools = tuple(pool for pool in seen.pools.enabled(request.family) if pool.takes(node))
        holder = Holder(request.node, node.uid, request.nonce)
        async with self._lock_of(request.node):
            if granted(self._held(request.node), holder, request.family) is None:
                self._refuse_more(request.node, request.family)
            kept = annotated(seen.nodes.values(), but=request.node)
            block = await self._take(pools, request.family, holder, kept)
            self._given[block.cidr] = block
        return BlockGrant(block)

    def _lock_of(self, node: str) -> asyncio.Lock:
        """One request of a node after the other, so that what it holds is counted."""
        lock = self._locks.get(node)
        if lock is None:
            lock = self._locks[node] = asyncio.Lock()
        return lock

    def _held(self, node: str) -> tuple[Block, ...]:
        """Blocks of a node, those that this copy has just written included."""
        seen = self._look().blocks
        for cidr, block in list(self._given.items()):
            if cidr in seen and seen[cidr].epoch >= block.epoch:
                del self._given[cidr]
        return tuple(block for block in {**seen, **self._given}.values() if block.node == node)

    def _refuse_more(self, node: str, family: int) -> None:
        held = [block.cidr for block in self._held(node) if block.cidr.version == family]
        if held and sum(cidr.num_addresses for cidr in held) >= self._most:
            why = f"node {node} holds {len(held)} blocks of IPv{family}, and may hold {self._most} addresses"
            raise Refused("node-limit", f"{why}; delete pods, or raise AIRMESH_NODE_ADDRESSES of ipam", retry=True)

    async def own_block(self, pools: tuple[Pool, ...], family: int) -> Block:
        """One more block for claims. Raises Refused: ``pool-exhausted``."""
        async with self._own[family]:
            kept = annotated(self._look().nodes.values())
            return await self._take(pools, family, Holder(IPAM_HOLDER, "", secrets.token_hex(8)), kept)

    async def own_block_of(self, pool: Pool, address: Address) -> Block:
        """The block around a fixed address, made ipam's own. Raises Refused: ``address-in-node-block``."""
        cidr = block_at(pool, address)
        key = block_key(cidr)
        for _ in range(ATTEMPTS):
            entry = await self._store.get(key, Block)
            if entry is not None and entry.value.node == IPAM_HOLDER:
                return entry.value
            seen = self._look()
            other = overlapping(seen.blocks.values(), cidr)
            by = entry.value.node if entry is not None else other.node if other is not None else ""
            if by or cidr in annotated(seen.nodes.values()):
                raise Refused(
                    "address-in-node-block",
                    f"{address} lies in block {cidr}, which node {by or 'of an annotation'} holds; "
                    "choose an address of a pool that nodes take no blocks of",
                )
            epoch = max(int(self._clock()), entry.value.epoch + 1 if entry else 1)
            block = Block(cidr, pool.name, IPAM_HOLDER, "", epoch, secrets.token_hex(8))
            if await compare_and_set(self._store, key, block, entry) is not None:
                return block
        raise busy()

    async def record(self, reported: Block, node: str, node_uid: str) -> Block | GiveUp:
        """One block of a node's report: the record as it stands now when the node may go on, else why not."""
        async with self._lock_of(node):
            return await self._record(reported, node, node_uid)

    async def _record(self, reported: Block, node: str, node_uid: str) -> Block | GiveUp:
        key = block_key(reported.cidr)
        for _ in range(ATTEMPTS):
            entry, mend = None, False
            try:
                entry = await self._store.get(key, Block)
            except Damaged:  # no copy knew what stood there, or it would be mended by now: the holder's word remakes it
                mend = reported.cidr not in self._look().blocks
            seen = self._look()
            others = {cidr: block for cidr, block in seen.blocks.items() if cidr != reported.cidr}
            if entry is not None:
                others[reported.cidr] = entry.value
            judged = judge_report(
                reported,
                self._reporter(seen, reported.cidr, node, node_uid),
                others,
                seen.evidence,
                complete=seen.complete or seen.whole_blocks,
                now=int(self._clock()),
            )
            match judged:
                case Write(block):
                    if await compare_and_set(self._store, key, block, entry, mend=mend) is None:
                        continue
                    if block.node != node:
                        why = f"another node holds block {block.cidr} too, and the API does not say whose it is"
                        return GiveUp(block.cidr, why, lie=True)
                    self._given[block.cidr] = block
                    return block
                case Keep(block):
                    return block
                case GiveUp() as given:
                    return given
        raise busy()

    def _reporter(self, seen: Seen, cidr: Network, node: str, node_uid: str) -> Reporter:
        """What a node may have on its word alone: a block of a pool that takes it, within its limit."""
        there, pool = seen.nodes.get(node), seen.pools.of(cidr)
        held = sum(block.cidr.num_addresses for block in self._held(node) if block.cidr.version == cidr.version)
        may = there is not None and pool is not None and pool.block_size == cidr.prefixlen and pool.takes(there)
        uid = there.uid if there is not None else node_uid
        return Reporter(
            node=node, uid=uid, pool=pool.name if pool else "", may_take=may and (not held or held < self._most)
        )

    async def adopt(self, write: Write) -> None:
        """Write a record, unless there is another by now than that which was judged."""
        key = block_key(write.block.cidr)
        entry = await self._store.get(key, Block) if write.over is not None else None
        if write.over is None or (entry is not None and entry.value == write.over):
            await compare_and_set(self._store, key, write.block, entry)

    async def epoch(self) -> str:
        """The epoch of ``blocks`` by its leader; empty when there is none yet."""
        entry = await self._store.get(EPOCH_KEY, Epoch)
        return entry.value.epoch if entry is not None else ""

    async def reported(self, node: str, epoch: str) -> None:
        """The node has said all, for this epoch of the bucket."""
        await self._store.put(reported_key(node), BlockReport(node, epoch))

    async def _take(self, pools: tuple[Pool, ...], family: int, holder: Holder, kept: frozenset[Network]) -> Block:
        passed: set[Network] = set()
        for _ in range(ATTEMPTS):
            blocks = self._look().blocks
            if (mine := granted(blocks.values(), holder, family)) is not None:
                return mine
            chosen = choose_block(pools, blocks, holder, passed=passed, kept=kept, now=int(self._clock()))
            if isinstance(chosen, Exhausted):
                raise Refused("pool-exhausted", chosen.why, retry=True)
            key = block_key(chosen.cidr)
            try:
                entry = await self._store.get(key, Block)
            except Damaged:  # somebody's: whose it is, a copy that saw it or the holder's report will say
                passed.add(chosen.cidr)
                continue
            if entry is not None and not is_free(entry.value):
                if _is_ours(entry, holder):
                    return entry.value
                passed.add(chosen.cidr)
                continue
            if entry is not None and entry.value.epoch >= chosen.epoch:
                chosen = msgspec.structs.replace(chosen, epoch=entry.value.epoch + 1)
            if await compare_and_set(self._store, key, chosen, entry) is not None:
                return chosen
        raise busy()


def _is_ours(entry: Entry[Block], holder: Holder) -> bool:
    """Same request (nonce), or a block that any copy took for claims."""
    block = entry.value
    return block.node == holder.node and (block.nonce == holder.nonce or holder.node == IPAM_HOLDER)


def busy() -> Refused:
    """Too many turns were lost against other copies."""
    return Refused("busy", "others change the same records faster; try again", retry=True)
