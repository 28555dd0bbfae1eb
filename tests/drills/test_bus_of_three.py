"""Three NATS servers are killed, stopped and set back while agents write: what was acknowledged is there afterwards.

Each writer counts upwards in a key of its own and notes what was acknowledged; rivals replace one key's value each by
compare-and-set. At the end, by the leader's word: a key holds nothing older than its last acknowledged count, and no
revision of the rivals' key was replaced twice. What may be lost all the same: docs/threats.md, "What NATS may lose".

The short form kills one server, and then two. The long one (`make drill-bus`) adds a leader that was stopped or cut off
and goes on as if nothing had happened, a follower whose disk is set back, and many rounds; it prints how long writes
waited.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio

from chassis.bus.client import Bus
from chassis.bus.kv import KV, Conflict
from chassis.faults import Unavailable
from proto import codec
from proto.addresses import Block
from proto.subjects import BLOCKS
from tests.nats_cluster import NatsCluster, apart, insist, until
from tests.natsd import runtime_of

STREAM = BLOCKS.stream
WRITERS, RIVALS = 6, 3
SHARED = 999


def block(number: int, count: int, by: str = "") -> Block:
    cidr = ip_network((0x0AF40000 + 64 * number, 26))
    return Block(cidr=cidr, pool="p", node="n1", node_uid="u", epoch=1, nonce=f"{by}{count}")


def key(number: int) -> str:
    return codec.block_key(block(number, 0).cidr)


class Writers:
    """Everybody who writes, and what they were told."""

    def __init__(self, buses: list[Bus]) -> None:
        self._kvs = [bus.bucket(BLOCKS) for bus in buses]
        self._going = True
        self.tried: Counter[int] = Counter()
        self.acknowledged: dict[int, int] = {}
        self.refused = 0
        """Compare-and-sets that lost."""
        self.replaced: list[int] = []
        """Revisions of the shared key that somebody was told to have replaced."""
        self.waited = 0.0
        """Longest time, in seconds, between two acknowledgements."""
        self._last = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._last = time.monotonic()
        self._tasks = [asyncio.create_task(self._count(number)) for number in range(WRITERS)]
        self._tasks += [asyncio.create_task(self._compete(number, f"r{number}-")) for number in range(RIVALS)]

    async def stop(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)

    async def progress(self, seconds: float = 60) -> float:
        """Wait until writes are acknowledged again, rivals' too; returns how long that took."""
        before, replaced, started = sum(self.acknowledged.values()), len(self.replaced), time.monotonic()
        async with asyncio.timeout(seconds):
            while sum(self.acknowledged.values()) < before + 3 * WRITERS or len(self.replaced) < replaced + RIVALS:
                await asyncio.sleep(0.02)
        return time.monotonic() - started

    def _done(self) -> None:
        now = time.monotonic()
        self.waited, self._last = max(self.waited, now - self._last), now

    async def _count(self, number: int) -> None:
        kv = self._kvs[number % len(self._kvs)]
        count = 0
        while self._going:
            count += 1
            self.tried[number] = count
            try:
                await kv.put(key(number), block(number, count), timeout=2)
            except Unavailable:
                await asyncio.sleep(0.05)  # it may have happened, or not
            else:
                self.acknowledged[number] = count
                self._done()
            await asyncio.sleep(0.01)

    async def _compete(self, number: int, name: str) -> None:
        kv = self._kvs[number % len(self._kvs)]
        count = 0
        while self._going:
            count += 1
            try:
                found = await kv.get(key(SHARED), Block, timeout=2)
                revision = found.revision if found is not None else 0
                written = await kv.update(key(SHARED), block(SHARED, count, name), revision, timeout=2)
                self.refused += isinstance(written, Conflict)
                if not isinstance(written, Conflict):
                    self.replaced.append(revision)
            except Unavailable:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.02)


async def _replace(kv: KV) -> None:
    """By compare-and-set, now that nobody else does; raises Unavailable while it is refused."""
    found = await kv.get(key(SHARED), Block)
    revision = found.revision if found is not None else 0
    if isinstance(await kv.update(key(SHARED), block(SHARED, 0, "last-"), revision), Conflict):
        raise Unavailable(f"{revision} is the last revision, and is not taken for it")


