"""Keeps the node supplied: blocks reported and held, claims settled, the journal bound to its cluster.

Owns when ``ipam`` is asked. Promises: the node says what it holds at start and under every new epoch of ``blocks``
(until then ``ipam`` gives nothing to anybody), asks for a block before the last addresses are gone, and tells of each
claim it no longer holds until that is answered. Nothing here holds up a pod that has an address.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from chassis.bus.client import Bus
from chassis.faults import Refused, Unavailable
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.health import Condition
from chassis.telemetry.log import Log
from kit.once import Once
from services.dataplane.feed import Feed
from services.dataplane.ipam.addresses import AddressBook

RETRY_SECONDS = 1.0
NOT_SYNCED = "not-synced"


class Provision:
    """One node's supplies."""

    def __init__(
        self, bus: Bus, log: Log, feed: Feed, book: AddressBook, blocks: Condition, supplied: Callable[[], None]
    ) -> None:
        """``blocks``: the node holds what it gives from; ``supplied`` is called whenever it does."""
        self._bus = bus
        self._log = log
        self._feed = feed
        self._book = book
        self._blocks = blocks
        self._supplied = supplied
        self._reported_epoch = ""
        self._once: Once[str] = Once()

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """Binds, reports, asks, settles; whatever is not possible yet comes again."""
        feed, book = self._feed, self._book
        book.departures.acknowledged = feed.acknowledged()
        node = feed.node_object()
        cluster = feed.knowledge().cluster_uid
        if node is None or not cluster:
            self._blocks.set(False, f"the Node object {feed.node} has not arrived")
            return Again(after=RETRY_SECONDS)
        await book.journal.bind(cluster)
        epoch = feed.blocks.epoch
        if epoch and epoch != self._reported_epoch:
            try:
                await book.report(node.uid)
            except Refused as error:
                self._judge()
                self._log.warning("report-refused", code=error.code, why=error.message)
                return Again(after=RETRY_SECONDS)
            self._reported_epoch = epoch
            self._log.info("blocks-reported", epoch=epoch, blocks=len(book.journal.ledger.blocks))
        short = await self._refill(node.uid)
        self._judge()
        await book.settle_owed()
        return Again(after=RETRY_SECONDS) if short else Done()

    async def _refill(self, node_uid: str) -> bool:
        """Asks for blocks; True when one is still wanting."""
        short = False
        faults: list[str] = []
        for family in self._book.wants_block():
            try:
                await self._book.request_block(family, node_uid)
            except (Refused, Unavailable) as error:
                if not self._book.is_short(family):
                    continue  # what is free goes on to be given, also what a node may not know of
                if isinstance(error, Unavailable):
                    raise
                short = True
                if error.code != NOT_SYNCED:  # ipam has just started: nothing for a person yet
                    faults.append(f"no block for IPv{family}: {error.message}")
        for fault in self._once.take(faults, time.monotonic()):
            self._log.warning("block-refused", why=fault)
            self._bus.report_fault(fault, "see: airmesh ipam show")
        return short

    def _judge(self) -> None:
        """The condition, and what follows from it."""
        held = self._book.has_blocks()
        some = bool(self._feed.supply().families)
        why = "a family has no block yet that the Node names" if some else "no IPPool gives addresses to this node"
        self._blocks.set(held, why)
        if held:
            self._supplied()
