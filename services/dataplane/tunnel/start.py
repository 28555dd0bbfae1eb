"""The tunnel reconciler made, and its loop."""

from __future__ import annotations

from chassis.runtime.reconcile import Loop
from chassis.runtime.service import Runtime
from proto.objects import FelixConfiguration, Node
from services.dataplane.datapath.programs import Datapath
from services.dataplane.feed import GATHER, Feed
from services.dataplane.one_thread import OneThread
from services.dataplane.settings import Settings
from services.dataplane.tunnel.kernel import KernelWatch
from services.dataplane.tunnel.reconciler import TunnelReconciler


def make(runtime: Runtime[Settings], datapath: Datapath, feed: Feed) -> TunnelReconciler:
    """The reconciler of a node, or of a gateway; it does nothing before :func:`start`."""
    return TunnelReconciler(runtime, datapath, feed, thread=OneThread("tunnels"))


def start(runtime: Runtime[Settings], tunnels: TunnelReconciler, feed: Feed) -> None:
    """Keeps maps and programs of tunnels from now on."""
    cursors = [view.cursor() for view in (feed.routes, feed.blocks, feed.claims)]
    cursors.append(feed.changes(Node, FelixConfiguration, servers=True))

    async def close() -> None:
        tunnels.close()

    runtime.on_stop(close)
    loop = Loop(runtime, "tunnels", cursors=cursors, apply=tunnels.apply, debounce=GATHER)
    tunnels.watch = KernelWatch(lambda: loop.poke(full=False))
    tunnels.watch.start()
