"""The state that a node's journal records give: blocks held, leases, what rests, what is owed to ``ipam``.

Owns :class:`Ledger`, which nothing but :meth:`Ledger.apply` changes, so that playing the records again gives the same
state. It decides nothing: ``services.dataplane.core.ipam.journal`` does. Promises that no record gives one address two
holders (such a journal is refused with ValueError). Units: seconds of CLOCK_BOOTTIME within one boot; under another
boot nobody knows how long the machine was off, so what rested rests from the start again.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field

import msgspec

from kit.prefixes import router_anycast
from proto.addresses import Block, Claim
from proto.net import Address, Family, Network
from proto.requests import ClaimRelease
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.ipam.journal_records import (
    Allocated,
    BlockGiven,
    BlockHeld,
    Booted,
    Bound,
    Changed,
    ClaimHeld,
    ClaimOwed,
    ClaimSettled,
    Learnt,
    Lease,
    Opened,
    Record,
    Released,
    Reserved,
    Rested,
)

COOLDOWN = 130.0
"""Seconds that a freed address rests: longer than conntrack's SYN_SENT (120 s), or strangers get another's packets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Addresses of one block or one family."""

    total: int
    """All but those that are never given (an IPv6 block's first one)."""
    used: int
    resting: int

    @property
    def free(self) -> int:
        """May be given away now."""
        return self.total - self.used - self.resting


@dataclass(slots=True)
class Ledger:
    """The state that records give. Only :meth:`apply` changes it."""

    node: str = ""
    cluster: str = ""
    boot: str = ""
    booted_at: float = 0.0
    learnt: bool = False
    """No block was ever held here that this ledger has not heard of. False in a journal that was just begun."""
    blocks: dict[Network, Block] = field(default_factory=dict)
    """In the order in which they were first held."""
    leases: dict[Attachment, dict[int, Lease]] = field(default_factory=dict)
    """Attachment → family → lease."""
    by_address: dict[Address, Lease] = field(default_factory=dict)
    claims: dict[Address, Claim] = field(default_factory=dict)
    fresh: dict[Network, dict[Address, None]] = field(default_factory=dict)
    """Block → its addresses that nobody ever had and a pod may have, in order."""
    resting: dict[Address, float] = field(default_factory=dict)
    """Freed address → when, least recently freed first. One stays here, rested or not, until it is given again."""
    owed: dict[tuple[Address, str], ClaimRelease] = field(default_factory=dict)
    """Claims that ``ipam`` is still to be told of, by address and nonce."""
    sequence: int = 0
    reserved: int = 0
    _by_prefix: dict[tuple[int, int, int], Network] = field(default_factory=dict)
    """(version, prefix length, prefix as a number) → held block."""
    _lengths: set[tuple[int, int]] = field(default_factory=set)
    """(version, prefix length) of every block there was: one or two."""

    def apply(self, record: Record) -> None:
        """Make a record true. Raises ValueError when it contradicts the ledger (a journal that is not one)."""
        match record:
            case Opened():
                self.node, self.cluster = record.node, record.cluster
            case Bound():
                self.cluster = record.cluster
            case Booted():
                self.boot, self.booted_at = record.boot, record.at
                self.resting = dict.fromkeys(self.resting, record.at)
            case Learnt():
                self.learnt = True
            case BlockHeld() | BlockGiven():
                self._apply_block(record)
            case Allocated() | ClaimHeld() | Changed() | Released():
                self._apply_lease(record)
            case Rested():
                self._use(record.address)
                self._rest(record.address, record.at)
            case ClaimOwed():
                self.owed[record.address, record.nonce] = ClaimRelease(
                    address=record.address, container=record.container, interface=record.interface, nonce=record.nonce
                )
            case ClaimSettled():
                self.owed.pop((record.address, record.nonce), None)
            case Reserved():
                self.reserved = max(self.reserved, record.sequence)

    def resume(self) -> None:
        """After the last record of a file: numbers that were reserved may have been used, so they are skipped."""
        self.sequence = max(self.sequence, self.reserved)

    def _apply_block(self, record: BlockHeld | BlockGiven) -> None:
        match record:
            case BlockHeld(block, rests_from):
                if block.cidr not in self.blocks:
                    self._begin_block(block.cidr, rests_from)
                self.blocks[block.cidr] = block
                self._by_prefix[_prefix_key(block.cidr.network_address, block.cidr.prefixlen)] = block.cidr
                self._lengths.add((block.cidr.version, block.cidr.prefixlen))
            case BlockGiven(cidr):
                self.blocks.pop(cidr, None)
                self._by_prefix.pop(_prefix_key(cidr.network_address, cidr.prefixlen), None)
                self.fresh.pop(cidr, None)

    def _begin_block(self, cidr: Network, rests_from: float | None) -> None:
        never = router_anycast(cidr)
        if never is not None:
            self.resting.pop(never, None)
        free = [address for address in cidr if address != never and address not in self.by_address]
        if rests_from is None:
            self.fresh[cidr] = {address: None for address in free if address not in self.resting}
            return
        self.fresh[cidr] = {}
        for address in free:
            self.resting.pop(address, None)  # to the end: it is among the last that were freed
            self.resting[address] = rests_from

    def _apply_lease(self, record: Allocated | ClaimHeld | Changed | Released) -> None:
        match record:
            case Allocated(lease):
                self._take(lease)
                self._use(lease.address)
            case ClaimHeld(claim, lease):
                self._take(lease)
                self.claims[claim.address] = claim
            case Changed():
                held = self.leases.get(Attachment(record.container, record.interface), {})
                for family, lease in held.items():
                    held[family] = self.by_address[lease.address] = msgspec.structs.replace(
                        lease, identity=record.identity, mac=record.mac, sequence=record.sequence
                    )
                self.sequence = max(self.sequence, record.sequence)
            case Released():
                for lease in self.leases.pop(Attachment(record.container, record.interface), {}).values():
                    self._free(lease, record.at)

    def _take(self, lease: Lease) -> None:
        holder = self.by_address.get(lease.address)
        if holder is not None and holder.attachment != lease.attachment:
            raise ValueError(f"{lease.address} is given to {lease.attachment} while {holder.attachment} has it")
        self.leases.setdefault(lease.attachment, {})[lease.address.version] = lease
        self.by_address[lease.address] = lease
        self.sequence = max(self.sequence, lease.sequence)

    def _use(self, address: Address) -> None:
        self.resting.pop(address, None)
        cidr = self.block_of(address)
        if cidr is not None:
            self.fresh[cidr].pop(address, None)

    def _rest(self, address: Address, at: float) -> None:
        """Freed then, to be given again later, unless it is one that nobody is given."""
        cidr = self.block_of(address)
        if cidr is None or address != router_anycast(cidr):
            self.resting[address] = at

    def _free(self, lease: Lease, at: float) -> None:
        self.by_address.pop(lease.address, None)
        if not lease.claimed:
            self._rest(lease.address, at)
            return
        self.claims.pop(lease.address, None)
        self.owed[lease.address, lease.nonce] = ClaimRelease(
            address=lease.address, container=lease.container, interface=lease.interface, nonce=lease.nonce
        )

    def block_of(self, address: Address) -> Network | None:
        """The held block that an address is in."""
        for version, length in self._lengths:
            if version == address.version and (found := self._by_prefix.get(_prefix_key(address, length))) is not None:
                return found
        return None

    def held_by(self, attachment: Attachment) -> tuple[Lease, ...]:
        """Leases of an attachment, IPv4 first; none when it is unknown."""
        held = self.leases.get(attachment, {})
        return tuple(held[family] for family in sorted(held))

    def count_block(self, cidr: Network, now: float, cooldown: float = COOLDOWN) -> Count:
        """Counters of a held block."""
        used = sum(1 for address in self.by_address if address.version == cidr.version and address in cidr)
        resting = sum(
            1
            for address, at in self.resting.items()
            if now - at < cooldown and address.version == cidr.version and address in cidr
        )
        never = router_anycast(cidr)
        total = cidr.num_addresses - (never is not None and never not in self.by_address)
        return Count(total=total, used=used, resting=resting)

    def has_free(
        self,
        family: Family,
        wanted: int,
        now: float,
        cooldown: float = COOLDOWN,
        closed: Set[Network] = frozenset(),
        is_withheld: Callable[[Address, float], bool] = lambda *_: False,
    ) -> bool:
        """True when at least ``wanted`` addresses of a family may be given away now, from blocks that are not
        ``closed``, without those that ``is_withheld`` names. Looks at few: the order of ``resting`` is that of their
        times.
        """
        own = (cidr for cidr in self.fresh if cidr.version == family and cidr not in closed)
        found = sum(len(self.fresh[cidr]) for cidr in own)
        for address, at in self.resting.items():
            if found >= wanted or now - at < cooldown:
                break
            cidr_of = self.block_of(address)
            free = address.version == family and cidr_of is not None and cidr_of not in closed
            found += free and not is_withheld(address, at)
        return found >= wanted

    def count(self, family: Family, now: float, cooldown: float = COOLDOWN) -> Count:
        """Counters of all held blocks of a family together."""
        counts = [self.count_block(cidr, now, cooldown) for cidr in self.blocks if cidr.version == family]
        return Count(
            total=sum(count.total for count in counts),
            used=sum(count.used for count in counts),
            resting=sum(count.resting for count in counts),
        )


def _prefix_key(address: Address, length: int) -> tuple[int, int, int]:
    return address.version, length, int(address) >> (address.max_prefixlen - length)
