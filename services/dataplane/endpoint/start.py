"""The loops of endpoints: repair, removal, identities, publishing, and the signal to waiting ADDs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from chassis.runtime.reconcile import Again, Dirty, Done, Loop
from chassis.runtime.service import Runtime
from proto.objects import Namespace, Pod
from proto.policy import Revision
from services.dataplane.endpoint.admission import AdmissionWait
from services.dataplane.endpoint.publish import AckOut, EndpointsOut, Published
from services.dataplane.endpoint.reaper import Reaper
from services.dataplane.endpoint.reconciler import Reconciler
from services.dataplane.endpoint.registry import Registry
from services.dataplane.endpoint.relabel import Relabel
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings


def start(
    runtime: Runtime[Settings],
    feed: Feed,
    registry: Registry,
    *,
    admission: AdmissionWait,
    reconciler: Reconciler,
    reaper: Reaper,
    relabel: Relabel,
    published: Published,
) -> None:
    """Keeps the endpoints of the node from now on."""
    Loop(runtime, "kernel", cursors=[], apply=reconciler.repair)
    objects, identities, rules = feed.changes(Pod, Namespace), feed.identities.cursor(), feed.rules_view.cursor()
    cursors = [objects, identities, rules, registry.signal.cursor()]  # as relabel.LOCAL
    Loop(runtime, "identities", cursors=cursors, apply=relabel.apply)
    out = EndpointsOut(runtime.bus, feed, registry, runtime.log, published)
    Loop(runtime, "endpoints", cursors=[feed.endpoints.cursor(), registry.signal.cursor()], apply=out.apply)
    runtime.spawn("admission", _wake(feed, admission))
    runtime.spawn("reaper", reaper.reap())


def start_acks(
    runtime: Runtime[Settings],
    registry: Registry,
    reached: Callable[[], Revision | None],
    held: Callable[[], tuple[int, str]],
) -> Loop:
    """Tells all from now on what the kernel holds: the revision of rules that was ``reached``, sequence and epoch of
    ``endpoints`` that are ``held``. The loop is to be poked when they change.
    """
    out = AckOut(runtime.bus, runtime.settings.node)

    async def acknowledge(_dirty: Dirty) -> Done | Again:
        revision = reached()
        if revision is None or not runtime.bus.connected:
            return Again(after=1.0)
        missing = runtime.health.missing()
        await out.write(revision, held(), len(registry.up), ready=not missing, now=time.monotonic())
        return Done()

    return Loop(runtime, "acks", cursors=[], apply=acknowledge, period=2.0, debounce=0.02)


async def _wake(feed: Feed, admission: AdmissionWait) -> None:
    """Tells waiting ADDs of every change they may wait for."""
    woken = asyncio.Event()
    cursors = [feed.changes(Pod, Namespace), feed.rules_view.cursor(), feed.identities.cursor()]
    for cursor in cursors:
        cursor.wakes(woken)
    while True:
        await woken.wait()
        woken.clear()
        for cursor in cursors:
            cursor.take()
        admission.wake()
