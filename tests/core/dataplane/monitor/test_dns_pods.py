"""The last minute of each pod's DNS, and the totals of the node."""

from __future__ import annotations

from dataclasses import replace

from proto.codec import encode
from proto.dns_pods import MAX_NAMES, MAX_PODS, PodDns, PodDnsRequest
from services.dataplane.core.datapath.dns_layout import DNS_BUCKETS, DNS_OUTCOMES, DNS_SAMPLES, DnsOutcome, DnsPod
from services.dataplane.core.monitor.dns_pods import MARK_EVERY, NAMES_FOR, PodName, PodsDns
from tests.core.dataplane.monitor.dns_records import SECOND, Said, record

ALL = PodDnsRequest()
WEB, API = PodName(namespace="shop", pod="web"), PodName(namespace="prod", pod="api")
PODS = {1: WEB, 2: API}


class Node:
    """A node whose agent looks every two seconds."""

    def __init__(self, records: dict[int, DnsPod] | None = None) -> None:
        self.dns, self.moment = PodsDns(), 1000.0
        self.look(records or {})

    def look(self, records: dict[int, DnsPod], after: float = 2.0) -> None:
        self.moment += after
        self.dns.observe(self.moment, int(self.moment * SECOND), records, PODS)

    def pods(self, asked: PodDnsRequest = ALL) -> list[PodDns]:
        report = self.dns.report(asked, "n1", self.moment)
        assert report is not None
        return list(report.pods)


def test_what_was_counted_before_the_agent_began_is_in_the_totals_alone() -> None:
    node = Node({1: record([Said("old.example")], queries=100, timeouts=7)})
    assert node.pods() == []
    assert (node.dns.totals.queries, node.dns.totals.timeouts) == (100, 7)
    node.look({1: record([Said("old.example"), Said("new.example")], queries=103, timeouts=8)})
    (pod,) = node.pods()
    assert (pod.queries, pod.timeouts, pod.seconds) == (3, 1, 2.0)
    assert [name.name for name in pod.names] == ["new.example"]


def test_of_a_pod_that_is_new_everything_counts() -> None:
    node = Node()
    node.look({1: record([Said("a.example"), Said("b.example", DnsOutcome.NXDOMAIN)], queries=2)})
    (pod,) = node.pods()
    assert (pod.namespace, pod.pod, pod.queries) == ("shop", "web", 2)
    assert pod.answers == (("NOERROR", 1), ("NXDOMAIN", 1))


def test_a_report_is_of_the_last_minute() -> None:
    node, asked = Node(), 0
    for _ in range(100):
        asked += 5
        node.look({1: record(queries=asked)})
    (pod,) = node.pods()
    assert 60 <= pod.seconds < 60 + MARK_EVERY + 2
    assert pod.queries == 5 * pod.seconds / 2
    for _ in range(40):
        node.look({1: record(queries=asked)})
    assert node.pods() == []


def test_names_are_of_the_last_two_minutes_at_most() -> None:
    node, number = Node(), 0
    node.look({1: record([Said("once.example")], queries=1)})
    for second in range(0, int(2 * NAMES_FOR), 2):
        number = second + 2
        node.look({1: record([Said("often.example")], first=number, queries=number)})
        if second < NAMES_FOR - 4:
            assert [name.name for name in node.pods()[0].names] in (["once.example"], ["often.example", "once.example"])
    node.look({1: record([Said("often.example")], first=number + 1, queries=number + 1)})
    assert [name.name for name in node.pods()[0].names] == ["often.example"]


def test_a_search_list_is_counted_over_two_looks() -> None:
    node = Node()
    vain = Said("x.example.shop.svc.cluster.local", DnsOutcome.NXDOMAIN)
    node.look({1: record([vain, vain], queries=2)})
    node.look({1: record([vain, vain, Said("x.example"), Said("y.example", DnsOutcome.NXDOMAIN)], queries=4)})
    (pod,) = node.pods()
    assert (pod.sampled, pod.sampled_nxdomain, pod.searched) == (4, 3, 2)


def test_who_is_gone_leaves_its_counts_in_the_totals() -> None:
    node = Node()
    node.look({1: record(queries=10), 2: record(queries=1)})
    node.look({2: record(queries=2)})
    assert [pod.pod for pod in node.pods()] == ["api"]
    assert node.dns.totals.queries == 12
    node.look({1: record(queries=3), 2: record(queries=2)})
    assert node.dns.totals.queries == 15


def test_a_record_without_a_name_waits() -> None:
    node = Node()
    node.look({1: record(queries=10), 9: record(queries=99)})
    assert node.dns.totals.queries == 10


def test_a_question_names_nodes_and_a_namespace() -> None:
    node = Node()
    node.look({1: record(queries=10), 2: record(queries=20)})
    assert [pod.pod for pod in node.pods()] == ["api", "web"]
    assert [pod.pod for pod in node.pods(PodDnsRequest(namespace="shop"))] == ["web"]
    assert node.dns.report(PodDnsRequest(nodes=("n2",)), "n1", 0.0) is None
    assert [pod.pod for pod in node.dns.most_asking(node.moment, 1)] == ["api"]


def test_the_largest_answer_fits_into_a_message() -> None:
    dns = PodsDns()
    pods = {number: PodName(namespace="n" * 63, pod=f"{number:0>253}") for number in range(MAX_PODS + 3)}
    said = [Said(f"{number:0>63}.{'x' * 40}.example") for number in range(DNS_SAMPLES)]
    full = replace(record(said), queries=2**63, answers=(2**32,) * (DNS_OUTCOMES * DNS_BUCKETS))
    dns.observe(0.0, 0, {}, pods)
    dns.observe(2.0, 0, dict.fromkeys(pods, full), pods)
    report = dns.report(ALL, "n1", 4.0)
    assert report is not None
    assert (len(report.pods), report.left_out) == (MAX_PODS, 3)
    assert len(report.pods[0].names) == MAX_NAMES
    assert len(encode(report)) < 1 << 20
