"""Buckets, compare-and-set, views, requests and events on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import nats
import pytest

from chassis.bus import jetstream
from chassis.bus.client import Bus, Conflict
from chassis.faults import Refused, Unavailable
from proto import codec, subjects, sync
from proto.addresses import Block, Endpoint
from proto.events import ServiceFault
from proto.objects import Node
from proto.requests import BlockGrant, BlockRequest, IpamShow, IpamState, Reply
from proto.slots import numbered
from tests.conftest import BusFor
from tests.natsd import NatsServer, runtime_of

ASK = subjects.of_node(subjects.IPAM_BLOCK, "n1")


def block(node: str, nonce: str = "a") -> Block:
    return Block(cidr=ip_network("10.244.0.0/26"), pool="p", node=node, node_uid="u", epoch=1, nonce=nonce)


async def test_buckets_are_made_once_and_keep_their_epoch(bus_for: BusFor, buckets: dict[str, str]) -> None:
    cluster = await bus_for("cluster")
    assert await cluster.make_buckets() == buckets
    assert len(set(buckets.values())) == len(subjects.BUCKETS)


async def test_compare_and_set(bus_for: BusFor, buckets: dict[str, str]) -> None:
    kv = (await bus_for("ipam")).bucket(subjects.BLOCKS)
    first = await kv.create("0af40000-26", block("n1"))
    assert isinstance(first, int)
    assert isinstance(await kv.create("0af40000-26", block("n2")), Conflict)
    second = await kv.update("0af40000-26", block("n2"), first)
    assert isinstance(second, int)
    assert second > first
    assert isinstance(await kv.update("0af40000-26", block("n3"), first), Conflict)
    entry = await kv.get("0af40000-26", Block)
    assert entry is not None
    assert (entry.value.node, entry.revision) == ("n2", second)
    assert isinstance(await kv.delete("0af40000-26", first), Conflict)
    assert await kv.delete("0af40000-26", second) is None
    assert await kv.get("0af40000-26", Block) is None
    again = await kv.create("0af40000-26", block("n3"))
    assert isinstance(again, int)


async def test_list_leaves_out_markers_and_tombstones(bus_for: BusFor, buckets: dict[str, str]) -> None:
    kv = (await bus_for("ipam")).bucket(subjects.BLOCKS)
    for key in ("0af40000-26", "0af40040-26", "0af40080-26"):
        await kv.put(key, block("n1"))
    await kv.delete("0af40040-26")
    assert list(await kv.list(Block)) == ["0af40000-26", "0af40080-26"]


async def test_view_waits_for_the_marker_then_follows(bus_for: BusFor, buckets: dict[str, str]) -> None:
    kv = (await bus_for("ipam")).bucket(subjects.BLOCKS)
    await kv.put("0af40000-26", block("n1"))
    view = (await bus_for("routing", "n1")).bucket(subjects.BLOCKS).watch({"": Block}, name="blocks")
    with pytest.raises(Unavailable, match="_complete"):
        await view.wait_synced(0.7)
    assert view.entries["0af40000-26"].value.node == "n1"
    await kv.put("_complete", sync.Complete(epoch=buckets["blocks"]))
    await view.wait_synced(20)
    assert view.epoch == buckets["blocks"]
    reader = view.cursor()
    assert reader.take() == {"0af40000-26", "_epoch", "_complete"}
    revision = await kv.put("0af40000-26", block("n2"))
    assert await reader.changed() == {"0af40000-26"}
    assert view.entries["0af40000-26"].value.node == "n2"
    assert view.sequence == revision
    await kv.delete("0af40000-26")
    assert await reader.changed() == {"0af40000-26"}
    assert not view.entries


@pytest.mark.parametrize("times", range(4))
async def test_view_ends_in_the_iteration_in_which_something_comes(
    bus_for: BusFor, buckets: dict[str, str], times: int
) -> None:
    kv = (await bus_for("routing", "n1")).bucket(subjects.BLOCKS)
    view = kv.watch({"": Block}, name="blocks", markers=())
    await view.wait_synced(20)
    (mirror,) = (task for task in asyncio.all_tasks() if task.get_name() == "view blocks")
    await asyncio.sleep(0.01)
    view._wake.set()
    for _ in range(times):
        await asyncio.sleep(0)
    mirror.cancel()
    ended, _ = await asyncio.wait({mirror}, timeout=20)
    assert ended


async def test_confined_view_sees_its_prefixes_and_markers(bus_for: BusFor, buckets: dict[str, str]) -> None:
    kv = (await bus_for("cluster")).bucket(subjects.OBJECTS)
    await kv.put("core.node._.n1", Node(name="n1", uid="u"))
    await kv.put("_complete.core.node", sync.Complete(epoch=buckets["objects"]))
    bus = await bus_for("routing", "n1")
    view = bus.bucket(subjects.OBJECTS).watch(
        {"core.node": Node}, prefixes=("core.node",), markers=("core.node",), name="objects"
    )
    await view.wait_synced(20)
    assert set(view.entries) == {"core.node._.n1"}
    await kv.put("core.node._.n2", Node(name="n2", uid="u"))
    reader = view.cursor()
    while "core.node._.n2" not in view.entries:
        await asyncio.wait_for(reader.changed(), 20)
    entry = await bus.bucket(subjects.OBJECTS).get("core.node._.n1", Node)
    assert entry is not None
    assert list(await bus.bucket(subjects.OBJECTS).list(Node, "core.node")) == ["core.node._.n1", "core.node._.n2"]


async def test_request_answer_refusal(bus_for: BusFor) -> None:
    ipam, node = await bus_for("ipam"), await bus_for("dataplane", "n1")
    ask = BlockRequest(node="n1", node_uid="u", family=4, nonce="x")
    with pytest.raises(Unavailable):
        await node.request(ASK, ask, BlockGrant, timeout=1)

    async def answer(asked: BlockRequest, _node: str) -> BlockGrant:
        if asked.family == 6:
            raise Refused("pool-exhausted", "no pool has a free block", retry=True)
        return BlockGrant(block=block(asked.node, asked.nonce))

    await ipam.serve_nodes(subjects.IPAM_BLOCK, BlockRequest, answer)
    await asyncio.sleep(0.1)
    granted = await node.request(ASK, ask, BlockGrant, timeout=20)
    assert granted.block.node == "n1"
    with pytest.raises(Refused) as refused:
        await node.request(ASK, BlockRequest(node="n1", node_uid="u", family=6, nonce="y"), BlockGrant, timeout=20)
    assert (refused.value.code, refused.value.retry) == ("pool-exhausted", True)
    with pytest.raises(Refused) as malformed:
        await node.request(ASK, ServiceFault("a", "b", "c", "d"), BlockGrant, timeout=20)
    assert malformed.value.code == "malformed"


async def test_events_reach_a_listener(bus_for: BusFor) -> None:
    ipam, cli = await bus_for("ipam"), await bus_for("cli")
    heard: list[Any] = []
    await cli.subscribe(f"{subjects.EVENTS}.>", ServiceFault, lambda subject, event: heard.append((subject, event)))
    await asyncio.sleep(0.1)
    event = ServiceFault(service="ipam", node="", fault="x", remedy="y")
    ipam.publish(subjects.event_subject("ipam", "fault"), event)
    for _ in range(100):
        await asyncio.sleep(0.01)
    assert heard == [("airmesh.v1.events.ipam.fault", event)]


async def test_another_major_version_is_refused(bus_for: BusFor) -> None:
    ipam, node, cli = await bus_for("ipam"), await bus_for("dataplane", "n1"), await bus_for("cli")
    asked: list[Any] = []

    async def answer(message: BlockRequest, _node: str) -> None:
        asked.append(message)

    await ipam.serve_nodes(subjects.IPAM_BLOCK, BlockRequest, answer)
    await cli.subscribe(f"{subjects.EVENTS}.>", ServiceFault, lambda _subject, event: asked.append(event))
    await asyncio.sleep(0.1)
    body = codec.encode(BlockRequest(node="n1", node_uid="u", family=4, nonce="x"))
    said = await node.connection.call(ASK, body, timeout=2, headers={"Airmesh-Version": "2"})
    assert codec.decode(Reply, said.data).code == "unknown-version"
    event = codec.encode(ServiceFault(service="ipam", node="", fault="x", remedy="y"))
    await ipam.connection.send(subjects.event_subject("ipam", "fault"), event, {"Airmesh-Version": "2"})
    await asyncio.sleep(0.2)
    assert not asked


async def test_what_was_asked_for_before_the_connection_is_made_with_it(nats_server: NatsServer) -> None:
    heard: list[Any] = []
    nats_server.kill()
    async with (
        runtime_of(nats_server, "cli", connect=False) as cli,
        runtime_of(nats_server, "ipam", connect=False) as ipam,
    ):
        await cli.bus.subscribe(f"{subjects.EVENTS}.>", ServiceFault, lambda _subject, event: heard.append(event))

        async def answer(_message: IpamShow) -> IpamState:
            return IpamState(pools=(), blocks=(), owners=(), claims=())

        await ipam.bus.serve(subjects.IPAM_SHOW, IpamShow, answer)
        ipam.bus.publish(subjects.event_subject("ipam", "fault"), ServiceFault("lost", "", "x", "y"))
        await asyncio.sleep(0.2)
        nats_server.start()
        await asyncio.gather(cli.bus.wait_connected(10), ipam.bus.wait_connected(10))
        await asyncio.sleep(0.3)
        assert await cli.bus.request(subjects.IPAM_SHOW, IpamShow(), IpamState, timeout=20)
        ipam.bus.publish(subjects.event_subject("ipam", "fault"), ServiceFault("kept", "", "x", "y"))
        await asyncio.sleep(0.3)
        assert [event.service for event in heard] == ["kept"]
        assert ipam.bus.dropped == 1


async def over(asked: Sequence[asyncio.Task[Any]], count: int) -> None:
    """So many are answered, one way or the other. Waits as long as their own deadlines."""
    while sum(one.done() for one in asked) < count:
        await asyncio.sleep(0.01)


async def test_many_slow_questions_do_not_wait_for_each_other(bus_for: BusFor) -> None:
    ipam, cli = await bus_for("ipam"), await bus_for("cli")
    begun, release = 0, asyncio.Event()

    async def answer(_asked: IpamShow) -> IpamState:
        nonlocal begun
        begun += 1
        await release.wait()
        return IpamState(pools=(), blocks=(), owners=(), claims=())

    await ipam.serve(subjects.IPAM_SHOW, IpamShow, answer)
    await ipam.connection.client().flush()
    ask = partial(cli.request, subjects.IPAM_SHOW, IpamShow(), IpamState, timeout=60)
    asked = [asyncio.create_task(ask()) for _ in range(100)]
    await over(asked, 36)
    assert begun == 64, "all that are not refused are under way"
    release.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    busy = [found for found in answers if isinstance(found, Refused)]
    assert len(busy) == 36
    assert {(found.code, found.retry) for found in busy} == {("busy", True)}


async def test_a_node_that_asks_for_too_much_is_busy_for_itself_alone(bus_for: BusFor) -> None:
    ipam = await bus_for("ipam")
    thief, honest = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
    release = asyncio.Event()

    async def answer(asked: BlockRequest, node: str) -> BlockGrant:
        if node == "n1":
            await release.wait()
        return BlockGrant(block=block(node, asked.nonce))

    async def ask(bus: Bus, node: str, number: int) -> BlockGrant:
        request = BlockRequest(node=node, node_uid="u", family=4, nonce=str(number))
        return await bus.request(subjects.of_node(subjects.IPAM_BLOCK, node), request, BlockGrant, timeout=60)

    await ipam.serve_nodes(subjects.IPAM_BLOCK, BlockRequest, answer)
    await ipam.connection.client().flush()
    flood = [asyncio.create_task(ask(thief, "n1", number)) for number in range(100)]
    await over(flood, 100 - 8 - 64)
    honest_ones = asyncio.as_completed([ask(honest, "n2", n) for n in range(8)])
    assert {(await one).block.node for one in honest_ones} == {"n2"}, "it waits for none of the other's"
    release.set()
    answers = await asyncio.gather(*flood, return_exceptions=True)
    busy = [found for found in answers if isinstance(found, Refused)]
    assert len(busy) == 100 - 8 - 64, "what is under way, and what waits"
    assert {(found.code, found.retry) for found in busy} == {("busy", True)}
    assert sum(isinstance(found, BlockGrant) for found in answers) == 72


async def test_refused_write_is_one_clear_error_at_once(bus_for: BusFor, buckets: dict[str, str]) -> None:
    node = await bus_for("dataplane", "n1")
    endpoint = Endpoint(
        node="n2", address=ip_address("10.244.0.2"), namespace="a", pod="b", pod_uid="c", identity=300,
        mac=b"\x02" * 6, epoch=1, sequence=1,
    )  # fmt: skip
    started = asyncio.get_running_loop().time()
    with pytest.raises(Refused, match="may not publish"):
        await node.bucket(subjects.ENDPOINTS).put("n2.slot.2", endpoint, timeout=60)
    assert asyncio.get_running_loop().time() - started < 30
    assert await node.bucket(subjects.ENDPOINTS).put("n1.slot.2", endpoint)


async def test_an_event_is_heard_under_the_node_whose_key_said_it(bus_for: BusFor) -> None:
    one, two, cli = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2"), await bus_for("cli")
    heard: list[tuple[str, str]] = []
    everything = f"{subjects.EVENTS}.>"
    await cli.subscribe(everything, ServiceFault, lambda subject, event: heard.append((subject, event.fault)))
    await asyncio.sleep(0.1)
    said = subjects.event_subject("dataplane", "fault")
    one.publish(said, ServiceFault("dataplane", "n2", "a lie", ""))
    two.publish(said, ServiceFault("dataplane", "n2", "the truth", ""))
    two.publish(f"{said}.n1", ServiceFault("dataplane", "n1", "refused", ""))
    await asyncio.sleep(0.3)
    assert sorted(heard) == [(f"{said}.n1", "a lie"), (f"{said}.n2", "the truth")]
    assert said + ".n1" == subjects.heard_subject("dataplane", "fault", "n1")


async def test_a_bucket_of_before_gets_its_bounds_and_keeps_what_it_holds(
    nats_server: NatsServer, bus_for: BusFor
) -> None:
    cluster, operator = await bus_for("cluster"), await nats.connect(nats_server.url, **nats_server.sign_in("operator"))
    stream = subjects.ENDPOINTS.stream
    before = {
        "name": stream, "subjects": [f"$KV.{subjects.ENDPOINTS.on_server}.>"], "storage": "file", "discard": "new",
        "max_msgs_per_subject": 1, "max_bytes": 1 << 20, "max_msg_size": 1 << 20, "allow_direct": True,
        "allow_msg_ttl": True, "deny_delete": True,
    }  # fmt: skip
    await operator.request(f"$JS.API.STREAM.CREATE.{stream}", msgspec.json.encode(before), timeout=20)
    await operator.request(f"$KV.{subjects.ENDPOINTS.on_server}.n1.0af40002", b"of before", timeout=20)
    await cluster.make_buckets()
    config = await jetstream.stream_config(cluster.connection, stream)
    assert config["max_bytes"] == subjects.ENDPOINTS.max_bytes
    assert config["max_msg_size"] == subjects.ENDPOINTS.max_value
    for name in ("one", "two", "one"):
        answer = await operator.request(f"$KV.{subjects.ENDPOINTS.on_server}.n1.slot.{name}", b"x", timeout=20)
        assert b"error" not in answer.data
    asked = await operator.request(f"$JS.API.STREAM.INFO.{stream}", b'{"subjects_filter":">"}', timeout=20)
    found = msgspec.json.decode(asked.data)["state"]["subjects"]
    keys = {key.removeprefix(f"$KV.{subjects.ENDPOINTS.on_server}.") for key in found}
    assert keys == {"_epoch", "n1.0af40002", *(f"n1.slot.{numbered(name)}" for name in ("one", "two"))}
    await operator.close()


async def test_a_crowd_of_writes_is_kept_whole(bus_for: BusFor, buckets: dict[str, str]) -> None:
    """More at once than may wait before a stream: the server refuses some, and each is tried again."""
    kv = (await bus_for("ipam")).bucket(subjects.BLOCKS)
    keys = [codec.block_key(ip_network((0x0AF40000 + 64 * number, 26))) for number in range(3000)]
    revisions = await asyncio.gather(*(kv.create(key, block("n1"), timeout=20) for key in keys))
    assert all(isinstance(one, int) for one in revisions), "a write that was refused was never kept"
    assert set(await kv.list(Block)) == set(keys)
