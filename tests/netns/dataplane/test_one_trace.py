"""One trace for each change, over every hop: real NATS, ipam, policy, routing and dataplane, asked by `airmesh trace`.

The test plays `cluster`: the trace begins with the object that it writes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import msgspec
import pytest

from chassis.bus.client import Bus
from chassis.telemetry.spans import Span, entered
from cli import gather
from cli.link import Link
from cli.reports.trace import Target, TracedSpan
from cli.settings import BusSettings
from proto.codec import object_key
from proto.objects import (
    EndpointPort,
    EndpointSlice,
    KubernetesObject,
    NetworkPolicy,
    Owner,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
)
from proto.subjects import OBJECTS
from tests.netns.dataplane.mesh import TRY_AGAIN_LATER, Mesh, mesh, wait_for
from tests.netns.dataplane.policy.test_enforced import deny_ingress

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A node whose ADDs do not wait long."""
    with mesh(tmp_path_factory.mktemp("mesh"), "tr", AIRMESH_ADD_DEADLINE="1") as world:
        yield world


def changed(node: Mesh, *objects: KubernetesObject, gone: bool = False) -> list[str]:
    """Written (or deleted) at once, each in a trace of its own; the ids of these."""
    spans = [Span(secrets.token_hex(16), secrets.token_hex(8)) for _ in objects]

    async def go(bus: Bus) -> None:
        kv = bus.bucket(OBJECTS)
        for span, one in zip(spans, objects, strict=True):
            with entered(span):
                await (kv.delete(object_key(one)) if gone else kv.put(object_key(one), one))

    node.as_cluster(go)
    return [span.trace_id for span in spans]


def spans_of(node: Mesh, trace_id: str) -> tuple[TracedSpan, ...]:
    """As `airmesh trace` reports them."""
    settings = BusSettings(url=node.nats.url, seed_file=node.nats.seeds / "cli.seed")

    async def ask() -> tuple[TracedSpan, ...]:
        async with Link(settings) as link:
            return (await gather.change(link, Target(trace_id=trace_id))).spans

    return asyncio.run(ask())


def followed(node: Mesh, trace_id: str, *steps: str) -> tuple[TracedSpan, ...]:
    """The spans of a trace, when all of these steps are among them."""
    found: tuple[TracedSpan, ...] = ()

    def look() -> bool:
        nonlocal found
        found = spans_of(node, trace_id)
        return {*steps} <= {f"{one.service} {one.name}" for one in found}

    try:
        wait_for(f"a trace with {', '.join(steps)}", look, 20)
    except AssertionError as late:
        raise AssertionError(f"{late}; it has {[(one.service, one.name) for one in found]}") from late
    return found


def logged(node: Mesh, service: str, event: str, trace_id: str) -> Callable[[], bool]:
    return lambda: any(line["event"] == event and line.get("trace_id") == trace_id for line in node.log(service))


def test_a_change_keeps_its_trace_down_to_the_kernel(node: Mesh) -> None:
    """A pod that keeps its address starts, a policy about it comes with another and goes, its labels change, it ends.

    Meanwhile an ADD waits in vain for a pod whose namespace nobody knows.
    """
    node.start("routing", "routing-n1", AIRMESH_NODE="n1", AIRMESH_UPLINKS="fab0")
    wait_for("what routing says first", lambda: any(line["event"] == "announced" for line in node.log("routing")))
    lost = Pod(namespace="nowhere", name="lost", uid="uid-lost", node="n1")
    pod = Pod(
        namespace="shop",
        name="db-0",
        uid="uid-db-0",
        node="n1",
        labels=(("app", "db"),),
        owner=Owner("shop", "StatefulSet", "db", 0),
    )
    start, refused = changed(node, pod, lost)
    with ThreadPoolExecutor() as beside:
        waiting = beside.submit(node.cni, "ADD", "c-lost", node.empty_namespace(), lost)
        _follow(node, pod, start)
        answer = waiting.result(20)
    assert answer.body["code"] == 11
    (add,) = [one for one in followed(node, refused, "dataplane cni-add") if one.name == "cni-add"]
    assert add.error.startswith("CniError")
    assert add.milliseconds is not None
    assert add.milliseconds > 900, "the wait is part of it"


