"""The ipcache: address → identity of every pod and node, as the datapath's map has it.

Owns ``am_ipcache``. Promises: only endpoints that ``ownership`` lets count; entries are only taken out when the watches
they come from are in sync (an empty bucket is not an empty cluster); what is added is added at once. A mirror of the
map in memory makes a change cost what changed; a full pass reads the map itself, so that what was deleted by hand
returns. The table grows before it is full; when it cannot, the newest endpoints of the node that has most of them are
left out (they are strangers to policy here), which is told, and whatever is to go goes all the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping

from chassis.telemetry.log import Log
from kit.once import Once
from proto.addresses import Endpoint
from proto.codec import encode_segment
from proto.net import Address
from proto.objects import EndpointSlice, Node
from services.dataplane.core.datapath.layout import (
    Peer,
    PeerFlag,
    PrefixKey,
)
from services.dataplane.core.datapath.maps import IPCACHE
from services.dataplane.core.datapath.shares import Pressure, Refused, usable
from services.dataplane.core.datapath.wire import Record
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.ipcache import entries as ipcache
from services.dataplane.datapath.maps import TableFull
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import Feed


class Peers:
    """Keeps ``am_ipcache``."""

    def __init__(
        self,
        tables: Tables,
        feed: Feed,
        endpoints: LocalEndpoints,
        log: Log,
        *,
        make_room: Callable[[Mapping[str, int]], Awaitable[None]],
        tell: Callable[[str, str], None],
        note: Callable[[str, str], None],
    ) -> None:
        """``make_room`` is asked before more is written than the table takes, ``tell`` gets a fault and its remedy,
        ``note`` a sentence while it lasts.
        """
        self._note = note
        self._tables = tables
        self._feed = feed
        self._local = endpoints
        self._log = log
        self._make_room = make_room
        self._tell = tell
        self._actual: dict[PrefixKey, Peer] | None = None
        self._sources: dict[PrefixKey, str] = {}
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

    def pressure(self) -> Iterable[Pressure]:
        """How full its table is."""
        groups = Counter(why.group for why in self.refused.values())
        yield Pressure(IPCACHE.name, self._asked, usable(self._tables.ipcache.entries), groups)

    async def apply(self, *, full: bool) -> int:
        """Makes the map what it should be; ``full`` reads it first. Returns the number of changes."""
        while True:
            sequence, epoch = self._feed.endpoints.sequence, self._feed.endpoints.epoch
            foreign = self._feed.foreign_endpoints()
            wanted = self._wanted(foreign)
            if len(wanted) <= self._asked:
                break
            self._asked = len(wanted)
            await self._make_room({IPCACHE.name: self._asked})
        self._asked = len(wanted)
        self._refuse(foreign, wanted)
        local = [entry for one in self._local.up.values() for entry in one.published(self._feed.node)]
        sources = {PrefixKey.host(entry.address): entry.node for entry in (*foreign, *local)}
        if full or self._actual is None:
            self._actual = self._tables.ipcache.items()
        actual = self._actual
        upserts = {key: peer for key, peer in wanted.items() if actual.get(key) != peer}
        gone = self._gone(actual, wanted)
        self._sources.update({key: node for key, node in sources.items() if key in wanted})
        self._actual = None  # unknown until both steps have succeeded
        left: frozenset[Record] = frozenset()
        try:
            self._tables.ipcache.apply(upserts, gone)
        except TableFull as late:  # all the others are written, and what had to go is gone
            left = late.keys
        actual.update({key: peer for key, peer in upserts.items() if key not in left})
        for key in gone:
            del actual[key]
            self._sources.pop(key, None)
        self._actual = actual
        if upserts or gone:
            self._tables.bump_generation()
        if left:
            self._log.error("addresses-without-room", count=len(left), entries=self._tables.ipcache.entries)
        if self._feed.endpoints.synced:
            self.sequence, self.epoch = sequence, epoch
        self._judge_filled()
        return len(upserts) + len(gone)

    def _wanted(self, foreign: list[Endpoint]) -> dict[PrefixKey, Peer]:
        return ipcache.entries_of(
            ipcache.Surroundings(
                node=self._feed.node,
                endpoints=foreign,
                local=[entry for one in self._local.up.values() for entry in one.published(self._feed.node)],
                nodes=self._feed.all_of(Node),
                slices=self._feed.all_of(EndpointSlice),
                own_addresses=self.own_addresses,
            )
        )

    def _refuse(self, foreign: Iterable[Endpoint], wanted: dict[PrefixKey, Peer]) -> None:
        """Takes out of ``wanted`` what there is no room for."""
        room = usable(self._tables.ipcache.entries)
        self.refused = ipcache.refused(foreign, wanted, room) if len(wanted) > room else {}
        for key in self.refused:
            del wanted[key]
        nodes = {why.group: why for why in self.refused.values()}
        for node in self._once.take(nodes, time.monotonic()):
            why = nodes[node]
            fault = (
                f"am_ipcache has room for {why.room} of {why.total} addresses: node {node} asks for {why.asked}, more "
                f"than any other, and its newest endpoints are strangers on node {self._feed.node}"
            )
            self._log.error("addresses-refused", node=node, fault=fault)
            self._tell(fault, f"see what runs on node {node}, or raise AIRMESH_TABLE_MEMORY or AIRMESH_IPCACHE_ENTRIES")
        said = f"without room in am_ipcache: {len(self.refused)} endpoints of {', '.join(sorted(nodes)[:5])}"
        self._note("addresses", said if nodes else "")

    def _gone(self, actual: Mapping[PrefixKey, Peer], wanted: Mapping[PrefixKey, Peer]) -> tuple[PrefixKey, ...]:
        """Entries that may go: their node has said, in this epoch, that all of its endpoints are on the bus."""
        if not self._is_in_sync():
            return ()
        silent = self._silent()
        undecided = self._feed.ownership.now.undecided

        def may_go(key: PrefixKey, peer: Peer) -> bool:
            if key.address in undecided:
                return False
            source = self._sources.get(key)
            if source is None:  # not since this agent started: whose it was is unknown
                return not (peer.flags & PeerFlag.POD and silent)
            return source not in silent

        return tuple(key for key, peer in actual.items() if key not in wanted and may_go(key, peer))

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
