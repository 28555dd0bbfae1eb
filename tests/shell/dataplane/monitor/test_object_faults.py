"""Faults of Kubernetes objects as a node tells them: at once, again while they last, and never too many in one go."""

from __future__ import annotations

import time
from typing import Any, cast

import msgspec
import pytest

from chassis.telemetry.log import Log
from proto.events import ObjectFault
from proto.subjects import object_fault_subject
from services.dataplane.monitor.object_faults import AGAIN, AT_ONCE, EVERY, ObjectFaults
from tests.natsd import Lines

FULL = ObjectFault(
    service="dataplane",
    node="n.1",
    group="",
    kind="Service",
    namespace="shop",
    name="web",
    reason="TableFull",
    fault="Service shop/web has no room among 65,536",
    remedy="set AIRMESH_SERVICE_ENTRIES",
)


class Node:
    """A node's teller of faults, its clock, and what went out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.sent: list[tuple[str, ObjectFault]] = []
        self.lines = Lines()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.faults = ObjectFaults(cast("Any", self), "n.1", Log("dataplane", stream=cast("Any", self.lines)))

    def publish(self, subject: str, event: ObjectFault) -> None:
        self.sent.append((subject, event))

    def report(self, *present: ObjectFault, after: float = 0.0) -> list[ObjectFault]:
        """What goes out of these, so much later."""
        self.now += after
        before = len(self.sent)
        self.left = self.faults.report(present)
        return [event for _, event in self.sent[before:]]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def other(**change: str) -> ObjectFault:
    return msgspec.structs.replace(FULL, **change)


def test_a_fault_is_reported_at_once_under_this_nodes_own_subject(node: Node) -> None:
    assert node.report(FULL) == [FULL]
    assert node.sent[0][0] == object_fault_subject("dataplane", "n=2E1")
    (line,) = node.lines.named("object-refused")
    assert (line["kind"], line["name"], line["reason"], line["remedy"]) == ("Service", "web", "TableFull", FULL.remedy)


@pytest.mark.parametrize(
    "changed",
    [
        {"group": "apps"},
        {"kind": "Namespace"},
        {"namespace": "other"},
        {"name": "other"},
        {"reason": "OtherReason"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_object_or_reason_is_another_fault(node: Node, changed: dict[str, str]) -> None:
    assert node.report(FULL, other(**changed)) == [FULL, other(**changed)]


def test_the_same_fault_with_other_numbers_is_no_new_one(node: Node) -> None:
    node.report(FULL)
    assert node.report(other(fault="now it is 65,537"), after=1) == []
    assert node.report(other(fault="now it is 65,538"), after=AGAIN) == [other(fault="now it is 65,538")]


def test_a_fault_that_lasts_is_reported_again_after_its_time_and_logged_once(node: Node) -> None:
    node.report(FULL)
    assert node.report(FULL, after=AGAIN - 0.1) == []
    assert node.report(FULL, after=0.1) == [FULL]
    assert len(node.lines.named("object-refused")) == 1


@pytest.mark.parametrize(("gone_for", "is_reported"), [(EVERY - 0.2, False), (EVERY + 0.1, True)])
def test_a_fault_that_comes_back_is_reported_but_not_too_often(node: Node, gone_for: float, is_reported: bool) -> None:
    node.report(FULL)
    node.report(after=0.1)
    assert node.report(FULL, after=gone_for) == ([FULL] if is_reported else [])
    assert len(node.lines.named("object-refused")) == (2 if is_reported else 1)


def test_many_are_reported_in_turns_and_none_twice(node: Node) -> None:
    """The node's allowance with `cluster` lasts; what is left is said, so that the caller comes again."""
    many = [other(name=f"web-{number}") for number in range(2 * AT_ONCE + 7)]
    reported: list[str] = []
    for left in (AT_ONCE + 7, 7, 0):
        reported += [one.name for one in node.report(*many, after=0.1)]
        assert node.left == left
    assert reported == [one.name for one in many]
    assert node.report(*many, after=0.1) == []


def test_nothing_wrong_is_nothing_to_report(node: Node) -> None:
    assert node.report() == []
    assert node.left == 0
