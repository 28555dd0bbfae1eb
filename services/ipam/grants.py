"""Giving blocks away: the shell of ``core.blocks`` and ``core.recovery``.

Owns every write to ``blocks`` but those of ``taking_back``. A grant is one compare-and-set on the block's key; a copy
that loses reads the record that won, and if that carries the asker's nonce, answers it: the same request, through
whichever copies, gets one block.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

import msgspec

from chassis.entry import Entry
from chassis.faults import Refused
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
from services.ipam.core.pools import Pool
from services.ipam.core.recovery import GiveUp, Keep, Write, judge_report
from services.ipam.core.seen import Seen
from services.ipam.store import Store, compare_and_set

ATTEMPTS = 64
REPORTED = "_reported"

Look = Callable[[], Seen]
Fence = Callable[[], Awaitable[None]]
"""Raises Refused when a bucket is not the one that was seen; asked once before anything is given."""
Clock = Callable[[], float]


def reported_key(node: str) -> str:
    """Key of a node's :class:`BlockReport` in ``blocks``."""
    return f"{REPORTED}.{encode_segment(node)}"


def gate(seen: Seen) -> None:
    """Raises Refused while nothing may be given away."""
    if seen.not_synced:
        raise Refused("not-synced", f"ipam is not in sync yet: {seen.not_synced}", retry=True)
    if not seen.complete:
        raise Refused("not-synced", "ipam waits until every node has said which blocks it holds", retry=True)


class Grants:
    """``store`` is ``blocks``, ``look`` what this copy sees, ``clock`` seconds since 1970."""

    def __init__(self, store: Store, look: Look, fence: Fence, clock: Clock = time.time) -> None:
        self._store = store
        self._fence = fence
        self._look = look
        self._clock = clock
        self._own = {4: asyncio.Lock(), 6: asyncio.Lock()}

    async def grant(self, request: BlockRequest) -> BlockGrant:
        """One more block for a node. Raises Refused: ``not-synced``, ``unknown-node``, ``pool-exhausted``."""
        seen = self._look()
        gate(seen)
        node = seen.nodes.get(request.node)
        if node is None or (request.node_uid and node.uid != request.node_uid):
            raise Refused(
                "unknown-node", f"Node {request.node} (uid {request.node_uid}) is not in the cluster", retry=True
            )
        await self._fence()
        pools = tuple(pool for pool in seen.pools.enabled(request.family) if pool.takes(node))
        holder = Holder(request.node, node.uid, request.nonce)
        return BlockGrant(
            await self._take(pools, request.family, holder, annotated(seen.nodes.values(), but=request.node))
        )

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
        key = block_key(reported.cidr)
        for _ in range(ATTEMPTS):
            entry = await self._store.get(key, Block)
            around = {cidr: block for cidr, block in self._look().blocks.items() if cidr != reported.cidr}
            if entry is not None:
                around[reported.cidr] = entry.value
            match judge_report(reported, node, node_uid, around):
                case Write(block):
                    if await compare_and_set(self._store, key, block, entry) is not None:
                        return block
                case Keep(block):
                    return block
                case GiveUp() as given:
                    return given
        raise busy()

    async def adopt(self, write: Write) -> None:
        """Write a dead node's annotated block, unless there is a record by now."""
        await compare_and_set(self._store, block_key(write.block.cidr), write.block, None)

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
            entry = await self._store.get(key, Block)
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
