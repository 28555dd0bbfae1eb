"""Hear which pods come and go: `python consumer.py nats://127.0.0.1:4222 cli.seed` (nats-py[nkeys] and msgspec)."""

import asyncio
import sys
from pathlib import Path

import msgspec
import nats


async def main(url: str, seed: str) -> None:
    """Print a line for each pod whose endpoint comes or goes: what, node, namespace, name, addresses, trace."""
    bus = await nats.connect(url, nkeys_seed_str=seed, inbox_prefix=b"_INBOX.cli")
    events = await bus.subscribe("airmesh.v1.events.dataplane.*.*")
    await bus.flush()
    print("listening", file=sys.stderr, flush=True)
    async for message in events.messages:
        what, node = message.subject.split(".")[-2:]
        body = msgspec.msgpack.decode(message.data)  # docs/asyncapi.json; fields that you do not know may come later
        trace = (message.headers or {}).get("traceparent", "")
        print(what, node, body.get("namespace"), body.get("pod"), *body.get("addresses", ()), trace, flush=True)


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text().strip()))
