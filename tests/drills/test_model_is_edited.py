"""A pool's model is edited under traffic, between two nodes in namespaces: the short version of `make drill-models`.

Real routing and dataplanes, no Kubernetes: the drill writes the IPPools itself. From host-gw to VXLAN, to IP in IP and
back, each change under TCP and UDP flows and a stream of 1,000 packets a second each way. No connection breaks, at most
ten packets of a stream are lost, and once both nodes' routes are the model's, the wire has packets of pods in that
model's tunnel and in nothing else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from chassis.bus.client import Bus
from lab.cluster.capture import Capture
from lab.cluster.packets import IPIP, PLAIN, VXLAN, Packet, parse
from lab.tour.ways import HOST_GW, model_of
from proto.objects import IPPool, Pod
from tests.bpf.world import run
from tests.drills.minicluster import MiniCluster, PodRef, minicluster, node_objects, pools
from tests.drills.traffic import Program
from tests.natsd import bus_of

pytestmark = pytest.mark.privileged

NODES = ("n1", "n2")
SETTINGS = {"AIRMESH_ADDRESS_COOLDOWN": "1", "AIRMESH_LOG_LEVEL": "info"}
STREAM, FLOWS = 9555, 9444
LOST = 10
SECONDS = 60.0


def own(node: str) -> list[Any]:
    """A node's addresses, as `minicluster` gives them."""
    number = 11 + NODES.index(node)
    return [ip_address(f"172.30.0.{number}"), ip_address(f"fd00:172:30::{number}")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    with minicluster(tmp_path_factory.mktemp("models"), "md", NODES, **SETTINGS) as made:

        async def begin() -> None:
            async with bus_of(made.nats, "cluster") as bus:
                await made.make_buckets(bus)
                await made.put(bus, *node_objects(NODES), *wanted(HOST_GW))

        asyncio.run(begin())
        for name in (
            "ipam-1",
            "policy-1",
            *(f"{service}-{node}" for node in NODES for service in ("dataplane", "routing")),
        ):
            made.start(name)
        asyncio.run(made.ready())
        yield made


def wanted(model: str) -> list[IPPool]:
    """The pools as they ask for a model: IP in IP carries IPv4 alone, so IPv6 has VXLAN then."""
    four, six = pools(four="10.244.0.0/16", six="fd00:10:244::/56")
    fields = {VXLAN: {"vxlan_mode": "Always"}, IPIP: {"ipip_mode": "Always"}, HOST_GW: {}}
    six_model = VXLAN if model == IPIP else model
    return [msgspec.structs.replace(four, **fields[model]), msgspec.structs.replace(six, **fields[six_model])]


def until(world: MiniCluster, what: str, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {SECONDS} s\n{world.tails()}"
        time.sleep(0.1)


class Ends:
    """A pod on each node, with flows from the first to the second and a stream each way."""

    def __init__(self, world: MiniCluster, addresses: dict[str, list[str]], stack: ExitStack) -> None:
        self.world, self.addresses = world, addresses
        one, two = NODES

        def start(node: str, *arguments: str) -> Program:
            program = Program(f"/run/netns/{world.label}-{node}p", *arguments)
            stack.callback(program.close)
            return program

        self.sinks = {node: start(node, "sink", str(STREAM)) for node in NODES}
        self.listener = start(two, "serve", str(FLOWS), *addresses[one])
        for program in (*self.sinks.values(), self.listener):
            program.report()  # it listens
        self.sender = start(one, "send", str(FLOWS), "10", "10", *addresses[two])
        self.sources = {
            node: start(node, "stream", str(STREAM), "1000", *addresses[other])
            for node, other in ((one, two), (two, one))
        }

    def lost(self) -> dict[str, int]:
        """Of the stream that each node sends, so far: what was overtaken by what was sent later."""
        sent = {node: source.report()["sent"] for node, source in self.sources.items()}
        found: dict[str, int] = {}

        def caught_up() -> bool:
            for node, numbers in sent.items():
                (other,) = set(NODES) - {node}
                flows = {one["flow"]: one for one in self.sinks[other].report()["streams"]}
                if node not in found and all(
                    flow in flows and flows[flow]["due"] >= number for flow, number in enumerate(numbers)
                ):
                    found[node] = sum(one["due"] - one["received"] for one in flows.values())
            return len(found) == len(sent)

        until(self.world, "what was sent came, or what was sent later", caught_up)
        return found

    def flowing(self) -> None:
        """Every flow goes on, in both families."""

        def level() -> bool:
            said = self.sender.report()
            assert not said["broken"], said
            return bool(said["echoed"] >= 20 and not said["lost"]["tcp"])

        until(self.world, "all flows flow", level)
        assert not self.listener.report()["broken"]

    def taken(self, model: str) -> bool:
        """Whether both nodes' kernels have the routes of a model."""
        for node, other in zip(NODES, reversed(NODES), strict=True):
            for address in self.addresses[other]:
                said = run("ip", "-n", self.world.netns(node), "--json", "route", "get", address)
                expected = VXLAN if model == IPIP and ":" in address else model
                if model_of(json.loads(said)[0], own(other)) != expected:
                    return False
        return True

    def wire(self) -> set[str]:
        """What packets between the pods are in on the hub's bridge, right now."""
        pods = {ip_address(address) for found in self.addresses.values() for address in found}
        with Capture({self.world.label: {f"to-{node}": node for node in NODES}}, parse) as seen:
            until(self.world, "packets of both ways and families", lambda: len(_ways(seen, pods)) == 4)
        return {packet.tunnel for _, packet in seen.seen if packet.ends[0] in pods}


def _ways(seen: Capture[Packet], pods: set[Any]) -> set[Any]:
    return {packet.ends[0] for _, packet in seen.seen.copy() if packet.ends[0] in pods}


async def _pod(world: MiniCluster, bus: Bus, node: str) -> list[str]:
    pod = Pod(namespace="shop", name=f"p-{node}", uid=f"uid-{node}", node=node, labels=(("app", node),))
    await world.put(bus, pod)
    answer = await world.cni(node, "ADD", f"c-{node}", f"{world.label}-{node}p", PodRef("shop", pod.name, pod.uid))
    assert answer.code == 0, (answer, world.tails())
    return answer.addresses


@pytest.fixture(scope="module")
def ends(world: MiniCluster) -> Iterator[Ends]:
    async def pods() -> dict[str, list[str]]:
        async with bus_of(world.nats, "cluster") as bus:
            return {node: await _pod(world, bus, node) for node in NODES}

    with ExitStack() as stack:
        for node in NODES:
            run("ip", "netns", "add", f"{world.label}-{node}p")
            stack.callback(run, "ip", "netns", "del", f"{world.label}-{node}p")
        yield Ends(world, asyncio.run(pods()), stack)


def ask(world: MiniCluster, model: str) -> None:
    async def write() -> None:
        async with bus_of(world.nats, "cluster") as bus:
            await world.put(bus, *wanted(model))

    asyncio.run(write())


@pytest.mark.timeout(300)
def test_a_pool_asks_for_another_model_and_no_connection_feels_it(world: MiniCluster, ends: Ends) -> None:
    until(world, f"both nodes take {HOST_GW}", lambda: ends.taken(HOST_GW))
    ends.flowing()
    assert ends.wire() == {PLAIN}
    before = ends.lost()
    for model, tunnels in ((VXLAN, {VXLAN}), (IPIP, {IPIP, VXLAN}), (HOST_GW, {PLAIN})):
        ask(world, model)
        until(world, f"both nodes take {model}", lambda model=model: ends.taken(model))  # type: ignore[misc]
        ends.flowing()
        assert ends.wire() == tunnels, f"under {model}"
        after = ends.lost()
        lost = {node: after[node] - before[node] for node in after}
        assert max(lost.values()) <= LOST, f"lost in the change to {model}: {lost}"
        print(f"to {model}: lost {lost}")
        before = after
    assert world.troubles() == []
