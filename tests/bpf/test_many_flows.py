"""Conntrack at its size: a million entries swept while the event loop runs, and real queries from fresh ports."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from linux import bpf
from proto.flow import DropReason
from proto.policy import Direction
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.core.conntrack.state import SECOND
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath.maps import MOST_CONNTRACK_ENTRIES, conntrack_sizes
from services.dataplane.datapath.programs import Datapath
from tests.bpf.live import attach, fill, live_node, opened
from tests.bpf.world import LIBC, inside

pytestmark = pytest.mark.privileged

FLOWS = 1_000_000
QUERIES = 20_000


def entries(count: int, now: int) -> tuple[bytes, bytes]:
    """Flows that end to end lie in the map; every tenth is over."""
    local = at.FlowKey.wire()
    keys, values = bytearray(), bytearray()
    lives = at.Flow(last_seen=now, generation=1, endpoint=7, rule=0, seen=at.Seen.ESTABLISHED, flags=0, side=1).pack()
    over = at.Flow(last_seen=now - 61 * SECOND, generation=1, endpoint=7, rule=0, seen=0, flags=0, side=1).pack()
    tail = (6).to_bytes(local.size - 36, "little")
    for number in range(count):
        keys += number.to_bytes(32, "big") + bytes(4) + tail
        values += lives if number % 10 else over
    return bytes(keys), bytes(values)


async def test_a_million_entries_swept_in_slices(folder: Path, cache: Path) -> None:
    datapath = Datapath.open(folder, cache, sizes=conntrack_sizes(MOST_CONNTRACK_ENTRIES))
    try:
        assert datapath.tables.flows.entries == MOST_CONNTRACK_ENTRIES
        now = time.monotonic_ns()
        keys, values = entries(FLOWS, now)
        bpf.update_batch(datapath.tables.flows.fd, keys, values, FLOWS)
        datapath.tables.set_budget(7, FLOWS)
        gaps = [0.0]
        began = time.monotonic()
        sweep = asyncio.create_task(asyncio.to_thread(FlowCollector(datapath).sweep, now + SECOND // 2))
        while not sweep.done():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - before)
        swept = sweep.result()
        print(f"\n{FLOWS} entries in {time.monotonic() - began:.2f} s; longest silence of the loop {max(gaps):.3f} s")
        assert swept.collected == FLOWS // 10
        assert swept.census.counts == {(7, Direction.EGRESS): FLOWS * 9 // 10}
        budget = datapath.tables.budgets.get(at.EndpointKey(endpoint=7))
        assert budget is not None
        assert budget.egress == FLOWS * 9 // 10, "the count was off by all of them, and is right again"
        assert sorted(gaps)[-10] < 0.1
    finally:
        datapath.close()


@pytest.mark.parametrize("version", [4, 6])
def test_real_queries_from_fresh_ports(folder: Path, cache: Path, version: int) -> None:
    """As many as a second of CoreDNS, as fast as this machine goes: each is answered, none is dropped."""
    with live_node("dns") as node:
        datapath = opened(folder, cache, node)
        fill(datapath, node)
        attach(datapath, node)
        server = node.b.socket(version, socket.SOCK_DGRAM)
        server.bind((str(node.b.address(version)), 53))
        child = os.fork()
        if child == 0:
            LIBC.prctl(1, 9)
            while True:
                asked, peer = server.recvfrom(64)
                server.sendto(asked, peer)
        try:
            began = time.monotonic()
            with inside(node.a.netns):
                for port in range(QUERIES):
                    family = socket.AF_INET if version == 4 else socket.AF_INET6
                    with socket.socket(family, socket.SOCK_DGRAM) as asker:
                        asker.settimeout(20)
                        asker.bind((str(node.a.address(version)), 20_000 + port))
                        asker.sendto(port.to_bytes(4, "big"), (str(node.b.address(version)), 53))
                        assert int.from_bytes(asker.recv(64), "big") == port
            print(f"\nIPv{version}: {QUERIES / (time.monotonic() - began):.0f} queries a second, each answered")
            drops = {reason for reason, _ in datapath.tables.metrics()} - {DropReason.FORWARDED, DropReason.REPLY}
            assert not drops & {DropReason.CONNTRACK_BUDGET, DropReason.CONNTRACK_FULL}
            used = list(datapath.tables.budgets.items().values())
            assert all(budget.count <= budget.ingress_limit // 2 for budget in used)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            server.close()
            datapath.close()
