"""The pair of nodes whose other end takes less than our uplink: packets of pods between real namespaces.

The route to the other node's pods carries the pair's MTU, written as ``routing`` writes it. The same is asked of the
programs, and of the stack alone (nothing attached): what the one hands up, the other must answer the same way.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from services.routing.core.fib import Replace, Route
from services.routing.kernel import Kernel
from tests.bpf.live import UPLINK, LiveNode, LivePod, fill, opened, two_nodes
from tests.bpf.world import ifindex_of, inside, routes_changed, run

pytestmark = pytest.mark.privileged

SMALL = 1400
MEGABYTES = 4
PORT = 7000
UDP_SEGMENT = 103
HEADERS = {4: 28, 6: 48}
"""Of IP and UDP, in bytes."""
MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
PATH_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
DONT, DO, PROBE = 0, 2, 3
"""IP_PMTUDISC_*: fragments; DF, by what was learnt; DF, whatever was learnt."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Pod a on one node, pod b on the other, whose uplink is small."""

    one: LiveNode
    fast: bool

    @property
    def a(self) -> LivePod:
        return self.one.a

    @property
    def b(self) -> LivePod:
        return self.one.b

    def forwarded(self) -> int:
        """Packets that the stack of the first node has forwarded: those that no program sent on by itself."""
        with inside(self.one.netns):
            four = Path("/proc/thread-self/net/snmp").read_text().splitlines()
            six = Path("/proc/thread-self/net/snmp6").read_text().splitlines()
        names, values = (line.split() for line in four if line.startswith("Ip:"))
        counted = int(values[names.index("ForwDatagrams")])
        return counted + next(int(line.split()[1]) for line in six if line.startswith("Ip6OutForwDatagrams"))


