"""Two machines by the real programs: a node with pods, and a gateway of the control plane. Devices and routes are made
by hand, as ``routing`` makes them.

The gateway's machine stands for two: as the API server, in its own name, and as a node n2 whose pod's address is one of
its own. It has its own agent, in gateway mode, and reaches the node's bus through a thread.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from chassis.bus.client import Bus
from kit.tunnels import DEVICES, Tunnel, next_hop, tunnel_alias, vtep_mac
from proto.addresses import Endpoint
from proto.codec import kind_prefix
from proto.flow import DropReason
from proto.net import Address
from proto.objects import KIND_OF, EndpointSlice, FelixConfiguration, SliceEndpoint
from proto.policy import Direction
from proto.routes import NodeRoutes
from proto.subjects import ENDPOINTS, OBJECTS, ROUTES
from proto.sync import Complete, Epoch, complete_key
from services.dataplane.core.datapath.layout import AddressKey, ConfigFlag
from services.dataplane.datapath.pins import opened_maps
from services.dataplane.datapath.tables import Tables
from tests.bpf.world import bpffs, inside, run
from tests.natsd import bus_of, endpoint_at
from tests.netns.dataplane.mesh import CACHE, REPOSITORY, Listener, Mesh, RunningPod, dial, resident, wait_for

pytestmark = pytest.mark.privileged

NODE, FAR, SERVER = (ip_address(f"172.30.0.{last}") for last in (11, 12, 1))
FAR_POD, FAR_POD6 = ip_address("10.244.77.1"), ip_address("fd00:10:244:77::1")
BLOCKS = ("10.244.77.0/26", "fd00:10:244:77::/122")
IDENTITY = 2001
VXLAN, IPIP = "vxlan", "ipip"


@dataclass
class Machine:
    """One end of the pair."""

    netns: str
    local: Address
    pins: Path

    def ip(self, command: str) -> None:
        run("ip", "-n", self.netns, *command.split())

    def make(self, model: str) -> int:
        """The device of a model, as ``routing`` makes it; its index."""
        name = DEVICES[model][4]
        mark = Tunnel(
            model=model, local=self.local, port=4789 if model == VXLAN else 0, vni=4096 if model == VXLAN else 0
        )
        if model == VXLAN:
            mac = vtep_mac(self.local).hex(":")
            self.ip(
                f"link add {name} address {mac} type vxlan id 4096 dstport 4789 local {self.local} nolearning df set"
            )
            self.ip(f"link set {name} mtu 1450 up")
        else:
            self.ip(f"link add {name} mtu 1480 type veth peer name {name}-p mtu 1480")
            self.ip(f"link set {name}-p arp off up")
            self.ip(f"link set {name} arp off up")
        self.ip(f"addr add 169.254.97.109/32 dev {name} scope host")
        for switch, value in ((f"net.ipv4.conf.{name}.rp_filter", 2), (f"net.ipv4.conf.{name}.forwarding", 1)):
            run("nsenter", f"--net=/run/netns/{self.netns}", "sysctl", "-qw", f"{switch}={value}")
        run("ip", "-n", self.netns, "link", "set", name, "alias", tunnel_alias(mark))
        with inside(self.netns):
            return socket.if_nametoindex(name)

    def lead(self, model: str, cidr: str, peer: Address, source: str = "") -> None:
        """The route to what is behind a peer, and what the device must know of it."""
        name, family = DEVICES[model][4], ip_network(cidr).version
        hop = next_hop(peer, family)
        if model == VXLAN:
            mac = vtep_mac(peer).hex(":")
            self.ip(f"neigh replace {hop} lladdr {mac} dev {name} nud permanent")
            run(
                "nsenter",
                f"--net=/run/netns/{self.netns}",
                "bridge",
                "fdb",
                "replace",
                mac,
                "dev",
                name,
                "dst",
                str(peer),
            )
        six = "-6 " if family == 6 else ""
        src = f"src {source}" if source else ""
        self.ip(f"{six}route replace {cidr} via {hop} dev {name} onlink proto 186 metric 64 {src}")

    def names(self) -> set[str]:
        """Names under which programs are kept."""
        return {path.name for path in (self.pins / "v2" / "links").glob("am-*")}


def forward(netns: str, port: int) -> Callable[[], None]:
    """The bus of this thread's namespace at the same port of another's loopback; what ends it."""
    with inside(netns):
        listening = socket.create_server(("127.0.0.1", port))

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near = listening.accept()[0]
                far = socket.create_connection(("127.0.0.1", port))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()

    def end() -> None:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()

    return end


def say(node: Mesh, role: str, name: str, work: Callable[[Bus], object]) -> None:
    async def go() -> None:
        async with bus_of(node.nats, role, name) as bus:
            await work(bus)  # type: ignore[misc]

    asyncio.run(go())


def announce(node: Mesh, name: str, *underlay: Address, prefixes: tuple[str, ...] = ()) -> None:
    async def speak(bus: Bus) -> None:
        kv = bus.bucket(ROUTES)
        await kv.put(name, NodeRoutes(node=name, underlay=underlay, prefixes=tuple(map(ip_network, prefixes))))
        epoch = await kv.get("_epoch", Epoch)
        assert epoch is not None
        await kv.put(complete_key(name), Complete(epoch=epoch.value.epoch))

    say(node, "routing", name, speak)


def publish_pod(node: Mesh) -> None:
    """A pod of n2."""

    async def speak(bus: Bus) -> None:
        kv = bus.bucket(ENDPOINTS)
        for address in (FAR_POD, FAR_POD6):
            one = Endpoint("n2", address, "shop", "far", "uid-far", IDENTITY, b"\2\0\0\0\0\1", 3, 1)
            await kv.put(endpoint_at("n2", address), one)
        epoch = await kv.get("_epoch", Epoch)
        assert epoch is not None
        await kv.put(complete_key("n2"), Complete(epoch=epoch.value.epoch))

    node.as_node("n2", speak)


@dataclass
class Pair:
    node: Mesh
    near: Machine
    far: Machine
    pod: RunningPod
    tables: Tables

    def restart(self) -> None:
        self.node.kill("dataplane")
        self.node.start_dataplane()

    def device_of(self, address: Address) -> int:
        """By which the node's pods reach an address of another node."""
        peer = self.tables.tunnel_peers.get(AddressKey(address=address))
        return -1 if peer is None else peer.ifindex


