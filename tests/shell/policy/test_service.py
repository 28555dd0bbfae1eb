"""One copy of ``policy`` on a real bus: what it publishes, in which order, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, ip_address

import msgspec
import pytest
import pytest_asyncio

from chassis.bus.client import Bus
from chassis.faults import Refused
from chassis.runtime.reconcile import Loop
from proto.events import ObjectFault, PolicyCompiled
from proto.identity import IdentityRecord, RelevantKeys, Reserved
from proto.objects import Node, Selector
from proto.policy import CompiledPolicy, PortMatch, Revision, SelectorPeer
from proto.requests import ExplainMany, ExplainRequest, Explanation, Explanations
from proto.subjects import (
    BUCKETS,
    IDENTITIES,
    POLICY_EXPLAIN,
    POLICY_MATRIX,
    RULES,
    Bucket,
    event_subject,
    object_fault_subject,
)
from services.policy import app
from services.policy.feed import Feed
from tests.core.policy.notation import named, namespace, pod
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
        assert [rule.ports for rule in database.rules] == [(PortMatch(6, 5432, 16),)]
        (selected,) = (database.selectors[at] for at in database.rules[0].selectors)
        assert selected == SelectorPeer(namespace="x", pod_selector=Selector((("role", "api"),)))
        assert database.sources[0].name == "p"
        assert not web.ingress_isolated, "no policy selects it, and it has an entry all the same"
        assert set(town.rules.entries) == set(town.identities.entries)
        shown = {name: town.record_of(name) for name in ("x/db", "y/web")}
        reported = {name: record and record.pod_labels for name, record in shown.items()}
        assert reported == {"x/db": (("role", "db"),), "y/web": ()}, "only what selectors of the pod's namespace name"
        frontiers = {key: entry.value for key, entry in town.rules.marks.items() if key.startswith("_frontier.")}
        records = {key: entry.revision for key, entry in town.identities.entries.items()}
        for frontier in frontiers.values():
            own = [written for key, written in records.items() if int(key, 16) % 2 == frontier.shard]
            assert frontier.identities == Revision(town.epochs["identities"], max(own, default=0))
            assert frontier.namespaces == town.written["y"], "the last namespace that was written"


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


async def test_a_change_looks_at_what_it_changes(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the records of all other identities are read, nor at the end of its grace is everything."""
    looked: list[int] = []

    class Counting(Feed):
        def record_of(self, identity: int) -> IdentityRecord | None:
            looked.append(identity)
            return super().record_of(identity)

    monkeypatch.setattr(app, "Feed", Counting)
    monkeypatch.setattr(app, "Loop", partial(Loop, period=600.0))
    pods = [pod(f"y/p{number}", labels={"role": f"r{number}"}) for number in range(60)]
    async with copy_of(town.server, policy_grace_seconds=1.0):
        await town.settle(*pods)
        await town.until(lambda: town.rules.synced and len(town.policies()) == 63, "all of them are there")
        await asyncio.sleep(0.5)
        assert len(set(looked)) == 63
        looked.clear()
        before = town.of("y/r7")
        assert before is not None
        await town.put(msgspec.structs.replace(pods[7], labels=(("role", "other"),)))
        await town.until(lambda: f"{before.identity:016x}" not in town.identities.entries, "its grace is over")
        await asyncio.sleep(0.2)
        after = town.of("y/other")
        assert after is not None
        assert set(looked) == {before.identity, after.identity}
        assert len(looked) < 60


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


async def test_cidr_partition_follows_its_rules(town: Town, nats_server: NatsServer) -> None:
    block = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}
    async with copy_of(town.server):
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        last = await town.put(np(block))
        await town.until(lambda: town.prefixes("x"), "cidrs")
        await town.until(lambda: town.reached(last), "frontier")
        partition, database = town.rules.marks["_cidrs.x"], await town.rules_of("x/db")
        numbers = {entry.number for entry in partition.value.prefixes if entry.number}
        assert {number for rule in database.rules for number in rule.cidr_sets} == numbers
        assert partition.value.revision.sequence == last
        shard = f"_frontier.{0}"
        lines_of_shard_0 = [e.revision for k, e in town.rules.entries.items() if int(k, 16) % 2 == 0 and e.value.rules]
        assert all(revision < partition.revision for revision in lines_of_shard_0), "lines before the partition"
        assert partition.revision < town.rules.marks[shard].revision, "the partition before the frontier"