@pytest.fixture(scope="module", params=[True, False], ids=["programs", "stack"])
def pair(request: pytest.FixtureRequest, cache: Path, pins: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        one, other = stack.enter_context(two_nodes())
        run("ip", "-n", other.netns, "link", "set", UPLINK, "mtu", str(SMALL))
        _narrow(one)
        if request.param:
            for node, pod, name in ((one, one.a, "one"), (other, other.b, "other")):
                datapath = opened(pins / f"mtu-{name}", cache, node)
                stack.callback(datapath.close)
                fill(datapath, node, local=(pod.number,))
                with inside(node.netns):
                    datapath.attach_endpoint(pod.ifindex, pod.device)
                    datapath.attach_uplink(ifindex_of(node.netns, UPLINK), UPLINK)
        made = Pair(one, request.param)
        for version in (4, 6):
            assert len(_transfer(made, version, b"neighbours are known")) == 20
        yield made


def _narrow(node: LiveNode) -> None:
    """Its routes to pod b as ``routing`` makes them: a locked MTU."""
    routes = [
        Route(
            destination=ip_network(node.b.address(version)),
            via=ip_network(via).network_address,
            link=ifindex_of(node.netns, UPLINK),
            mtu=SMALL,
        )
        for version, via in ((4, "172.30.0.12"), (6, "fd00:172:30::12"))
    ]
    for route in routes:
        run("ip", "-n", node.netns, "route", "del", str(route.destination))

    async def write() -> None:
        kernel = Kernel((UPLINK,), Path("/run/netns") / node.netns)
        assert await kernel.apply([Replace(route) for route in routes]) == ()
        assert set(routes) <= set((await kernel.snapshot()).routes), "read back as they were written"
        await kernel.close()

    asyncio.run(write())
    routes_changed()


def _forget(pair: Pair) -> None:
    """What pod a has learnt of the path."""
    for family in ("-4", "-6"):
        run("ip", "-n", pair.a.netns, family, "route", "flush", "cache")


def _write(client: socket.socket, sent: bytes) -> None:
    client.sendall(sent)
    client.shutdown(socket.SHUT_WR)


def _transfer(pair: Pair, version: int, sent: bytes) -> bytes:
    """What b reads of what a writes at once."""
    with pair.b.socket(version, socket.SOCK_STREAM) as server, pair.a.socket(version, socket.SOCK_STREAM) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.settimeout(20)
        client.settimeout(20)
        server.bind((str(pair.b.address(version)), PORT))
        server.listen()
        client.connect((str(pair.b.address(version)), PORT))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(20)
            writer = threading.Thread(target=_write, args=(client, sent))
            writer.start()
            got = bytearray()
            while part := accepted.recv(1 << 20):
                got += part
            writer.join()
    return bytes(got)


def _datagrams(pair: Pair, version: int, discover: int) -> tuple[socket.socket, socket.socket]:
    sender, receiver = (pod.socket(version, socket.SOCK_DGRAM) for pod in (pair.a, pair.b))
    sender.setsockopt(*MTU_DISCOVER[version], discover)
    sender.settimeout(20)
    receiver.settimeout(20)
    receiver.bind((str(pair.b.address(version)), PORT))
    sender.connect((str(pair.b.address(version)), PORT))
    return sender, receiver


def _refused(sender: socket.socket, sent: bytes) -> bool:
    """Whether it is told, soon, that what it sends is too long."""
    for _ in range(100):
        try:
            sender.send(sent)
        except OSError as error:
            assert error.errno == errno.EMSGSIZE
            sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # of the answers to earlier ones
            return True
        threading.Event().wait(0.01)
    return False


@pytest.mark.parametrize("small_pod", [True, False], ids=["by-its-mss", "by-path-mtu"])
@pytest.mark.parametrize("version", [4, 6])
def test_large_writes_arrive(pair: Pair, version: int, small_pod: bool) -> None:
    """The other pod's MSS says how long segments are, or (its link not small yet) the pod hears it of the node. Long
    GSO packets of short segments go on past the stack.
    """
    _forget(pair)
    run("ip", "-n", pair.b.netns, "link", "set", "eth0", "mtu", str(SMALL if small_pod else 1500))
    before, sent = pair.forwarded(), bytes(range(256)) * (MEGABYTES << 12)
    assert _transfer(pair, version, sent) == sent
    least = len(sent) // 65536
    if pair.fast:
        assert pair.forwarded() - before < least / 2
    else:
        assert pair.forwarded() - before > least / 2, "the measure is one"


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_too_long_for_the_pair_is_answered(pair: Pair, version: int) -> None:
    _forget(pair)
    sender, receiver = _datagrams(pair, version, DO)
    with sender, receiver:
        assert _refused(sender, bytes(1450 - HEADERS[version]))
        assert sender.getsockopt(*PATH_MTU[version]) == SMALL
        sender.send(bytes(SMALL - HEADERS[version]))
        assert len(receiver.recv(2000)) == SMALL - HEADERS[version]


@pytest.mark.parametrize("version", [4, 6])
def test_what_fits_to_the_byte_goes_past_the_stack(pair: Pair, version: int) -> None:
    """Alone, and as segments of one long packet."""
    fits = SMALL - HEADERS[version]
    sender, receiver = _datagrams(pair, version, PROBE)
    with sender, receiver:
        before = pair.forwarded()
        sender.send(bytes(fits))
        assert len(receiver.recv(2000)) == fits
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, fits)
        sender.send(bytes(fits * 4))
        assert [len(receiver.recv(2000)) for _ in range(4)] == [fits] * 4
        assert (pair.forwarded() == before) is pair.fast


@pytest.mark.parametrize("version", [4, 6])
def test_segments_a_byte_too_long_are_answered(pair: Pair, version: int) -> None:
    _forget(pair)
    sender, receiver = _datagrams(pair, version, DO)
    with sender, receiver:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SMALL - HEADERS[version] + 1)
        assert _refused(sender, bytes((SMALL - HEADERS[version] + 1) * 4))
        assert sender.getsockopt(*PATH_MTU[version]) == SMALL


def test_ipv4_without_df_is_fragmented_on_the_way(pair: Pair) -> None:
    _forget(pair)
    sender, receiver = _datagrams(pair, 4, DONT)
    with sender, receiver:
        sender.send(b"x" * 1440)
        assert receiver.recv(2000) == b"x" * 1440


def test_the_error_is_about_what_the_pod_sent_and_comes_from_its_node(pair: Pair) -> None:
    """Read as a frame at the pod: type 3 code 4, the pair's MTU, and the pod's own header inside."""
    _forget(pair)
    sender, receiver = _datagrams(pair, 4, PROBE)
    with inside(pair.a.netns):
        wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with wire, sender, receiver:
        wire.settimeout(20)
        sender.send(bytes(1422))
        packet, (source, _) = wire.recvfrom(2000)
        kind, code, _, mtu = struct.unpack("!BBHxxH", packet[20:28])
        assert (kind, code, mtu, source) == (3, 4, SMALL, "172.30.0.11")
        inner = packet[28:]
        assert inner[12:20] == pair.a.address(4).packed + pair.b.address(4).packed
        assert struct.unpack("!HH", inner[20:24]) == (sender.getsockname()[1], PORT)
