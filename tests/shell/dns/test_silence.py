"""A CoreDNS server that answers nothing, on a real NATS: named when `policy` lets the agent ask it, else unchecked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from ipaddress import ip_address

import pytest

from chassis.bus.client import Bus
from proto.codec import kind_prefix, object_key
from proto.findings import DoctorRequest, Findings
from proto.objects import KIND_OF, ConfigMap, Deployment, EndpointSlice, Service, SliceEndpoint
from proto.requests import ExplainRequest, Explanation
from proto.subjects import DNS, OBJECTS, POLICY_EXPLAIN
from proto.sync import Complete, complete_key
from services.dns import doctor
from services.dns.settings import Settings
from tests.conftest import BusFor
from tests.natsd import NatsServer, runtime_of

SERVER = "127.0.0.1"
DENIED = Explanation(
    allowed=False,
    egress_allowed=True,
    ingress_allowed=False,
    reasons=("kube-system/pods-only isolates kube-system/coredns and allows it nothing",),
    source_identity=1,
    destination_identity=300,
    revision="7",
)


async def put(cluster: Bus) -> None:
    """One CoreDNS server that serves, complete."""
    bucket, epoch = cluster.bucket(OBJECTS), (await cluster.make_buckets())["objects"]
    endpoint = SliceEndpoint((ip_address(SERVER),), pod_uid="one")
    serving = EndpointSlice("kube-system", "kube-dns-x", "kube-dns", (endpoint,))
    await bucket.put(object_key(serving), serving)
    for kind in (Service, EndpointSlice, ConfigMap, Deployment):
        await bucket.put(complete_key(kind_prefix(KIND_OF[kind])), Complete(epoch))


@asynccontextmanager
async def looked(server: NatsServer) -> AsyncIterator[Findings]:
    """What the agent finds about a server that never answers."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as silent, pytest.MonkeyPatch.context() as patch:
        silent.bind((SERVER, 0))
        patch.setattr(doctor, "PORT", silent.getsockname()[1])
        settings = Settings(
            nats_url=server.url, nats_seed_file=server.seeds / "dns.seed", nats_user="dns", instance="one"
        )
        async with runtime_of(server, "dns", settings=settings) as runtime:
            decisions = runtime.bus.bucket(DNS).watch({}, name="decisions")
            doctor.start(runtime, decisions)
            async with asyncio.timeout(60):
                while True:
                    found = await runtime.checks.answer(DoctorRequest(kind="dns"))
                    if not any("not known" in one.why for one in found.unchecked):
                        break
                    await asyncio.sleep(0.1)
            yield found


async def test_it_is_named_while_nobody_says_that_policy_denies_it(bus_for: BusFor, nats_server: NatsServer) -> None:
    await put(await bus_for("cluster"))
    async with looked(nats_server) as found:
        assert "dns-server-silent" in [one.code for one in found.findings]
        assert found.unchecked == ()


async def test_it_is_unchecked_with_the_reason_where_policy_denies_it(bus_for: BusFor, nats_server: NatsServer) -> None:
    await put(await bus_for("cluster"))
    asked: list[ExplainRequest] = []

    async def explain(question: ExplainRequest) -> Explanation:
        asked.append(question)
        return DENIED

    policy = await bus_for("policy")
    await policy.serve(POLICY_EXPLAIN, ExplainRequest, explain)
    async with looked(nats_server) as found:
        assert "dns-server-silent" not in [one.code for one in found.findings]
        (missed,) = found.unchecked
    assert missed.check == "dns-server-silent"
    assert "pods-only" in missed.why
    assert {(one.source, one.destination, one.protocol) for one in asked} == {(SERVER, SERVER, 17)}
