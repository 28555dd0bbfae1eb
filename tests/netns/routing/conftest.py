"""Two nodes in namespaces of their own, joined by a veth pair, and the routing service of one of them."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from chassis.bus.client import Bus
from chassis.runtime.service import Runtime
from proto import codec
from proto.addresses import Block, Claim
from proto.net import Address
from proto.objects import Owner
from proto.routes import NodeRoutes
from proto.subjects import BLOCKS, CLAIMS, ROUTES
from proto.sync import Complete, complete_key
from services.routing.app import build
from services.routing.settings import Settings
from tests.conftest import BusFor
from tests.natsd import NatsServer, runtime_of


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


class Netns:
    """A network namespace of this test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name

    def ip(self, command: str) -> str:
        return ip("-n", self.name, *command.split())

    def routes(self) -> set[str]:
        """Our routes as ``ip route`` says them, without what does not matter here."""
        found: set[str] = set()
        for family in ("-4", "-6"):
            listed = ip("-n", self.name, family, "route", "show", "proto", "186").splitlines()
            found |= {line.split(" pref ")[0].split(" error ")[0].strip().removesuffix(" dev lo") for line in listed}
        return {" ".join(line.replace(" dev lo ", " ").split()) for line in found}


@pytest.fixture
def nodes() -> Iterator[tuple[Netns, Netns]]:
    """n1 (172.30.0.11) and n2 (172.30.0.12) on one link ``fab0``."""
    tag = uuid.uuid4().hex[:6]
    made_netns = Netns(f"am-r{tag}-1"), Netns(f"am-r{tag}-2")
    made: list[str] = []
    try:
        for netns in made_netns:
            ip("netns", "add", netns.name)
            made.append(netns.name)
        made_netns[0].ip(f"link add fab0 type veth peer name fab0 netns {made_netns[1].name}")
        for number, netns in enumerate(made_netns, start=11):
            netns.ip("link set lo up")
            netns.ip("link set fab0 up")
            netns.ip(f"addr add 172.30.0.{number}/24 dev fab0")
            netns.ip(f"addr add fd00:172:30::{number}/64 dev fab0 nodad")
        yield made_netns
    finally:
        for name in made:
            for link in ("am-wg", "am-wg2"):  # wireguard-go ends with it
                subprocess.run(["ip", "-n", name, "link", "del", link], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", name], check=False)


class Mesh:
    """Writes what ipam, n2's routing and cluster would."""

    def __init__(self, ipam: Bus, n2: Bus, epochs: dict[str, str]) -> None:
        self.ipam = ipam
        self.n2 = n2
        self.epochs = epochs

    async def block(self, cidr: str, node: str) -> None:
        network = ip_network(cidr)
        await self.ipam.bucket(BLOCKS).put(codec.block_key(network), Block(network, "p", node, f"uid-{node}", 5, "n"))

    async def claim(self, address: Address, node: str, epoch: int = 9) -> None:
        value = Claim(address, Owner("shop", "StatefulSet", "db", 0), node, "u", "c", "eth0", epoch, "n")
        await self.ipam.bucket(CLAIMS).put(codec.address_segment(address), value)

    async def complete(self) -> None:
        for bucket in (BLOCKS, CLAIMS):
            await self.ipam.bucket(bucket).put(complete_key(), Complete(self.epochs[bucket.name]))

    async def announce(self, offer: NodeRoutes) -> None:
        key = codec.encode_segment(offer.node)
        await self.n2.bucket(ROUTES).put(key, offer)
        await self.n2.bucket(ROUTES).put(complete_key(key), Complete(self.epochs["routes"]))


@pytest_asyncio.fixture
async def mesh(bus_for: BusFor, buckets: dict[str, str]) -> Mesh:
    return Mesh(await bus_for("ipam"), await bus_for("routing", "n2"), buckets)


class Routing:
    """Starts the service in a namespace."""

    def __init__(self, server: NatsServer, stack: AsyncExitStack, folder: Path) -> None:
        """``folder``: of the nodes' states, one in each."""
        self._server = server
        self._stack = stack
        self._folder = folder

    async def start(
        self, netns: Netns, node: str = "n1", *, gateway: bool = False, key: str = "", **more: Any
    ) -> Runtime[Any]:
        user = "routing-cp" if gateway else f"routing-{node}"
        settings = Settings(
            nats_url=self._server.url,
            nats_seed_file=self._server.seeds / f"{user}.seed",
            nats_user=user,
            instance=f"{user}-{uuid.uuid4().hex[:6]}",
            node=key if gateway else node,
            uplinks=("fab0",),
            gateway=gateway,
            state_dir=self._folder / node,
            wireguard_sockets=self._folder / node / "sockets",
        )
        role, name = ("routing", "cp") if gateway else ("routing", node)
        runtime = await self._stack.enter_async_context(runtime_of(self._server, role, name, settings=settings))
        await build(runtime, netns.path, **more)
        return runtime


@pytest_asyncio.fixture
async def routing(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Routing]:
    async with AsyncExitStack() as stack:
        yield Routing(nats_server, stack, tmp_path)
