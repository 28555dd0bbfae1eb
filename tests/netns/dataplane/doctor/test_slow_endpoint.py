"""A way that is full, as `tests/drills/faults/endpoints.inc` makes it: of three endpoints the one behind it is slow."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from linux.netns import inside, open_netns
from proto.objects import Service
from services.dataplane.core.doctor.endpoints import SLOW, Asked, Target, check_times
from services.dataplane.doctor.services import connected

pytestmark = pytest.mark.privileged

SCRIPTS = Path(__file__).parents[3] / "drills" / "faults" / "endpoints.inc"
ADDRESS, PORTS = "172.30.0.12", (18081, 18082, 18083)
"""The first port is the one that the scripts take."""
ASKED = Asked(
    service=Service(namespace="shop", name="web", uid="u", ports=(), cluster_ips=()),
    slices=(),
    node="n1",
    zone="",
    zones=frozenset(),
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """A client's namespace and that of the endpoints, on one link."""
    tag = uuid.uuid4().hex[:6]
    client, host = f"am-e{tag}-1", f"am-e{tag}-2"
    try:
        for name in (client, host):
            ip("netns", "add", name)
        ip("-n", client, "link", "add", "fab0", "type", "veth", "peer", "name", "fab0", "netns", host)
        for name, address in ((client, "172.30.0.11"), (host, ADDRESS)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "fab0")
            ip("-n", name, "link", "set", "fab0", "up")
        yield client, host
    finally:
        for name in (client, host):
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)


@pytest.fixture
def sourced(hosts: tuple[str, str], tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Three endpoints that listen; what the scripts have started ends with the test."""
    script(tmp_path, f"for PORT in {' '.join(map(str, PORTS))}; do listen {hosts[1]}; done")
    try:
        yield hosts
    finally:
        for pid in (tmp_path / "listeners.pid").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)


def script(state: Path, text: str) -> None:
    environment = {**os.environ, "STATE": str(state), "PYTHON": sys.executable}
    subprocess.run(["sh", "-euc", f". {SCRIPTS}\n{text}"], env=environment, check=True, timeout=60)


def times(netns: str) -> Mapping[Target, Sequence[float]]:
    """Of handshakes from a namespace."""
    targets = [(ip_address(ADDRESS), port) for port in PORTS]
    opened = open_netns(f"/run/netns/{netns}")
    try:
        with inside(opened):
            return {target: asyncio.run(connected(target)) for target in targets}
    finally:
        os.close(opened)


def until(netns: str, *, slow: bool) -> None:
    end = time.monotonic() + 60
    while True:
        seen = times(netns)
        codes = [one.code for one in check_times(ASKED, seen)]
        if all(seen.values()) and codes == [SLOW] * slow:
            return
        assert time.monotonic() < end, seen


def test_an_endpoint_behind_a_way_that_is_full_is_the_slow_one(sourced: tuple[str, str], tmp_path: Path) -> None:
    client, host = sourced
    until(client, slow=False)
    script(tmp_path, f"narrow {host} {client} {ADDRESS}")
    until(client, slow=True)
    (finding,) = check_times(ASKED, times(client))
    assert f"{ADDRESS}:{PORTS[0]} on node" in finding.cause
    script(tmp_path, f"widen {host}")
    until(client, slow=False)
