"""`airmesh trace` against a real NATS server: agents answer for themselves alone, with what they keep."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address
from typing import Any

import msgspec
import nats
import pytest

from chassis.runtime.service import Runtime
from proto import codec, subjects
from proto.dns import CoreDNSDecision
from proto.events import ObjectFault
from proto.objects import EndpointSlice, NetworkPolicy, Pod, Selector, Service, SliceEndpoint
from proto.requests import Reply
from proto.routes import NodeRoutes
from proto.traces import Span, Spans
from tests.conftest import RuntimeFor
from tests.natsd import NatsServer
from tests.shell.cli.test_commands import airmesh, environment


def named(kind: str, name: str) -> dict[str, Any]:
    return {"k8s__object__kind": kind, "k8s__object__name": name, "k8s__namespace__name": "shop"}


async def mirrored(cluster: Runtime[Any], value: Any) -> str:
    """The object put where `cluster` puts it, in a span of it; its traceparent."""
    with cluster.telemetry.span("cluster.upsert", **named(type(value).__name__, value.name)) as span:
        await cluster.bus.bucket(subjects.OBJECTS).put(codec.object_key(value), value)
        return span.traceparent


@pytest.mark.usefixtures("buckets")
async def test_the_last_change_of_a_pod_is_followed_through_the_agents(
    nats_server: NatsServer, runtime_for: RuntimeFor
) -> None:
    cluster, policy = await runtime_for("cluster"), await runtime_for("policy")
    node = await runtime_for("dataplane", "n1")
    parent = await mirrored(cluster, Pod(namespace="shop", name="web", uid="u", node="n1"))
    with policy.telemetry.span("policy.compile", parent):
        pass
    with node.telemetry.span("cni-add", parent, k8s__pod__name="web") as add:
        add.event("addressed", addresses="10.244.0.9")
    output = await airmesh(environment(nats_server), "trace", "shop/web")
    assert output.code == 0, output.err
    assert [
        words
        for words in ("cluster.upsert", "├─ policy.compile", "└─ cni-add", "· addressed")
        if words not in output.out
    ] == []
    printed = json.loads((await airmesh(environment(nats_server), "trace", parent[3:35], "-o", "json")).out)
    assert [(one["service"], one["node"], one["depth"]) for one in printed["spans"]] == [
        ("cluster", "", 0), ("policy", "", 1), ("dataplane", "n1", 1),
    ]  # fmt: skip


@pytest.mark.usefixtures("buckets")
async def test_of_an_object_that_is_gone_its_removal_is_shown(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    cluster, node = await runtime_for("cluster"), await runtime_for("dataplane", "n1")
    with cluster.telemetry.span("cluster.delete", **named("NetworkPolicy", "gone")):
        pass
    with node.telemetry.span("a lie", **named("NetworkPolicy", "gone")):
        pass
    output = await airmesh(environment(nats_server), "trace", "shop/gone")
    assert output.code == 0, output.err
    assert "cluster.delete" in output.out
    assert "a lie" not in output.out, "only cluster says which change was the last"


@pytest.mark.usefixtures("buckets")
async def test_what_cannot_be_shown_is_one_sentence(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    cluster = await runtime_for("cluster")
    env = environment(nats_server)
    nothing = await airmesh(env, "trace", "shop/nobody")
    assert nothing.code == 4
    assert "no Pod or NetworkPolicy or Service shop/nobody is there" in nothing.err
    wrong = await airmesh(env, "trace", "deployment", "shop/web")
    assert wrong.code == 2
    assert "'deployment shop/web' is nothing that can be traced" in wrong.err
    remedy = "[pod | policy | service] NAMESPACE/NAME, node NODE, route PREFIX [NODE], dns, or a trace id"
    assert remedy in " ".join(wrong.err.split())
    forgotten = await airmesh(env, "trace", "ab" * 16)
    assert forgotten.code == 1
    assert "no agent keeps a span of it any more" in forgotten.out
    await mirrored(cluster, Pod(namespace="shop", name="both", uid="u", node="n1"))
    await mirrored(cluster, NetworkPolicy("shop", "both", "u", Selector(), True, False))
    either = await airmesh(env, "trace", "shop/both")
    assert either.code == 2
    assert "shop/both is a Pod and a NetworkPolicy" in either.err
    assert "airmesh trace pod or policy shop/both" in either.err
    assert (await airmesh(env, "trace", "policy", "shop/both")).code == 0


@pytest.mark.usefixtures("buckets")
async def test_a_services_last_change_may_be_of_its_endpoints(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    cluster, env = await runtime_for("cluster"), environment(nats_server)
    behind = EndpointSlice("shop", "web-x", "web", (SliceEndpoint((ip_address("10.244.0.9"),)),))
    other = EndpointSlice("shop", "db-x", "db")

    async def traced(*words: str) -> str:
        output = await airmesh(env, "trace", *words, "-o", "json")
        assert output.code == 0, output.err
        return f"00-{output.json['trace_id']}"

    first = await mirrored(cluster, behind)
    made = await mirrored(cluster, Service("shop", "web", "u"))
    assert made.startswith(await traced("service", "shop/web"))
    changed = await mirrored(cluster, msgspec.structs.replace(behind, endpoints=()))
    await mirrored(cluster, other)
    assert changed.startswith(await traced("shop/web"))
    assert len({first, made, changed}) == 3
    with cluster.telemetry.span("cluster.delete", **named("Service", "gone")) as gone:
        pass
    assert gone.traceparent.startswith(await traced("service", "shop/gone"))


@pytest.mark.usefixtures("buckets")
async def test_what_a_node_announced_and_what_dns_decided(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    env = environment(nats_server)
    for words, sentence in (("node n1", "node n1 has announced no routes"), ("dns", "dns has decided nothing yet")):
        nothing = await airmesh(env, "trace", *words.split())
        assert nothing.code == 4
        assert sentence in nothing.err
    routing, dns = await runtime_for("routing", "n1"), await runtime_for("dns")
    other = await runtime_for("routing", "n2")
    with routing.telemetry.span("routing.announce", k8s__node__name="n1") as announced:
        await routing.bus.bucket(subjects.ROUTES).put("n1", NodeRoutes("n1", ()))
    with other.telemetry.span("routing.install", announced.traceparent, k8s__node__name="n2", airmesh__changes=2):
        pass
    with dns.telemetry.span("dns.decide"):
        await dns.bus.bucket(subjects.DNS).put("coredns", CoreDNSDecision("kube-system", ".:53 {\n}", 2, "two"))
    shown = await airmesh(env, "trace", "node", "n1")
    assert shown.code == 0, shown.err
    assert "routing n2" in shown.out
    assert "└─ routing.install  changes=2" in shown.out
    decided = await airmesh(env, "trace", "dns")
    assert "dns.decide" in decided.out, decided.err


async def test_a_node_answers_in_its_own_name_alone(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    """With a node's key, one says that it is `cluster`."""
    await runtime_for("cluster")
    mine = nats_server.sign_in("dataplane-n2")
    thief = await nats.connect(nats_server.url, **mine)
    forged = Span(trace_id="ab" * 16, span_id="cd" * 8, parent_id="", name="cluster.upsert", start_ns=1, duration_us=1)

    async def lie(message: Any) -> None:
        body = codec.encode(Reply(ok=True, body=codec.encode(Spans((forged,)))))
        for reply in (message.reply, message.reply.replace(".srv.", ".srv.cluster.")):
            await thief.publish(reply, body)

    try:
        await thief.subscribe(subjects.SPANS, cb=lie)
        await thief.flush()
        output = await airmesh(environment(nats_server), "trace", "ab" * 16, "-o", "json")
    finally:
        await thief.close()
    assert {(one["service"], one["node"]) for one in json.loads(output.out)["spans"]} == {("dataplane", "n2")}


