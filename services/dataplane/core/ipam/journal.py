"""The node's IPAM journal: which pod has which address, decided from records alone.

Owns the truth of which address of this node's blocks is given to which pod interface; ``blocks``, ``endpoints`` and the
kernel are rebuilt from it, never the other way round. :class:`Ledger` is the state, changed only by
:meth:`Ledger.apply`; the functions below read it and answer with the records that would make a decision true. The
shell (``services.dataplane.ipam.journal``) makes them durable first.

Promises, whatever the order of calls and wherever a crash cuts the records: no address has two holders; a request for
an attachment that has addresses gets the same ones; a freed address rests for the whole cooldown, across restarts and
reboots; sequence numbers never go back. An address that was never used is given first, then the least recently freed of
those whose former pod every live node knows to be gone; of the rest the least recently freed last of all, since a node
that is cut off must not hold up others for ever. Every address of an IPv4 block is used, the first and the last too:
pods have /32 addresses, so a block has neither network nor broadcast address, and no gateway lives in it. Of an IPv6
block the first is never given: whoever puts the block's prefix on a link, as a router beside us may, makes that address
the routers' own (Subnet-Router anycast, RFC 4291 2.6.1). A pod that has it from an earlier release keeps it.

A journal that was just begun may stand in the place of a lost one. Of a block that ``ipam`` then says this node held
before, nobody knows which addresses were freed a moment ago: all that no link has rest first. A block that is granted
needs no rest: whoever had it before, ``ipam`` has let it rest.

Refuses a reclaim by one look alone: :func:`collect` frees what two lists, a grace apart, both lack, and never judges
an attachment by a list that is older than it. Units: seconds of CLOCK_BOOTTIME. Under another boot nobody knows how
long the machine was off, so what rested begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import msgspec

from kit.prefixes import overlap
from proto.addresses import Block, Claim
from proto.net import Address, Family, Network
from proto.requests import ClaimRelease
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.ipam.journal_records import (
    Allocated,
    BlockGiven,
    BlockHeld,
    Booted,
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
from services.dataplane.core.ipam.journal_state import COOLDOWN, Count, Ledger

__all__ = [
    "COOLDOWN",
    "Ask",
    "Clash",
    "Collected",
    "Count",
    "Grant",
    "Lease",
    "Ledger",
    "NeedsBlock",
]

SEQUENCE_CHUNK = 256
"""Sequence numbers reserved by one record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A pod interface that needs addresses."""

    container: str
    interface: str
    namespace: str
    pod: str
    pod_uid: str
    nonce: str
    """Random; stands in the lease."""
    identity: int = 0
    mac: bytes = b""

    @property
    def attachment(self) -> Attachment:
        """Container id and interface name."""
        return Attachment(self.container, self.interface)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The attachment's leases of the asked families, true once ``records`` are durable (none: it already is)."""

    leases: tuple[Lease, ...]
    records: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedsBlock:
    """No address can be given now: this family needs another block."""

    family: Family
    reason: Literal["no-block", "full", "resting"]
    retry_after: float
    """Seconds until the first resting address may be used; 0 when none rests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """The request contradicts what the ledger holds; ``why`` is one sentence."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Result of :func:`collect`."""

    release: tuple[Attachment, ...]
    """Their owners are gone: undo them as DEL would."""
    suspects: dict[Attachment, float]
    """To be handed to the next call: attachment → when a list first lacked it."""


def allocate(
    ledger: Ledger,
    families: Sequence[Family],
    ask: Ask,
    now: float,
    cooldown: float = COOLDOWN,
    closed: Set[Network] = frozenset(),
    is_known_to_all: Callable[[Address, float], bool] = lambda *_: False,
) -> Grant | NeedsBlock | Clash:
    """Addresses from the node's own blocks, but the ``closed`` ones, one of each family, all or none.

    ``is_known_to_all`` says of an address and when it was freed whether every live node has acknowledged
    that its former pod is gone.

    Idempotent by (container, interface): what the attachment already has stays as it is, only its identity and MAC
    follow the request. A family it lacks is added.
    """
    held = ledger.leases.get(ask.attachment, {})
    if clash := _contradiction(held, ask):
        return clash
    sequence, reservation = next_sequence(ledger)
    leases = {family: _following(lease, ask.identity, ask.mac, sequence) for family, lease in held.items()}
    records: list[Record] = list(_changed(ask.attachment, held, leases))
    for family in families:
        if family in held:
            continue
        found = _free_address(ledger, family, now, cooldown, closed, is_known_to_all)
        if isinstance(found, NeedsBlock):
            return found
        address, block = found
        leases[family] = _lease(ledger, ask, address, block.epoch, sequence, now)
        records.append(Allocated(leases[family]))
    if records:
        records[:0] = reservation
    return Grant(leases=tuple(leases[family] for family in families), records=tuple(records))


