"""The loop of the ipcache, and the one that reports rejected endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from chassis.runtime.reconcile import Dirty, Done, Loop
from chassis.runtime.service import Runtime
from proto.net import Address
from proto.objects import Node
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.datapath.growth import Growth
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import GATHER, Feed
from services.dataplane.ipcache.ownership import ownership_of, report_rejections
from services.dataplane.ipcache.peers import Peers
from services.dataplane.one_thread import OneThread
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
    ownership = ownership_of(feed)
    thread = OneThread("ipcache")
    peers = Peers(
        tables,
        feed,
        ownership,
        endpoints,
        runtime.log,
        thread=thread,
        make_room=growth.make_room,
        report=runtime.bus.report_fault,
        note=runtime.health.note,
    )

    async def apply(dirty: Dirty) -> Done:
        if dirty.full:
            peers.own_addresses = await own_addresses()
        await peers.apply(fixed=dirty.full or bool(dirty.by_cursor[-1]), full=dirty.full)
        passed()
        return Done()

    async def close() -> None:
        thread.close()

    runtime.on_stop(close)
    whose = [view.cursor() for view in (feed.endpoints, feed.blocks, feed.claims, feed.identities)]
    cursors = [*whose, signal.cursor(), feed.changes(Node, servers=True)]
    Loop(runtime, "peers", cursors=cursors, apply=apply, period=FULL_PEERS, debounce=GATHER)
    report_rejections(runtime, ownership, runtime.bus, runtime.settings.node)
    return peers
