"""The recovery barrier: after a loss of ``blocks`` nobody gets a block before every node has reported what it holds.

A bucket that was made again is empty and looks as if all addresses were free. So under a new epoch the gate is shut
until each Node of ``objects`` has reported the blocks of its journal, or is dead (not ready) and its annotation tells
them, or is *overdue*: silent for so long that its annotation counts as well. That takes nothing from a node that is cut
off and goes on: a dataplane gives addresses of annotated blocks alone, and by then its kubelet has shown the API the
pods that had kept addresses, of which the blocks are put on record as ``ipam``'s. Once ``_complete`` stands for the
epoch the gate stays open: a node that joins later holds nothing, and one that comes back is judged by its report.

A report is the node's own word, and its key may be stolen: it restores what the node holds, and takes nothing from
anybody. Epochs are ours alone. While the gate is open a block stays with the holder on record. While it is shut, two
nodes may say that they hold one block; then the API decides (``evidence``), and where the API is silent neither has it:
the block is *contested* until it speaks. A block of which nobody else knows is recorded as if it had just been asked
for, within what one node may hold. Whoever is not believed does not find the block in the answer, and gives it up. A
node that was thought to be gone (``orphaned``) is believed again as soon as it speaks, while nobody else has its block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import msgspec

from kit.pools import Pools
from proto.addresses import CONTESTED, IPAM_HOLDER, Block, BlockReport, Claim
from proto.net import Address, Network
from proto.objects import Node, Owner, Pod
from services.ipam.core.blocks import annotated, as_network, block_at, is_block, overlapping
from services.ipam.core.claims import RECOVERED, bare_owner, is_running, owner_text
from services.ipam.core.evidence import Evidence
from services.ipam.core.orphaned import MARK, is_marked, unmarked

ANNOTATED = "annotation"
"""Nonce of a record made from a Node's annotation."""
REPORTED = "reported"
"""Nonce of a record made from a report whose own cannot stand in it."""
MAX_NONCE = 256


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
    lie: bool = False
    """Another holds it by now: the reporter has slept for long, or says what is not so. A person should know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Who sent a report, by its key and its Node object, and what it may have on its word alone."""

    node: str
    uid: str
    may_take: bool = True
    """It is a Node, the block is one of a sound pool, and the node holds less than it may."""
    pool: str = ""
    """Name of the pool that the block lies in."""


def waiting_for(nodes: Iterable[Node], reports: Iterable[BlockReport], epoch: str) -> tuple[str, ...]:
    """Names of Nodes that have not yet said, for this epoch of the bucket, what they hold; overdue or not."""
    reported = {report.node for report in reports if report.bucket_epoch == epoch}
    return tuple(sorted(node.name for node in nodes if node.name not in reported and (node.ready or not node.blocks)))


def silence(name: str, nodes: Mapping[str, Node], seconds: int, overdue: int) -> tuple[str, str]:
    """What a person must know of a node that has been waited for so long, and what becomes of it after ``overdue``."""
    node = nodes.get(name)
    what = "is Ready, but its dataplane" if node is not None and node.ready else "is not ready, and it"
    fault = f"node {name} {what} has not said for {seconds} s which blocks it holds"
    if seconds < overdue:
        fault += f": until it does, or {overdue} s have passed, no node gets a new block and no owner a new address"
    else:
        fault += ": its annotation airmesh.io/blocks counts, and new blocks and addresses are given without its word"
    return fault, f"start the dataplane of {name} and see that it reaches NATS"


