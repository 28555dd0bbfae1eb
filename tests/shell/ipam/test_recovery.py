"""Lost buckets and killed copies, on a real server."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import uuid
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from chassis.bus import Bus
from chassis.faults import Damaged, Refused, Unavailable
from proto.addresses import Block, Claim, OwnerRecord
from proto.requests import BlockGrant, BlockRequest, IpamShow, IpamState
from proto.subjects import BLOCKS, CLAIMS, IPAM_BLOCK, IPAM_SHOW, OWNERS, Bucket
from tests.conftest import BusFor
from tests.natsd import NatsServer
from tests.shell.ipam.conftest import V4, V6, Cluster, StartIpam, node, stateful
from tests.shell.ipam.test_blocks_and_claims import block, claim, claim_of, report

RECORDS: tuple[tuple[Bucket, type[Any]], ...] = ((BLOCKS, Block), (OWNERS, OwnerRecord), (CLAIMS, Claim))
ROOT = Path(__file__).parents[3]


async def lose_all_buckets(server: NatsServer, cluster: Cluster) -> dict[str, str]:
    """The server dies and its files are gone; it comes back, and ``cluster`` makes everything anew."""
    server.kill()
    shutil.rmtree(server.folder / "store")
    server.start()
    for _ in range(100):
        try:
            epochs = await cluster.bus.make_buckets()
        except Unavailable:
            await asyncio.sleep(0.1)
            continue
        await cluster.add(V4, V6, node("n1"), node("n2"), stateful("db-0", "n1", "uid-a"))
        await cluster.complete(epochs["objects"])
        return epochs
    raise AssertionError("the server did not come back")


async def shown(agent: Bus, *, waiting: tuple[str, ...]) -> None:
    for _ in range(300):
        try:
            state = await agent.request(IPAM_SHOW, IpamShow(), IpamState, timeout=2)
            if state.waiting_for == waiting and not state.problems:
                return
        except (Unavailable, Refused):
            pass
        await asyncio.sleep(0.1)
    raise AssertionError(f"ipam never waited for {waiting}")


async def test_after_all_buckets_are_lost_nothing_is_given_twice(
    nats_server: NatsServer, bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    await start_ipam()
    await start_ipam()
    n1, n2, cli = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2"), await bus_for("cli")
    await report(n1, "n1")
    await report(n2, "n2")
    held1, held2 = await block(n1, "n1"), await block(n2, "n2")
    await cluster.add(stateful("db-0", "n1", "uid-a"))
    kept = await claim(n1, claim_of("db-0", "n1", "uid-a"))

    await lose_all_buckets(nats_server, cluster)
    await shown(cli, waiting=("n1", "n2"))
    assert (await report(n2, "n2", held2)).blocks == (held2,)
    request = BlockRequest(node="n2", node_uid="uid-n2", family=4, nonce=uuid.uuid4().hex)
    with pytest.raises(Refused, match="not-synced"):
        await n2.request(IPAM_BLOCK, request, BlockGrant, timeout=5)
    await report(n1, "n1", held1, claims=(kept,))
    fresh = await block(n2, "n2")
    assert not any(fresh.cidr.overlaps(other.cidr) for other in (held1, held2))
    assert kept.address not in fresh.cidr
    again: Claim = await claim(n1, claim_of("db-0", "n1", "uid-a", container=kept.container))
    assert (again.address, again.epoch) == (kept.address, kept.epoch), "the claim is on record as it was"


async def test_of_two_reports_of_one_block_the_higher_epoch_stays(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    await start_ipam()
    n1, n2 = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
    cidr = ip_network("10.244.0.0/26")
    older, newer = Block(cidr, "p", "n1", "uid-n1", 5, "a"), Block(cidr, "p", "n2", "uid-n2", 9, "b")
    assert (await report(n1, "n1", older)).blocks == (older,)
    assert (await report(n2, "n2", newer)).blocks == (newer,)
    assert (await report(n1, "n1", older)).blocks == (), "it must be given up"


async def test_killing_a_copy_in_the_middle_gives_no_block_twice(
    nats_server: NatsServer, bus_for: BusFor, cluster: Cluster
) -> None:
    copies = [start_process(nats_server, number) for number in range(2)]
    try:
        n1, n2 = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
        await report(n1, "n1")
        await report(n2, "n2")
        agents = ((n1, "n1"), (n2, "n2"))
        asks = [asyncio.create_task(block(*agents[number % 2], nonce=f"n-{number}")) for number in range(60)]
        await asyncio.sleep(0.05)
        copies[0].kill()
        given = await asyncio.gather(*asks)
        assert len({granted.cidr for granted in given}) == 60
        stored = await n1.bucket(BLOCKS).list(Block)
        by_nonce = {entry.value.nonce: entry.value for entry in stored.values()}
        assert [by_nonce[f"n-{number}"] for number in range(60)] == list(given)
    finally:
        for copy in copies:
            copy.terminate()
        codes = [copy.wait(10) for copy in copies]
    assert codes[1] == 0, "a copy that is told to stop ends well"


def start_process(server: NatsServer, number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.ipam"],
        cwd=ROOT,
        env={**os.environ, **server.environment("ipam", AIRMESH_INSTANCE=f"ipam-process-{number}")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("body", [None, b"\xc1"], ids=["an answer", "garbage"])
async def test_records_that_nobody_can_read_are_written_again(
    nats_server: NatsServer, bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam, body: bytes | None
) -> None:
    await start_ipam()
    await start_ipam()
    n1, n2 = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
    await report(n1, "n1")
    await report(n2, "n2")
    await cluster.add(stateful("db-0", "n1", "uid-a"))
    held, kept = await block(n1, "n1"), await claim(n1, claim_of("db-0", "n1", "uid-a"))
    cli = await bus_for("cli")
    before = [await contents(cli, bucket, kind) for bucket, kind in RECORDS]
    views = [cli.bucket(bucket).watch({"": kind}, name=bucket.name) for bucket, kind in RECORDS]
    for view in views:
        await view.wait_synced(5)
    for (bucket, _), values in zip(RECORDS, before, strict=True):
        for key in (*values, "_complete"):
            await nats_server.destroy(bucket, key, body)
    assert (await block(n2, "n2")).cidr != held.cidr
    assert (await claim(n1, claim_of("db-0", "n1", "uid-a"))).address == kept.address
    for (bucket, kind), values in zip(RECORDS, before, strict=True):
        found = await contents(cli, bucket, kind)
        assert {key: found[key] for key in values} == values
    for view in views:
        assert view.scope_complete()
        assert not view.unreadable


async def contents(bus: Bus, bucket: Bucket, kind: type[Any]) -> dict[str, Any]:
    """Every value of a bucket, as soon as all can be read."""
    for _ in range(100):
        try:
            return {key: entry.value for key, entry in (await bus.bucket(bucket).list(kind)).items()}
        except Damaged:
            await asyncio.sleep(0.05)
    raise AssertionError("never mended")
