"""Making the buckets, for the one role that may: each a file stream of one value per key, refusing when it is full.

Idempotent: a bucket that is there stays, with the bounds that the table says; one without an epoch key gets one. A
bucket that is made anew gets a new epoch, which is how every reader learns that it must list again. An epoch key that
cannot be read is written again: as the epoch that was known, so that nobody lists again; where it is not known, as a
new one.

A bucket gets more copies when there are more servers, and never fewer by itself: who forgets the setting would lose
them. Where the servers cannot hold as many, it stays in use with those that it has.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from chassis.bus import jetstream
from chassis.bus.connection import Connection
from chassis.bus.entry import Entry
from chassis.bus.kv import KV, Conflict
from chassis.faults import Bug, Missing, Newer
from proto.codec import UnknownVersion
from proto.subjects import Bucket
from proto.sync import EPOCH_KEY, Epoch


@dataclass(frozen=True, slots=True)
class Made:
    """A bucket that is there."""

    epoch: str
    lacking: str = ""
    """Why it has fewer copies than it should; empty when it has them."""


async def make_bucket(connection: Connection, kv: KV, replicas: int, known: str = "") -> Made:
    """Make ``kv``'s bucket unless it is there. Raises Unavailable, Refused, Newer.

    ``known`` is the epoch that this bucket had when it was looked at last.
    """
    stream, lacking = kv.bucket.stream, ""
    try:
        config = await jetstream.stream_config(connection, stream)
        lacking = await _bound(connection, stream, config, _bounds(kv.bucket), replicas)
    except Missing:
        await _create(connection, stream, kv.bucket, replicas)
        known = ""
    for _ in range(3):
        found = await kv.look(EPOCH_KEY, Epoch)
        if isinstance(found, Entry):
            return Made(found.value.epoch, lacking)
        if found is None:
            epoch = Epoch(epoch=uuid.uuid4().hex)
            written = await kv.create(EPOCH_KEY, epoch)
        elif isinstance(found.why, UnknownVersion):
            raise Newer(f"the epoch of {kv.bucket.name}: {found.why}; leave the buckets to the newer release")
        else:
            epoch = Epoch(epoch=known or uuid.uuid4().hex)
            written = await kv.update(EPOCH_KEY, epoch, found.revision)
        if not isinstance(written, Conflict):
            return Made(epoch.epoch, lacking)
    raise Bug(f"the epoch key of {kv.bucket.name} is neither there nor can it be made")


def _bounds(bucket: Bucket) -> dict[str, object]:
    """What keeps one writer from taking the room of the others, in the server's words.

    The window for duplicates is the shortest there is: nobody numbers messages, and the server remembers each number.
    """
    bounds: dict[str, object] = {
        "max_bytes": bucket.max_bytes,
        "max_msg_size": bucket.max_value,
        "duplicate_window": 100_000_000,
    }
    if bucket.renamed is not None:
        bounds["subject_transform"] = {"src": bucket.renamed[0], "dest": bucket.renamed[1]}
    return bounds


async def _bound(
    connection: Connection, stream: str, config: dict[str, Any], bounds: dict[str, object], replicas: int
) -> str:
    """Give a stream that is there the bounds and copies it lacks; what it holds already stays.

    Returns why it cannot have as many copies; empty when it has them.
    """
    if any(config.get(name) != wanted for name, wanted in bounds.items()):
        config = {**config, **bounds}
        await jetstream.api(connection, f"STREAM.UPDATE.{stream}", config, timeout=10)
    has = config.get("num_replicas", 1)
    if has >= replicas:
        return ""
    try:
        await jetstream.api(connection, f"STREAM.UPDATE.{stream}", {**config, "num_replicas": replicas}, timeout=10)
    except jetstream.JetStreamRefused as refused:
        return f"{stream} has {has} of {replicas} copies: {refused}"
    return ""


async def _create(connection: Connection, stream: str, bucket: Bucket, replicas: int) -> None:
    config: dict[str, object] = {
        "name": stream,
        "description": bucket.purpose,
        "subjects": [bucket.subject(">")],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_consumers": -1,
        "max_age": 0,
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "allow_rollup_hdrs": False,
        **_bounds(bucket),
    }
    try:
        await jetstream.api(connection, f"STREAM.CREATE.{stream}", config, timeout=10)
    except jetstream.JetStreamRefused as refused:
        if refused.number != jetstream.STREAM_EXISTS:
            raise
