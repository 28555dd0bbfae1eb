"""A snapshot of all buckets at one moment: the argument of every decision.

It may be behind (views are), never ahead; what is decided from it is made true by compare-and-set on records that are
read afresh, so an old view costs another turn and never an address given twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kit.pools import Pools
from proto.addresses import Block, BlockReport, Claim, OwnerRecord
from proto.net import Address, Network
from proto.objects import IPPool, Node, Owner, Pod
from services.ipam.core.evidence import NO_EVIDENCE, Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Present state by key."""

    blocks: Mapping[Network, Block] = field(default_factory=dict)
    owners: Mapping[tuple[Owner, int], OwnerRecord] = field(default_factory=dict)
    claims: Mapping[Address, Claim] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """By uid."""
    ippools: Mapping[str, IPPool] = field(default_factory=dict)
    pools: Pools = field(default_factory=Pools)
    """What was judged of ``ippools``."""
    evidence: Evidence = NO_EVIDENCE
    """What ``nodes`` and ``pods`` say of who holds what."""
    reports: tuple[BlockReport, ...] = ()
    epochs: tuple[str, str, str] = ("", "", "")
    """Epochs of ``blocks``, ``owners`` and ``claims``, as far as this copy knows."""
    not_synced: str = ""
    """Why decisions cannot be made yet; empty when all views are in sync."""
    complete: bool = False
    """The gate is open: every bucket's completeness marker stands for its present epoch."""

    whole_blocks: bool = False
    """``blocks`` has all that was held: its own marker stands, whatever the other buckets lack."""
    whole_claims: bool = False

    @property
    def epoch(self) -> str:
        """Epoch of ``blocks``."""
        return self.epochs[0]