def adopt(ledger: Ledger, ask: Ask, addresses: Sequence[Address], now: float) -> Grant | Clash:
    """Leases for addresses that a link of ours was found with although no record speaks of them (a lost journal).

    Their epoch is 0: whatever else is known of such an address is newer. None of them may be another attachment's.
    """
    held = ledger.leases.get(ask.attachment, {})
    taken = next(
        (a for a in addresses if a in ledger.by_address and ledger.by_address[a].attachment != ask.attachment), None
    )
    if taken is not None:
        return Clash(why=f"{taken} was found at {ask.container} but belongs to {ledger.by_address[taken].container}")
    sequence, reservation = next_sequence(ledger)
    fresh = [_lease(ledger, ask, a, 0, sequence, now) for a in addresses if a.version not in held]
    records = tuple(Allocated(lease) for lease in fresh)
    return Grant(leases=(*held.values(), *fresh), records=(*reservation, *records) if records else ())


def hold_claim(ledger: Ledger, claim: Claim, ask: Ask, now: float) -> Grant | Clash:
    """Write down a claim that ``ipam`` granted to this pod interface; idempotent.

    A claim whose address is in a block of this node, or that another attachment holds here, is a :class:`Clash`.
    """
    held = ledger.leases.get(ask.attachment, {})
    if clash := _contradiction(held, ask):
        return clash
    if block := ledger.block_of(claim.address):
        return Clash(why=f"claim {claim.address} is in {block}, a block of this node: an address is one or the other")
    holder = ledger.by_address.get(claim.address)
    if holder is not None and holder.attachment != ask.attachment:
        return Clash(
            why=f"claim {claim.address} is still held here by {holder.namespace}/{holder.pod}; delete it first"
        )
    mine = held.get(claim.address.version)
    if mine is not None and mine.address != claim.address:
        return Clash(why=f"the interface already has {mine.address}, so it cannot take {claim.address}")
    if mine is not None and (mine.nonce, mine.epoch) == (claim.nonce, claim.epoch):
        return Grant(leases=(mine,))
    sequence, records = next_sequence(ledger)
    lease = _lease(ledger, ask, claim.address, claim.epoch, sequence, now, claim=claim)
    return Grant(leases=(lease,), records=(*records, ClaimHeld(claim, lease)))


def change(ledger: Ledger, attachment: Attachment, identity: int, mac: bytes = b"") -> Grant:
    """Another identity (labels changed) or MAC for an attachment; nothing when it is unknown or already so."""
    held = ledger.leases.get(attachment, {})
    sequence, reservation = next_sequence(ledger)
    leases = {family: _following(lease, identity, mac, sequence) for family, lease in sorted(held.items())}
    records = _changed(attachment, held, leases)
    return Grant(leases=tuple(leases.values()), records=(*reservation, *records) if records else ())


def release(ledger: Ledger, attachment: Attachment, now: float) -> Grant:
    """The attachment is gone: its leases as they were. Unknown or already released: an empty grant."""
    leases = ledger.held_by(attachment)
    if not leases:
        return Grant(leases=())
    return Grant(leases=leases, records=(Released(container=attachment[0], interface=attachment[1], at=now),))


def hold_block(ledger: Ledger, block: Block, rests_from: float | None = None) -> tuple[Record, ...] | Clash:
    """A block that ``ipam`` granted or confirmed to this node. An older epoch than the known one changes nothing.

    With ``rests_from`` the free addresses of a block that was not held rest from then on.
    """
    known = ledger.blocks.get(block.cidr)
    if known is not None:
        return () if known == block or block.epoch < known.epoch else (BlockHeld(block),)
    if block.node != ledger.node:
        return Clash(why=f"block {block.cidr} belongs to {block.node or 'nobody'}, not to this node ({ledger.node})")
    if other := next((cidr for cidr in ledger.blocks if overlap(cidr, block.cidr)), None):
        return Clash(why=f"block {block.cidr} overlaps {other}, which this node holds")
    return (BlockHeld(block, rests_from),)


def learn(ledger: Ledger) -> tuple[Record, ...]:
    """``ipam`` has told of every block that the node held before this journal was begun, and they are held."""
    return () if ledger.learnt else (Learnt(),)


def give_block(ledger: Ledger, cidr: Network) -> tuple[Record, ...]:
    """Stop giving addresses of a block away. Leases in it stay until they are released."""
    return (BlockGiven(cidr),) if cidr in ledger.blocks else ()


def settle(ledger: Ledger, owed: ClaimRelease) -> tuple[Record, ...]:
    """``ipam`` has answered the release of a claim."""
    return (ClaimSettled(owed.address, owed.nonce),) if (owed.address, owed.nonce) in ledger.owed else ()


def next_sequence(ledger: Ledger) -> tuple[int, tuple[Record, ...]]:
    """Next number of this node's changes, and the record that must be durable first (each 256th time).

    The record that carries the number sets ``ledger.sequence`` to it.
    """
    sequence = ledger.sequence + 1
    if sequence > ledger.reserved:
        return sequence, (Reserved(sequence=sequence + SEQUENCE_CHUNK),)
    return sequence, ()


