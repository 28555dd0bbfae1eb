"""Each trap of nats-py that the chassis closes, sprung on a real server.

The first test of a pair, where there is one, shows that the trap is there when one uses the library plainly.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import msgspec
import nats
import pytest
from nats.aio.client import Client, Server

from chassis.bus import connection as connection_module
from chassis.bus import jetstream
from chassis.bus import tail as tail_module
from chassis.bus import view as view_module
from chassis.bus.client import Bus, View
from chassis.bus.connection import ClosedForGood, _next_server
from chassis.faults import Refused, Unavailable
from proto import codec, subjects
from proto.addresses import Block
from proto.sync import Complete, Epoch
from tests.conftest import BusFor, RuntimeFor
from tests.natsd import NatsServer, free_port, runtime_of

STREAM = subjects.BLOCKS.stream


def block(number: int, node: str = "n1") -> Block:
    return Block(cidr=ip_network((0x0AF40000 + 64 * number, 26)), pool="p", node=node, node_uid="u", epoch=1, nonce="a")


def key(number: int) -> str:
    return codec.block_key(block(number).cidr)


async def until(holds: Callable[[], bool], seconds: float) -> float:
    """Wait until it holds; returns how long that took, fails after ``seconds``."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"not so after {seconds} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def synced_view(bus: Bus, epoch: str) -> View:
    kv = bus.bucket(subjects.BLOCKS)
    await kv.put("_complete", Complete(epoch=epoch))
    view = kv.watch({"": Block}, name="blocks")
    await view.wait_synced(20)
    return view


@asynccontextmanager
async def cut_off(server: NatsServer, bus: Bus) -> AsyncIterator[Client]:
    """The server is down meanwhile, and nothing that is written then appears when it is back. Gives a client that was
    asked for before.
    """
    kv = bus.bucket(subjects.BLOCKS)
    await kv.put(key(0), block(0, "before"))
    client = bus.connection.client()
    server.kill()
    await until(lambda: not bus.connected, 20)
    yield client
    server.start()
    await until(lambda: bus.connected, 8)
    await asyncio.sleep(0.3)
    entry = await kv.get(key(0), Block)
    assert entry is not None
    assert entry.value.node == "before"


