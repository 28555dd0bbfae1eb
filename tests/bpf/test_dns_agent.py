"""The agent's side of measuring DNS over the real maps: what it answers, shows on /metrics, and removes."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from proto.dns_pods import PodDnsRequest
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.monitor.dns import DnsMeasurements, DnsMetrics
from tests.bpf.test_dns import Resolver, answer, measured, question
from tests.bpf.world import Pod, World

pytestmark = pytest.mark.privileged

__all__ = ["measured"]

ALL = PodDnsRequest()


class Local:
    """The endpoints of this node."""

    def __init__(self, *pods: Pod) -> None:
        self.up: dict[Attachment, LocalEndpoint] = {}
        for pod in pods:
            lease = Lease(
                address=pod.address4,
                container=f"c{pod.number}",
                interface="eth0",
                namespace="shop",
                pod=f"pod-{pod.number}",
                pod_uid="u",
                nonce="n",
                epoch=1,
                sequence=1,
                boot="b",
                at=0.0,
            )
            self.up[lease.attachment] = LocalEndpoint(
                attachment=lease.attachment, leases=(lease,), index=pod.number, cookie=0
            )


async def test_a_pods_queries_are_reported_with_its_name(measured: World) -> None:
    agent = DnsMeasurements(measured.tables, Local(measured.a, measured.b), "n1")
    await agent.read()
    one = Resolver(measured)
    for name, rcode in (("x.example.shop.svc.cluster.local", 3), ("x.example", 0)):
        one.ask(question(name))
        one.hear(answer(name, rcode=rcode, answers=int(not rcode)))
    await agent.read()
    report = agent.answer(ALL)
    assert report is not None
    (pod,) = report.pods
    assert (pod.namespace, pod.pod, pod.queries) == ("shop", "pod-1", 2)
    assert (dict(pod.answers), pod.searched, sum(pod.latency)) == ({"NOERROR": 1, "NXDOMAIN": 1}, 1, 2)
    assert [one.name for one in pod.names] == ["x.example", "x.example.shop.svc.cluster.local"]
    assert agent.answer(PodDnsRequest(nodes=("n2",))) is None


async def test_metrics_say_what_was_counted(measured: World) -> None:
    agent = DnsMeasurements(measured.tables, Local(measured.a), "n1")
    await agent.read()
    one = Resolver(measured)
    one.ask(question("a.example"))
    one.hear(answer("a.example"))
    one.ask(question("b.example", ident=8))
    one.age(6_000_000_000)
    one.ask(b"nonsense")
    await agent.read()
    registry = CollectorRegistry()
    registry.register(DnsMetrics(agent.pods))
    lines = generate_latest(registry).decode().splitlines()
    assert {
        'airmesh_dns_queries_total{protocol="udp"} 2.0',
        'airmesh_dns_queries_total{protocol="tcp"} 0.0',
        'airmesh_dns_answers_total{rcode="NOERROR"} 1.0',
        "airmesh_dns_timeouts_total 1.0",
        "airmesh_dns_retries_total 0.0",
        "airmesh_dns_unread_total 1.0",
        'airmesh_dns_seconds_bucket{le="+Inf"} 1.0',
    } <= set(lines)


async def test_a_record_of_nobody_goes_at_the_second_look(measured: World) -> None:
    local = Local(measured.a, measured.b)
    agent = DnsMeasurements(measured.tables, local, "n1")
    one, other = Resolver(measured), Resolver(measured, pod=measured.b)
    one.ask(question("a.example"))
    other.ask(question("a.example"))
    await agent.read()
    local.up = Local(measured.b).up
    await agent.read()
    assert {key.endpoint for key in measured.tables.dns_pods.items()} == {1, 2}
    await agent.read()
    assert {key.endpoint for key in measured.tables.dns_pods.items()} == {2}
    assert agent.pods.totals.queries == 2, "what was counted stays counted"


async def test_who_came_between_two_looks_keeps_its_record(measured: World) -> None:
    """The programs may know a pod before the list of endpoints does."""
    local = Local(measured.b)
    agent = DnsMeasurements(measured.tables, local, "n1")
    await agent.read()
    Resolver(measured).ask(question("a.example"))
    await agent.read()
    local.up = Local(measured.a, measured.b).up
    await agent.read()
    report = agent.answer(ALL)
    assert report is not None
    assert [(pod.pod, pod.queries) for pod in report.pods] == [("pod-1", 1)]


async def test_where_it_is_off_the_agent_says_so(measured: World) -> None:
    agent = DnsMeasurements(measured.tables, Local(), "n1", measured=False)
    report = agent.answer(ALL)
    assert report is not None
    assert not report.measured
    assert agent.answer(PodDnsRequest(nodes=("n2",))) is None
