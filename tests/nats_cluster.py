"""Three real nats-servers on loopback that know each other by TLS and a secret, to be killed and cut off one by one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from chassis.bus.nats_config import Cluster, Server
from chassis.faults import Unavailable
from chassis.secret import Secret
from lab.cluster.port_forward import Inside, PortForward
from tests.natsd import NatsServer, free_port
from tests.pki import Authority

T = TypeVar("T")


async def until(what: str, holds: Callable[[], bool], seconds: float = 60) -> float:
    """Wait until it holds; returns how long that took."""
    started = time.monotonic()
    while not await asyncio.to_thread(holds):
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)
    return time.monotonic() - started


async def insist(act: Callable[[], Awaitable[T]], seconds: float = 60) -> T:
    """Do it again until it is available, as every service does."""
    async with asyncio.timeout(seconds):
        while True:
            with suppress(Unavailable):
                return await act()
            await asyncio.sleep(0.1)


class Wires:
    """A namespace for each server, and a bridge between them; what leads there from loopback is never cut."""

    def __init__(self) -> None:
        name = f"am-bus{os.getpid()}"
        self._hub = f"{name}-0"
        self.namespaces = tuple(f"{name}-{number}" for number in (1, 2, 3))
        self.hosts = ("198.51.100.1", "198.51.100.2", "198.51.100.3")

    def make(self) -> None:
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "hub", "type", "bridge")
        _ip("-n", self._hub, "link", "set", "hub", "up")
        for number, (namespace, host) in enumerate(zip(self.namespaces, self.hosts, strict=True)):
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
            peer = ("peer", "name", f"to{number}", "netns", self._hub)
            _ip("-n", namespace, "link", "add", "eth0", "type", "veth", *peer)
            _ip("-n", namespace, "address", "add", f"{host}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            _ip("-n", self._hub, "link", "set", f"to{number}", "master", "hub")
            self.join(number)

    def cut(self, number: int) -> None:
        """A server hears none of the others, and none hears it."""
        _ip("-n", self._hub, "link", "set", f"to{number}", "down")

    def join(self, number: int) -> None:
        _ip("-n", self._hub, "link", "set", f"to{number}", "up")

    def remove(self) -> None:
        for namespace in (*self.namespaces, self._hub):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True, timeout=60)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


@asynccontextmanager
async def apart(folder: Path) -> AsyncIterator[tuple[NatsCluster, Wires]]:
    """Three servers in namespaces of their own, started, with their ports on loopback as if they were here."""
    wires = Wires()
    try:
        wires.make()
        cluster = NatsCluster(folder, wires.hosts)
        async with AsyncExitStack() as stack:
            for number, namespace in enumerate(wires.namespaces):
                path = f"/run/netns/{namespace}"
                server = cluster.servers[number]
                server.within = ("nsenter", f"--net={path}", "--")
                inside = Inside(path)
                targets = ((wires.hosts[number], server.port), ("127.0.0.1", cluster.monitors[number]))
                for target in targets:
                    passed = PortForward(inside, (target,)).pass_through
                    await stack.enter_async_context(await asyncio.start_server(passed, "127.0.0.1", target[1]))
            try:
                await asyncio.gather(*(asyncio.to_thread(server.start) for server in cluster.servers))
                yield cluster, wires
            finally:
                cluster.close()
    finally:
        wires.remove()


class NatsCluster:
    """``servers[0]`` to ``servers[2]``, with the same users; ``url`` names all of them."""

    def __init__(self, folder: Path, hosts: tuple[str, ...] = ("127.0.0.1",) * 3, **more: Any) -> None:
        tls = Authority(folder / "authority").sign(folder / "tls", *dict.fromkeys((*hosts, "127.0.0.1")))
        free = [free_port() for _ in range(3 * len(hosts))]
        ports, routes, self.monitors = free[:3], free[3:6], free[6:]
        listed = tuple(f"{host}:{port}" for host, port in zip(hosts, routes, strict=True))
        secret = Secret("a secret of this test")
        first = NatsServer(folder / "s1", host=hosts[0], tls=tls, **more)
        self.servers = [first]
        for number, host in enumerate(hosts):
            at = folder / f"s{number + 1}"
            server = Server(
                store_dir=at / "store",
                host=host,
                port=ports[number],
                monitor_port=self.monitors[number],
                name=f"s{number + 1}",
                tls=tls,
                cluster=Cluster(port=routes[number], routes=listed, secret=secret),
            )
            if number:
                self.servers.append(first.beside(at, server))
            else:
                first.configure(server)
        self.url = ",".join(f"nats://127.0.0.1:{port}" for port in ports)

    def start(self) -> None:
        """All of them; returns when they have a leader for their streams."""
        for server in self.servers:
            server.start()

    async def ready(self, seconds: float = 60) -> float:
        """Wait until the servers that run agree on who leads; returns how long that took."""
        return await until("the servers have a meta leader", lambda: self.meta_leader() != "", seconds)

    def close(self) -> None:
        """Kill all."""
        for server in self.servers:
            server.close()

    def look(self, number: int, page: str) -> Any:
        """A page of a server's monitor (``jsz``, ``routez``); None when it does not answer."""
        address = f"http://127.0.0.1:{self.monitors[number]}/{page}"
        with suppress(OSError, ValueError), urllib.request.urlopen(address, timeout=2) as answer:
            return json.load(answer)
        return None

    def meta_leader(self) -> str:
        """Name of who leads the servers, as one that runs says."""
        for number, _ in enumerate(self.servers):
            said = self.look(number, "jsz")
            if said and (said.get("meta_cluster") or {}).get("leader"):
                return str(said["meta_cluster"]["leader"])
        return ""

    def streams(self, number: int) -> dict[str, Any]:
        """What a server holds, by stream: state and cluster."""
        said = self.look(number, "jsz?streams=true&config=true")
        details = (said or {}).get("account_details") or []
        return {one["name"]: one for account in details for one in account.get("stream_detail") or []}

    def leader(self, stream: str) -> str:
        """Name of the server that leads a stream, by its own word and that of most others; empty when nobody does."""
        said = Counter(
            str(found["cluster"]["leader"])
            for number, _ in enumerate(self.servers)
            if (found := self.streams(number).get(stream)) and found.get("cluster", {}).get("leader")
        )
        name, votes = said.most_common(1)[0] if said else ("", 0)
        own = self.streams(self.number(name)).get(stream, {}) if name else {}
        return name if votes >= 2 and own.get("cluster", {}).get("leader") == name else ""

    def number(self, name: str) -> int:
        """``s2`` is 1."""
        return int(name[1:]) - 1
