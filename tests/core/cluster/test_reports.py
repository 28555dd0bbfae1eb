"""What a person is told of an object: an Event that the API takes whatever the object is called, and once an hour."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.objects import KIND_OF, KINDS, IPPool, Kind, NetworkPolicy, Node, Pod
from services.cluster.core.reports import FAULT, HOUR, MAX_MESSAGE, MOST, Report, bounded, event_body, event_path, first

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""A DNS subdomain, as the API wants an object's name (apimachinery, IsDNS1123Subdomain), of at most 253 characters."""
NAMES = st.from_regex(NAME, fullmatch=True).map(lambda name: name[:253].rstrip("-."))
STAMP = "2026-01-01T00:00:00Z"


def report(name: str = "web", sentence: str = "it is broken; mend it", **change: object) -> Report:
    fields = {"kind": KIND_OF[NetworkPolicy], "namespace": "shop", "name": name, "uid": "uid", "sentence": sentence}
    return Report(**(fields | change))  # type: ignore[arg-type]


def name_of(one: Report, now: float = 10 * HOUR) -> str:
    return str(event_body(one, now=now, stamp=STAMP, instance="cluster-1")["metadata"]["name"])


@given(NAMES)
def test_an_event_has_a_name_that_the_api_takes(name: str) -> None:
    made = name_of(report(name))
    assert NAME.fullmatch(made), made
    assert len(made) <= 253


@pytest.mark.parametrize("last", ["-", ".", "--", "a"])
def test_a_long_name_is_cut_where_it_may_end(last: str) -> None:
    """Cut behind a hyphen or a dot it would be refused, and nobody told."""
    name = ("a" * 200)[: 200 - len(last)] + last + "b" * 53
    made = name_of(report(name))
    assert NAME.fullmatch(made), made


def test_the_same_sentence_is_reported_once_an_hour_by_whichever_copy() -> None:
    one = report()
    assert name_of(one, 10 * HOUR) == name_of(one, 11 * HOUR - 0.001)
    assert name_of(one, 10 * HOUR) != name_of(one, 11 * HOUR)
    bodies = [event_body(one, now=10 * HOUR, stamp=STAMP, instance=copy) for copy in ("cluster-1", "cluster-2")]
    assert bodies[0]["metadata"] == bodies[1]["metadata"]


@pytest.mark.parametrize("change", [{"sentence": "another; mend it"}, {"uid": "of one made again"}, {"name": "web-1"}])
def test_another_sentence_or_object_is_another_event(change: dict[str, str]) -> None:
    assert name_of(report()) != name_of(report(**change))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_an_event_names_its_object_as_the_api_does(kind: Kind) -> None:
    body = event_body(report(kind=kind), now=0.0, stamp=STAMP, instance="x")
    subject = body["involvedObject"]
    assert subject["kind"].lower() == kind.kind
    group, _, version = subject["apiVersion"].rpartition("/")
    assert re.fullmatch(r"v\d+((alpha|beta)\d+)?", version)
    assert group == ("" if kind.group == "core" else subject["apiVersion"].partition("/")[0])
    assert (subject["namespace"], subject["name"], subject["uid"]) == ("shop", "web", "uid")


@pytest.mark.parametrize("kind", [Node, IPPool])
def test_what_is_of_no_namespace_is_reported_in_the_default_one(kind: type) -> None:
    one = report(kind=KIND_OF[kind], namespace="")
    body = event_body(one, now=0.0, stamp=STAMP, instance="x")
    assert event_path(one) == "/api/v1/namespaces/default/events"
    assert body["metadata"]["namespace"] == "default"
    assert "namespace" not in body["involvedObject"]
    assert event_path(report()) == "/api/v1/namespaces/shop/events"


def test_an_event_says_when_by_whom_and_what() -> None:
    body = event_body(report(reason="TableFull"), now=0.0, stamp=STAMP, instance="x" * 500)
    assert (body["type"], body["reason"], body["message"], body["count"]) == (
        "Warning",
        "TableFull",
        "it is broken; mend it",
        1,
    )
    assert body["firstTimestamp"] == body["lastTimestamp"] == STAMP
    assert len(body["reportingInstance"]) == 128, "the API takes no longer one"
    assert report().reason == FAULT


@pytest.mark.parametrize("length", [MAX_MESSAGE, MAX_MESSAGE + 1])
def test_a_long_sentence_is_cut_at_what_the_api_takes(length: int) -> None:
    body = event_body(report(sentence="x" * length), now=0.0, stamp=STAMP, instance="x")
    assert len(body["message"]) == MAX_MESSAGE


@pytest.mark.parametrize(
    ("sentence", "fault", "remedy"),
    [
        ("a is b; do c", "a is b", "do c"),
        ("a; b; do c", "a; b", "do c"),
        ("no remedy", "no remedy", "no remedy"),
        ("a;b", "a;b", "a;b"),
        ("", "", ""),
    ],
)
def test_a_sentence_has_a_fault_and_a_remedy(sentence: str, fault: str, remedy: str) -> None:
    one = report(sentence=sentence)
    assert (one.fault, one.remedy) == (fault, remedy)


def test_a_namespace_has_its_share_and_waits_for_nobody_elses() -> None:
    loud = [report(f"loud-{number}", namespace="loud") for number in range(3 * MOST)]
    quiet = [report("one", namespace="quiet"), report("two", namespace="quiet")]
    pods = [report(f"pod-{number}", namespace="loud", kind=KIND_OF[Pod]) for number in range(3)]
    nodes = [report(f"n{number}", namespace="", kind=KIND_OF[Node]) for number in range(2 * MOST)]
    found = list(bounded([*loud, *quiet, *pods, *nodes]))
    assert sum(one.namespace == "loud" and one.kind is KIND_OF[NetworkPolicy] for one in found) == MOST
    assert {one.name for one in found if one.namespace == "quiet"} == {"one", "two"}
    assert [one.name for one in found if one.kind is KIND_OF[Pod]] == ["pod-0", "pod-1", "pod-2"]
    assert sum(one.namespace == "" for one in found) == 2 * MOST, "what is of no namespace is nobody's flood"
    first = found[: found.index(loud[1])]
    assert quiet[0] in first, "the first of each namespace comes before anybody's second"


def test_of_each_namespace_only_as_many_are_looked_at_as_are_reported() -> None:
    names = [(namespace, f"{namespace}-{number}") for number in range(3 * MOST) for namespace in ("a", "b", "")]
    found = list(first(names))
    assert found == [name for name in names if not name[0] or names.index(name) < 3 * MOST]
    assert len(found) == 2 * MOST + 3 * MOST
    reports = [report(name=name, namespace=namespace) for namespace, name in names]
    assert bounded(reports) == bounded(report(name=name, namespace=namespace) for namespace, name in found)


def test_nothing_wrong_is_nothing_to_report() -> None:
    assert bounded([]) == {}
    one = report()
    assert list(bounded([one, one])) == [one]
