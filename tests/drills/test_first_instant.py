"""From the first moment that its address exists, a pod sends what it may and nothing else.

The sender runs in the pod's network namespace before there is an interface, and tries without pause; what gets out is
counted on the wire between the nodes, by a socket that takes every frame. A pod without a policy is the control: the
same sender is heard at once. It is so, too, where what a pod's identity is made of comes with it: the first policy that
names a label which is else left out of identities, and a change of its namespace. The other half is the last instant:
how long a flow goes on whose right is taken away.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from ipaddress import ip_address, ip_network
from statistics import median

import msgspec
import pytest

from chassis.bus.client import Bus
from chassis.runtime.election import Election
from kit.identity import identity_of, stands_for
from proto.addresses import Endpoint
from proto.identity import RelevantKeys
from proto.objects import (
    IPBlock,
    KubernetesObject,
    Namespace,
    NetworkPolicy,
    Peer,
    Pod,
    PolicyRule,
    Requirement,
    Selector,
)
from proto.subjects import ENDPOINTS, IDENTITIES
from tests.bpf.world import run
from tests.drills.minicluster import HUB, MiniCluster, PodRef, minicluster, node_objects, pools
from tests.natsd import bus_of, runtime_of

pytestmark = pytest.mark.privileged

FOUR, SIX = "10.244.0.0/16", "fd00:10:244::/56"
OUTSIDE = (HUB, "fd00:172:30::1")
PORT = 7777
SO_RCVBUFFORCE = 33
ROUNDS = 5
BETWEEN = 0.0002
"""Seconds between the tries of a sender that goes on for long: without a pause it would take a processor."""
LAST_PACKET = 1.0
"""Seconds after an edit at which no packet passes any more that it forbids."""
SETTINGS = {"AIRMESH_ADDRESS_COOLDOWN": "1", "AIRMESH_LOG_LEVEL": "info"}

SENDER = """
import json, select, socket, sys, time
targets = [(socket.AF_INET, sys.argv[1]), (socket.AF_INET6, sys.argv[2])]
ways = [(family, socket.socket(family, socket.SOCK_DGRAM), (address, int(sys.argv[3]))) for family, address in targets]
calls = []
for family, way, target in ways:
    way.setblocking(False)
first, sent, tried = {}, {4: 0, 6: 0}, 0
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[4])
while time.monotonic() < end:
    tried += 1
    for family, way, target in ways:
        try:
            way.sendto(b"first", target)
        except OSError:
            continue
        number = 4 if family == socket.AF_INET else 6
        sent[number] += 1
        if number not in first:
            first[number] = time.monotonic()
            call = socket.socket(family)
            call.setblocking(False)
            call.connect_ex(target)
            calls.append(call)
    time.sleep(float(sys.argv[5]))
    if tried % 64 == 0 and select.select([sys.stdin], [], [], 0)[0]:
        break
