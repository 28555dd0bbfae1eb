"""The few JetStream requests that the chassis needs, each with a deadline and our errors.

Only subjects that ``chassis.bus.accounts`` grants are used: STREAM.INFO, STREAM.MSG.GET or DIRECT.GET, CONSUMER.CREATE,
MSG.NEXT and DELETE, and for the maker of buckets STREAM.CREATE and UPDATE. Source: the JSON API of nats-server
(https://docs.nats.io/reference/reference-protocols/nats_api_reference, ADR-8 for KV).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from chassis.bus.connection import Connection
from chassis.faults import Missing, Refused, Unavailable
from proto.subjects import JETSTREAM

EXPECTED_STREAM = "Nats-Expected-Stream"
DEADLINE = 5.0
"""Seconds for one request of this module, unless the caller says otherwise."""

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
MESSAGE_NOT_FOUND = 10037
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
STREAM_EXISTS = 10058
STORE_FAILED = 10077
NO_SUITABLE_PEERS = 10005
"""So many servers as a stream wants copies are not there: of a cluster that starts, not yet."""


class JetStreamRefused(Refused):
    """The server answered with an error of its API; ``number`` is its err_code."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__("jetstream", text)
        self.number = number


class Full(Unavailable):
    """The bucket has no room for this value (``max_bytes``, discard new). Smaller ones it may take, and deletes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """One life of a stream: ``created`` differs when it was made again, ``last`` goes back when it was restored."""

    created: str
    last: int
    messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The last message of a subject; ``body`` is None for a tombstone. See :func:`authentic` for ``forged``."""

    sequence: int
    body: bytes | None
    forged: bool = False


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct):
    last_seq: int = 0
    messages: int = 0


class _Message(msgspec.Struct):
    seq: int
    data: str = ""
    hdrs: str = ""


class _Answer(msgspec.Struct):
    error: _Error | None = None
    created: str = ""
    config: dict[str, Any] = {}
    state: _State | None = None
    message: _Message | None = None
    num_pending: int = 0
    seq: int = 0


_answer = msgspec.json.Decoder(_Answer)


def parse_answer(body: bytes) -> _Answer:
    """Answer of the API; raises :class:`Missing`, :class:`JetStreamRefused` or :class:`Full`.

    :class:`Unavailable` when it is none.
    """
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"an answer of JetStream cannot be read: {error}") from error
    if answer.error is None:
        return answer
    if answer.error.err_code == STREAM_NOT_FOUND:
        raise Missing(answer.error.description)
    if answer.error.err_code == STORE_FAILED and answer.error.description.startswith("maximum"):
        raise Full(answer.error.description)
    if answer.error.code == 503 or answer.error.err_code == NO_SUITABLE_PEERS:
        raise Unavailable(answer.error.description)
    raise JetStreamRefused(answer.error.err_code, answer.error.description)


async def api(connection: Connection, subject: str, request: object = None, timeout: float = DEADLINE) -> _Answer:
    """One request of the JSON API."""
    body = b"" if request is None else msgspec.json.encode(request)
    message = await connection.call(f"{JETSTREAM}.{subject}", body, timeout=timeout)
    return parse_answer(message.data)


async def stream_state(connection: Connection, stream: str) -> StreamState:
    """Life and last sequence of a stream; raises :class:`Missing` when there is none."""
    answer = await api(connection, f"STREAM.INFO.{stream}")
    state = answer.state or _State()
    return StreamState(created=answer.created, last=state.last_seq, messages=state.messages)


async def stream_config(connection: Connection, stream: str) -> dict[str, Any]:
    """Configuration of a stream, as the server has it; raises :class:`Missing` when there is none."""
    return (await api(connection, f"STREAM.INFO.{stream}")).config


async def create_consumer(
    connection: Connection, stream: str, name: str, filters: tuple[str, ...], config: dict[str, object]
) -> int:
    """Make a consumer of a name that is new; returns how many messages it has to bring.

    With one filter the filter stands in the API's subject, so that an allow-list can confine it.
    """
    subject = f"CONSUMER.CREATE.{stream}.{name}"
    whole = {"name": name, **config}
    if len(filters) == 1:
        subject += f".{filters[0]}"
        whole["filter_subject"] = filters[0]
    elif filters:
        whole["filter_subjects"] = list(filters)
    return (await api(connection, subject, {"stream_name": stream, "config": whole, "action": "create"})).num_pending


async def pull(connection: Connection, stream: str, name: str, inbox: str, request: dict[str, object]) -> None:
    """Ask a consumer for messages, which come to ``inbox`` (ADR-13); waits for none. Raises :class:`Unavailable`."""
    body = msgspec.json.encode(request)
    await connection.send(f"{JETSTREAM}.CONSUMER.MSG.NEXT.{stream}.{name}", body, reply=inbox)


async def delete_consumer(connection: Connection, stream: str, name: str) -> None:
    """Remove a consumer; one that is gone already is fine."""
    try:
        await api(connection, f"CONSUMER.DELETE.{stream}.{name}")
    except Missing:
        return
    except JetStreamRefused as refused:
        if refused.number != CONSUMER_NOT_FOUND:
            raise


async def last_from_leader(connection: Connection, stream: str, subject: str, timeout: float) -> Stored | None:
    """Last message of a subject as the stream's leader has it: what was acknowledged is seen."""
    try:
        answer = await api(connection, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout)
    except JetStreamRefused as refused:
        if refused.number == MESSAGE_NOT_FOUND:
            return None
        raise
    message = answer.message
    if message is None:
        raise Unavailable("an answer of JetStream holds no message")
    headers = _headers(base64.b64decode(message.hdrs))
    return Stored(
        sequence=message.seq,
        body=None if is_tombstone(headers) else base64.b64decode(message.data),
        forged=not authentic(headers, stream),
    )


async def last_from_replica(connection: Connection, stream: str, subject: str, timeout: float) -> Stored | None:
    """Last message of a subject as any replica has it (may be old): all that a confined role is allowed."""
    message = await connection.call(f"{JETSTREAM}.DIRECT.GET.{stream}.{subject}", b"", timeout=timeout)
    headers = message.headers or {}
    if headers.get("Status") == "404":
        return None
    if "Nats-Sequence" not in headers:
        raise Unavailable(f"direct read of {subject}: {headers.get('Description', 'no sequence in the answer')}")
    return Stored(
        sequence=int(headers["Nats-Sequence"]),
        body=None if is_tombstone(headers) else message.data,
        forged=headers.get(EXPECTED_STREAM) != stream,
    )


def too_many(headers: Mapping[str, str] | None) -> bool:
    """True for the answer to a write that came while too many waited before the stream: it was dropped."""
    return headers is not None and headers.get("Status") == "429"


def is_tombstone(headers: Mapping[str, str]) -> bool:
    """True for the mark that a key was deleted (KV-Operation DEL or PURGE, or a marker the server made)."""
    return "KV-Operation" in headers or "Nats-Marker-Reason" in headers


def authentic(headers: Mapping[str, str], stream: str) -> bool:
    """False for a message that reached the stream as somebody's *reply*.

    The server checks where a client publishes, not where it has the answer sent: a direct read of one's own key whose
    reply subject is another's key would write there (tried on 2.15.1). Our writes name their stream, which the server
    holds against the stream they reach; its own answers add Nats-Subject. So a value without the one, or with the
    other, was not written by who may write the key.
    """
    return headers.get(EXPECTED_STREAM) == stream and "Nats-Subject" not in headers


def _headers(raw: bytes) -> dict[str, str]:
    lines = raw.decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}
