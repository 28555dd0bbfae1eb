"""The loop of the ipcache, and the one that tells of endpoints that are not believed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from chassis.runtime.reconcile import Dirty, Done, Loop
from chassis.runtime.service import Runtime
from proto.net import Address
from proto.objects import EndpointSlice, Node
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.ipcache.entries import APISERVER
from services.dataplane.datapath.growth import Growth
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import GATHER, Feed
from services.dataplane.ipcache.ownership import tell_doubts
from services.dataplane.ipcache.peers import Peers
from services.dataplane.settings import Settings
from services.dataplane.signals import Signal

FULL_PEERS = 15.0


def start(
    runtime: Runtime[Settings],
    tables: Tables,
    growth: Growth,
    *,
    feed: Feed,
    endpoints: LocalEndpoints,
    signal: Signal,
    own_addresses: Callable[[], Awaitable[frozenset[Address]]],
    passed: Callable[[], None],
) -> Peers:
    """Keeps ``am_ipcache`` from now on. ``signal`` tells of changed ``endpoints``; ``passed``: after a pass."""
    peers = Peers(
        tables,
        feed,
        endpoints,
        runtime.log,
        make_room=growth.make_room,
        tell=runtime.bus.tell_fault,
        note=runtime.health.note,
    )

    async def around(dirty: Dirty) -> Done:
        *others, keys = dirty.by_cursor
        if dirty.full:
            peers.own_addresses = await own_addresses()
        api_server = feed.concern(keys, EndpointSlice, namespace=APISERVER[0])
        if dirty.full or any(others) or api_server or feed.concern(keys, Node):
            await peers.apply(full=dirty.full)
        passed()
        return Done()

    whose = [view.cursor() for view in (feed.endpoints, feed.blocks, feed.claims, feed.identities)]
    cursors = [*whose, signal.cursor(), feed.objects.cursor()]
    Loop(runtime, "peers", cursors=cursors, apply=around, period=FULL_PEERS, debounce=GATHER)
    tell_doubts(runtime, feed.ownership, runtime.bus, runtime.settings.node)
    return peers
