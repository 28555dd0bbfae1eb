"""Addresses for pods: from this node's own blocks by the journal alone, or claims by asking ``ipam``.

Owns the conversation with ``ipam``: which blocks the node reports and holds, when it asks for another (before the last
addresses are gone), claims and their release through the journal's durable outbox. Promises: a pod from a block asks
nobody on the network unless the node has no free address left; a claim that cannot be had is "try again later", never
some other address. Refuses to give anything away from a block that ``ipam`` says another node holds, or that the Node
object does not name yet.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Set
from typing import TypeVar

import msgspec

from chassis.bus.client import Bus
from chassis.faults import Refused, Unavailable
from chassis.telemetry.log import Log
from proto.addresses import Block, Claim
from proto.annotations import BLOCKS
from proto.codec import encode_segment
from proto.net import Address, Family, Network
from proto.objects import Owner
from proto.requests import (
    BlockGrant,
    BlockReportAnswer,
    BlockReportRequest,
    BlockRequest,
    ClaimGrant,
    ClaimRequest,
)
from proto.subjects import IPAM_BLOCK, IPAM_CLAIM, IPAM_RELEASE, IPAM_REPORT, of_node
from services.dataplane.core.cni.request import CniError, Code
from services.dataplane.core.ipam.addressing import AddressPlan, Supply
from services.dataplane.core.ipam.departures import Departures
from services.dataplane.core.ipam.journal import Ask, Clash, NeedsBlock
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.ipam.journal import Journal, JournalFault
from services.dataplane.signals import Signal

ASK_SECONDS = 4.0
MOST_WITHHELD = 64
"""Rested addresses that may lie idle because a live node has not acknowledged that their pods left: past that no block
is asked for in their stead, so a node that is cut off costs each other one block of a family.
"""

A = TypeVar("A", bound=msgspec.Struct)


class AddressBook:
    """What this node may give away, and what its pods have."""

    def __init__(
        self,
        bus: Bus,
        journal: Journal,
        log: Log,
        node: str,
        spare: int,
        supply: Callable[[], Supply],
        signal: Signal | None = None,
    ) -> None:
        """``supply``: what the node's pods are given addresses from, now."""
        self._bus = bus
        self._log = log
        self._node = node
        self._segment = encode_segment(node)
        self._spare = spare
        self._supply = supply
        self._named: frozenset[Network] = frozenset()
        self._named_changed = asyncio.Event()
        self._nonces: dict[int, str] = {}
        self.journal = journal
        self.departures = Departures()
        self.signal = signal or Signal()
        """Rung when the blocks or what is owed changes."""

    def observe_published(self, addresses: Set[Address], epoch: str, listed: int, sequence: int) -> None:
        """Which addresses stand in slots of this node at ``sequence`` of ``endpoints``: the others have left by then.
        ``listed``: how often the view was listed.
        """
        self.departures.observe(self.journal.ledger.resting, addresses, epoch, listed, sequence)

    def observe_node(self) -> None:
        """The Node object may have changed: wakes those who wait for a block to be named there."""
        named = self._supply().named
        if named != self._named:
            self._named = named
            self._named_changed.set()
            self._named_changed = asyncio.Event()

    def has_blocks(self) -> bool:
        """True when a block of each family that new addresses may be taken from is held."""
        supply = self._supply()
        held = {cidr.version for cidr in self.journal.ledger.blocks if supply.gives(cidr)}
        return bool(supply.families) and held >= set(supply.families)

    async def acquire(self, plan: AddressPlan, ask: Ask, node_uid: str) -> tuple[Lease, ...]:
        """Addresses of the plan's families for an attachment; idempotent. They are on disk, so may be used and told,
        when :meth:`kept` returns. Raises CniError; nothing is held then.
        """
        try:
            if plan.owner is None:
                return await self._from_blocks(plan, ask, node_uid)
            return await self._from_claims(plan, plan.owner, ask)
        except JournalFault as error:
            raise CniError(Code.IO, str(error)) from error

    async def kept(self) -> None:
        """Until all that was acquired is on disk. Raises CniError."""
        try:
            await self.journal.flush()
        except JournalFault as error:
            raise CniError(Code.IO, str(error)) from error

    async def _from_blocks(self, plan: AddressPlan, ask: Ask, node_uid: str) -> tuple[Lease, ...]:
        for _ in range(2 * len(plan.families) + 1):
            closed = self._closed(self._supply().gives)
            given = await self.journal.allocate(
                plan.families, ask, wait=False, closed=closed, is_known_to_all=self.departures.is_known_to_all
            )
            match given:
                case Clash(why=why):
                    raise CniError(Code.ADDRESS_REFUSED, why)
                case NeedsBlock(family=family):
                    await self._another_block(family, node_uid)
                case _:
                    self.signal.notify("used")
                    return given.leases
        raise CniError(Code.TRY_AGAIN_LATER, "no block of this node has a free address")

    async def _another_block(self, family: Family, node_uid: str) -> None:
        """Until one more block of the family gives addresses. Raises CniError."""
        try:
            if not self._unnamed(family):
                await self.request_block(family, node_uid)
            async with asyncio.timeout(ASK_SECONDS):
                while self._unnamed(family):
                    await self._named_changed.wait()
        except TimeoutError as error:
            block = next(iter(self._unnamed(family)), None)
            why = f"block {block} gives addresses once annotation {BLOCKS} of Node {self._node} names it"
            raise CniError(Code.TRY_AGAIN_LATER, f"{why}: cluster has not written that yet") from error
        except Unavailable as error:
            why = f"this node has no free IPv{family} address and ipam does not answer"
            raise CniError(Code.TRY_AGAIN_LATER, why, str(error)) from error
        except Refused as error:
            raise CniError(Code.TRY_AGAIN_LATER, f"no block for IPv{family}: {error.message}") from error

    async def request_block(self, family: Family, node_uid: str) -> None:
        """One more block. Raises Unavailable or Refused; asked again with the same nonce, the same block comes."""
        if not node_uid:
            raise Unavailable("this node's Node object has not arrived")
        nonce = self._nonces.setdefault(family, secrets.token_hex(8))
        request = BlockRequest(node=self._node, node_uid=node_uid, family=family, nonce=nonce)
        grant = await self._ask(IPAM_BLOCK, request, BlockGrant)
        clash = await self.journal.hold_block(grant.block)
        self._nonces.pop(family, None)
        if clash is not None:
            raise Refused("clash", clash.why)
        self._log.info("block-held", block=str(grant.block.cidr), epoch=grant.block.epoch)
        self.signal.notify("blocks")

    def wants_block(self) -> tuple[Family, ...]:
        """Families of which fewer than the spare number of addresses are free, without those whose leaving a live node
        has not acknowledged; of these, one block's worth may lie idle. A block that the Node does not name yet counts.
        """
        withheld = self.departures.is_withheld
        return tuple(
            family
            for family in self._supply().families
            if not self._has_free(family, self._spare, withheld)
            and not self._has_free(family, self._spare + MOST_WITHHELD)
        )

    def is_short(self, family: Family) -> bool:
        """Fewer than the spare number of addresses are free, those whose leaving is not acknowledged included."""
        return not self._has_free(family, self._spare)

    def _has_free(
        self, family: Family, wanted: int, is_withheld: Callable[[Address, float], bool] = lambda *_: False
    ) -> bool:
        journal = self.journal
        closed = self._closed(self._supply().will_give)
        return journal.ledger.has_free(family, wanted, journal.now(), journal.cooldown, closed, is_withheld)

    def _closed(self, gives: Callable[[Network], bool]) -> frozenset[Network]:
        """Blocks that give no new address: their pool is disabled, refused, or does not select this node any more; or
        the Node does not name them yet.
        """
        return frozenset(cidr for cidr in self.journal.ledger.blocks if not gives(cidr))

    def _unnamed(self, family: Family) -> frozenset[Network]:
        """Blocks that give addresses as soon as the Node names them."""
        supply, blocks = self._supply(), self.journal.ledger.blocks
        own = (cidr for cidr in blocks if cidr.version == family and cidr not in supply.named)
        return frozenset(cidr for cidr in own if supply.will_give(cidr))

    async def _from_claims(self, plan: AddressPlan, owner: Owner, ask: Ask) -> tuple[Lease, ...]:
        try:
            for family in plan.families:
                await self._hold(await self._claim(plan, owner, family, ask), ask)
        except BaseException:
            await self.journal.release(ask.attachment)
            self.signal.notify("owed")
            raise
        return self.journal.ledger.held_by(ask.attachment)

    async def _claim(self, plan: AddressPlan, owner: Owner, family: Family, ask: Ask) -> Claim:
        request = ClaimRequest(
            owner=owner,
            family=family,
            node=self._node,
            pod_uid=ask.pod_uid,
            container=ask.container,
            interface=ask.interface,
            nonce=ask.nonce,
            address=plan.fixed.get(family),
        )
        try:
            grant = await self._ask(IPAM_CLAIM, request, ClaimGrant)
        except Unavailable as error:
            why = f"ipam does not answer, and {owner.kind} {owner.namespace}/{owner.name} keeps its address"
            raise CniError(Code.TRY_AGAIN_LATER, why, str(error)) from error
        except Refused as error:
            code = Code.TRY_AGAIN_LATER if error.retry else Code.ADDRESS_REFUSED
            raise CniError(code, f"claim refused ({error.code}): {error.message}") from error
        return grant.claim

    async def _hold(self, claim: Claim, ask: Ask) -> None:
        held = await self.journal.hold_claim(claim, ask)
        if isinstance(held, Clash):
            raise CniError(Code.TRY_AGAIN_LATER, held.why)

    async def report(self, node_uid: str) -> None:
        """Says which blocks and claims the node holds, and gives up what another holds by now.

        Only what was asked about is given up: a block that came, or came anew, while the answer was on its way is held.
        """
        ledger = self.journal.ledger
        request = BlockReportRequest(
            node=self._node,
            node_uid=node_uid,
            blocks=tuple(ledger.blocks.values()),
            claims=tuple(ledger.claims.values()),
        )
        answer = await self._ask(IPAM_REPORT, request, BlockReportAnswer)
        confirmed = {block.cidr for block in answer.blocks}
        for asked in request.blocks:
            if asked.cidr in confirmed or ledger.blocks.get(asked.cidr) != asked:
                continue
            remedy = "another node holds it; its pods here go on"
            self._log.warning("block-given-up", block=str(asked.cidr), remedy=remedy)
            await self.journal.give_block(asked.cidr)
        for block in answer.blocks:
            await self._hold_again(block)
        await self.journal.learn()
        self.signal.notify("blocks")

    async def _hold_again(self, block: Block) -> None:
        """One block of the answer. That of a lost journal rests; one whose grant was lost on its way was never used."""
        ledger = self.journal.ledger
        rests = not ledger.learnt and block.cidr not in ledger.blocks and block.nonce not in self._nonces.values()
        clash = await self.journal.hold_block(block, rests=rests)
        if clash is not None:
            self._log.error("block-clash", why=clash.why)
        elif rests:
            why = "the journal is new and ipam says that this node held it before"
            self._log.warning("block-rests", block=str(block.cidr), seconds=self.journal.cooldown, why=why)

    async def _ask(self, subject: str, request: msgspec.Struct, answer: type[A]) -> A:
        """Ask ``ipam`` on this node's own subject; raises Refused, Unavailable."""
        return await self._bus.request(of_node(subject, self._segment), request, answer, timeout=ASK_SECONDS)

    async def settle_owed(self) -> int:
        """Tells ``ipam`` which claims are no longer held; raises Unavailable. Returns how many it answered."""
        settled = 0
        for owed in list(self.journal.ledger.owed.values()):
            try:
                await self._bus.send(of_node(IPAM_RELEASE, self._segment), owed, timeout=ASK_SECONDS)
            except Refused as error:
                if error.retry:
                    raise Unavailable(error.message) from error
                self._log.warning("claim-release-refused", address=str(owed.address), why=error.message)
            await self.journal.settle(owed)
            settled += 1
        return settled
