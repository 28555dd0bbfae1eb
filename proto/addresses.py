"""Addresses: blocks that nodes hold, owners that keep an address, claims on it, and endpoints that live at one.

An address belongs either to a node's block or to a claim, never to both. Every record that is changed by
compare-and-set carries a ``nonce``: after a write that timed out, the writer reads the key again and knows its own
record by it (a time-out is not a failure).
"""

from __future__ import annotations

import msgspec

from proto.net import Address, Network
from proto.objects import Owner

IPAM_HOLDER = "_ipam"
"""Holder of the blocks that ``ipam`` itself keeps for claims; no node can be named so."""


CONTESTED = "_contested"
"""Holder of a block that two nodes claim while nothing says whose it is: neither gives addresses of it away."""


class Block(msgspec.Struct, frozen=True):
    """Value of ``blocks.<block>``: who may give addresses of it away."""

    cidr: Network
    pool: str
    node: str
    """Node name, :data:`IPAM_HOLDER` or :data:`CONTESTED`; empty when nobody holds it."""
    node_uid: str
    epoch: int
    """Given by ``ipam``: raised whenever the block changes hands. What a node says of it is not believed."""
    nonce: str


class BlockReport(msgspec.Struct, frozen=True):
    """Value of ``blocks._reported.<node>``: the node has said, for this epoch of the bucket, which blocks it holds."""

    node: str
    bucket_epoch: str


ACKNOWLEDGED_KEY = "_acknowledged"
"""Key of :class:`AcknowledgedEndpoints` in ``blocks``."""


class AcknowledgedEndpoints(msgspec.Struct, frozen=True):
    """Value of ``blocks._acknowledged``: the maps of every live node follow ``endpoints`` up to here.

    A freed address whose endpoint was gone by then is known nowhere as that of its former pod.
    """

    epoch: str
    """Of ``endpoints``; empty when a live node has not acknowledged."""
    sequence: int
    """Stream sequence of ``endpoints``."""


class OwnerRecord(msgspec.Struct, frozen=True):
    """Value of ``owners.<owner>.<family>``: the address that an owner is meant to have."""

    owner: Owner
    address: Address
    pool: str
    nonce: str


class Claim(msgspec.Struct, frozen=True):
    """Value of ``claims.<address>``: who holds a kept address now; good only while ``owners`` agrees.

    ``node`` is empty while nobody holds it (the owner's pod is between two nodes).
    """

    address: Address
    owner: Owner
    node: str
    pod_uid: str
    container: str
    interface: str
    epoch: int
    """Given by ``ipam``: raised at each change of holder; orders endpoints of one address."""
    nonce: str


class Endpoint(msgspec.Struct, frozen=True):
    """Value of ``endpoints.<node>.slot.<number>``: a pod's interface that lives at this address now.

    Of two entries for one address, the one with the greater ``(epoch, sequence)`` is true.
    """

    node: str
    address: Address
    namespace: str
    pod: str
    pod_uid: str
    identity: int
    mac: bytes
    """Six bytes."""
    epoch: int
    """Epoch of the block or claim that the address comes from."""
    sequence: int
    """Counts this node's changes, never going back (kept in its journal)."""
    claimed: bool = False


class PoolVerdict(msgspec.Struct, frozen=True):
    """What becomes of one IPPool: whether it gives addresses, and why not (``kit.pools`` judges)."""

    pool: str
    reason: str
    """CamelCase, as in the condition Allocatable: ``OK``, ``PoolDisabled``, or what is wrong, e.g. ``CIDROverlap``."""
    problem: str = ""
    """What is wrong, from the field on; empty when nothing is."""
    remedy: str = ""

    @property
    def allocatable(self) -> bool:
        """New blocks and addresses may be taken from it."""
        return self.reason == "OK"

    @property
    def refused(self) -> bool:
        """It gives nothing, and nobody asked for that."""
        return bool(self.problem)

    @property
    def sentence(self) -> str:
        """The problem with the pool's name and the remedy."""
        return f"IPPool {self.pool}: {self.problem}; {self.remedy}"
