"""What the datapath's maps say of everything else: whose an address is.

Owns ``am_ipcache``. Promises: only endpoints that ``beliefs`` lets count; entries are only taken out when the watches
they come from are in sync (an empty bucket is not an empty cluster); what is added is added at once. A mirror of the
map in memory makes a change cost what changed; a full pass reads the map itself, so that what was deleted by hand
returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from proto.codec import encode_segment
from proto.net import Address
from proto.objects import EndpointSlice, Node
from services.dataplane.core import ipcache
from services.dataplane.core.layout import Peer, PeerFlag, PrefixKey
from services.dataplane.feed import Feed
from services.dataplane.kernel.tables import Tables
from services.dataplane.registry import Registry


class Peers:
    """Keeps ``am_ipcache``."""

    def __init__(self, tables: Tables, feed: Feed, registry: Registry) -> None:
        self._tables = tables
        self._feed = feed
        self._registry = registry
        self._actual: dict[PrefixKey, Peer] | None = None
        self._sources: dict[PrefixKey, str] = {}
        self.own_addresses: Iterable[Address] = ()
        self.sequence = 0
        """Stream sequence of ``endpoints`` that the map holds."""
        self.epoch = ""

    def apply(self, *, full: bool) -> int:
        """Makes the map what it should be; ``full`` reads it first. Returns the number of changes."""
        sequence, epoch = self._feed.endpoints.sequence, self._feed.endpoints.epoch
        foreign = self._feed.foreign_endpoints()
        local = [entry for one in self._registry.up.values() for entry in one.published(self._feed.node)]
        sources = {PrefixKey.host(entry.address): entry.node for entry in (*foreign, *local)}
        wanted = ipcache.entries_of(
            ipcache.Surroundings(
                node=self._feed.node,
                endpoints=foreign,
                local=local,
                nodes=self._feed.all_of(Node),
                slices=self._feed.all_of(EndpointSlice),
                own_addresses=self.own_addresses,
            )
        )
        if full or self._actual is None:
            self._actual = self._tables.ipcache.items()
        actual = self._actual
        upserts = {key: peer for key, peer in wanted.items() if actual.get(key) != peer}
        gone = self._gone(actual, wanted)
        self._sources.update({key: node for key, node in sources.items() if key in wanted})
        self._actual = None  # unknown until both steps have succeeded
        self._tables.ipcache.apply(upserts, gone)
        actual.update(upserts)
        for key in gone:
            del actual[key]
            self._sources.pop(key, None)
        self._actual = actual
        if upserts or gone:
            self._tables.bump_generation()
        if self._feed.endpoints.synced:
            self.sequence, self.epoch = sequence, epoch
        return len(upserts) + len(gone)

    def _gone(self, actual: Mapping[PrefixKey, Peer], wanted: Mapping[PrefixKey, Peer]) -> tuple[PrefixKey, ...]:
        """Entries that may go: their node has said, in this epoch, that all of its endpoints are on the bus."""
        feed = self._feed
        if not (feed.endpoints.synced and feed.complete(Node) and feed.complete(EndpointSlice)):
            return ()
        nodes = {node.name for node in feed.all_of(Node)}
        silent = {node for node in nodes if not feed.endpoints.scope_complete(encode_segment(node))} - {feed.node}
        undecided = feed.beliefs.now.undecided

        def may_go(key: PrefixKey, peer: Peer) -> bool:
            if key.address in undecided:
                return False
            source = self._sources.get(key)
            if source is None:  # not since this agent started: whose it was is unknown
                return not (peer.flags & PeerFlag.POD and silent)
            return source not in silent

        return tuple(key for key, peer in actual.items() if key not in wanted and may_go(key, peer))
