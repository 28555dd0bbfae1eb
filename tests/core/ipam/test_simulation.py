"""ipam under faults: many seeds, two copies, lost answers, late writes, old views, deaths at every step."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest

from chassis.bus.kv import Conflict
from chassis.faults import Refused, Unavailable
from proto.addresses import Claim
from proto.net import Address
from proto.objects import Owner, Pod
from proto.requests import BlockGrant, BlockRequest, ClaimGrant, ClaimRelease, ClaimRequest
from services.ipam.core.claims import Elsewhere, Held, Hold, PodByUid, Stands, judge_claim
from tests.core.ipam.simulation import NODES, Bucket, Cluster, Copy

SEEDS = range(60)


def block_of(request: BlockRequest, copy: Copy) -> Coroutine[Any, Any, BlockGrant]:
    return copy.allocation.allocate(request)


def claim_of(request: ClaimRequest, copy: Copy) -> Coroutine[Any, Any, ClaimGrant]:
    return copy.address_claims.claim(request)


async def node_asks_for_blocks(cluster: Cluster, node: str, count: int) -> None:
    for number in range(count):
        request = BlockRequest(node=node, node_uid=f"uid-{node}", family=4, nonce=f"{node}-{number}")
        for _ in range(200):
            await cluster.scheduler.step()
            try:
                grant = await cluster.ask(partial(block_of, request))
            except Unavailable:
                continue
            except Refused as refused:
                if refused.code == "pool-exhausted":
                    return
                continue
            cluster.books.block(request.nonce, node, grant.block.cidr)
            break


async def owner_lives(cluster: Cluster, owner: Owner, lives: int) -> None:
    """One pod after the other, each on some node, as a StatefulSet makes them."""
    for incarnation in range(lives):
        node = cluster.chance.choice(sorted(NODES))
        pod = Pod(namespace="shop", name=f"{owner.name}-0", uid=f"{owner.name}/{incarnation}", node=node, owner=owner)
        await cluster.objects.put(pod.uid, pod)
        request = ClaimRequest(
            owner=owner,
            family=4,
            node=node,
            pod_uid=pod.uid,
            container=f"c{incarnation}",
            interface="eth0",
            nonce=pod.uid,
        )
        grant = None
        for _ in range(300):
            await cluster.scheduler.step()
            try:
                grant = await cluster.ask(partial(claim_of, request))
                break
            except (Unavailable, Refused):
                continue
        if grant is not None:
            cluster.books.begins(pod.uid, owner, grant.claim.address)
        for _ in range(cluster.chance.randrange(1, 15)):
            await cluster.scheduler.step()
        cluster.books.ends(pod.uid, owner)
        release = (
            None if grant is None else ClaimRelease(grant.claim.address, f"c{incarnation}", "eth0", grant.claim.nonce)
        )
        released = cluster.chance.random() < 0.6
        if release is not None and released and cluster.chance.random() < 0.5:
            await quietly(cluster, release, node)
        await cluster.objects.delete(pod.uid)
        if release is not None and released:
            await quietly(cluster, release, node)
        if cluster.chance.random() < 0.15:
            for _ in range(cluster.chance.randrange(400)):
                await cluster.scheduler.step()


async def quietly(cluster: Cluster, release: ClaimRelease, node: str) -> None:
    for _ in range(3):
        try:
            await cluster.ask(lambda copy: copy.address_claims.release(release, node))
        except (Unavailable, Refused):
            await cluster.scheduler.step()
        else:
            return


async def chaos(cluster: Cluster) -> None:
    while True:
        for _ in range(cluster.chance.randrange(20, 120)):
            await cluster.scheduler.step()
        cluster.restart_one()


async def sweeping(cluster: Cluster) -> None:
    while True:
        for _ in range(10):
            await cluster.scheduler.step()
        for copy in list(cluster.copies):
            try:
                await copy.serve(copy.sweep())
            except Unavailable:
                continue


async def live(cluster: Cluster, lives: int = 5) -> None:
    owners = [Owner("shop", "StatefulSet", name, 0) for name in "abcdef"]
    work = asyncio.gather(
        *(owner_lives(cluster, owner, lives) for owner in owners),
        *(node_asks_for_blocks(cluster, node, 3) for node in NODES),
    )
    background = [asyncio.ensure_future(chaos(cluster)), asyncio.ensure_future(sweeping(cluster))]
    try:
        await cluster.scheduler.run(work, most=200_000)
        work.result()
    finally:
        work.cancel()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, work, return_exceptions=True)


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_address_has_two_users_and_no_block_two_nodes(seed: int) -> None:
    cluster = Cluster(seed, faults=(0.0, 0.05, 0.25)[seed % 3])
    await live(cluster)
    assert cluster.books.allocation >= 5
    assert cluster.books.moves >= 10, "addresses were kept over moves"


async def test_the_books_notice_a_copy_that_does_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle can fail: with plain writes in place of compare-and-set it does."""

    def careless(self: Bucket, key: str, holds: object, value: object) -> int | Conflict:
        return original(self, key, lambda: True, value)

    original = Bucket._apply
    monkeypatch.setattr(Bucket, "_apply", careless)
    assert await caught()


async def test_the_books_notice_claims_that_move_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ipam.claims.judge_claim", always_hold)
    assert await caught()


def always_hold(
    request: ClaimRequest, intended: Address, _claim: Claim | None, pod: PodByUid, now: int
) -> Stands | Hold | Elsewhere | Held:
    """Takes no notice of the present holder."""
    return judge_claim(request, intended, None, pod, now)


async def caught() -> bool:
    for seed in range(20):
        try:
            await live(Cluster(seed, faults=0.1))
        except AssertionError:
            return True
    return False
