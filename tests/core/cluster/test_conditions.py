"""Which conditions an object has by what is said of it, and what is known of those that nobody speaks of."""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.events import FindingEvent
from proto.findings import MAX_FINDINGS, Expected, Finding, Fix
from proto.objects import Node, Pod, Service
from services.cluster.core import conditions as core
from services.cluster.core.conditions import MAX_OF_OBJECT, MAX_OF_SPEAKER, PREFIX, SETTLES, Condition, Reported
from tests.golden.proto.samples import sample_of

NODE, OTHER, POLICY = ("dataplane", "n1"), ("dataplane", "n2"), ("policy", "")
WEB: core.Target = (Service, "shop", "web")
NOW = 1_800_000_000
FOUND = Finding(
    code="nodeport-ephemeral",
    fault="nodeport",
    about="Service shop/web",
    node="n9",
    cause="the port is given away",
    expected=Expected(text="this"),
    observed=(),
    fixes=(Fix("sysctl -w x=y", "none"),),
    since=NOW - 60,
)


def event(
    state: Literal["came", "lasts", "gone"] = "came", instance: str = "a", finding: Finding = FOUND, again: int = 600
) -> FindingEvent:
    return FindingEvent("x", "n9", state, NOW, finding, instance, again)


def now_of(reported: Reported, at: float, *there: Condition, target: core.Target = WEB) -> tuple[Condition, ...]:
    return core.wanted(reported.by_target(at).get(target, []), there, NOW, settled=reported.settled(at))


def test_one_condition_says_what_all_nodes_and_copies_say() -> None:
    reported = Reported(0)
    for who, instance in ((NODE, "a"), (OTHER, "b"), (POLICY, "one"), (POLICY, "two")):
        assert reported.hear(who, WEB, event(instance=instance), 7, 0) == ""
    (one,) = now_of(reported, 1)
    assert (one.type, one.reason, one.generation) == ("airmesh.io/NodeportEphemeral", "NodeportEphemeral", 7)
    assert one.message == "the port is given away; sysctl -w x=y (says dataplane on n1, dataplane on n2, policy)"
    assert one.since == "2027-01-15T07:59:00Z"
    assert one.body()["status"] == "True"
    for who, instance in ((NODE, "a"), (OTHER, "b"), (POLICY, "one")):
        reported.hear(who, WEB, event("gone", instance), 7, 2)
        assert now_of(reported, 3)
    reported.hear(POLICY, WEB, event("gone", "two"), 7, 4)
    assert now_of(reported, 5, one) == ()


def test_the_time_of_a_condition_that_stands_is_kept() -> None:
    reported = Reported(0)
    stands = Condition(type="airmesh.io/NodeportEphemeral", reason="x", message="y", since="2026-01-01T00:00:00Z")
    reported.hear(NODE, WEB, event(), 0, 0)
    (one,) = now_of(reported, 1, stands)
    assert one.since == stands.since
    assert "observedGeneration" not in one.body()


def test_what_was_written_in_a_former_life_stays_until_it_was_listened_for() -> None:
    reported = Reported(100)
    former = Condition(type=f"{PREFIX}PolicyLabels", reason="PolicyLabels", message="m", since="s")
    reported.hear(NODE, WEB, event(), 0, 100)
    assert {one.type for one in now_of(reported, 101, former)} == {former.type, "airmesh.io/NodeportEphemeral"}
    reported.hear(POLICY, WEB, event("gone", finding=msgspec.structs.replace(FOUND, code="policy-labels")), 0, 102)
    assert former not in now_of(reported, 103, former), "its end was told"
    other = msgspec.structs.replace(FOUND, code="policy-types")
    silent = Condition(type=f"{PREFIX}PolicyTypes", reason="PolicyTypes", message="m", since="s")
    assert silent in now_of(reported, 99 + SETTLES, silent)
    assert silent not in now_of(reported, 100 + SETTLES, silent)
    reported.hear(POLICY, WEB, event("lasts", finding=other), 0, 101 + SETTLES)
    assert [one.since for one in now_of(reported, 102 + SETTLES, silent)] == ["s"]


def test_what_is_not_reported_again_ends_and_a_time_of_deafness_does_not_count() -> None:
    reported = Reported(0)
    slow = event(instance="slow", again=3000)
    reported.hear(NODE, WEB, event(), 0, 0)
    reported.hear(OTHER, WEB, slow, 0, 0)
    reported.deaf(1000)
    assert len(reported.by_target(999 + SETTLES)[WEB]) == 2
    assert [one.who for one in reported.by_target(1000 + SETTLES)[WEB]] == [OTHER]
    assert reported.by_target(1000 + 2 * 3000) == {}


