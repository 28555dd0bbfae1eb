"""Wires ``routing``: views, the kernel, the loops that install and announce. Decides nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from chassis.bus.causes import Causes
from chassis.faults import SettingsFault
from chassis.runtime.reconcile import Again, Dirty, Done, Loop
from chassis.runtime.service import Runtime
from kit import bgp
from kit.models import SERVED, Model
from kit.pairs import chosen
from linux.netlink import Netlink
from proto.bgp import BgpRoutesRequest, BgpSessions, BgpSessionsRequest
from proto.bgp_capture import BgpCaptureRequest
from proto.codec import encode_segment
from proto.pairs import PairsRequest
from proto.subjects import BGP, BGP_CAPTURE, BGP_ROUTES, PAIRS, ROUTES, event_subject, object_fault_subject
from services.routing import doctor
from services.routing.announcer import Announcer
from services.routing.bgp import answers, metrics
from services.routing.bgp.mirror import Asked
from services.routing.bgp.router import Router
from services.routing.bgp.start import Bgp
from services.routing.devices import Devices
from services.routing.installer import Installer, Reports
from services.routing.kernel import Kernel, KernelFault
from services.routing.learnt import LearntRoutes, Pass
from services.routing.mirror import Mirror
from services.routing.object_faults import ObjectFaults
from services.routing.prober import Prober
from services.routing.rtnetlink import Concern
from services.routing.settings import Settings
from services.routing.wireguard import Wireguard
from services.routing.wireguard_device import Devices as WireguardDevices
from services.routing.wireguard_keys import KeyFile

PERIOD = 4.0
"""Seconds between full passes: drift that the kernel did not tell of is mended within five."""
CALM = 0.25
"""Seconds between two passes for changes of the kernel: a pod's route is one, and pods come in crowds."""
CALM_LEARNT = 1.0
"""The same for learnt routes that somebody took away: a pass compares all of them, half a second for 100,000."""


async def build(
    runtime: Runtime[Settings],
    namespace: Path | None = None,
    *,
    served: Mapping[str, Model] = SERVED,
    programs: bool | None = None,
    speaks: bool = bgp.SERVED,
) -> None:
    """Everything that one copy of the service is. ``namespace`` is a network namespace other than the process' own;
    ``served``: the models that there are; ``programs``: whether tunnel devices take packets only with the datapath's
    programs, as they do on every node (not in a gateway); ``speaks``: BGP is served.
    """
    settings, bus = runtime.settings, runtime.bus
    if not settings.node and not settings.gateway:
        raise SettingsFault("AIRMESH_NODE", settings.node, "name this Node, or set AIRMESH_GATEWAY=true")
    node = "" if settings.gateway else settings.node
    kernel = _kernel(settings, namespace, not settings.gateway if programs is None else programs)
    runtime.on_stop(kernel.close)
    mirror = Mirror(bus, node, served)
    measured = asyncio.Event()
    prober = Prober(kernel, settings.probe_port, measured.set, runtime.log)
    runtime.on_stop(prober.close)
    installer = Installer(
        node,
        kernel,
        mirror.look,
        runtime.log,
        _reports(runtime, node),
        measures=prober,
        telemetry=runtime.telemetry,
        causes=Causes(mirror.claims, mirror.blocks, mirror.routes),
    )
    subject = object_fault_subject("routing", encode_segment(settings.node)) if settings.node else ""
    objects = ObjectFaults(settings.node, lambda fault: bus.publish(subject, fault))
    ready = runtime.health.require("routes")
    announce: Loop | None = None
    speaker: Bgp | None = None

    async def install(dirty: Dirty) -> Done | Again:
        before = _offered(installer)
        outcome = await installer.apply(dirty)
        if speaker is not None:
            speaker.poke()
        objects.report((*installer.faults, *(speaker.faults if speaker is not None else ())), time.monotonic())
        why = mirror.not_synced() or "; ".join(fault.fault for fault in installer.faults if not fault.of_others)
        ready.set(not why, why)
        if announce is not None and _offered(installer) != before:
            announce.poke()
        return outcome

    cursors = [view.cursor() for view in mirror.views]
    loop = Loop(runtime, "routes", cursors=cursors, apply=install, period=PERIOD, debounce=0.01)
    runtime.spawn("measure", prober.run())
    runtime.spawn("measured", _wake(measured, loop.poke))
    if settings.node:
        announce = _announce(runtime, mirror, installer)
    speaker = _speak(runtime, mirror, kernel, installer, loop, namespace) if speaks else None
    _watch(runtime, kernel, loop, speaker)
    doctor.start(runtime, installer, prober, mirror.look, namespace)
    await _serve(runtime, installer, speaker)


def _watch(runtime: Runtime[Settings], kernel: Kernel, loop: Loop, speaker: Bgp | None) -> None:
    """Passes for what the kernel says."""
    changed, taken = asyncio.Event(), asyncio.Event()

    def heard(concern: Concern) -> None:
        for event, of in ((changed, Concern.PLAN), (taken, Concern.LEARNT)):
            if of in concern:
                event.set()

    runtime.spawn("kernel-watch", _watch_kernel(runtime, kernel, heard, changed, loop))
    if speaker is not None:
        runtime.spawn("learnt-watch", _wake(taken, partial(speaker.poke, full=True), CALM_LEARNT))


