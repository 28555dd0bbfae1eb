"""What a server keeps of connections that are over has a bound: agents come and go for as long as it runs."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from chassis.bus.nats_config import MAX_CLOSED, Server
from tests.natsd import NatsServer, free_port

MORE = 10


@pytest.fixture
def monitored(tmp_path: Path) -> Iterator[tuple[NatsServer, int]]:
    """A server, and the port of its monitor."""
    server = NatsServer(tmp_path / "nats")
    port = free_port()
    server.configure(Server(store_dir=server.folder / "store", port=server.port, monitor_port=port))
    server.start()
    try:
        yield server, port
    finally:
        server.close()


async def test_a_server_forgets_old_connections(monitored: tuple[NatsServer, int]) -> None:
    server, port = monitored
    for _ in range(MAX_CLOSED + MORE):
        client = await nats.connect(server.url, **server.sign_in("cluster"))
        await client.close()
    asked = f"http://127.0.0.1:{port}/connz?state=closed&limit={2 * MAX_CLOSED}"
    with urllib.request.urlopen(asked, timeout=30) as page:
        reported = json.loads(page.read())["connections"]
    assert MAX_CLOSED - MORE <= len(reported) <= MAX_CLOSED
