"""A node with everything of ours (n1), and another kernel as the other node (n2): a VM on the same bridge.

n1 is a namespace with its agents as processes and a pod made by the real executable. What n2 says on the bus and has in
its kernel is the tests' matter. The addresses of n2's pod are those of its loopback.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, TypeVar

import pytest

from chassis.bus.client import Bus
from proto.addresses import Block
from proto.codec import block_key
from proto.objects import KubernetesObject, Pod
from proto.routes import NodeRoutes
from proto.subjects import BLOCKS, ROUTES
from proto.sync import Complete, Epoch, complete_key
from services.dataplane.datapath.pins import opened_maps
from services.dataplane.datapath.tables import Tables
from tests.bpf.world import inside, namespace, run
from tests.drills.minicluster import MiniCluster, PodRef, minicluster_of, node_objects, pools
from tests.natsd import bus_of
from tests.netns.dataplane.mesh import wait_for
from tests.vm.machine import EndHost, booted, in_namespace, lacking

T = TypeVar("T")
NEAR, FAR = "n1", "n2"
UNDERLAY = {NEAR: ("172.30.0.11", "fd00:172:30::11"), FAR: ("172.30.0.12", "fd00:172:30::12")}
FAR_MAC = "02:00:00:00:00:12"
TAP = f"to-{FAR}"
BLOCKS_OF_FAR = ("10.244.77.0/26", "fd00:10:244:77::/122")
FAR_POD = {4: "10.244.77.1", 6: "fd00:10:244:77::1"}
SERVED = 7000
SETTINGS = {"AIRMESH_ADDRESS_COOLDOWN": "1", "AIRMESH_LOG_LEVEL": "info"}


class WithVM(MiniCluster):
    """Its nodes have namespaces; one more is known to the bus, and is the VM."""

    def __init__(self, folder: Path, label: str, nodes: Sequence[str], settings: dict[str, str]) -> None:
        super().__init__(folder, label, (*nodes, FAR), settings)
        self.nodes = tuple(nodes)

    def _of_node(self, node: str) -> dict[str, str]:
        return {**super()._of_node(node), "AIRMESH_WIREGUARD_SOCKETS": str(self.folder / node / "sockets")}

    def without_wireguard(self) -> None:
        """wireguard-go of n1 ends with its interfaces, when nobody makes them again."""
        self.kill(f"routing-{NEAR}")
        for device in ("am-wg", "am-wg2"):
            with suppress(CalledProcessError):
                run("ip", "-n", self.netns(NEAR), "link", "del", device)


@dataclass
class Ends:
    """The two nodes."""

    cluster: WithVM
    vm: EndHost
    """n2, pod and node in one."""
    pod: EndHost
    """A pod of n1."""
    addresses: dict[int, str]
    """The pod's, by family."""
    tables: Tables
    """n1's maps."""

    @property
    def node(self) -> str:
        """Network namespace of n1."""
        return self.cluster.netns(NEAR)

    def put(self, *objects: KubernetesObject) -> None:
        """Objects of the API."""
        as_user(self.cluster, "cluster", None, lambda bus: self.cluster.put(bus, *objects))

    def announce(self, word: NodeRoutes) -> None:
        """What n2 says of itself."""

        async def speak(bus: Bus) -> None:
            kv = bus.bucket(ROUTES)
            await kv.put(FAR, word)
            epoch = await kv.get("_epoch", Epoch)
            assert epoch is not None
            await kv.put(complete_key(FAR), Complete(epoch=epoch.value.epoch))

        as_user(self.cluster, "routing", FAR, speak)

    def route(self, address: str) -> str:
        """n1's routes to an address."""
        return run("ip", "-n", self.node, *matching(address).split())

    def from_pod(self, sizes: list[int], version: int = 4, **more: object) -> list[str]:
        """The pod sends datagrams to n2's."""
        there = FAR_POD[version]
        return list(self.pod("send", source=self.addresses[version], host=there, port=SERVED, sizes=sizes, **more))

    def from_far(self, sizes: list[int], version: int = 4, source: str = "", **more: object) -> list[str]:
        """n2's pod sends datagrams to the pod."""
        own, there = source or FAR_POD[version], self.addresses[version]
        return list(self.vm("send", source=own, host=there, port=SERVED, sizes=sizes, **more))

    def arrive(self, sizes: list[int], version: int = 4) -> bool:
        """Whether the pod's datagrams of these sizes arrive whole, soon."""
        self.vm("heard")
        self.from_pod(sizes, version)
        found = hear(self.vm, len(sizes), 2.0)
        return sorted(one["size"] for one in found if one["whole"]) == sorted(sizes)

    def inject(self, node: str, frame: bytes) -> None:
        """A frame onto the wire before a node."""
        with inside(self.cluster.label), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((f"to-{node}", 0))
            wire.send(frame)

    def wait(self, what: str, check: Callable[[], object], seconds: float = 60.0) -> None:
        """Until something is true; the agents' logs where it does not become so."""
        try:
            wait_for(what, check, seconds)
        except AssertionError:
            print(self.cluster.tails())
            raise


