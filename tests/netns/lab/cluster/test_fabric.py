"""A routed fabric on a real kernel: what its router lets through, answers and drops, and what a capture sees of it."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.cluster import down, fabric, namespaces
from lab.cluster.capture import Capture
from lab.cluster.packets import IPIP, PLAIN
from lab.cluster.record import Record, write_record
from lab.paths import Paths, Settings, paths
from lab.topology import Fabric, Host, LabError, Topology

pytestmark = pytest.mark.privileged

SEND = """
import socket, sys
kind, target, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in target else socket.AF_INET
if kind.startswith("proto"):
    made = socket.socket(family, socket.SOCK_RAW, int(kind.split(":")[1]))
    made.sendto(bytes.fromhex("4500001c000100004011000001020304050607080000000000080000"), (target, 0))
else:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(*((socket.IPPROTO_IP, 10, 2) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 23, 2)))
    made.connect((target, int(kind.split(":")[1])))
    for _ in range(2):
        try:
            made.send(bytes(size))
        except OSError as error:
            if error.errno != 111:  # nobody listens there
                print(error.errno)
        import time; time.sleep(0.05)
"""
"""A packet of a protocol, or two datagrams that must not be fragmented; what the kernel refuses is said."""
EMSGSIZE = "90"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[Paths, Topology]]:
    """The namespaces of a routed lab with two nodes, one on each segment; removed at the end."""
    run = Path("/tmp") / f"am{uuid.uuid4().hex[:6]}"
    where = paths("t" + uuid.uuid4().hex[:6], Settings(labs=tmp_path / "labs", run=run, cache=tmp_path / "cache"))
    for folder in (where.state, where.run):
        folder.mkdir(parents=True)
    record = Record(lab=where.lab, nodes=2, fabric=Fabric.ROUTED)
    write_record(where, record)
    namespaces.make(record.topology)
    yield where, record.topology
    assert down.down(where, lambda _: None) == []
    run.rmdir()


def send(host: Host, kind: str, target: object, size: int = 100) -> str:
    argv = ["nsenter", f"--net={host.netns}", sys.executable, "-I", "-c", SEND, kind, str(target), str(size)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def ping(host: Host, target: object) -> bool:
    argv = ["nsenter", f"--net={host.netns}", "busybox", "ping", "-c", "1", "-W", "2", str(target)]
    return subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode == 0


def reached(lab: Topology, act: Callable[[], object]) -> set[tuple[str, str]]:
    """(Source, destination) of what the second node was sent: seen where it leaves the router for its segment."""
    received = subprocess.Popen(
        ["nsenter", f"--net={lab.nodes[1].netns}", sys.executable, "-I", "-c", RECEIVE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert received.stdout is not None
    assert received.stdout.readline() == "ready\n"
    act()
    said, _ = received.communicate("over\n", timeout=20)
    return {(line.split()[0], line.split()[1]) for line in said.splitlines()}


RECEIVE = """
import ipaddress, select, socket, sys
made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
made.bind(("fab0", 0x0800))
print("ready", flush=True)
over = False
while True:
    ready, _, _ = select.select([made] + ([] if over else [sys.stdin]), [], [], 0.5 if over else None)
    if sys.stdin in ready:
        over = True
    if made in ready:
        packet, sender = made.recvfrom(100)
        if sender[2] != 4:
            print(ipaddress.ip_address(packet[12:16]), packet[9])
    elif over:
        break
"""
"""(Source, protocol) of each IPv4 packet that comes in, until half a second after the end of the input."""


def test_both_segments_reach_each_other_and_the_outside_host_and_no_pod_is_known(lab: tuple[Paths, Topology]) -> None:
    _, plan = lab
    n1, n2 = plan.nodes
    assert all(
        ping(one, target)
        for one, target in (
            (n1, n2.fabric4),
            (n2, n1.fabric6),
            (plan.control, n2.fabric4),
            (n2, plan.segments[0].outside4),
            (n1, plan.segments[0].outside6),
        )
    )
    # As host-gw would have it: the other segment's pods are behind nobody whom the router knows.
    namespaces.batch(["addr add 10.244.9.1/32 dev lo"], n2.namespace)
    assert not ping(n1, "10.244.9.1")
    with pytest.raises(LabError, match=r"invalid gateway|unreachable"):
        namespaces.batch([f"route add 10.244.9.0/24 via {n2.fabric4} dev fab0"], n1.namespace)


def test_the_router_drops_what_a_filter_says_and_counts_it(lab: tuple[Paths, Topology]) -> None:
    where, plan = lab
    n1, n2 = plan.nodes
    own = str(n1.fabric4)
    assert ping(n1, n2.fabric4)  # neighbours are known

    def both() -> None:
        send(n1, "proto:4", n2.fabric4)
        send(n1, "udp:4789", n2.fabric4)
        send(n1, "udp:4790", n2.fabric4)

    assert reached(plan, both) >= {(own, "4"), (own, "17")}
    fabric.set_filters(where, [fabric.parse_filter("proto:4"), fabric.parse_filter("udp:4789")])
    assert (own, "4") not in reached(plan, both)
    assert fabric.read_filters(where) == {"proto:4": 1, "udp:4789": 2}
    assert "drops proto:4 (1 packets), udp:4789 (2 packets)" in fabric.summary(where)
    fabric.set_filters(where, [])
    assert fabric.read_filters(where) == {}
    assert (own, "4") in reached(plan, both)


def test_what_is_too_large_for_the_way_between_the_segments_is_answered(lab: tuple[Paths, Topology]) -> None:
    where, plan = lab
    n1, n2 = plan.nodes
    for target in (n2.fabric4, n2.fabric6):
        assert send(n1, "udp:9", target, 1400) == ""
    fabric.set_mtu(where, 1300)
    for target in (n2.fabric4, n2.fabric6):
        assert EMSGSIZE in send(n1, "udp:9", target, 1400), "the router did not answer"
    assert send(plan.control, "udp:9", n1.fabric4, 1400) == "", "one segment is as wide as its links"
    assert "MTU between them 1300" in fabric.summary(where)


def test_a_capture_sees_each_packet_once_at_its_sender(lab: tuple[Paths, Topology]) -> None:
    _, plan = lab
    n1, n2 = plan.nodes
    with Capture.of_lab(plan) as wire:
        send(n1, "proto:4", n2.fabric4)
        send(n1, "proto:99", n2.fabric6)
    seen = {packet: count for packet, count in wire.of("n1").items() if packet.destination in (n2.fabric4, n2.fabric6)}
    by_tunnel = {(packet.tunnel, packet.destination): count for packet, count in seen.items()}
    assert by_tunnel == {(IPIP, n2.fabric4): 1, (PLAIN, n2.fabric6): 1}
    assert not any(packet.destination in (n2.fabric4, n2.fabric6) for packet in wire.of("n2")), "at the receiver's, too"
    assert wire.missed == 0
    with pytest.raises(LabError, match="capture in"), Capture.of_lab(plan, [replace(n1, name="no")]):
        raise AssertionError("it listens on a port that is not there")
