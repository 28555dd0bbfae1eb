"""What is written back, and when to come back."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest

from proto.addresses import IPAM_HOLDER, Block, PoolVerdict
from proto.dns import CoreDNSDecision, digest_of
from proto.objects import KIND_OF, ConfigMap, Deployment, IPPool, NetworkPolicy
from proto.policy import Ack, Revision
from services.cluster.core import nameserver, nodes, pools, reports
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


TAINTED = nodes.Written(tainted=True)


@pytest.mark.parametrize(
    ("ack", "there", "new_nodes", "put_on"),
    [
        (None, nodes.Written(), True, True),
        (None, nodes.Written("False", "RouteCreated"), True, True),
        (UNREADY, nodes.Written(), True, True),
        (UNREADY, TAINTED, True, None),
        (None, nodes.Written(), False, None),
        (None, FALSE, True, None),
        (UNREADY, TRUE, True, None),
        (READY, nodes.Written(), True, None),
        (READY, TAINTED, True, False),
        (READY, TAINTED, False, False),
    ],
)
def test_only_a_node_that_was_never_ready_is_tainted(
    ack: Ack | None, there: nodes.Written, new_nodes: bool, put_on: bool | None
) -> None:
    assert nodes.taint(ack, there, new_nodes=new_nodes) is put_on


@pytest.mark.parametrize("others", [[], [{"key": "dedicated", "value": "db", "effect": "NoExecute", "timeAdded": "x"}]])
def test_others_taints_stay_as_they_are(others: list[dict[str, str]]) -> None:
    node = {"metadata": {"name": "n1", "resourceVersion": "7"}, "spec": {"taints": others}}
    with_ours = nodes.taints_body(msgspec.json.encode(node), on=True)
    assert with_ours["metadata"] == {"resourceVersion": "7"}
    assert with_ours["spec"]["taints"] == [*others, {"key": nodes.TAINT, "effect": "NoSchedule"}]
    assert nodes.written(msgspec.json.encode({**node, "spec": with_ours["spec"]})).tainted
    node["spec"] = with_ours["spec"]
    assert nodes.taints_body(msgspec.json.encode(node), on=False)["spec"]["taints"] == (others or None)


def test_what_is_written_is_read_back_as_written() -> None:
    wanted = nodes.condition(READY, 0, nodes.Written())
    assert wanted is not None
    body = {**nodes.condition_body("n1", wanted, "2026-01-01T00:00:00Z")}
    body["metadata"] = {**body["metadata"], **nodes.blocks_body("n1", "10.0.0.0/26", "7")["metadata"]}
    there = nodes.written(msgspec.json.encode(body))
    assert there == nodes.Written("False", "AirmeshReady", "10.0.0.0/26")
    assert nodes.condition(READY, 0, there) is None


def block(cidr: str, node: str) -> Block:
    return Block(ip_network(cidr), "p", node, "u", 1, "x")


def test_blocks_of_each_node() -> None:
    own = [block(cidr, "n1") for cidr in ("fd00::/122", "10.0.0.64/26", "10.0.0.0/26")]
    found = nodes.blocks_by_node([*own, block("10.0.1.0/26", IPAM_HOLDER)])
    assert found["n1"] == "10.0.0.0/26,10.0.0.64/26,fd00::/122"
    assert nodes.blocks_body("n1", "", "7")["metadata"]["annotations"] == {}


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
        (DECISION, CONFIG, Deployment("kube-system", "coredns", 2, scaled_by="kube-controller-manager"), []),
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


def raw_pool(conditions: list[dict[str, Any]] | None, generation: int = 3) -> bytes:
    status = {} if conditions is None else {"status": {"conditions": conditions}}
    return json.dumps({"metadata": {"name": "a", "generation": generation}, **status}).encode()


NOW, BEFORE = "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
USED = PoolVerdict("a", "OK")
REFUSED = PoolVerdict("a", "UnsupportedField", "spec.ipipMode Always: not yet", "set it to Never")


def written(verdict: PoolVerdict, at: str = BEFORE, **change: Any) -> dict[str, Any]:
    """The condition as it stands when it was written for a verdict."""
    made = pools.condition(verdict, raw_pool(None), at)
    assert made is not None
    return {**pools.condition_body(KIND_OF[IPPool], "a", made)["status"]["conditions"][0], **change}


def test_a_pools_condition_says_what_becomes_of_it() -> None:
    made = written(REFUSED)
    assert (made["type"], made["status"], made["reason"]) == ("Allocatable", "False", "UnsupportedField")
    assert made["message"] == "spec.ipipMode Always: not yet; set it to Never"
    assert (made["observedGeneration"], made["lastTransitionTime"]) == (3, BEFORE)
    assert written(USED)["status"] == "True"
    assert written(PoolVerdict("a", "PoolDisabled"))["status"] == "False"


@pytest.mark.parametrize(
    ("conditions", "verdict", "transition"),
    [
        (None, USED, NOW),
        ([], USED, NOW),
        ([written(USED)], USED, None),
        ([{"type": "Other", "status": "True"}, written(REFUSED)], REFUSED, None),
        ([written(USED)], REFUSED, NOW),
        ([written(REFUSED)], USED, NOW),
        ([written(REFUSED, reason="CIDROverlap")], REFUSED, BEFORE),
        ([written(REFUSED, observedGeneration=2)], REFUSED, BEFORE),
        ([{"type": 7}], USED, NOW),
    ],
)
def test_a_condition_is_written_where_it_says_something_else(
    conditions: list[dict[str, Any]] | None, verdict: PoolVerdict, transition: str | None
) -> None:
    made = pools.condition(verdict, raw_pool(conditions), NOW)
    assert (made.last_transition_time if made else None) == transition


def test_a_report_is_reported_once_an_hour_under_one_name() -> None:
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
