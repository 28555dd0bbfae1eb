"""What is written back, when to come back, and which pools contradict each other."""

from __future__ import annotations

from ipaddress import ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.addresses import IPAM_HOLDER, Block
from proto.dns import CoreDNSDecision, digest_of
from proto.objects import KIND_OF, ConfigMap, Deployment, IPPool, NetworkPolicy
from proto.policy import Ack, Revision
from services.cluster.core import nameserver, nodes, reports
from services.cluster.core.pools import overlaps
from services.cluster.core.watching import Patience, is_expired, version_of

READY = Ack("n1", Revision("e", 1), 1, ready=True)
UNREADY = Ack("n1", Revision("e", 1), 1)
FALSE = nodes.Written("False", "AirmeshReady")
TRUE = nodes.Written("True", "AirmeshNotReady")


@pytest.mark.parametrize(
    ("ack", "unready_for", "there", "written"),
    [
        (None, 0, nodes.Written(), None),
        (None, 999, FALSE, None),
        (None, 999, TRUE, None),
        (READY, 0, nodes.Written(), "False"),
        (READY, 0, FALSE, None),
        (READY, 0, TRUE, "False"),
        (READY, 0, nodes.Written("False", "RouteCreated"), "False"),
        (UNREADY, 0, FALSE, None),
        (UNREADY, nodes.GRACE - 1, FALSE, None),
        (UNREADY, nodes.GRACE, FALSE, "True"),
        (UNREADY, nodes.GRACE, TRUE, None),
        (UNREADY, nodes.GRACE, nodes.Written(), "True"),
    ],
)
def test_only_a_node_s_own_word_moves_its_condition(
    ack: Ack | None, unready_for: float, there: nodes.Written, written: str | None
) -> None:
    found = nodes.condition(ack, unready_for, there)
    assert (found.status if found else None) == written


def test_what_is_written_is_read_back_as_written() -> None:
    wanted = nodes.condition(READY, 0, nodes.Written())
    assert wanted is not None
    body = {**nodes.condition_body("n1", wanted, "2026-01-01T00:00:00Z")}
    body["metadata"] = {**body["metadata"], **nodes.blocks_body("n1", "10.0.0.0/26")["metadata"]}
    there = nodes.written(msgspec.json.encode(body))
    assert there == nodes.Written("False", "AirmeshReady", "10.0.0.0/26")
    assert nodes.condition(READY, 0, there) is None


def block(cidr: str, node: str) -> Block:
    return Block(ip_network(cidr), "p", node, "u", 1, "x")


def test_blocks_of_each_node() -> None:
    own = [block(cidr, "n1") for cidr in ("fd00::/122", "10.0.0.64/26", "10.0.0.0/26")]
    found = nodes.blocks_by_node([*own, block("10.0.1.0/26", IPAM_HOLDER)])
    assert found["n1"] == "10.0.0.0/26,10.0.0.64/26,fd00::/122"
    assert nodes.blocks_body("n1", "")["metadata"]["annotations"] == {}


DECISION = CoreDNSDecision("kube-system", "new", 3, "because", of=digest_of("old"))
FIRST = CoreDNSDecision("kube-system", "new", 3, "because")
CONFIG = ConfigMap("kube-system", "coredns", (("Corefile", "new"),))
DEPLOYMENT = Deployment("kube-system", "coredns", 3)


