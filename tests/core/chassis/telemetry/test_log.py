"""A log line is one line of JSON, whatever is in it, and writing one never stops whoever writes it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from enum import IntEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.secret import Secret
from chassis.telemetry.log import MAX_COMPLAINTS, MAX_DEPTH, MAX_VALUE, REPEAT_SECONDS, Log, bridge_libraries

ANY_TEXT = st.text(st.characters(), max_size=40)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.binary(max_size=10)
    | st.ip_addresses()
    | st.builds(ValueError, ANY_TEXT),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(ANY_TEXT | st.integers(), inner, max_size=3)
        | st.lists(st.integers(), max_size=3).map(frozenset)
    ),
    max_leaves=12,
)


def line_of(**values: object) -> dict[str, Any]:
    """What is written of these values: exactly one line, of valid UTF-8."""
    stream = io.StringIO()
    Log("ipam", stream=stream).info("happened", **values)
    text = stream.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    found: dict[str, Any] = json.loads(text.encode())
    return found


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["pod", "error", "rules"]), VALUES, max_size=3))
def test_any_value_makes_one_line(values: dict[str, object]) -> None:
    found = line_of(**values)
    assert found.keys() == {"time", "level", "service", "event", *values}


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class BrokenError(Exception):
    def __repr__(self) -> str:
        raise KeyError("no text either")


class Number(IntEnum):
    SEVEN = 7


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        (True, True),
        (Number.SEVEN, 7),
        (2**64, 2**64),
        (float("nan"), None),
        (float("inf"), None),
        ("a\nb\r\x1b[2J", "a\nb\r\x1b[2J"),
        ("\ud800x", "\\ud800x"),
        (b"\xff", "b'\\xff'"),
        (Path("/var/lib"), "/var/lib"),
        (ip_address("fd00::1"), "fd00::1"),
        (Secret("hush"), "***"),
        (ValueError("no"), "ValueError('no')"),
        (Broken(), "a Broken without text (RuntimeError)"),
        (BrokenError(), "a BrokenError without text (KeyError)"),
        ({"\ud800": 1, 2: Secret("hush")}, {"\\ud800": 1, "2": "***"}),
        ((1, ("a", {"b": None})), [1, ["a", {"b": None}]]),
        ("", ""),
    ],
)
def test_what_is_written_of_a_value(value: object, written: object) -> None:
    assert line_of(value=value)["value"] == written


@pytest.mark.parametrize("length", [MAX_VALUE - 1, MAX_VALUE, MAX_VALUE + 1])
def test_a_text_is_cut_at_its_bound(length: int) -> None:
    written = line_of(value="x" * length)["value"]
    assert written == ("x" * length if length <= MAX_VALUE else "x" * MAX_VALUE + "…")


def test_many_items_are_cut_and_so_is_depth() -> None:
    deep: object = "bottom"
    for _ in range(5000):
        deep = [deep]
    found = line_of(deep=deep, many=list(range(1000)), keys=dict.fromkeys(range(1000), 0))
    level, levels = found["deep"], 0
    while isinstance(level, list):
        (level,), levels = level, levels + 1
    assert (level, levels) == ("…", MAX_DEPTH)
    assert (len(found["many"]), len(found["keys"])) == (100, 100)


@pytest.mark.parametrize(
    ("threshold", "heard"),
    [
        ("debug", "debug info warning error"),
        ("info", "info warning error"),
        ("warning", "warning error"),
        ("error", "error"),
        ("fatal", ""),
    ],
)
def test_less_than_the_threshold_is_not_written(threshold: str, heard: str) -> None:
    stream = io.StringIO()
    for log in (Log("ipam", threshold, stream=stream), Log("ipam", threshold, stream=stream).bind(node="n1")):
        for level in ("debug", "info", "warning", "error"):
            getattr(log, level)("happened")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == heard.split() * 2


def test_a_threshold_that_is_set_is_of_that_log_alone() -> None:
    stream = io.StringIO()
    plain = Log("ipam", stream=stream)
    bound = plain.bind()
    bound.threshold = "error"
    bound.warning("one")
    plain.info("two")
    bound.threshold = "debug"
    bound.debug("three")
    plain.debug("four")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["two", "three"]


def test_bound_values_are_on_each_line_and_yield_to_the_lines_own() -> None:
    stream = io.StringIO()
    plain = Log("ipam", stream=stream, copy="a")
    bound = plain.bind(node="n1").bind(shard=2)
    bound.info("one")
    bound.info("two", node="n2")
    plain.info("three")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line.get("copy"), line.get("node"), line.get("shard")) for line in lines] == [
        ("a", "n1", 2),
        ("a", "n2", 2),
        ("a", None, None),
    ]


@pytest.fixture
def library() -> Iterator[tuple[logging.Handler, io.StringIO]]:
    """The bridge of the standard tree, and what it writes."""
    root, stream = logging.getLogger(), io.StringIO()
    before = (list(root.handlers), root.level)
    bridge_libraries(Log("ipam", stream=stream))
    yield root.handlers[0], stream
    root.handlers[:], root.level = before[0], before[1]


def record(message: object, *values: object, level: int = logging.WARNING, at: float = 0.0, **more: Any) -> Any:
    made = logging.makeLogRecord({"name": "nats", "msg": message, "args": values, "levelno": level, **more})
    made.created = at
    return made


@pytest.mark.parametrize(
    ("message", "values", "said"),
    [
        ("lost %s", ("x",), "lost x"),
        ("lost %d", ("x",), "lost %d"),
        ("lost %s %s", ("x",), "lost %s %s"),
        ("lost", ("x",), "lost"),
        ("100 %", (), "100 %"),
        (ValueError("lost"), (), "lost"),
        ("a\nb", (), "a\nb"),
    ],
)
def test_what_a_library_says_is_reported_also_where_its_values_do_not_fit(
    library: tuple[logging.Handler, io.StringIO], message: object, values: tuple[object, ...], said: str
) -> None:
    handler, stream = library
    handler.handle(record(message, *values))
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == said


def test_a_librarys_error_comes_with_its_exception(library: tuple[logging.Handler, io.StringIO]) -> None:
    handler, stream = library
    error = OSError(5, "no disk")
    handler.handle(record("failed", level=logging.CRITICAL, exc_info=(OSError, error, None)))
    line = json.loads(stream.getvalue())
    assert (line["level"], line["library"], line["error"]) == ("error", "nats", repr(error))


def test_a_complaint_is_counted_until_its_minute_is_over(library: tuple[logging.Handler, io.StringIO]) -> None:
    handler, stream = library
    for at in (0.0, 0.1, REPEAT_SECONDS - 0.1, REPEAT_SECONDS, REPEAT_SECONDS + 1, 2 * REPEAT_SECONDS):
        handler.handle(record("slow", at=at))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("repeated") for line in lines] == [None, 2, 1]


def test_complaints_that_never_repeat_are_forgotten(library: tuple[logging.Handler, io.StringIO]) -> None:
    handler, stream = library
    for number in range(3 * MAX_COMPLAINTS):
        handler.handle(record(f"message {number}"))
    assert stream.getvalue().count("\n") == 3 * MAX_COMPLAINTS
    assert len(handler._said) <= MAX_COMPLAINTS  # type: ignore[attr-defined]
