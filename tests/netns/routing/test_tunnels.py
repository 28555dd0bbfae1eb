"""Tunnels between real namespaces, with the kernel's VXLAN alone: laid, proved, taken, kept and repaired."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from kit.models import HOST_GW, IPIP, VXLAN
from linux.netns import enter
from proto.codec import kind_prefix, object_key
from proto.events import ModelStep, RoutesChanged, ServiceFault
from proto.objects import KIND_OF, FelixConfiguration, IPPool
from proto.routes import NodeRoutes
from proto.subjects import OBJECTS, ROUTES
from proto.sync import Complete, complete_key
from services.routing import prober
from services.routing.core.evidence import NEAR
from services.routing.probes import PORT, Probe, question, read_probe
from tests.conftest import BusFor
from tests.netns.routing.conftest import Mesh, Netns, Routing

pytestmark = pytest.mark.privileged

ALL = {model.name: model for model in (HOST_GW, VXLAN, IPIP)}
FOUR, SIX = ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")
PODS = {1: ("10.244.0.1", "fd00:10:244::1"), 2: ("10.244.0.65", "fd00:10:244::41")}


async def until(check: Callable[[], object], seconds: float = 20.0) -> None:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds, "did not happen in time"
        await asyncio.sleep(0.02)


def tunnelled(peer: int, device: str = "am-vxlan") -> set[str]:
    """Routes of node 1 or 2 to node ``peer``, over IPv4."""
    own, four, six = (
        3 - peer,
        f"10.244.0.{64 * (peer - 1)}/26",
        "fd00:10:244::40/122" if peer == 2 else "fd00:10:244::/122",
    )
    return {
        f"{four} via 172.30.0.1{peer} dev {device} src 172.30.0.1{own} metric 64 onlink",
        f"{six} via fe80::5efe:ac1e:{10 + peer:x} dev {device} src fd00:172:30::1{own} metric 64 onlink",
    }


@dataclass
class Pair:
    """Two nodes whose routing agents run, with an address of a pod each on the loopback."""

    nodes: tuple[Netns, Netns]
    mesh: Mesh
    routing: Routing
    cluster: Any
    steps: list[ModelStep] = field(default_factory=list)
    faults: list[ServiceFault] = field(default_factory=list)
    changes: list[RoutesChanged] = field(default_factory=list)

    async def pools(self, **modes: str) -> None:
        """All pools ask for this."""
        for name, cidr, size in (("four", FOUR, 26), ("six", SIX, 122)):
            pool = IPPool(name, cidr, size, **modes)  # type: ignore[arg-type]
            await self.cluster.bucket(OBJECTS).put(object_key(pool), pool)
        await self._complete(IPPool)

    async def felix(self, **fields: int) -> None:
        one = FelixConfiguration(name="default", **fields)  # type: ignore[arg-type]
        await self.cluster.bucket(OBJECTS).put(object_key(one), one)
        await self._complete(FelixConfiguration)

    async def _complete(self, kind: type) -> None:
        key = complete_key(kind_prefix(KIND_OF[kind]))
        await self.cluster.bucket(OBJECTS).put(key, Complete(self.mesh.epochs["objects"]))

    async def start(self, *numbers: int, **more: Any) -> None:
        for number in numbers or (1, 2):
            await self.routing.start(self.nodes[number - 1], f"n{number}", served=ALL, programs=False, **more)

    def taken(self, model: str) -> set[tuple[str, int]]:
        return {(step.node, step.family) for step in self.steps if (step.step, step.model) == ("taken", model)}


@pytest.fixture
def pods(nodes: tuple[Netns, Netns]) -> tuple[Netns, Netns]:
    for number, netns in enumerate(nodes, start=1):
        for address in PODS[number]:
            netns.ip(f"addr add {address}/{128 if ':' in address else 32} dev lo")
    return nodes


@pytest.fixture
async def pair(pods: tuple[Netns, Netns], mesh: Mesh, routing: Routing, bus_for: BusFor) -> Pair:
    made = Pair(pods, mesh, routing, await bus_for("cluster"))
    cli = await bus_for("cli")
    await cli.subscribe("airmesh.v1.events.routing.model.*", ModelStep, lambda _, event: made.steps.append(event))
    await cli.subscribe("airmesh.v1.events.routing.fault.*", ServiceFault, lambda _, event: made.faults.append(event))
    await cli.subscribe("airmesh.v1.events.routing.changed.*", RoutesChanged, lambda _, one: made.changes.append(one))
    for cidr, node in (
        ("10.244.0.0/26", "n1"),
        ("10.244.0.64/26", "n2"),
        ("fd00:10:244::/122", "n1"),
        ("fd00:10:244::40/122", "n2"),
    ):
        await mesh.block(cidr, node)
    await mesh.complete()
    await made.felix()
    return made


def opened(netns: Netns, address: str, port: int = 0) -> socket.socket:
    """A UDP socket of that namespace."""

    def make() -> socket.socket:
        enter(str(netns.path))
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(5)
        made.bind((address, port))
        return made

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def echoed(pods: tuple[Netns, Netns], size: int = 32) -> list[bool]:
    """Whether a packet of each family between pods is answered."""
    found = []
    for near, far in zip(PODS[1], PODS[2], strict=True):
        with opened(pods[0], near) as client, opened(pods[1], far) as server:
            client.sendto(b"x" * size, server.getsockname())
            try:
                text, sender = server.recvfrom(9000)
                server.sendto(text, sender)
                found.append(client.recv(9000) == b"x" * size)
            except TimeoutError:
                found.append(False)
    return found


def received(netns: Netns, device: str) -> int:
    """Packets that came in by a device."""
    return int(netns.ip(f"-s link show {device}").split("RX:")[1].split()[7])


async def test_vxlan_is_laid_taken_and_repaired(pair: Pair) -> None:
    """From nothing, with both families over IPv4; then somebody takes away what was laid."""
    n1, n2 = pair.nodes
    await pair.pools(vxlan_mode="Always")
    await pair.start()
    await until(lambda: n1.routes() >= tunnelled(2) and n2.routes() >= tunnelled(1))
    detail = n1.ip("-d link show am-vxlan")
    for word in (
        "vxlan id 4096 local 172.30.0.11",
        "dstport 4789",
        "nolearning",
        "df set",
        "mtu 1450",
        "02:61:ac:1e:00:0b",
    ):
        assert word in detail
    assert "alias airmesh-tunnel/1 vxlan 172.30.0.11 4789 4096" in detail
    assert await asyncio.to_thread(echoed, pair.nodes) == [True, True]
    assert received(n2, "am-vxlan") > 0
    losses: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("neigh del 172.30.0.12 dev am-vxlan", lambda: "172.30.0.12" not in n1.ip("neigh show dev am-vxlan")),
        ("link set am-vxlan mtu 1300", lambda: "mtu 1300" in n1.ip("link show am-vxlan")),
        ("link del am-vxlan", lambda: not n1.routes() & tunnelled(2)),
    )
    for command, gone in losses:
        pair.changes.clear()
        n1.ip(command)
        assert gone()
        await until(lambda gone=gone: not gone() and n1.routes() >= tunnelled(2))  # type: ignore[misc]
        assert await asyncio.to_thread(echoed, pair.nodes) == [True, True]
        await until(lambda: any(change.node == "n1" and change.drift for change in pair.changes))


async def test_a_pool_that_changes_its_model_loses_no_packet(pair: Pair) -> None:
    """host-gw, VXLAN and back: the new way is proved first, and packets flow through it all."""
    n1, n2 = pair.nodes
    await pair.pools()
    await pair.start()
    plain = "10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64"
    await until(lambda: plain in n1.routes() and len(n2.routes()) > 3)
    stop, lost = asyncio.Event(), []

    def stream(near: str, far: str) -> int:
        sent = 0
        with opened(pair.nodes[0], near) as client, opened(pair.nodes[1], far) as server:
            while not stop.is_set():
                sent += 1
                client.sendto(sent.to_bytes(4, "big"), server.getsockname())
                try:
                    if int.from_bytes(server.recv(64), "big") != sent:
                        lost.append(sent)
                except TimeoutError:
                    lost.append(sent)
                time.sleep(0.002)
        return sent

    flows = [
        asyncio.create_task(asyncio.to_thread(stream, near, far)) for near, far in zip(PODS[1], PODS[2], strict=True)
    ]
    await pair.pools(vxlan_mode="Always")
    await until(lambda: n1.routes() >= tunnelled(2) and n2.routes() >= tunnelled(1))
    await until(lambda: pair.taken("vxlan") == {("n1", 4), ("n1", 6), ("n2", 4), ("n2", 6)})
    order = [step.step for step in pair.steps if (step.node, step.family, step.model) == ("n1", 4, "vxlan")]
    assert order[-2:] == ["proved", "taken"]
    await pair.pools()
    await until(lambda: plain in n1.routes() and not n1.routes() & tunnelled(2) and not n2.routes() & tunnelled(1))
    assert "am-vxlan" in n1.ip("link show am-vxlan"), "it stays for those that have not heard"
    stop.set()
    assert min(await asyncio.gather(*flows)) > 50
    assert lost == []


async def test_the_old_way_stays_until_the_new_one_is_proved(pair: Pair) -> None:
    """The other node cannot be reached by VXLAN: what it waits for is told, and packets go on."""
    n1, n2 = pair.nodes
    await pair.pools()
    await pair.start()
    plain = "10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64"
    await until(lambda: plain in n1.routes() and len(n2.routes()) > 3)
    n2.ip("link add somebodys type vxlan id 4096 dstport 4789 local 172.30.0.12")
    n2.ip("link set somebodys up")
    await pair.pools(vxlan_mode="Always")
    await until(
        lambda: any(
            "VNI 4096 at UDP port 4789 is that of this node's device somebodys" in one.fault for one in pair.faults
        )
    )
    await until(lambda: any((step.node, step.model, step.step) == ("n1", "vxlan", "waits") for step in pair.steps))
    assert plain in n1.routes()
    assert await asyncio.to_thread(echoed, pair.nodes) == [True, True]
    n2.ip("link del somebodys")
    await until(lambda: n1.routes() >= tunnelled(2) and n2.routes() >= tunnelled(1))


async def test_both_families_over_ipv6(pair: Pair) -> None:
    n1, n2 = pair.nodes
    for number, netns in enumerate(pair.nodes, start=1):
        netns.ip(f"addr del 172.30.0.1{number}/24 dev fab0")
    await pair.pools(vxlan_mode="Always")
    await pair.start()
    await until(lambda: "dev am-vxlan6" in str(n1.routes()) and "dev am-vxlan6" in str(n2.routes()))
    assert any(route.startswith("10.244.0.64/26 via inet6 fe80::") for route in n1.routes())
    assert await asyncio.to_thread(echoed, pair.nodes) == [True, True]
    assert received(n2, "am-vxlan6") > 0
    await until(lambda: {step.family for step in pair.steps if step.step == "taken"} == {4, 6})


def filtered(netns: Netns, rule: str) -> None:
    """Drops what comes in and matches."""
    for command in (
        "add table inet t",
        "add chain inet t in { type filter hook prerouting priority -300 ; }",
        f"add rule inet t in {rule} drop",
    ):
        subprocess.run(["nft", command], check=True, preexec_fn=lambda: enter(str(netns.path)))


async def test_a_way_that_stops_answering_is_given_up_for_the_next(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One subnet, and no longer one layer-2 network: what was taken by the addresses alone is measured."""
    monkeypatch.setattr(prober, "SOON", 0.1)
    monkeypatch.setattr(prober, "ANSWERED_WITHIN", 0.5)
    n1, n2 = pair.nodes
    await pair.pools(vxlan_mode="CrossSubnet")
    await pair.start()
    await until(lambda: "10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64" in n1.routes() and len(n2.routes()) > 3)
    filtered(n2, f"iifname fab0 udp dport {PORT}")
    await until(lambda: tunnelled(2) <= n1.routes() and tunnelled(1) <= n2.routes())
    await until(lambda: any(step.step == "given-up" for step in pair.steps))  # it is said after the routes are there
    given = [step for step in pair.steps if step.step == "given-up"]
    assert {step.model for step in given} == {"host-gw"}
    assert await asyncio.to_thread(echoed, pair.nodes) == [True, True]


