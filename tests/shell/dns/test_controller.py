"""The dns service on a real NATS, with servers that tell what a real CoreDNS told."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from chassis.bus.client import Bus
from chassis.faults import Damaged, SettingsFault
from chassis.runtime.settings import load
from chassis.telemetry.spans import Span, entered
from proto.codec import kind_prefix, object_key
from proto.dns import CoreDNSDecision, DnsReport, digest_of
from proto.events import ObjectFault
from proto.objects import KIND_OF, ConfigMap, EndpointSlice, KubernetesObject, Node, SliceEndpoint
from proto.subjects import DNS, OBJECTS, event_subject, object_fault_subject
from proto.sync import Complete, complete_key
from proto.traces import SpansRequest
from services.dns.app import build
from services.dns.core.corefile import Recipe, render
from services.dns.settings import Settings
from tests.conftest import BusFor
from tests.natsd import Lines, NatsServer, runtime_of

PAGE = (Path(__file__).parents[2] / "core" / "dns" / "coredns-metrics.txt").read_text()


class Server:
    """A metrics page on a loopback address; ``times`` more queries than the recorded ones."""

    def __init__(self) -> None:
        self.times = 1
        self.page: str | None = None

    async def answer(self, _request: web.Request) -> web.Response:
        if self.page is not None:
            return web.Response(text=self.page)
        grown = []
        for line in PAGE.splitlines():
            head, _, value = line.rpartition(" ")
            is_count = line.startswith("coredns_") and "_sum" not in head and value.isdigit()
            grown.append(f"{head} {int(value) * self.times}" if is_count else line)
        return web.Response(text="\n".join(grown) + "\n")


@asynccontextmanager
async def metrics(server: Server, address: str, port: int = 0) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_get("/metrics", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, port).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def dns(server: NatsServer, port: int, name: str = "one", **more: Any) -> AsyncIterator[Any]:
    settings = Settings(
        nats_url=server.url,
        nats_seed_file=server.seeds / "dns.seed",
        nats_user="dns",
        instance=name,
        dns_metrics_port=port,
        dns_report_seconds=0.3,
        lease_seconds=1.5,
        **more,
    )
    async with runtime_of(server, "dns", settings=settings, lines=Lines()) as runtime:
        await build(runtime)
        yield runtime


async def put(cluster: Bus, *objects: KubernetesObject) -> None:
    """Objects as ``cluster`` would have mirrored them, complete."""
    bucket = cluster.bucket(OBJECTS)
    epoch = (await cluster.make_buckets())["objects"]
    for one in objects:
        await bucket.put(object_key(one), one)
    for kind in (Node, EndpointSlice, ConfigMap):
        await bucket.put(complete_key(kind_prefix(KIND_OF[kind])), Complete(epoch))


def coredns(*addresses: str) -> EndpointSlice:
    endpoints = tuple(SliceEndpoint((ip_address(text),), pod_uid=text) for text in addresses)
    return EndpointSlice("kube-system", "kube-dns-x", "kube-dns", endpoints)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)


async def decision(bus: Bus) -> CoreDNSDecision | None:
    entry = await bus.bucket(DNS).get("coredns", CoreDNSDecision)
    return entry.value if entry is not None else None


async def decided(bus: Bus, replicas: int) -> CoreDNSDecision:
    deadline = time.monotonic() + 10
    while True:
        found = await decision(bus)
        if found is not None and found.replicas == replicas:
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def test_decides_when_the_nodes_are_known_and_again_when_they_grow(
    nats_server: NatsServer, bus_for: BusFor
) -> None:
    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    await cluster.make_buckets()
    async with dns(nats_server, 1):
        await asyncio.sleep(1)
        assert await decision(cli) is None
        await put(cluster, *(Node(name=f"n{number}", uid="u") for number in range(3)))
        found = await decided(cli, 2)
        assert found.corefile == render(Recipe())
        assert found.namespace == "kube-system"
        assert "3 nodes" in found.reason
        await put(cluster, *(Node(name=f"n{number}", uid="u") for number in range(40)))
        # Decided as soon as two are too few, which may be before the last node has come.
        grown = int((await decided(cli, 3)).reason.split()[2])
        assert 33 <= grown <= 40


async def test_a_new_corefile_replaces_the_old_decision(nats_server: NatsServer, bus_for: BusFor) -> None:
    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    await put(cluster, Node(name="n1", uid="u"))
    async with dns(nats_server, 1):
        first = await decided(cli, 2)
    async with dns(nats_server, 1, "two", dns_upstreams=(ip_address("192.0.2.53"),)):
        deadline = time.monotonic() + 10
        while (found := await decision(cli)) == first:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert found is not None
        assert "forward . 192.0.2.53:53" in found.corefile


async def test_what_a_person_writes_is_decided_on_and_what_is_broken_is_reported(
    nats_server: NatsServer, bus_for: BusFor
) -> None:
    def config(text: str) -> ConfigMap:
        return ConfigMap("kube-system", "coredns", (("Corefile", text),))

    async def decided_of(text: str) -> str:
        deadline = time.monotonic() + 10
        while (found := await decision(cli)) is None or found.of != digest_of(text):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)
        return found.corefile

    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    reported: list[ObjectFault] = []
    await cli.subscribe(object_fault_subject("dns"), ObjectFault, lambda _subject, fault: reported.append(fault))
    ours, stub = render(Recipe()), "acme.local {\n    forward . 192.0.2.1\n}\n"
    await put(cluster, Node(name="n1", uid="u"), config(stub))
    async with dns(nats_server, 1):
        assert await decided_of(stub) == stub + ours
        await put(cluster, config(stub + ours))
        await put(cluster, config(ours.replace("ttl 30", "ttl 31") + stub))
        assert await decided_of(ours.replace("ttl 30", "ttl 31") + stub) == ours + stub
        assert reported == []
        await put(cluster, config(ours + "acme.local {\n"))
        assert await decided_of(ours + "acme.local {\n") == ours + "acme.local {\n", "left as it is"
        await until(lambda: reported)
        assert (reported[0].kind, reported[0].namespace, reported[0].name) == ("ConfigMap", "kube-system", "coredns")
        assert (reported[0].reason, len(reported)) == ("CorefileBroken", 1)
        assert "line 20 has the block acme.local without an end" in reported[0].fault
        await put(cluster, config(ours.replace("    errors\n", "    import custom/*.override\n")))
        await until(lambda: len(reported) == 2)
        assert (reported[1].reason, "errors" in reported[1].fault) == ("CorefileByHand", True)


async def test_a_decision_is_part_of_the_trace_of_what_it_follows_from(
    nats_server: NatsServer, bus_for: BusFor
) -> None:
    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    written, grown, other = (Span(secrets.token_hex(16), secrets.token_hex(8)) for _ in range(3))
    with entered(other):
        await put(cluster, Node(name="n1", uid="u"), coredns("127.0.0.1"))

    async def decided_in(replicas: int, corefile: str) -> str:
        """Trace of the decision that says this."""
        async with asyncio.timeout(20):
            while True:
                entry = await cli.bucket(DNS).get("coredns", CoreDNSDecision)
                if entry is not None and entry.value.replicas == replicas and corefile in entry.value.corefile:
                    return entry.traceparent
                await asyncio.sleep(0.05)

    async with dns(nats_server, 1) as runtime:
        first = await decided_in(2, "")
        assert first, "nothing changed since it runs: a trace of its own"
        assert other.trace_id not in first
        with entered(written):
            await put(cluster, ConfigMap("kube-system", "coredns", (("Corefile", "acme.local {\n    whoami\n}\n"),)))
        second = await decided_in(2, "whoami")
        with entered(other):
            await put(cluster, coredns("127.0.0.2"))
        with entered(grown):
            nodes = [Node(name=f"n{number}", uid="u") for number in range(1, 34)]
            await put(cluster, *nodes)
        third = await decided_in(3, "whoami")
        assert [second[3:35], third[3:35]] == [written.trace_id, grown.trace_id]
        (span,) = runtime.telemetry.ring.find(SpansRequest(trace_id=written.trace_id)).spans
        assert (span.name, span.parent_id) == ("dns.decide", written.span_id)
        assert runtime.telemetry.ring.find(SpansRequest(trace_id=other.trace_id)).spans == ()


async def test_reports_what_was_counted_since_the_last_time(nats_server: NatsServer, bus_for: BusFor) -> None:
    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    first, second = Server(), Server()
    heard: list[DnsReport] = []
    await cli.subscribe(event_subject("dns", "report"), DnsReport, lambda _subject, reported: heard.append(reported))
    async with metrics(first, "127.0.0.1") as port, metrics(second, "127.0.0.2", port):
        await put(cluster, Node(name="n1", uid="u"), coredns("127.0.0.1", "127.0.0.2", "127.0.0.3"))
        async with dns(nats_server, port):
            await until(lambda: heard and heard[-1].servers == 2)
            assert heard[-1].queries == 0
            del heard[:]
            first.times, second.times = 3, 2
            await until(lambda: any(reported.queries for reported in heard))
            reported = next(reported for reported in heard if reported.queries)
            # Both servers are asked at once, but the change may fall between two reports of one of them.
            await until(lambda: sum(reported.queries for reported in heard) == 30)
            assert dict(reported.answers_by_rcode)["NXDOMAIN"] > 0
            assert reported.p50_ms == 0.25
            first.page = "coredns_dns_requests_total no\n"
            del heard[:]
            await until(lambda: heard and heard[-1].servers == 1)
            stored = await cli.bucket(DNS).get("report", DnsReport)
            assert stored is not None
            assert stored.value.servers == 1


async def test_silence_is_reported_as_no_server(nats_server: NatsServer, bus_for: BusFor) -> None:
    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    heard: list[DnsReport] = []
    await cli.subscribe(event_subject("dns", "report"), DnsReport, lambda _subject, reported: heard.append(reported))
    await put(cluster, Node(name="n1", uid="u"))
    async with dns(nats_server, 1):
        await until(lambda: len(heard) >= 2)
        assert (heard[-1].servers, heard[-1].queries) == (0, 0)


async def test_load_asks_for_more_replicas(nats_server: NatsServer, bus_for: BusFor) -> None:
    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    server = Server()
    async with metrics(server, "127.0.0.1") as port:
        await put(cluster, Node(name="n1", uid="u"), coredns("127.0.0.1"))
        async with dns(nats_server, port):
            await decided(cli, 2)
            deadline = time.monotonic() + 60
            # 5,000 more queries at each look, ten times a second or less often: the load goes on, whenever it is read.
            while (found := await decision(cli)) is None or found.replicas < 3:
                assert time.monotonic() < deadline, found
                server.times += 500
                await asyncio.sleep(0.1)
            assert "queries/s" in found.reason


async def test_of_two_copies_one_reports(nats_server: NatsServer, bus_for: BusFor) -> None:
    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    heard: list[DnsReport] = []
    await cli.subscribe(event_subject("dns", "report"), DnsReport, lambda _subject, reported: heard.append(reported))
    await put(cluster, Node(name="n1", uid="u"))
    async with dns(nats_server, 1, "one") as first, dns(nats_server, 1, "two"):
        await until(lambda: len(heard) >= 2)
        del heard[:]
        await asyncio.sleep(1.5)
        assert len(heard) <= 6
        await first.bus.connection.close()
        del heard[:]
        await until(lambda: len(heard) >= 3, 8)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AIRMESH_DNS_TTL", "9999"),
        ("AIRMESH_DNS_CLUSTER_DOMAIN", "Not A Domain"),
        ("AIRMESH_DNS_UPSTREAMS", "192.0.2.1,192.0.2.1"),
        ("AIRMESH_DNS_REPLICAS_LEAST", "20"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path, variable: str, value: str) -> None:
    environ = {"AIRMESH_NATS_SEED_FILE": str(tmp_path), "AIRMESH_NATS_USER": "dns", variable: value}
    settings = load(Settings, environ)
    refuses = settings.rule if "REPLICAS" in variable else settings.recipe
    with pytest.raises(SettingsFault) as caught:
        refuses()
    assert caught.value.variable == variable


@pytest.mark.parametrize("running", [True, False], ids=["running", "started anew"])
async def test_a_decision_that_nobody_can_read_is_taken_again(
    nats_server: NatsServer, bus_for: BusFor, running: bool
) -> None:
    cluster, cli = await bus_for("cluster"), await bus_for("cli")
    await put(cluster, Node(name="n1", uid="u"))
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        stack.push_async_callback(first.aclose)
        await first.enter_async_context(dns(nats_server, 1))
        before = await decided(cli, 2)
        if not running:
            await first.aclose()
        await nats_server.destroy(DNS, "coredns")
        await nats_server.destroy(DNS, "report")
        if not running:
            await stack.enter_async_context(dns(nats_server, 1, "two"))
        deadline = time.monotonic() + 8
        found = None
        while found is None:
            assert time.monotonic() < deadline
            with suppress(Damaged):
                found = await decision(cli)
            await asyncio.sleep(0.05)
        assert found.corefile == before.corefile
