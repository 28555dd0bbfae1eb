"""What every live node has acknowledged of ``endpoints``, as copies of ipam publish it on a real server."""

from __future__ import annotations

import asyncio

from proto.addresses import ACKNOWLEDGED_KEY, AcknowledgedEndpoints
from proto.policy import Ack, Revision
from proto.subjects import ACKS, BLOCKS
from tests.conftest import BusFor
from tests.shell.ipam.conftest import Cluster, StartIpam, node

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
        async with asyncio.timeout(5):
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
