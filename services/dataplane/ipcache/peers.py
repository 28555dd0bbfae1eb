"""The ipcache: address → identity of every pod and node, as the datapath's map has it.

Owns ``am_ipcache``. Promises: only endpoints that ``ownership`` lets count; entries are only taken out when the watches
they come from are in sync (an empty bucket is not an empty cluster); what is added is added at once. A change costs the
addresses that it is about; a full pass reads the map itself, beside the loop, so that what was deleted by hand returns.
The table grows before it is full; when it cannot, the newest endpoints of the node that has most of them are left out
(they are strangers to policy here), which is told, and whatever is to go goes all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from chassis.telemetry.log import Log
from kit.once import Once
from proto.addresses import Endpoint
from proto.codec import encode_segment
from proto.net import Address
from proto.objects import EndpointSlice, Node
from services.dataplane.core.datapath.layout import Peer, PeerFlag, PrefixKey
from services.dataplane.core.datapath.maps import IPCACHE
from services.dataplane.core.datapath.shares import Pressure, Refused, usable
from services.dataplane.core.datapath.wire import Record
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.ipcache import entries as ipcache
from services.dataplane.datapath.maps import TableFull
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import Feed
from services.dataplane.ipcache.ownership import Ownership
from services.dataplane.one_thread import OneThread

AT_ONCE = 2000
"""Entries that are compared before others have their turn: some milliseconds."""


class Peers:
    """Keeps ``am_ipcache``."""

    def __init__(  # noqa: PLR0913 - what it reads, and whom it tells, each by name
        self,
        tables: Tables,
        feed: Feed,
        ownership: Ownership,
        endpoints: LocalEndpoints,
        log: Log,
        *,
        thread: OneThread,
        make_room: Callable[[Mapping[str, int]], Awaitable[None]],
        report: Callable[[str, str], None],
        note: Callable[[str, str], None],
    ) -> None:
        """``thread`` reads the map, ``make_room`` is asked before more is written than the table takes, ``report`` gets
        a fault and its remedy, ``note`` a sentence while it lasts.
        """
        self._note = note
        self._tables = tables
        self._feed = feed
        self._ownership = ownership
        self._local = endpoints
        self._log = log
        self._thread = thread
        self._make_room = make_room
        self._report = report
        self._entries = ipcache.Entries()
        self._actual: dict[PrefixKey, Peer] | None = None
        self._dirty: set[PrefixKey] = set()
        """Keys whose entry the map may not have as it should."""
        self._asked = 0
        self._once: Once[str] = Once()
        self.refused: Mapping[PrefixKey, Refused] = {}
        """Endpoints of other nodes that have no entry."""
        self.own_addresses: Iterable[Address] = ()
        self.sequence = 0
        """Stream sequence of ``endpoints`` that the map holds."""
        self.epoch = ""
        self.filled = False
        """Whether the map has held what is known of the whole cluster (:func:`ipcache.is_filled`)."""
        self._in_sync_since: float | None = None

    def endpoint_at(self, address: Address) -> Endpoint | None:
        """The pod that lives at an address, of any node."""
        return self._entries.endpoint_at(address)

    def pressure(self) -> Iterable[Pressure]:
        """How full its table is."""
        groups = Counter(why.group for why in self.refused.values())
        yield Pressure(IPCACHE.name, self._asked, usable(self._tables.ipcache.entries), groups)

    async def apply(self, *, fixed: bool, full: bool) -> int:
        """Makes the map what it should be; ``fixed``: nodes or the API server changed, ``full`` reads the map first.
        Returns the number of changes.
        """
        while True:
            sequence, epoch = self._feed.endpoints.sequence, self._feed.endpoints.epoch
            await self._follow(fixed=fixed)
            count = len(self._entries.wanted)
            if count <= self._asked:
                break
            self._asked = count
            await self._make_room({IPCACHE.name: self._asked})
        self._asked = count
        before = self.refused
        wanted = self._refuse()
        self._dirty |= before.keys() ^ self.refused.keys()
        if full or self._actual is None:
            self._actual = await self._thread.run(self._tables.ipcache.items)
            self._dirty |= await self._different(self._actual, wanted)
        changes = self._write(self._actual, wanted)
        if self._feed.endpoints.synced:
            self.sequence, self.epoch = sequence, epoch
        self._judge_filled()
        return changes

    async def _follow(self, *, fixed: bool) -> None:
        """Takes in what changed since the last pass."""
        await self._ownership.settled()
        for count, key in enumerate(self._ownership.changed.take(), 1):
            self._entries.publish(key, self._ownership.endpoint(key))
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)
        node = self._feed.node
        self._entries.set_local(entry for one in self._local.up.values() for entry in one.published(node))
        if fixed:
            nodes, slices = self._feed.all_of(Node), self._feed.all_of(EndpointSlice)
            self._entries.set_fixed(ipcache.fixed_entries(node, nodes, slices, self.own_addresses))
        self._dirty |= self._entries.settle()

    async def _different(self, actual: Mapping[PrefixKey, Peer], wanted: Mapping[PrefixKey, Peer]) -> set[PrefixKey]:
        """Keys at which the map is not what it should be."""
        found: set[PrefixKey] = set()
        for one, other in ((dict(wanted), actual), (actual, wanted)):
            for count, (key, peer) in enumerate(one.items(), 1):
                if other.get(key) != peer:
                    found.add(key)
                if count % AT_ONCE == 0:
                    await asyncio.sleep(0)
        return found

    def _write(self, actual: dict[PrefixKey, Peer], wanted: Mapping[PrefixKey, Peer]) -> int:
        """Writes what is dirty. What may not go yet, or found no room, stays dirty."""
        upserts = {key: wanted[key] for key in self._dirty if key in wanted and actual.get(key) != wanted[key]}
        late = {key for key in self._dirty if key not in wanted and key in actual}
        gone = self._gone({key: actual[key] for key in late})
        self._actual = None  # unknown until both steps have succeeded
        left: frozenset[Record] = frozenset()
        try:
            self._tables.ipcache.apply(upserts, gone)
        except TableFull as full:  # all the others are written, and what had to go is gone
            left = full.keys
        actual.update({key: peer for key, peer in upserts.items() if key not in left})
        for key in gone:
            del actual[key]
        self._actual = actual
        stay = {key for key in upserts if key in left} | late.difference(gone)
        for key in self._dirty - stay:
            if key not in self._entries.wanted:
                self._entries.forget(key)
        self._dirty = stay
        if upserts or gone:
            self._tables.bump_generation()
        if left:
            self._log.error("addresses-without-room", count=len(left), entries=self._tables.ipcache.entries)
        return len(upserts) + len(gone)

    def _refuse(self) -> Mapping[PrefixKey, Peer]:
        """What is wanted without that which there is no room for."""
        wanted, room = self._entries.wanted, usable(self._tables.ipcache.entries)
        foreign = self._ownership.now.endpoints
        self.refused = ipcache.refused(foreign, wanted, room) if len(wanted) > room else {}
        nodes = {why.group: why for why in self.refused.values()}
        for node in self._once.take(nodes, time.monotonic()):
            why = nodes[node]
            fault = (
                f"am_ipcache has room for {why.room} of {why.total} addresses: node {node} asks for {why.asked}, more "
                f"than any other, and its newest endpoints are strangers on node {self._feed.node}"
            )
            self._log.error("addresses-refused", node=node, fault=fault)
            self._report(
                fault, f"see what runs on node {node}, or raise AIRMESH_TABLE_MEMORY or AIRMESH_IPCACHE_ENTRIES"
            )
        said = f"without room in am_ipcache: {len(self.refused)} endpoints of {', '.join(sorted(nodes)[:5])}"
        self._note("addresses", said if nodes else "")
        return {key: peer for key, peer in wanted.items() if key not in self.refused} if self.refused else wanted

    def _gone(self, late: Mapping[PrefixKey, Peer]) -> Collection[PrefixKey]:
        """Of the entries that nobody wants, those that may go: their node has said, in this epoch, that all of its
        endpoints are on the bus.
        """
        if not late or not self._is_in_sync():
            return ()
        silent = self._silent()
        undecided = self._ownership.now.undecided

        def may_go(key: PrefixKey, peer: Peer) -> bool:
            if key.address in undecided:
                return False
            source = self._entries.sources.get(key)
            if source is None:  # not since this agent started: whose it was is unknown
                return not (peer.flags & PeerFlag.POD and silent)
            return source not in silent

        return [key for key, peer in late.items() if may_go(key, peer)]

    def _is_in_sync(self) -> bool:
        feed = self._feed
        return feed.endpoints.synced and feed.complete(Node) and feed.complete(EndpointSlice)

    def _silent(self) -> set[str]:
        """Nodes that have not said, in this epoch, that all of their endpoints are on the bus."""
        feed = self._feed
        nodes = {node.name for node in feed.all_of(Node)}
        return {node for node in nodes if not feed.endpoints.scope_complete(encode_segment(node))} - {feed.node}

    def _judge_filled(self) -> None:
        if self.filled or not self._is_in_sync():
            return
        now = time.monotonic()
        if self._in_sync_since is None:
            self._in_sync_since = now
        self.filled = ipcache.is_filled(now - self._in_sync_since, self._silent())