async def test_write_while_disconnected_fails_at_once_and_never_appears(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    bus = await bus_for("ipam")
    async with cut_off(nats_server, bus):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await bus.bucket(subjects.BLOCKS).put(key(0), block(0, "STALE"), timeout=60)
        assert time.monotonic() - started < 30


async def test_write_by_a_client_that_was_asked_for_before_the_break_never_appears(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    """Between the look whether we are connected and the write, the connection may break."""
    async with cut_off(nats_server, await bus_for("ipam")) as client:
        with contextlib.suppress(nats.errors.OutboundBufferLimitError):
            await client.publish(
                f"$KV.{subjects.BLOCKS.on_server}.{key(0)}",
                codec.seal(block(0, "STALE")),
                headers={jetstream.EXPECTED_STREAM: STREAM},
            )


async def test_write_under_way_when_the_connection_breaks_ends_at_once(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    bus = await bus_for("ipam")
    nats_server.stop()
    write = asyncio.create_task(bus.bucket(subjects.BLOCKS).put(key(0), block(0), timeout=60))
    await asyncio.sleep(0.2)
    nats_server.kill()
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await write
    assert time.monotonic() - started < 20, "not when its own time is over"
    nats_server.start()


async def test_view_follows_a_bucket_that_was_made_again(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "COMPARE_EVERY", 1.0)
    bus = await bus_for("ipam")
    view = await synced_view(bus, buckets["blocks"])
    for number in range(50):
        await bus.bucket(subjects.BLOCKS).put(key(number), block(number))
    await until(lambda: len(view.entries) == 50, 20)
    async with admin(nats_server) as raw:
        await raw.jetstream().delete_stream(STREAM)
        await asyncio.sleep(0.5)
    epochs = await (await bus_for("cluster")).make_buckets()
    assert epochs["blocks"] != buckets["blocks"]
    kv = bus.bucket(subjects.BLOCKS)
    await kv.put(key(0), block(0, "new"))
    await until(lambda: view.epoch == epochs["blocks"] and view.entries[key(0)].value.node == "new", 8)
    assert not view.synced
    assert len(view.entries) == 50, "nothing vanishes before the markers hold"
    reader = view.cursor()
    reader.take()
    await kv.put("_complete", Complete(epoch=epochs["blocks"]))
    await view.wait_synced(20)
    assert set(view.entries) == {key(0)}
    assert {key(1), key(49)} <= await reader.changed()


async def test_rolled_back_bucket_is_listed_again(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    """The server's disk is put back to an older copy: same epoch, lower sequences, acknowledged writes gone."""
    bus = await bus_for("ipam")
    view = await synced_view(bus, buckets["blocks"])
    kv = bus.bucket(subjects.BLOCKS)
    await kv.put(key(0), block(0, "old"))
    nats_server.kill()
    await until(lambda: not bus.connected, 20)
    shutil.copytree(nats_server.folder / "store", nats_server.folder / "older")
    nats_server.start()
    await until(lambda: bus.connected, 8)
    await kv.put(key(0), block(0, "new"))
    for number in range(1, 20):
        await kv.put(key(number), block(number))
    await until(lambda: len(view.entries) == 20, 5)
    seen = view.sequence
    nats_server.kill()
    await until(lambda: not bus.connected, 20)
    shutil.rmtree(nats_server.folder / "store")
    (nats_server.folder / "older").rename(nats_server.folder / "store")
    nats_server.start()
    await until(lambda: view.synced and set(view.entries) == {key(0)}, 10)
    assert view.entries[key(0)].value.node == "old"
    assert view.sequence < seen
    revision = await kv.put(key(1), block(1, "after"))
    await until(lambda: key(1) in view.entries, 20)
    assert view.sequence == revision


async def test_sequence_that_went_back_under_a_living_consumer_is_noticed(
    bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "COMPARE_EVERY", 0.5)
    bus = await bus_for("ipam")
    view = await synced_view(bus, buckets["blocks"])
    before = view.resyncs
    view.sequence += 1000
    await until(lambda: view.resyncs > before, 20)
    await view.wait_synced(20)
    assert view.sequence < 1000


async def test_comparing_amid_writes_is_no_alarm(
    bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream's state is older than what came while it was on its way."""
    bus = await bus_for("ipam")
    view = await synced_view(bus, buckets["blocks"])
    kv = bus.bucket(subjects.BLOCKS)
    ask, asked = jetstream.stream_state, 0

    async def slow_answer(connection: Any, stream: str) -> jetstream.StreamState:
        nonlocal asked
        state = await ask(connection, stream)
        revision = await kv.put(key(0), block(0, f"n{asked}"))
        await until(lambda: view.sequence >= revision, 20)
        asked += 1
        return state

    monkeypatch.setattr(jetstream, "stream_state", slow_answer)
    monkeypatch.setattr(view_module, "COMPARE_EVERY", 0.0)
    await until(lambda: asked >= 3, 5)
    assert view.resyncs == 1


async def test_bug_in_taking_a_value_in_ends_the_service(nats_server: NatsServer, buckets: dict[str, str]) -> None:
    def kinds(_key: str) -> type | None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as ended:  # noqa: PT012
        async with runtime_of(nats_server, "ipam") as runtime:
            kv = runtime.bus.bucket(subjects.BLOCKS)
            kv.watch(kinds, name="blocks")
            await kv.put(key(0), block(0))
            await asyncio.sleep(2)
    assert ended.group_contains(ZeroDivisionError)


async def test_changed_epoch_lists_again(bus_for: BusFor, buckets: dict[str, str]) -> None:
    bus = await bus_for("ipam")
    view = await synced_view(bus, buckets["blocks"])
    await bus.bucket(subjects.BLOCKS).put(key(0), block(0))
    cluster = await bus_for("cluster")
    await cluster.bucket(subjects.BLOCKS).put("_epoch", Epoch(epoch="another"))
    await until(lambda: view.epoch == "another" and not view.synced, 20)
    assert set(view.entries) == {key(0)}
    await bus.bucket(subjects.BLOCKS).put("_complete", Complete(epoch="another"))
    await view.wait_synced(20)
    assert view.resyncs == 2


async def test_full_queue_loses_nothing_for_good(
    bus_for: BusFor, runtime_for: RuntimeFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "SUBSCRIPTION_MESSAGES", 4)
    reader = await runtime_for("routing", "n1")
    writer = (await bus_for("ipam")).bucket(subjects.BLOCKS)
    await writer.put("_complete", Complete(epoch=buckets["blocks"]))
    view = reader.bus.bucket(subjects.BLOCKS).watch({"": Block}, name="blocks")
    await view.wait_synced(20)
    monkeypatch.setattr(connection_module, "SUBSCRIPTION_MESSAGES", 65_536)
    await asyncio.gather(*(writer.put(key(number), block(number)) for number in range(400)))
    await until(lambda: len(view.entries) == 400, 10)
    lines: Any = reader
    assert lines.lines.named("bus-slow-consumer"), "the trap was not sprung"
    assert view.resyncs > 1
    await view.wait_synced(20)


async def test_requests_for_messages_end_and_are_asked_again(
    bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, by bytes and by time: each end is followed by the next request, and nothing is listed anew."""
    monkeypatch.setattr(tail_module, "BATCH", 7)
    monkeypatch.setattr(tail_module, "BATCH_BYTES", 1500)
    monkeypatch.setattr(tail_module, "EXPIRES", 3)
    bus = await bus_for("ipam")
    kv = bus.bucket(subjects.BLOCKS)
    await asyncio.gather(*(kv.put(key(number), block(number)) for number in range(100)))
    await kv.put("_complete", Complete(epoch=buckets["blocks"]))
    view = kv.watch({"": Block}, name="blocks")
    await until(lambda: view.synced, 20)
    assert len(view.entries) == 100
    for number in range(100, 104):
        await asyncio.sleep(1.7)
        await kv.put(key(number), block(number))
        await until(lambda number=number: key(number) in view.entries, 0.5)  # type: ignore[misc]
    assert view.resyncs == 1


async def test_a_silent_consumer_is_replaced(
    bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is lost and nobody says so: no heartbeat comes, and the view lists again."""
    pull, lost = jetstream.pull, 1

    async def lossy(*arguments: Any) -> None:
        nonlocal lost
        if lost:
            lost -= 1
            return
        await pull(*arguments)

    monkeypatch.setattr(jetstream, "pull", lossy)
    bus = await bus_for("ipam")
    kv = bus.bucket(subjects.BLOCKS)
    await kv.put(key(0), block(0))
    await kv.put("_complete", Complete(epoch=buckets["blocks"]))
    view = kv.watch({"": Block}, name="blocks")
    await view.wait_synced(7)
    assert view.resyncs == 2
    assert set(view.entries) == {key(0)}


async def test_a_loop_that_was_held_has_not_heard_silence(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listened meanwhile; a list for each hold would keep a busy node out of sync. The server says nothing until
    the view has looked once, so no heartbeat that waited speaks for it.
    """
    monkeypatch.setattr("chassis.bus.tail.SILENCE", 3.0)
    view = await synced_view(await bus_for("ipam"), buckets["blocks"])
    lists = view.resyncs
    nats_server.stop()
    time.sleep(3.2)  # the loop is held
    await asyncio.sleep(0.6)
    nats_server.cont()
    await asyncio.sleep(1.0)  # it would be listing
    await view.wait_synced(7)
    assert view.resyncs == lists


async def test_a_consumer_that_somebody_removed_is_replaced(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    bus = await bus_for("ipam")
    view = await synced_view(bus, buckets["blocks"])
    async with admin(nats_server) as raw:
        for info in await raw.jetstream().consumers_info(STREAM):
            await raw.jetstream().delete_consumer(STREAM, info.name)
    await until(lambda: view.resyncs > 1, 20)
    await view.wait_synced(20)
    await bus.bucket(subjects.BLOCKS).put(key(0), block(0))
    await until(lambda: key(0) in view.entries, 20)


async def test_view_is_back_within_seconds_after_kill_9(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    bus = await bus_for("ipam")
    view = await synced_view(bus, buckets["blocks"])
    kv = bus.bucket(subjects.BLOCKS)
    await kv.put(key(0), block(0))
    nats_server.kill()
    await until(lambda: not bus.connected, 20)
    assert view.synced, "the last state is kept while the server is away"
    nats_server.start()
    started = time.monotonic()
    await until(lambda: bus.connected, 6)
    await kv.put(key(1), block(1))
    await until(lambda: key(1) in view.entries and view.synced, 5)
    assert time.monotonic() - started < 8


async def test_it_never_stops_reconnecting(
    nats_server: NatsServer, runtime_for: RuntimeFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[float] = []

    def soon(servers: list[Any], _info: dict[str, object]) -> tuple[Any, float]:
        attempts.append(time.monotonic())
        return servers[0], 0.005

    monkeypatch.setattr(connection_module, "_next_server", soon)
    runtime = await runtime_for("ipam")
    nats_server.kill()
    await until(lambda: len(attempts) > 100, 20)
    nats_server.start()
    await until(lambda: runtime.bus.connected, 5)


async def test_readers_of_a_server_that_is_gone_do_not_list_all_at_once(
    nats_server: NatsServer, bus_for: BusFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their consumers were in its memory: each waits a time of its own, here none at all and a minute."""
    epochs = await (await bus_for("cluster")).make_buckets()
    early, late = [await synced_view(await bus_for("ipam"), epochs["blocks"]) for _ in range(2)]
    monkeypatch.setattr(view_module, "SPREAD", 60.0)
    chances = iter([0.0, 0.0, 0.999, 0.999])
    monkeypatch.setattr(view_module, "random", SimpleNamespace(random=lambda: next(chances)))
    nats_server.restart()
    await until(lambda: early.resyncs + late.resyncs == 3 and early.synced and late.synced, 20)
    await asyncio.sleep(0.5)
    assert early.resyncs + late.resyncs == 3, "the other waits, and keeps what it has"
    assert set(early.entries) == set(late.entries)


async def test_client_that_closes_by_itself_ends_the_service(nats_server: NatsServer) -> None:
    with pytest.raises(ExceptionGroup) as ended:  # noqa: PT012
        async with runtime_of(nats_server, "ipam") as runtime:
            await runtime.bus.connection.client().close()
            await asyncio.sleep(1)
    assert ended.group_contains(ClosedForGood)


async def test_half_open_connection_is_noticed(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy swallows everything: the sockets stay open, nothing comes back. (Pings quickened from 5 s to 0.5 s.)"""
    monkeypatch.setattr(connection_module, "PING_INTERVAL", 0.5)
    async with Proxy(nats_server.port) as proxy, runtime_of(nats_server, "ipam", url=proxy.url) as runtime:
        bus = runtime.bus
        proxy.swallow = True
        took = await until(lambda: not bus.connected, 4)
        assert took > 0.4
        proxy.swallow = False
        await until(lambda: bus.connected, 8)


async def test_half_open_connection_with_a_full_buffer_is_aborted(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a transport waits for its buffer to drain; a peer that reads nothing would hold it for ever."""
    monkeypatch.setattr(connection_module, "PING_INTERVAL", 0.5)
    async with Proxy(nats_server.port) as proxy, runtime_of(nats_server, "ipam", url=proxy.url) as runtime:
        bus = runtime.bus
        proxy.deaf = True
        await asyncio.sleep(0.1)
        big = b"x" * 1_000_000
        for _ in range(20):
            await bus.connection.send("airmesh.v1.events.ipam.fault", big)
        await until(lambda: not bus.connected, 6)
        proxy.deaf = False
        await until(lambda: bus.connected, 10)


async def test_stopped_server_is_noticed_with_the_real_times(nats_server: NatsServer, bus_for: BusFor) -> None:
    bus = await bus_for("ipam")
    nats_server.stop()
    took = await until(lambda: not bus.connected, 16)
    nats_server.cont()
    assert took <= 15.5
    await until(lambda: bus.connected, 10)


def test_reconnect_waits_are_spread() -> None:
    for failures, low, high in ((0, 0.05, 0.1), (3, 0.4, 0.8), (50, 2.5, 5.0)):
        server = Server(uri=urlparse("nats://127.0.0.1:1"), reconnects=failures)
        waits = {_next_server([server], {})[1] for _ in range(200)}
        assert len(waits) > 150
        assert low <= min(waits) <= max(waits) <= high


async def test_refused_publish_is_one_error_with_its_reason(bus_for: BusFor, buckets: dict[str, str]) -> None:
    bus = await bus_for("routing", "n1")
    started = time.monotonic()
    with pytest.raises(Refused, match=r"routing-n1 may not publish to \$KV.blocks_v1"):
        await bus.bucket(subjects.BLOCKS).put(key(0), block(0), timeout=60)
    assert time.monotonic() - started < 30
    assert any("$kv.blocks_v1" in subject for subject in bus.connection.denied)


async def test_view_keeps_the_last_good_value(bus_for: BusFor, buckets: dict[str, str]) -> None:
    bus = await bus_for("ipam")
    view = await synced_view(bus, buckets["blocks"])
    kv = bus.bucket(subjects.BLOCKS)
    await kv.put(key(0), block(0, "good"))
    await until(lambda: key(0) in view.entries, 20)
    subject = f"$KV.{subjects.BLOCKS.on_server}.{key(0)}"
    newer = msgspec.msgpack.encode((codec.VERSION + 1, "", {"whatever": 1}))
    for body in (newer, b"garbage"):
        await bus.connection.call(subject, body, timeout=2, headers={jetstream.EXPECTED_STREAM: STREAM})
        await until(lambda: key(0) in view.unreadable, 20)
        assert view.entries[key(0)].value.node == "good"
    await kv.put(key(0), block(0, "better"))
    await until(lambda: key(0) not in view.unreadable, 20)
    assert view.entries[key(0)].value.node == "better"


async def test_what_came_as_an_answer_is_no_value(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    """Where accounts do not keep it away (here: an operator's hand), it is seen for what it is, and mended."""
    routing, ipam = await bus_for("routing", "n1"), await bus_for("ipam")
    kv = ipam.bucket(subjects.BLOCKS)
    await kv.put(key(0), block(0, "good"))
    await kv.put("_complete", Complete(epoch=buckets["blocks"]))
    view = routing.bucket(subjects.BLOCKS).watch({"": Block}, name="blocks")
    await view.wait_synced(20)
    foreign = f"$KV.{subjects.BLOCKS.on_server}.{key(0)}"
    async with admin(nats_server) as raw:
        await raw.request("$KV.endpoints_v1.n1.x", codec.seal(block(0, "FORGED")), timeout=20)
        await raw.publish("$JS.API.DIRECT.GET.KV_endpoints_v1.$KV.endpoints_v1.n1.x", b"", reply=foreign)
        await until(lambda: key(0) in view.unreadable, 20)
    assert view.entries[key(0)].value.node == "good"
    with pytest.raises(codec.Malformed, match="not written by"):
        await kv.get(key(0), Block)
    await kv.put(key(0), block(0, "repaired"))
    await until(lambda: view.entries[key(0)].value.node == "repaired" and not view.unreadable, 20)


async def test_view_waits_for_a_bucket_that_is_not_there_yet(bus_for: BusFor) -> None:
    bus = await bus_for("ipam")
    view = bus.bucket(subjects.BLOCKS).watch({"": Block}, name="blocks")
    await asyncio.sleep(0.3)
    assert not view.synced
    epochs = await (await bus_for("cluster")).make_buckets()
    await bus.bucket(subjects.BLOCKS).put("_complete", Complete(epoch=epochs["blocks"]))
    await view.wait_synced(20)


async def test_restarts_leave_no_consumers_behind(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    for _ in range(5):
        async with runtime_of(nats_server, "routing", "n1") as runtime:
            view = runtime.bus.bucket(subjects.BLOCKS).watch({"": Block}, markers=(), name="blocks")
            await view.wait_synced(20)
            for _ in range(3):
                view._relist = "again"
                view._wake.set()
                before = view.resyncs
                await until(lambda view=view, before=before: view.resyncs > before and view.synced, 5)  # type: ignore[misc]
    async with admin(nats_server) as raw:
        left = await raw.jetstream().consumers_info(STREAM)
    assert len(left) <= 5
    assert all((info.config.inactive_threshold or 0) <= 30 for info in left)


@asynccontextmanager
async def admin(server: NatsServer) -> AsyncIterator[Any]:
    """A user who may do anything to the streams: stands for an operator's hand."""
    client = await nats.connect(server.url, **server.sign_in("operator"))
    try:
        yield client
    finally:
        await client.close()


class Proxy:
    """Stands between client and server. ``swallow``: reads and forwards nothing; ``deaf``: does not even read."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = free_port()
        self.swallow = False
        self.deaf = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        for source, sink in ((reader, up_writer), (up_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                while self.deaf:
                    await asyncio.sleep(0.05)
                piece = await source.read(65536)
                if not piece:
                    break
                if not self.swallow:
                    sink.write(piece)
                    await sink.drain()
        sink.close()
