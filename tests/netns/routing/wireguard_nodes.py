"""Nodes with WireGuard in namespaces of their own: the service's own passes, and routes as the planner makes them.

A node's "pod" is an address of its block on the loopback. What the fabric carries is captured at one end of it.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TypeVar

from kit.tunnels import next_hop
from linux.netlink import Netlink
from linux.netns import enter
from linux.wireguard import Device
from proto.addresses import Block
from proto.net import Address, Network
from proto.routes import NodeRoutes
from services.routing.core.models.wireguard import prohibited
from services.routing.core.wireguard import Known, WireguardState, Wish
from services.routing.devices import Devices as TunnelDevices
from services.routing.wireguard import Wireguard
from services.routing.wireguard_device import Devices
from services.routing.wireguard_keys import KeyFile
from tests.netns.routing.conftest import Netns

T = TypeVar("T")
POOLS: tuple[Network, ...] = (ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48"))
PORTS = (51820, 51821)
KEYS = "wireguard/keys.json"


@dataclass
class Node:
    """One node; ``number`` is in its name and its blocks."""

    netns: Netns
    number: int
    folder: Path
    drain: float = 0.3
    prohibits: bool = True
    base: int = 0
    """What is between the number and the last part of its address."""
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    agent: Wireguard | None = None
    netlink: Netlink | None = None
    tunnels: TunnelDevices | None = None
    state: WireguardState = field(default_factory=WireguardState)

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def underlay(self) -> tuple[Address, ...]:
        last = self.base + self.number
        return ip_address(f"172.30.0.{last}"), ip_address(f"fd00:172:30::{last}")

    @property
    def blocks(self) -> tuple[Network, ...]:
        return ip_network(f"10.244.{self.number}.0/26"), ip_network(f"fd00:10:244:{self.number}::/122")

    @property
    def pods(self) -> tuple[Address, ...]:
        """Of each family one."""
        return self.blocks[0][1], self.blocks[1][1]

    def inside(self, work: Callable[[], T]) -> T:
        """In the thread that is in the namespace."""
        return self.thread.submit(work).result(timeout=30)

    def lay(self) -> None:
        """What a node has before its agent starts: its pods' addresses, and the refusal beneath all routes."""
        self.inside(lambda: enter(str(self.netns.path)))
        for pod in self.pods:
            self.netns.ip(f"addr add {pod}/{pod.max_prefixlen} dev lo")
        for cidr in prohibited(POOLS, (), frozenset((4, 6))) if self.prohibits else ():
            self.netns.ip(f"route add prohibit {cidr} proto 186 metric 4096")

    def start(self) -> None:
        """Its agent."""

        def begin() -> None:
            self.netlink = Netlink()
            self.tunnels = TunnelDevices(Path("/proc/sys"), programs=False)
            devices = Devices(self.netlink, self.tunnels, self.folder / "sockets")
            self.agent = Wireguard(KeyFile(self.folder), devices, drain=self.drain)

        self.inside(begin)

    def kill(self) -> None:
        """Its agent, which leaves all there is."""
        if self.netlink is not None and self.tunnels is not None:
            self.inside(self.netlink.close)
            self.inside(self.tunnels.close)
        self.agent = self.netlink = None

    @property
    def routes(self) -> NodeRoutes:
        """What it tells the others."""
        return NodeRoutes(self.name, self.underlay, self.blocks, ("wireguard",), 1500, self.state.mine)

    def read(self, slot: int = 0) -> Device | None:
        """The device, as it is."""

        def look() -> Device | None:
            with Netlink() as netlink:
                return Devices(netlink, None, self.folder / "sockets").read(slot)

        return self.inside(look)

    def links(self) -> dict[str, int]:
        """Our devices and their indices."""
        lines = self.netns.ip("-o link show").splitlines()
        found = {line.split(": ")[1]: int(line.split(": ")[0]) for line in lines}
        return {name: index for name, index in found.items() if name.startswith("am-wg")}

    def taken(self, others: list[Node]) -> dict[str, tuple[int, ...]]:
        """Interfaces of the routes to each node."""
        links = self.links()
        found: dict[str, tuple[int, ...]] = {}
        for other in others:
            listed = "".join(self.netns.ip(f"route show {cidr} proto 186") for cidr in other.blocks)
            found[other.name] = tuple(index for name, index in links.items() if f" dev {name} " in listed)
        return found

    def apply(self, nodes: list[Node]) -> WireguardState:
        """One pass of the agent, then the routes that follow from it."""
        assert self.agent is not None
        others = [node for node in nodes if node is not self]
        known = Known(
            me=self.name,
            routes={node.name: node.routes for node in nodes},
            blocks={cidr: Block(cidr, "p", node.name, "u", 5, "n") for node in nodes for cidr in node.blocks},
            underlay={node.name: node.underlay for node in others},
            families=frozenset((4, 6)),
            complete=True,
            reported=frozenset(node.name for node in nodes),
        )
        wish = Wish(known=known, port=PORTS[0], uplink_mtu=1500, local=self.underlay, taken=self.taken(others))
        agent = self.agent
        self.state = self.inside(lambda: agent.run(wish, now=time.time(), clock=time.monotonic()))
        names = {index: name for name, index in self.links().items()}
        for other in others:
            slot = self.state.slots.get(other.name)
            if slot is None:
                continue
            device = names[self.state.links[slot]]
            for cidr in other.blocks:
                via = next_hop(self.state.outer[other.name], cidr.version)
                source = next(address for address in self.underlay if address.version == cidr.version)
                words = f"via {via} dev {device} onlink proto 186 metric 64 src {source}"
                if device not in self.netns.ip(f"route show {cidr} proto 186"):
                    self.netns.ip(f"route replace {cidr} {words}")
        return self.state

    def socket(self, family: int = 4, address: Address | None = None) -> socket.socket:
        """A UDP socket at its pod's address, or another of its own."""
        own = address or next(pod for pod in self.pods if pod.version == family)

        def made() -> socket.socket:
            kind = socket.AF_INET if own.version == 4 else socket.AF_INET6
            opened = socket.socket(kind, socket.SOCK_DGRAM)
            opened.settimeout(10)
            opened.bind((str(own), 0))
            return opened

        return self.inside(made)

    def end(self) -> None:
        """Agent, wireguard-go and thread."""
        self.kill()
        for name in self.links():
            with suppress(AssertionError):
                self.netns.ip(f"link del {name}")
        self.thread.shutdown()


