"""Upkeep: lifts the recovery barrier of a new epoch, and frees claims that nobody holds any more.

Every copy does both; all writes are compare-and-set, so it does not matter which is first. Nothing is swept before all
views are in sync and the gate is open.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Set

from chassis.bus.entry import Entry
from chassis.bus.view import View
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from kit.once import Once
from proto.addresses import IPAM_HOLDER, Claim, OwnerRecord
from proto.codec import address_segment, owner_key
from proto.sync import Complete, complete_key
from services.ipam.block_allocation import BlockAllocation, Look
from services.ipam.core.blocks import as_network
from services.ipam.core.claims import RECOVERED, rebuilt, sweep
from services.ipam.core.recovery import adopted, kept_blocks, settled, silence, waiting_for
from services.ipam.core.seen import Seen
from services.ipam.store import Store, compare_and_set, delete_exactly

AGAIN = 0.5
"""Seconds between two tries to open the gate."""
SILENT = 60.0
"""Seconds that a node may take to report before a person is told who holds everybody up."""
OVERDUE = 120.0
"""Seconds after which a node that has not reported is not waited for: its annotation counts. By then its kubelet has
shown the API the addresses of its pods.
"""
SAID_AGAIN = 600.0
"""Seconds until that is told again while it lasts."""
KnownToAll = Callable[[tuple[Claim, ...]], Awaitable[tuple[Claim, ...]]]
"""Those of some rested claims whose former pods' leaving every live node knows of."""
Publish = Callable[[str, str, str], None]
"""Takes a fault, its remedy and the node it is about."""