async def test_the_largest_packet_of_the_path_is_that_of_the_routes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both uplinks take 1500 bytes, and something between the nodes no outer packet over 1400."""
    monkeypatch.setattr(prober, "ANSWERED_WITHIN", 0.4)
    monkeypatch.setattr(prober, "SEEKING", 0.02)
    monkeypatch.setattr(prober, "LARGE", 0.2)
    monkeypatch.setattr(prober, "FROM_TOP", 2.0)
    n1, n2 = pair.nodes
    for netns in pair.nodes:
        filtered(netns, "iifname fab0 udp dport 4789 ip length > 1400")
    await pair.pools()
    await pair.start()
    await until(lambda: len(n1.routes()) > 3 and len(n2.routes()) > 3)
    await pair.pools(vxlan_mode="Always")
    await until(lambda: any("via 172.30.0.12 dev am-vxlan" in route for route in n1.routes()), 40.0)

    def found() -> int:
        (route,) = [one for one in n1.routes() if one.startswith("10.244.0.64/26")]
        return int([*route.split("mtu lock "), "0"][1].split()[0])

    await until(lambda: 1350 - NEAR <= found() <= 1350, 60.0)
    assert await asyncio.to_thread(echoed, pair.nodes, found() - 48) == [True, True]


async def test_nothing_is_sent_to_a_node_that_takes_no_packets_yet(pair: Pair) -> None:
    """It has the device, and the datapath's programs are not on it."""
    n1, n2 = pair.nodes
    await pair.pools(vxlan_mode="Always")
    await pair.start(1)
    await pair.routing.start(n2, "n2", served=ALL, programs=True)
    await until(lambda: n2.routes() >= tunnelled(1))
    assert "am-vxlan" in n2.ip("link show am-vxlan")
    routes = await pair.mesh.n2.bucket(ROUTES).list(NodeRoutes)
    assert routes["n2"].value.models == ("host-gw",)
    assert not n1.routes() & tunnelled(2)


