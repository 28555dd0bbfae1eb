"""Block allocation: a node gets the smallest free index of the first pool that takes the node.

Owns the choice, not the record: the shell writes what is chosen by compare-and-set and asks again when another was
faster. A block is free when no record names it, or when its record has an empty ``node`` (it was given back); the
record of a block is never deleted, so its epoch only rises. A block that a Node's annotation names is kept for that
node: it may run pods there although ``blocks`` has forgotten it.

The epoch of a block without a record is the time in whole seconds since 1970, not 1: when all memory is lost, a later
grant outranks one that was forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from ipaddress import ip_network

from kit.pools import LARGEST_BLOCK, Pool
from proto.addresses import IPAM_HOLDER, Block
from proto.net import Address, Network
from proto.objects import Node


@dataclass(frozen=True, slots=True)
class Holder:
    """Who a block is for."""

    node: str
    """Node name, or ``IPAM_HOLDER``."""
    node_uid: str
    nonce: str
    """Of the request: the same one gets the same block."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """No pool has a free block for the asker; ``why`` is one sentence with the remedy."""

    why: str


def choose_block(
    pools: Iterable[Pool],
    blocks: Mapping[Network, Block],
    holder: Holder,
    *,
    passed: Set[Network] = frozenset(),
    kept: Set[Network] = frozenset(),
    now: int = 1,
) -> Block | Exhausted:
    """The block for ``holder``.

    ``pools`` are those that take the node, in order. ``passed`` were tried just now and taken by others; ``kept`` are
    annotated for other nodes. ``now`` is the epoch for a block that never had a holder, in seconds since 1970.
    """
    names = []
    for pool in pools:
        names.append(pool.name)
        cidr = _smallest_free(pool, blocks, passed, kept)
        if cidr is None:
            continue
        known = blocks.get(cidr)
        epoch = now if known is None else max(known.epoch + 1, now)
        return Block(cidr, pool.name, holder.node, holder.node_uid, epoch, holder.nonce)
    if names:
        return Exhausted(f"every block of IPPool {', '.join(names)} is held; add an IPPool or give one a larger cidr")
    return Exhausted("no enabled IPPool of this family takes the node; create one, or correct spec.nodeSelector")


def block_at(pool: Pool, address: Address) -> Network:
    """The block of a pool that an address lies in."""
    return as_network(address).supernet(new_prefix=pool.block_size)


def as_network(address: Address) -> Network:
    """The /32 or /128 of an address."""
    return ip_network(address)


def is_free(block: Block | None) -> bool:
    """Whether nobody holds it."""
    return block is None or not block.node


def granted(blocks: Iterable[Block], holder: Holder, family: int) -> Block | None:
    """The block that this very request has been given already."""
    asked = (holder.node, holder.nonce, family)
    return next((block for block in blocks if (block.node, block.nonce, block.cidr.version) == asked), None)


def held_by(blocks: Iterable[Block], node: str) -> tuple[Block, ...]:
    """Blocks of one holder, in order of address."""
    return tuple(sorted((block for block in blocks if block.node == node), key=lambda block: _order(block.cidr)))


def of_ipam(blocks: Iterable[Block], family: int) -> tuple[Block, ...]:
    """Blocks that claims are taken from, in order."""
    return tuple(block for block in held_by(blocks, IPAM_HOLDER) if block.cidr.version == family)


def annotated(nodes: Iterable[Node], but: str = "") -> frozenset[Network]:
    """Blocks that the annotations of Nodes, but the named one's, tell of; what is too large to be one is left out."""
    return frozenset(cidr for node in nodes if node.name != but for cidr in node.blocks if is_block(cidr))


def is_block(cidr: Network) -> bool:
    """Whether a network is of a size that a block can have."""
    return cidr.prefixlen >= LARGEST_BLOCK[cidr.version]


def overlapping(blocks: Iterable[Block], cidr: Network) -> Block | None:
    """A held block, other than this very one, that shares addresses with it."""
    for block in blocks:
        if block.node and block.cidr != cidr and block.cidr.version == cidr.version and block.cidr.overlaps(cidr):
            return block
    return None


def _smallest_free(
    pool: Pool, blocks: Mapping[Network, Block], passed: Set[Network], kept: Set[Network]
) -> Network | None:
    taken: set[int] = set()
    for cidr, block in blocks.items():
        if block.node:
            taken.update(_indexes(pool, cidr))
    for cidr in (*passed, *kept):
        taken.update(_indexes(pool, cidr))
    count = 1 << (pool.block_size - pool.cidr.prefixlen)
    index = next((index for index in range(min(count, len(taken) + 1)) if index not in taken), None)
    return None if index is None else _at(pool, index)


def _indexes(pool: Pool, cidr: Network) -> Iterator[int]:
    """Indexes of the pool's blocks that share addresses with a network."""
    if cidr.version != pool.cidr.version:
        return iter(())
    first, last = int(cidr.network_address), int(cidr.broadcast_address)
    start, end = int(pool.cidr.network_address), int(pool.cidr.broadcast_address)
    if last < start or first > end:
        return iter(())
    shift = pool.cidr.max_prefixlen - pool.block_size
    return iter(range((max(first, start) - start) >> shift, ((min(last, end) - start) >> shift) + 1))


def _at(pool: Pool, index: int) -> Network:
    shift = pool.cidr.max_prefixlen - pool.block_size
    base = pool.cidr.network_address
    return type(pool.cidr)((int(base) + (index << shift), pool.block_size))


def _order(cidr: Network) -> tuple[int, int]:
    return cidr.version, int(cidr.network_address)
