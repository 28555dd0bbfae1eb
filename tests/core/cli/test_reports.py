"""Reports of the observer: from values as the bus has them to what a person and a program see."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from rich.console import Console

from cli import show
from cli.faults import Usage
from cli.reports import agents, dns, events, flows, ipam, micro, pods, policy, routes, text
from cli.reports.table import Cell, Table, Tone, json_text
from proto.addresses import IPAM_HOLDER, Block, Claim, Endpoint, PoolVerdict
from proto.codec import Malformed
from proto.dns import CoreDNSDecision, DnsReport
from proto.events import EVENTS_BY_SUBJECT, EndpointUp, ServiceFault
from proto.flow import FlowEvent
from proto.identity import IdentityRecord
from proto.objects import IPPool, Node, Owner
from proto.policy import Ack, Frontier, Revision
from proto.requests import Explanation, IpamState
from proto.routes import NodeRoutes

Change = Callable[[list[agents.Agent]], list[agents.Agent]]
DB = Owner("prod", "StatefulSet", "db", 0)


def page(tables: tuple[Table, ...]) -> str:
    out = io.StringIO()
    show.tables(show.console(out), tables)
    return out.getvalue()


def agent(service: str, node: str = "", ready: bool | None = True, why: str = "") -> agents.Agent:
    return agents.Agent(service=service, node=node, instance=f"{service}-{node}", version="1", ready=ready, why=why)


def everybody(*nodes: str) -> list[agents.Agent]:
    return [agent(s) for s in agents.ONE_OF_EACH] + [agent(s, n) for n in nodes for s in agents.ON_EACH_NODE]


def frontier(shard: int, shards: int, sequence: int, epoch: str = "e1") -> Frontier:
    return Frontier(shard, shards, Revision(epoch, sequence))


def ack(node: str, sequence: int, epoch: str = "e1", ready: bool = True) -> Ack:
    return Ack(node=node, rules=Revision(epoch, sequence), endpoints=1, pods=3, ready=ready)


NODE = Node(name="n1", uid="u", ready=True, addresses=(ip_address("172.30.0.11"),))


class TestStatus:
    def test_well_when_all_answer_and_every_node_keeps_up(self) -> None:
        report = agents.status(everybody("n1"), [NODE], {"n1": ack("n1", 7)}, [frontier(0, 2, 7), frontier(1, 2, 9)])
        assert report.problems == ()
        assert report.well
        assert report.nodes[0].behind == 0

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda a: [x for x in a if x.service != "policy"], "no copy of policy answers"),
            (lambda a: [x for x in a if x.service != "routing"], "routing on n1 does not answer"),
            (lambda a: [*a, agent("ipam", "x", ready=False, why="bus")], "ipam ipam-x is not ready: bus"),
            (lambda a: [*a, agent("ipam", "x", ready=None)], "ipam ipam-x does not say whether it is ready"),
        ],
    )
    def test_what_is_missing_is_named(self, change: Change, says: str) -> None:
        report = agents.status(change(everybody("n1")), [NODE], {"n1": ack("n1", 7)}, [frontier(0, 1, 7)])
        assert not report.well
        assert any(says in problem for problem in report.problems)

    @pytest.mark.parametrize(
        ("output", "says"),
        [
            (("IPPool p: spec.ipipMode Always: not yet; set it to Never",), "IPPool p: spec.ipipMode Always"),
            (None, "ipam does not say which IPPools give addresses"),
        ],
    )
    def test_what_ipam_says_is_wrong_is_not_well(self, output: tuple[str, ...] | None, says: str) -> None:
        report = agents.status(everybody("n1"), [NODE], {"n1": ack("n1", 7)}, [frontier(0, 1, 7)], output)
        assert not report.well
        assert any(says in problem for problem in report.problems)

    @pytest.mark.parametrize(
        ("acks", "frontiers", "says"),
        [
            ({}, [frontier(0, 1, 7)], "n1 has never acknowledged"),
            ({"n1": ack("n1", 7, ready=False)}, [frontier(0, 1, 7)], "dataplane says it is not ready"),
            ({"n1": ack("n1", 7, epoch="old")}, [frontier(0, 1, 7)], "policy of another epoch (old:7)"),
            ({"n1": ack("n1", 7)}, [], "policy has not published a frontier"),
            ({"n1": ack("n1", 7)}, [frontier(0, 2, 7)], "policy has not published a frontier"),
            ({"n1": ack("n1", 7)}, [frontier(0, 2, 7), frontier(1, 2, 7, "e2")], "has not published a frontier"),
        ],
    )
    def test_a_node_that_does_not_enforce_is_named(
        self, acks: dict[str, Ack], frontiers: list[Frontier], says: str
    ) -> None:
        report = agents.status(everybody("n1"), [NODE], acks, frontiers)
        assert any(says in problem for problem in report.problems), report.problems

    def test_nothing_known_is_not_well(self) -> None:
        report = agents.status([], [], {}, [])
        assert not report.well
        assert any("no node is known" in problem for problem in report.problems)
        assert "no copy of cluster answers" in page(agents.tables(report))

    def test_a_lag_is_counted_in_sequences(self) -> None:
        report = agents.status(everybody("n1"), [NODE], {"n1": ack("n1", 4)}, [frontier(0, 1, 9)])
        assert report.nodes[0].behind == 5
        assert "5 behind at 4" in page(agents.tables(report))


class TestMicro:
    NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def test_an_answer_is_parsed(self) -> None:
        output = {
            "name": "ipam",
            "id": "x",
            "version": "0.1.0",
            "started": "2026-01-02T03:03:05.000000Z",
            "metadata": {"instance": "ipam-cp-7", "node": ""},
            "endpoints": [
                {"name": "a", "num_requests": 3, "num_errors": 1, "processing_time": 6_000_000, "data": None},
                {"name": "b", "num_requests": 1, "processing_time": 2_000_000, "data": {"ready": True, "rss_bytes": 9}},
                {"name": "c", "data": {"loop_hold_us": 20_500, "loop_held_by": "rules (compile)"}},
            ],
        }
        found = micro.agent("ipam", json.dumps(output).encode(), self.NOW)
        assert found is not None
        assert (found.service, found.instance, found.ready, found.rss_bytes) == ("ipam", "ipam-cp-7", True, 9)
        assert (found.uptime_seconds, found.requests, found.errors, found.mean_ms) == (60.0, 4, 1, 2.0)
        assert (found.longest_hold_ms, found.longest_hold_by) == (20.5, "rules (compile)")

    @pytest.mark.parametrize(
        "answer", [b"", b"{", b"[]", b'{"name":"\xff"}', b'{"name": 3}', b'{"name": "stranger", "metadata": {}}']
    )
    def test_strangers_and_garbage_are_no_agents(self, answer: bytes) -> None:
        assert micro.agent("ipam", answer, self.NOW) is None

    def test_whose_answer_it_is_the_key_says(self) -> None:
        output = json.dumps({"name": "ipam", "metadata": {"instance": "x", "node": "n2"}}).encode()
        found = micro.agent("dataplane-n=2E1", output, self.NOW)
        assert found is not None
        assert (found.service, found.node) == ("dataplane", "n.1")
        assert micro.agent("nobody", output, self.NOW) is None


class TestPods:
    def endpoint(self, node: str, address: str, epoch: int, sequence: int, pod: str = "db-0") -> Endpoint:
        return Endpoint(node, ip_address(address), "prod", pod, f"uid-{node}", 0xABC0, b"\0" * 6, epoch, sequence, True)

    @pytest.mark.parametrize(
        ("old", "new"), [((1, 9), (2, 1)), ((1, 3), (1, 4))], ids=["later epoch", "later sequence"]
    )
    def test_of_two_claimants_of_an_address_the_later_counts(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        both = [self.endpoint("n1", "10.244.0.70", *old), self.endpoint("n2", "10.244.0.70", *new)]
        for order in (both, both[::-1]):
            assert [row.node for row in pods.pods(order, {}).pods] == ["n2"]

    def test_both_families_are_one_row(self) -> None:
        entries = [self.endpoint("n1", "fd00:10:244::5", 1, 2), self.endpoint("n1", "10.244.0.5", 1, 1)]
        record = IdentityRecord(0xABC0, "d", "prod", pod_labels=(("role", "db"),))
        (row,) = pods.pods(entries, {0xABC0: record}).pods
        assert [str(address) for address in row.addresses] == ["10.244.0.5", "fd00:10:244::5"]
        assert (row.identity, row.labels, row.kept) == ("000000000000abc0", "role=db", True)
        assert "role=db" in page(pods.tables(pods.Pods(pods=(row,))))

    def test_a_namespace_may_be_chosen(self) -> None:
        assert pods.pods([self.endpoint("n1", "10.244.0.5", 1, 1)], {}, "shop").pods == ()


class TestExplain:
    @pytest.mark.parametrize(
        ("target", "means"),
        [
            ("prod/db-0:5432", ("prod/db-0", 5432, 6)),
            ("prod/db-0:53/udp", ("prod/db-0", 53, 17)),
            ("10.0.0.1:80/TCP", ("10.0.0.1", 80, 6)),
            ("[fd00::1]:80", ("fd00::1", 80, 6)),
            ("10.0.0.1:65535/sctp", ("10.0.0.1", 65535, 132)),
        ],
    )
    def test_a_target_is_address_port_and_protocol(self, target: str, means: tuple[str, int, int]) -> None:
        asked = policy.question("shop/web", target)
        assert (asked.destination, asked.port, asked.protocol) == means

    @pytest.mark.parametrize(
        ("source", "target"),
        [
            ("web", "prod/db:1"),
            ("a/b/c", "prod/db:1"),
            ("/b", "prod/db:1"),
            ("a/b", "prod/db"),
            ("a/b", "prod/db:"),
            ("a/b", "prod/db:0"),
            ("a/b", "prod/db:65536"),
            ("a/b", "prod/db:4294967377"),
            ("a/b", "prod/db:-1"),
            ("a/b", "prod/db:٣"),
            ("a/b", "prod/db:80/icmp"),
            ("a/b", "fd00::1:80"),
            ("a/b", "10.0.0.256:80"),
            ("a/b", ":80"),
        ],
    )
    def test_what_cannot_be_meant_is_refused_with_a_remedy(self, source: str, target: str) -> None:
        with pytest.raises(Usage, match="remedy:"):
            policy.question(source, target)

    def test_the_verdict_names_its_reasons(self) -> None:
        output = Explanation(
            False, True, False, ("prod/default-deny isolates db-0", "no rule allows"), 0xFFF0, 2, "e:4"
        )
        report = policy.verdict(policy.question("shop/web", "prod/db-0:5432"), output)
        seen = page(policy.verdict_tables(report))
        assert "denied" in seen
        assert "prod/default-deny isolates db-0" in seen
        assert report.destination_identity == "world"


class TestPolicyStatus:
    def test_enforced_everywhere_is_a_comparison_of_numbers(self) -> None:
        report = policy.policy_status([frontier(0, 1, 7)], {"n1": ack("n1", 7), "n2": ack("n2", 8)})
        assert report.enforced_everywhere
        assert report.published == "e1:7"

    @pytest.mark.parametrize("late", [ack("n2", 6), ack("n2", 99, epoch="other")])
    def test_one_late_node_is_enough(self, late: Ack) -> None:
        report = policy.policy_status([frontier(0, 1, 7)], {"n1": ack("n1", 7), "n2": late})
        assert not report.enforced_everywhere
        assert [node.enforced for node in report.nodes] == [True, False]

    def test_nothing_is_not_everywhere(self) -> None:
        assert not policy.policy_status([frontier(0, 1, 7)], {}).enforced_everywhere
        assert not policy.policy_status([], {"n1": ack("n1", 7)}).enforced_everywhere


FLOW = FlowEvent(
    node="n1",
    time_ns=1_700_000_000_123_000_000,
    reason="POLICY_DENIED",
    direction="ingress",
    source=ip_address("10.244.0.3"),
    destination=ip_address("fd00::9"),
    protocol=6,
    source_port=40000,
    destination_port=5432,
    source_identity=0x1234,
    destination_identity=2,
    source_name="shop/web-1",
    policies=("prod/default-deny", "prod/db-from-api"),
    revision="e:41",
    missed=3,
)


class TestFlows:
    def test_a_line_names_what_decided(self) -> None:
        line = " ".join(cell.text for cell in flows.line(FLOW))
        assert "shop/web-1 (10.244.0.3)" in line
        assert "world ([fd00::9]:5432)" in line
        assert "POLICY_DENIED by prod/default-deny, prod/db-from-api at 41" in line
        assert "3 more not sent" in line

    def test_a_forged_source_is_shown_with_where_it_came_by(self) -> None:
        forged = msgspec.structs.replace(FLOW, reason="SPOOFED_ADDRESS", policies=(), revision="", interface="eth1")
        assert flows.why(forged) == "SPOOFED_ADDRESS by way of eth1"

    @pytest.mark.parametrize(("pod", "shown"), [("", True), ("shop/web-1", True), ("shop/web", False)])
    def test_a_pod_may_be_chosen(self, pod: str, shown: bool) -> None:
        assert flows.wanted(FLOW, pod) is shown

    @pytest.mark.parametrize("pod", ["web", "/web", "shop/", "a/b/c"])
    def test_a_pod_has_a_namespace_and_a_name(self, pod: str) -> None:
        with pytest.raises(Usage):
            flows.check_pod(pod)


def test_ipam_counts_blocks_and_names_who_waits() -> None:
    pool = IPPool("default", ip_network("10.244.0.0/16"), 26)
    block = Block(ip_network("10.244.0.0/26"), "default", IPAM_HOLDER, "", 1, "n")
    claim = Claim(ip_address("10.244.0.1"), DB, "", "", "", "", 1, "n")
    state = IpamState((pool,), (block,), (), (claim,), ("n3",), ("pools a and b overlap",))
    seen = page(ipam.tables(state, blocks=False, claims=False))
    for word in (
        "1024",
        "ipam, for kept addresses",
        "prod/StatefulSet/db/0",
        "it waits for its owner",
        "n3",
        "overlap",
    ):
        assert word in seen
    assert "Kept addresses" not in page(ipam.tables(state, blocks=True, claims=False))


@pytest.mark.parametrize(
    ("change", "verdict", "state"),
    [
        ({}, PoolVerdict("p", "OK"), "enabled"),
        ({}, None, "enabled"),
        ({"disabled": True}, PoolVerdict("p", "PoolDisabled"), "disabled"),
        ({"assignment_mode": "Manual"}, PoolVerdict("p", "OK"), "on request"),
        ({"ipip_mode": "Always"}, PoolVerdict("p", "UnsupportedField", "spec.ipipMode", "no"), "refused: Unsupported"),
        ({}, PoolVerdict("p", "CIDROverlap", "spec.cidr overlaps", "no"), "refused: CIDROverlap"),
    ],
)
def test_a_pool_is_shown_as_it_is_used(change: dict[str, Any], verdict: PoolVerdict | None, state: str) -> None:
    pool = IPPool("p", ip_network("10.244.0.0/16"), 26, **change)
    output = IpamState((pool,), (), (), (), verdicts=(verdict,) if verdict else ())
    seen = page(ipam.tables(output, blocks=False, claims=False))
    assert state in seen
    assert ("enabled" in seen) == (state == "enabled")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, "host-gw"),
        ({"ipip_mode": "Always"}, "ipip Always"),
        ({"vxlan_mode": "CrossSubnet"}, "vxlan CrossSubnet"),
        ({"model": "auto"}, "auto"),
    ],
)
def test_a_pool_is_shown_with_the_model_that_it_asks_for(change: dict[str, Any], shown: str) -> None:
    output = IpamState((IPPool("p", ip_network("10.244.0.0/16"), 26, **change),), (), (), ())
    (row,) = ipam.tables(output, blocks=False, claims=False)[0].rows
    assert row[5] == shown


def test_routes_of_kept_addresses_follow_their_claims() -> None:
    offer = NodeRoutes("n2", (ip_address("172.30.0.12"), ip_address("fd00::12")), (ip_network("10.244.0.64/26"),))
    claims = [
        Claim(ip_address("10.244.0.1"), DB, "n2", "u", "c", "eth0", 1, "n"),
        Claim(ip_address("10.244.0.2"), DB, "", "", "", "", 1, "n"),
    ]
    report = routes.routes([offer], claims)
    assert [str(route.prefix) for route in report.routes] == ["10.244.0.1/32", "10.244.0.64/26"]
    assert [str(address) for address in report.routes[0].via] == ["172.30.0.12"]
    assert "prod/StatefulSet/db/0" in page(routes.tables(report))


def test_a_node_with_a_small_uplink_stands_out_among_the_routes() -> None:
    offers = [
        NodeRoutes(f"n{number}", (), (ip_network(f"10.244.{number}.0/26"),), mtu=mtu)
        for number, mtu in enumerate((1500, 1400, 0))
    ]
    report = routes.routes(offers, [])
    assert [route.mtu for route in report.routes] == [1500, 1400, 0]
    cells = [row[4] for row in routes.tables(report)[1].rows]
    assert [(cell.text, cell.tone) for cell in cells if isinstance(cell, Cell)] == [
        ("1500", Tone.PLAIN),
        ("1400", Tone.WARN),
        ("not said", Tone.PLAIN),
    ]


def test_dns_says_nothing_where_nothing_was_decided() -> None:
    assert "decided nothing yet" in page(dns.tables(dns.DnsState(decision=None, report=None)))
    decision = CoreDNSDecision("kube-system", ".:53 {\n  errors\n}", 2, "two at least")
    report = DnsReport(10.0, 2, 50, (("NOERROR", 48), ("NXDOMAIN", 2)), 0.5, 4.0, 30, 10)
    seen = page(dns.tables(dns.DnsState(decision=decision, report=report)))
    for word in ("two at least", "NXDOMAIN 2", "75 %", "errors"):
        assert word in seen


def test_every_published_event_has_a_line() -> None:
    up = EndpointUp("n1", "prod", "db-0", "u", (ip_address("10.0.0.1"),), 7, 12.34)
    output = events.PrintedEvent(subject="airmesh.v1.events.dataplane.endpoint-up.n1", traceparent="", event=up)
    line = " ".join(cell.text for cell in events.line("12:00:00", output))
    assert "dataplane.endpoint-up" in line
    assert "addresses=[10.0.0.1]" in line
    for subject, kind in EVENTS_BY_SUBJECT.items():
        assert events.kind_of(subject if kind is FlowEvent else subject.replace("*", "n=2E1")) is kind
    for nobody in ("dataplane.fault", "policy.fault.n1", "dataplane.fault.n1.n2", "dataplane.object-fault"):
        assert events.kind_of(f"airmesh.v1.events.{nobody}") is None


@pytest.mark.parametrize(
    ("subject", "lies"),
    [
        ("airmesh.v1.events.dataplane.fault.n1", False),
        ("airmesh.v1.events.dataplane.fault.n2", True),
        ("airmesh.v1.events.cluster.fault", False),
    ],
)
def test_a_node_reports_nothing_in_anothers_name(subject: str, lies: bool) -> None:
    event = ServiceFault(service="dataplane", node="n1", fault="x", remedy="y")
    if lies:
        with pytest.raises(Malformed, match="node n2 tells it in the name of 'n1'"):
            events.check_speaker(subject, event)
    else:
        events.check_speaker(subject, event)


def test_json_has_the_fields_of_the_report_and_addresses_as_text() -> None:
    report = agents.status(everybody("n1"), [NODE], {"n1": ack("n1", 7)}, [frontier(0, 1, 7)])
    output = json.loads(json_text(report))
    assert output["well"] is True
    assert output["nodes"][0]["addresses"] == ["172.30.0.11"]
    assert set(output["agents"][0]) == set(agents.Agent.__struct_fields__)
    assert "\n" not in json_text(report, indent=0)


def test_cells_are_text_never_markup() -> None:
    table = Table(title="[red]t", columns=("c",), rows=(("[bold]x[/bold]",),), note="[dim]n")
    out = io.StringIO()
    show.tables(Console(file=out, width=80), (table,))
    for word in ("[bold]x[/bold]", "[red]t", "[dim]n"):
        assert word in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (9 * 86400 + 3600, "9 d 1 h")]
)
def test_spans(seconds: float, said: str) -> None:
    assert text.ago(seconds) == said


@pytest.mark.parametrize(("count", "said"), [(512, "512 B"), (50 << 20, "50.0 MiB"), (3 << 30, "3.0 GiB")])
def test_sizes(count: int, said: str) -> None:
    assert text.size(count) == said


@pytest.mark.parametrize(
    ("number", "said"), [(0, "unknown"), (3, "kube-apiserver"), (9, "reserved-9"), (256, "0" * 13 + "100")]
)
def test_identities(number: int, said: str) -> None:
    assert text.identity(number) == said


@pytest.mark.parametrize(
    ("metadata", "ready", "why"),
    [
        ({}, None, ""),
        ({"ready": "true", "why": ""}, True, ""),
        ({"ready": "false", "why": "bus: not connected"}, False, "bus: not connected"),
        ({"ready": "perhaps"}, None, ""),
    ],
)
def test_a_service_without_endpoints_reports_its_health_in_the_metadata(
    metadata: dict[str, str], ready: bool | None, why: str
) -> None:
    output = {
        "name": "dns",
        "metadata": {"instance": "dns-1", "rss_bytes": "77", "loop_hold_us": "3000", **metadata},
        "endpoints": [],
    }
    found = micro.agent("dns", json.dumps(output).encode(), TestMicro.NOW)
    assert found is not None
    assert (found.ready, found.why, found.rss_bytes, found.longest_hold_ms) == (ready, why, 77, 3.0)


def test_a_service_that_is_not_ready_says_what_is_missing() -> None:
    health = {"ready": False, "missing": {"objects": "listing", "bus": "not connected"}}
    output = {"name": "ipam", "metadata": {"instance": "ipam-1"}, "endpoints": [{"name": "show", "data": health}]}
    found = micro.agent("ipam", json.dumps(output).encode(), TestMicro.NOW)
    assert found is not None
    assert (found.ready, found.why) == (False, "objects: listing; bus: not connected")


@pytest.mark.parametrize(
    "output",
    [
        {"metadata": {"instance": "a", "ready": "true", "notes": "full; busy"}, "endpoints": []},
        {
            "metadata": {"instance": "a"},
            "endpoints": [{"name": "x", "data": {"ready": True, "notes": {"services": "full", "addresses": "busy"}}}],
        },
    ],
)
def test_what_an_agent_notes_is_shown_and_is_no_fault(output: dict[str, Any]) -> None:
    found = micro.agent("dataplane-n1", json.dumps(output).encode(), TestMicro.NOW)
    assert found is not None
    assert (found.ready, found.notes) == (True, "full; busy")
    report = agents.Status(well=True, problems=(), agents=(found,), nodes=())
    last = agents.tables(report)[-1]
    assert last.title == "Told"
    assert "full; busy" in str(last.rows)
    assert agents.tables(agents.Status(well=True, problems=(), agents=(), nodes=()))[-1].title == "Not well"
