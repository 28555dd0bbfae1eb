"""The mirror on a real NATS: the bucket becomes what the API server has, whatever dies in between."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chassis.bus.client import Bus, View
from chassis.bus.entry import Entry
from chassis.runtime.service import Runtime
from proto.codec import kind_prefix, object_key
from proto.events import ServiceFault
from proto.leases import Lease
from proto.objects import KIND_OF, KINDS, FelixConfiguration, IPPool, NetworkPolicy, Pod
from proto.policy import Ack, Revision
from proto.subjects import ACKS, BUCKETS, DNS, LEASES, OBJECTS, event_subject
from proto.sync import Epoch
from services.cluster.app import build
from services.cluster.mirror import kind_of_key
from services.cluster.settings import Settings
from tests.conftest import BusFor
from tests.natsd import Lines, NatsServer, runtime_of
from tests.shell.cluster.apiserver import ApiServer

POD: dict[str, Any] = {"spec": {"nodeName": "n1"}, "status": {"phase": "Pending"}}
RUNNING: dict[str, Any] = {"spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}}
POD_KEY = "core.pod.n1.prod.a"
GOOD: dict[str, Any] = {"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
BROKEN: dict[str, Any] = {"spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}}


@asynccontextmanager
async def cluster(
    server: NatsServer, api: ApiServer, folder: Path, name: str = "one", seconds: float = 6.0, **more: Any
) -> AsyncIterator[Runtime[Any]]:
    """The whole service, without its process."""
    config = folder / "kubeconfig"
    config.write_text(
        f"current-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
        f"clusters: [{{name: a, cluster: {{server: '{api.url}'}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
    )
    settings = Settings(
        nats_url=server.url,
        nats_seed_file=server.seeds / "cluster.seed",
        nats_user="cluster",
        instance=name,
        kubeconfig=config,
        lease_seconds=seconds,
        **more,
    )
    async with runtime_of(server, "cluster", settings=settings, lines=Lines()) as runtime:
        await build(runtime)
        yield runtime


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)


def watch(bus: Bus, *kinds: type) -> View:
    """The objects as another service sees them; in sync when these kinds are complete."""
    markers = tuple(kind_prefix(KIND_OF[kind]) for kind in kinds)
    return bus.bucket(OBJECTS).watch(kind_of_key, markers=markers, name="test")


def keys(view: View) -> set[str]:
    return set(view.entries)


CRDS = (FelixConfiguration, IPPool)
ALL_BUT_CRDS = tuple(kind.type for kind in KINDS if kind.type not in CRDS)


async def test_everything_is_there_and_said_to_be(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    api.absent |= {"IPPool", "FelixConfiguration", "IPPool.v3", "FelixConfiguration.v3"}
    await api.put("Namespace", {"metadata": {"labels": {"a": "b"}}}, name="prod")
    await api.put("Pod", POD, "prod", "a")
    await api.put("Pod", {"spec": {}}, "prod", "unscheduled")
    await api.put("Node", {}, name="n1")
    await api.put("NetworkPolicy", GOOD, "prod", "p")
    await api.put("ConfigMap", {"data": {"Corefile": "x"}}, "kube-system", "coredns")
    bus = await bus_for("cli")
    view = watch(bus, *ALL_BUT_CRDS)
    async with cluster(nats_server, api, tmp_path) as runtime:
        await view.wait_synced(10)
        assert keys(view) == {
            "core.namespace._.prod",
            POD_KEY,
            "core.node._.n1",
            "networking=2Ek8s=2Eio.networkpolicy.prod.p",
            "core.configmap.kube-system.coredns",
        }
        assert not view.scope_complete(kind_prefix(KIND_OF[IPPool]))
        assert view.entries[POD_KEY].traceparent
        await until(lambda: runtime.health.ready)
        await api.put("IPPool", {"spec": {"cidr": "10.0.0.0/16"}}, name="pool")
        api.absent.clear()
        await until(lambda: view.scope_complete(kind_prefix(KIND_OF[IPPool])))
        await until(lambda: "crd=2Eprojectcalico=2Eorg.ippool._.pool" in keys(view))
        await api.put("FelixConfiguration", {"spec": {"vxlanPort": 8472}}, name="default")
        felix = "crd=2Eprojectcalico=2Eorg.felixconfiguration._.default"
        await until(lambda: felix in view.entries)
        assert view.entries[felix].value == FelixConfiguration(name="default", vxlan_port=8472)


async def test_a_lifecycle_of_a_pod_is_one_trace(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    view = watch(await bus_for("cli"), Pod)
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        await api.put("Pod", {"spec": {}}, "prod", "a")
        await asyncio.sleep(0.2)
        assert keys(view) == set()
        await api.put("Pod", POD, "prod", "a")
        await until(lambda: keys(view) == {POD_KEY})
        first: Entry[Any] = view.entries[POD_KEY]
        pulling = {**RUNNING, "status": {**RUNNING["status"], "phase": "Pending"}}
        await api.put("Pod", pulling, "prod", "a")
        await until(lambda: bool(view.entries[POD_KEY].value.addresses))
        await api.put("Pod", RUNNING, "prod", "a")
        await until(lambda: view.entries[POD_KEY].value.phase == "Running")
        assert view.entries[POD_KEY].traceparent[:36] == first.traceparent[:36]
        assert view.entries[POD_KEY].traceparent != first.traceparent
        await api.put("Pod", {**RUNNING, "metadata": {"labels": {"a": "b"}}}, "prod", "a")
        await until(lambda: bool(view.entries[POD_KEY].value.labels))
        second = view.entries[POD_KEY].traceparent
        assert second[:36] != first.traceparent[:36], "another change, another trace"
        await api.delete("Pod", "prod", "a")
        await until(lambda: keys(view) == set())
        assert view.removed_in(POD_KEY)[:36] == second[:36], "the removal ends the story of the last change"
        await api.put("Pod", POD, "prod", "a")
        await until(lambda: keys(view) == {POD_KEY})
        assert view.entries[POD_KEY].value.uid != first.value.uid


async def test_what_nobody_reads_is_not_written_again(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    view = watch(await bus_for("cli"), Pod)
    node: dict[str, Any] = {"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "1"}]}}
    await api.put("Node", node, name="n1")
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        before = view.entries["core.node._.n1"].revision
        node["status"]["conditions"][0]["lastHeartbeatTime"] = "2"
        await api.put("Node", node, name="n1")
        await api.put("Namespace", {}, name="after")
        await until(lambda: "core.namespace._.after" in keys(view))
        assert view.entries["core.node._.n1"].revision == before


async def test_what_was_deleted_while_nobody_looked(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    view = watch(await bus_for("cli"), *ALL_BUT_CRDS)
    for name in ("a", "b", "c"):
        await api.put("Pod", POD, "prod", name)
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        assert len(keys(view)) == 3
    await api.delete("Pod", "prod", "a")
    await api.put("Pod", RUNNING, "prod", "b")
    async with cluster(nats_server, api, tmp_path, "two"):
        await until(lambda: keys(view) == {"core.pod.n1.prod.b", "core.pod.n1.prod.c"}, 5)
        await until(lambda: view.entries["core.pod.n1.prod.b"].value.phase == "Running")


async def test_a_bucket_that_is_gone_is_filled_again_under_a_new_epoch(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    view = watch(await bus_for("cli"), *ALL_BUT_CRDS)
    await api.put("Pod", POD, "prod", "a")
    await api.put("NetworkPolicy", GOOD, "prod", "p")
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        epoch, before = view.epoch, keys(view)
        nats_server.kill()
        shutil.rmtree(nats_server.folder / "store")
        await api.delete("Pod", "prod", "a")
        await api.put("Pod", POD, "prod", "b")
        assert keys(view) == before
        nats_server.start()
        await until(lambda: view.synced and view.epoch not in ("", epoch), 30)
        assert keys(view) == {"core.pod.n1.prod.b", "networking=2Ek8s=2Eio.networkpolicy.prod.p"}


async def test_nats_away_and_back_applies_once(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    view = watch(await bus_for("cli"), Pod)
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        nats_server.kill()
        for number in range(20):
            await api.put("Pod", POD if number % 2 else RUNNING, "prod", "a")
        await api.put("Pod", POD, "prod", "b")
        await api.delete("Pod", "prod", "b")
        await asyncio.sleep(0.5)
        nats_server.start()
        await until(lambda: keys(view) == {POD_KEY}, 20)
        assert view.entries[POD_KEY].value.phase == "Pending"


async def test_a_standby_takes_over_with_a_warm_cache(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    bus = await bus_for("cli")
    view = watch(bus, Pod)
    await api.put("Pod", POD, "prod", "a")
    async with cluster(nats_server, api, tmp_path, "one", seconds=1.5) as first:
        await view.wait_synced(10)
        async with cluster(nats_server, api, tmp_path, "two", seconds=1.5) as second:
            await until(lambda: second.health.ready)
            entry = await bus.bucket(LEASES).get("cluster", Lease)
            assert entry is not None
            assert entry.value.holder == "one"
            lists = api.lists("Pod")
            # The first one falls silent: it can reach neither NATS nor anybody.
            await first.bus.connection.close()
            await api.put("Pod", RUNNING, "prod", "a")
            await until(lambda: view.entries[POD_KEY].value.phase == "Running", 8)
            assert api.lists("Pod") == lists
            await api.put("Pod", POD, "prod", "b")
            await until(lambda: len(keys(view)) == 2)


async def test_a_broken_object_is_reported_and_its_last_good_version_stays(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    bus = await bus_for("cli")
    view = watch(bus, NetworkPolicy)
    reported: list[ServiceFault] = []
    await bus.subscribe(event_subject("cluster", "fault"), ServiceFault, lambda _subject, fault: reported.append(fault))
    key = "networking=2Ek8s=2Eio.networkpolicy.prod.p"
    await api.put("NetworkPolicy", GOOD, "prod", "p")
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        good = view.entries[key].value
        await api.put("NetworkPolicy", BROKEN, "prod", "p")
        await until(lambda: reported)
        assert reported[0].fault == "NetworkPolicy prod/p: spec.ingress[0].from[0]: names no peer"
        assert reported[0].remedy.startswith("give podSelector")
        await until(lambda: api.events)
        event = next(iter(api.events.values()))
        assert event["involvedObject"]["name"] == "p"
        assert event["type"] == "Warning"
        assert view.entries[key].value == good
    # Also after a restart, when no good version is known but the one in the bucket.
    async with cluster(nats_server, api, tmp_path, "two"):
        await asyncio.sleep(1)
        assert view.entries[key].value == good
        await api.delete("NetworkPolicy", "prod", "p")
        await until(lambda: keys(view) == set())
        assert len(api.events) == 1


async def test_a_policy_that_cannot_be_mirrored_whole_still_isolates(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    view = watch(await bus_for("cli"), NetworkPolicy)
    await api.put("NetworkPolicy", BROKEN, "prod", "broken")
    peers = [{"podSelector": {"matchLabels": {f"label-{n}": "x" * 60}}} for n in range(9000)]
    await api.put("NetworkPolicy", {"spec": {"podSelector": {}, "ingress": [{"from": peers}] * 2}}, "prod", "large")
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        for name in ("broken", "large"):
            found = view.entries[f"networking=2Ek8s=2Eio.networkpolicy.prod.{name}"].value
            assert found.applies_ingress
            assert found.ingress == ()
        await until(lambda: len(api.events) == 2)
        await api.put("NetworkPolicy", GOOD, "prod", "large")
        await api.put("NetworkPolicy", {"spec": {"ingress": [{}]}}, "prod", "broken")
        await until(lambda: view.entries["networking=2Ek8s=2Eio.networkpolicy.prod.broken"].value.ingress != ())


async def test_a_kind_is_complete_only_after_it_is(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    """Other services sweep what is not there once the marker is: it must not come before the last pod."""
    for number in range(300):
        await api.put("Pod", POD, "prod", f"p{number}")
    view = watch(await bus_for("cli"), Pod)
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(20)
        assert len(keys(view)) == 300


async def test_objects_with_every_key_have_one_owner(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("Pod", POD, "prod", "a")
    view = watch(await bus_for("cli"), Pod)
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        assert all(object_key(entry.value) == key for key, entry in view.entries.items())


@pytest.mark.parametrize("ready", [True, False])
async def test_a_node_speaks_for_itself(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path, ready: bool
) -> None:
    await api.put("Node", {}, name="n1")
    await api.put("Node", {}, name="n2")
    dataplane = await bus_for("dataplane", "n1")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        await dataplane.bucket(ACKS).put("n1", Ack("n1", Revision("e", 1), 0, ready=ready))
        if ready:
            await until(lambda: api.applied)
            path, manager, body = api.applied[0]
            assert (path, manager) == ("/api/v1/nodes/n1/status", "airmesh-cluster")
            assert body["status"]["conditions"][0]["status"] == "False"
            await asyncio.sleep(0.5)
        else:
            await asyncio.sleep(1.5)
        # Said once; nothing about the node that has said nothing, nor about a fresh `not ready`.
        assert len(api.applied) == int(ready)


@pytest.mark.parametrize("body", [None, b"\xc1"], ids=["an answer", "garbage"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "started anew"])
async def test_what_nobody_can_read_is_written_again(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path, running: bool, body: bytes | None
) -> None:
    """An unreadable epoch made ``cluster`` end and end again."""
    await api.put("Pod", POD, "prod", "a")
    view = watch(await bus_for("cli"), Pod)
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        stack.push_async_callback(first.aclose)
        await first.enter_async_context(cluster(nats_server, api, tmp_path, seconds=1.5))
        await view.wait_synced(10)
        await until(lambda: POD_KEY in view.entries)
        if not running:
            await first.aclose()
        before = view.entries[POD_KEY].revision
        for bucket in BUCKETS:
            await nats_server.destroy(bucket, "_epoch", body)
        await nats_server.destroy(OBJECTS, POD_KEY, body)
        await nats_server.destroy(OBJECTS, "_complete.core.pod", body)
        if not running:
            await stack.enter_async_context(cluster(nats_server, api, tmp_path, "two", seconds=1.5))
        await until(lambda: view.entries[POD_KEY].revision > before and view.synced and not view.unreadable, 12)
        assert POD_KEY in view.entries
        await api.put("Pod", RUNNING, "prod", "a")
        await until(lambda: view.entries[POD_KEY].value.phase == "Running")
        cli = await bus_for("dns")
        deadline = time.monotonic() + 8
        for bucket in (OBJECTS, DNS, LEASES):
            while not isinstance(await cli.bucket(bucket).look("_epoch", Epoch), Entry):
                assert time.monotonic() < deadline, bucket.name
                await asyncio.sleep(0.1)


V1, V3 = "IPPool", "IPPool.v3"
CIDRS = ({"spec": {"cidr": "10.0.0.0/16"}}, {"spec": {"cidr": "10.1.0.0/16"}})


def ranges(view: View) -> dict[str, str]:
    return {key.rpartition(".")[2]: str(entry.value.cidr) for key, entry in view.entries.items() if ".ippool." in key}


async def test_a_pool_counts_whichever_way_it_is_written(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    view = watch(await bus_for("cli"), IPPool)
    await api.put(V1, CIDRS[0], name="old")
    await api.put(V3, CIDRS[1], name="new")
    await api.put(V1, CIDRS[0], name="both")
    await api.put(V3, CIDRS[1], name="both")
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
        first, second = "10.0.0.0/16", "10.1.0.0/16"
        assert ranges(view) == {"old": first, "new": second, "both": first}, "of two with one name that of v1 counts"
        await api.delete(V1, name="both")
        await until(lambda: ranges(view)["both"] == second)
        await api.put(V1, CIDRS[0], name="both")
        await until(lambda: ranges(view)["both"] == first)
        await api.delete(V1, name="both")
        await api.delete(V3, name="both")
        await until(lambda: ranges(view).keys() == {"old", "new"})


@pytest.mark.parametrize("late", [V1, V3])
async def test_no_pool_is_taken_for_gone_before_both_groups_are_listed(
    late: str, nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    view = watch(await bus_for("cli"), IPPool)
    await api.put(V1, CIDRS[0], name="of-v1")
    await api.put(V3, CIDRS[1], name="of-v3")
    async with cluster(nats_server, api, tmp_path):
        await view.wait_synced(10)
    lost: list[str] = []
    view.heard = lambda key: lost.append(key) if ".ippool." in key else None
    path = "/projectcalico.org/v3/ippools" if late == V3 else "/crd.projectcalico.org/v1/ippools"
    api.refuse(10_000, 503, "ServiceUnavailable", when=path)
    await api.delete(late, name="of-v1" if late == V1 else "of-v3")
    async with cluster(nats_server, api, tmp_path, "two"):
        for name in ("after", "later"):  # by the second pass the first is through, deletions included
            await api.put("Namespace", {}, name=name)
            await until(lambda name=name: f"core.namespace._.{name}" in view.entries)  # type: ignore[misc]
        assert ranges(view).keys() == {"of-v1", "of-v3"}
        assert lost == []
        api.faults.clear()
        await until(lambda: len(ranges(view)) == 1, 60)
