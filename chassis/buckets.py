"""Making the buckets, for the one role that may: each a file stream of one value per key, refusing when it is full.

Idempotent: a bucket that is there is left alone; one without an epoch key gets one. A bucket that is made anew gets a
new epoch, which is how every reader learns that it must list again.
"""

from __future__ import annotations

import uuid

from chassis import jetstream
from chassis.connection import Connection
from chassis.faults import Bug, Missing
from chassis.kv import KV, Conflict
from proto.codec import MAX_VALUE
from proto.subjects import Bucket
from proto.sync import EPOCH_KEY, Epoch


async def make_bucket(connection: Connection, kv: KV, replicas: int) -> str:
    """Make ``kv``'s bucket unless it is there; returns its epoch. Raises Unavailable, Refused."""
    stream = jetstream.kv_stream(kv.bucket.on_server)
    try:
        await jetstream.stream_state(connection, stream)
    except Missing:
        await _create(connection, stream, kv.bucket, replicas)
    for _ in range(3):
        entry = await kv.get(EPOCH_KEY, Epoch)
        if entry is not None:
            return entry.value.epoch
        epoch = Epoch(epoch=uuid.uuid4().hex)
        if not isinstance(await kv.create(EPOCH_KEY, epoch), Conflict):
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
