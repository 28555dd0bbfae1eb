"""The tree of a trace: made of what agents say, whatever they say, each in its own name."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.reports import trace
from cli.reports.table import Cell, json_text
from cli.reports.trace import MOST_LINKED, Target, linked, target
from proto.traces import Span, SpanEvent, Spans
from tests.core.proto.strategies import values_of

TRACE, OTHER = "ab" * 16, "cd" * 16
MS = 1_000_000


def span(name: str, number: int, parent: int = 0, at: float = 0.0, took: float = 1.0, **more: object) -> Span:
    ids = {"trace_id": TRACE, "span_id": f"{number:016x}", "parent_id": f"{parent:016x}" if parent else ""}
    times = {"start_ns": 1_000 * MS + int(at * MS), "duration_us": round(took * 1000)}
    return Span(**{**ids, "name": name, **times, **more})  # type: ignore[arg-type]


def drawn(*answers: tuple[str, Spans]) -> list[str]:
    (table,) = trace.tables(trace.trace(Target(trace_id=TRACE), TRACE, answers))
    return [
        " | ".join((cell.text if isinstance(cell, Cell) else cell).rstrip() for cell in row).rstrip(" |")
        for row in table.rows
    ]


def test_a_change_from_the_object_to_the_kernel() -> None:
    happened = (SpanEvent("addressed", 300, (("addresses", "10.0.0.1"),)),)
    assert drawn(
        ("dataplane-n1", Spans((span("cni-add", 3, 1, 4, 5, events=happened, attributes=(("k8s.node.name", "n1"),)),))),
        ("ipam", Spans((span("answer", 5, 4, 4.5),))),
        ("dataplane-n1", Spans((span("ask", 4, 3, 4.2),))),
        ("cluster", Spans((span("cluster.upsert", 1),))),
        ("policy", Spans((span("policy.compile", 2, 1, 2, 1.5, attributes=(("revision", "e:7"),)),))),
    ) == [
        "0.0 ms | 1.0 ms | cluster | cluster.upsert",
        "2.0 ms | 1.5 ms | policy | ├─ policy.compile  revision=e:7",
        "4.0 ms | 5.0 ms | dataplane n1 | └─ cni-add",
        "4.3 ms |  |  |    │  · addressed  addresses=10.0.0.1",
        "4.2 ms | 1.0 ms | dataplane n1 |    └─ ask",
        "4.5 ms | 1.0 ms | ipam |       └─ answer",
    ]


def test_what_hangs_on_a_linked_span_is_shown_too() -> None:
    """Two policies were compiled together: the kernels' work is in the trace of the first."""
    link = (f"00-{OTHER}-{7:016x}-01",)
    mine = Spans((span("upsert", 1), span("compile", 2, 1, 2, links=link)))
    theirs = [span("upsert", 6, trace_id=OTHER), span("compile", 7, 6, 2, trace_id=OTHER)]
    kernel = span("policy.enforce", 8, 7, 3, trace_id=OTHER)
    answers = (("policy", mine), ("policy", Spans(tuple(theirs))), ("dataplane-n2", Spans((kernel,))))
    assert linked([("policy", mine)]) == (OTHER,)
    assert drawn(*answers) == [
        "0.0 ms | 1.0 ms | policy | upsert",
        "2.0 ms | 1.0 ms | policy | └─ compile",
        "3.0 ms | 1.0 ms | dataplane n2 |    └─ policy.enforce",
    ]


def test_what_failed_what_goes_on_and_what_is_missing() -> None:
    report = trace.trace(
        Target(namespace="shop", name="web"),
        TRACE,
        [
            (
                "dataplane-n1",
                Spans((span("cni-add", 3, 9, took=2, error="CniError: no room"), span("x", 4, 3, 1, -0.001)), 7),
            )
        ],
    )
    assert not report.well
    assert [one.milliseconds for one in report.spans] == [2.0, None]
    assert report.begun == "1970-01-01T00:00:01.000Z"
    assert len(report.notes) == 2
    assert "7 more spans" in report.notes[1]
    assert not trace.trace(Target(trace_id=TRACE), TRACE, []).well


def test_each_speaks_for_itself_alone() -> None:
    """A node says that it is the parent of itself, of others, and what another has said: each is shown as its own."""
    lie = Spans((span("cluster.upsert", 1), span("loop", 8, 8), span("knot", 9, 10), span("knot", 10, 9)))
    report = trace.trace(
        Target(trace_id=TRACE), TRACE, [("cluster", Spans((span("cluster.upsert", 1),))), ("dataplane-n1", lie)]
    )
    assert {(one.service, one.node, one.name) for one in report.spans if one.name == "cluster.upsert"} == {
        ("cluster", "", "cluster.upsert"),
        ("dataplane", "n1", "cluster.upsert"),
    }
    assert trace.trace(Target(trace_id=TRACE), TRACE, [("nobody", lie)]).spans == ()


ANSWERS = st.lists(st.tuples(st.sampled_from(["cluster", "dataplane-n1", "x"]), values_of(Spans)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(ANSWERS)
def test_whatever_agents_say_there_is_a_page(answers: list[tuple[str, Spans]]) -> None:
    for trace_id in {TRACE, *(one.trace_id for _, spans in answers for one in spans.spans)}:
        report = trace.trace(Target(trace_id=trace_id), trace_id, answers)
        assert trace.tables(report)
        assert json_text(report)
    assert len(linked(answers)) <= MOST_LINKED


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (TRACE, Target(trace_id=TRACE)),
        ("shop/web", Target(namespace="shop", name="web")),
        ("pod shop/web", Target(kind="pod", namespace="shop", name="web")),
        ("policy shop/web", Target(kind="policy", namespace="shop", name="web")),
        ("service shop/web", Target(kind="service", namespace="shop", name="web")),
        ("node n1", Target(kind="node", name="n1")),
        ("node dns", Target(kind="node", name="dns")),
        ("dns", Target(kind="dns")),
        ("route 10.1.0.0/24", Target(kind="route", name="10.1.0.0/24")),
        ("route fd00:1::/64 n1", Target(kind="route", name="fd00:1::/64", node="n1")),
        ("route", None),
        ("route 10.1.0.0/33", None),
        ("route 10.1.0.0/24 n1 n2", None),
        ("dns dns", None),
        ("node", None),
        ("node shop/web", None),
        ("", None),
        ("web", None),
        ("/web", None),
        ("shop/", None),
        ("a/b/c", None),
        (TRACE[1:], None),
        (str(ip_address("10.0.0.1")), None),
        ("service", None),
        ("service web", None),
        (f"service {TRACE}", None),
        ("Service shop/web", None),
        ("shop/web service", None),
        ("pod shop/web x", None),
    ],
)
def test_what_arguments_name(words: str, named: Target | None) -> None:
    assert target(*words.split()) == named
    assert named is None or named.text == words
