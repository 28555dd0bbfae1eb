"""Claims on sticky addresses: the shell of ``core.claims``.

Owns every write to ``owners`` and ``claims``. A claim is made in three steps, each a compare-and-set on one key, and
any of them may be cut off: the owner *intends* an address (its record's nonce begins with ``intends-``), the claim on
that address is written, the intention is *confirmed*. Whoever loses a step reads again; a claim whose owner turned out
to intend another address by then is taken back. So two copies that serve one owner at once agree, and one address
never has two claims, since its claim is one key.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from chassis.bus.entry import Entry
from chassis.faults import Refused
from kit.prefixes import router_anycast
from proto.addresses import Claim, OwnerRecord
from proto.annotations import FIXED_ADDRESSES
from proto.codec import address_segment, owner_key
from proto.events import AddressMoved
from proto.net import Address
from proto.requests import ClaimGrant, ClaimRelease, ClaimRequest
from services.ipam.block_allocation import ATTEMPTS, BlockAllocation, Fence, Look, busy, check_recovered
from services.ipam.core.blocks import as_network, block_at, of_ipam
from services.ipam.core.claims import (
    INTENDS,
    RECOVERED,
    Elsewhere,
    Held,
    Hold,
    Stands,
    asks_for,
    bare_owner,
    free_address,
    is_running,
    judge_claim,
    judge_release,
    names_anothers,
    owner_text,
)
from services.ipam.core.recovery import judge_reported
from services.ipam.core.seen import Seen
from services.ipam.store import Store, compare_and_set

Moved = Callable[[AddressMoved], None]
NOT_THE_HOLDER = "not-the-holder"


class Claims:
    """``moved`` is told of each change of holder; ``clock`` is seconds since 1970."""

    def __init__(
        self,
        owners: Store,
        claims: Store,
        allocation: BlockAllocation,
        look: Look,
        fence: Fence,
        moved: Moved,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._owners = owners
        self._claims = claims
        self._allocation = allocation
        self._look = look
        self._fence = fence
        self._moved = moved
        self._clock = clock

    async def claim(self, request: ClaimRequest) -> ClaimGrant:
        """The owner's address for this pod interface.

        Raises Refused: ``not-synced``, ``held-elsewhere``, ``pool-exhausted``, ``bad-owner``, ``bad-address``,
        ``address-taken``, ``address-in-node-block``.
        """
        self._check(request)
        await self._fence()
        passed: set[Address] = set()
        for _ in range(ATTEMPTS):
            record = await self._intend(request, passed)
            if record is None:
                continue
            address = record.value.address
            key = address_segment(address)
            entry = await self._claims.get(key, Claim)
            match judge_claim(
                request, address, entry.value if entry else None, self._look().pods.get, int(self._clock())
            ):
                case Held(why):
                    raise Refused("held-elsewhere", why, retry=True)
                case Elsewhere(by):
                    if request.address is not None:
                        raise Refused("address-taken", f"{address} belongs to {owner_text(by)}; ask for another")
                    passed.add(address)
                case Stands():
                    if entry is not None and await self._confirm(request, record):
                        return ClaimGrant(entry.value)
                case Hold(claim, moved_from):
                    written = await compare_and_set(self._claims, key, claim, entry)
                    if written is None:
                        continue
                    if await self._confirm(request, record):
                        if entry is not None:
                            self._report_moved(written.value, moved_from or entry.value.node)
                        return ClaimGrant(written.value)
                    await self._reclaim(key, written, entry)
        raise busy()

    async def release(self, request: ClaimRelease, node: str) -> None:
        """The holder, a pod of ``node``, is gone. What another holds by now is left alone, and that is success.

        Raises Refused (``not-the-holder``) for who names another node's claim as only its holder knows it.
        """
        key = address_segment(request.address)
        for _ in range(ATTEMPTS):
            entry = await self._claims.get(key, Claim)
            if entry is not None and names_anothers(request, node, entry.value):
                raise Refused(NOT_THE_HOLDER, f"{request.address} is held on node {entry.value.node}, not on {node}")
            released = judge_release(request, node, entry.value if entry else None)
            if released is None or await compare_and_set(self._claims, key, released, entry) is not None:
                return
        raise busy()

    async def record(self, reported: Claim, node: str) -> str:
        """A claim from a node's journal, and the owner it tells of; returns why it is a lie, if it is.

        Raises Refused: the address belongs to a node's block, or to no pool.
        """
        key = address_segment(reported.address)
        for _ in range(ATTEMPTS):
            entry = await self._claims.get(key, Claim)
            seen = self._look()
            known = entry.value if entry else None
            whole = seen.complete or seen.whole_claims
            judged = judge_reported(
                reported, known, node, seen.evidence, seen.pods, complete=whole, now=int(self._clock())
            )
            if judged is None or isinstance(judged, str):
                return judged or ""
            pool = seen.pools.of(as_network(reported.address))
            if pool is None:
                raise Refused("bad-address", f"address {reported.address} is in no IPPool; create one that holds it")
            # First the block, so that no claim stands on an address that a node may give away.
            await self._allocation.own_block_of(pool, reported.address)
            if await compare_and_set(self._claims, key, judged, entry) is not None:
                break
        else:
            raise busy()
        if judged.owner.namespace:
            owner = OwnerRecord(judged.owner, reported.address, pool.name, RECOVERED)
            await compare_and_set(self._owners, owner_key(judged.owner, reported.address.version), owner, None)
        return ""

    def _check(self, request: ClaimRequest) -> None:
        """The asker must be a pod that is seen, and may only ask for an owner of its own."""
        seen = self._look()
        check_recovered(seen)
        pod = seen.pods.get(request.pod_uid)
        if pod is None or pod.node != request.node or not is_running(pod):
            raise Refused("not-synced", f"pod {request.pod_uid} on {request.node} is not seen running yet", retry=True)
        if request.owner not in (pod.owner, bare_owner(pod)):
            raise Refused("bad-owner", f"pod {pod.namespace}/{pod.name} does not belong to {owner_text(request.owner)}")
        if request.address is not None and request.address.version != request.family:
            raise Refused("bad-address", f"address {request.address} is not of family {request.family}; correct one")
        if request.address is not None and not asks_for(pod, request.address):
            why = f"no annotation {FIXED_ADDRESSES} of pod {pod.namespace}/{pod.name} asks for {request.address}"
            raise Refused("bad-address", f"{why}; write it there", retry=True)

    async def _intend(self, request: ClaimRequest, passed: set[Address]) -> Entry[OwnerRecord] | None:
        """The owner's record, with an address that was not tried in vain; None when another was faster."""
        key = owner_key(request.owner, request.family)
        entry = await self._owners.get(key, OwnerRecord)
        wanted = request.address
        if entry is not None and entry.value.address not in passed and wanted in (None, entry.value.address):
            return entry
        if entry is not None and wanted is not None:
            await self._refuse_if_used(request, entry.value)
        address, pool = await (self._fixed(wanted) if wanted is not None else self._choose(request, passed))
        record = OwnerRecord(request.owner, address, pool, INTENDS + request.nonce)
        return await compare_and_set(self._owners, key, record, entry)

    async def _refuse_if_used(self, request: ClaimRequest, record: OwnerRecord) -> None:
        """An owner whose address is in use by another pod does not get another one."""
        entry = await self._claims.get(address_segment(record.address), Claim)
        if entry is None or entry.value.owner != request.owner or entry.value.pod_uid == request.pod_uid:
            return
        if is_running(self._look().pods.get(entry.value.pod_uid)):
            raise Refused("held-elsewhere", f"{owner_text(request.owner)} is using {record.address}", retry=True)

    async def _choose(self, request: ClaimRequest, passed: set[Address]) -> tuple[Address, str]:
        seen = self._look()
        for address, claim in seen.claims.items():
            if claim.owner == request.owner and address.version == request.family and address not in passed:
                # Forgotten by ``owners``, or the owner has come back before its address was given away.
                return address, _pool_name(seen, address)
        pools = tuple(pool for pool in seen.pools.enabled(request.family) if pool.takes(seen.nodes[request.node]))
        names = {pool.name for pool in pools}
        blocks = [block for block in of_ipam(seen.blocks.values(), request.family) if block.pool in names]
        intended = {record.address for record in seen.owners.values()}
        found = free_address(blocks, seen.claims, intended, passed)
        if found is None:
            block = await self._allocation.own_block(pools, request.family)
            found = free_address((block,), seen.claims, intended, passed)
        if found is None:
            raise busy()
        address, block = found
        return address, block.pool

    async def _fixed(self, address: Address) -> tuple[Address, str]:
        seen = self._look()
        pool = seen.pools.of(as_network(address))
        if pool is None or not pool.enabled:
            raise Refused("bad-address", f"address {address} is in no enabled IPPool; create one that holds it")
        if address == router_anycast(block_at(pool, address)):
            raise Refused("bad-address", f"address {address} is the routers' own (RFC 4291 2.6.1); ask for another")
        await self._allocation.own_block_of(pool, address)
        return address, pool.name

    async def _confirm(self, request: ClaimRequest, record: Entry[OwnerRecord]) -> bool:
        """Whether the owner still intends the claimed address; from here on it cannot be changed unseen."""
        key = owner_key(request.owner, request.family)
        value = record.value
        if value.nonce.startswith(INTENDS):
            confirmed = msgspec.structs.replace(value, nonce=value.nonce.removeprefix(INTENDS))
            if await compare_and_set(self._owners, key, confirmed, record) is not None:
                return True
        entry = await self._owners.get(key, OwnerRecord)
        return entry is not None and entry.value.address == value.address and not entry.value.nonce.startswith(INTENDS)

    async def _reclaim(self, key: str, written: Entry[Claim], before: Entry[Claim] | None) -> None:
        """Undo a claim that its owner does not agree with any more."""
        if before is None:
            await self._claims.delete(key, written.revision)
        else:
            restored = msgspec.structs.replace(before.value, epoch=written.value.epoch)
            await self._claims.update(key, restored, written.revision)

    def _report_moved(self, claim: Claim, before: str) -> None:
        self._moved(AddressMoved(claim.address, owner_text(claim.owner), before, claim.node, claim.epoch))


def _pool_name(seen: Seen, address: Address) -> str:
    pool = seen.pools.of(as_network(address))
    return pool.name if pool is not None else ""
