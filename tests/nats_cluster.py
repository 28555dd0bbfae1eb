"""Three real nats-servers on loopback that know each other by TLS and a secret, to be killed and cut off one by one."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from chassis.bus.nats_config import Cluster, Server
from chassis.faults import Unavailable
from chassis.secret import Secret
from tests.natsd import NatsServer
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


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on now, each another."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class NatsCluster:
    """``servers[0]`` to ``servers[2]``, with the same users; ``url`` names all of them."""

    def __init__(self, folder: Path, hosts: tuple[str, ...] = ("127.0.0.1",) * 3, **more: Any) -> None:
        tls = Authority(folder / "authority").sign(folder / "tls", *dict.fromkeys((*hosts, "127.0.0.1")))
        free = free_ports(3 * len(hosts))
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
        self.url = ",".join(f"nats://{host}:{port}" for host, port in zip(hosts, ports, strict=True))

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
        """Name of the server that leads a stream; empty when nobody does."""
        for number, _ in enumerate(self.servers):
            found = self.streams(number).get(stream)
            if found and found.get("cluster", {}).get("leader"):
                return str(found["cluster"]["leader"])
        return ""

    def number(self, name: str) -> int:
        """``s2`` is 1."""
        return int(name[1:]) - 1
