"""Which identities may live on a node, as it is published on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest_asyncio

from chassis.bus.client import View
from proto.codec import encode_segment
from proto.policy import Frontier
from proto.residents import RESIDENTS_SCOPE, Residents, residents_key
from proto.subjects import IDENTITIES
from tests.core.policy.notation import pod
from tests.natsd import NatsServer
from tests.shell.policy.town import API, DB, WEB, Town, copy_of, town_of


@pytest_asyncio.fixture
async def town(nats_server: NatsServer) -> AsyncIterator[Town]:
    async with town_of(nats_server) as made:
        yield made


def watch(town: Town) -> View:
    return town.bus.bucket(IDENTITIES).watch({"_residents": Residents}, markers=(RESIDENTS_SCOPE,), name="residents")


def on(view: View, node: str) -> tuple[int, ...]:
    entry = view.marks.get(residents_key(encode_segment(node)))
    return () if entry is None else entry.value.identities


async def test_every_node_with_pods_has_its_own(town: Town, nats_server: NatsServer) -> None:
    async with copy_of(nats_server, policy_grace_seconds=0.5):
        await town.settle()
        view = watch(town)
        await view.wait_synced(10)
        db, api, web = [(await town.rules_of(name)).identity for name in ("x/db", "x/api", "y/web")]
        assert DB.node == WEB.node
        assert on(view, DB.node) == tuple(sorted((db, web)))
        assert on(view, "n2") == (api,)
        await town.drop(API)
        await town.until(lambda: residents_key("n2") not in view.marks, "a node without pods has none")
        await town.drop(WEB)
        await town.until(lambda: on(view, DB.node) == (db,), "who has left is out after the grace")


async def test_a_frontier_promises_the_residents(town: Town, nats_server: NatsServer) -> None:
    """Whoever sees the frontier may start the pod; the others know then that it may live there."""
    async with copy_of(nats_server):
        await town.settle()
        await town.until(lambda: len(town.frontiers()) >= 2, "it has begun")
        bucket = town.bus.bucket(IDENTITIES)
        for number in range(20):
            node = f"n{number}.example"
            sequence = await town.put(pod(f"x/p{number}", labels={"role": f"r{number}"}, node=node))
            await town.until(partial(town.reached, sequence), "the frontier")
            entry = await bucket.get(residents_key(encode_segment(node)), Residents)
            assert entry is not None
            assert entry.value.revision.sequence == sequence
            assert len(entry.value.identities) == 1
        assert all(isinstance(mark.value, Frontier) for key, mark in town.rules.marks.items() if "frontier" in key)


async def test_relabelling_leaves_no_gap(town: Town, nats_server: NatsServer) -> None:
    async with copy_of(nats_server, policy_grace_seconds=0.5):
        await town.settle()
        view = watch(town)
        await view.wait_synced(10)
        (before,) = on(view, "n2")
        sequence = await town.put(pod("x/api", labels={"role": "api", "v": "2"}, node="n2"))
        await town.until(lambda: town.reached(sequence), "the frontier")
        await town.until(lambda: len(on(view, "n2")) == 2, "both")
        assert before in on(view, "n2")
        await town.until(lambda: len(on(view, "n2")) == 1, "the new one alone, after the grace")
        assert before not in on(view, "n2")


async def test_all_of_it_comes_again_in_a_bucket_that_was_made_again(town: Town, nats_server: NatsServer) -> None:
    async with copy_of(nats_server), copy_of(nats_server):
        await town.settle()
        view = watch(town)
        await view.wait_synced(10)
        first, epoch = on(view, "n2"), view.epoch
        await town.lose("identities")
        await town.until(lambda: view.synced and view.epoch not in ("", epoch), "the new one is whole", 30)
        assert on(view, "n2") == first
