"""What is written to the API server, by whom, and what never is."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from aiohttp import web

from chassis.telemetry.spans import Span, entered
from proto.addresses import Block
from proto.codec import block_key
from proto.dns import CoreDNSDecision, digest_of
from proto.policy import Ack, Revision
from proto.subjects import ACKS, BLOCKS, DNS
from proto.sync import Complete, Epoch
from proto.traces import SpansRequest
from services.cluster.core.nodes import TAINT
from tests.conftest import BusFor
from tests.natsd import NatsServer
from tests.shell.cluster.apiserver import ApiServer
from tests.shell.cluster.test_mirror import cluster, until


def block(cidr: str, node: str) -> Block:
    return Block(ip_network(cidr), "p", node, "u", 1, "x")


async def put_blocks(bus: Any, *blocks: Block, complete: bool) -> None:
    bucket = bus.bucket(BLOCKS)
    for one in blocks:
        await bucket.put(block_key(one.cidr), one)
    if complete:
        epoch = await bucket.get("_epoch", Epoch)
        await bucket.put("_complete", Complete(epoch.value.epoch))


def reported_blocks(api: ApiServer, node: str) -> str:
    written = api.objects["Node"]["", node]["metadata"].get("annotations", {})
    found: str = written.get("airmesh.io/blocks", "")
    return found


async def test_blocks_are_written_when_all_of_them_are_known(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("Node", {}, name="n1")
    await api.put("Node", {"metadata": {"annotations": {"airmesh.io/blocks": "10.9.0.0/26"}}}, name="dead")
    ipam = await bus_for("ipam")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        await put_blocks(ipam, block("10.0.0.64/26", "n1"), complete=False)
        await asyncio.sleep(0.7)
        # Not all is known yet: what a dead node held must not be forgotten.
        assert (reported_blocks(api, "n1"), reported_blocks(api, "dead")) == ("", "10.9.0.0/26")
        await put_blocks(
            ipam, block("10.0.0.0/26", "n1"), block("fd00::/122", "n1"), block("10.9.0.0/26", "dead"), complete=True
        )
        await until(lambda: reported_blocks(api, "n1") == "10.0.0.0/26,10.0.0.64/26,fd00::/122")
        assert reported_blocks(api, "dead") == "10.9.0.0/26"
        assert {manager for _, manager, _ in api.applied} == {"airmesh-blocks"}


def taints(api: ApiServer, node: str) -> list[str]:
    spec = api.objects["Node"]["", node].get("spec", {})
    return [one["key"] for one in spec.get("taints") or ()]


async def test_a_new_node_is_tainted_until_it_is_ready(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("Node", {"spec": {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}}, name="n1")
    await api.put("Node", {}, name="n2")
    agent = await bus_for("dataplane", "n1")
    async with cluster(nats_server, api, tmp_path, taint_new_nodes=True) as runtime:
        await until(lambda: runtime.health.ready)
        await until(lambda: taints(api, "n1") == ["dedicated", TAINT] and taints(api, "n2") == [TAINT])
        # Somebody taints it between our list and our write: neither taint is lost.
        api.faults.append(tainted_before_the_write(api))
        await agent.bucket(ACKS).put("n1", Ack("n1", Revision("e", 1), 1, ready=True))
        await until(lambda: taints(api, "n1") == ["dedicated", "cordoned", TAINT])
        await api.speak()
        await until(lambda: taints(api, "n1") == ["dedicated", "cordoned"])
        assert taints(api, "n2") == [TAINT]
        await agent.bucket(ACKS).put("n1", Ack("n1", Revision("e", 1), 1))
        await asyncio.sleep(0.7)
        assert taints(api, "n1") == ["dedicated", "cordoned"], "its condition speaks from now on"


def tainted_before_the_write(api: ApiServer) -> Callable[[web.Request], None]:
    """A person taints n1 before our first patch of its taints, and no watch has told of it."""

    def edit(request: web.Request) -> None:
        node = api.objects["Node"]["", "n1"]
        keys = taints(api, "n1")
        if request.method == "PATCH" and request.path.endswith("/n1") and "cordoned" not in keys:
            api.version += 1
            node["spec"]["taints"].insert(1, {"key": "cordoned", "effect": "NoSchedule"})
            node["metadata"]["resourceVersion"] = str(api.version)
            api.history.append((api.version, "MODIFIED", "Node", copy.deepcopy(node)))

    return edit


async def test_who_was_asleep_takes_no_block_from_an_annotation(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    """Another copy has annotated the Node since this one looked: the API server refuses, and the annotation stays."""
    await api.put("Node", {}, name="n1")
    ipam = await bus_for("ipam")
    overtaken: list[str] = []

    def overtake(request: web.Request) -> None:
        if request.method == "PATCH" and not overtaken:
            written = api.objects["Node"]["", "n1"]
            api.version += 1
            written["metadata"]["annotations"] = {"airmesh.io/blocks": "10.0.0.0/26,10.0.0.64/26"}
            written["metadata"]["resourceVersion"] = str(api.version)
            api.history.append((api.version, "MODIFIED", "Node", copy.deepcopy(written)))
            overtaken.append(request.path)

    api.faults.append(overtake)
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        await put_blocks(ipam, block("10.0.0.0/26", "n1"), complete=True)
        await until(lambda: overtaken)
        await asyncio.sleep(0.5)
        assert (reported_blocks(api, "n1"), api.applied) == ("10.0.0.0/26,10.0.0.64/26", [])
        await put_blocks(ipam, block("10.0.0.64/26", "n1"), complete=True)
        await api.speak()
        await asyncio.sleep(0.5)
        assert (reported_blocks(api, "n1"), api.applied) == ("10.0.0.0/26,10.0.0.64/26", [])


async def test_coredns_becomes_what_dns_decided(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("ConfigMap", {"data": {"Corefile": "old", "kept": "x"}}, "kube-system", "coredns")
    dns = await bus_for("dns")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        decided = Span(secrets.token_hex(16), secrets.token_hex(8))
        with entered(decided):
            await dns.bucket(DNS).put(
                "coredns", CoreDNSDecision("kube-system", "new", 3, "because", of=digest_of("old"))
            )
        config = api.objects["ConfigMap"]["kube-system", "coredns"]
        await until(lambda: api.objects["ConfigMap"]["kube-system", "coredns"]["data"]["Corefile"] == "new")
        assert config["data"]["kept"] == "x"
        # There is no Deployment: its replicas are nobody's, and it is not made.
        assert api.objects["Deployment"] == {}
        await api.put("Deployment", {"spec": {"replicas": 1}}, "kube-system", "coredns")
        await until(lambda: api.objects["Deployment"]["kube-system", "coredns"]["spec"]["replicas"] == 3)
        assert {manager for _, manager, _ in api.applied} == {"airmesh-dns"}
        await until(lambda: len(runtime.telemetry.ring.find(SpansRequest(trace_id=decided.trace_id)).spans) == 2)
        spans = runtime.telemetry.ring.find(SpansRequest(trace_id=decided.trace_id)).spans
        assert {(span.name, span.parent_id) for span in spans} == {("cluster.apply", decided.span_id)}
        assert [dict(span.attributes)["k8s.object.kind"] for span in spans] == ["ConfigMap", "Deployment"]


async def test_a_corefile_that_dns_has_not_seen_is_not_written_over(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    def text() -> str:
        found: str = api.objects["ConfigMap"]["kube-system", "coredns"]["data"]["Corefile"]
        return found

    await api.put("ConfigMap", {"data": {"Corefile": "by hand"}}, "kube-system", "coredns")
    dns = (await bus_for("dns")).bucket(DNS)
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        for of in ("", digest_of("old")):
            await dns.put("coredns", CoreDNSDecision("kube-system", "new", 3, "because", of=of))
            await asyncio.sleep(0.5)
            assert (text(), api.applied) == ("by hand", [])
        # Between what was seen and the write somebody edits: the API server refuses it, and the edit stays.
        api.faults.append(edited_before_the_write(api))
        await dns.put("coredns", CoreDNSDecision("kube-system", "new", 3, "because", of=digest_of("by hand")))
        await until(lambda: text() == "by hand, later")
        await asyncio.sleep(1)
        assert (text(), api.applied) == ("by hand, later", [])
        await api.speak()
        await dns.put("coredns", CoreDNSDecision("kube-system", "newer", 3, "because", of=digest_of("by hand, later")))
        await until(lambda: text() == "newer")


def edited_before_the_write(api: ApiServer) -> Callable[[web.Request], None]:
    """A person is faster than the first write of the ConfigMap, and no watch has told of it."""

    def edit(request: web.Request) -> None:
        config = api.objects["ConfigMap"]["kube-system", "coredns"]
        if request.method == "PATCH" and config["data"]["Corefile"] == "by hand":
            api.version += 1
            config["data"]["Corefile"] = "by hand, later"
            config["metadata"]["resourceVersion"] = str(api.version)
            api.history.append((api.version, "MODIFIED", "ConfigMap", copy.deepcopy(config)))

    return edit


async def test_a_decision_for_anything_else_is_not_carried_out(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    dns = await bus_for("dns")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        await dns.bucket(DNS).put("coredns", CoreDNSDecision("prod", "new", 3, "because"))
        await asyncio.sleep(1)
        assert api.applied == []


def allocatable(api: ApiServer, pool: str, kind: str = "IPPool") -> tuple[str, str, str]:
    """Status, reason and message of the condition on a pool; all empty while it has none."""
    conditions = api.objects[kind]["", pool].get("status", {}).get("conditions", [])
    found: dict[str, str] = next((one for one in conditions if one["type"] == "Allocatable"), {})
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


async def test_a_pool_that_is_not_honoured_says_so_by_condition_and_event(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("IPPool", {"spec": {"cidr": "10.0.0.0/16", "namespaceSelector": "has(team)"}}, name="kept")
    await api.put("IPPool", {"spec": {"cidr": "10.1.0.0/16"}}, name="plain")
    async with cluster(nats_server, api, tmp_path):
        await until(lambda: allocatable(api, "plain")[:2] == ("True", "OK"))
        await until(lambda: allocatable(api, "kept")[:2] == ("False", "UnsupportedField"))
        assert "spec.namespaceSelector 'has(team)'" in allocatable(api, "kept")[2]
        await until(lambda: len(api.events) == 1)
        (event,) = api.events.values()
        assert (event["involvedObject"]["name"], event["reason"]) == ("kept", "UnsupportedField")
        assert event["metadata"]["namespace"] == "default"
        assert event["message"].endswith("remove spec.namespaceSelector, or disable the pool")
        quiet = len(api.applied)
        await asyncio.sleep(1.0)
        assert len(api.applied) == quiet, "a condition that stands is not written again"
        there = api.objects["IPPool"]["", "kept"]
        await api.put("IPPool", {**there, "spec": {"cidr": "10.0.0.0/16", "namespaceSelector": "all()"}}, name="kept")
        await until(lambda: allocatable(api, "kept")[:2] == ("True", "OK"))
        assert len(api.events) == 1


async def test_of_pools_that_overlap_the_one_without_blocks_is_reported(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("IPPool", {"spec": {"cidr": "10.0.0.0/16"}}, name="a-new")
    await api.put("IPPool", {"spec": {"cidr": "10.0.128.0/20"}}, name="b-used")
    ipam = await bus_for("ipam")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        await asyncio.sleep(1.0)
        assert allocatable(api, "a-new") == ("", "", ""), "which of them has blocks is not known yet"
        used = Block(ip_network("10.0.128.0/26"), "b-used", "n1", "u", 1, "x")
        await put_blocks(ipam, used, complete=True)
        await until(lambda: allocatable(api, "a-new")[:2] == ("False", "CIDROverlap"))
        await until(lambda: allocatable(api, "b-used")[:2] == ("True", "OK"))
        await until(lambda: len(api.events) == 1)
        assert {event["involvedObject"]["name"] for event in api.events.values()} == {"a-new"}


async def test_a_pool_whose_name_is_taken_by_the_other_spelling_says_so(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("IPPool", {"spec": {"cidr": "10.0.0.0/16"}}, name="p")
    await api.put("IPPool.v3", {"spec": {"cidr": "10.0.0.0/16", "natOutgoing": True}}, name="p")
    await api.put("IPPool.v3", {"spec": {"cidr": "10.1.0.0/16"}}, name="q")
    async with cluster(nats_server, api, tmp_path):
        await until(lambda: allocatable(api, "p")[:2] == ("True", "OK"))
        await until(lambda: allocatable(api, "q", "IPPool.v3")[:2] == ("True", "OK"))
        await until(lambda: allocatable(api, "p", "IPPool.v3")[:2] == ("False", "NameTaken"))
        assert "crd.projectcalico.org/v1" in allocatable(api, "p", "IPPool.v3")[2]
        await until(lambda: len(api.events) == 1)
        (event,) = api.events.values()
        assert event["involvedObject"]["apiVersion"] == "projectcalico.org/v3"
        assert event["reason"] == "NameTaken"


async def test_what_is_wrong_with_models_is_reported_where_one_looks_first(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("IPPool", {"spec": {"cidr": "10.0.0.0/16", "ipipMode": "Always", "vxlanMode": "Always"}}, name="two")
    await api.put("FelixConfiguration", {"spec": {"vxlanVNI": 1 << 24}}, name="default")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: "24 bits" in runtime.health.notes.get("models", ""))
        assert "IPPool two: spec.vxlanMode: Always is in use beside ipipMode Always" in runtime.health.notes["models"]
        await until(lambda: allocatable(api, "two")[:2] == ("False", "Invalid"))
        await until(lambda: len(api.events) == 2)
        await api.put("IPPool", {"spec": {"cidr": "10.0.0.0/16", "vxlanMode": "Never"}}, name="two")
        await api.put("FelixConfiguration", {"spec": {"vxlanVNI": 1}}, name="default")
        await until(lambda: "models" not in runtime.health.notes)


async def test_what_is_left_out_of_an_object_is_reported_on_it_and_one_namespace_floods_nobody(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    wish = {"metadata": {"annotations": {"kubernetes.io/egress-bandwidth": "1M"}}, "spec": {"nodeName": "n1"}}
    for number in range(60):
        await api.put("Pod", wish, "loud", f"p{number}")
    await api.put("Pod", wish, "quiet", "p")
    async with cluster(nats_server, api, tmp_path):
        await until(lambda: len(api.events) == 33)
        await asyncio.sleep(2.5)
        reported = [event["involvedObject"]["namespace"] for event in api.events.values()]
        assert (reported.count("loud"), reported.count("quiet")) == (32, 1)
        assert {event["reason"] for event in api.events.values()} == {"NotHonoured"}


async def test_a_pool_of_a_kind_without_status_is_left_alone(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("IPPool", {"spec": {"cidr": "10.0.0.0/16", "allowedUses": ["Tunnel"]}}, name="p")
    api.refuse(1000, 404, "NotFound", when="PATCH /apis/crd.projectcalico.org/v1/ippools/p/status")
    async with cluster(nats_server, api, tmp_path):
        await until(lambda: len(api.events) == 1)
        await api.put("IPPool", {"spec": {"cidr": "10.1.0.0/16"}}, name="q")
        await until(lambda: allocatable(api, "q")[0] == "True")
        asked = [line for line in api.requests if line.startswith("PATCH") and "/ippools/p/status" in line]
        assert len(asked) == 1, "and not asked again at once"


async def test_while_nats_is_away_nodes_stay_as_they_were(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("Node", {}, name="n1")
    dataplane = await bus_for("dataplane", "n1")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        await dataplane.bucket(ACKS).put("n1", Ack("n1", Revision("e", 1), 0, ready=True))
        await until(lambda: len(api.applied) == 1)
        nats_server.kill()
        await api.put("Node", {"spec": {"unschedulable": True}}, name="n2")
        await asyncio.sleep(1.5)
        nats_server.start()
        await until(lambda: runtime.bus.connected)
        await asyncio.sleep(1.5)
        assert len(api.applied) == 1


async def test_a_refused_write_is_tried_again(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("Node", {}, name="n1")
    dataplane = await bus_for("dataplane", "n1")
    api.refuse(3, 500, "InternalError", when="PATCH")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        await dataplane.bucket(ACKS).put("n1", Ack("n1", Revision("e", 1), 0, ready=True))
        await until(lambda: len(api.applied) == 1, 15)
