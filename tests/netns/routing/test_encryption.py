"""Encryption is asked for by FelixConfiguration: two nodes with their whole routing service and wireguard-go."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kit.models import HOST_GW, WIREGUARD
from proto.codec import kind_prefix, object_key
from proto.objects import KIND_OF, FelixConfiguration, IPPool
from proto.subjects import OBJECTS
from proto.sync import Complete, complete_key
from services.routing.core import encryption
from tests.conftest import BusFor
from tests.natsd import NatsServer
from tests.netns.routing.conftest import Mesh, Netns, Routing
from tests.netns.routing.wireguard_nodes import KEYS, Capture, Node, clear, process_of, wireguard_frames

pytestmark = pytest.mark.privileged

SERVED = {model.name: model for model in (HOST_GW, WIREGUARD)}
SECRET = b"nobody on the fabric reads this"
PROHIBITED = {"prohibit 10.244.0.0/16 metric 4096", "prohibit fd00:10:244::/48 metric 4096"}


async def until(check: Callable[[], object], seconds: float = 30.0) -> None:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds, "did not happen in time"
        await asyncio.sleep(0.02)


@dataclass
class Pair:
    """Two nodes and the buckets that their agents read. ``nodes`` give sockets and captures, and run no agent."""

    nodes: tuple[Node, Node]
    mesh: Mesh
    cluster: Any
    server: NatsServer
    folder: Path
    agents: dict[str, AsyncExitStack] = field(default_factory=dict)

    async def pools(self) -> None:
        for name, cidr, size in (("four", "10.244.0.0/16", 26), ("six", "fd00:10:244::/48", 122)):
            pool = IPPool(name, ip_network(cidr), size)
            await self.cluster.bucket(OBJECTS).put(object_key(pool), pool)
        await self._complete(IPPool)

    async def encrypt(self, *, on: bool) -> None:
        one = FelixConfiguration(name="default", wireguard_enabled=on, wireguard_enabled_v6=on)
        await self.cluster.bucket(OBJECTS).put(object_key(one), one)
        await self._complete(FelixConfiguration)

    async def _complete(self, kind: type) -> None:
        key = complete_key(kind_prefix(KIND_OF[kind]))
        await self.cluster.bucket(OBJECTS).put(key, Complete(self.mesh.epochs["objects"]))

    async def start(self, *nodes: Node) -> None:
        for node in nodes or self.nodes:
            stack = self.agents[node.name] = AsyncExitStack()
            routing = Routing(self.server, stack, self.folder)
            await routing.start(node.netns, node.name, served=SERVED, programs=False)

    async def stop(self, *nodes: Node) -> None:
        for node in nodes or self.nodes:
            if stack := self.agents.pop(node.name, None):
                await stack.aclose()

    def encrypted(self) -> bool:
        """Whether all pods of the other node are reached by WireGuard, from both."""
        return all(
            len([route for route in node.netns.routes() if " dev am-wg" in route]) == 2
            and node.netns.routes() >= PROHIBITED
            for node in self.nodes
        )


@pytest_asyncio.fixture
async def pair(
    nodes: tuple[Netns, Netns], mesh: Mesh, bus_for: BusFor, nats_server: NatsServer, tmp_path: Path
) -> AsyncIterator[Pair]:
    """n1 and n2 with 10.244.1.0/26 and 10.244.2.0/26, whose agents are not started."""
    both = [
        Node(netns, number, tmp_path / f"n{number}", prohibits=False, base=10)
        for number, netns in enumerate(nodes, start=1)
    ]
    made = Pair((both[0], both[1]), mesh, await bus_for("cluster"), nats_server, tmp_path)
    try:
        for node, other in zip(both, reversed(both), strict=True):
            node.lay()
            for number, family in ((0, ""), (1, "-6 ")):
                node.netns.ip(f"{family}route add default via {other.underlay[number]}")
            for cidr in node.blocks:
                await mesh.block(str(cidr), node.name)
        await mesh.complete()
        await made.pools()
        yield made
    finally:
        await made.stop()
        for node in both:
            node.end()


def sent(near: Node, far: Node) -> list[str]:
    """What became of a packet of each family: ``arrived``, ``refused`` at once, or ``lost``."""
    found = []
    for family in (4, 6):
        with near.socket(family) as client, far.socket(family) as server:
            server.settimeout(2)
            try:
                client.sendto(SECRET, server.getsockname())
            except PermissionError:
                found.append("refused")
                continue
            try:
                found.append("arrived" if server.recv(64) == SECRET else "other")
            except TimeoutError:
                found.append("lost")
    return found


def reached(pair: Pair) -> bool:
    return all(sent(near, far) == ["arrived"] * 2 for near, far in (pair.nodes, reversed(pair.nodes)))


async def test_nothing_is_in_the_clear_from_the_first_packet_on(pair: Pair) -> None:
    """Through the start of one agent and the other, without agents, without the device, without the key, and while the
    key changes. By their routes by default the nodes would carry all of it.
    """
    n1, n2 = pair.nodes
    await pair.encrypt(on=True)
    await pair.start(n1)
    await until(lambda: n1.netns.routes() >= PROHIBITED)
    fabric = Capture(n2)
    assert sent(n1, n2) == ["refused"] * 2, "the other node has no key"
    await pair.start(n2)
    await until(pair.encrypted)
    await asyncio.to_thread(lambda: retried(lambda: reached(pair)))
    shown = n1.netns.ip("route show 10.244.2.0/26")
    assert "via 172.30.0.12 dev am-wg" in shown
    assert "src 172.30.0.11" in shown
    assert not [route for route in n1.netns.routes() if "dev fab0" in route]
    await pair.stop(n1)
    assert reached(pair), "packets wait for no agent"
    n1.netns.ip("link del am-wg")
    assert sent(n1, n2) == ["refused"] * 2
    (n1.folder / KEYS).unlink()
    await pair.start(n1)
    await until(pair.encrypted)
    await asyncio.to_thread(lambda: retried(lambda: reached(pair)))
    frames = list(fabric.frames())
    assert not [frame for frame in frames if clear(frame, SECRET)]
    assert wireguard_frames(frames) > 8
    fabric.close()


def as_they_are(pair: Pair) -> list[str]:
    """Routes to pods by which packets go in the clear."""
    return [route for node in pair.nodes for route in node.netns.routes() if " dev fab0" in route]


def retried(check: Callable[[], bool], seconds: float = 30.0) -> None:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds


async def test_wireguard_go_that_died_is_started_again(pair: Pair) -> None:
    """The other node still has the session with the one that died, and learns of the new one by its first packet."""
    n1, _ = pair.nodes
    await pair.encrypt(on=True)
    await pair.start()
    await until(pair.encrypted)
    await asyncio.to_thread(lambda: retried(lambda: reached(pair)))
    died, key = process_of(n1), n1.read()
    os.kill(died, signal.SIGKILL)
    await until(lambda: not pair.encrypted())
    await until(pair.encrypted)
    await asyncio.to_thread(lambda: retried(lambda: reached(pair)))
    assert process_of(n1) != died
    again = n1.read()
    assert key is not None
    assert again is not None
    assert again.private_key == key.private_key


async def test_it_is_switched_on_and_off_under_packets_and_none_is_lost(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods talk as they are; then encryption is asked for, and later no more."""
    monkeypatch.setattr(encryption, "STAYS", 1.0)
    n1, n2 = pair.nodes
    await pair.encrypt(on=False)
    await pair.start()
    await until(lambda: len(as_they_are(pair)) == 4)
    stop = threading.Event()
    counts: dict[str, int] = {}
    ends = {node.name: node.socket() for node in pair.nodes}

    def stream(name: str, to: str) -> None:
        count = 0
        while not stop.is_set():
            ends[name].sendto(count.to_bytes(4, "big") + SECRET, ends[to].getsockname())
            count += 1
            time.sleep(0.002)
        counts[name] = count

    for end in ends.values():
        end.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    threads = [threading.Thread(target=stream, args=names) for names in (("n1", "n2"), ("n2", "n1"))]
    try:
        for thread in threads:
            thread.start()
        await pair.encrypt(on=True)
        await until(lambda: pair.encrypted() and not as_they_are(pair))
        fabric = Capture(n2)
        await asyncio.sleep(0.1)
        frames = list(fabric.frames())
        assert wireguard_frames(frames) > 20
        assert not [frame for frame in frames if clear(frame, SECRET)]
        fabric.close()
        ended = time.monotonic()
        await pair.encrypt(on=False)
        plain = {"10.244.2.0/26 via 172.30.0.12 dev fab0 metric 64"}
        await until(lambda: n1.netns.routes() >= plain and not any("prohibit" in one for one in n1.netns.routes()))
        assert time.monotonic() - ended >= 1.0, "who has not heard yet would refuse it"
        await until(lambda: not any("am-wg" in one for n in pair.nodes for one in n.netns.routes()))
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    for name, other in (("n1", "n2"), ("n2", "n1")):
        ends[other].settimeout(2)
        seen = set()
        with suppress(TimeoutError):
            for _ in range(counts[name]):
                seen.add(int.from_bytes(ends[other].recv(64)[:4], "big"))
        assert len(seen) == counts[name], f"{name} lost {sorted(set(range(counts[name])) - seen)}"
    for end in ends.values():
        end.close()
