"""No address is ever held twice and none is lost, whatever dies and whatever the runtime forgets.

Three nodes, eight callers of the real executable, pools of 64 addresses a family: every address goes round many times.
Meanwhile services and NATS are killed, calls are killed midway, DELs are lost, said three times and said late. The
ledger judges from what was asked and heard; that nothing leaked is shown by filling the pools to the last address.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest

from chassis.bus.client import Bus
from proto.addresses import IPAM_HOLDER, Block, Endpoint
from proto.objects import Owner, Pod
from proto.subjects import BLOCKS, ENDPOINTS
from tests.bpf.world import run
from tests.drills.ledger import Ledger
from tests.drills.minicluster import MiniCluster, PodRef, minicluster, node_objects, pools
from tests.natsd import bus_of

pytestmark = [pytest.mark.privileged, pytest.mark.uncontended]

NODES = ("n1", "n2", "n3")
FOUR, SIX = "10.244.0.0/26", "fd00:10:244::/122"
BLOCK = 8
TOTAL = 64
"""Addresses of each family: eight blocks for three nodes and for those that keep their address."""
REST = 1.0
AT_ONCE = 8
LIVING = 24
"""Pods that live at once, about."""
OWNERS = BLOCK - 1
"""Workloads that keep their addresses: one block's worth of either family."""
LATER = 11
SECONDS = 60.0
"""After this long a call that is told to come again counts as a failure."""
ANSWER_SECONDS = 10.0
"""After this long an agent that nobody heard since it was started again is killed once more all the same."""
SETTINGS = {
    "AIRMESH_ADDRESS_COOLDOWN": str(REST),
    "AIRMESH_GC_GRACE": "1",
    "AIRMESH_ADD_DEADLINE": "3",
    "AIRMESH_SPARE_ADDRESSES": "1",
    "AIRMESH_POLICY_LEASE_SECONDS": "2",
    "AIRMESH_LOG_LEVEL": "info",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[MiniCluster]:
    with minicluster(tmp_path, "nt", NODES, **SETTINGS) as made:
        yield made


@dataclass(slots=True)
class Container:
    """A sandbox as its runtime knows it."""

    name: str
    node: str
    netns: str
    pod: Pod
    owner: str = ""

    @property
    def reference(self) -> PodRef:
        return PodRef(self.pod.namespace, self.pod.name, self.pod.uid)


@dataclass(slots=True)
class Drill:
    """A runtime on three nodes with bad habits. ``adds`` and ``deletes`` count containers, not calls."""

    world: MiniCluster
    bus: Bus
    chance: random.Random
    ledger: Ledger = field(default_factory=Ledger)
    adds: int = 0
    deletes: int = 0
    living: list[Container] = field(default_factory=list)
    begun: dict[str, Container] = field(default_factory=dict)
    """Containers that the runtime answers for: what a GC lists."""
    forgotten: list[Container] = field(default_factory=list)
    """Containers whose DEL was lost; their namespaces are not used again before a GC."""
    idle_owners: list[int] = field(default_factory=lambda: list(range(OWNERS)))
    spare: dict[str, list[str]] = field(default_factory=lambda: {node: [] for node in NODES})
    """By node: what a DEL has emptied is used again there, at once."""
    spaces: list[str] = field(default_factory=list)
    late: list[asyncio.Task[None]] = field(default_factory=list)
    killed: dict[str, int] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    """When an agent was started again, by its name."""
    answered: dict[str, float] = field(default_factory=dict)
    """When an agent last did what it was asked for, by its name."""
    number: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    # --- network namespaces ---

    async def space(self, node: str) -> str:
        if self.spare[node]:
            return self.spare[node].pop()
        self.number += 1
        name = f"{self.world.label}-p{self.number}"
        await asyncio.to_thread(run, "ip", "netns", "add", name)
        self.spaces.append(name)
        return name

    async def destroy(self, netns: str) -> None:
        await asyncio.to_thread(run, "ip", "netns", "del", netns)
        self.spaces.remove(netns)

    # --- the life of a pod ---

    async def born(self, node: str | None = None, *, keeps: bool = False) -> Container:
        """A pod whose object is there; not attached yet."""
        self.number += 1
        number, node = self.number, node or self.chance.choice(NODES)
        owner, name = None, f"pod-{number}"
        if keeps and self.idle_owners:
            ordinal = self.idle_owners.pop(self.chance.randrange(len(self.idle_owners)))
            owner, name = Owner("shop", "StatefulSet", "db", ordinal), f"db-{ordinal}"
        pod = Pod(namespace="shop", name=name, uid=f"uid-{number}", node=node, labels=(("app", "drill"),), owner=owner)
        await self.world.put(self.bus, pod)
        return Container(f"c{number}", node, await self.space(node), pod, name if owner else "")

    async def attach(self, one: Container, *, bad_habits: bool) -> Container:
        """ADD until it succeeds; the container that lives in the end (a runtime makes a new one after a failure)."""
        end = time.monotonic() + SECONDS
        while True:
            self.begun[one.name] = one
            killed_after = self.chance.uniform(0, 0.02) if bad_habits and self.chance.random() < 0.15 else None
            answer = await self.world.cni(
                one.node, "ADD", one.name, one.netns, one.reference, killed_after=killed_after
            )
            if answer.code == 0:
                self.answered[f"dataplane-{one.node}"] = time.monotonic()
                self.ledger.given(time.monotonic(), one.name, answer.addresses, one.owner)
                return one
            assert answer.code in (LATER, -1), answer
            assert time.monotonic() < end, (answer, self.world.tails())
            if answer.code == LATER:
                await asyncio.sleep(self.chance.uniform(0.05, 0.3))
            habits = ["again", "delete"] if killed_after is None else ["again", "delete", "forget"]
            habit = self.chance.choice(habits)
            if habit == "delete":
                await self.detach(one)
            elif habit == "forget":
                self._forget(one)
            if habit != "again":
                one = await self._another(one)

    async def _another(self, one: Container) -> Container:
        """A new sandbox for the same pod."""
        self.number += 1
        return Container(f"c{self.number}", one.node, await self.space(one.node), one.pod, one.owner)

    def _forget(self, one: Container) -> None:
        self.begun.pop(one.name, None)
        self.forgotten.append(one)

    async def detach(self, one: Container) -> None:
        """DEL until it succeeds; the namespace is free again."""
        self.ledger.given_back(time.monotonic(), one.name)
        await self._delete(one)
        self.begun.pop(one.name, None)
        self.spare[one.node].append(one.netns)

    async def _delete(self, one: Container, netns: str | None = None) -> None:
        end = time.monotonic() + SECONDS
        while (answer := await self.world.cni(one.node, "DEL", one.name, one.netns if netns is None else netns)).code:
            assert answer.code == LATER, answer
            assert time.monotonic() < end, (answer, self.world.tails())
            await asyncio.sleep(0.1)
        self.answered[f"dataplane-{one.node}"] = time.monotonic()

    async def die(self, one: Container) -> None:
        """The pod's end, in one of the ways that runtimes have; its object goes last."""
        match self.chance.choices(("once", "thrice", "lost", "vanished"), (70, 15, 8, 7))[0]:
            case "once":
                await self.detach(one)
            case "thrice":
                self.ledger.given_back(time.monotonic(), one.name)
                await asyncio.gather(self._delete(one), self._delete(one, ""))
                self.begun.pop(one.name, None)
                self.spare[one.node].append(one.netns)
                self.late.append(asyncio.create_task(self._once_more(one)))
            case "lost" if not one.owner:
                self._forget(one)  # whoever keeps an address is not asked for again while its container runs
            case _:
                self.ledger.given_back(time.monotonic(), one.name)
                self.begun.pop(one.name, None)
                await self.destroy(one.netns)
        await self.world.take(self.bus, one.pod)
        if one.owner:
            self.idle_owners.append(int(one.owner.removeprefix("db-")))
        self.deletes += 1

    async def _once_more(self, one: Container) -> None:
        await asyncio.sleep(REST * self.chance.uniform(0.5, 3))
        await self._delete(one, "")

    # --- those who call, those who kill ---

    async def caller(self, until: int) -> None:
        while self.adds < until:
            self.adds += 1
            one = await self.born(keeps=self.chance.random() < 0.25)
            self.living.append(await self.attach(one, bad_habits=True))
            while len(self.living) > LIVING:
                await self.die(self.living.pop(self.chance.randrange(len(self.living))))

    async def collect(self) -> None:
        """GC on each node, as a runtime does it: it lists what it answers for, then asks."""
        before = time.monotonic()
        gone = list(self.forgotten)
        for node in NODES:
            for one in gone:
                if one.node == node:
                    self.ledger.given_back(time.monotonic(), one.name)
            listed = [{"containerID": c.name, "ifname": "eth0"} for c in self.begun.values() if c.node == node]
            answer = await self.world.cni(node, "GC", conf={"cni.dev/valid-attachments": listed})
            assert answer.code in (0, LATER), answer
        assert time.monotonic() - before < SECONDS

    async def collector(self) -> None:
        while not self.over.is_set():
            await asyncio.sleep(1.2)
            await self.collect()

    async def killer(self, victims: list[str], every: float) -> None:
        """Each victim in turn: killed with -9, away for a moment, started again."""
        while not self.over.is_set():
            for victim in victims:
                await asyncio.sleep(self.chance.uniform(0.5, 1.5) * every)
                await self._answers(victim)
                if self.over.is_set():
                    return
                self.killed[victim] = self.killed.get(victim, 0) + 1
                await self._kill(victim)

    async def _answers(self, victim: str) -> None:
        """Until a node's agent has done something since its last start: on a busy machine it would never come to it."""
        end = time.monotonic() + ANSWER_SECONDS
        while self.answered.get(victim, 0.0) < self.started.get(victim, 0.0) and time.monotonic() < end:
            await asyncio.sleep(0.05)

    async def _kill(self, victim: str) -> None:
        if victim == "nats":
            self.world.nats.kill()
        else:
            self.world.kill(victim)
        await asyncio.sleep(self.chance.uniform(0, 0.5))
        if victim == "nats":
            self.world.nats.start()
        else:
            self.world.start(victim)
            if victim.startswith("dataplane-"):
                self.started[victim] = time.monotonic()

    # --- the end ---

    async def quiet(self) -> None:
        """All pods end, all late calls arrive, two GCs a grace apart; then everything has rested."""
        await asyncio.gather(*self.late)
        await self.world.ready()
        for one in self.living:
            await self.detach(one)
            await self.world.take(self.bus, one.pod)
            self.deletes += 1
            if one.owner:
                self.idle_owners.append(int(one.owner.removeprefix("db-")))
        self.living.clear()
        for _ in range(3):
            await self.collect()
            await asyncio.sleep(1.1)

    async def fill(self, node: str, family: int) -> list[Container]:
        """Pods on a node until it says that it has no address left."""
        filled: list[Container] = []
        while True:
            one = await self.born(node)
            end = time.monotonic() + 8
            while (answer := await self.world.cni(node, "ADD", one.name, one.netns, one.reference)).code == LATER:
                if "every block of IPPool" in answer.body["msg"]:
                    await self.world.take(self.bus, one.pod)
                    self.spare[one.node].append(one.netns)
                    return filled
                assert time.monotonic() < end, answer
                await asyncio.sleep(0.05)
            assert answer.code == 0, answer
            self.ledger.given(time.monotonic(), one.name, answer.addresses)
            assert [":" in address for address in answer.addresses] == [family == 6]
            filled.append(one)
            assert len(filled) <= TOTAL


@asynccontextmanager
async def drilled(world: MiniCluster, seed: int) -> AsyncIterator[Drill]:
    """Everything up, a runtime ready to misbehave."""
    async with bus_of(world.nats, "cluster") as bus:
        await world.make_buckets(bus)
        await world.put(bus, *node_objects(NODES), *pools(four=FOUR, six=SIX, block4=29, block6=125))
        for name in ("ipam-1", "ipam-2", "policy-1", "policy-2", *(f"dataplane-{node}" for node in NODES)):
            world.start(name)
        await world.ready()
        drill = Drill(world, bus, random.Random(seed))
        try:
            yield drill
        finally:
            for netns in list(drill.spaces):
                subprocess.run(["ip", "netns", "del", netns], check=False, capture_output=True)


async def _churn(drill: Drill, pods: int, victims: list[str], every: float) -> None:
    # One that keeps its address comes first, so that ipam has a block of its own before the nodes have them all.
    drill.living.append(await drill.attach(await drill.born(keeps=True), bad_habits=False))
    async with asyncio.TaskGroup() as background:
        background.create_task(drill.collector())
        background.create_task(drill.killer(victims, every))
        async with asyncio.TaskGroup() as callers:
            for _ in range(AT_ONCE):
                callers.create_task(drill.caller(pods))
        while drill.living:  # as many ends as beginnings, with the kills going on
            ending = [drill.living.pop() for _ in range(min(AT_ONCE, len(drill.living)))]
            await asyncio.gather(*(drill.die(one) for one in ending))
        drill.over.set()


async def _judge_kernel(drill: Drill) -> None:
    """No pod has an interface, no node a link to one or a route, nobody is told of an endpoint."""
    for netns in drill.spaces:
        assert "eth0" not in run("ip", "-n", netns, "-br", "link"), f"{netns} has an interface still"
    for node in NODES:
        assert drill.world.pod_links(node) == []
        for family, pool in (("-4", FOUR), ("-6", SIX)):
            routes = run("ip", "-n", drill.world.netns(node), family, "route", "show", "root", pool).splitlines()
            assert routes == [], f"{node}: {routes}"
    end = time.monotonic() + 5
    while left := await drill.bus.bucket(ENDPOINTS).list(Endpoint, "n1") or await _endpoints(drill.bus):
        assert time.monotonic() < end, left
        await asyncio.sleep(0.1)


async def _endpoints(bus: Bus) -> list[str]:
    return [key for node in NODES for key in await bus.bucket(ENDPOINTS).list(Endpoint, node)]


async def _judge_capacity(drill: Drill, family: int) -> None:
    """With the other family's pool closed, the nodes can give away every address but those of ipam's own blocks.

    Of an IPv6 block the first address is the routers' own (Subnet-Router anycast), so nobody has it.
    """
    for pool in pools(four=FOUR, six=SIX, block4=29, block6=125):
        await drill.world.put(drill.bus, msgspec.structs.replace(pool, disabled=pool.cidr.version != family))
    await asyncio.sleep(REST + 0.3)
    filled = [one for node in NODES for one in await drill.fill(node, family)]
    blocks = [entry.value for entry in (await drill.bus.bucket(BLOCKS).list(Block)).values()]
    kept = [block for block in blocks if block.node == IPAM_HOLDER and block.cidr.version == family]
    given = [hold.address for hold in drill.ledger.holds if hold.holder in {one.name for one in filled}]
    whole = ip_network(FOUR if family == 4 else SIX)
    assert len(set(given)) == len(given)
    assert {ip_address(address) in whole for address in given} == {True}
    could = (TOTAL // BLOCK - len(kept)) * (BLOCK - (family == 6))
    assert len(given) == could, f"IPv{family}: {could - len(given)} are lost"
    for one in filled:
        await drill.detach(one)
        await drill.world.take(drill.bus, one.pod)


async def _judge_owners(drill: Drill) -> None:
    """Everyone who keeps an address finds it again, on whichever node."""
    assert sorted(drill.idle_owners) == list(range(OWNERS))
    back = [await drill.attach(await drill.born(keeps=True), bad_habits=False) for _ in range(OWNERS)]
    for one in back:
        await drill.detach(one)


async def _run(world: MiniCluster, pods: int, victims: list[str], every: float, seed: int) -> None:
    began = time.monotonic()
    async with drilled(world, seed) as drill:
        await _churn(drill, pods, victims, every)
        churned = time.monotonic() - began
        await drill.quiet()
        await _judge_kernel(drill)
        await _judge_owners(drill)
        for family in (4, 6):
            await _judge_capacity(drill, family)
        ledger = drill.ledger
        print(
            f"seed {seed}: {drill.adds} pods, {len(ledger.holds)} holds, {ledger.reused()} passed on, "
            f"killed {drill.killed}; {churned:.1f} s + {time.monotonic() - began - churned:.1f} s"
        )
        assert ledger.odd == []
        assert ledger.held_twice() == []
        assert ledger.too_soon(REST) == []
        assert ledger.moved() == []
        assert drill.adds >= pods
        assert drill.deletes >= pods
        assert ledger.reused() >= pods / 4, "the pool is too large to prove anything"
        assert world.fallen() == []
        assert world.troubles() == []


@pytest.mark.timeout(300)
async def test_no_address_is_held_twice_or_lost(world: MiniCluster) -> None:
    victims = ["dataplane-n2", "ipam-1", "dataplane-n1", "policy-1", "nats", "dataplane-n3", "ipam-2"]
    await _run(world, 60, victims, 0.6, seed=6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
async def test_no_address_is_held_twice_or_lost_in_five_hundred(world: MiniCluster, seed: int) -> None:
    victims = ["nats", "dataplane-n1", "ipam-1", "dataplane-n2", "policy-1", "ipam-2", "dataplane-n3", "policy-2"]
    await _run(world, 500, victims, 1.0, seed=seed)
