"""Two whole agents behind a switch that runs BIRD: what a stream of packets between their pods loses when the node mesh
goes off, and when a pool goes from a tunnel to BGP and back.

The nodes are on no common link; the switch forwards to both from the start, so what is lost a node has lost.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linux.netns import command, inside, open_netns
from proto.codec import kind_prefix, object_key
from proto.objects import KIND_OF, BGPConfiguration, BGPFilter, BGPFilterRule, BGPPeer, FelixConfiguration, IPPool, Node
from proto.subjects import OBJECTS
from proto.sync import Complete, complete_key
from tests.conftest import BusFor
from tests.netns.routing.bfd.ends import need
from tests.netns.routing.bgp.test_router_bfd import end_process
from tests.netns.routing.conftest import Mesh, Netns, Routing, ip

pytestmark = pytest.mark.privileged
PODS = {1: "10.244.1.1", 2: "10.244.2.1"}
BLOCKS = {1: "10.244.1.0/26", 2: "10.244.2.0/26"}
PERIOD = 0.005
PATIENCE = 90.0
PORT = 7
SWITCH = [
    BGPPeer(
        f"tor-n{number}", node=f"n{number}", peer_ip=ip_address(f"172.31.{number}.1"), asn=65001, allowed_local_asns=1
    )
    for number in (1, 2)
]


@pytest.fixture
def fabric() -> Iterator[tuple[Netns, Netns, Netns]]:
    """n1 and n2, each by its link ``fab0`` to the switch."""
    tag = uuid.uuid4().hex[:6]
    made = Netns(f"am-m{tag}-1"), Netns(f"am-m{tag}-2"), Netns(f"am-m{tag}-s")
    switch = made[2]
    try:
        for netns in made:
            ip("netns", "add", netns.name)
            netns.ip("link set lo up")
        for number, node in enumerate(made[:2], 1):
            node.ip(f"link add fab0 type veth peer name n{number} netns {switch.name}")
            for netns, name, last in ((node, "fab0", 2), (switch, f"n{number}", 1)):
                netns.ip(f"link set {name} up")
                netns.ip(f"addr add 172.31.{number}.{last}/24 dev {name}")
            node.ip(f"route add 172.31.{3 - number}.0/24 via 172.31.{number}.1")
            node.ip(f"addr add {PODS[number]}/32 dev lo")
            switch.ip(f"route add {BLOCKS[number]} via 172.31.{number}.2")
        subprocess.run(command(str(switch.path), "sysctl", "-qw", "net.ipv4.ip_forward=1"), check=True, timeout=20)
        yield made
    finally:
        for netns in made:
            subprocess.run(["ip", "netns", "del", netns.name], check=False, capture_output=True)


@contextmanager
def bird(netns: Netns, folder: Path) -> Iterator[None]:
    """A switch of AS 65001 that passes each node's routes to the other."""
    session = """protocol bgp node{0} {{
      local 172.31.{0}.1 as 65001; neighbor 172.31.{0}.2 as 64512; direct; connect delay time 1; connect retry time 2;
      ipv4 {{ import all; export all; next hop self; }};
    }}"""
    sessions = "\n".join(session.format(number) for number in PODS)
    (folder / "bird.conf").write_text(f"router id 192.0.2.1; protocol device {{ scan time 1; }}\n{sessions}\n")
    program = [need("bird", "bird2"), "-f", "-c", "bird.conf", "-s", "bird.ctl"]
    running = subprocess.Popen(command(str(netns.path), *program), cwd=folder, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.kill()
        running.wait(PATIENCE)


def socket_in(netns: Netns, address: str) -> socket.socket:
    descriptor = open_netns(str(netns.path))
    try:
        with inside(descriptor):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        os.close(descriptor)
    made.bind((address, PORT))
    made.setblocking(False)
    return made


class Stream:
    """Packets between the two pods, both ways, from a thread of its own."""

    def __init__(self, nodes: tuple[Netns, Netns]) -> None:
        self._pods = {number: socket_in(node, PODS[number]) for number, node in enumerate(nodes, 1)}
        self._going = True
        self.sent = 0
        self.arrived: set[tuple[int, bytes]] = set()
        """Which pod, and what it was sent."""
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        while self._going:
            for number, pod in self._pods.items():
                with suppress(OSError):  # a refused one is a lost one
                    pod.sendto(self.sent.to_bytes(4), (PODS[3 - number], PORT))
                self.sent += 1
            self._take()
            time.sleep(PERIOD)

    def _take(self) -> None:
        for number, pod in self._pods.items():
            with suppress(BlockingIOError):
                while True:
                    self.arrived.add((number, pod.recv(64)))

    async def goes_on(self, packets: int) -> None:
        wanted = self.sent + packets
        await until(lambda: self.sent >= wanted)

    def lost(self) -> int:
        """Ends it; packets that did not arrive."""
        self._going = False
        self._thread.join(PATIENCE)
        time.sleep(0.2)  # what is on the way between namespaces
        self._take()
        for pod in self._pods.values():
            pod.close()
        print(f"sent {self.sent}, arrived {len(self.arrived)}")
        return self.sent - len(self.arrived)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.05)


