"""Endpoints that are published and withdrawn on a real server, and when a freed address counts as left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address

import msgspec
import pytest

from chassis.bus.tail import Change
from chassis.bus.view import View
from chassis.runtime.reconcile import Dirty, Done
from chassis.telemetry.log import Log
from proto.addresses import AcknowledgedEndpoints, Endpoint
from proto.net import Address
from proto.subjects import ENDPOINTS
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.ipam.departures import Departures
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.endpoint.publish import EndpointsOut
from services.dataplane.endpoint.registry import Registry
from services.dataplane.feed import Feed
from tests.conftest import BusFor

ADDRESS = ip_address("10.244.0.1")
LEASE = Lease(
    address=ADDRESS,
    container="c1",
    interface="eth0",
    namespace="shop",
    pod="web",
    pod_uid="u1",
    identity=300,
    mac=b"123456",
    nonce="n",
    epoch=5,
    sequence=1,
    boot="b",
    at=1.0,
)


async def test_a_freed_address_has_left_when_its_endpoint_is_off_the_bus_and_all_know(
    bus_for: BusFor, buckets: dict[str, str]
) -> None:
    bus = await bus_for("dataplane", "n1")
    feed, registry, departures, freed = Feed(bus, "n1"), Registry(), Departures(), dict[Address, float]()
    epoch = buckets["endpoints"]

    out = EndpointsOut(bus, feed, registry, Log("test"), lambda *seen: departures.observe(freed, *seen))

    async def passes(shown: int) -> None:
        """Until the view has so many endpoints of this node, and one pass after it."""
        async with asyncio.timeout(20):
            await feed.endpoints.wait_synced()
            while len(feed.published_endpoints()) != shown or not feed.endpoints.scope_complete("n1"):
                assert await out.apply(Dirty(full=True, by_cursor=(frozenset(), frozenset()))) == Done()
                await asyncio.sleep(0.02)
            await out.apply(Dirty(full=True, by_cursor=(frozenset(), frozenset())))

    def is_known(sequence: int, of: str = epoch) -> bool:
        departures.acknowledged = AcknowledgedEndpoints(of, sequence)
        return departures.is_known_to_all(ADDRESS, 9.0)

    endpoint = LocalEndpoint(attachment=Attachment("c1", "eth0"), leases=(LEASE,), index=3, cookie=4)
    registry.put(endpoint)
    await passes(1)
    registry.remove(endpoint.attachment)
    freed[ADDRESS] = 9.0
    there = feed.endpoints.sequence
    await passes(0)
    assert await bus.bucket(ENDPOINTS).list(Endpoint) == {}
    assert not is_known(there), "others may still have it"
    assert is_known(feed.endpoints.sequence)
    assert not is_known(feed.endpoints.sequence, "another")


async def test_what_the_view_has_not_heard_is_not_put_again(
    bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pods that start one right after the other each is put once, however late the view is."""
    late, held, hear = False, list[tuple[View, Change]](), View._on_change

    def on_change(view: View, change: Change) -> None:
        if late:
            held.append((view, change))
        else:
            hear(view, change)

    monkeypatch.setattr(View, "_on_change", on_change)
    bus = await bus_for("dataplane", "n1")
    feed, registry = Feed(bus, "n1"), Registry()
    out = EndpointsOut(bus, feed, registry, Log("test"), lambda *_: None)
    every = Dirty(full=True, by_cursor=(frozenset(), frozenset()))
    endpoint = LocalEndpoint(attachment=Attachment("c1", "eth0"), leases=(LEASE,), index=3, cookie=4)

    async def until_heard() -> None:
        """Until the view has the endpoint as it is, and the marker."""
        async with asyncio.timeout(20):
            await feed.endpoints.wait_synced()
            while [*feed.published_endpoints().values()] != [
                one for up in registry.up.values() for one in up.published("n1")
            ]:
                await asyncio.sleep(0.02)

    async with asyncio.timeout(20):
        await feed.endpoints.wait_synced()
        while not feed.endpoints.scope_complete("n1"):
            await out.apply(every)
            await asyncio.sleep(0.02)
    before, late = feed.endpoints.sequence, True
    registry.put(endpoint)
    for _ in range(3):
        assert await out.apply(every) == Done()
    late = False
    for view, change in held:
        hear(view, change)
    await until_heard()
    assert feed.endpoints.sequence - before == 1
    registry.put(replace(endpoint, leases=(msgspec.structs.replace(LEASE, identity=301, sequence=2),)))
    await out.apply(every)
    await until_heard()
    assert feed.endpoints.sequence - before == 2, "what changes is put again"
