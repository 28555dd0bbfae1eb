"""`airmesh dns report` against a real NATS server: dataplane agents tell what they measured, each for itself alone."""

from __future__ import annotations

import json

import pytest

from proto import subjects
from proto.dns_pods import PodDns, PodDnsReport, PodDnsRequest
from proto.policy import Ack
from tests.conftest import BusFor
from tests.golden.proto.samples import sample_of
from tests.natsd import NatsServer
from tests.shell.cli.test_commands import airmesh, environment


async def agents(bus_for: BusFor, *nodes: str, silent: str = "") -> None:
    """Dataplane agents that answer as the real ones, and say that they are another node."""
    for number, node in enumerate((*nodes, *([silent] if silent else [])), 1):
        bus = await bus_for("dataplane", node)
        await bus.bucket(subjects.ACKS).put(node, sample_of(Ack))

        def answer(asked: PodDnsRequest, node: str = node, number: int = number) -> PodDnsReport | None:
            if asked.nodes and node not in asked.nodes:
                return None
            pods = tuple(
                PodDns(namespace=namespace, pod=f"{namespace}-{node}", seconds=60.0, queries=number * 60)
                for namespace in ("shop", "prod")
                if asked.namespace in ("", namespace)
            )
            return PodDnsReport(node="n9", pods=pods)

        if node != silent:
            await bus.serve_everyone(subjects.DNS_PODS, PodDnsRequest, answer)


@pytest.mark.usefixtures("buckets")
async def test_each_agent_reports_of_its_own_pods(nats_server: NatsServer, bus_for: BusFor) -> None:
    await agents(bus_for, "n1", "n2")
    output = await airmesh(environment(nats_server), "dns", "report", "--output", "json")
    assert output.code == 0, output.err
    report = json.loads(output.out)
    assert {(one["node"], one["pod"]) for one in report["pods"]} == {
        (node, f"{namespace}-{node}") for node in ("n1", "n2") for namespace in ("shop", "prod")
    }, "each under the name of its key"
    assert report["together"]["queries"] == 360
    shown = await airmesh(environment(nats_server), "dns", "report", "--namespace", "shop", "--node", "n2")
    assert shown.code == 0, shown.err
    assert "shop/shop-n2" in shown.out
    assert "prod" not in shown.out
    assert "n1" not in shown.out


@pytest.mark.usefixtures("buckets")
async def test_who_does_not_answer_is_named(nats_server: NatsServer, bus_for: BusFor) -> None:
    await agents(bus_for, "n1", silent="n2")
    shown = await airmesh(environment(nats_server), "dns", "report", "-o", "json")
    assert shown.code == 1
    assert json.loads(shown.out)["silent"] == ["n2"]
    alone = await airmesh(environment(nats_server), "dns", "report", "--node", "n2")
    assert alone.code == 4
    assert "no dataplane agent of n2 answers" in alone.err
