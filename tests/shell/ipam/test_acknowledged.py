"""What every live node has acknowledged of ``endpoints``, as copies of ipam publish it on a real server."""

from __future__ import annotations

import asyncio

import pytest

from chassis.bus.client import Bus
from proto.addresses import ACKNOWLEDGED_KEY, AcknowledgedEndpoints, Claim
from proto.codec import address_segment
from proto.policy import Ack, Revision
from proto.subjects import ACKS, BLOCKS, CLAIMS, ENDPOINTS
from proto.sync import EPOCH_KEY, Epoch
from services.ipam import app
from tests.conftest import BusFor
from tests.shell.ipam.conftest import Cluster, StartIpam, node, stateful
from tests.shell.ipam.test_blocks_and_claims import claim, claim_of, report

EVERY = 0.1


async def test_the_least_of_all_ready_nodes_is_published_and_follows_them(
    cluster: Cluster, start_ipam: StartIpam, bus_for: BusFor
) -> None:
    buses = {name: await bus_for("dataplane", name) for name in ("n1", "n2")}
    blocks = buses["n1"].bucket(BLOCKS)

    async def acknowledge(name: str, sequence: int, epoch: str = "e") -> None:
        ack = Ack(name, Revision("r", 1), sequence, endpoints_epoch=epoch)
        await buses[name].bucket(ACKS).put(name, ack)

    async def published(epoch: str, sequence: int) -> None:
        wanted, found = AcknowledgedEndpoints(epoch, sequence), None
        async with asyncio.timeout(20):
            while found != wanted:
                await asyncio.sleep(EVERY / 4)
                entry = await blocks.get(ACKNOWLEDGED_KEY, AcknowledgedEndpoints)
                found = None if entry is None else entry.value

    await acknowledge("n1", 7)
    await acknowledge("n2", 5)
    for _ in range(2):
        await start_ipam(acknowledged_every=EVERY)
    await published("e", 5)
    await acknowledge("n2", 9)
    await published("e", 7)
    await acknowledge("n2", 9, "of before")
    await published("", 0)
    await cluster.add(node("n2", ready=False))
    await published("e", 7)


async def test_a_kept_address_is_freed_once_a_node_that_was_behind_has_caught_up(
    cluster: Cluster, start_ipam: StartIpam, bus_for: BusFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody owns it any more and it has rested: n2 may still send packets for it to the pod that it knew there."""
    monkeypatch.setattr(app, "SWEEP_EVERY", EVERY)
    n1, n2, cli = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2"), await bus_for("cli")
    stands = await cluster.bus.bucket(ENDPOINTS).get(EPOCH_KEY, Epoch)
    assert stands is not None
    epoch = stands.value.epoch

    async def acknowledge(bus: Bus, name: str, sequence: int) -> None:
        ack = Ack(name, Revision("r", 1), sequence, endpoints_epoch=epoch)
        await bus.bucket(ACKS).put(name, ack)

    await start_ipam(acknowledged_every=EVERY, owner_grace=0.3, address_cooldown=0.5)
    await report(n1, "n1")
    await report(n2, "n2")
    db = stateful("db-0", "n1", "uid-a")
    await cluster.add(db)
    kept = await claim(n1, claim_of("db-0", "n1", "uid-a"))
    end = await cluster.bus.bucket(ENDPOINTS).last_sequence()
    await acknowledge(n1, "n1", end + 100)
    await acknowledge(n2, "n2", end - 1)
    await cluster.remove(db)
    claims = cli.bucket(CLAIMS)
    key = address_segment(kept.address)
    await asyncio.sleep(3)
    assert await claims.get(key, Claim) is not None, "n2 is behind"
    await acknowledge(n2, "n2", end)
    async with asyncio.timeout(10):
        while await claims.get(key, Claim) is not None:
            await asyncio.sleep(EVERY)
