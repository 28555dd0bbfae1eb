"""What is taken of what services say about objects, and when it is written."""

from __future__ import annotations

import msgspec

from proto.events import ObjectFault
from proto.subjects import object_fault_subject, speaker_of
from services.cluster.core import object_faults as core
from services.cluster.core.object_faults import BURST, EVERY, FORGET, MAX_OPENED, Board, Subject

NODE = ("dataplane", "n1")
FAULT = ObjectFault("dataplane", "n9", "", "Service", "shop", "web", "TableFull", "namespace shop has 9", "delete some")


def about(name: str = "web", reason: str = "TableFull") -> Subject:
    kind = core.kind_named(FAULT)
    assert kind is not None
    return Subject(kind, "shop", name, f"uid-{name}", reason)


def test_a_speaker_is_who_the_key_says() -> None:
    assert speaker_of(object_fault_subject("dataplane", "n1")) == ("dataplane", "n1")
    assert speaker_of(object_fault_subject("policy")) == ("policy", "")
    for nobody in (
        object_fault_subject("dataplane"),  # every node may speak there
        object_fault_subject("policy", "n1"),
        object_fault_subject("cli"),
        object_fault_subject("dataplane", "n1.n2"),
        "airmesh.v1.events.dataplane.fault",
        "airmesh.v1.events.dataplane.endpoint-up.n1",
    ):
        assert speaker_of(nobody) is None


def test_one_speaker_s_flood_takes_nothing_from_another() -> None:
    board = Board()
    taken = sum(board.allow(NODE, 100 + number / 1000) for number in range(10_000))
    assert BURST <= taken <= BURST + 11
    assert board.allow(("dataplane", "n2"), 110)
    while board.allow(NODE, 110):
        pass
    assert not board.allow(NODE, 110.5)
    assert board.allow(NODE, 111.5)


def test_speakers_are_written_in_turn() -> None:
    board = Board()
    for number in range(50):
        board.hear(NODE, about(f"s{number}"), FAULT, number)
    board.hear(("dataplane", "n2"), about(), FAULT, 60)
    assert [series.subject.name for series in board.due(60)][:3] == ["s0", "web", "s1"]


def test_a_speaker_opens_a_bounded_number_of_series() -> None:
    board = Board()
    outcomes = [board.hear(NODE, about(f"s{number}"), FAULT, 0) for number in range(MAX_OPENED + 50)]
    assert outcomes == [""] * MAX_OPENED + ["too-many"] * 50
    assert board.hear(("dataplane", "n2"), about(), FAULT, 0) == ""
    assert board.hear(NODE, about("later"), FAULT, FORGET + 1) == ""
    assert len(board.series) == 1  # what nobody spoke of for an hour is forgotten


def test_a_series_is_written_at_once_and_then_not_within_thirty_seconds() -> None:
    board = Board()
    assert board.next_due(0) is None
    board.hear(NODE, about(), FAULT, 1000)
    (series,) = board.due(1000)
    series.written, series.unwritten = 1000, False
    for moment in range(1001, 1025):
        board.hear(NODE, about(), FAULT, moment)
        assert not list(board.due(moment))
    assert board.next_due(1025) == EVERY - 25
    (series,) = board.due(1030)
    assert series.count == 25
    series.written, series.unwritten = 1030, False
    assert not list(board.due(9999))
    assert board.next_due(9999) is None


def test_a_note_is_one_printable_line_that_names_who_speaks() -> None:
    board = Board()
    loud = msgspec.structs.replace(FAULT, fault="a\nb\x1b[31m" + "x" * 5000)
    for number in range(5):
        board.hear(("dataplane", f"n{number}"), about(), loud, 0)
    (series,) = board.due(0)
    body = core.event_body(series, first="a", last="b", instance="i")
    assert body["message"].isprintable()
    assert len(body["message"]) <= 1024
    assert body["message"].endswith("delete some (says dataplane on n0, dataplane on n1, dataplane on n2 and 2 more)")
    assert "n9" not in body["message"]
    assert body["involvedObject"] == {
        "apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "uid-web",
    }  # fmt: skip
    assert board.hear(NODE, about(reason="not a reason"), FAULT, 0) == "malformed"


def test_only_mirrored_kinds_have_events() -> None:
    assert core.kind_named(msgspec.structs.replace(FAULT, kind="Secret")) is None
    assert core.kind_named(msgspec.structs.replace(FAULT, group="networking.k8s.io", kind="NetworkPolicy"))
