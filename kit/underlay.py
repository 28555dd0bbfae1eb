"""Whose an address of the shared network is: which of the addresses that nodes tell of themselves in ``routes`` count.

By them a packet in a tunnel is known to come from a node, so this is where a stolen node key must end: a node speaks of
itself alone. An address counts as a node's when that node tells it and holds a block or a claim (so ``ipam`` knows it),
and nobody else can be meant: it is not this node's own, it lies in no block and is no kept address, the API gives it to
no other node and to no API server. Of two that tell one address, the one that the API lists it for has it; where the
API lists it for none of them, or for both, neither has.

Depends on the present state alone, and a change costs the addresses that it is about. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass

from kit.holdings import Holdings
from proto.addresses import CONTESTED, IPAM_HOLDER, Block, Claim
from proto.net import Address, Network

MOST_ADDRESSES = 16
"""Addresses of one node that are looked at, the lowest first: what a node key can make others keep."""
LISTED = 4096
"""Addresses of a network that are looked up one by one; of a larger one all that are known are gone through."""
NOBODY = ("", IPAM_HOLDER, CONTESTED)
"""Holders of blocks and claims that are no nodes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An address that does not count as that of some nodes."""

    address: Address
    nodes: tuple[str, ...]
    """Who tells it and does not have it, by name."""
    why: str


class Underlay:
    """Who has which address, kept by what changes; :meth:`settle` brings it up to date."""

    def __init__(self, me: str = "") -> None:
        """``me``: this node; empty for a machine that is none."""
        self._me = me
        self._announced: dict[str, tuple[Address, ...]] = {}
        self._at: dict[Address, set[str]] = {}
        """Nodes by the addresses that they tell."""
        self._holds: Counter[str] = Counter()
        """Blocks and claims of each node."""
        self._nodes: Mapping[str, frozenset[Address]] = {}
        self._listed: dict[Address, set[str]] = {}
        self._servers: Set[Address] = frozenset()
        self._own: Set[Address] = frozenset()
        self._dirty: set[Address] = set()
        self.holdings = Holdings()
        """What ``blocks`` and ``claims`` say."""
        self.owners: dict[Address, str] = {}
        """Node by address: those that count, this node's own left out."""
        self.addresses: dict[str, set[Address]] = {}
        """The same by node."""
        self.refusals: dict[Address, Refusal] = {}

    def holds(self, node: str) -> bool:
        """Whether ``ipam`` has anything on record that this node holds."""
        return self._holds[node] > 0

    @property
    def holders(self) -> Collection[str]:
        """Nodes that hold something."""
        return [node for node, count in self._holds.items() if count > 0]

    def announce(self, node: str, addresses: Iterable[Address]) -> None:
        """What a node tells of itself; nothing: it tells nothing (any more)."""
        usable = {one for one in addresses if not _is_nobodys(one)}
        now = tuple(sorted(usable, key=lambda one: (one.version, int(one)))[:MOST_ADDRESSES])
        before = self._announced.pop(node, ())
        if now:
            self._announced[node] = now
        for address in set(before).symmetric_difference(now):
            nodes = self._at.setdefault(address, set())
            if address in now:
                nodes.add(node)
            else:
                nodes.discard(node)
                if not nodes:
                    del self._at[address]
            self._dirty.add(address)

    def set_block(self, cidr: Network, block: Block | None) -> None:
        """The block of a network from now on; None: there is none."""
        before = self.holdings.block_at(cidr)
        self.holdings.set_block(cidr, block)
        self._count("" if before is None else before.node, "" if block is None else block.node)
        if (before is None) != (block is None):
            self._dirty |= within(cidr, self._at)

    def set_claim(self, address: Address, claim: Claim | None) -> None:
        """The claim on an address from now on; None: there is none."""
        before = self.holdings.claims.get(address)
        self.holdings.set_claim(address, claim)
        self._count("" if before is None else before.node, "" if claim is None else claim.node)
        if (before is None) != (claim is None):
            self._dirty.add(address)

    def set_api(self, nodes: Mapping[str, frozenset[Address]], servers: Set[Address]) -> None:
        """What the API says: each Node's addresses, and those of its own servers."""
        for name in nodes.keys() | self._nodes.keys():
            before, now = self._nodes.get(name, frozenset()), nodes.get(name, frozenset())
            for address in before ^ now:
                names = self._listed.setdefault(address, set())
                if address in now:
                    names.add(name)
                else:
                    names.discard(name)
                    if not names:
                        del self._listed[address]
                self._dirty.add(address)
        self._dirty |= servers ^ self._servers
        self._nodes, self._servers = dict(nodes), servers

    def set_own(self, addresses: Set[Address]) -> None:
        """Addresses of this node's own interfaces."""
        self._dirty |= addresses ^ self._own
        self._own = addresses

    def settle(self) -> set[Address]:
        """Judges what has changed; the addresses that have another owner now."""
        changed = set()
        for address in self._dirty:
            before, now = self.owners.get(address), self._judge(address)
            if before == now:
                continue
            changed.add(address)
            if before is not None:
                del self.owners[address]
                self.addresses[before].discard(address)
                if not self.addresses[before]:
                    del self.addresses[before]
            if now is not None:
                self.owners[address] = now
                self.addresses.setdefault(now, set()).add(address)
        self._dirty.clear()
        return changed

    def _count(self, before: str, now: str) -> None:
        if before == now:
            return
        for node, change in ((before, -1), (now, 1)):
            if node in NOBODY:
                continue
            held = self.holds(node)
            self._holds[node] += change
            if not self._holds[node]:
                del self._holds[node]
            if held != self.holds(node):
                self._dirty.update(self._announced.get(node, ()))

    def _judge(self, address: Address) -> str | None:
        """Whose it is; refusals are noted."""
        self.refusals.pop(address, None)
        tellers = self._at.get(address, set())
        known = sorted(node for node in tellers if node != self._me and self.holds(node))
        if not known:
            return None
        owner, why = self._owner(address, known, own=self._me in tellers or address in self._own)
        refused = tuple(node for node in known if node != owner)
        if refused:
            self.refusals[address] = Refusal(address, refused, why)
        return owner

    def _owner(self, address: Address, known: list[str], *, own: bool) -> tuple[str | None, str]:
        """Whose of these it is, and why it is not the others'."""
        listed = self._listed.get(address, set())
        if own:
            return None, "it is this node's own"
        if address in self.holdings.claims:
            return None, "it is kept for a pod"
        if (block := self.holdings.block_of(address)) is not None:
            return None, f"it lies in block {block.cidr}"
        if listed:
            owner = next(iter(listed)) if len(listed) == 1 else None
            if owner in known:
                return owner, f"it is an address of Node {owner}"
            return None, f"it is an address of {'Node' if len(listed) == 1 else 'Nodes'} {', '.join(sorted(listed))}"
        if address in self._servers:
            return None, "it is an API server's"
        if len(known) == 1:
            return known[0], ""
        return None, f"{' and '.join(known[:3])} say so, and no Node has it among its addresses"


def owners_of(
    announced: Mapping[str, Iterable[Address]],
    blocks: Iterable[Block],
    claims: Iterable[Claim],
    nodes: Mapping[str, frozenset[Address]],
    *,
    servers: Set[Address] = frozenset(),
    own: Set[Address] = frozenset(),
    me: str = "",
) -> dict[Address, str]:
    """Node by address, of all at once: ``announced`` as in ``routes``, ``nodes`` and ``servers`` as the API says."""
    underlay = Underlay(me)
    for block in blocks:
        underlay.set_block(block.cidr, block)
    for claim in claims:
        underlay.set_claim(claim.address, claim)
    for node, addresses in announced.items():
        underlay.announce(node, addresses)
    underlay.set_api(nodes, servers)
    underlay.set_own(own)
    underlay.settle()
    return underlay.owners


def within(cidr: Network, addresses: Collection[Address]) -> set[Address]:
    """Those of some addresses that lie in a network."""
    if cidr.num_addresses <= min(LISTED, len(addresses)):
        return {address for address in cidr if address in addresses}
    return {address for address in addresses if address.version == cidr.version and address in cidr}


def _is_nobodys(address: Address) -> bool:
    return address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
