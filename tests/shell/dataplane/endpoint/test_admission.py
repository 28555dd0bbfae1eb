"""Whether a pod may start, as a node sees it on a real server: with the real ``policy``, its shards held or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest_asyncio

from chassis.runtime.election import Election
from chassis.telemetry.log import Log
from kit.identity import identity_of, stands_for
from proto import codec
from proto.identity import RelevantKeys
from proto.objects import Namespace, NetworkPolicy, Pod
from proto.policy import CompiledPolicy, Frontier, Revision
from proto.subjects import IDENTITIES, RULES
from proto.sync import Complete, complete_key
from services.dataplane.core.cni.request import PodRef
from services.dataplane.endpoint.admission import AdmissionWait, Entered
from services.dataplane.feed import Feed
from tests.core.policy.notation import namespace, pod
from tests.natsd import Lines, NatsServer, bus_of, runtime_of
from tests.shell.policy.town import Town, copy_of, np, town_of

KEY = "statefulset.kubernetes.io/pod-name"
UID = "cluster-uid"


class Node:
    """One node's watches and its wait for admission."""

    def __init__(self, feed: Feed, admission: AdmissionWait) -> None:
        self.feed, self.admission = feed, admission

    def admits(self, one: Pod) -> int | None:
        """The identity that the pod may start as now."""
        found = self.admission.look(PodRef(namespace=one.namespace, name=one.name, uid=one.uid))
        return found.admitted.identity if isinstance(found, Entered) else None

    def why(self, one: Pod) -> str:
        found = self.admission.look(PodRef(namespace=one.namespace, name=one.name, uid=one.uid))
        return "" if isinstance(found, Entered) else found.why


@pytest_asyncio.fixture
async def town(nats_server: NatsServer) -> AsyncIterator[Town]:
    async with town_of(nats_server) as made:
        yield made


@asynccontextmanager
async def node_of(server: NatsServer) -> AsyncIterator[Node]:
    async with bus_of(server, "dataplane", "n1") as bus:
        feed = Feed(bus, "n1")
        log = Log("dataplane", "debug", stream=Lines())  # type: ignore[arg-type]
        yield Node(feed, AdmissionWait(feed, log, 1.0))


async def until(holds: Callable[[], object], why: Callable[[], object], seconds: float = 15.0) -> None:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, why()
        await asyncio.sleep(0.005)


def per_pod(name: str) -> NetworkPolicy:
    """Isolates one pod of a StatefulSet."""
    return np({"podSelector": {"matchLabels": {KEY: name}}}, "per-pod")


def facts(one: Pod, space: Namespace, relevant: RelevantKeys) -> int:
    return identity_of(stands_for(one, space, relevant.of(space.name)), UID)


RELEVANT = RelevantKeys(by_namespace=(("x", (KEY,)),))


def of_shards(before: int, after: int) -> Pod:
    """A pod whose identity is of one shard, and of another one when its name counts."""
    for at in range(1000):
        one = pod(f"x/db-{at}", labels={"app": "db", "at": str(at), KEY: f"db-{at}"})
        found = tuple(facts(one, namespace("x"), relevant) % 2 for relevant in (RelevantKeys(), RELEVANT))
        if found == (before, after):
            return one
    raise AssertionError("no such pod")


async def test_the_first_policy_on_an_unstable_label_comes_together_with_its_pod(town: Town) -> None:
    """Case A, as it happens: whatever of it the node sees first, the pod never starts as one that is not selected."""
    async with copy_of(town.server), node_of(town.server) as node:
        await town.settle()
        await town.until(lambda: town.rules.synced and node.feed.identities.synced, "synced")
        for before, after in ((0, 0), (0, 1), (1, 0), (1, 1)):
            one = of_shards(before, after)
            isolated = facts(one, namespace("x"), RELEVANT)
            await town.put(per_pod(one.name), one)
            started = time.monotonic()
            while (first := node.admits(one)) is None:
                assert time.monotonic() - started < 15, node.why(one)
                await asyncio.sleep(0)
            assert first == isolated
            assert node.feed.rules[isolated].ingress_isolated
            last = await town.put(msgspec.structs.replace(one, phase="Failed"))
            await town.drop(per_pod(one.name))
            await town.until(lambda: town.reached(last) and not _relevant(town).by_namespace, "as it was")  # noqa: B023


