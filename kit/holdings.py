"""Who holds an address, and so who may say that a pod lives at it: one answer for every reader of ``endpoints``.

A node may write any endpoint under its own keys; only ``ipam`` writes ``blocks`` and ``claims``. So an endpoint counts
if its writer holds a block that the address lies in, or the claim on it, and speaks in its own name. Otherwise whoever
takes one node over could take any pod's identity. Pure; depends on what stands in the buckets now, so an endpoint that
was seen before its block counts as soon as the block is seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proto.addresses import Block, Claim, Endpoint
from proto.net import Address


@dataclass(frozen=True, slots=True)
class Doubt:
    """An endpoint that does not count."""

    writer: str
    """Node that wrote it."""
    address: Address
    why: str
    leftover: bool
    """It once was true: the address has changed hands since. Its writer may just be down."""


class Holdings:
    """What ``blocks`` and ``claims`` say. Made anew when they change."""

    def __init__(self, blocks: Iterable[Block] = (), claims: Iterable[Claim] = ()) -> None:
        self._blocks = {
            (block.cidr.version, block.cidr.prefixlen, int(block.cidr.network_address)): block for block in blocks
        }
        lengths = {key[:2] for key in self._blocks}
        self._lengths = {version: sorted({n for v, n in lengths if v == version}, reverse=True) for version in (4, 6)}
        self._claims = {claim.address: claim for claim in claims}

    def block_of(self, address: Address) -> Block | None:
        """The smallest block that an address lies in."""
        number, bits = int(address), address.max_prefixlen
        for length in self._lengths[address.version]:
            shift = bits - length
            block = self._blocks.get((address.version, length, number >> shift << shift))
            if block is not None:
                return block
        return None

    def doubt(self, writer: str, endpoint: Endpoint) -> Doubt | None:
        """Why an endpoint that ``writer`` has published does not count; None when it does."""
        address = endpoint.address
        if endpoint.node != writer:
            why = f"{writer} wrote it in the name of {endpoint.node[:64]!r}"
            return Doubt(writer, address, why, leftover=False)
        claim = self._claims.get(address)
        if claim is not None and claim.node == writer:
            return None
        block = self.block_of(address)
        if block is not None and block.node == writer:
            return None
        if claim is not None:
            owner = f"{claim.owner.namespace}/{claim.owner.name}"
            why = f"{address} is kept for {owner}, whose pod is on {claim.node or 'no node'}"
            return Doubt(writer, address, why, leftover=claim.epoch > endpoint.epoch or not claim.node)
        if block is None:
            return Doubt(writer, address, f"{address} lies in no block", leftover=False)
        why = f"{address} lies in block {block.cidr} of {block.node or 'nobody'}"
        return Doubt(writer, address, why, leftover=block.epoch > endpoint.epoch)