@pytest.fixture(scope="module")
def pair(node: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("gateway")
    far = Machine(f"{node.netns}-f", FAR, folder / "bpffs")
    near = Machine(node.netns, NODE, node.pins)
    with ExitStack() as stack:
        stack.enter_context(bpffs(far.pins))
        far.ip(f"addr add {FAR}/24 dev fab0")
        for address in (FAR_POD, FAR_POD6):
            far.ip(f"addr add {address} dev lo{' nodad' if address.version == 6 else ''}")
        stack.callback(forward(far.netns, node.nats.port))
        for cidr in BLOCKS:
            node.hold(cidr, "n2")
        node.put(EndpointSlice("default", "kubernetes", "kubernetes", (SliceEndpoint(addresses=(SERVER,)),)))
        resident(node, n2=(IDENTITY,))
        publish_pod(node)
        pod = node.pod("near")
        announce(node, "n1", NODE)
        announce(node, "n2", FAR, prefixes=BLOCKS)
        environment = {
            **os.environ, **node.nats.environment("dataplane-cp"), "AIRMESH_GATEWAY": "true", "AIRMESH_NODE": "cp",
            "AIRMESH_UPLINKS": "fab0", "AIRMESH_STATE_DIR": str(folder / "state"), "AIRMESH_PIN_ROOT": str(far.pins),
            "AIRMESH_BPF_CACHE": str(CACHE), "AIRMESH_CNI_SOCKET": str(folder / "cni.sock"),
            "AIRMESH_CNI_CONF_DIR": str(folder / "cni"),
        }  # fmt: skip
        log = stack.enter_context((folder / "log").open("wb"))
        agent = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{far.netns}", sys.executable, "-m", "services.dataplane"],
            cwd=REPOSITORY, env=environment, stdout=log, stderr=log,
        )  # fmt: skip

        def end() -> None:
            agent.send_signal(signal.SIGKILL)
            agent.wait(15)

        stack.callback(end)
        tables = Tables(opened_maps(node.pins))
        stack.callback(tables.close)
        try:
            yield Pair(node, near, far, pod, tables)
        finally:
            print((folder / "log").read_text()[-3000:], node.tail("dataplane"))
        assert not (folder / "cni").exists(), "no runtime's configuration"
        assert not (folder / "cni.sock").exists()