async def test_a_replaced_partition_keeps_its_rules_for_a_while(town: Town) -> None:
    def allow(cidr: str, other: str) -> dict[str, object]:
        return {
            "podSelector": {},
            "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}, {"from": [{"ipBlock": {"cidr": other}}]}],
        }

    def sets(policy: CompiledPolicy) -> set[int]:
        return {number for rule in policy.rules for number in rule.cidr_sets}

    async with copy_of(town.server, policy_grace_seconds=2.0):
        await town.settle(np(allow("10.0.0.0/8", "11.0.0.0/8")))
        await town.until(lambda: "_cidrs.x" in town.rules.marks, "cidrs")
        await town.until(lambda: town.rules.synced, "synced")
        old = {entry.number for entry in town.prefixes("x") if str(entry.prefix) == "10.0.0.0/8"}
        last = await town.put(np(allow("10.0.0.0/8", "10.1.0.0/16")))
        await town.until(lambda: town.reached(last), "frontier")
        database = await town.rules_of("x/db")
        new = {entry.number for entry in town.prefixes("x")}
        assert sets(database) == old | new, "10.0.0.0/8 goes on working on every node"
        await town.until(lambda: sets(town.of("x/db") or database) == new, "old numbers gone")


async def test_one_tenants_blocks_hold_up_nobody_and_what_passes_a_bound_is_reported(town: Town) -> None:
    """600 scattered exceptions, 1,000 blocks, a policy beyond the bound: another tenant's block is in force soon."""
    scattered = [f"{IPv4Address(n * 7_155_193 % (1 << 32))}/32" for n in range(1, 1101)]

    def letting_in(*blocks: Mapping[str, object]) -> dict[str, object]:
        return {"podSelector": {}, "ingress": [{"from": [{"ipBlock": block} for block in blocks]}]}

    def but(holes: list[str]) -> dict[str, object]:
        return {"cidr": "0.0.0.0/0", "except": holes}

    reported: list[ObjectFault] = []
    async with copy_of(town.server) as policy, bus_of(town.server, "cli") as cli:
        await cli.subscribe(object_fault_subject("policy"), ObjectFault, lambda _, fault: reported.append(fault))
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        attacks = (
            np(letting_in(but(scattered[:600])), "wide"),
            np(letting_in(*({"cidr": cidr} for cidr in scattered[:1000])), "many"),
            np(letting_in(but(scattered)), "beyond"),
        )
        await town.put(*attacks)
        last = await town.put(np(letting_in({"cidr": "192.0.2.0/24"}), "v", "y"))
        await town.until(lambda: town.reached(last), "frontier", 6.0)
        (block,) = town.prefixes("y")
        web = await town.rules_of("y/web")
        assert {number for rule in web.rules for number in rule.cidr_sets} == {block.number}
        assert len(town.prefixes("x")) == 1 + 600 + 400
        await town.until(lambda: reported, "told on the object")
        assert [(fault.namespace, fault.name, fault.reason) for fault in reported] == [("x", "beyond", "TooManyCIDRs")]
        assert "names 1101 CIDRs and exceptions" in reported[0].fault
        assert "policies" not in policy.health.missing(), "a tenant's fault is not the service's"
        for one in (*attacks, np({}, "v", "y")):
            await town.drop(one)
        await town.until(lambda: not {"_cidrs.x", "_cidrs.y"} & town.rules.marks.keys(), "partitions are gone")


