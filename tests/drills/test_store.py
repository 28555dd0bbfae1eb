"""What the drills say a bucket holds is what a real server holds: keys that were deleted or emptied are none."""

from __future__ import annotations

from pathlib import Path

import nats
import nats.js.api
from nats.aio.client import Client

from tests.drills.store import Janitor
from tests.natsd import NatsServer


def test_keys_that_hold_nothing_are_not_counted(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    server.start()
    try:
        file = tmp_path / "operator"
        file.write_text(server.operator.reveal())
        made = Janitor(server.url, {"nkeys_seed": str(file)}, {})

        async def write(client: Client) -> None:
            stored = client.jetstream()
            for bucket in ("blocks_v1", "leases_v1"):
                config = nats.js.api.KeyValueConfig(bucket=bucket, storage=nats.js.api.StorageType.MEMORY)
                await stored.create_key_value(config)
            blocks = await stored.key_value("blocks_v1")
            for number in range(600):
                await blocks.put(f"n1.{number}", b"held")
            await blocks.delete("n1.7")
            await blocks.put("n1.8", b"")
            await blocks.purge("n1.9")

        made.run(write)
        held = {f"n1.{number}" for number in range(600)} - {"n1.7", "n1.8", "n1.9"}
        assert made.keys() == {"KV_blocks_v1": held, "KV_leases_v1": set()}
    finally:
        server.close()