def adopted(
    nodes: Iterable[Node],
    reports: Iterable[BlockReport],
    epoch: str,
    blocks: Mapping[Network, Block],
    pools: Pools,
    now: int,
    overdue: Set[str] = frozenset(),
) -> tuple[Write, ...]:
    """Records for nodes that cannot report, dead or ``overdue``: from their annotations. ``now``: the records' epoch,
    seconds since 1970.
    """
    reported = {report.node for report in reports if report.bucket_epoch == epoch}
    writes: list[Write] = []
    for node in sorted(nodes, key=lambda node: node.name):
        if node.name in reported or (node.ready and node.name not in overdue):
            continue
        for cidr in node.blocks:
            if cidr in blocks or not is_block(cidr) or overlapping(blocks.values(), cidr):
                continue
            pool = pools.of(cidr)
            name = pool.name if pool else ""
            writes.append(Write(Block(cidr, name, node.name, node.uid, epoch=now, nonce=ANNOTATED), None))
    return tuple(writes)


def kept_blocks(
    evidence: Evidence, nodes: Iterable[Node], blocks: Mapping[Network, Block], pools: Pools, now: int
) -> tuple[Write, ...]:
    """Records for blocks that nobody reported and no annotation names, though running pods have addresses of them.

    These are kept ones, of nodes that cannot report: the blocks become ``ipam``'s.
    """
    known = {cidr for cidr, block in blocks.items() if block.node} | annotated(nodes)
    found: dict[Network, Write] = {}
    for address in evidence.addresses():
        pool = pools.of(as_network(address))
        cidr = block_at(pool, address) if pool is not None else None
        if pool is None or cidr is None or cidr in known or cidr in found or overlapping(blocks.values(), cidr):
            continue
        over = blocks.get(cidr)
        epoch = now if over is None else max(over.epoch + 1, now)
        found[cidr] = Write(Block(cidr, pool.name, IPAM_HOLDER, "", epoch, RECOVERED), over)
    return tuple(found.values())


def judge_report(
    reported: Block,
    reporter: Reporter,
    blocks: Mapping[Network, Block],
    evidence: Evidence,
    *,
    complete: bool,
    now: int,
) -> Write | Keep | GiveUp:
    """One reported block against the record of it (which the caller has read afresh) and the blocks around it.

    ``complete``: the gate is open. ``now``: the epoch of a record that there was none of, in seconds since 1970.
    """
    cidr, node = reported.cidr, reporter.node
    if why := _out_of_the_question(reported, node, blocks):
        return GiveUp(cidr, why, lie=True)
    known = blocks.get(cidr)
    if known is not None and known.node == node:
        return Write(unmarked(known), known) if is_marked(known) else Keep(known)
    holders = evidence.holders(cidr)
    if holders and node not in holders:
        return GiveUp(cidr, f"block {cidr} is {' and '.join(sorted(holders))}'s, as the API says", lie=True)
    epoch = now if known is None else max(known.epoch + 1, now)
    mine = Block(cidr, reporter.pool, node, reporter.uid, epoch, _nonce(reported))
    if known is None or not known.node:
        if len(holders) > 1:
            return Write(_contested(mine), known)
        if holders or reporter.may_take:
            return Write(mine, known)
        return GiveUp(
            cidr, f"nothing says that block {cidr} was given to this node, which may not have it now", lie=True
        )
    if complete:
        return GiveUp(cidr, f"block {cidr} is {known.node}'s (epoch {known.epoch})", lie=True)
    if known.node == IPAM_HOLDER and evidence.nodes_with_pods_in(cidr) - {node}:
        return GiveUp(cidr, f"block {cidr} is ipam's: pods of several nodes keep addresses of it", lie=True)
    if len(holders) == 1 and known.node != IPAM_HOLDER:
        return Write(mine, known)
    if known.node == CONTESTED:
        return GiveUp(cidr, f"block {cidr} is contested", lie=True)
    return Write(_contested(mine), known)


def _out_of_the_question(reported: Block, node: str, blocks: Mapping[Network, Block]) -> str:
    """Why the reporter cannot hold the block, whatever else is known; empty when it can."""
    cidr = reported.cidr
    if reported.node != node:
        return f"block {cidr} belongs to {reported.node[:64]}, not to the reporter"
    if not is_block(cidr):
        return f"{cidr} is too large to be a block"
    other = overlapping(blocks.values(), cidr)
    return "" if other is None else f"block {cidr} overlaps {other.cidr}, which {other.node} holds"


