"""Making the buckets, for the one role that may: each a file stream of one value per key, refusing when it is full.

Idempotent: a bucket that is there stays, with the bounds that the table says; one without an epoch key gets one. A
bucket that is made anew gets a new epoch, which is how every reader learns that it must list again. An epoch key that
cannot be read is written again: as the epoch that was known, so that nobody lists again; where it is not known, as a
new one.
"""

from __future__ import annotations

import uuid

from chassis.bus import jetstream
from chassis.bus.connection import Connection
from chassis.bus.entry import Entry
from chassis.bus.kv import KV, Conflict
from chassis.faults import Bug, Missing, Newer
from proto.codec import UnknownVersion
from proto.subjects import Bucket
from proto.sync import EPOCH_KEY, Epoch


async def make_bucket(connection: Connection, kv: KV, replicas: int, known: str = "") -> str:
    """Make ``kv``'s bucket unless it is there; returns its epoch. Raises Unavailable, Refused, Newer.

    ``known`` is the epoch that this bucket had when it was looked at last.
    """
    stream = kv.bucket.stream
    try:
        await _bound(connection, stream, await jetstream.stream_config(connection, stream), _bounds(kv.bucket))
    except Missing:
        await _create(connection, stream, kv.bucket, replicas)
        known = ""
    for _ in range(3):
        found = await kv.look(EPOCH_KEY, Epoch)
        if isinstance(found, Entry):
            return found.value.epoch
        if found is None:
            epoch = Epoch(epoch=uuid.uuid4().hex)
            written = await kv.create(EPOCH_KEY, epoch)
        elif isinstance(found.why, UnknownVersion):
            raise Newer(f"the epoch of {kv.bucket.name}: {found.why}; leave the buckets to the newer release")
        else:
            epoch = Epoch(epoch=known or uuid.uuid4().hex)
            written = await kv.update(EPOCH_KEY, epoch, found.revision)
        if not isinstance(written, Conflict):
            return epoch.epoch
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


async def _bound(connection: Connection, stream: str, config: dict[str, object], bounds: dict[str, object]) -> None:
    """Give a stream that is there the bounds it lacks; what it holds already stays."""
    if any(config.get(name) != wanted for name, wanted in bounds.items()):
        await jetstream.api(connection, f"STREAM.UPDATE.{stream}", {**config, **bounds}, timeout=10)


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