async def test_relevant_keys_come_after_the_rules_of_the_new_identities(town: Town) -> None:
    hashed = pod("x/hashed", labels={"role": "hashed", "pod-template-hash": "h1"})
    spec = {"podSelector": {"matchLabels": {"pod-template-hash": "h1"}}}
    async with copy_of(town.server, policy_grace_seconds=1.0):
        await town.settle(hashed)
        await town.until(lambda: town.rules.synced, "synced")
        await town.until(lambda: "_relevant" in town.identities.marks, "relevant keys, empty")
        before = await town.rules_of("x/hashed")
        last = await town.put(np(spec))
        wanted = RelevantKeys(by_namespace=(("x", ("pod-template-hash",)),))
        await town.until(lambda: town.identities.marks["_relevant"].value == wanted, "relevant")
        frontiers = [entry.value for key, entry in town.rules.marks.items() if key.startswith("_frontier.")]
        assert {frontier.relevant for frontier in frontiers} == {wanted}
        assert town.reached(last)
        isolated = [compiled for compiled in town.policies().values() if compiled.ingress_isolated]
        assert len(isolated) == 1
        assert isolated[0].identity != before.identity
        await town.until(lambda: f"{before.identity:016x}" not in town.rules.entries, "the old identity goes")


@asynccontextmanager
async def reported_on_objects(server: NatsServer) -> AsyncIterator[list[ObjectFault]]:
    reported: list[ObjectFault] = []
    async with bus_of(server, "cli") as cli:
        await cli.subscribe(object_fault_subject("policy"), ObjectFault, lambda _, fault: reported.append(fault))
        yield reported


async def test_too_many_rules_are_denied_whole_and_reported_on_the_policy(town: Town) -> None:
    rules = [{"ports": [{"port": 1 + at}]} for at in range(257)]
    spec = {"podSelector": {"matchLabels": {"role": "db"}}, "ingress": rules}
    async with reported_on_objects(town.server) as reported, copy_of(town.server) as policy:
        await town.settle()
        await town.until(lambda: policy.health.ready, "ready")
        await town.put(np(spec))
        await town.until(lambda: reported, "fault")
        await town.until(lambda: (found := town.of("x/db")) and found.ingress_isolated, "isolated")
        database = town.of("x/db")
        assert database is not None
        assert database.rules == ()
        fault = reported[0]
        assert (fault.kind, fault.namespace, fault.name) == ("NetworkPolicy", "x", "p")
        assert "denied whole" in fault.fault
        assert "x/p" in fault.remedy
        assert policy.health.ready, "what one tenant writes does not make the service unwell"


async def test_a_namespace_past_its_budget_waits_alone(town: Town) -> None:
    """The attack: one pod of a tenant is relabelled, or many are made, until nobody's identities fit any more."""
    crowd = [pod(f"y/c{at}", labels={"n": str(at)}) for at in range(12)]
    async with (
        reported_on_objects(town.server) as reported,
        copy_of(town.server, policy_namespace_identities=5) as policy,
    ):
        await town.settle(*crowd[:4])
        await town.until(lambda: town.rules.synced and len(town.policies()) == 7, "three and four")
        before = set(town.policies())
        await town.put(*crowd[4:])
        last = await town.put(pod("x/new", labels={"role": "new"}))
        await town.until(lambda: town.of("x/new"), "another namespace's pod has rules")
        await town.until(lambda: town.reached(last), "frontiers move")
        assert before < set(town.policies())
        assert len(town.policies()) == 8
        assert set(town.policies()) == set(town.identities.entries)
        await town.until(lambda: any(fault.kind == "Pod" for fault in reported), "told")
        assert {fault.namespace or fault.name for fault in reported} == {"y"}
        assert {fault.reason for fault in reported} == {"IdentityBudgetSpent"}
        assert policy.health.ready