def settled(
    blocks: Iterable[Block], claims: Iterable[Address], evidence: Evidence, uids: Mapping[str, str], now: int
) -> tuple[Write, ...]:
    """Contested blocks of which the API says by now whose they are. ``uids``: of Nodes, by name.

    One that pods have kept addresses of is ``ipam``'s.
    """
    contested = [block for block in blocks if block.node == CONTESTED]
    claimed = tuple(claims) if contested else ()
    writes: list[Write] = []
    for block in contested:
        holders = evidence.holders(block.cidr)
        if any(address in block.cidr and evidence.pods_at(address) for address in claimed):
            holder = IPAM_HOLDER
        elif len(holders) == 1 and (name := next(iter(holders))) in uids:
            holder = name
        else:
            continue
        epoch = max(block.epoch + 1, now)
        record = msgspec.structs.replace(block, node=holder, node_uid=uids.get(holder, ""), epoch=epoch)
        writes.append(Write(record, block))
    return tuple(writes)


def judge_reported(
    reported: Claim,
    known: Claim | None,
    node: str,
    evidence: Evidence,
    pods: Mapping[str, Pod],
    *,
    complete: bool,
    now: int,
) -> Claim | str | None:
    """The record that a claim from a node's journal should become; None: the one that is there stays; else a lie.

    A node speaks of its own pods alone: of one that the API shows there, for the owner that the pod has, of an address
    that the API does not show at another. A pod that the API does not show is gone, or about to be: while the gate is
    shut its address is kept from others until it has rested, for :func:`nobody` and not for the owner it names.
    """
    pod = pods.get(reported.pod_uid)
    if reported.node != node:
        return f"a claim on {reported.address} in the name of node {reported.node[:64]!r}"
    if known is not None and (known.node, known.pod_uid, known.nonce) == (node, reported.pod_uid, reported.nonce):
        return None
    at = evidence.pods_at(reported.address)
    if pod is None or not is_running(pod):
        unheld = known is None and not complete and not at
        return msgspec.structs.replace(reported, owner=nobody(node), epoch=now) if unheld else None
    if pod.node != node or reported.owner not in (pod.owner, bare_owner(pod)):
        owner = owner_text(reported.owner)
        return f"a claim on {reported.address} for {owner} by pod {pod.namespace}/{pod.name} of node {pod.node}"
    theirs = [address for address in pod.addresses if address.version == reported.address.version]
    shown = any(other.uid == pod.uid for other in at)
    if (at and not shown) or (theirs and not shown):
        return f"a claim on {reported.address}, which its pod {pod.namespace}/{pod.name} does not have"
    if known is None:
        return msgspec.structs.replace(reported, epoch=now)
    if known.owner == reported.owner and known.node in ("", node):
        return msgspec.structs.replace(reported, epoch=known.epoch) if known.nonce == RECOVERED else None
    other = pods.get(known.pod_uid)
    proven = other is not None and other in at
    if complete or not shown or proven:
        return (
            None if complete and known.owner == reported.owner else f"a claim on {reported.address}, which is another's"
        )
    return msgspec.structs.replace(reported, epoch=max(known.epoch + 1, now))


def nobody(node: str) -> Owner:
    """Owner of an address that a node's journal names for a pod that is not there: no pod has such an owner."""
    return Owner("", "Node", node)


def _contested(block: Block) -> Block:
    return msgspec.structs.replace(block, node=CONTESTED, node_uid="")


def _nonce(reported: Block) -> str:
    """As reported, so that a request whose answer was lost gets its block; never one that means something to us."""
    foul = len(reported.nonce) > MAX_NONCE or reported.nonce.startswith((MARK, ANNOTATED))
    return REPORTED if foul or not reported.nonce else reported.nonce