def test_a_speaker_has_a_rate_and_a_number_and_others_have_theirs() -> None:
    reported = Reported(0)
    taken = sum(reported.allow(NODE, number / 10_000) for number in range(10_000))
    assert 2 * MAX_FINDINGS <= taken <= 2 * MAX_FINDINGS + 4
    assert reported.allow(OTHER, 1)
    outcomes = [
        reported.hear(NODE, (Service, "shop", f"s{number}"), event(), 0, 0) for number in range(MAX_OF_SPEAKER + 9)
    ]
    assert outcomes == [""] * MAX_OF_SPEAKER + ["too-many"] * 9
    assert reported.hear(NODE, (Service, "shop", "s0"), event("gone"), 0, 1) == ""
    assert reported.hear(OTHER, WEB, event(), 0, 0) == ""
    assert len(reported.by_target(1)) == MAX_OF_SPEAKER + 1
    for code in ("", "Upper", "a b", "a/b", "a--b", "-a", "a" * 64, "ä"):
        assert reported.hear(POLICY, WEB, event(finding=msgspec.structs.replace(FOUND, code=code)), 0, 0) == "malformed"
    reported.forget([WEB])
    assert WEB not in reported.by_target(1)


def test_an_object_has_the_causes_among_its_findings() -> None:
    reported = Reported(0)
    for number in range(MAX_OF_OBJECT + 5):
        one = msgspec.structs.replace(FOUND, code=f"code-{number}", precedence=100 - number)
        reported.hear(NODE, WEB, event(finding=one), 0, 0)
    kept = {one.reason for one in now_of(reported, 1)}
    assert kept == {f"Code{number}" for number in range(5, MAX_OF_OBJECT + 5)}


def test_pairs_are_reported_on_the_node_that_says_so() -> None:
    reported = Reported(0)
    mine: core.Target = (Node, "", "n1")
    for peer in ("n2", "n3"):
        pair = msgspec.structs.replace(FOUND, code="route-missing", about=f"Pair n1 {peer}")
        target = core.target_of(("routing", "n1"), pair)
        assert target == mine, "whatever node the message names"
        reported.hear(("routing", "n1"), target, event(finding=pair), 0, 0)
    (one,) = now_of(reported, 1, target=mine)
    assert one.message.startswith("the port is given away (1 more such); ")


def test_kinds_without_a_status_have_no_conditions() -> None:
    for about in ("NetworkPolicy shop/deny", "ConfigMap kube-system/coredns", "Upstream 192.0.2.1"):
        assert core.target_of(POLICY, msgspec.structs.replace(FOUND, about=about)) is None
    assert core.target_of(POLICY, msgspec.structs.replace(FOUND, about="Pair a b")) == (Node, "", "n9")


def test_a_node_is_heard_of_itself_its_pods_and_services() -> None:
    pod = msgspec.structs.replace(sample_of(Pod), node="n1")
    target: core.Target = (Pod, pod.namespace, pod.name)
    assert core.may_say(NODE, target, pod)
    assert not core.may_say(OTHER, target, pod)
    assert not core.may_say(NODE, target, None)
    assert core.may_say(NODE, (Node, "", "n1"), None)
    assert not core.may_say(NODE, (Node, "", "n2"), None)
    assert core.may_say(NODE, WEB, None)
    assert core.may_say(POLICY, target, pod)


def test_ours_are_found_among_others() -> None:
    raw = b"""{"metadata":{"annotations":{"airmesh.io/blocks":"x"}},"status":{"conditions":[
        {"type":"Ready","status":"True","lastTransitionTime":null},
        {"type":"airmesh.io/A","status":"True","reason":"A","message":"m","lastTransitionTime":"t",
         "observedGeneration":3,"lastProbeTime":null},
        {"type":"airmesh.io/B","status":"False"}]}}"""
    a = Condition(type="airmesh.io/A", reason="A", message="m", since="t", generation=3)
    assert core.shown(raw) == (a,)
    assert core.shown(raw.replace(b"airmesh.io/", b"example.org/")) == ()
    assert core.shown(b'"airmesh.io/ {') == ()


def test_a_body_names_its_object_and_nothing_where_nothing_is_found() -> None:
    assert core.status_path(WEB) == "/api/v1/namespaces/shop/services/web/status"
    assert core.status_path((Node, "", "n1")) == "/api/v1/nodes/n1/status"
    metadata = {"name": "web", "namespace": "shop"}
    assert core.status_body(WEB, ()) == {"apiVersion": "v1", "kind": "Service", "metadata": metadata}