def carry(pair: Pair, model: str) -> None:
    """Both ends have the device, ready, and lead by it."""
    devices = pair.near.make(model), pair.far.make(model)
    name = DEVICES[model][4]
    for machine in (pair.near, pair.far):
        wait_for(f"programs on {name}", lambda one=machine: name in one.names(), 60)  # type: ignore[misc]
    pod4, pod6 = (f"{address}/{ip_address(address).max_prefixlen}" for address in pair.pod.addresses)
    pair.near.lead(model, BLOCKS[0], FAR)
    pair.far.lead(model, pod4, NODE, str(FAR_POD))
    if model == VXLAN:
        pair.near.lead(model, BLOCKS[1], FAR)
        pair.far.lead(model, pod6, NODE)
    wait_for("the peer by the device", lambda: pair.device_of(FAR) == devices[0])


def outer_packets(pair: Pair, act: Callable[[], object]) -> tuple[object, dict[str, int]]:
    """What an act returns, and how many packets of each kind were on the wire meanwhile."""
    counts = {VXLAN: 0, IPIP: 0, "plain": 0}
    with inside(pair.far.netns), closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))) as wire:
        wire.bind(("fab0", 3))
        wire.setblocking(False)
        with inside(pair.near.netns):
            found = act()
        with suppress(BlockingIOError):
            while True:
                frame = wire.recv(2048)
                if frame[12:14] == b"\x08\x00" and frame[14 + 9] == 17 and frame[36:38] == (4789).to_bytes(2, "big"):
                    counts[VXLAN] += 1
                elif frame[12:14] == b"\x08\x00" and frame[14 + 9] == 4:
                    counts[IPIP] += 1
                elif frame[26:28] == b"\x0a\xf4" or frame[30:32] == b"\x0a\xf4":
                    counts["plain"] += 1
    return found, counts


@pytest.mark.parametrize("model", [VXLAN, IPIP])
def test_pods_reach_each_other_by_the_programs_both_ways(pair: Pair, model: str) -> None:
    carry(pair, model)
    own, there = Listener(pair.pod.netns, 81), Listener(pair.far.netns, 82)
    try:
        out, counts = outer_packets(pair, lambda: dial(pair.pod.netns, str(FAR_POD), 82, there, 5))
        assert out == pair.pod.four
        assert counts[model] >= 5
        assert counts["plain"] == 0
        back, counts = outer_packets(pair, lambda: dial(pair.far.netns, pair.pod.four, 81, own, 5))
        assert back == str(FAR_POD)
        assert counts[model] >= 5
        assert counts["plain"] == 0
        if model == VXLAN:
            assert dial(pair.pod.netns, str(FAR_POD6), 82, there, 5) == pair.pod.six
            assert dial(pair.far.netns, pair.pod.six, 81, own, 5) == str(FAR_POD6)
    finally:
        own.close()
        there.close()


def test_an_agent_without_memory_finds_all_again_and_nothing_stops_meanwhile(pair: Pair) -> None:
    programs = {name: (pair.near.pins / "v2" / "links" / name).stat().st_ino for name in pair.near.names()}
    assert programs.keys() == {"am-vxlan", "am-ipip"}
    there = Listener(pair.far.netns, 83)
    before = [table.items() for table in (pair.tables.tunnels, pair.tables.tunnel_peers, pair.tables.tunnel_sources)]
    assert len(before[0]) == 2
    try:
        pair.node.nats.kill()
        found = sum(line["event"] == "endpoints-found" for line in pair.node.log("dataplane"))
        pair.restart()
        deadline = time.monotonic() + 60
        while sum(line["event"] == "endpoints-found" for line in pair.node.log("dataplane")) == found:
            assert dial(pair.pod.netns, str(FAR_POD), 83, there, 5) == pair.pod.four
            assert time.monotonic() < deadline
        for _ in range(5):
            assert dial(pair.pod.netns, str(FAR_POD), 83, there, 5) == pair.pod.four
        tables = (pair.tables.tunnels, pair.tables.tunnel_peers, pair.tables.tunnel_sources)
        assert [table.items() for table in tables] == before
    finally:
        pair.node.nats.start()
        there.close()


