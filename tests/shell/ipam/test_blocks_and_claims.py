"""Blocks and claims over a real bus, by two copies."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network
from typing import Any, Literal, TypeVar

import msgspec
import pytest

from chassis.bus.client import Bus
from chassis.faults import Refused, Unavailable
from proto.addresses import IPAM_HOLDER, Block, Claim
from proto.annotations import FIXED_ADDRESSES as STATIC
from proto.events import AddressMoved
from proto.objects import Owner
from proto.requests import (
    BlockGrant,
    BlockReportAnswer,
    BlockReportRequest,
    BlockRequest,
    ClaimGrant,
    ClaimRelease,
    ClaimRequest,
    IpamShow,
    IpamState,
)
from proto.subjects import BLOCKS, CLAIMS, IPAM_BLOCK, IPAM_CLAIM, IPAM_RELEASE, IPAM_REPORT, IPAM_SHOW, of_node
from tests.conftest import BusFor
from tests.shell.ipam.conftest import V4, V6, Cluster, StartIpam, node, stateful

T = TypeVar("T")
BOTH: tuple[Literal[4, 6], ...] = (4, 6)


async def report(agent: Bus, name: str, *blocks: Block, claims: tuple[Claim, ...] = ()) -> BlockReportAnswer:
    request = BlockReportRequest(node=name, node_uid=f"uid-{name}", blocks=blocks, claims=claims)
    return await patiently(lambda: agent.request(of_node(IPAM_REPORT, name), request, BlockReportAnswer, timeout=5))


async def patiently(ask: Callable[[], Awaitable[T]], tries: int = 100) -> T:
    for _ in range(tries):
        try:
            return await ask()
        except Refused as refused:
            if not refused.retry:
                raise
        except Unavailable:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError("never answered")


async def block(agent: Bus, name: str, family: Literal[4, 6] = 4, nonce: str = "") -> Block:
    request = BlockRequest(node=name, node_uid=f"uid-{name}", family=family, nonce=nonce or uuid.uuid4().hex)
    return (await patiently(lambda: agent.request(of_node(IPAM_BLOCK, name), request, BlockGrant, timeout=5))).block


def claim_of(name: str, on: str, uid: str, family: Literal[4, 6] = 4, **more: Any) -> ClaimRequest:
    owner, _, ordinal = name.rpartition("-")
    fields: dict[str, Any] = {"container": f"c-{uid}", "interface": "eth0", "nonce": uuid.uuid4().hex, **more}
    return ClaimRequest(
        owner=Owner("shop", "StatefulSet", owner, int(ordinal)), family=family, node=on, pod_uid=uid, **fields
    )


async def claim(agent: Bus, request: ClaimRequest) -> Claim:
    return (
        await patiently(lambda: agent.request(of_node(IPAM_CLAIM, request.node), request, ClaimGrant, timeout=5))
    ).claim


async def refusal(agent: Bus, request: ClaimRequest, *, but: str) -> str:
    """Code of the refusal, once it is another one than ``but``."""
    for _ in range(100):
        try:
            await agent.request(of_node(IPAM_CLAIM, request.node), request, ClaimGrant, timeout=5)
        except Refused as refused:
            if refused.code != but:
                return refused.code
        await asyncio.sleep(0.05)
    return "never"


async def test_nothing_is_given_before_every_node_has_reported(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    await start_ipam()
    n1, n2 = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
    held = Block(ip_network("10.244.0.0/26"), "default-v4", "n2", "uid-n2", 7, "old")
    await report(n1, "n1")
    request = BlockRequest(node="n1", node_uid="uid-n1", family=4, nonce="x")
    with pytest.raises(Refused, match="not-synced"):
        await n1.request(of_node(IPAM_BLOCK, "n1"), request, BlockGrant, timeout=20)
    (again,) = (await report(n2, "n2", held)).blocks
    assert (again.cidr, again.node, again.nonce) == (held.cidr, "n2", "old")
    assert again.epoch > held.epoch, "given by ipam"
    assert (await block(n1, "n1")).cidr == ip_network("10.244.0.64/26")


async def test_of_a_dead_node_the_annotation_is_accepted(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    await cluster.add(node("n2", ready=False, blocks=("10.244.0.0/26",)))
    await start_ipam()
    n1 = await bus_for("dataplane", "n1")
    await report(n1, "n1")
    assert (await block(n1, "n1")).cidr == ip_network("10.244.0.64/26")


async def test_two_copies_never_give_one_block_twice(bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam) -> None:
    await start_ipam()
    await start_ipam()
    n1, n2 = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
    await report(n1, "n1")
    await report(n2, "n2")
    nonces = [f"nonce-{number}" for number in range(30)]
    agents = ((n1, "n1"), (n2, "n2"))
    asks = [block(*agents[number % 2], nonce=nonce) for number, nonce in enumerate(nonces)]
    repeats = [block(*agents[number % 2], nonce=nonce) for number, nonce in enumerate(nonces)]
    given = await asyncio.gather(*asks, *repeats)
    first, second = given[:30], given[30:]
    assert first == second, "one nonce, one block"
    assert len({granted.cidr for granted in first}) == 30
    stored = await n1.bucket(BLOCKS).list(Block)
    assert {entry.value.cidr for entry in stored.values()} == {granted.cidr for granted in first}


async def test_a_kept_address_moves_when_its_pod_is_gone(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    await start_ipam()
    await start_ipam()
    n1, n2, watcher = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2"), await bus_for("cli")
    moves: list[AddressMoved] = []
    await watcher.subscribe("airmesh.v1.events.ipam.address-moved", AddressMoved, lambda _, event: moves.append(event))
    await report(n1, "n1")
    await report(n2, "n2")
    old, new = stateful("db-0", "n1", "uid-a"), stateful("db-0", "n2", "uid-b")
    await cluster.add(old)
    first = await claim(n1, claim_of("db-0", "n1", "uid-a"))
    again = await claim(n1, claim_of("db-0", "n1", "uid-a"))
    assert again == first
    await cluster.add(new)
    assert await refusal(n2, claim_of("db-0", "n2", "uid-b"), but="not-synced") == "held-elsewhere"
    await cluster.remove(old)
    moved = await claim(n2, claim_of("db-0", "n2", "uid-b"))
    assert (moved.address, moved.node) == (first.address, "n2")
    assert moved.epoch > first.epoch
    await n1.send(
        of_node(IPAM_RELEASE, "n1"), ClaimRelease(first.address, first.container, "eth0", first.nonce), timeout=5
    )
    stored = await n1.bucket(CLAIMS).list(Claim)
    assert [entry.value for entry in stored.values()] == [moved], "the old holder's release changes nothing"
    await asyncio.sleep(0.1)
    assert [(move.from_node, move.to_node) for move in moves] == [("n1", "n2")]
    state = await watcher.request(IPAM_SHOW, IpamShow(), IpamState, timeout=20)
    assert [b.node for b in state.blocks] == [IPAM_HOLDER]
    assert state.pools[0] == V4


async def test_a_pool_that_cannot_be_honoured_gives_nothing_and_says_why(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    await start_ipam()
    n1, watcher = await bus_for("dataplane", "n1"), await bus_for("cli")
    await report(n1, "n1")
    await report(await bus_for("dataplane", "n2"), "n2")
    first = await block(n1, "n1")
    await cluster.add(msgspec.structs.replace(V4, namespace_selector="has(team)"), stateful("db-0", "n1", "uid-a"))

    async def shown() -> IpamState:
        return await watcher.request(IPAM_SHOW, IpamShow(summary=True), IpamState, timeout=20)

    async with asyncio.timeout(20):
        while not (state := await shown()).problems:
            await asyncio.sleep(0.05)
    assert [(one.pool, one.reason) for one in state.verdicts] == [(V4.name, "UnsupportedField"), (V6.name, "OK")]
    assert state.blocks == (), "a summary leaves out what grows"
    asked = BlockRequest(node="n1", node_uid="uid-n1", family=4, nonce="another")
    with pytest.raises(Refused) as caught:
        await n1.request(of_node(IPAM_BLOCK, "n1"), asked, BlockGrant, timeout=20)
    assert caught.value.code == "pool-exhausted"
    assert await refusal(n1, claim_of("db-0", "n1", "uid-a"), but="not-synced") == "pool-exhausted"
    assert first in (await report(n1, "n1", first)).blocks, "what was given stays"
    assert (await block(n1, "n1", 6)).pool == V6.name
    await cluster.add(V4)
    async with asyncio.timeout(20):
        while (await shown()).problems:
            await asyncio.sleep(0.05)
    assert (await block(n1, "n1")).pool == V4.name


async def test_many_claims_at_once_have_addresses_of_their_own(
    bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    await start_ipam()
    await start_ipam()
    n1 = await bus_for("dataplane", "n1")
    await report(n1, "n1")
    await report(await bus_for("dataplane", "n2"), "n2")
    await cluster.add(*(stateful(f"db-{number}", "n1", f"u{number}") for number in range(20)))
    asked = [claim_of(f"db-{number}", "n1", f"u{number}", family) for number in range(20) for family in BOTH]
    held = await asyncio.gather(*(claim(n1, request) for request in asked))
    assert len({claimed.address for claimed in held}) == 40
    assert {claimed.address.version for claimed in held} == {4, 6}


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("10.244.9.9", ""),
        ("192.0.2.1", "bad-address"),
        ("10.244.0.5", "address-in-node-block"),
        ("10.244.9.0", ""),
        ("fd00:10:244::940", "bad-address"),
        ("fd00:10:244::941", ""),
    ],
)
async def test_fixed_addresses(
    address: str, code: str, bus_for: BusFor, cluster: Cluster, start_ipam: StartIpam
) -> None:
    await start_ipam()
    n1 = await bus_for("dataplane", "n1")
    await report(n1, "n1")
    await report(await bus_for("dataplane", "n2"), "n2")
    assert (await block(n1, "n1")).cidr == ip_network("10.244.0.0/26")
    asks = msgspec.structs.replace(stateful("db-0", "n1", "uid-a"), annotations=((STATIC, f'["{address}"]'),))
    await cluster.add(asks)
    family: Literal[4, 6] = 6 if ":" in address else 4
    request = claim_of("db-0", "n1", "uid-a", family, address=ip_address(address))
    if code:
        with pytest.raises(Refused, match=code):
            await claim(n1, request)
    else:
        assert str((await claim(n1, request)).address) == address
