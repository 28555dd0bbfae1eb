"""A pod whose program does not accept, in a network namespace of a real kernel: its queue is read and judged."""

from __future__ import annotations

import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from linux.netns import inside, netns_cookie, open_netns
from services.dataplane.core.doctor.backlogs import BACKLOG_FULL, check
from services.dataplane.doctor.backlogs import look

pytestmark = pytest.mark.privileged


@pytest.fixture
def pod() -> Iterator[int]:
    """A descriptor of a namespace with a loopback."""
    name = f"am-b{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=20)
        descriptor = open_netns(f"/run/netns/{name}")
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)


def test_a_backlog_that_overflows_is_seen_in_the_pods_namespace(pod: int) -> None:
    with ExitStack() as opened:
        with inside(pod):
            cookie = netns_cookie()
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
            port = listener.getsockname()[1]
            well = look({cookie: "shop/web"})
            for _ in range(2):
                opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        before = look({cookie: "shop/web"})
        with inside(pod):
            late = opened.enter_context(socket.socket())
            late.setblocking(False)
            assert late.connect_ex(("127.0.0.1", port)) != 0
        now = look({cookie: "shop/web", cookie + 1: "gone/pod"})
    assert well["shop/web"].queues[port] == (0, 1)
    assert list(check("n1", well, before)) == []
    (found,) = check("n1", before, now)
    assert found.code == BACKLOG_FULL
    assert f"port {port}: 2 connections wait, the backlog is 1" in found.observed[0].text
    assert now["shop/web"].overflows > before["shop/web"].overflows
