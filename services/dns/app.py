"""Wires ``dns``: views of nodes, CoreDNS' ConfigMap and endpoints, the lease, one loop to decide, one to report."""

from __future__ import annotations

import asyncio

from chassis.bus.causes import Causes
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Loop
from chassis.runtime.service import Runtime
from proto.codec import join, kind_prefix
from proto.dns import CoreDNSDecision, DnsChangeRequest, DnsReport, DnsTuning, DnsWish
from proto.objects import KIND_OF, ConfigMap, Deployment, EndpointSlice, Node
from proto.subjects import DNS, DNS_CHANGE, OBJECTS
from services.dns.asker import Asker
from services.dns.changes import TUNING_KEY, WISH_KEY, Changes, Wishes
from services.dns.controller import DECISION_KEY, NAMESPACE, REPORT_KEY, Controller, Intent
from services.dns.doctor import start as start_doctor
from services.dns.scrape import Scraper
from services.dns.settings import Settings


async def build(runtime: Runtime[Settings]) -> None:
    """Wire everything; returns at once."""
    settings, bus, log = runtime.settings, runtime.bus, runtime.log
    intent = Intent(recipe=settings.recipe(), rule=settings.rule(), service=settings.dns_service)
    kinds = (EndpointSlice, Node, ConfigMap, Deployment)
    slices, nodes, configs, deployments = (kind_prefix(KIND_OF[kind]) for kind in kinds)
    objects = bus.bucket(OBJECTS).watch(
        {slices: EndpointSlice, nodes: Node, configs: ConfigMap, deployments: Deployment},
        prefixes=(nodes, configs, deployments, f"{slices}.{join(NAMESPACE)}"),
        markers=(slices, nodes, configs),
        name="objects",
    )
    decisions = bus.bucket(DNS).watch(
        {DECISION_KEY: CoreDNSDecision, REPORT_KEY: DnsReport, TUNING_KEY: DnsTuning, WISH_KEY: DnsWish},
        markers=(),
        name="dns",
    )
    changes = Changes(settings.dns_mode, intent.recipe, kv=bus.bucket(DNS), decisions=decisions, log=log)
    await bus.serve(DNS_CHANGE, DnsChangeRequest, Wishes(bus.bucket(DNS), decisions).take)
    start_doctor(runtime, decisions)
    scraper = Scraper(settings.dns_metrics_port, log)
    runtime.on_stop(scraper.close)
    lease = Election(runtime, "dns", settings.lease_seconds)
    controller = Controller(
        intent,
        bus=bus,
        objects=objects,
        decisions=decisions,
        lease=lease,
        scraper=scraper,
        asker=Asker(settings.dns_port),
        changes=changes,
        log=log,
        telemetry=runtime.telemetry,
        causes=Causes(objects, concerns=lambda key, _: not key.startswith(f"{slices}.")),
    )
    decide = Loop(
        runtime, "decide", cursors=[objects.cursor(), decisions.cursor()], apply=controller.decide, debounce=0.05
    )
    observe = Loop(runtime, "observe", cursors=[], apply=controller.observe, period=settings.dns_report_seconds)

    async def poke_on_lease() -> None:
        while True:
            await lease.changed()
            decide.poke()
            observe.poke()

    async def report_conditions() -> None:
        known, decided = runtime.health.require("objects"), runtime.health.require("dns")
        while True:
            known.set(objects.synced, objects.why())
            decided.set(decisions.synced, decisions.why())
            await asyncio.sleep(0.5)

    runtime.spawn("lease-changes", poke_on_lease())
    runtime.spawn("conditions", report_conditions())
