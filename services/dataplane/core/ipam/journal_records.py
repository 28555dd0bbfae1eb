"""The records of a node's address journal: what is written down before it is acted on.

Each record is one fact. Played in order from an empty :class:`services.dataplane.core.ipam.journal.Ledger` they give
the node's present state, so a record is never changed: a release is another record. Times are seconds of the node's
boot-time clock (CLOCK_BOOTTIME: it counts on through suspend and never goes back within one boot); what is written
under one boot says nothing about the clock of the next, which is why :class:`Booted` is a record of its own.
"""

from __future__ import annotations

import msgspec

from proto.addresses import Block, Claim
from proto.net import Address, Network
from services.dataplane.core.attachment import Attachment


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """An address that one pod interface has, and all that its entry in ``endpoints`` is made from."""

    address: Address
    container: str
    interface: str
    namespace: str
    pod: str
    pod_uid: str
    identity: int = 0
    mac: bytes = b""
    """Six bytes, or empty until the link is made."""
    nonce: str
    """Of the claim when ``claimed``; else of the request that took it. A release names it."""
    epoch: int
    """Of the block or claim that the address comes from."""
    sequence: int
    """Number of this node's latest change to it: with ``epoch`` it orders entries of ``endpoints``."""
    boot: str
    """Boot in which it was taken. After another boot no link of that time exists."""
    at: float
    """When it was taken, on the clock of that boot."""
    claimed: bool = False
    """From a claim of ``ipam`` (an address that moves with its owner), not from a block of this node."""

    @property
    def attachment(self) -> Attachment:
        """What it was given to."""
        return Attachment(self.container, self.interface)


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """First record of every file: whose journal it is."""

    node: str
    cluster: str = ""
    """Uid of the ``kube-system`` namespace; empty until it is known."""


class Bound(msgspec.Struct, frozen=True, tag="bound"):
    """The cluster of this journal became known."""

    cluster: str


class Booted(msgspec.Struct, frozen=True, tag="booted"):
    """The journal was opened for the first time in this boot: all that rests goes on resting from here."""

    boot: str
    at: float


class BlockHeld(msgspec.Struct, frozen=True, tag="block-held"):
    """The node may give addresses of the block away (also: the same block with another epoch)."""

    block: Block
    rests_from: float | None = None
    """When set, pods that nobody remembers may have had its addresses until then: those that are free rest from it."""


class Learnt(msgspec.Struct, frozen=True, tag="learnt"):
    """``ipam`` has told which blocks the node held before this journal was begun; from now on the journal knows all."""


class BlockGiven(msgspec.Struct, frozen=True, tag="block-given"):
    """The block has another holder or none; nothing of it is given away any more."""

    cidr: Network


class Allocated(msgspec.Struct, frozen=True, tag="allocated"):
    """An address of an own block belongs to a pod interface."""

    lease: Lease


class ClaimHeld(msgspec.Struct, frozen=True, tag="claim-held"):
    """A claim of ``ipam`` is held by a pod interface of this node."""

    claim: Claim
    lease: Lease


class Changed(msgspec.Struct, frozen=True, tag="changed"):
    """The identity or MAC of a pod interface is another one."""

    container: str
    interface: str
    identity: int
    mac: bytes
    sequence: int


class Released(msgspec.Struct, frozen=True, tag="released"):
    """The interface is gone: its block addresses rest from ``at``, its claims are owed to ``ipam``."""

    container: str
    interface: str
    at: float


class Rested(msgspec.Struct, frozen=True, tag="rested"):
    """In a compacted file: an address that was freed at this time. Their order is the order of reuse."""

    address: Address
    at: float


class ClaimOwed(msgspec.Struct, frozen=True, tag="claim-owed"):
    """In a compacted file: a claim that ``ipam`` has not yet been told is no longer held."""

    address: Address
    container: str
    interface: str
    nonce: str


class ClaimSettled(msgspec.Struct, frozen=True, tag="claim-settled"):
    """``ipam`` knows that the claim is no longer held."""

    address: Address
    nonce: str


class Reserved(msgspec.Struct, frozen=True, tag="reserved"):
    """No sequence number up to and including this one is ever used again after a restart."""

    sequence: int


Record = (
    Opened
    | Bound
    | Booted
    | BlockHeld
    | Learnt
    | BlockGiven
    | Allocated
    | ClaimHeld
    | Changed
    | Released
    | Rested
    | ClaimOwed
    | ClaimSettled
    | Reserved
)
"""Every record; on disk each carries its tag."""
