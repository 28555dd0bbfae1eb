"""Lost buckets and killed copies, on a real server."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import uuid
from contextlib import AsyncExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from chassis.bus.client import Bus
from chassis.faults import Damaged, Refused, Unavailable
from proto.addresses import CONTESTED, Block, Claim, OwnerRecord
from proto.codec import block_key
from proto.events import ServiceFault
from proto.requests import BlockGrant, BlockRequest, IpamShow, IpamState
from proto.subjects import BLOCKS, CLAIMS, IPAM_BLOCK, IPAM_SHOW, OWNERS, Bucket, event_subject, of_node
from services.ipam import app, upkeep
from tests.conftest import BusFor
from tests.natsd import NatsServer, runtime_of
from tests.shell.ipam.conftest import V4, V6, Cluster, StartIpam, ipam_settings, node, stateful
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
    (again2,) = (await report(n2, "n2", held2)).blocks
    assert (again2.cidr, again2.node, again2.nonce) == (held2.cidr, "n2", held2.nonce)
    request = BlockRequest(node="n2", node_uid="uid-n2", family=4, nonce=uuid.uuid4().hex)
    with pytest.raises(Refused, match="not-synced"):
        await n2.request(of_node(IPAM_BLOCK, "n2"), request, BlockGrant, timeout=20)
    await report(n1, "n1", held1, claims=(kept,))
    fresh = await block(n2, "n2")
    assert not any(fresh.cidr.overlaps(other.cidr) for other in (held1, held2))
    assert kept.address not in fresh.cidr
    again: Claim = await claim(n1, claim_of("db-0", "n1", "uid-a", container=kept.container))
    assert (again.address, again.nonce) == (kept.address, kept.nonce), "the claim is on record as it was"
    assert again.epoch >= kept.epoch


async def test_who_holds_everybody_up_is_named_and_goes_on_record_by_its_annotation(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be cut off and give addresses of its blocks for ever: they, and those of its pods' kept ones, stay its."""
    monkeypatch.setattr(upkeep, "SILENT", 0.5)
    monkeypatch.setattr(upkeep, "OVERDUE", 3600.0)
    kept = ip_address("10.244.0.70")
    await cluster.add(node("n2", blocks=(str(CIDR),)))
    await cluster.add(replace(stateful("db-0", "n2", "uid-db"), addresses=(kept,), phase="Running"))
    cli, n1 = await bus_for("cli"), await bus_for("dataplane", "n1")
    faults: list[ServiceFault] = []
    await cli.subscribe(event_subject("ipam", "fault"), ServiceFault, lambda _, fault: faults.append(fault))
    await start_ipam()
    await report(n1, "n1")
    for _ in range(100):
        if any(fault.node == "n2" for fault in faults):
            break
        await asyncio.sleep(0.1)
    reported = next((fault for fault in faults if fault.node == "n2"), None)
    assert reported is not None, "nobody hears who holds everybody up"
    assert "node n2 is Ready, but its dataplane has not said" in reported.fault
    assert "or 3600 s have passed, no node gets a new block" in reported.fault
    request = BlockRequest(node="n1", node_uid="uid-n1", family=4, nonce=uuid.uuid4().hex)
    with pytest.raises(Refused, match="not-synced"):
        await n1.request(of_node(IPAM_BLOCK, "n1"), request, BlockGrant, timeout=20)
    monkeypatch.setattr(upkeep, "OVERDUE", 0.5)
    fresh = await block(n1, "n1")
    assert not fresh.cidr.overlaps(CIDR), "what the silent node may still use is given to nobody"
    assert kept not in fresh.cidr, "nor what a pod of it keeps"
    assert await recorded(cli) == "n2"
    (held,) = (await report(await bus_for("dataplane", "n2"), "n2", said("n2", 4))).blocks
    assert (held.cidr, held.node) == (CIDR, "n2"), "it is back, and has what it had"
    await cluster.add(stateful("db-1", "n1", "uid-db1"))
    assert (await claim(n1, claim_of("db-1", "n1", "uid-db1"))).address != kept


