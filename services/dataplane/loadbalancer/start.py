"""The loops of Services: their tables, health checks for load balancers, sockets whose backend left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from chassis.runtime.reconcile import Dirty, Done, Loop
from chassis.runtime.service import Runtime
from chassis.telemetry.health import Condition
from proto.net import Address
from proto.objects import EndpointSlice, IPPool, Namespace, Node, Pod, Service
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.datapath.growth import Growth
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import GATHER, Feed
from services.dataplane.loadbalancer.balance import Balancer
from services.dataplane.loadbalancer.health_check import HealthChecks, HealthCheckServer
from services.dataplane.loadbalancer.stale_sockets import DEBOUNCE, PERIOD, StaleSockets
from services.dataplane.monitor.object_faults import ObjectFaults
from services.dataplane.one_thread import OneThread
from services.dataplane.settings import Settings
from services.dataplane.signals import Signal

FULL_SERVICES = 15.0


def start(
    runtime: Runtime[Settings],
    tables: Tables,
    growth: Growth,
    *,
    feed: Feed,
    endpoints: LocalEndpoints,
    signal: Signal,
    own_addresses: Callable[[], Awaitable[frozenset[Address]]],
    datapath: Condition,
) -> Balancer:
    """Serves Services from now on. ``signal`` tells when ``endpoints`` change; ``datapath``: programs hang."""
    settings, log = runtime.settings, runtime.log
    thread = OneThread("services")

    async def end_thread() -> None:
        thread.close()

    runtime.on_stop(end_thread)  # after the loop that gives it work, before the maps are let go of
    balancer = Balancer(
        tables,
        feed,
        endpoints,
        log,
        settings.external_ips,
        thread=thread,
        make_room=growth.make_room,
        report=ObjectFaults(runtime.bus, settings.node, log).report,
        note=runtime.health.note,
        telemetry=runtime.telemetry,
    )

    async def balance(dirty: Dirty) -> Done:
        if dirty.full:
            balancer.own_addresses = await own_addresses()
        wait = await balancer.apply(full=dirty.full)
        if wait:
            asyncio.get_running_loop().call_later(wait, loop.poke, False)
        return Done()

    cursors = [signal.cursor(), feed.changes(Service, EndpointSlice, Pod, Node, IPPool, Namespace)]
    loop = Loop(runtime, "services", cursors=cursors, apply=balance, period=FULL_SERVICES, debounce=GATHER)
    server = HealthCheckServer(log)
    checks = HealthChecks(
        server,
        feed,
        lambda: datapath.ok and balancer.applied,
        lambda namespace, name: balancer.is_served(("service", namespace, name)),
        settings.proxy_health_port,
    )
    asked = [feed.changes(Service, EndpointSlice)]
    Loop(runtime, "health checks", cursors=asked, apply=checks.apply, debounce=GATHER)
    runtime.on_stop(server.close)
    return balancer


def start_stale_sockets(
    runtime: Runtime[Settings],
    tables: Tables,
    balancer: Balancer,
    *,
    feed: Feed,
    endpoints: LocalEndpoints,
    node_cookie: int,
) -> None:
    """Ends sockets whose backend left from now on. ``node_cookie`` is that of the node's own network namespace."""
    them = StaleSockets(feed, tables, endpoints, runtime.log, node_cookie=node_cookie, written=lambda: balancer.seen)
    cursors = [feed.changes(EndpointSlice), balancer.udp_left.cursor()]
    loop = Loop(runtime, "stale-sockets", cursors=cursors, apply=them.apply, period=PERIOD, debounce=DEBOUNCE)
    them.again = lambda seconds: asyncio.get_running_loop().call_later(seconds, loop.poke, False)
    runtime.on_stop(them.close)