@pytest.mark.parametrize(
    ("decision", "config", "deployment", "written"),
    [
        (DECISION, CONFIG, DEPLOYMENT, []),
        (DECISION, None, DEPLOYMENT, []),
        (FIRST, None, DEPLOYMENT, ["ConfigMap"]),
        (FIRST, ConfigMap("kube-system", "coredns", (("other", "x"),)), DEPLOYMENT, ["ConfigMap"]),
        (FIRST, ConfigMap("kube-system", "coredns", (("Corefile", "old"),)), DEPLOYMENT, []),
        (DECISION, ConfigMap("kube-system", "coredns", (("Corefile", "by hand"),)), DEPLOYMENT, []),
        (DECISION, ConfigMap("kube-system", "coredns", (("Corefile", "old"),)), DEPLOYMENT, ["ConfigMap"]),
        (DECISION, CONFIG, Deployment("kube-system", "coredns", 2), ["Deployment"]),
        (DECISION, CONFIG, None, []),
        (CoreDNSDecision("prod", "new", 3, ""), None, DEPLOYMENT, []),
    ],
)
def test_coredns_is_brought_to_the_decision(
    decision: CoreDNSDecision, config: ConfigMap | None, deployment: Deployment | None, written: list[str]
) -> None:
    steps = nameserver.steps(decision, config, deployment, version="7")
    assert [body["kind"] for _, body in steps] == written
    versions = [body["metadata"].get("resourceVersion") for _, body in steps if body["kind"] == "ConfigMap"]
    assert versions == ["7" if config else None] * written.count("ConfigMap"), "never over a later text"


def pool(name: str, cidr: str, *, disabled: bool = False) -> IPPool:
    return IPPool(name, ip_network(cidr), 26, disabled=disabled)


@pytest.mark.parametrize(
    ("pools", "faulty"),
    [
        ([("a", "10.0.0.0/16"), ("b", "10.1.0.0/16")], set()),
        ([("a", "10.0.0.0/16"), ("b", "10.0.0.0/16")], {"a", "b"}),
        ([("a", "10.0.0.0/8"), ("b", "10.1.0.0/16"), ("c", "10.2.0.0/16"), ("d", "11.0.0.0/8")], {"a", "b", "c"}),
        ([("a", "::/0"), ("b", "10.0.0.0/8")], set()),
    ],
)
def test_overlaps(pools: list[tuple[str, str]], faulty: set[str]) -> None:
    found = overlaps(pool(*one) for one in pools)
    assert set(found) == faulty
    assert all("; disable one of them" in sentence for sentence in found.values())


def test_a_disabled_pool_overlaps_nothing() -> None:
    assert overlaps([pool("a", "10.0.0.0/8", disabled=True), pool("b", "10.0.0.0/16")]) == {}


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(4, 12)), max_size=8))
def test_overlaps_are_found_as_by_comparing_all(spans: list[tuple[int, int]]) -> None:
    pools = [
        IPPool(f"p{index}", ip_network((first << 24, length), strict=False), 26)
        for index, (first, length) in enumerate(spans)
    ]
    naive = {one.name for one in pools for other in pools if one is not other and one.cidr.overlaps(other.cidr)}
    assert set(overlaps(pools)) == naive


def test_a_report_is_told_once_an_hour_under_one_name() -> None:
    report = reports.Report(
        kind=KIND_OF[NetworkPolicy], namespace="prod", name="p", uid="u", sentence="NetworkPolicy prod/p: a: b; do c"
    )
    assert (report.fault, report.remedy) == ("NetworkPolicy prod/p: a: b", "do c")
    first, same, later = (
        reports.event_body(report, now=now, stamp="2026-01-01T00:00:00Z", instance="i") for now in (0.0, 3599.0, 3600.0)
    )
    assert first["metadata"]["name"] == same["metadata"]["name"] != later["metadata"]["name"]
    assert first["involvedObject"] == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "name": "p",
        "namespace": "prod",
        "uid": "u",
    }
    assert reports.event_path(report) == "/api/v1/namespaces/prod/events"


def test_patience() -> None:
    patience = Patience().began(0)
    for failures in (1, 2, 3):
        patience = patience.failed(failures)
        assert patience.failures == failures
    # A watch that lasted makes what went wrong before it old.
    assert patience.began(10).failed(130).failures == 1
    assert patience.succeeded().failures == 0


@pytest.mark.parametrize(
    ("code", "reason", "expired"),
    [(410, None, True), (200, "Expired", True), (None, "Gone", True), (404, "NotFound", False), (None, None, False)],
)
def test_gone_in_every_disguise(code: int | None, reason: str | None, expired: bool) -> None:
    assert is_expired(code, reason) == expired


def test_versions_are_opaque() -> None:
    assert version_of(b'{"metadata":{"resourceVersion":"a-b"}}') == "a-b"
    assert version_of(b'{"kind":"Status"}') == ""
