"""Blocks of a deleted Node over a real bus, by two copies: what frees them, and each thing that does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_network

import msgspec
import pytest
import pytest_asyncio

from chassis.bus.client import Bus
from chassis.telemetry.log import Log
from proto.addresses import Block, Endpoint
from proto.codec import block_key, encode_segment
from proto.objects import Pod
from proto.policy import Ack, Revision
from proto.subjects import ACKS, BLOCKS, ENDPOINTS, OBJECTS
from services.ipam import app
from services.ipam.core.orphaned import MARK, freed
from services.ipam.core.seen import Seen
from services.ipam.reclaim import Reclaimer
from tests.conftest import BusFor
from tests.natsd import endpoint_at
from tests.shell.ipam.conftest import Cluster, StartIpam, node
from tests.shell.ipam.test_blocks_and_claims import block, report

GRACE, REST, EVERY = 0.6, 0.6, 0.1
PASSES = 8
"""Passes of a copy that are waited out where nothing should happen, after the grace and the rest."""
POD = Pod(namespace="shop", name="web", uid="uid-web", node="n2")


class Blocks:
    """Node n2 holds a block, and has spoken; n1 looks on."""

    def __init__(self, cluster: Cluster, n1: Bus, n2: Bus, held: Block) -> None:
        self.cluster, self.n1, self.n2, self.held = cluster, n1, n2, held

    async def now(self) -> Block:
        entry = await self.n1.bucket(BLOCKS).get(block_key(self.held.cidr), Block)
        assert entry is not None
        return entry.value

    async def until(self, wanted: Callable[[Block], bool]) -> tuple[float, float]:
        """When the record was last seen to be otherwise, and when it was seen to be so: monotonic seconds."""
        before = begun = time.monotonic()
        while True:
            asked = time.monotonic()
            now = await self.now()
            if wanted(now):
                return before, time.monotonic()
            assert asked - begun < 15, now
            before = asked
            await asyncio.sleep(0.05)

    async def stays(self) -> None:
        """Through grace and rest, and some passes more."""
        end = time.monotonic() + GRACE + REST + PASSES * EVERY
        while time.monotonic() < end:
            assert (await self.now()).node == "n2"
            await asyncio.sleep(EVERY)

    async def lives(self, pod: Pod) -> None:
        """An entry of ``endpoints``, as n2 writes it for a pod."""
        address = self.held.cidr.network_address + 1
        entry = Endpoint("n2", address, pod.namespace, pod.name, pod.uid, 300, b"123456", self.held.epoch, 1)
        await self.n2.bucket(ENDPOINTS).put(endpoint_at("n2", address), entry)

    async def acknowledge(self, pods: int = 0) -> None:
        ack = Ack(node="n2", rules=Revision(epoch="e", sequence=1), endpoints=1, pods=pods)
        await self.n2.bucket(ACKS).put(encode_segment("n2"), ack)


StartBlocks = Callable[[float], Awaitable[Blocks]]


@pytest.fixture
def start_blocks(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam, monkeypatch: pytest.MonkeyPatch
) -> StartBlocks:
    """Two copies for which an address rests so many seconds, and what :class:`Blocks` says."""

    async def start(rest: float) -> Blocks:
        monkeypatch.setattr(app, "SWEEP_EVERY", EVERY)
        for _ in range(2):
            await start_ipam(node_grace=GRACE, address_cooldown=rest)
        n1, n2 = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
        await report(n1, "n1")
        await report(n2, "n2")
        made = Blocks(cluster, n1, n2, await block(n2, "n2"))
        await made.acknowledge()
        return made

    return start


@pytest_asyncio.fixture
async def blocks(start_blocks: StartBlocks) -> Blocks:
    return await start_blocks(REST)


async def test_a_deleted_nodes_block_is_marked_rests_and_is_given_to_another(blocks: Blocks) -> None:
    await blocks.lives(POD)  # and n2 dies: what it left behind says nothing, once the pod is gone
    deleted = time.monotonic()
    await blocks.cluster.remove(node("n2"))
    not_yet, marked = await blocks.until(lambda now: now.nonce == MARK + blocks.held.nonce)
    assert marked - deleted >= GRACE
    _, free = await blocks.until(lambda now: not now.node)
    assert free - not_yet >= REST
    assert (await blocks.now()).epoch == blocks.held.epoch + 1
    given = await block(blocks.n1, "n1")
    assert (given.cidr, given.node) == (blocks.held.cidr, "n1")
    assert given.epoch > blocks.held.epoch + 1
    assert (await report(blocks.n2, "n2", blocks.held)).blocks == (), "who was thought dead hears that it is another's"


async def test_a_node_that_is_there_keeps_its_block(blocks: Blocks) -> None:
    await blocks.cluster.add(node("n2", ready=False))
    await blocks.stays()


async def test_a_node_with_a_pod_keeps_its_block_until_the_pod_is_gone(blocks: Blocks) -> None:
    pod = msgspec.structs.replace(POD, node="n1")  # so that the endpoint alone speaks for n2
    await blocks.cluster.add(pod)
    await blocks.lives(pod)
    await blocks.cluster.remove(node("n2"))
    await blocks.stays()
    await blocks.cluster.remove(pod)
    await blocks.until(lambda now: not now.node)


async def test_a_node_whose_pods_are_known_keeps_its_block(blocks: Blocks) -> None:
    await blocks.cluster.add(POD)
    await blocks.cluster.remove(node("n2"))
    await blocks.stays()


@pytest.mark.parametrize("sign", ["acks", "endpoints", "report"])
async def test_a_node_that_speaks_keeps_its_block_until_it_falls_silent(blocks: Blocks, sign: str) -> None:
    await blocks.cluster.remove(node("n2"))
    end = time.monotonic() + 2 * (GRACE + REST)
    while (spoke := time.monotonic()) < end:
        match sign:
            case "acks":
                await blocks.acknowledge()
            case "endpoints":
                await blocks.lives(POD)
            case _:
                await report(blocks.n2, "n2", blocks.held)
        await asyncio.sleep(GRACE / 4)
        now = await blocks.now()
        assert now.node == "n2"
        assert now == blocks.held or time.monotonic() - spoke >= GRACE, "not even marked"
    await blocks.until(lambda now: not now.node)


async def test_nothing_is_reclaimed_while_objects_is_not_complete(blocks: Blocks) -> None:
    """Its marker is of another epoch, as after ``objects`` was made anew: that a Node is not there says nothing."""
    epochs = await blocks.cluster.bus.make_buckets()
    await blocks.cluster.complete("an epoch that is over")
    await blocks.cluster.remove(node("n2"))
    await blocks.stays()
    complete = time.monotonic()
    await blocks.cluster.complete(epochs["objects"])
    _, free = await blocks.until(lambda now: not now.node)
    assert free - complete >= GRACE + REST


async def test_a_node_that_comes_back_in_time_loses_its_mark(start_blocks: StartBlocks) -> None:
    blocks = await start_blocks(60.0)
    await blocks.cluster.remove(node("n2"))
    await blocks.until(lambda now: now.nonce.startswith(MARK))
    await blocks.cluster.add(node("n2"))
    await blocks.until(lambda now: now == blocks.held)


async def test_a_node_that_speaks_before_another_has_its_block_gets_it_again(blocks: Blocks) -> None:
    await blocks.cluster.remove(node("n2"))
    await blocks.until(lambda now: not now.node)
    assert await blocks.now() == freed(msgspec.structs.replace(blocks.held, nonce=MARK + blocks.held.nonce))
    await blocks.cluster.add(node("n2"))
    (again,) = (await report(blocks.n2, "n2", blocks.held)).blocks
    assert again.epoch >= blocks.held.epoch + 2
    assert msgspec.structs.replace(again, epoch=0) == msgspec.structs.replace(blocks.held, epoch=0)


@pytest.mark.parametrize(
    ("there", "epoch_seen", "changed", "taken"),
    [
        (False, True, False, True),
        (True, True, False, False),
        (False, False, False, False),
        (False, True, True, False),
    ],
    ids=["gone", "the-node-is-back", "objects-was-made-anew", "the-record-is-another"],
)
async def test_the_leader_is_asked_and_not_the_view_alone(
    bus_for: BusFor,
    cluster: Cluster,
    buckets: dict[str, str],
    there: bool,
    epoch_seen: bool,
    changed: bool,
    taken: bool,
) -> None:
    """The view of this copy is behind: for it the Node is gone, and the block is marked and has rested."""
    bus, now = await bus_for("ipam"), [0.0]
    store, objects, acks, endpoints = (bus.bucket(bucket) for bucket in (BLOCKS, OBJECTS, ACKS, ENDPOINTS))
    held = Block(ip_network("10.244.0.0/26"), "default-v4", "n2", "uid-n2", 7, MARK + "asked")
    stored = msgspec.structs.replace(held, nonce="asked") if changed else held
    await store.put(block_key(held.cidr), stored)
    if not there:
        await cluster.remove(node("n2"))
    seen = Seen(blocks={held.cidr: held}, complete=True)
    epoch = buckets["objects"] if epoch_seen else "another"
    copy = Reclaimer(
        store, (objects, acks, endpoints), lambda: seen, lambda: epoch, no_fence, all_known, Log("ipam"), lambda: now[0]
    )
    for now[0] in (0.0, 1000.0, 2000.0):
        await copy.sweep(GRACE, REST)
    entry = await store.get(block_key(held.cidr), Block)
    assert entry is not None
    assert entry.value == (freed(held) if taken else stored)


async def all_known(rested: tuple[Block, ...]) -> tuple[Block, ...]:
    """Every live node has acknowledged that their pods left."""
    return rested


async def no_fence() -> None:
    """The buckets are those that were seen."""