async def test_a_question_that_is_none_is_refused_and_one_whose_answer_goes_elsewhere_is_dropped(
    nats_server: NatsServer, runtime_for: RuntimeFor
) -> None:
    runtime = await runtime_for("ipam")
    client = await nats.connect(nats_server.url, **nats_server.sign_in("cli"))
    try:
        inbox = subjects.discovery_inbox("cli")
        answers = await client.subscribe(f"{inbox}.>")
        await client.publish(subjects.SPANS, b"\xc1", reply=f"{inbox}.token")
        reply = codec.decode(Reply, (await answers.next_msg(5)).data)
        assert (reply.ok, reply.code) == (False, "malformed")
        await client.publish(subjects.SPANS, b"\x80", reply="$KV.objects_v1.x")
        await client.publish(subjects.SPANS, b"\x80", reply=f"{inbox}.token")
        assert codec.decode(Reply, (await answers.next_msg(5)).data).ok
        assert runtime.bus.registration.dropped == 1
    finally:
        await client.close()


async def test_what_an_event_causes_is_logged_with_the_events_trace(runtime_for: RuntimeFor) -> None:
    policy, cluster = await runtime_for("policy"), await runtime_for("cluster")
    heard = asyncio.Event()

    def on_message(_: str, message: ObjectFault) -> None:
        cluster.log.info("fault-heard", name=message.name)
        heard.set()

    subject = subjects.object_fault_subject("policy")
    await cluster.bus.subscribe(f"{subjects.EVENTS}.*.{subjects.OBJECT_FAULT}", ObjectFault, on_message)
    await cluster.bus.connection.client().flush()
    with policy.telemetry.span("policy.compile") as span:
        policy.bus.publish(
            subject, ObjectFault("policy", "", "", "Service", "shop", "web", "Full", "it is full", "wait")
        )
    async with asyncio.timeout(10):
        await heard.wait()
    (line,) = cluster.lines.named("fault-heard")  # type: ignore[attr-defined]
    assert line["trace_id"] == span.trace_id