def _relevant(town: Town) -> RelevantKeys:
    entry = town.identities.marks.get("_relevant")
    return RelevantKeys() if entry is None else entry.value


async def test_where_the_shard_of_who_it_becomes_has_no_holder_it_waits(town: Town) -> None:
    """Case A with shard 1 standing still: shard 0 has passed the policy, and has rules for who the pod was before."""
    one = of_shards(0, 1)
    before, after = (facts(one, namespace("x"), relevant) for relevant in (RelevantKeys(), RELEVANT))
    async with node_of(town.server) as node:
        async with copy_of(town.server):
            await town.settle()
            await town.until(lambda: town.rules.synced and node.feed.identities.synced, "synced")
        async with AsyncExitStack() as idle:
            lease = Election(await idle.enter_async_context(runtime_of(town.server, "policy")), "policy.1", 1.5)
            await until(lambda: lease.held, lambda: "the shard is not free")
            async with copy_of(town.server):
                last = await town.put(per_pod(one.name), one)
                await town.until(lambda: town.reached(last, shards=1), "shard 0 is there")
                await town.until(lambda: codec.identity_key(before) in town.rules.entries, "a trap is there")
                for _ in range(100):
                    assert node.admits(one) is None, "the shard that isolates it has not compiled it"
                    await asyncio.sleep(0.01)
                assert "has not compiled up to" in node.why(one)
                await idle.aclose()
                await until(lambda: node.admits(one) == after, lambda: node.why(one))
                assert node.feed.rules[after].ingress_isolated


async def test_a_pods_key_that_overtakes_its_namespaces_change(town: Town) -> None:
    """Case B: each kind has a consumer of its own. The pod and the frontier are here, the namespace comes later."""
    one, changed = pod("x/a"), namespace("x", team="closed")
    old, new = (facts(one, space, RelevantKeys()) for space in (namespace("x"), changed))
    async with node_of(town.server) as node, bus_of(town.server, "policy") as policy:
        await town.put(Namespace("kube-system", UID), namespace("x"))
        await town.complete()
        written = await town.put(one)
        revision = Revision(epoch=town.epochs["objects"], sequence=written + 1)
        for identity, isolated in ((old, False), (new, True)):
            rules = CompiledPolicy(identity, revision, ingress_isolated=isolated, egress_isolated=isolated)
            await policy.bucket(RULES).put(codec.identity_key(identity), rules)
        for shard in (0, 1):
            frontier = Frontier(shard, 2, revision, namespaces=written + 1)
            await policy.bucket(RULES).put(f"_frontier.{shard}", frontier)
        for bucket in (RULES, IDENTITIES):
            await policy.bucket(bucket).put(complete_key(), Complete(epoch=town.epochs[bucket.name]))
        await until(lambda: len(node.feed.frontiers()) == 2 and node.feed.objects.entries, lambda: "nothing arrives")
        for _ in range(50):
            assert node.admits(one) is None, "it would start as who it was before its namespace changed"
            await asyncio.sleep(0.01)
        assert "change of a namespace" in node.why(one)
        assert await town.put(changed) == written + 1
        await until(lambda: node.admits(one) == new, lambda: node.why(one))


async def test_a_pod_that_policy_refuses_is_reported_why(town: Town) -> None:
    crowd = [pod(f"x/c{at}", labels={"n": str(at)}) for at in range(6)]
    async with copy_of(town.server, policy_namespace_identities=4), node_of(town.server) as node:
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        last = await town.put(*crowd)
        await town.until(lambda: town.reached(last), "compiled")
        waiting = [one for one in crowd if node.admits(one) is None]
        await until(lambda: all("budget" in node.why(one) for one in waiting), lambda: [node.why(o) for o in waiting])
        assert len(waiting) == 4, "x has two pods already"
