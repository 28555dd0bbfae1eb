"""Orphaned blocks, of Nodes that were deleted: when one may be reclaimed, and what says that it may not.

Two phases, each a compare-and-set on the block's record by the shell. A Node that has been absent for the grace, with
nothing written in its name meanwhile, has its blocks *marked*: still held, the nonce begins with :data:`MARK`. A block
that has been seen marked for the cooldown, with still no sign, is *freed*: so its addresses have rested before anybody
else is given them. A Node that is there again, a sign of life, or a pod of the node that still exists takes the mark
away, and all begins anew; so does a restart of the observer, but for what is marked already.

A holder that comes back before another has the block gets it again by its report, as it would any free block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

import msgspec

from proto.addresses import CONTESTED, IPAM_HOLDER, Block
from proto.net import Network

MARK = "deserted-"
"""Begins the nonce of a block whose Node is gone."""
NO_NODE = ("", IPAM_HOLDER, CONTESTED)
"""Holders that are no node."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What the buckets tell of a node that ``objects`` does not have."""

    written: tuple[int, ...] = ()
    """Revisions of all that the node wrote (its report, acknowledgement and endpoints): a change is a sign of life.

    What a node left behind when it died does not change, so it holds up nothing.
    """
    occupied: bool = False
    """A pod of the node, or behind one of its endpoints, still exists; or it cannot be told."""


@dataclass(frozen=True, slots=True)
class Absence:
    """A Node was first seen to be absent, with these ``written`` revisions, at ``since``."""

    written: tuple[int, ...]
    since: float


@dataclass(frozen=True, slots=True)
class Watched:
    """For the next pass: what has lasted since when, in seconds of the observer's clock."""

    absent: Mapping[str, Absence] = field(default_factory=dict)
    marked: Mapping[Network, tuple[Block, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reclaim:
    """What a pass found: records as they are and as they should be."""

    mark: tuple[tuple[Block, Block], ...] = ()
    unmark: tuple[tuple[Block, Block], ...] = ()
    free: tuple[tuple[Block, Block], ...] = ()
    watched: Watched = field(default_factory=Watched)


def absent_holders(blocks: Iterable[Block], nodes: Set[str]) -> tuple[str, ...]:
    """Names that hold blocks and are no Node's."""
    return tuple(sorted({block.node for block in blocks} - nodes - {*NO_NODE}))


def reclaim(
    blocks: Iterable[Block],
    nodes: Set[str],
    signs: Mapping[str, Signs],
    before: Watched,
    *,
    now: float,
    grace: float,
    cooldown: float,
) -> Reclaim:
    """A pass over all blocks; ``signs`` is of every absent holder, ``now`` monotonic seconds of the observer."""
    held = [block for block in blocks if block.node not in NO_NODE]
    absent, alive = _absences(absent_holders(held, nodes), signs, before, now)
    mark: list[tuple[Block, Block]] = []
    unmark: list[tuple[Block, Block]] = []
    free: list[tuple[Block, Block]] = []
    marked: dict[Network, tuple[Block, float]] = {}
    for block in held:
        if block.node in nodes or block.node in alive:
            if is_marked(block):
                unmark.append((block, unmarked(block)))
        elif not is_marked(block):
            if now - absent[block.node].since >= grace and block.node in before.absent:
                mark.append((block, msgspec.structs.replace(block, nonce=MARK + block.nonce)))
        else:
            seen, since = before.marked.get(block.cidr, (None, now))
            marked[block.cidr] = block, since if seen == block else now
            if seen == block and now - since >= cooldown:
                free.append((block, freed(block)))
    return Reclaim(tuple(mark), tuple(unmark), tuple(free), Watched(absent, marked))


def _absences(
    holders: Iterable[str], signs: Mapping[str, Signs], before: Watched, now: float
) -> tuple[dict[str, Absence], set[str]]:
    """Since when each absent holder is silent, and those of whom there is a sign of life right now."""
    absent: dict[str, Absence] = {}
    alive: set[str] = set()
    for node in holders:
        sign, known = signs.get(node, Signs(occupied=True)), before.absent.get(node)
        if sign.occupied or (known is not None and known.written != sign.written):
            alive.add(node)
        absent[node] = known if known is not None and node not in alive else Absence(sign.written, now)
    return absent, alive


def is_marked(block: Block) -> bool:
    """Whether a block's Node was found to be gone."""
    return block.nonce.startswith(MARK)


def unmarked(block: Block) -> Block:
    """The record as it was before the mark."""
    return msgspec.structs.replace(block, nonce=block.nonce.removeprefix(MARK))


def freed(block: Block) -> Block:
    """The block held by nobody. Its epoch rises, so that whoever held it is not believed any more."""
    return msgspec.structs.replace(block, node="", node_uid="", epoch=block.epoch + 1)
