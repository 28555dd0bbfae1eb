"""The ring of spans: bounded in number and size, whoever makes many loses its own, and what is asked for is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.telemetry.ring import MOST_ATTRIBUTES, MOST_EVENTS, MOST_TEXT, SLOT_BYTES, KeptSpan, SpanRing
from chassis.telemetry.traces import TOGETHER, Telemetry
from proto.codec import MAX_VALUE, encode
from proto.traces import MAX_SPANS, SpansRequest

OWNERS = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), max_size=80)


def kept(span_name: str = "x", /, trace_id: str = "ab" * 16, **attributes: Any) -> KeptSpan:
    return KeptSpan(
        trace_id=trace_id, span_id="cd" * 8, parent_id="", name=span_name, attributes=attributes, links=(), waited=0.0
    )


@given(OWNERS, st.integers(1, 12))
def test_there_are_never_more_and_the_largest_owner_makes_room(owners: list[str], most: int) -> None:
    ring = SpanRing(most)
    sizes: Counter[str] = Counter()
    for number, owner in enumerate(owners):
        full, before = len(ring) >= most, dict(sizes)
        ring.put(owner, kept(f"{owner}-{number}", owner=owner))
        sizes = (
            Counter({one: len(ring.find(SpansRequest(attributes=(("owner", one),))).spans) for one in {*owners}})
            + Counter()
        )
        assert sizes.total() == len(ring) == min(number + 1, most)
        if full:
            (loser,) = [one for one in before if sizes[one] < before[one] + (one == owner)] or [owner]
            assert before[loser] == max(before.values())


def test_one_who_makes_many_pushes_out_its_own_alone() -> None:
    ring = SpanRing(100)
    for number in range(30):
        ring.put("quiet", kept(f"quiet-{number}"))
    for number in range(10_000):
        ring.put("loud", kept(f"loud-{number}", trace_id="ee" * 16))
    names = [span.name for span in ring.find(SpansRequest(trace_id="ab" * 16)).spans]
    assert names == [f"quiet-{number}" for number in range(30)]
    loud = [span.name for span in ring.find(SpansRequest(trace_id="ee" * 16)).spans]
    assert loud == [f"loud-{number}" for number in range(9_930, 10_000)]


def test_who_makes_large_spans_loses_its_own_alone() -> None:
    """A span has a slot for each 768 bytes that it has begun, and all of them together are bounded."""
    ring = SpanRing(200)
    for number in range(60):
        span = kept(f"quiet-{number}")
        ring.put("quiet", span)
        span.end(None)
        ring.settle("quiet", span)
    attributes = {f"a{number}": "v" * MOST_TEXT for number in range(MOST_ATTRIBUTES)}
    slots = 0
    for number in range(300):
        span = kept(f"large-{number}", trace_id="ee" * 16, **attributes)
        ring.put("loud", span)
        span.end(None)
        ring.settle("loud", span)
        slots = span.size // SLOT_BYTES + 1
        assert span.slots == slots
    assert slots == 6
    small, large = (ring.find(SpansRequest(trace_id=trace_id)) for trace_id in ("ab" * 16, "ee" * 16))
    assert [span.name for span in small.spans] == [f"quiet-{number}" for number in range(60)]
    assert [span.name for span in large.spans][-1] == "large-299"
    assert len(large.spans) + large.left_out == (200 - 60) // slots
    assert len(ring) == 60 + (200 - 60) // slots


def test_a_span_that_ended_late_is_not_counted_again() -> None:
    ring = SpanRing(2)
    first = kept("first")
    ring.put("a", first)
    for number in range(4):
        ring.put("a", kept(f"later-{number}"))
    first.set({f"a{number}": "v" * MOST_TEXT for number in range(MOST_ATTRIBUTES)})
    first.end(None)
    ring.settle("a", first)
    first.event("too late", {})
    first.end(None)
    assert [span.name for span in ring.find(SpansRequest(trace_id="ab" * 16)).spans] == ["later-2", "later-3"]
    ring.put("a", kept("last"))
    assert len(ring) == 2


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(), st.booleans()), max_size=6))
def test_what_a_span_says_is_the_same_after_its_end(attributes: dict[str, Any]) -> None:
    span = kept("x", **attributes)
    span.event("e", attributes)
    before = span.published()
    span.end(None)
    after = span.published()
    assert (after.attributes, after.name, after.start_ns) == (before.attributes, before.name, before.start_ns)
    assert [event.attributes for event in after.events] == [event.attributes for event in before.events]
    ring = SpanRing()
    ring.put("", span)
    for name, value in before.attributes:
        assert ring.find(SpansRequest(attributes=((name, value),))).spans == (after,)


def test_a_span_keeps_no_more_than_its_bounds() -> None:
    span = kept("n" * 1000, **{f"a{number}": "v" * 1000 for number in range(100)})
    for number in range(100):
        span.event(f"e{number}", {f"b{other}": "w" * 1000 for other in range(100)})
    span.end(ValueError("x" * 1000))
    published = span.published()
    assert len(published.name) == len(published.error) == MOST_TEXT
    assert len(published.attributes) == MOST_ATTRIBUTES
    assert len(published.events) == MOST_EVENTS
    assert all(len(value) == MOST_TEXT and value.endswith("…") for _, value in published.attributes)
    assert all(len(event.attributes) == MOST_ATTRIBUTES for event in published.events)


@pytest.mark.parametrize("make", [kept, lambda: kept(**{f"a{n}": "v" * 256 for n in range(16)})])
def test_an_answer_fits_into_a_message_and_says_what_it_leaves_out(make: Callable[[], KeptSpan]) -> None:
    ring = SpanRing(MAX_SPANS * 2)
    for _ in range(MAX_SPANS * 2):
        span = make()
        for number in range(MOST_EVENTS):
            span.event("e", {f"b{other}": "\u00e9" * 256 for other in range(3)} if number else {})
        ring.put("", span)
    found = ring.find(SpansRequest(trace_id="ab" * 16))
    assert 0 < len(found.spans) <= MAX_SPANS
    assert found.left_out == MAX_SPANS * 2 - len(found.spans)
    assert len(encode(found)) < MAX_VALUE / 2


def test_spans_are_found_by_trace_or_by_all_of_the_attributes() -> None:
    telemetry = Telemetry("cluster", "a", {})
    shop: dict[str, Any] = {"k8s__namespace__name": "shop"}
    with telemetry.span("one", **shop, k8s__object__name="web", count=3) as one, telemetry.span("inner"):
        pass
    with telemetry.span("two", **shop, k8s__object__name="db", fine=True):
        pass

    def names(**asked: object) -> list[str]:
        return [span.name for span in telemetry.ring.find(SpansRequest(**asked)).spans]  # type: ignore[arg-type]

    assert names(trace_id=one.trace_id) == ["one", "inner"]
    assert names(attributes=(("k8s.namespace.name", "shop"),)) == ["one", "two"]
    assert names(attributes=(("k8s.namespace.name", "shop"), ("k8s.object.name", "db"))) == ["two"]
    assert names(attributes=(("count", "3"),)) == ["one"]
    assert names(attributes=(("fine", "true"),)) == ["two"]
    assert names() == []


def test_a_span_is_found_while_it_goes_on_and_says_how_it_ended() -> None:
    telemetry = Telemetry("dataplane", "a", {})
    with suppress(ValueError), telemetry.span("work", waited=2.5, pod="shop/web") as span:
        span.event("begun", reason="a test")
        (now,) = telemetry.ring.find(SpansRequest(trace_id=span.trace_id)).spans
        assert (now.duration_us, now.error) == (-1, "")
        raise ValueError("the map is full")
    (after,) = telemetry.ring.find(SpansRequest(trace_id=span.trace_id)).spans
    assert after.duration_us >= 2_500_000
    assert after.start_ns == now.start_ns
    assert after.error == "ValueError: the map is full"
    (event,) = after.events
    assert (event.name, event.attributes) == ("begun", (("reason", "a test"),))
    assert event.after_us >= 2_500_000


def test_a_child_belongs_to_the_owner_of_its_parent() -> None:
    telemetry = Telemetry("dataplane", "a", {})
    telemetry.ring = SpanRing(3)
    with telemetry.span("add", k8s__namespace__name="loud"):
        for _ in range(50):
            with telemetry.span("ask"):
                pass
    with telemetry.span("add", k8s__namespace__name="quiet") as quiet:
        pass
    for _ in range(50):
        with telemetry.span("add", k8s__namespace__name="loud"):
            pass
    assert telemetry.ring.find(SpansRequest(trace_id=quiet.trace_id)).spans


def test_work_for_many_changes_is_in_each_trace_and_linked_with_the_first() -> None:
    telemetry = Telemetry("policy", "a", {})
    parents = [f"00-{number:032x}-{'cd' * 8}-01" for number in range(1, TOGETHER + 9)]
    with telemetry.together("compile", [parents[0], *parents]) as main:
        assert main is not None
        assert main.trace_id == parents[0][3:35]
        with telemetry.span("inner") as inner:
            assert inner.trace_id == main.trace_id
    for number, parent in enumerate(parents):
        found = telemetry.ring.find(SpansRequest(trace_id=parent[3:35])).spans
        links = [span.links for span in found if span.name == "compile"]
        assert links == ([()] if number == 0 else [(main.traceparent,)] if number < TOGETHER else [])
    with telemetry.together("compile", []) as none:
        assert none is None
    with telemetry.together("decide", [], alone=True, why="a setting") as only, telemetry.span("inner") as inner:
        assert only is not None
        assert inner.trace_id == only.trace_id


def test_work_for_many_changes_says_in_each_trace_what_that_one_is_about() -> None:
    telemetry = Telemetry("dataplane", "a", {})
    parents = {f"00-{number:032x}-{'cd' * 8}-01": {"k8s__namespace__name": f"n{number}"} for number in (1, 2)}
    with telemetry.together("apply", parents, k8s__node__name="n"):
        pass
    for parent, about in parents.items():
        (span,) = telemetry.ring.find(SpansRequest(trace_id=parent[3:35])).spans
        assert dict(span.attributes) == {"k8s.node.name": "n", "k8s.namespace.name": about["k8s__namespace__name"]}


def test_text_that_is_no_text_for_the_wire_is_answered_all_the_same() -> None:
    telemetry = Telemetry("cluster", "a", {})
    with telemetry.span("x", text="\ud800", value=["\udfff"]) as span:
        pass
    found = telemetry.ring.find(SpansRequest(trace_id=span.trace_id))
    assert encode(found)
