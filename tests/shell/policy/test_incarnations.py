"""What an earlier life of ``objects`` held never counts in the present one, neither at ``policy`` nor on a node."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from chassis.bus.client import Bus, View
from proto.codec import kind_prefix, object_key
from proto.objects import KIND_OF, KINDS, Kind, Namespace
from proto.subjects import OBJECTS
from proto.sync import EPOCH_KEY, Complete, Epoch, complete_key
from services.dataplane.feed import Feed as NodeFeed
from services.policy.feed import Feed
from tests.core.policy.notation import namespace
from tests.natsd import NatsServer, bus_of


async def until(what: str, check: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def complete(bus: Bus, *kinds: Kind) -> None:
    epoch = await bus.bucket(OBJECTS).get(EPOCH_KEY, Epoch)
    assert epoch is not None
    for kind in kinds:
        await bus.bucket(OBJECTS).put(complete_key(kind_prefix(kind)), Complete(epoch=epoch.value.epoch))


async def put(bus: Bus, *some: Namespace) -> int:
    return [await bus.bucket(OBJECTS).put(object_key(one), one) for one in some][-1]


@asynccontextmanager
async def second_incarnation(server: NatsServer, first: View) -> AsyncIterator[Bus]:
    """Namespaces late in the first life, then a bus without anything, seen by the mirror while it is being filled."""
    async with bus_of(server, "cluster") as cluster:
        await cluster.make_buckets()
        for attempt in range(20):
            last = await put(cluster, namespace("shop", attempt=str(attempt)), namespace("gone", attempt=str(attempt)))
        await complete(cluster, *KINDS)
    await until("the first life", lambda: first.synced and first.sequence >= last)
    old = first.epoch
    server.kill()
    shutil.rmtree(server.folder / "store")
    server.start()
    async with bus_of(server, "cluster") as cluster:
        await cluster.make_buckets()
        await until("the second life", lambda: first.epoch not in ("", old))
        assert not first.synced
        yield cluster


@pytest.mark.parametrize("early", [True, False], ids=["while-it-is-listed", "when-it-is-listed"])
async def test_a_frontier_names_no_namespace_of_an_earlier_incarnation(nats_server: NatsServer, early: bool) -> None:
    async with bus_of(nats_server, "policy") as bus:
        feed = Feed(bus)
        async with second_incarnation(nats_server, feed.objects) as cluster:
            if early:
                feed.collect(feed.objects.entries, full=True)
            await complete(cluster, *KINDS)
            last = await put(cluster, namespace("kube-system"), namespace("shop"))
            await until("in sync", lambda: feed.objects.synced and feed.objects.sequence >= last)
            assert feed.collect((), full=True).namespaces == last


async def test_a_node_counts_no_namespace_of_an_earlier_incarnation(nats_server: NatsServer) -> None:
    async with bus_of(nats_server, "dataplane", "n1") as bus:
        feed = NodeFeed(bus, "n1")
        async with second_incarnation(nats_server, feed.objects) as cluster:
            last = await put(cluster, namespace("kube-system"), namespace("shop"))
            await complete(cluster, KIND_OF[Namespace])
            await until("all namespaces", lambda: feed.complete(Namespace))
            assert not feed.objects.synced, "what was before is not swept yet"
            assert feed.knowledge().namespaces_at == last
            await complete(cluster, *KINDS)
            await until("in sync", lambda: feed.objects.synced)
            assert feed.knowledge().namespaces_at == last
