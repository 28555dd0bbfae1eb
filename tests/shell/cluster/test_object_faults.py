"""What a service says of an object stands on that object, and no key can make more of it than its share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from proto.events import ObjectFault
from proto.objects import KIND_OF, IPPool
from proto.subjects import object_fault_subject
from services.cluster.core.object_faults import BURST
from tests.conftest import BusFor
from tests.natsd import NatsServer
from tests.shell.cluster.apiserver import ApiServer
from tests.shell.cluster.test_mirror import cluster, until

FAULT = ObjectFault("dataplane", "n1", "", "Service", "shop", "web", "TableFull", "namespace shop has 9", "delete some")


async def test_it_stands_on_the_object_with_who_said_it(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    await api.put("Service", {"spec": {"ports": []}}, "shop", "web")
    one, two = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        for _ in range(20):
            one.publish(object_fault_subject("dataplane", "n1"), FAULT)
        await until(lambda: api.events)
        (event,) = api.events.values()
        assert event["involvedObject"]["uid"] == api.objects["Service"]["shop", "web"]["metadata"]["uid"]
        assert (event["reason"], event["type"]) == ("TableFull", "Warning")
        assert event["message"] == "namespace shop has 9; delete some (says dataplane on n1)"
        assert event["metadata"]["namespace"] == "shop"
        # Another node's words are its own, whatever node they name, and what it may not say is not heard.
        two.publish(object_fault_subject("dataplane", "n1"), FAULT)
        two.publish("airmesh.v1.events.dataplane.object-fault", FAULT)
        two.publish(object_fault_subject("dataplane", "n2"), msgspec.structs.replace(FAULT, reason="Other"))
        await until(lambda: len(api.events) == 2)
        (other,) = (event for event in api.events.values() if event["reason"] == "Other")
        assert other["message"].endswith("(says dataplane on n2)")
        assert {manager for path, manager, _ in api.applied if "/events/" in path} == {"airmesh-object-faults"}
        # One write for the whole series so far, though it was said twenty times.
        assert len([path for path, _, _ in api.applied if "/events/" in path]) <= 3


async def test_a_pool_of_the_second_spelling_hears_of_itself(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    """Who speaks knows one spelling alone: that of the mirror's keys."""
    await api.put("IPPool.v3", {"spec": {"cidr": "10.0.0.0/16"}}, name="p")
    routing = await bus_for("routing", "n1")
    group = KIND_OF[IPPool].group
    fault = ObjectFault("routing", "n1", group, "IPPool", "", "p", "ModelUnavailable", "no way", "open port 4789")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        routing.publish(object_fault_subject("routing", "n1"), fault)
        await until(lambda: api.events)
        (event,) = api.events.values()
        assert event["involvedObject"]["apiVersion"] == "projectcalico.org/v3"
        assert event["involvedObject"]["uid"] == api.objects["IPPool.v3"]["", "p"]["metadata"]["uid"]


async def test_a_flood_from_one_key_is_dropped_and_another_node_is_heard(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    for number in range(BURST * 3):
        await api.put("Service", {"spec": {"ports": []}}, "shop", f"s{number}")
    await api.put("Service", {"spec": {"ports": []}}, "bank", "api")
    thief, honest = await bus_for("dataplane", "n1"), await bus_for("dataplane", "n2")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready, 20)
        for number in range(BURST * 3):
            fault = msgspec.structs.replace(FAULT, name=f"s{number}", fault="nonsense")
            thief.publish(object_fault_subject("dataplane", "n1"), fault)
        for name in ("not-there", "neither"):
            thief.publish(object_fault_subject("dataplane", "n1"), msgspec.structs.replace(FAULT, name=name))
        honest.publish(
            object_fault_subject("dataplane", "n2"), msgspec.structs.replace(FAULT, namespace="bank", name="api")
        )
        await until(lambda: any(e["involvedObject"]["name"] == "api" for e in api.events.values()), 20)
        assert len(api.events) < BURST  # not behind all of the flood
        await until(lambda: len(api.events) > BURST, 20)
        await asyncio.sleep(2)
        assert len(api.events) <= BURST + 15


async def test_an_event_that_is_refused_holds_up_no_other(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    for namespace in ("ending", "shop"):
        await api.put("Service", {"spec": {"ports": []}}, namespace, "web")
    api.refuse(100, 403, "Forbidden", when="namespaces/ending/events")
    api.refuse(2, 500, "InternalError", when="namespaces/shop/events")
    policy = await bus_for("policy")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)
        policy.publish(object_fault_subject("policy"), msgspec.structs.replace(FAULT, namespace="ending"))
        policy.publish(object_fault_subject("policy"), FAULT)
        await until(lambda: api.events)
        assert {event["metadata"]["namespace"] for event in api.events.values()} == {"shop"}