async def test_a_pod_that_is_relabelled_fast_leaves_little_behind(town: Town) -> None:
    async with copy_of(town.server):
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        last = 0
        for at in range(400):
            last = await town.put(msgspec.structs.replace(WEB, labels=(("role", f"web{at}"),)))
            await asyncio.sleep(0.003)
        await town.until(lambda: town.reached(last), "all of it compiled")
        await town.until(lambda: len(town.policies()) <= 3 + 64, "only the last few linger")
        await town.until(lambda: len(town.identities.entries) <= 3 + 64, "of their records too")


@pytest_asyncio.fixture
async def narrow(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    """A town whose buckets take 256 KiB each."""
    small = tuple(replace(bucket, max_bytes=1 << 18) for bucket in BUCKETS)
    monkeypatch.setattr("chassis.bus.client.BUCKETS", small)
    async with town_of(nats_server) as made:
        yield made


async def fill(writer: Bus, bucket: Bucket, room: int) -> list[str]:
    """Fill the bucket up, but for so many bytes; returns the keys that are to be deleted for more room."""
    taken: dict[str, int] = {}
    for at, size in enumerate((*[1 << 14] * 16, *[1 << 10] * 16, *[100] * 16)):
        key = f"{0xFFFF_0000 + at:016x}"
        message = await writer.connection.call(f"$KV.{bucket.on_server}.{key}", b"x" * size, timeout=20)
        if b"error" not in message.data:
            taken[key] = size
    assert 0 < len(taken) < 48
    for key, size in reversed(taken.items()):
        if room <= 0:
            break
        await writer.bucket(bucket).delete(key)
        room -= size
    return list(taken)


async def test_rules_that_the_bus_does_not_take_are_denied_and_hold_up_nobody(narrow: Town) -> None:
    """What an identity had before goes all the same: the frontier promises that the policy is in force."""
    town = narrow
    ports = [{"port": 2 * at + 1} for at in range(2000)]
    wide = {"podSelector": {"matchLabels": {"role": "db"}}, "ingress": [{"ports": ports}]}
    async with (
        reported_on_objects(town.server) as reported,
        bus_of(town.server, "policy") as writer,
        copy_of(town.server) as policy,
    ):
        await town.settle()
        await town.until(lambda: town.rules.synced and town.of("x/db"), "synced")
        filler = await fill(writer, RULES, room=1500)
        last = await town.put(np(wide), msgspec.structs.replace(WEB, phase="Running"))
        await town.until(lambda: town.reached(last), "the frontiers of both shards go on")
        closed = town.of("x/db")
        assert closed is not None
        assert (closed.ingress_isolated, closed.egress_isolated, closed.rules) == (True, True, ())
        await town.until(
            lambda: {("Pod", "db"), ("NetworkPolicy", "p")} <= {(f.kind, f.name) for f in reported}, "told"
        )
        assert policy.health.ready
        for key in filler:
            await writer.bucket(RULES).delete(key)
        await town.until(lambda: (found := town.of("x/db")) and found.rules, "as soon as there is room")


async def test_a_bucket_of_rules_that_is_full_to_the_brim_takes_the_frontier(narrow: Town) -> None:
    """Somebody's rules fill it; who has the most has to do without some of them."""
    town = narrow
    async with bus_of(town.server, "policy") as writer, copy_of(town.server):
        wide = {"podSelector": {}, "ingress": [{"ports": [{"port": 2 * at + 1} for at in range(500)]}]}
        await town.settle(np(wide, space="y", name="wide"))
        await town.until(lambda: town.rules.synced and (found := town.of("y/web")) and found.rules, "synced")
        filler = await fill(writer, RULES, room=0)
        for at in range(3):
            last = await town.put(msgspec.structs.replace(DB, phase="Running", labels=(("role", f"db{at}"),)))
            await town.until(lambda: town.reached(last), "the frontiers go on")  # noqa: B023
        for key in filler:
            await writer.bucket(RULES).delete(key)
        await town.until(lambda: (found := town.of("y/web")) and found.rules, "there is room again")
        await town.until(lambda: town.of("x/db2"), "for everybody")


async def test_a_full_bucket_of_records_does_not_stop_the_frontier(narrow: Town) -> None:
    """The attack: 95 label sets of 700 KB filled ``identities``, and no pod started anywhere."""
    town = narrow
    async with (
        reported_on_objects(town.server) as reported,
        bus_of(town.server, "policy") as writer,
        copy_of(town.server) as policy,
    ):
        await town.settle()
        await town.until(lambda: town.rules.synced and town.identities.synced, "synced")
        filler = await fill(writer, IDENTITIES, room=0)
        last = await town.put(pod("x/new", labels={"role": "new"}, named_ports=PORTS), np(API_TO_DB))
        await town.until(lambda: town.reached(last), "frontiers")
        await town.until(lambda: (found := town.of("x/db")) and found.rules, "rules of others")
        assert town.of("x/new") is None, "nobody could know it as a peer: it waits"
        await town.until(lambda: ("Pod", "new") in {(fault.kind, fault.name) for fault in reported}, "told")
        assert policy.health.ready
        for key in filler:
            await writer.bucket(IDENTITIES).delete(key)
        await town.until(lambda: town.of("x/new"), "as soon as there is room")


PORTS = named(*(f"port-{at}:TCP:{8000 + at}" for at in range(50)))
"""A record with so many is larger than what is left of a full bucket."""


async def test_compiled_events_and_traces(town: Town, nats_server: NatsServer) -> None:
    events: list[PolicyCompiled] = []
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with bus_of(nats_server, "cli") as cli, copy_of(town.server):
        await cli.subscribe(event_subject("policy", "compiled"), PolicyCompiled, lambda _, event: events.append(event))
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        await asyncio.sleep(0.3)  # the events of what was published before are still on their way
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
        answer = await cli.request(POLICY_EXPLAIN, ask("x/api", "x/db"), Explanation, timeout=20)
        assert answer.allowed
        assert "allowed by NetworkPolicy x/p, ingress rule 0" in answer.reasons[1]
        denied = await cli.request(POLICY_EXPLAIN, ask("y/web", "x/db"), Explanation, timeout=20)
        assert (denied.allowed, denied.egress_allowed, denied.ingress_allowed) == (False, True, False)
        assert "isolated by NetworkPolicy x/p and no rule allows TCP port 5432 from y/web" in denied.reasons[1]
        assert denied.revision.startswith(town.epochs["objects"])
        kubelet = await cli.request(POLICY_EXPLAIN, ask("172.30.0.11", "x/db"), Explanation, timeout=20)
        assert kubelet.allowed
        assert kubelet.source_identity == Reserved.HOST
        with pytest.raises(Refused) as refused:
            await cli.request(POLICY_EXPLAIN, ask("x/nobody", "x/db"), Explanation, timeout=20)
        assert refused.value.code == "not-found"
        with pytest.raises(Refused) as refused:
            await cli.request(POLICY_EXPLAIN, ask("x/api", "x/db", port=70000), Explanation, timeout=20)
        assert refused.value.code == "malformed"
        questions = tuple(ask(source, "x/db") for source in ("x/api", "y/web", "8.8.8.8", "x/nobody"))
        matrix = await cli.request(POLICY_MATRIX, ExplainMany(questions), Explanations, timeout=20)
        assert [answer.allowed for answer in matrix.answers] == [True, False, False, False]
        with pytest.raises(Refused) as refused:
            await cli.request(POLICY_MATRIX, ExplainMany(questions * 1025), Explanations, timeout=20)
        assert refused.value.code == "too-many"


async def test_before_it_is_in_sync_questions_are_refused(town: Town, nats_server: NatsServer) -> None:
    async with bus_of(nats_server, "cli") as cli, copy_of(town.server):
        await asyncio.sleep(0.5)
        with pytest.raises(Refused) as refused:
            await cli.request(POLICY_EXPLAIN, ExplainRequest("x/a", "x/b", 80), Explanation, timeout=20)
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
        for key in ("_frontier.0", "_frontier.1", "_complete", "_cidrs.x", identity):
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