def matching(address: str) -> str:
    """Command of ip(8) that shows all routes to an address."""
    return f"-{ip_address(address).version} route show match {address}"


def hear(end: EndHost, count: int, seconds: float = 5.0) -> list[dict[str, Any]]:
    """Datagrams that an end receives: so many, or those that came in time."""
    found, until = list(end("heard")), time.monotonic() + seconds
    while len(found) < count and time.monotonic() < until:
        time.sleep(0.05)
        found += end("heard")
    return found


def as_user(cluster: MiniCluster, role: str, node: str | None, work: Callable[[Bus], Awaitable[T]]) -> T:
    """What comes of something that is done on the bus with the rights of a role."""

    async def go() -> T:
        async with bus_of(cluster.nats, role, node) as bus:
            return await work(bus)

    return asyncio.run(go())


async def _begin(cluster: WithVM) -> None:
    async with bus_of(cluster.nats, "cluster") as bus:
        await cluster.make_buckets(bus)
        await cluster.put(bus, *node_objects((NEAR,)), *pools(four="10.244.0.0/16", six="fd00:10:244::/56"))


async def _join(cluster: WithVM) -> None:
    """n2 comes, with its blocks: after n1, since `ipam` waits for the word of all nodes that are there at first."""
    async with bus_of(cluster.nats, "cluster") as bus:
        await cluster.put(bus, node_objects((NEAR, FAR))[-1])
    async with bus_of(cluster.nats, "ipam") as bus:
        for cidr, pool in zip(map(ip_network, BLOCKS_OF_FAR), ("pods4", "pods6"), strict=True):
            await bus.bucket(BLOCKS).put(block_key(cidr), Block(cidr, pool, FAR, f"node-uid-{FAR}", epoch=3, nonce="n"))


async def _add_pod(cluster: WithVM, netns: str) -> dict[int, str]:
    async with bus_of(cluster.nats, "cluster") as bus:
        pod = Pod(namespace="shop", name="near", uid="uid-near", node=NEAR, labels=(("app", "near"),))
        await cluster.put(bus, pod)
    answer = await cluster.cni(NEAR, "ADD", "c-near", netns, PodRef("shop", pod.name, pod.uid))
    assert answer.code == 0, (answer, cluster.tails())
    return {ip_address(address).version: address for address in answer.addresses}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """Both nodes and the wire between them; host-gw is what the pools ask for."""
    assert not lacking(), lacking()
    folder = tmp_path_factory.mktemp("vm")
    with ExitStack() as stack:
        cluster = stack.enter_context(minicluster_of(WithVM, folder, "vm", (NEAR,), True, **SETTINGS))
        asyncio.run(_begin(cluster))
        for name in ("ipam-1", "policy-1", f"dataplane-{NEAR}", f"routing-{NEAR}"):
            cluster.start(name)
        stack.callback(cluster.without_wireguard)
        for command in (f"tuntap add {TAP} mode tap", f"link set {TAP} master fabric up"):
            run("ip", "-n", cluster.label, *command.split())
        vm = stack.enter_context(booted(folder / "machine", TAP, FAR_MAC))
        for command in (
            "link set lo up",
            "link set eth0 up",
            *(f"addr add {own}/{24 if '.' in own else 64} dev eth0{' nodad' * (':' in own)}" for own in UNDERLAY[FAR]),
            *(f"addr add {own} dev lo{' nodad' * (':' in own)}" for own in FAR_POD.values()),
        ):
            vm.run(f"ip {command}")
        asyncio.run(cluster.ready())
        asyncio.run(_join(cluster))
        netns = stack.enter_context(namespace(f"{cluster.label}-p"))
        addresses = asyncio.run(_add_pod(cluster, netns))
        pod = stack.enter_context(in_namespace(netns))
        for version in (4, 6):
            pod("serve", address=addresses[version], port=SERVED)
            vm("serve", address=FAR_POD[version], port=SERVED)
        tables = stack.enter_context(closing(Tables(opened_maps(folder / NEAR / "bpffs"))))
        yield Ends(cluster, vm, pod, addresses, tables)
        assert cluster.troubles() == []