async def test_only_nodes_of_the_mesh_are_answered(pair: Pair) -> None:
    n1, n2 = pair.nodes
    n2.ip("addr add 172.30.0.66/24 dev fab0")
    await pair.pools(vxlan_mode="Always")
    await pair.start(1)
    await until(lambda: "am-vxlan" in n1.ip("link show"))
    await pair.mesh.announce(NodeRoutes("n2", (ip_address("172.30.0.12"),), models=("host-gw", "vxlan")))

    def asked(address: str) -> bool:
        with opened(n2, address, PORT) as probe:
            probe.settimeout(0.5)
            probe.sendto(question(7, 100, 4), ("172.30.0.11", PORT))
            try:
                return read_probe(probe.recv(100), 4) == Probe(True, 7, 100)
            except (TimeoutError, ConnectionRefusedError):
                return False

    deadline = time.monotonic() + 20
    while not await asyncio.to_thread(asked, "172.30.0.12"):
        assert time.monotonic() < deadline
    assert not await asyncio.to_thread(asked, "172.30.0.66")


async def test_a_gateway_is_answered_by_the_tunnel(pair: Pair) -> None:
    """A machine that is no node: what it sends to a pod, and the pod to it, goes by VXLAN."""
    n1, n2 = pair.nodes
    await pair.pools(vxlan_mode="Always")
    await pair.start(2)
    await pair.routing.start(n1, gateway=True, served=ALL, key="cp")
    await until(lambda: tunnelled(2) <= n1.routes())
    routes = pair.mesh.n2.bucket(ROUTES)
    deadline = time.monotonic() + 20
    while (found := (await routes.list(NodeRoutes)).get("cp")) is None or "vxlan" not in found.value.models:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert (found.value.gateway, found.value.prefixes) == (True, ())
    await until(lambda: "172.30.0.11 lladdr 02:61:ac:1e:00:0b" in n2.ip("neigh show dev am-vxlan"))
    with opened(n1, "172.30.0.11") as client, opened(n2, PODS[2][0]) as server:
        client.sendto(b"hook", server.getsockname())
        assert await asyncio.to_thread(server.recv, 64) == b"hook"
    assert received(n2, "am-vxlan") > 0


