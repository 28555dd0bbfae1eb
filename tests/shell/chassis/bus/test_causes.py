"""Which traces a piece of work is part of: those of what changed since it was done last, and no others."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from chassis.bus.causes import Causes
from chassis.bus.client import Bus, View
from chassis.telemetry.spans import Span, entered
from chassis.telemetry.traces import TOGETHER
from proto import subjects
from proto.addresses import Block
from tests.conftest import BusFor

BUCKET = subjects.BLOCKS


def block(node: str) -> Block:
    return Block(cidr=ip_network("10.244.0.0/26"), pool="p", node=node, node_uid="u", epoch=1, nonce="n")


async def changed(bus: Bus, key: str, node: str, *, trace: str = "", gone: bool = False) -> str:
    """The traceparent that the key was written (or deleted) in."""
    span = Span(trace or secrets.token_hex(16), secrets.token_hex(8))
    with entered(span):
        if gone:
            await bus.bucket(BUCKET).delete(key)
        else:
            await bus.bucket(BUCKET).put(key, block(node))
    return span.traceparent


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


async def has(causes: Causes, *traces: str) -> None:
    """They are gathered, in this order."""

    def gathered() -> bool:
        causes.gather()
        return causes.traces == traces

    await until(gathered)


@pytest.mark.usefixtures("buckets")
async def test_what_changed_is_a_cause_until_the_work_is_done(bus_for: BusFor) -> None:
    ipam = await bus_for("ipam")
    await changed(ipam, "a", "n1")
    view: View = (await bus_for("routing", "n1")).bucket(BUCKET).watch({"": Block}, markers=(), name="test")
    causes = Causes(view)
    mine = Causes(view, concerns=lambda _, entry: entry is not None and entry.value.node == "n1")
    await view.wait_synced(20)
    for one in (causes, mine):
        one.gather()
        assert one.traces == (), "what was there before is no change of now"
    first, second = await changed(ipam, "a", "n2"), await changed(ipam, "b", "n1")
    await has(causes, first, second)
    await has(mine, second)
    causes.done()
    removed = await changed(ipam, "a", "", gone=True)
    await has(causes, removed)
    again = await changed(ipam, "c", "n3", trace=removed[3:35])
    await has(causes, again)
    causes.done()
    lists = view.resyncs
    view._relist = "for the test"
    view._wake.set()
    await until(lambda: view.resyncs > lists and view.synced)
    latest = await changed(ipam, "d", "n1")
    await has(causes, latest)
    await has(mine, second, latest)


@pytest.mark.usefixtures("buckets")
async def test_of_a_great_many_the_latest_stay(bus_for: BusFor) -> None:
    ipam = await bus_for("ipam")
    view: View = (await bus_for("routing", "n1")).bucket(BUCKET).watch({"": Block}, markers=(), name="test")
    causes = Causes(view)
    await view.wait_synced(20)
    causes.gather()
    written = [await changed(ipam, f"k{number}", "n1") for number in range(TOGETHER + 9)]
    await until(lambda: f"k{TOGETHER + 8}" in view.entries)
    causes.gather()
    assert list(causes.traces) == written[-TOGETHER:]
