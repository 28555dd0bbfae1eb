"""Compare-and-set: what another wrote in between stays, and an answer that was lost is looked for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from ipaddress import ip_network
from typing import TypeVar

from chassis.faults import Unavailable
from proto.addresses import Block
from services.ipam.store import compare_and_set, delete_exactly
from tests.core.ipam.simulation import Bucket, Scheduler

T = TypeVar("T")
KEY = "b"


def block(node: str, epoch: int) -> Block:
    return Block(ip_network("10.0.0.0/28"), "p", node, f"uid-{node}", epoch, "x")


async def served(scheduler: Scheduler, work: Awaitable[T]) -> T:
    done = asyncio.ensure_future(work)
    await scheduler.run(done, most=10_000)
    return done.result()


async def test_what_another_wrote_in_between_stays() -> None:
    scheduler = Scheduler(random.Random(1))
    bucket = Bucket(scheduler, 0.0)
    seen = await served(scheduler, compare_and_set(bucket, KEY, block("n1", 1), None))
    assert seen is not None
    newer = await served(scheduler, compare_and_set(bucket, KEY, block("n2", 2), seen))
    assert newer is not None
    assert newer.value == block("n2", 2)
    for over in (seen, None):
        assert await served(scheduler, compare_and_set(bucket, KEY, block("n3", 3), over)) is None
    assert not await served(scheduler, delete_exactly(bucket, KEY, block("n1", 1)))
    assert bucket.values() == [block("n2", 2)]
    assert await served(scheduler, delete_exactly(bucket, KEY, block("n2", 2)))
    assert bucket.values() == []


async def test_who_gets_no_answer_holds_what_it_wrote_or_nothing() -> None:
    held = lost = 0
    for seed in range(200):
        scheduler = Scheduler(random.Random(seed))
        bucket = Bucket(scheduler, 0.6)
        try:
            written = await served(scheduler, compare_and_set(bucket, KEY, block("n1", 1), None))
        except Unavailable:
            lost += 1
            continue
        assert written is not None
        assert bucket.values() == [block("n1", 1)] == [written.value]
        held += 1
    assert held > 20
    assert lost > 20
