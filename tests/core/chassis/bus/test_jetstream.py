"""Answers of JetStream's API: each error is told as what it means for who asked, and nonsense as no answer at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.bus.jetstream import (
    CONSUMER_NOT_FOUND,
    EXPECTED_STREAM,
    NO_SUITABLE_PEERS,
    STORE_FAILED,
    STREAM_EXISTS,
    STREAM_NOT_FOUND,
    Full,
    JetStreamRefused,
    authentic,
    is_tombstone,
    parse_answer,
    too_many,
)
from chassis.faults import Missing, Refused, Retryable, Unavailable
from proto.subjects import BLOCKS, CLAIMS

STREAM = BLOCKS.stream


def failed(code: int, number: int, text: str) -> bytes:
    return json.dumps({"type": "x", "error": {"code": code, "err_code": number, "description": text}}).encode()


@pytest.mark.parametrize(
    ("body", "kind", "may_pass"),
    [
        (failed(404, STREAM_NOT_FOUND, "stream not found"), Missing, None),
        (failed(503, 10008, "JetStream system temporarily unavailable"), Unavailable, True),
        (failed(500, STORE_FAILED, "maximum bytes exceeded"), Full, True),
        (failed(500, STORE_FAILED, "maximum messages exceeded"), Full, True),
        (failed(500, STORE_FAILED, "no space left on device"), JetStreamRefused, False),
        (failed(400, NO_SUITABLE_PEERS, "no suitable peers for placement"), Unavailable, True),
        (failed(503, STORE_FAILED, "no space left on device"), Unavailable, True),
        (failed(404, CONSUMER_NOT_FOUND, "consumer not found"), JetStreamRefused, False),
        (failed(400, STREAM_EXISTS, "stream name already in use"), JetStreamRefused, False),
        (failed(0, 0, ""), JetStreamRefused, False),
        (b"", Unavailable, True),
        (b"not JSON", Unavailable, True),
        (b"[]", Unavailable, True),
        (b'{"error": 7}', Unavailable, True),
        (b'{"num_pending": "many"}', Unavailable, True),
        (b'{"message": {}}', Unavailable, True),
        (b'{"created": "\xff"}', Unavailable, True),
    ],
)
def test_an_error_is_what_it_means_for_who_asked(body: bytes, kind: type[Exception], may_pass: bool | None) -> None:
    with pytest.raises(kind) as raised:
        parse_answer(body)
    assert type(raised.value) is kind
    if may_pass is not None:
        assert isinstance(raised.value, Retryable) == may_pass


def test_a_refusal_keeps_the_servers_number_and_words() -> None:
    with pytest.raises(JetStreamRefused, match="consumer not found") as refused:
        parse_answer(failed(404, CONSUMER_NOT_FOUND, "consumer not found"))
    assert (refused.value.number, refused.value.code) == (CONSUMER_NOT_FOUND, "jetstream")


@pytest.mark.parametrize(
    ("reported", "field", "value"),
    [
        ({}, "seq", 0),
        ({"seq": 7, "stream": STREAM}, "seq", 7),
        ({"num_pending": 3, "of_a_later_release": [1]}, "num_pending", 3),
        ({"created": "2026-01-01T00:00:00Z", "error": None}, "created", "2026-01-01T00:00:00Z"),
        ({"config": {"max_bytes": 5}}, "config", {"max_bytes": 5}),
    ],
)
def test_an_answer_is_read_field_by_field(reported: dict[str, Any], field: str, value: object) -> None:
    assert getattr(parse_answer(json.dumps(reported).encode()), field) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["error", "created", "config", "state", "message", "num_pending", "seq", "other"])


@given(
    st.binary(max_size=60)
    | st.dictionaries(FIELDS, JSON, max_size=4).map(lambda reported: json.dumps(reported).encode())
)
def test_whatever_comes_is_an_answer_or_an_error_of_ours(body: bytes) -> None:
    try:
        parse_answer(body)
    except (Missing, Unavailable, Refused):
        return


@pytest.mark.parametrize(
    ("headers", "is_one"),
    [
        ({}, False),
        ({"KV-Operation": "DEL"}, True),
        ({"KV-Operation": "PURGE"}, True),
        ({"Nats-Marker-Reason": "MaxAge"}, True),
        ({EXPECTED_STREAM: STREAM}, False),
    ],
)
def test_a_tombstone_is_known_by_its_mark(headers: dict[str, str], is_one: bool) -> None:
    assert is_tombstone(headers) is is_one


@pytest.mark.parametrize(
    ("headers", "is_one"),
    [
        ({EXPECTED_STREAM: STREAM}, True),
        ({EXPECTED_STREAM: STREAM, "traceparent": "00-…"}, True),
        ({}, False),
        ({EXPECTED_STREAM: CLAIMS.stream}, False),
        ({EXPECTED_STREAM: STREAM + " "}, False),
        ({EXPECTED_STREAM.lower(): STREAM}, False),
        ({EXPECTED_STREAM: STREAM, "Nats-Subject": "$KV.blocks_v1.a"}, False),  # an answer of the server, steered here
        ({"Nats-Stream": STREAM, "Nats-Subject": "$KV.blocks_v1.a"}, False),
    ],
)
def test_a_value_is_accepted_when_its_writer_named_the_stream(headers: dict[str, str], is_one: bool) -> None:
    assert authentic(headers, STREAM) is is_one


@pytest.mark.parametrize(
    ("headers", "dropped"), [(None, False), ({}, False), ({"Status": "429"}, True), ({"Status": "503"}, False)]
)
def test_a_write_that_was_dropped_is_known(headers: dict[str, str] | None, dropped: bool) -> None:
    assert too_many(headers) is dropped
