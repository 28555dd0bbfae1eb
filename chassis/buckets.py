"""Making the buckets, for the one role that may: each a file stream of one value per key, refusing when it is full.

Idempotent: a bucket that is there is left alone; one without an epoch key gets one. A bucket that is made anew gets a
new epoch, which is how every reader learns that it must list again. An epoch key that cannot be read is written again:
as the epoch that was known, so that nobody lists again; where it is not known, as a new one.
"""

from __future__ import annotations

import uuid

from chassis import jetstream
from chassis.connection import Connection
from chassis.entry import Entry
from chassis.faults import Bug, Missing, Newer
from chassis.kv import KV, Conflict
from proto.codec import MAX_VALUE, UnknownVersion
from proto.subjects import Bucket
from proto.sync import EPOCH_KEY, Epoch


async def make_bucket(connection: Connection, kv: KV, replicas: int, known: str = "") -> str:
    """Make ``kv``'s bucket unless it is there; returns its epoch. Raises Unavailable, Refused, Newer.

    ``known`` is the epoch that this bucket had when it was looked at last.
    """
    stream = jetstream.kv_stream(kv.bucket.on_server)
    try:
        await jetstream.stream_state(connection, stream)
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


async def _create(connection: Connection, stream: str, bucket: Bucket, replicas: int) -> None:
    config: dict[str, object] = {
        "name": stream,
        "description": bucket.purpose,
        "subjects": [f"$KV.{bucket.on_server}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_bytes": bucket.max_bytes,
        "max_msg_size": MAX_VALUE + 1024,
        "max_msgs": -1,
        "max_consumers": -1,
        "max_age": 0,
        "num_replicas": replicas,
        "duplicate_window": 120_000_000_000,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "allow_rollup_hdrs": False,
    }
    try:
        await jetstream.api(connection, f"STREAM.CREATE.{stream}", config, timeout=10)
    except jetstream.JetStreamRefused as refused:
        if refused.number != jetstream.STREAM_EXISTS:
            raise