def _follow(node: Mesh, pod: Pod, start: str) -> None:
    answer = node.cni("ADD", "c-db-0", netns := node.empty_namespace(), pod)
    while answer.body.get("code") == TRY_AGAIN_LATER:
        answer = node.cni("ADD", "c-db-0", netns, pod)
    assert answer.code == 0, answer
    spans = followed(
        node, start, "policy policy.compile", "dataplane cni-add", "ipam answer airmesh.v1.ipam.claim",
        "routing routing.install",
    )  # fmt: skip
    (add,) = [one for one in spans if one.name == "cni-add" and not one.error]
    assert [event.name for event in add.events] == ["admitted", "addressed", "linked", "up"]
    assert add.node == "n1"
    assert logged(node, "dataplane", "endpoint-up", start)()

    policies: list[NetworkPolicy] = [deny_ingress("first", "db", "web"), deny_ingress("second", "db", "api")]
    first, second = changed(node, *policies)
    followed(node, first, "policy policy.compile")
    # Rules of the second alone may be in force before a node has seen those of the first alone.
    steps = followed(node, second, "policy policy.compile", "dataplane policy.enforce")
    assert {step.node for step in steps if step.name == "policy.enforce"} == {"n1"}
    (removal,) = changed(node, policies[0], gone=True)
    followed(node, removal, "policy policy.compile", "dataplane policy.enforce")
    assert wait_for("a line of the removal", logged(node, "policy", "compiled", removal))

    (relabelled,) = changed(node, msgspec.structs.replace(pod, labels=(("app", "other"),)))
    followed(node, relabelled, "policy policy.compile", "dataplane identity-change")
    assert node.cni("DEL", "c-db-0", netns, pod).code == 0
    ended = followed(node, relabelled, "dataplane cni-del")
    assert {one.trace_id for one in ended} == {relabelled}


def test_a_services_change_is_followed_into_the_load_balancers_maps(node: Mesh) -> None:
    """Two Services come at once with the endpoints of one; these change; a Service goes."""
    web, api = (
        Service("shop", name, f"uid-{name}", cluster_ips=(ip_address(address),), ports=(ServicePort("http", 6, 80),))
        for name, address in (("web", "10.96.0.10"), ("api", "10.96.0.11"))
    )
    behind = EndpointSlice(
        "shop", "web-1", "web", (SliceEndpoint((ip_address("10.244.0.9"),)),), (EndpointPort("http", 6, 8080),)
    )
    more = SliceEndpoint((ip_address("10.244.0.10"),))
    made, filled, other = changed(node, web, behind, api)
    entries = _applied(node, "web", made, filled) + _applied(node, "api", other)
    assert entries >= 2 + 2, "a frontend of each, a backend with its member"
    (grown,) = changed(node, msgspec.structs.replace(behind, endpoints=(*behind.endpoints, more)))
    assert _applied(node, "web", grown) == 3, "another of these, and how many there are"
    (removed,) = changed(node, api, gone=True)
    assert _applied(node, "api", removed) == 1


def _applied(node: Mesh, service: str, *traces: str) -> int:
    """Entries that the node's agent says to have changed in these traces, which are about this Service."""
    entries = 0
    for trace_id in traces:
        steps = followed(node, trace_id, "dataplane loadbalancer.apply")
        (step,) = [one for one in steps if one.name == "loadbalancer.apply" and one.trace_id == trace_id]
        assert step.node == step.attributes["k8s.node.name"] == "n1"
        named = [step.attributes[f"k8s.{key}"] for key in ("object.kind", "namespace.name", "object.name")]
        assert named == ["Service", "shop", service]
        entries += int(step.attributes.get("airmesh.changed", 0))
    return entries