def _speak(
    runtime: Runtime[Settings],
    mirror: Mirror,
    kernel: Kernel,
    installer: Installer,
    loop: Loop,
    namespace: Path | None,
) -> Bgp | None:
    """Speak BGP when somebody asks for it; a gateway leaves that to the nodes."""
    if runtime.settings.gateway:
        installer.learnt = Asked(runtime.bus).leads_to
        return None
    speaker = Bgp(
        runtime,
        mirror,
        LearntRoutes(kernel),
        lambda: installer.snapshot,
        lambda: installer.encrypted,
        loop.poke,
        namespace=namespace,
    )
    installer.learnt = speaker.leads_to
    return speaker


async def _serve(runtime: Runtime[Settings], installer: Installer, speaker: Bgp | None) -> None:
    """Answer for the pairs and the speaker, and show what it measures; where there is none, say so."""
    node, bus = runtime.settings.node, runtime.bus
    await bus.serve_everyone(PAIRS, PairsRequest, lambda asked: chosen(asked, node, installer.states()))

    def router() -> Router | None:
        return speaker.router if speaker is not None else None

    def sessions(asked: BgpSessionsRequest) -> BgpSessions | None:
        return answers.sessions(asked, node, router(), speaker.faults if speaker is not None else ())

    await bus.serve_everyone(BGP, BgpSessionsRequest, sessions)
    await bus.serve_everyone(BGP_ROUTES, BgpRoutesRequest, lambda asked: answers.routes(asked, node, router()))
    await bus.serve_everyone(BGP_CAPTURE, BgpCaptureRequest, lambda asked: answers.capture(asked, node, router()))
    runtime.on_stop(metrics.register(router, lambda: speaker.passed if speaker is not None else Pass()))


def _kernel(settings: Settings, namespace: Path | None, programs: bool) -> Kernel:
    return Kernel(
        settings.uplinks,
        namespace,
        settings.sysctl_root,
        loopback=settings.loopback,
        programs=programs,
        wireguard=partial(_wireguard, settings),
    )


def _wireguard(settings: Settings, netlink: Netlink, tunnels: Devices) -> Wireguard:
    devices = WireguardDevices(netlink, tunnels, settings.wireguard_sockets)
    keys = KeyFile(settings.state_dir)
    return Wireguard(keys, devices, name=settings.node, key_days=settings.wireguard_key_days)


def _offered(installer: Installer) -> object:
    """What the other nodes learn of this one's kernel."""
    seen = installer.snapshot
    return seen.uplinks, seen.loopback, installer.received, seen.wireguard.mine


def _announce(runtime: Runtime[Settings], mirror: Mirror, installer: Installer) -> Loop:
    node = runtime.settings.node
    announcer = Announcer(
        node,
        runtime.bus.bucket(ROUTES),
        mirror.routes,
        mirror.look,
        lambda: (installer.snapshot, installer.received),
        runtime.log,
        telemetry=runtime.telemetry,
        causes=Causes(mirror.blocks, concerns=lambda _, entry: entry is not None and entry.value.node == node),
    )
    reported = [mirror.routes.cursor(), mirror.blocks.cursor()]
    return Loop(runtime, "announce", cursors=reported, apply=announcer.apply, period=PERIOD)


def _reports(runtime: Runtime[Settings], node: str) -> Reports:
    bus = runtime.bus
    return Reports(
        changed=lambda event: bus.publish(event_subject("routing", "changed"), event),
        faulty=lambda fault: bus.report_fault(fault.fault, fault.remedy, node),
        stepped=lambda event: bus.publish(event_subject("routing", "model"), event),
    )


async def _wake(event: asyncio.Event, poke: Callable[[], None], calm: float = 0.0) -> None:
    """A pass when something has happened that may change it; then none for that for so many seconds."""
    while True:
        await event.wait()
        event.clear()
        poke()
        await asyncio.sleep(calm)


async def _watch_kernel(
    runtime: Runtime[Settings], kernel: Kernel, heard: Callable[[Concern], None], changed: asyncio.Event, loop: Loop
) -> None:
    """Forwarding on, kept on; a pass soon after the kernel says that something changed. One that answers too late is
    asked again.
    """
    watched = False
    condition = runtime.health.require("forwarding")
    while True:
        try:
            if not watched:
                await kernel.watch(heard)
                watched = True
            failed = await kernel.forward()
            why = f"cannot switch on {', '.join(failed)}: run with CAP_NET_ADMIN (pid {os.getpid()})" if failed else ""
        except KernelFault as fault:
            why = str(fault)
            runtime.log.warning("kernel-watch", error=fault)
        condition.set(not why, why)
        try:
            async with asyncio.timeout(PERIOD):
                await changed.wait()
        except TimeoutError:
            continue
        changed.clear()
        loop.poke()
        await asyncio.sleep(CALM)