CIDR = ip_network("10.244.0.0/26")


def said(name: str, epoch: int) -> Block:
    """What a node says of one block that two say they hold."""
    return Block(CIDR, "p", name, f"uid-{name}", epoch, f"nonce-{name}")


async def recorded(agent: Bus) -> str:
    entry = await agent.bucket(BLOCKS).get(block_key(CIDR), Block)
    return "" if entry is None else entry.value.node


@pytest.mark.parametrize("order", [("n1", "n2"), ("n2", "n1")])
@pytest.mark.parametrize("evidence", ["annotation", "pod"])
async def test_of_two_that_report_one_block_the_api_decides_and_no_epoch(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam, evidence: str, order: tuple[str, str]
) -> None:
    if evidence == "annotation":
        await cluster.add(node("n1", blocks=(str(CIDR),)))
    else:
        await cluster.add(replace(stateful("web-0", "n1", "uid-web"), addresses=(CIDR[9],), phase="Running"))
    await start_ipam()
    agents = {name: await bus_for("dataplane", name) for name in ("n1", "n2")}
    epochs = {"n1": 5, "n2": 1 << 62}
    answers = {name: (await report(agents[name], name, said(name, epochs[name]))).blocks for name in order}
    assert await recorded(agents["n1"]) == "n1"
    assert answers["n2"] == ()
    assert [held.epoch < 1 << 40 for held in answers["n1"]] == [True]


@pytest.mark.parametrize("order", [("n1", "n2"), ("n2", "n1")])
async def test_of_two_unproven_neither_has_it_until_the_api_shows_whose_it_is(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam, order: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "SWEEP_EVERY", 0.1)
    await start_ipam()
    agents = {name: await bus_for("dataplane", name) for name in ("n1", "n2")}
    cli = await bus_for("cli")
    faults: list[ServiceFault] = []
    await cli.subscribe(event_subject("ipam", "fault"), ServiceFault, lambda _, fault: faults.append(fault))
    await asyncio.sleep(0.1)
    first, second = order
    await report(agents[first], first, said(first, 5))
    assert (await report(agents[second], second, said(second, 1 << 62))).blocks == ()
    assert await recorded(agents["n1"]) == CONTESTED
    assert (await report(agents[first], first, said(first, 5))).blocks == ()
    for name in order:
        given = await block(agents[name], name)
        assert given.cidr != CIDR, "nobody is given what is contested"
    state = await cli.request(IPAM_SHOW, IpamShow(), IpamState, timeout=20)
    assert str(CIDR) in "".join(state.problems)
    assert second in [fault.node for fault in faults]
    await cluster.add(node("n1", blocks=(str(CIDR),)))
    for _ in range(100):
        if await recorded(agents["n1"]) == "n1":
            break
        await asyncio.sleep(0.05)
    assert [held.cidr for held in (await report(agents["n1"], "n1", said("n1", 5))).blocks if held.cidr == CIDR] == [
        CIDR
    ]
    assert CIDR not in [held.cidr for held in (await report(agents["n2"], "n2", said("n2", 9))).blocks]


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
        await view.wait_synced(20)
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


async def test_a_block_whose_record_no_copy_knew_is_given_to_nobody_until_its_holder_reports(
    nats_server: NatsServer, bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    n1, n2 = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
    async with AsyncExitStack() as stack:
        settings = ipam_settings(nats_server)
        await app.build(await stack.enter_async_context(runtime_of(nats_server, "ipam", settings=settings)))
        await report(n1, "n1")
        await report(n2, "n2")
        held = await block(n1, "n1")
    await nats_server.destroy(BLOCKS, block_key(held.cidr))
    await start_ipam()
    assert (await block(n2, "n2")).cidr != held.cidr
    answer = await report(n1, "n1", held)
    assert [one.cidr for one in answer.blocks] == [held.cidr]
    entry = await n1.bucket(BLOCKS).get(block_key(held.cidr), Block)
    assert entry is not None
    assert entry.value.node == "n1"
