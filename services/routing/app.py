"""Wires ``routing``: views, the kernel, the loops that install and announce. Decides nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from chassis.bus.causes import Causes
from chassis.faults import SettingsFault
from chassis.runtime.reconcile import Again, Dirty, Done, Loop
from chassis.runtime.service import Runtime
from proto.subjects import ROUTES, event_subject
from services.routing.announcer import Announcer
from services.routing.installer import Installer
from services.routing.kernel import Kernel
from services.routing.mirror import Mirror
from services.routing.settings import Settings

PERIOD = 5.0
"""Seconds between full passes: the longest that drift lasts if the kernel did not tell of it."""
CALM = 0.25
"""Seconds between two passes for changes of the kernel: a pod's route is one, and pods come in crowds."""


async def build(runtime: Runtime[Settings], namespace: Path | None = None) -> None:
    """Everything that one copy of the service is; ``namespace`` is a network namespace other than the process' own."""
    settings, bus = runtime.settings, runtime.bus
    if not settings.node and not settings.gateway:
        raise SettingsFault("AIRMESH_NODE", settings.node, "name this Node, or set AIRMESH_GATEWAY=true")
    node = "" if settings.gateway else settings.node
    kernel = Kernel(settings.uplinks, namespace, settings.sysctl_root)
    runtime.on_stop(kernel.close)
    mirror = Mirror(bus, node)
    installer = Installer(
        node,
        kernel,
        mirror.look,
        runtime.log,
        lambda event: bus.publish(event_subject("routing", "changed"), event),
        lambda fault, remedy: bus.report_fault(fault, remedy, node),
        telemetry=runtime.telemetry,
        causes=Causes(mirror.claims, mirror.blocks, mirror.routes),
    )
    ready = runtime.health.require("routes")
    announce: Loop | None = None

    async def install(dirty: Dirty) -> Done | Again:
        uplinks = installer.snapshot.uplinks
        outcome = await installer.apply(dirty)
        why = mirror.not_synced() or "; ".join(fault.fault for fault in installer.faults if not fault.of_others)
        ready.set(not why, why)
        if announce is not None and installer.snapshot.uplinks != uplinks:
            announce.poke()
        return outcome

    cursors = [view.cursor() for view in mirror.views]
    loop = Loop(runtime, "routes", cursors=cursors, apply=install, period=PERIOD, debounce=0.01)
    runtime.spawn("kernel-watch", _watch_kernel(runtime, kernel, loop))
    if node:
        announcer = Announcer(
            node,
            bus.bucket(ROUTES),
            mirror.routes,
            mirror.look,
            lambda: installer.snapshot,
            runtime.log,
            telemetry=runtime.telemetry,
            causes=Causes(mirror.blocks, concerns=lambda _, entry: entry is not None and entry.value.node == node),
        )
        reported = [mirror.routes.cursor(), mirror.blocks.cursor()]
        announce = Loop(runtime, "announce", cursors=reported, apply=announcer.apply, period=PERIOD)


async def _watch_kernel(runtime: Runtime[Settings], kernel: Kernel, loop: Loop) -> None:
    """Forwarding on, kept on; a pass soon after the kernel says that something changed."""
    changed = asyncio.Event()
    condition = runtime.health.require("forwarding")
    await kernel.watch(changed.set)
    while True:
        failed = await kernel.forward()
        condition.set(not failed, f"cannot switch on {', '.join(failed)}: run with CAP_NET_ADMIN (pid {os.getpid()})")
        try:
            async with asyncio.timeout(PERIOD):
                await changed.wait()
        except TimeoutError:
            continue
        changed.clear()
        loop.poke()
        await asyncio.sleep(CALM)