class Town:
    """Two nodes with their agents, and the switch between them."""

    def __init__(self, made: tuple[Netns, Netns, Netns], objects: Any, runtimes: list[Any], folder: Path) -> None:
        self.nodes, self.switch = made[:2], made[2]
        self.folder = folder
        self._objects = objects
        self._runtimes = runtimes

    async def put(self, *objects: Any) -> None:
        for one in objects:
            await self._objects.put(object_key(one), one)

    def route(self, number: int) -> str:
        """How a node reaches the other's pod."""
        return self.nodes[number - 1].ip(f"route get {PODS[3 - number]} from {PODS[number]}")

    def learnt(self, number: int) -> str:
        """A node's learnt routes."""
        return self.nodes[number - 1].ip("route show proto 185")

    def own(self, number: int) -> str:
        """Routes of the pair itself."""
        return self.nodes[number - 1].ip("route show proto 186 metric 64")

    def ended(self, peer: str) -> list[str]:
        """What became of a session, by the nodes' logs."""
        lines = [line for runtime in self._runtimes for line in runtime.lines.named("bgp-session")]
        return [line["state"] for line in lines if line["peer"] == peer]

    def logged(self, event: str) -> int:
        """Nodes that say it."""
        return sum(bool(runtime.lines.named(event)) for runtime in self._runtimes)

    def lacking(self) -> list[str]:
        """What no other way leads to now, of each node that stays in the mesh."""
        said = [one.lines.named("bgp-mesh-stays") for one in self._runtimes]
        return [lines[-1]["lacks"] if lines else "-" for lines in said]

    async def both(self, holds: Callable[[int], object]) -> None:
        await until(lambda: all(holds(number) for number in PODS))


@pytest.fixture
async def town(
    fabric: tuple[Netns, Netns, Netns], mesh: Mesh, routing: Routing, bus_for: BusFor, tmp_path: Path
) -> AsyncIterator[Town]:
    objects = (await bus_for("cluster")).bucket(OBJECTS)
    for number in PODS:
        node = Node(f"n{number}", f"uid-n{number}", addresses=(ip_address(f"172.31.{number}.2"),))
        await objects.put(object_key(node), node)
        await mesh.block(BLOCKS[number], f"n{number}")
    for kind in (BGPConfiguration, BGPFilter, BGPPeer, IPPool, Node, FelixConfiguration):
        await objects.put(complete_key(kind_prefix(KIND_OF[kind])), Complete(mesh.epochs["objects"]))
    await mesh.complete()
    try:
        runtimes = [
            await routing.start(node, f"n{number}", programs=False) for number, node in enumerate(fabric[:2], 1)
        ]
        yield Town(fabric, objects, runtimes, tmp_path)
    finally:
        for number in PODS:
            end_process(tmp_path / f"n{number}")


def pool(**more: Any) -> IPPool:
    return IPPool("pods", ip_network("10.244.0.0/16"), 26, **more)


async def test_the_mesh_goes_off_when_the_switch_carries_its_routes_and_no_packet_is_lost(town: Town) -> None:
    await town.put(pool(), BGPConfiguration("default", asn=64512))
    await town.both(lambda number: BLOCKS[3 - number] in town.learnt(number))
    stream = Stream(town.nodes)
    await stream.goes_on(100)
    await town.put(*SWITCH, BGPConfiguration("default", asn=64512, node_mesh=False))
    await until(lambda: town.logged("bgp-mesh-stays") == 2)
    await stream.goes_on(200)
    assert all(BLOCKS[3 - number] in town.learnt(number) for number in PODS), "by the mesh, that is off"
    with bird(town.switch, town.folder):
        await until(lambda: town.logged("bgp-mesh-ends") == 2)
        await stream.goes_on(200)
        assert all(BLOCKS[3 - number] in town.learnt(number) for number in PODS), "by the switch"
        assert stream.lost() == 0


@pytest.mark.slow
async def test_a_node_holds_the_mesh_for_one_that_would_keep_no_routes_without_it(town: Town) -> None:
    """The switch leads n1 to all that the mesh did, and n2 to nothing yet; nobody keeps routes over a restart."""
    nothing = BGPFilter("nothing", import_v4=(BGPFilterRule("Reject"),))
    config = BGPConfiguration("default", asn=64512, mesh_restart_seconds=0)
    await town.put(pool(), config)
    await town.both(lambda number: BLOCKS[3 - number] in town.learnt(number))
    stream = Stream(town.nodes)
    with bird(town.switch, town.folder):
        await town.put(nothing, SWITCH[0], msgspec.structs.replace(SWITCH[1], filters=("nothing",)))
        await until(lambda: all(town.ended(f"tor-n{n}/172.31.{n}.1")[-1:] == ["Established"] for n in PODS))
        await stream.goes_on(200)
        await town.put(msgspec.structs.replace(config, node_mesh=False))
        await until(lambda: town.lacking() == ["", BLOCKS[1]])
        await stream.goes_on(1000)
        assert stream.lost() == 0
        assert town.logged("bgp-mesh-ends") == 0


async def test_a_pool_goes_from_a_tunnel_to_bgp_and_back_and_no_packet_is_lost(town: Town) -> None:
    await town.put(pool(vxlan_mode="Always"))
    await town.both(lambda number: "am-vxlan" in town.own(number))
    stream = Stream(town.nodes)
    await stream.goes_on(100)
    await town.put(pool())
    await stream.goes_on(200)
    assert all("am-vxlan" in town.route(number) for number in PODS), "as long as nobody leads there"
    await town.put(*SWITCH, BGPConfiguration("default", asn=64512, node_mesh=False))
    with bird(town.switch, town.folder):
        await town.both(lambda number: not town.own(number))
        await stream.goes_on(200)
        assert all("fab0" in town.route(number) for number in PODS)
        await town.put(pool(vxlan_mode="Always"))
        await town.both(lambda number: "am-vxlan" in town.own(number))
        await stream.goes_on(200)
        assert all(BLOCKS[3 - number] in town.learnt(number) for number in PODS), "beneath the pair's own"
    assert stream.lost() == 0