def settle(nodes: list[Node], done: Callable[[], object], seconds: float = 30.0) -> None:
    """Passes of every agent that runs until something is true."""
    began = time.monotonic()
    while True:
        for node in nodes:
            if node.agent is not None:
                node.apply(nodes)
        if done():
            return
        assert time.monotonic() - began < seconds, [(node.name, node.state) for node in nodes]
        time.sleep(0.02)


def proved(*nodes: Node) -> bool:
    """Whether each has had a handshake with each."""
    return all(node.state.proved >= {other.name for other in nodes if other is not node} for node in nodes)


def echo(near: Node, far: Node, family: int = 4) -> None:
    """A packet from pod to pod, and its answer."""
    with near.socket(family) as client, far.socket(family) as server:
        client.sendto(b"breath", server.getsockname())
        text, peer = server.recvfrom(64)
        assert peer[0] == client.getsockname()[0]
        server.sendto(text, peer)
        assert client.recv(64) == b"breath"


class Capture:
    """What one end of the fabric carries, both ways."""

    def __init__(self, node: Node) -> None:
        def opened() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # of no interface yet: it takes nothing
            made.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
            made.bind(("fab0", 3))
            made.setblocking(False)
            return made

        self._socket = node.inside(opened)

    def frames(self) -> Iterator[bytes]:
        """Those since the last time."""
        with suppress(BlockingIOError):
            while True:
                yield self._socket.recv(65536)

    def close(self) -> None:
        self._socket.close()


def clear(frame: bytes, text: bytes) -> bool:
    """Whether a frame shows a pod's address outside of WireGuard, or a text that pods send."""
    packet = frame[14:]
    four = packet[:1] and packet[0] >> 4 == 4
    addresses = (packet[12:16], packet[16:20]) if four else (packet[8:24], packet[24:40])
    inside = [
        ip_address(raw) in cidr for raw in addresses if len(raw) in (4, 16) for cidr in POOLS
        if cidr.version == (4 if four else 6)
    ]  # fmt: skip
    return any(inside) or text in frame


def kinds(frames: list[bytes]) -> list[int]:
    """Types of the messages of WireGuard among frames: 1 begins a handshake, 2 answers it, 4 carries a packet."""
    found = []
    for frame in frames:
        packet = frame[14:]
        start = 20 if packet[0] >> 4 == 4 else 40
        protocol = packet[9] if start == 20 else packet[6]
        port = int.from_bytes(packet[start + 2 : start + 4], "big")
        if protocol == 17 and port in PORTS and packet[start + 9 : start + 12] == bytes(3):
            found.append(packet[start + 8])
    return found


def wireguard_frames(frames: list[bytes]) -> int:
    """How many frames carry a packet."""
    return kinds(frames).count(4)


def process_of(node: Node, slot: int = 0) -> int:
    """Process id of wireguard-go of a node's slot, by the namespace that it is in."""
    name = "am-wg" if slot == 0 else "am-wg2"
    listed = subprocess.run(["ip", "netns", "pids", node.netns.name], check=True, capture_output=True, text=True).stdout
    for pid in map(int, listed.split()):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"wireguard-go") and words[1] == name.encode():
                return pid
    raise AssertionError(f"{node.name} has no wireguard-go for {name}")
