"""One copy of ``policy`` on a real bus: what it publishes, in which order, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import ip_address

import msgspec
import pytest
import pytest_asyncio

from chassis.faults import Refused
from proto.events import PolicyCompiled, ServiceFault
from proto.identity import Reserved
from proto.objects import Node
from proto.policy import CompiledPolicy
from proto.requests import ExplainMany, ExplainRequest, Explanation, Explanations
from proto.subjects import IDENTITIES, POLICY_EXPLAIN, POLICY_MATRIX, RULES, event_subject
from tests.core.policy.notation import namespace, pod
from tests.natsd import NatsServer, bus_of
from tests.shell.policy.town import API, API_TO_DB, DB, WEB, Town, copy_of, np, town_of


@pytest_asyncio.fixture
async def town(nats_server: NatsServer) -> AsyncIterator[Town]:
    async with town_of(nats_server) as made:
        yield made


async def test_nothing_is_published_before_every_kind_is_complete(town: Town) -> None:
    async with copy_of(town.server) as policy:
        await town.put(namespace("kube-system"), namespace("x"), DB, API)
        await asyncio.sleep(1.0)
        assert not town.policies()
        assert not town.frontiers()
        assert "waits for _complete" in policy.health.missing()["objects"]
        await town.complete()
        await town.until(lambda: len(town.policies()) == 2, "rules of both pods")
        await town.until(lambda: policy.health.ready, "healthy")


async def test_without_kube_system_no_identity_exists_and_nothing_is_published(town: Town) -> None:
    async with copy_of(town.server) as policy:
        await town.put(namespace("x"), DB)
        await town.complete()
        await town.until(lambda: "kube-system" in policy.health.missing().get("cluster-uid", ""), "told so")
        assert not town.frontiers()
        await town.put(namespace("kube-system"))
        await town.until(lambda: len(town.policies()) == 1, "rules")


async def test_rules_identities_frontiers_and_markers(town: Town) -> None:
    last = await town.put(np(API_TO_DB))
    async with copy_of(town.server):
        await town.settle()
        await town.until(lambda: town.reached(last), "frontier")
        await town.until(lambda: town.rules.synced and town.identities.synced, "markers")
        database, web = town.of("x/db"), town.of("y/web")
        assert database is not None
        assert web is not None
        assert database.ingress_isolated
        assert not database.egress_isolated
        assert [(rule.port, rule.port_bits) for rule in database.rules] == [(5432, 16)]
        assert database.sources[0].name == "p"
        assert not web.ingress_isolated, "no policy selects it, and it has an entry all the same"
        assert set(town.rules.entries) == set(town.identities.entries)


async def test_only_what_differs_is_written_but_the_frontier_moves(town: Town) -> None:
    async with copy_of(town.server):
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        before = {key: entry.revision for key, entry in town.rules.entries.items()}
        last = await town.put(np(API_TO_DB))
        await town.until(lambda: town.reached(last), "frontier")
        changed = {key for key, entry in town.rules.entries.items() if before[key] != entry.revision}
        database = await town.rules_of("x/db")
        assert changed == {f"{database.identity:016x}"}
        assert database.revision.sequence == last
        # A change that alters no rule moves the frontier alone.
        again = await town.put(msgspec.structs.replace(WEB, phase="Running"))
        await town.until(lambda: town.reached(again), "frontier again")
        assert town.of("x/db") == database


async def test_the_policy_is_deleted_and_the_pod_is_open_again(town: Town) -> None:
    async with copy_of(town.server):
        await town.settle(np(API_TO_DB))
        await town.until(lambda: (found := town.of("x/db")) and found.ingress_isolated, "isolated")
        await town.drop(np(API_TO_DB))
        await town.until(lambda: (found := town.of("x/db")) and not found.ingress_isolated, "open")


async def test_an_identity_without_pods_goes_after_its_grace(town: Town) -> None:
    async with copy_of(town.server, policy_grace_seconds=1.0):
        await town.settle(np(API_TO_DB))
        await town.until(lambda: town.rules.synced and town.of("x/api"), "there")
        api = town.of("x/api")
        assert api is not None
        await town.drop(API)
        await asyncio.sleep(0.5)
        assert f"{api.identity:016x}" in town.rules.entries, "kernels may still hold it"
        await town.until(lambda: f"{api.identity:016x}" not in town.rules.entries, "gone")
        await town.until(lambda: f"{api.identity:016x}" not in town.identities.entries, "record gone")
        await town.until(lambda: (found := town.of("x/db")) and not found.rules, "no line names it any more")


async def test_cidr_partition_follows_its_lines(town: Town, nats_server: NatsServer) -> None:
    block = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}
    async with copy_of(town.server):
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        last = await town.put(np(block))
        await town.until(lambda: "_cidrs" in town.rules.marks and town.rules.marks["_cidrs"].value.prefixes, "cidrs")
        await town.until(lambda: town.reached(last), "frontier")
        partition, database = town.rules.marks["_cidrs"], await town.rules_of("x/db")
        numbers = {entry.number for entry in partition.value.prefixes}
        assert {rule.peer for rule in database.rules} == numbers
        assert partition.value.revision.sequence == last
        shard = f"_frontier.{0}"
        lines_of_shard_0 = [e.revision for k, e in town.rules.entries.items() if int(k, 16) % 2 == 0 and e.value.rules]
        assert all(revision < partition.revision for revision in lines_of_shard_0), "lines before the partition"
        assert partition.revision < town.rules.marks[shard].revision, "the partition before the frontier"


async def test_a_replaced_partition_keeps_its_lines_for_a_while(town: Town) -> None:
    def allow(cidr: str, other: str) -> dict[str, object]:
        return {
            "podSelector": {},
            "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}, {"from": [{"ipBlock": {"cidr": other}}]}],
        }

    async with copy_of(town.server, policy_grace_seconds=2.0):
        await town.settle(np(allow("10.0.0.0/8", "11.0.0.0/8")))
        await town.until(lambda: "_cidrs" in town.rules.marks, "cidrs")
        await town.until(lambda: town.rules.synced, "synced")
        old = {entry.number for entry in town.rules.marks["_cidrs"].value.prefixes if str(entry.prefix) == "10.0.0.0/8"}
        last = await town.put(np(allow("10.0.0.0/8", "10.1.0.0/16")))
        await town.until(lambda: town.reached(last), "frontier")
        database = await town.rules_of("x/db")
        new = {entry.number for entry in town.rules.marks["_cidrs"].value.prefixes}
        assert {rule.peer for rule in database.rules} == old | new, "10.0.0.0/8 goes on working on every node"
        await town.until(lambda: {rule.peer for rule in (town.of("x/db") or database).rules} == new, "old lines gone")


async def test_relevant_keys_come_after_the_rules_of_the_new_identities(town: Town) -> None:
    hashed = pod("x/hashed", labels={"role": "hashed", "pod-template-hash": "h1"})
    spec = {"podSelector": {"matchLabels": {"pod-template-hash": "h1"}}}
    async with copy_of(town.server, policy_grace_seconds=1.0):
        await town.settle(hashed)
        await town.until(lambda: town.rules.synced, "synced")
        await town.until(lambda: "_relevant" in town.identities.marks, "relevant keys, empty")
        before = await town.rules_of("x/hashed")
        last = await town.put(np(spec))
        await town.until(lambda: town.identities.marks["_relevant"].value.keys == ("pod-template-hash",), "relevant")
        assert town.reached(last)
        isolated = [compiled for compiled in town.policies().values() if compiled.ingress_isolated]
        assert len(isolated) == 1
        assert isolated[0].identity != before.identity
        await town.until(lambda: f"{before.identity:016x}" not in town.rules.entries, "the old identity goes")


async def test_too_many_lines_are_denied_whole_and_told(town: Town, nats_server: NatsServer) -> None:
    spec = {"podSelector": {"matchLabels": {"role": "db"}}, "ingress": [{"ports": [{"port": 1}, {"port": 3}]}]}
    faults: list[ServiceFault] = []
    async with bus_of(nats_server, "cli") as cli, copy_of(town.server, policy_max_lines=1) as policy:
        await cli.subscribe(event_subject("policy", "fault"), ServiceFault, lambda _, fault: faults.append(fault))
        await town.settle()
        await town.until(lambda: policy.health.ready, "ready")
        await town.put(np(spec))
        await town.until(lambda: faults, "fault")
        await town.until(lambda: (found := town.of("x/db")) and found.ingress_isolated, "isolated")
        database = town.of("x/db")
        assert database is not None
        assert database.rules == ()
        assert "denied whole" in faults[0].fault
        assert "x/p" in faults[0].remedy
        assert "denied whole" in policy.health.missing()["policies"]
        await town.drop(np(spec))
        await town.until(lambda: policy.health.ready, "ready again")


async def test_compiled_events_and_traces(town: Town, nats_server: NatsServer) -> None:
    events: list[PolicyCompiled] = []
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with bus_of(nats_server, "cli") as cli, copy_of(town.server):
        await cli.subscribe(event_subject("policy", "compiled"), PolicyCompiled, lambda _, event: events.append(event))
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        events.clear()
        value = np(API_TO_DB)
        last = await town.objects.put("networking=2Ek8s=2Eio.networkpolicy.x.p", value, traceparent=trace)
        await town.until(lambda: {event.shard for event in events} == {0, 1}, "an event of each shard")
        assert {event.revision for event in events} == {f"{town.epochs['objects']}:{last}"}
        assert sum(event.changed for event in events) == 1
        database = await town.rules_of("x/db")
        entry = town.rules.entries[f"{database.identity:016x}"]
        assert entry.traceparent.split("-")[1] == trace.split("-")[1], "one trace from the object to the rules"


async def test_explain_and_matrix(town: Town, nats_server: NatsServer) -> None:
    def ask(source: str, destination: str, port: int = 5432, protocol: int = 6) -> ExplainRequest:
        return ExplainRequest(source=source, destination=destination, port=port, protocol=protocol)

    async with bus_of(nats_server, "cli") as cli, copy_of(town.server):
        await town.settle(np(API_TO_DB), Node("n1", "u", addresses=(ip_address("172.30.0.11"),)))
        await town.until(lambda: town.rules.synced, "synced")
        answer = await cli.request(POLICY_EXPLAIN, ask("x/api", "x/db"), Explanation, timeout=3)
        assert answer.allowed
        assert "allowed by NetworkPolicy x/p, ingress rule 0" in answer.reasons[1]
        denied = await cli.request(POLICY_EXPLAIN, ask("y/web", "x/db"), Explanation, timeout=3)
        assert (denied.allowed, denied.egress_allowed, denied.ingress_allowed) == (False, True, False)
        assert "isolated by NetworkPolicy x/p and no rule allows TCP port 5432 from y/web" in denied.reasons[1]
        assert denied.revision.startswith(town.epochs["objects"])
        kubelet = await cli.request(POLICY_EXPLAIN, ask("172.30.0.11", "x/db"), Explanation, timeout=3)
        assert kubelet.allowed
        assert kubelet.source_identity == Reserved.HOST
        with pytest.raises(Refused) as refused:
            await cli.request(POLICY_EXPLAIN, ask("x/nobody", "x/db"), Explanation, timeout=3)
        assert refused.value.code == "not-found"
        with pytest.raises(Refused) as refused:
            await cli.request(POLICY_EXPLAIN, ask("x/api", "x/db", port=70000), Explanation, timeout=3)
        assert refused.value.code == "malformed"
        questions = tuple(ask(source, "x/db") for source in ("x/api", "y/web", "8.8.8.8", "x/nobody"))
        matrix = await cli.request(POLICY_MATRIX, ExplainMany(questions), Explanations, timeout=3)
        assert [answer.allowed for answer in matrix.answers] == [True, False, False, False]
        with pytest.raises(Refused) as refused:
            await cli.request(POLICY_MATRIX, ExplainMany(questions * 1025), Explanations, timeout=3)
        assert refused.value.code == "too-many"


async def test_before_it_is_in_sync_questions_are_refused(town: Town, nats_server: NatsServer) -> None:
    async with bus_of(nats_server, "cli") as cli, copy_of(town.server):
        await asyncio.sleep(0.5)
        with pytest.raises(Refused) as refused:
            await cli.request(POLICY_EXPLAIN, ExplainRequest("x/a", "x/b", 80), Explanation, timeout=3)
        assert (refused.value.code, refused.value.retry) == ("not-synced", True)


async def test_rules_changed_by_another_hand_come_back(town: Town, nats_server: NatsServer) -> None:
    async with bus_of(nats_server, "policy") as meddler, copy_of(town.server):
        await town.settle(np(API_TO_DB))
        await town.until(lambda: (found := town.of("x/db")) and found.rules, "rules")
        database = await town.rules_of("x/db")
        key = f"{database.identity:016x}"
        opened: CompiledPolicy = msgspec.structs.replace(database, ingress_isolated=False)

        def repaired_after(revision: int) -> bool:
            """The right rules stand there again, in a write that came later; no look need catch the wrong ones."""
            entry = town.rules.entries.get(key)
            return entry is not None and entry.revision > revision and entry.value == database

        bucket = meddler.bucket(RULES)
        meddled = await bucket.put(key, opened)
        await town.until(lambda: repaired_after(meddled), "repaired")
        repaired = town.rules.entries[key].revision
        assert await bucket.delete(key, repaired) is None, "it was this very write that was deleted"
        await town.until(lambda: repaired_after(repaired), "repaired again")


@pytest.mark.parametrize("body", [None, b"\xc1"], ids=["an answer", "garbage"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "started anew"])
async def test_published_values_that_nobody_can_read_are_written_again(
    town: Town, running: bool, body: bytes | None
) -> None:
    """A frontier that cannot be read aborted every pass for ever: no new pod started anywhere."""
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        stack.push_async_callback(first.aclose)
        policy = await first.enter_async_context(copy_of(town.server))
        await town.settle(np(API_TO_DB))
        await town.until(lambda: town.rules.synced and town.identities.synced and town.of("x/db"), "published")
        identity = next(key for key, policy in town.policies().items() if policy.ingress_isolated)
        await town.until(lambda: policy.health.ready, "ready")
        if not running:
            await first.aclose()
        for key in ("_frontier.0", "_frontier.1", "_complete", "_cidrs", identity):
            await town.server.destroy(RULES, key, body)
        for key in ("_relevant", "_complete", identity):
            await town.server.destroy(IDENTITIES, key, body)
        if not running:
            policy = await stack.enter_async_context(copy_of(town.server))
        last = await town.put(pod("x/other", labels={"role": "other"}))
        await town.until(lambda: town.reached(last) and town.of("x/other"), "a new pod may start", seconds=8)
        await town.until(lambda: not town.rules.unreadable and not town.identities.unreadable, "mended", seconds=8)
        compiled = town.of("x/db")
        assert compiled is not None
        assert compiled.ingress_isolated
        await town.until(lambda: policy.health.ready, "healthy")
