"""What is done when ``blocks`` may have forgotten: nobody gets anything before every node has said what it holds.

A bucket that was made again is empty and looks as if all addresses were free. So under a new epoch the gate is shut
until each Node of ``objects`` has reported the blocks of its journal, or is dead (not ready) and its annotation tells
them. Once ``_complete`` stands for the epoch the gate stays open: a node that joins later holds nothing, and one that
comes back is judged by its report.

Of two that hold one block the higher epoch wins, since a block changes hands only by a higher one; on a tie the record
that is there stays. The loser is not listed in the answer, so it gives the block up. A node that was thought to be gone
(``deserted``) is believed again as soon as it speaks, while nobody else has its block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from proto.addresses import Block, BlockReport
from proto.net import Network
from proto.objects import Node
from services.ipam.core.blocks import is_block, overlapping
from services.ipam.core.deserted import is_former_holder, is_marked, unmarked
from services.ipam.core.pools import Pools

ANNOTATED = "annotation"
"""Nonce of a record made from a Node's annotation."""


@dataclass(frozen=True, slots=True)
class Write:
    """A block's record should become this one; ``over`` is the record it replaces (None: there is none)."""

    block: Block
    over: Block | None


@dataclass(frozen=True, slots=True)
class Keep:
    """The record that is there is right and names the reporter."""

    block: Block


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The reporter must stop giving the block away; ``why`` is one sentence."""

    cidr: Network
    why: str


def waiting_for(nodes: Iterable[Node], reports: Iterable[BlockReport], epoch: str) -> tuple[str, ...]:
    """Names of Nodes that have not yet said, for this epoch of the bucket, what they hold."""
    reported = {report.node for report in reports if report.bucket_epoch == epoch}
    return tuple(sorted(node.name for node in nodes if node.name not in reported and (node.ready or not node.blocks)))


def adopted(
    nodes: Iterable[Node], reports: Iterable[BlockReport], epoch: str, blocks: Mapping[Network, Block], pools: Pools
) -> tuple[Write, ...]:
    """Records for dead nodes that cannot report: from their annotations, with the lowest epoch there is."""
    reported = {report.node for report in reports if report.bucket_epoch == epoch}
    writes: list[Write] = []
    for node in sorted(nodes, key=lambda node: node.name):
        if node.ready or node.name in reported:
            continue
        for cidr in node.blocks:
            if cidr in blocks or not is_block(cidr) or overlapping(blocks.values(), cidr):
                continue
            pool = pools.of(cidr)
            name = pool.name if pool else ""
            writes.append(Write(Block(cidr, name, node.name, node.uid, epoch=1, nonce=ANNOTATED), None))
    return tuple(writes)


def judge_report(reported: Block, node: str, node_uid: str, blocks: Mapping[Network, Block]) -> Write | Keep | GiveUp:
    """One reported block against the record of it (which the caller has read afresh) and the blocks around it."""
    if reported.node != node:
        return GiveUp(reported.cidr, f"block {reported.cidr} belongs to {reported.node}, not to the reporter")
    if not is_block(reported.cidr):
        return GiveUp(reported.cidr, f"{reported.cidr} is too large to be a block")
    if other := overlapping(blocks.values(), reported.cidr):
        return GiveUp(reported.cidr, f"block {reported.cidr} overlaps {other.cidr}, which {other.node} holds")
    known = blocks.get(reported.cidr)
    mine = Block(reported.cidr, reported.pool, node, node_uid, reported.epoch, reported.nonce)
    if known is None:
        return Write(mine, None)
    if known.node == node:
        if reported.epoch > known.epoch:
            return Write(mine, known)
        return Write(unmarked(known), known) if is_marked(known) else Keep(known)
    if is_former_holder(reported, known):
        return Write(msgspec.structs.replace(mine, epoch=known.epoch + 1), known)
    if reported.epoch > known.epoch:
        return Write(mine, known)
    holder = known.node or "nobody"
    return GiveUp(reported.cidr, f"block {reported.cidr} has gone to {holder} (epoch {known.epoch} > {reported.epoch})")