class Upkeep:
    """``stores`` and ``views`` are those of blocks, owners and claims, in this order."""

    def __init__(
        self,
        stores: tuple[Store, Store, Store],
        views: tuple[View, View, View],
        allocation: BlockAllocation,
        look: Look,
        log: Log,
        publish: Publish,
        known_to_all: KnownToAll,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores = stores
        self._views = views
        self._allocation = allocation
        self._look = look
        self._log = log
        self._clock = clock
        self._since: Mapping[tuple[str, ...], float] = {}
        self._waiting: tuple[str, ...] = ()
        self._waiting_since: dict[tuple[str, str], float] = {}
        """By epoch of ``blocks`` and node."""
        self._publish = publish
        self._known_to_all = known_to_all
        self._once: Once[tuple[str, str]] = Once(again=SAID_AGAIN)
        self._problems: tuple[str, ...] = ()

    async def lift_recovery_barrier(self, _dirty: Dirty) -> Done | Again:
        """Write ``_complete`` to each bucket once all that was held is on record again."""
        seen = self._look()
        self._report_problems(seen)
        if seen.not_synced:
            return Again(AGAIN)
        if seen.complete:
            self._waiting_since = {}
            return Done()
        self._report_waiting(waiting_for(seen.nodes.values(), seen.reports, seen.epoch))
        self._report_silent(seen)
        overdue = self._overdue(seen.epoch)
        if set(self._waiting) - overdue:
            return Again(AGAIN)
        if await self._adopt(seen, overdue) or await self._rebuild(seen):
            return Again(0.05)
        for store, view in zip(self._stores, self._views, strict=True):
            if not view.scope_complete():
                await store.put(complete_key(), Complete(view.epoch))
        self._log.info("recovery-barrier-lifted", epoch=seen.epoch, blocks=len(seen.blocks), claims=len(seen.claims))
        return Again(AGAIN)

    async def _adopt(self, seen: Seen, overdue: Set[str]) -> bool:
        """Blocks of nodes that do not report: by their annotations, then by their pods; True when there were any."""
        nodes, now = tuple(seen.nodes.values()), int(time.time())
        writes = adopted(nodes, seen.reports, seen.epoch, seen.blocks, seen.pools, now, overdue)
        writes = writes or kept_blocks(seen.evidence, nodes, seen.blocks, seen.pools, now)
        for write in writes:
            self._log.info("block-adopted", block=write.block.cidr, node=write.block.node)
            await self._allocation.adopt(write)
        return bool(writes)

    async def _rebuild(self, seen: Seen) -> bool:
        """Owners and claims that the other bucket, or a running pod, tells of; True while there was something to do."""
        own = {cidr: block for cidr, block in seen.blocks.items() if block.node == IPAM_HOLDER}
        owners, claims = rebuilt(seen.owners, seen.claims, seen.pods.values(), own, int(time.time()))
        _, owner_store, claim_store = self._stores
        for record in owners:
            await compare_and_set(owner_store, owner_key(record.owner, record.address.version), record, None)
        for claim in claims:
            await compare_and_set(claim_store, address_segment(claim.address), claim, None)
        if owners or claims:
            self._log.info("rebuilt", owners=len(owners), claims=len(claims))
        return bool(owners or claims)

    async def sweep(self, grace: float, cooldown: float) -> Done:
        """Forget owners without pods, let go of claims without a holder, free addresses that have rested."""
        seen = self._look()
        if seen.not_synced or not seen.complete:
            self._since = {}
            return Done()
        found = sweep(
            seen.owners,
            seen.claims,
            seen.pods.values(),
            self._since,
            now=self._clock(),
            grace=grace,
            cooldown=cooldown,
        )
        self._since = found.since
        uids = {name: node.uid for name, node in seen.nodes.items()}
        for write in settled(seen.blocks.values(), seen.claims, seen.evidence, uids, int(time.time())):
            await self._allocation.adopt(write)
            self._log.info("block-settled", block=write.block.cidr, node=write.block.node)
        _, owners, claims = self._stores
        for owner, address in found.restore:
            pool = seen.pools.of(as_network(address))
            record = OwnerRecord(owner, address, pool.name if pool else "", RECOVERED)
            if await compare_and_set(owners, owner_key(owner, address.version), record, None):
                self._log.info("owner-restored", owner=owner, address=address)
        for record in found.forget:
            if await delete_exactly(owners, owner_key(record.owner, record.address.version), record):
                self._log.info("owner-forgotten", owner=record.owner, address=record.address)
        for claim in await self._known_to_all(found.free):
            if await delete_exactly(claims, address_segment(claim.address), claim):
                self._log.info("address-freed", address=claim.address)
        for before, after in found.let_go:
            key = address_segment(after.address)
            entry = await claims.get(key, type(after))
            if entry is not None and entry.value == before:
                await compare_and_set(claims, key, after, Entry(key, entry.value, entry.revision))
                self._log.info("claim-let-go", address=after.address, pod_uid=before.pod_uid)
        return Done()

    def _report_waiting(self, waiting: tuple[str, ...]) -> None:
        if waiting != self._waiting:
            self._waiting = waiting
            if waiting:
                self._log.info("waiting-for-reports", nodes=list(waiting))

    def _overdue(self, epoch: str) -> Set[str]:
        """Nodes that this copy has waited for long enough."""
        now = self._clock()
        return {node for (of, node), since in self._waiting_since.items() if of == epoch and now - since >= OVERDUE}

    def _report_silent(self, seen: Seen) -> None:
        now = self._clock()
        waiting = [(seen.epoch, node) for node in self._waiting]
        self._waiting_since = {key: self._waiting_since.get(key, now) for key in waiting}
        for key in self._once.take([key for key in waiting if now - self._waiting_since[key] >= SILENT], now):
            fault, remedy = silence(key[1], seen.nodes, int(now - self._waiting_since[key]), int(OVERDUE))
            self._log.warning("node-silent", node=key[1], fault=fault, remedy=remedy)
            self._publish(fault, remedy, key[1])

    def _report_problems(self, seen: Seen) -> None:
        problems = () if seen.not_synced else seen.pools.problems
        for problem in problems:
            if problem not in self._problems:
                self._log.warning("pool-refused", why=problem)
        self._problems = problems
