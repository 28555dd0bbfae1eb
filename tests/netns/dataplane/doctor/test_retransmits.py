"""TCP counters of real sockets between two namespaces whose link loses packets."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from linux.netns import enter
from services.dataplane.core.doctor.retransmits import Sockets, by_node
from services.dataplane.doctor.retransmits import look

pytestmark = pytest.mark.privileged

OWN, PEER = "10.99.7.1", "10.99.7.2"
MESSAGES = 100


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def ends() -> Iterator[tuple[str, str]]:
    """Two namespaces, and a link between them."""
    names = tuple(f"am-loss{end}-{threading.get_native_id()}" for end in "ab")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "veth", "type", "veth", "peer", "name", "veth", "netns", names[1])
        for name, address in zip(names, (OWN, PEER), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "veth")
            ip("-n", name, "link", "set", "veth", "up")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def within(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, initializer=lambda: enter(str(Path("/run/netns") / name)))


def exchange(server: socket.socket, client: socket.socket) -> None:
    """Small messages one by one, so that each is a segment."""
    for _ in range(MESSAGES):
        client.sendall(b"x")
        assert server.recv(1) == b"x"


def opened(host: str) -> socket.socket:
    listener = socket.create_server((host, 7000))
    listener.settimeout(60)
    return listener


@pytest.mark.parametrize("percent", [0, 20])
def test_what_is_lost_is_sent_again_and_counted(ends: tuple[str, str], percent: int) -> None:
    rule = f"numgen random mod 100 < {percent} drop" if percent else "counter"
    with within(ends[0]) as own, within(ends[1]) as peer, closing(peer.submit(opened, PEER).result(60)) as listener:
        connected = own.submit(socket.create_connection, (PEER, 7000), 60)
        server, _ = listener.accept()
        with closing(server), closing(connected.result(60)) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            before: Sockets = own.submit(look, ()).result(60)
            chain = "add table inet loss; add chain inet loss in { type filter hook input priority 0; };"
            peer.submit(
                subprocess.run, ["nft", f"{chain} add rule inet loss in tcp dport 7000 {rule}"], check=True
            ).result(60)
            exchange(server, client)
            found = by_node(before, own.submit(look, ()).result(60), {ip_address(PEER): "n2"})
    assert found.keys() == {"n2"}
    assert found["n2"].segments - found["n2"].retransmitted >= MESSAGES
    assert (found["n2"].retransmitted > MESSAGES // 20) == bool(percent)
