"""The ownership check: which node holds an address, and so may publish an endpoint at it: one answer for every reader
of ``endpoints``.

A node may write any endpoint under its own keys; only ``ipam`` writes ``blocks`` and ``claims``. So an endpoint counts
if its writer holds a block that the address lies in, or the claim on it, and speaks in its own name. Otherwise whoever
takes one node over could take any pod's identity. Pure; depends on what stands in the buckets now, so an endpoint that
was seen before its block counts as soon as the block is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from proto.addresses import Block, Claim, Endpoint
from proto.net import Address, Network


@dataclass(frozen=True, slots=True)
class Rejection:
    """An endpoint that does not count."""

    writer: str
    """Node that wrote it."""
    address: Address
    why: str
    leftover: bool
    """It once was true: the address has changed hands since. Its writer may just be down."""


class Holdings:
    """What ``blocks`` and ``claims`` say. Made of all, or kept by what changes."""

    def __init__(self, blocks: Iterable[Block] = (), claims: Iterable[Claim] = ()) -> None:
        self._blocks: dict[tuple[int, int, int], Block] = {}
        self._count: Counter[tuple[int, int]] = Counter()
        """How many blocks there are of a family and length."""
        self._lengths: dict[int, list[int]] = {4: [], 6: []}
        """Lengths of blocks by family, the longest first."""
        self.claims: dict[Address, Claim] = {}
        """By address; changed by :meth:`set_claim` alone."""
        for block in blocks:
            self.set_block(block.cidr, block)
        for claim in claims:
            self.set_claim(claim.address, claim)

    def set_block(self, cidr: Network, block: Block | None) -> None:
        """The block of a network from now on; None: there is none."""
        kind = cidr.version, cidr.prefixlen
        key = *kind, int(cidr.network_address)
        if block is not None:
            self._count[kind] += key not in self._blocks
            self._blocks[key] = block
        elif self._blocks.pop(key, None) is not None:
            self._count[kind] -= 1
        lengths = {length for (version, length), count in self._count.items() if count and version == cidr.version}
        self._lengths[cidr.version] = sorted(lengths, reverse=True)

    def set_claim(self, address: Address, claim: Claim | None) -> None:
        """The claim on an address from now on; None: there is none."""
        if claim is None:
            self.claims.pop(address, None)
        else:
            self.claims[address] = claim

    def block_at(self, cidr: Network) -> Block | None:
        """The block of exactly this network."""
        return self._blocks.get((cidr.version, cidr.prefixlen, int(cidr.network_address)))

    def block_of(self, address: Address) -> Block | None:
        """The smallest block that an address lies in."""
        number, bits = int(address), address.max_prefixlen
        for length in self._lengths[address.version]:
            shift = bits - length
            block = self._blocks.get((address.version, length, number >> shift << shift))
            if block is not None:
                return block
        return None

    def rejection(self, writer: str, endpoint: Endpoint) -> Rejection | None:
        """Why an endpoint that ``writer`` has published does not count; None when it does."""
        address = endpoint.address
        if endpoint.node != writer:
            why = f"{writer} wrote it in the name of {endpoint.node[:64]!r}"
            return Rejection(writer, address, why, leftover=False)
        claim = self.claims.get(address)
        if claim is not None and claim.node == writer:
            return None
        block = self.block_of(address)
        if block is not None and block.node == writer:
            return None
        if claim is not None:
            owner = f"{claim.owner.namespace}/{claim.owner.name}"
            why = f"{address} is kept for {owner}, whose pod is on {claim.node or 'no node'}"
            return Rejection(writer, address, why, leftover=claim.epoch > endpoint.epoch or not claim.node)
        if block is None:
            return Rejection(writer, address, f"{address} lies in no block", leftover=False)
        why = f"{address} lies in block {block.cidr} of {block.node or 'nobody'}"
        return Rejection(writer, address, why, leftover=block.epoch > endpoint.epoch)
