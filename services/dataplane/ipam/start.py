"""The loop that keeps the node supplied with addresses."""

from __future__ import annotations

from collections.abc import Callable

from chassis.runtime.reconcile import Dirty, Done, Loop
from chassis.runtime.service import Runtime
from chassis.telemetry.health import Condition
from proto.objects import IPPool, Namespace, Node
from services.dataplane.feed import Feed
from services.dataplane.ipam.addresses import AddressBook
from services.dataplane.ipam.provision import Provision
from services.dataplane.settings import Settings


def start(
    runtime: Runtime[Settings], feed: Feed, book: AddressBook, blocks: Condition, supplied: Callable[[], None]
) -> None:
    """Asks ``ipam`` from now on. ``supplied`` is called whenever the node holds a block of each family it gives."""
    provision = Provision(runtime.bus, runtime.log, feed, book, blocks, supplied)
    cursors = [feed.changes(Node, IPPool, Namespace), feed.blocks.cursor(), book.signal.cursor()]
    Loop(runtime, "provision", cursors=cursors, apply=provision.apply, debounce=0.02)

    async def observe_node(_dirty: Dirty) -> Done:
        book.observe_node()
        return Done()

    Loop(runtime, "node-blocks", cursors=[feed.changes(Node, IPPool)], apply=observe_node, debounce=0.0)
