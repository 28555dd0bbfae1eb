"""Copies of ipam on a real server, and the few objects of a cluster they look at."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio

from chassis.bus.client import Bus
from chassis.runtime.service import Runtime
from proto import codec
from proto.objects import IPPool, KubernetesObject, Node, Owner, Pod
from proto.subjects import OBJECTS
from proto.sync import Complete, complete_key
from services.ipam.app import build
from services.ipam.settings import Settings
from services.ipam.world import NODES, PODS, POOLS
from tests.conftest import BusFor
from tests.natsd import NatsServer, runtime_of

StartIpam = Callable[..., Awaitable[Runtime[Any]]]
"""Keywords are settings."""


class Cluster:
    """Writes objects as the ``cluster`` service would."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.objects = bus.bucket(OBJECTS)

    async def add(self, *values: KubernetesObject) -> None:
        for value in values:
            await self.objects.put(codec.object_key(value), value)

    async def remove(self, value: KubernetesObject) -> None:
        await self.objects.delete(codec.object_key(value))

    async def complete(self, epoch: str) -> None:
        for scope in (NODES, PODS, POOLS):
            await self.objects.put(complete_key(scope), Complete(epoch))


def node(name: str, *, ready: bool = True, blocks: tuple[str, ...] = ()) -> Node:
    return Node(name=name, uid=f"uid-{name}", ready=ready, blocks=tuple(ip_network(block) for block in blocks))


def stateful(name: str, on: str, uid: str) -> Pod:
    ordinal = int(name.rpartition("-")[2])
    return Pod(
        namespace="shop",
        name=name,
        uid=uid,
        node=on,
        owner=Owner("shop", "StatefulSet", name.rpartition("-")[0], ordinal),
    )


V4 = IPPool(name="default-v4", cidr=ip_network("10.244.0.0/16"), block_size=26)
V6 = IPPool(name="default-v6", cidr=ip_network("fd00:10:244::/56"), block_size=122)


@pytest_asyncio.fixture
async def cluster(bus_for: BusFor, buckets: dict[str, str]) -> Cluster:
    """Two nodes and a dual-stack pool."""
    cluster = Cluster(await bus_for("cluster"))
    await cluster.add(V4, V6, node("n1"), node("n2"))
    await cluster.complete(buckets["objects"])
    return cluster


def ipam_settings(server: NatsServer, **more: Any) -> Settings:
    return Settings(
        nats_url=server.url,
        nats_seed_file=server.seeds / "ipam.seed",
        nats_user="ipam",
        instance=f"ipam-{uuid.uuid4().hex[:8]}",
        **more,
    )


@pytest_asyncio.fixture
async def start_ipam(nats_server: NatsServer) -> AsyncIterator[StartIpam]:
    """Start one more copy; all are stopped at the end."""
    async with AsyncExitStack() as stack:

        async def start(**more: Any) -> Runtime[Any]:
            settings = ipam_settings(nats_server, **more)
            runtime = await stack.enter_async_context(runtime_of(nats_server, "ipam", settings=settings))
            await build(runtime)
            return runtime

        yield start


@pytest.fixture
def nonce() -> Callable[[], str]:
    return lambda: uuid.uuid4().hex