def test_encryption_that_is_asked_for_closes_the_way_in_the_clear_and_stays(pair: Pair) -> None:
    """Plain routes that stand are not cut; what is new is."""
    asked = FelixConfiguration(name="default", wireguard_enabled=True)
    pair.node.put(asked)

    def flags() -> ConfigFlag:
        return ConfigFlag(pair.tables.config.flags)

    pair.near.ip(f"route del {BLOCKS[0]} proto 186")
    wait_for("the flag", lambda: ConfigFlag.ENCRYPT4 in flags(), 60)
    assert ConfigFlag.ENCRYPT6 not in flags()
    pair.node.delete(asked)  # the cluster has no such kind: nobody says that this is all there is
    pair.restart()
    wait_for("the agent", lambda: pair.node.log("dataplane")[-1]["event"] and ConfigFlag.ENCRYPT4 in flags(), 60)
    prefix = kind_prefix(KIND_OF[FelixConfiguration])

    async def all_is_known(bus: Bus) -> None:
        kv = bus.bucket(OBJECTS)
        epoch = await kv.get("_epoch", Epoch)
        assert epoch is not None
        await kv.put(complete_key(prefix), Complete(epoch=epoch.value.epoch))

    pair.node.as_cluster(all_is_known)
    wait_for("the flag gone", lambda: ConfigFlag.ENCRYPT4 not in flags(), 60)


def test_what_hangs_goes_with_its_device(pair: Pair) -> None:
    for name in ("am-vxlan", "am-ipip"):
        pair.near.ip(f"link del {name}")
    wait_for("the pins gone", lambda: pair.near.names() == set(), 60)
    wait_for("the maps", lambda: not pair.tables.tunnels.items() and not pair.tables.tunnel_ends.items())
    wait_for("the flag", lambda: not ConfigFlag(pair.tables.config.flags) & ConfigFlag.TUNNELS)
    assert pair.device_of(FAR) == 0, "the node is still known"
    again = pair.near.make(VXLAN)
    wait_for("programs again", lambda: pair.near.names() == {"am-vxlan"}, 60)
    pair.near.lead(VXLAN, BLOCKS[0], FAR)
    wait_for("the peer", lambda: pair.device_of(FAR) == again)


def test_an_api_server_is_accepted_in_its_own_name_and_its_own_tunnel(pair: Pair) -> None:
    """It is no node. What n2 sends in its name is dropped."""

    def refused() -> int:
        metric = pair.tables.metrics().get((DropReason.TUNNEL_SOURCE, Direction.INGRESS))
        return 0 if metric is None else metric.packets

    pod4, before = f"{pair.pod.four}/32", refused()
    pair.far.lead(VXLAN, pod4, NODE, str(SERVER))
    own = Listener(pair.pod.netns, 84)
    try:
        assert dial(pair.far.netns, pair.pod.four, 84, own, 0.3) == ""
        wait_for("the drop counted", lambda: refused() > before)
        pair.far.ip("link del am-vxlan")
        wait_for("the pins gone", lambda: "am-vxlan" not in pair.far.names(), 60)
        server = Machine(pair.far.netns, SERVER, pair.far.pins)
        server.make(VXLAN)
        wait_for("programs", lambda: "am-vxlan" in server.names(), 60)
        server.lead(VXLAN, pod4, NODE, str(SERVER))
        found, counts = outer_packets(pair, lambda: dial(pair.far.netns, pair.pod.four, 84, own, 5))
        assert found == str(SERVER)
        assert counts[VXLAN] >= 3
    finally:
        own.close()
