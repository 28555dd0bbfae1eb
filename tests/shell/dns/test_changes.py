"""Changes of the Corefile on a real NATS: proposed, applied, judged, kept, taken back, also by a copy that goes on.

The ConfigMap is written as ``cluster`` writes it; the servers' pages say what a real CoreDNS' say
(``tests/netns/dns/test_reload.py`` has the real one).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from chassis.bus.client import Bus
from chassis.faults import Refused
from proto.dns import CoreDNSDecision, DnsChangeAnswer, DnsChangeRequest, DnsTuning, digest_of
from proto.events import ObjectFault
from proto.objects import ConfigMap, Deployment, Node
from proto.subjects import DNS, DNS_CHANGE, object_fault_subject
from services.dns import controller
from services.dns.core import change as changing
from services.dns.core.corefile import Recipe, render
from tests.conftest import BusFor
from tests.kubeapi import KubeApi
from tests.natsd import NatsServer
from tests.shell.dns.test_controller import Server, coredns, dns, metrics, put

UPSTREAM = ip_address("192.0.2.53")
TEXT = render(Recipe(upstreams=(UPSTREAM,)))
ROOT = Path(__file__).resolve().parents[3]
STALE = "serve_stale 1h # airmesh"


class Cluster:
    """What ``cluster`` does: the decision's text is the ConfigMap's, and the servers read it."""

    def __init__(self, bus: Bus, server: Server) -> None:
        self._bus = bus
        self._server = server
        self.text = ""
        self.versions = 0
        self.refused = 0
        self.fails = True
        self.refuses: Callable[[str], bool] = lambda _text: False
        self._queries = 0

    async def write(self, text: str) -> None:
        self.text = text
        await put(self._bus, ConfigMap("kube-system", "coredns", (("Corefile", text),)))
        if self.versions:
            self.refused += self.refuses(text)
        self.versions += 1

    def show(self) -> None:
        """The page: 1,000 queries more, of which a tenth fail while upstreams do."""
        self._queries += 1000
        failed = self._queries // 10 if self.fails else 0
        lines = [
            f"coredns_dns_requests_total {self._queries}",
            f'coredns_dns_responses_total{{rcode="SERVFAIL"}} {failed}',
            f"coredns_proxy_healthcheck_failures_total {self._queries // 1000}",
            f"coredns_reload_failed_total {self.refused}",
            f'coredns_reload_version_info{{hash="sha512",value="v{self.versions}"}} 1',
        ]
        self._server.page = "\n".join(lines) + "\n"

    async def run(self) -> None:
        decisions = self._bus.bucket(DNS)
        while True:
            self.show()
            found = await decisions.get("coredns", CoreDNSDecision)
            if found is not None and found.value.corefile != self.text and found.value.of == digest_of(self.text):
                await self.write(found.value.corefile)
            await asyncio.sleep(0.1)


@asynccontextmanager
async def running(nats: NatsServer, bus: Bus, text: str = TEXT) -> AsyncIterator[tuple[Cluster, int]]:
    server = Server()
    async with metrics(server, "127.0.0.1") as port:
        cluster = Cluster(bus, server)
        cluster.show()
        await put(bus, Node(name="n1", uid="u"), coredns("127.0.0.1"))
        await cluster.write(text)
        task = asyncio.create_task(cluster.run())
        try:
            yield cluster, port
        finally:
            task.cancel()


async def reported_state(bus: Bus, wanted: Callable[[DnsTuning], object]) -> DnsTuning:
    async with asyncio.timeout(60):
        while True:
            found = await bus.bucket(DNS).get("tuning", DnsTuning)
            if found is not None and wanted(found.value):
                return found.value
            await asyncio.sleep(0.05)


def is_at(name: str, state: str) -> Callable[[DnsTuning], bool]:
    return lambda one: one.change is not None and (one.change.name, one.change.state) == (name, state)


async def ask(bus: Bus, verb: str, name: str = "") -> str:
    request = DnsChangeRequest(verb, name)  # type: ignore[arg-type]
    return (await bus.request(DNS_CHANGE, request, DnsChangeAnswer, timeout=10)).said


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "JUDGED_SECONDS", 0.5)


async def test_a_person_applies_a_proposal_and_takes_it_back(nats_server: NatsServer, bus_for: BusFor) -> None:
    cluster_bus, cli = await bus_for("cluster"), await bus_for("cli")
    async with running(nats_server, cluster_bus) as (cluster, port):
        async with dns(nats_server, port, dns_upstreams=(UPSTREAM,)):
            tuning = await reported_state(cli, lambda one: one.proposals)
            assert [one.name for one in tuning.proposals] == ["serve-stale"]
            assert STALE not in cluster.text, "advised, not done"
            with pytest.raises(Refused) as caught:
                await ask(cli, "apply", "nothing")
            assert "serve-stale" in str(caught.value)
            assert "judged" in await ask(cli, "apply", "serve-stale")
            await reported_state(cli, is_at("serve-stale", "judged"))
            assert STALE in cluster.text
        async with dns(nats_server, port, "two", dns_upstreams=(UPSTREAM,)):
            kept = await reported_state(cli, is_at("serve-stale", "kept"))
            assert kept.settings == (("serve_stale", "1"),)
            assert "taken back" in await ask(cli, "revert")
            back = await reported_state(cli, is_at("serve-stale", "taken-back"))
            assert back.settings == ()
            async with asyncio.timeout(30):
                while cluster.text != TEXT:
                    await asyncio.sleep(0.05)
            assert (await reported_state(cli, lambda one: not one.proposals)).past[0].state == "taken-back"


async def test_in_mode_act_a_text_that_servers_refuse_is_taken_back_and_reported(
    nats_server: NatsServer, bus_for: BusFor
) -> None:
    cluster_bus, cli = await bus_for("cluster"), await bus_for("cli")
    reported: list[ObjectFault] = []
    await cli.subscribe(object_fault_subject("dns"), ObjectFault, lambda _subject, fault: reported.append(fault))
    async with running(nats_server, cluster_bus) as (cluster, port):
        cluster.refuses = lambda text: STALE in text
        async with dns(nats_server, port, dns_upstreams=(UPSTREAM,), dns_mode="act"):
            tuning = await reported_state(cli, is_at("serve-stale", "taken-back"))
            assert tuning.change is not None
            assert "refused" in tuning.change.outcome
            async with asyncio.timeout(30):
                while cluster.text != TEXT or not reported:
                    await asyncio.sleep(0.05)
            assert (reported[0].reason, reported[0].name) == ("CorefileTakenBack", "coredns")
            assert tuning.settings == ()


async def test_in_mode_observe_nothing_is_proposed_nor_applied(nats_server: NatsServer, bus_for: BusFor) -> None:
    cluster_bus, cli = await bus_for("cluster"), await bus_for("cli")
    async with (
        running(nats_server, cluster_bus) as (cluster, port),
        dns(nats_server, port, dns_upstreams=(UPSTREAM,), dns_mode="observe"),
    ):
        assert (await reported_state(cli, lambda one: one.mode == "observe")).proposals == ()
        with pytest.raises(Refused) as caught:
            await ask(cli, "apply", "serve-stale")
        assert "AIRMESH_DNS_MODE" in str(caught.value)
        assert cluster.text == TEXT


async def test_an_autoscalers_number_of_replicas_is_its_own(nats_server: NatsServer, bus_for: BusFor) -> None:
    cluster_bus, cli = await bus_for("cluster"), await bus_for("cli")
    scaled = Deployment("kube-system", "coredns", 5, scaled_by="kube-controller-manager")
    await put(cluster_bus, Node(name="n1", uid="u"), scaled)
    async with dns(nats_server, 1), asyncio.timeout(30):
        while (found := await cli.bucket(DNS).get("coredns", CoreDNSDecision)) is None or found.value.replicas != 5:
            await asyncio.sleep(0.05)
        assert "kube-controller-manager owns" in found.value.reason


async def test_an_autoscaler_that_falls_short_is_reported_on_the_deployment(
    nats_server: NatsServer, bus_for: BusFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "PATIENCE", 0.0)
    cluster_bus, cli = await bus_for("cluster"), await bus_for("cli")
    heard: list[ObjectFault] = []
    await cli.subscribe(object_fault_subject("dns"), ObjectFault, lambda _subject, fault: heard.append(fault))
    nodes = [Node(name=f"n{number}", uid="u") for number in range(40)]
    await put(cluster_bus, *nodes, Deployment("kube-system", "coredns", 2, scaled_by="kube-controller-manager"))
    async with dns(nats_server, 1), asyncio.timeout(60):
        while not heard:
            await asyncio.sleep(0.05)
        assert (heard[0].group, heard[0].kind, heard[0].name) == ("apps", "Deployment", "coredns")
        assert heard[0].reason == "CoreDNSScaledShort"
        assert "kube-controller-manager keeps 2 CoreDNS replicas" in heard[0].fault
        assert "airmesh_dns_replicas_wanted" in heard[0].remedy
        wanted = {"namespace": "kube-system", "deployment": "coredns"}
        while REGISTRY.get_sample_value("airmesh_dns_replicas_wanted", wanted) != 3:
            await asyncio.sleep(0.05)
        found = await cli.bucket(DNS).get("coredns", CoreDNSDecision)
        assert found is not None
        assert found.value.replicas == 2, "its number is not written over"


def test_the_autoscaler_of_the_example_is_one_that_kubernetes_takes(kube_api: KubeApi) -> None:
    wanted = yaml.safe_load((ROOT / "examples/dns/autoscaler.yaml").read_text())
    at = "/apis/autoscaling/v2/namespaces/kube-system/horizontalpodautoscalers"
    made = kube_api.call("POST", f"{at}?dryRun=All&fieldValidation=Strict", wanted)
    (metric,) = made["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "airmesh_dns_replicas_wanted"
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
