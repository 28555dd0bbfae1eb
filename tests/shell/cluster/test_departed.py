"""Keys of nodes that are gone, on a real server: deleted when they may be, and a living node's never touched."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from chassis.bus.client import Bus
from proto.addresses import Block, Endpoint
from proto.codec import block_key, encode_segment, seal
from proto.events import ServiceFault
from proto.leases import Lease
from proto.policy import Ack, Revision
from proto.routes import NodeRoutes
from proto.subjects import ACKS, BLOCKS, ENDPOINTS, LEASES, ROUTES, event_subject
from proto.sync import Complete, Epoch, complete_key
from services.cluster import app
from services.cluster.core import writers as core
from tests.conftest import BusFor
from tests.natsd import NatsServer, endpoint_at
from tests.shell.cluster.apiserver import ApiServer
from tests.shell.cluster.test_mirror import cluster, until

GRACE = 1.0
BUCKETS = (ENDPOINTS, ACKS, ROUTES, LEASES)


async def speak(bus: Bus, node: str, number: int = 0, pods: int = 3) -> None:
    """All that a node's agents write under its name; by whoever may write any node's keys here."""
    segment, epoch = encode_segment(node), Complete("e")
    for pod in range(pods):
        address = ip_address("10.0.0.0") + 256 * number + pod
        value = Endpoint(node, address, "shop", f"p{pod}", f"u{pod}", 1001, b"123456", 5, 1)
        await bus.bucket(ENDPOINTS).put(endpoint_at(node, address), value)
    await bus.bucket(ACKS).put(segment, Ack(node=node, rules=Revision(epoch="e", sequence=1), endpoints=1))
    await bus.bucket(ROUTES).put(segment, NodeRoutes(node, ()))
    await bus.bucket(LEASES).put(f"node.{segment}", Lease(holder="x", epoch=1, renewals=0, seconds=6.0))
    for bucket in (ENDPOINTS, ACKS, ROUTES):
        await bus.bucket(bucket).put(complete_key(segment), epoch)


class Keys:
    """What stands in the buckets, seen by ``cluster``'s own rights."""

    def __init__(self, bus: Bus) -> None:
        self.views = [
            bus.bucket(bucket).watch(lambda _: dict, markers=(), name=f"test-{bucket.name}") for bucket in BUCKETS
        ]

    def of(self, node: str) -> int:
        segment = encode_segment(node)
        return sum(segment in key.split(".") for view in self.views for key in (*view.entries, *view.marks))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "DEPARTED_EVERY", 0.1)


async def whole(ipam: Bus, *blocks: Block) -> None:
    bucket = ipam.bucket(BLOCKS)
    for one in blocks:
        await bucket.put(block_key(one.cidr), one)
    epoch = await bucket.get("_epoch", Epoch)
    assert epoch is not None
    await bucket.put("_complete", Complete(epoch.value.epoch))