async def test_cross_subnet_goes_by_host_gw_where_the_nodes_share_a_link(pair: Pair) -> None:
    n1, n2 = pair.nodes
    await pair.pools(vxlan_mode="CrossSubnet")
    await pair.start()
    await until(lambda: "10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64" in n1.routes())
    assert not n2.routes() & tunnelled(1)


async def test_cross_subnet_goes_by_the_tunnel_where_they_do_not(pair: Pair) -> None:
    n1, n2 = pair.nodes
    for netns, own in ((n1, 11), (n2, 12)):
        netns.ip("addr flush dev fab0")
        netns.ip(f"addr add 172.30.{own}.1/24 dev fab0")
        netns.ip(f"addr add fd00:172:{own}::1/64 dev fab0 nodad")
    for netns, other in ((n1, 12), (n2, 11)):
        netns.ip(f"route add 172.30.{other}.0/24 dev fab0")
        netns.ip(f"route add fd00:172:{other}::/64 dev fab0")
    await pair.pools(vxlan_mode="CrossSubnet")
    await pair.start()
    await until(lambda: "via 172.30.12.1 dev am-vxlan src 172.30.11.1" in str(n1.routes()))
    await until(lambda: "via 172.30.11.1 dev am-vxlan" in str(n2.routes()))
    assert await asyncio.to_thread(echoed, pair.nodes) == [True, True]


async def test_an_agent_without_memory_knows_what_it_laid_and_takes_it_away(pair: Pair, tmp_path: Path) -> None:
    n1, _ = pair.nodes
    await pair.pools(vxlan_mode="Always")
    await pair.start()
    await until(lambda: n1.routes() >= tunnelled(2))
    index = n1.ip("link show am-vxlan").split(":")[0]
    await pair.start(1)
    await asyncio.sleep(0.5)
    assert n1.ip("link show am-vxlan").split(":")[0] == index
    assert n1.routes() >= tunnelled(2)
    ran = subprocess.run(
        [sys.executable, "-m", "services.routing.remove", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: enter(str(n1.path)),
    )
    assert ran.returncode == 0, ran.stderr
    assert ": 0 routes" not in ran.stdout
    assert "routes, next hops and devices taken away" in ran.stdout