class Drill:
    """The servers, the writers, and what is done to the first while the second go on."""

    def __init__(self, cluster: NatsCluster, writers: Writers, kept: Path) -> None:
        self.cluster, self.writers, self._kept = cluster, writers, kept
        self.waits: dict[str, list[float]] = {}

    async def whole(self) -> None:
        """All run, and have what the leader has."""
        await until("all servers have caught up", self._caught_up)

    async def leader(self) -> int:
        """Number of the server that leads."""
        await until("somebody leads", lambda: self.cluster.leader(STREAM) != "")
        return self.cluster.number(await asyncio.to_thread(self.cluster.leader, STREAM))

    def _caught_up(self) -> bool:
        leader = self.cluster.leader(STREAM)
        found = self.cluster.streams(self.cluster.number(leader)).get(STREAM) if leader else None
        replicas = (found or {}).get("cluster", {}).get("replicas", ())
        return len(replicas) == 2 and all(one["current"] and not one.get("offline") for one in replicas)

    async def timed(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        await self.whole()
        self.writers.waited = 0.0
        await act()
        await self.writers.progress()
        self.waits.setdefault(what, []).append(self.writers.waited)

    async def one_dies(self) -> None:
        """The leader is killed, and comes back."""
        server = self.cluster.servers[await self.leader()]
        server.kill()
        await self.writers.progress()
        await asyncio.to_thread(server.start)

    async def two_die(self) -> None:
        """Nothing can be written meanwhile, and nothing that could is forgotten."""
        two = random.sample(self.cluster.servers, 2)
        for server in two:
            server.kill()
        await asyncio.sleep(1)
        for server in two:
            await asyncio.to_thread(server.start)

    async def leader_is_stale(self) -> None:
        """The leader is stopped until another leads, and goes on as if it still led."""
        server = self.cluster.servers[await self.leader()]
        server.stop()
        try:
            await self.writers.progress(90)
        finally:
            server.cont()

    async def disk_is_set_back(self) -> None:
        """A follower comes back with the disk that it had a while ago; the leader brings it up to date."""
        leader = await self.leader()
        follower = self.cluster.servers[(leader + 1) % 3]
        store = follower.folder / "store"
        shutil.rmtree(self._kept, ignore_errors=True)
        follower.kill()
        await asyncio.to_thread(shutil.copytree, store, self._kept)
        await asyncio.to_thread(follower.start)
        await self.whole()
        await self.writers.progress()
        follower.kill()
        await asyncio.to_thread(shutil.rmtree, store)
        await asyncio.to_thread(shutil.move, self._kept, store)
        await asyncio.to_thread(follower.start)

    async def judge(self, bus: Bus) -> None:
        """Compare what is there with what was acknowledged."""
        await self.writers.stop()
        await self.whole()
        kv = bus.bucket(BLOCKS)
        lost = {}
        for number in range(WRITERS):
            entry = await insist(lambda number=number: kv.get(key(number), Block))  # type: ignore[misc]
            count = int(entry.value.nonce) if entry is not None else 0
            assert count <= self.writers.tried[number], "nobody wrote that"
            if count < self.writers.acknowledged[number]:
                lost[number] = (count, self.writers.acknowledged[number])
        assert lost == {}, "acknowledged, and gone"
        twice = {revision for revision, times in Counter(self.writers.replaced).items() if times > 1}
        assert twice == set(), "two were told to have replaced the same revision"
        await insist(lambda: _replace(kv))
        print(f"replaced {len(self.writers.replaced)} times, refused {self.writers.refused} times")
        for what, waits in self.waits.items():
            print(f"{what}: {len(waits)} times, writes waited at most {max(waits):.1f} s, {min(waits):.1f} at best")


@asynccontextmanager
async def writing(cluster: NatsCluster, kept: Path, urls: list[str]) -> AsyncIterator[tuple[Drill, Bus]]:
    """Three agents write, each by way of one of ``urls``."""
    await cluster.ready()
    async with AsyncExitStack() as stack:
        first = cluster.servers[0]
        async with runtime_of(first, "cluster", url=cluster.url) as runtime:
            await insist(lambda: runtime.bus.make_buckets(3))
        runtimes = [await stack.enter_async_context(runtime_of(first, "ipam", url=url)) for url in urls]
        judge = await stack.enter_async_context(runtime_of(first, "ipam", url=cluster.url))
        writers = Writers([runtime.bus for runtime in runtimes])
        writers.start()
        try:
            await writers.progress()
            yield Drill(cluster, writers, kept), judge.bus
        finally:
            await writers.stop()


@pytest_asyncio.fixture
async def drill(tmp_path: Path) -> AsyncIterator[tuple[Drill, Bus]]:
    cluster = NatsCluster(tmp_path / "nats")
    cluster.start()
    try:
        async with writing(cluster, tmp_path / "kept", [cluster.url] * 3) as made:
            yield made
    finally:
        cluster.close()


async def test_one_server_and_then_two_are_killed(drill: tuple[Drill, Bus]) -> None:
    on, bus = drill
    await on.timed("the leader is killed", on.one_dies)
    await on.timed("two are killed", on.two_die)
    await on.judge(bus)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_servers_die_are_stopped_and_set_back(drill: tuple[Drill, Bus]) -> None:
    on, bus = drill
    for _ in range(4):
        await on.timed("the leader is killed", on.one_dies)
        await on.timed("two are killed", on.two_die)
        await on.timed("the leader is stopped and goes on", on.leader_is_stale)
        await on.timed("a follower's disk is set back", on.disk_is_set_back)
    await on.judge(bus)


@pytest.mark.slow
@pytest.mark.privileged
@pytest.mark.timeout(900)
async def test_the_leader_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    """Clients on both sides; the minority acknowledges nothing, and what the majority was told is kept."""
    async with AsyncExitStack() as stack:
        cluster, wires = await stack.enter_async_context(apart(tmp_path / "nats"))
        on, bus = await stack.enter_async_context(writing(cluster, tmp_path / "kept", cluster.url.split(",")))

        async def cut_off() -> None:
            leader = await on.leader()
            wires.cut(leader)
            try:
                await on.writers.progress(90)
                await asyncio.sleep(3)
            finally:
                wires.join(leader)

        for _ in range(3):
            await on.timed("the leader is cut off", cut_off)
        await on.judge(bus)