async def test_two_hundred_nodes_come_and_go(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("Node", {}, name="lives")
    ipam = await bus_for("ipam")
    async with cluster(nats_server, api, tmp_path, departed_grace=GRACE) as runtime:
        await until(lambda: runtime.health.ready)
        keys = Keys(runtime.bus)
        await whole(ipam)
        names = [f"gone-{number}.example" for number in range(200)]
        await speak(runtime.bus, "lives", 250)
        await asyncio.gather(*(speak(runtime.bus, name, number) for number, name in enumerate(names)))
        await until(lambda: all(keys.of(name) == 9 for name in names))
        await until(lambda: not any(keys.of(name) for name in names), 30)
        assert keys.of("lives") == 9


async def test_who_holds_a_block_or_speaks_or_is_back_is_not_touched(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    ipam = await bus_for("ipam")
    held = Block(ip_network("10.0.0.0/26"), "p", "holds", "u", 5, "x")
    async with cluster(nats_server, api, tmp_path, departed_grace=GRACE) as runtime:
        await until(lambda: runtime.health.ready)
        keys = Keys(runtime.bus)
        await whole(ipam, held)
        for number, name in enumerate(("holds", "speaks", "back", "gone")):
            await speak(runtime.bus, name, number)
        await runtime.bus.bucket(ROUTES).put("cp", NodeRoutes("cp", (), gateway=True))
        await api.put("Node", {}, name="back")
        for _ in range(12):
            await speak(runtime.bus, "speaks", 1)
            await asyncio.sleep(GRACE / 4)
        await until(lambda: not keys.of("gone"))
        assert [keys.of(name) for name in ("holds", "speaks", "back")] == [9, 9, 9]
        await ipam.bucket(BLOCKS).put(block_key(held.cidr), Block(held.cidr, "p", "", "", 6, "x"))
        await until(lambda: not keys.of("holds") and not keys.of("speaks"))
        assert keys.of("back") == 9
        assert keys.of("cp") == 1, "a gateway never was a node"


async def test_nothing_is_deleted_while_blocks_is_not_whole(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    ipam = await bus_for("ipam")
    async with cluster(nats_server, api, tmp_path, departed_grace=0.3) as runtime:
        await until(lambda: runtime.health.ready)
        keys = Keys(runtime.bus)
        await speak(runtime.bus, "gone")
        await until(lambda: keys.of("gone") == 9)
        await asyncio.sleep(1.0)
        assert keys.of("gone") == 9
        await whole(ipam)
        await until(lambda: not keys.of("gone"))


async def test_who_writes_what_no_agent_does_is_reported(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "WRITERS_EVERY", 0.2)
    monkeypatch.setattr(core, "MOST", 500)
    monkeypatch.setattr(core, "PER_SECOND", 1.0)  # a busy disk takes fewer than a hundred a second
    for name in ("n1", "n2", "n3"):
        await api.put("Node", {}, name=name)
    thief, honest, garbles = [await bus_for("dataplane", name) for name in ("n1", "n2", "n3")]
    cli = await bus_for("cli")
    heard: list[ServiceFault] = []
    await cli.subscribe(event_subject("cluster", "fault"), ServiceFault, lambda _, fault: heard.append(fault))
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        await asyncio.sleep(1.0)
        where = f"$KV.{ACKS.on_server}"
        headers = {"Nats-Expected-Stream": f"KV_{ACKS.on_server}"}
        good = seal(Ack(node="n1", rules=Revision(epoch="e", sequence=1), endpoints=1))
        await garbles.connection.call(f"{where}.n3", b"\xc1", timeout=2, headers=headers)
        await honest.bucket(ACKS).put("n2", Ack(node="n2", rules=Revision(epoch="e", sequence=1), endpoints=1))

        client = thief.connection.client()
        for _ in range(20):
            for _ in range(200):
                await client.publish(f"{where}.n1", good, headers=headers)
            await client.flush()
            await asyncio.sleep(0.02)  # cluster lives on the same loop
        await until(lambda: {fault.node for fault in heard} == {"n1", "n3"}, 40)
        assert len(heard) == 2, "once for each"


async def test_what_cannot_be_read_goes_too(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    ipam, node = await bus_for("ipam"), await bus_for("dataplane", "n1")
    async with cluster(nats_server, api, tmp_path, departed_grace=GRACE) as runtime:
        await until(lambda: runtime.health.ready)
        await whole(ipam)
        bucket = node.bucket(ENDPOINTS)
        headers: dict[str, Any] = {"Nats-Expected-Stream": f"KV_{ENDPOINTS.on_server}"}
        await node.connection.call(f"$KV.{ENDPOINTS.on_server}.n1.slot.1601", b"\xc1", timeout=2, headers=headers)
        assert await bucket.look("n1.slot.1601", Endpoint) is not None
        for _ in range(200):
            if await bucket.look("n1.slot.1601", Endpoint) is None:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it stays for ever")