def collect(
    ledger: Ledger,
    valid: Collection[Attachment],
    suspects: dict[Attachment, float],
    *,
    listed_at: float,
    now: float,
    grace: float,
    unrecorded: Collection[Attachment] = (),
) -> Collected:
    """Two-phase garbage collection: what may be released, given a list of attachments that exist.

    ``listed_at`` is when the list was begun: an attachment younger than that is not judged by it. An attachment that
    the list lacks becomes a suspect; one that was a suspect for ``grace`` seconds and is lacking again is released.
    So are those that the kernel has a link of and the ledger no lease (``unrecorded``).
    """
    lacking = {attachment for attachment in unrecorded if attachment not in valid and attachment not in ledger.leases}
    lacking |= {
        attachment
        for attachment, held in ledger.leases.items()
        if attachment not in valid and all(lease.boot != ledger.boot or lease.at < listed_at for lease in held.values())
    }
    since = {attachment: min(suspects.get(attachment, now), now) for attachment in lacking}
    ripe = sorted(attachment for attachment in lacking if attachment in suspects and now - since[attachment] >= grace)
    return Collected(release=tuple(ripe), suspects={key: at for key, at in since.items() if key not in ripe})


def snapshot(ledger: Ledger, now: float, cooldown: float = COOLDOWN) -> list[Record]:
    """Records that give the same ledger: what a compacted file holds.

    Left out: freed addresses of blocks that are not held here any more and have rested.
    """
    records: list[Record] = [Opened(ledger.node, ledger.cluster), Booted(ledger.boot, ledger.booted_at)]
    records += (Learnt(),) if ledger.learnt else ()
    records += (BlockHeld(block) for block in ledger.blocks.values())
    records += (
        Rested(address, at)
        for address, at in ledger.resting.items()
        if now - at < cooldown or ledger.block_of(address) is not None
    )
    for lease in ledger.by_address.values():
        records.append(ClaimHeld(ledger.claims[lease.address], lease) if lease.claimed else Allocated(lease))
    records += (ClaimOwed(owed.address, owed.container, owed.interface, owed.nonce) for owed in ledger.owed.values())
    records.append(Reserved(max(ledger.sequence, ledger.reserved)))
    return records


def _contradiction(held: dict[int, Lease], ask: Ask) -> Clash | None:
    other = next((lease for lease in held.values() if lease.pod_uid != ask.pod_uid), None)
    if other is None:
        return None
    return Clash(
        why=f"container {ask.container} interface {ask.interface} belongs to pod {other.namespace}/{other.pod} "
        f"(uid {other.pod_uid}), not to uid {ask.pod_uid}; delete it first"
    )


def _free_address(
    ledger: Ledger,
    family: Family,
    now: float,
    cooldown: float,
    closed: Set[Network],
    is_known_to_all: Callable[[Address, float], bool],
) -> tuple[Address, Block] | NeedsBlock:
    for cidr, addresses in ledger.fresh.items():
        if cidr.version == family and addresses and cidr not in closed:
            return next(iter(addresses)), ledger.blocks[cidr]
    last: tuple[Address, Block] | None = None
    for address, at in ledger.resting.items():
        if address.version != family or (cidr_of := ledger.block_of(address)) is None or cidr_of in closed:
            continue
        if now - at < cooldown:
            return last or NeedsBlock(family=family, reason="resting", retry_after=cooldown - (now - at))
        if is_known_to_all(address, at):
            return address, ledger.blocks[cidr_of]
        last = last or (address, ledger.blocks[cidr_of])
    if last is not None:
        return last
    some = any(cidr.version == family for cidr in ledger.blocks if cidr not in closed)
    return NeedsBlock(family=family, reason="full" if some else "no-block", retry_after=0.0)


def _lease(
    ledger: Ledger, ask: Ask, address: Address, epoch: int, sequence: int, now: float, claim: Claim | None = None
) -> Lease:
    return Lease(
        address=address,
        container=ask.container,
        interface=ask.interface,
        namespace=ask.namespace,
        pod=ask.pod,
        pod_uid=ask.pod_uid,
        identity=ask.identity,
        mac=ask.mac,
        nonce=ask.nonce if claim is None else claim.nonce,
        epoch=epoch,
        sequence=sequence,
        boot=ledger.boot,
        at=now,
        claimed=claim is not None,
    )


def _following(lease: Lease, identity: int, mac: bytes, sequence: int) -> Lease:
    """The lease with this identity and MAC; 0 and empty leave what is there."""
    identity, mac = identity or lease.identity, mac or lease.mac
    if (identity, mac) == (lease.identity, lease.mac):
        return lease
    return msgspec.structs.replace(lease, identity=identity, mac=mac, sequence=sequence)


def _changed(attachment: Attachment, before: Mapping[int, Lease], after: Mapping[int, Lease]) -> tuple[Record, ...]:
    other = next((after[family] for family, lease in before.items() if after[family] != lease), None)
    if other is None:
        return ()
    container, interface = attachment
    return (Changed(container, interface, identity=other.identity, mac=other.mac, sequence=other.sequence),)