print(json.dumps({"first": first, "sent": sent, "tried": tried}))
"""


class Wire:
    """Counts the frames that come to the hub from pods' addresses, by source address; keeps when the last came."""

    def __init__(self, hub: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind(("fabric", 0))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._nets = (ip_network(FOUR), ip_network(SIX))
        self.frames: Counter[str] = Counter()
        self.last: dict[str, float] = {}
        self._thread = threading.Thread(target=self._listen, name=f"wire of {hub}")
        self._thread.start()

    def _listen(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                frame = self._socket.recv(2048)
                kind = struct.unpack_from("!H", frame, 12)[0]
                raw = frame[26:30] if kind == 0x0800 else frame[22:38] if kind == 0x86DD else b""
                if not raw:
                    continue
                source = ip_address(raw)
                if any(source.version == net.version and source in net for net in self._nets):
                    self.last[str(source)] = time.monotonic()
                    self.frames[str(source)] += 1

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)
        assert not struct.unpack("II", self._socket.getsockopt(263, 6, 8))[1], "the wire was not wholly heard"
        self._socket.close()


@contextmanager
def listening(world: MiniCluster) -> Iterator[Wire]:
    wire = Wire(world.label)
    try:
        yield wire
    finally:
        wire.close()


class Sender:
    """A process in a network namespace that sends to the outside without pause until told to end."""

    def __init__(self, netns: str, seconds: float = 10.0, pause: float = 0.0) -> None:
        command = ["nsenter", f"--net=/run/netns/{netns}", "--", sys.executable, "-S", "-c", SENDER]
        self._process = subprocess.Popen(
            [*command, *OUTSIDE, str(PORT), str(seconds), str(pause)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def end(self) -> dict[str, dict[str, float]]:
        """What it did: when each family's first datagram left its socket, and how many have."""
        said, _ = self._process.communicate("\n", timeout=20)
        timings: dict[str, dict[str, float]] = json.loads(said)
        return timings


def deny_all() -> NetworkPolicy:
    """Of the pods labelled app=mute: nothing in, nothing out."""
    return NetworkPolicy(
        namespace="shop",
        name="deny-all",
        uid="uid-deny-all",
        pod_selector=Selector(match_labels=(("app", "mute"),)),
        applies_ingress=True,
        applies_egress=True,
    )


def may_send(*allowed: str) -> NetworkPolicy:
    """What the pods labelled app=giver may send: to these networks."""
    peers = tuple(Peer(ip_block=IPBlock(cidr=ip_network(one))) for one in allowed)
    return NetworkPolicy(
        namespace="shop",
        name="giver",
        uid="uid-giver",
        pod_selector=Selector(match_labels=(("app", "giver"),)),
        applies_ingress=False,
        applies_egress=True,
        egress=(PolicyRule(peers=peers),) if allowed else (),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    """Two nodes with the deny-all policy in force, everything ready."""
    with minicluster(tmp_path_factory.mktemp("instant"), "fi", ("n1", "n2"), **SETTINGS) as made:

        async def begin() -> None:
            async with bus_of(made.nats, "cluster") as bus:
                await made.make_buckets(bus)
                await made.put(bus, *node_objects(made.nodes), *pools(four=FOUR, six=SIX), deny_all())

        asyncio.run(begin())
        for name in ("ipam-1", "policy-1", "dataplane-n1", "dataplane-n2"):
            made.start(name)
        asyncio.run(made.ready())
        for command in ("-4 route add 10.244.0.0/16 dev fabric", "-6 route add fd00:10:244::/56 dev fabric"):
            run("ip", "-n", made.label, *command.split())
        yield made


async def instant(
    world: MiniCluster, bus: Bus, number: int, app: str, wire: Wire
) -> tuple[dict[str, dict[str, float]], int]:
    """One pod that sends from before its birth; what it did, and how many of its frames were on the wire."""
    netns, container = f"{world.label}-i{number}", f"i{number}-{app}"
    run("ip", "netns", "add", netns)
    try:
        before = wire.frames.copy()  # the address may have been another pod's
        sender = await asyncio.to_thread(Sender, netns)
        pod = Pod(namespace="shop", name=container, uid=f"uid-{container}", node="n1", labels=(("app", app),))
        await world.put(bus, pod)
        answer = await world.cni("n1", "ADD", container, netns, PodRef("shop", pod.name, pod.uid))
        await asyncio.sleep(0.03)
        timings = await asyncio.to_thread(sender.end)
        assert answer.code == 0, (answer, world.tails())
        assert (await world.cni("n1", "DEL", container, netns)).code == 0
        await world.take(bus, pod)
        await asyncio.sleep(0.02)
        return timings, sum(wire.frames[address] - before[address] for address in answer.addresses)
    finally:
        run("ip", "netns", "del", netns)


async def _instants(world: MiniCluster, times: int) -> None:
    async with bus_of(world.nats, "cluster") as bus:
        with listening(world) as wire:
            for number in range(3):
                timings, heard = await instant(world, bus, number, "free", wire)
                assert heard, f"the control was not heard: {timings}"
                assert heard >= timings["sent"]["4"] / 10
            quiet, sent = 0, 0
            for number in range(times):
                timings, heard = await instant(world, bus, 100 + number, "mute", wire)
                assert timings["sent"]["4"], "it never sent: nothing is proved"
                assert timings["sent"]["6"], "it never sent IPv6: nothing is proved"
                sent += int(timings["sent"]["4"] + timings["sent"]["6"])
                assert heard == 0, f"pod {number}: {heard} frames got out"
                quiet += 1
        print(f"first instant: {quiet} of {times} pods were silent; {sent} datagrams were tried")
        assert quiet == times


async def test_nothing_gets_out_of_a_denied_pod_from_its_first_moment(world: MiniCluster) -> None:
    await _instants(world, 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_gets_out_of_two_hundred_denied_pods(world: MiniCluster) -> None:
    await _instants(world, 200)


POD_NAME = "statefulset.kubernetes.io/pod-name"


def mute_by_name(name: str) -> NetworkPolicy:
    """Of the one pod of a StatefulSet with this name: nothing in, nothing out."""
    selector = Selector(match_labels=((POD_NAME, name),))
    return msgspec.structs.replace(deny_all(), name=f"mute-{name}", uid=f"uid-mute-{name}", pod_selector=selector)


def of_stateful_set(number: int) -> Pod:
    name = f"st-{number}"
    labels = (("app", f"free-{number}"), (POD_NAME, name))
    return Pod(namespace="shop", name=name, uid=f"uid-{name}", node="n1", labels=labels)


async def start_beside(
    world: MiniCluster, bus: Bus, pod: Pod, *changes: KubernetesObject, wire: Wire, pause: float = 0.0
) -> tuple[int, int]:
    """Start a pod together with what isolates it; the CNI code, and how many frames got out of any pod meanwhile."""
    netns = f"{world.label}-{pod.name}"
    run("ip", "netns", "add", netns)
    try:
        before = wire.frames.copy()
        sender = await asyncio.to_thread(Sender, netns, 60.0, pause)
        await world.put(bus, *changes, pod)
        answer = await world.cni("n1", "ADD", pod.name, netns, PodRef("shop", pod.name, pod.uid))
        await asyncio.sleep(0.05)
        timings = await asyncio.to_thread(sender.end)
        assert answer.code or timings["sent"]["4"], "it never sent: nothing is proved"
        assert (await world.cni("n1", "DEL", pod.name, netns)).code == 0
        return answer.code, sum((wire.frames - before).values())
    finally:
        run("ip", "netns", "del", netns)


async def no_longer_named(world: MiniCluster, bus: Bus, *gone: KubernetesObject) -> None:
    """Take these away, and wait until identities are without the label again."""
    await world.take(bus, *gone)
    end = time.monotonic() + 20
    async with bus_of(world.nats, "cli") as reader:
        while (
            entry := await reader.bucket(IDENTITIES).get("_relevant", RelevantKeys)
        ) and entry.value != RelevantKeys():
            assert time.monotonic() < end, entry
            await asyncio.sleep(0.05)


async def test_the_first_policy_on_an_unstable_label_comes_together_with_the_pod(world: MiniCluster) -> None:
    async with bus_of(world.nats, "cluster") as bus:
        with listening(world) as wire:
            for number in range(10):
                pod = of_stateful_set(number)
                code, heard = await start_beside(world, bus, pod, mute_by_name(pod.name), wire=wire)
                assert (code, heard) == (0, 0), f"pod {number}: {world.tails()}"
                await world.take(bus, pod)
                await no_longer_named(world, bus, mute_by_name(pod.name))


@pytest.mark.timeout(300)
async def test_the_same_while_a_shard_has_no_holder(world: MiniCluster) -> None:
    """It waits, whoever it was or becomes, or starts isolated; with the shard held again it starts."""
    world.kill("policy-1", signal.SIGTERM)
    try:
        async with bus_of(world.nats, "cluster") as bus, AsyncExitStack() as idle:
            lease = Election(await idle.enter_async_context(runtime_of(world.nats, "policy")), "policy.1", 6.0)
            while not lease.held:
                await asyncio.sleep(0.05)
            world.start("policy-1")
            pods = [of_stateful_set(100 + number) for number in range(3)]
            with listening(world) as wire:

                async def start(pod: Pod) -> tuple[int, int]:
                    return await start_beside(world, bus, pod, mute_by_name(pod.name), wire=wire, pause=BETWEEN)

                for pod, (code, heard) in zip(pods, await asyncio.gather(*map(start, pods)), strict=True):
                    assert code in (0, 11)
                    assert heard == 0, f"pod {pod.name}: {heard} frames got out"
                await idle.aclose()
                for pod in pods:
                    tried = [(11, 0)]
                    while tried[-1] == (11, 0) and len(tried) < 4:
                        tried.append(await start(pod))
                    assert tried[-1] == (0, 0), (tried, world.tails())
            await world.take(bus, *pods)
            await no_longer_named(world, bus, *(mute_by_name(pod.name) for pod in pods))
    finally:
        if "policy-1" not in world.services:
            world.start("policy-1")


async def test_a_namespaces_change_comes_together_with_the_pod(world: MiniCluster) -> None:
    """The namespace is closed and the pod made at once: whichever of the two a node hears of first."""
    closed = Namespace(name="shop", uid="ns-shop", labels=(("closed", "yes"), ("kubernetes.io/metadata.name", "shop")))
    opened = Namespace(name="shop", uid="ns-shop", labels=(("kubernetes.io/metadata.name", "shop"),))
    everyone = Peer(namespace_selector=Selector(match_expressions=(Requirement("closed", "DoesNotExist"),)))
    policy = NetworkPolicy(
        namespace="shop",
        name="while-open",
        uid="uid-while-open",
        pod_selector=Selector(match_labels=(("app", "guest"),)),
        applies_ingress=True,
        applies_egress=False,
        ingress=(PolicyRule(peers=(everyone,)),),
    )
    async with bus_of(world.nats, "cluster") as bus, bus_of(world.nats, "cli") as reader:
        await world.put(bus, policy)
        for number in range(10):
            netns = f"{world.label}-c"
            run("ip", "netns", "add", netns)
            try:
                name = f"guest-{number}"
                pod = Pod(namespace="shop", name=name, uid=f"uid-{name}", node="n1", labels=(("app", "guest"),))
                await world.put(bus, closed, pod)
                answer = await world.cni("n1", "ADD", name, netns, PodRef("shop", name, pod.uid))
                assert answer.code == 0, (answer, world.tails())
                expected = identity_of(stands_for(pod, closed), "cluster-uid-1")
                end = time.monotonic() + 10
                while not (
                    found := [
                        one.value
                        for one in (await reader.bucket(ENDPOINTS).list(Endpoint, "n1")).values()
                        if one.value.pod == name
                    ]
                ):
                    assert time.monotonic() < end, "its endpoint is not published"
                    await asyncio.sleep(0.02)
                assert found[0].identity == expected, "it started as who it was before its namespace changed"
                assert (await world.cni("n1", "DEL", name, netns)).code == 0
                await world.take(bus, pod)
                await world.put(bus, opened)
            finally:
                run("ip", "netns", "del", netns)
        await world.take(bus, policy)


async def test_a_right_taken_away_ends_the_flows_that_live(world: MiniCluster) -> None:
    """A stream of datagrams of each family, allowed and then not any more: from the edit to the last frame."""
    netns, wide = f"{world.label}-g", (f"{HUB}/32", "fd00:172:30::1/128")
    run("ip", "netns", "add", netns)
    servers = [
        socket.create_server(address, family=family)
        for family, address in ((socket.AF_INET, (HUB, PORT)), (socket.AF_INET6, (OUTSIDE[1], PORT)))
    ]
    try:
        async with bus_of(world.nats, "cluster") as bus:
            pod = Pod(namespace="shop", name="giver", uid="uid-giver", node="n1", labels=(("app", "giver"),))
            await world.put(bus, may_send(*wide), pod)
            answer = await world.cni("n1", "ADD", "giver", netns, PodRef("shop", "giver", "uid-giver"))
            assert answer.code == 0, (answer, world.tails())
            spent = sorted([await _cut(world, bus, netns, answer.addresses, wide) for _ in range(ROUNDS)])
            assert (await world.cni("n1", "DEL", "giver", netns)).code == 0
            await world.take(bus, pod, may_send())
    finally:
        for server in servers:
            server.close()
        run("ip", "netns", "del", netns)
    print(f"a right taken away: last packet after {spent[0]:.1f} to {spent[-1]:.1f} ms, median {median(spent):.1f} ms")
    assert spent[-1] < LAST_PACKET * 1000


async def _cut(world: MiniCluster, bus: Bus, netns: str, addresses: list[str], wide: tuple[str, ...]) -> float:
    """Milliseconds from the edit until the last frame of either family."""
    await world.put(bus, may_send(*wide))
    with listening(world) as wire:
        sender = await asyncio.to_thread(Sender, netns, 10.0, BETWEEN)
        end = time.monotonic() + 10
        while min(wire.frames[address] for address in addresses) < 100:
            assert time.monotonic() < end, f"the flows never began: {wire.frames}"
            await asyncio.sleep(0.01)
        edited = time.monotonic()
        await world.put(bus, may_send())
        await asyncio.sleep(LAST_PACKET)
        before = wire.frames.copy()
        await asyncio.sleep(0.5)
        assert wire.frames == before, "it goes on"
        timings = await asyncio.to_thread(sender.end)
    assert timings["sent"]["4"]
    return max(wire.last[address] - edited for address in addresses) * 1000
