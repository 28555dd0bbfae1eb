"""Tunnels between real namespaces: our programs at both ends, or at one and the kernel's VXLAN device at the other.

Pods have a link of 1500 bytes, more than fits into any tunnel: what arrives here arrives by what the node tells them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from proto.flow import DropReason
from proto.policy import Direction
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import tunnel_layout as tl
from services.dataplane.core.datapath.tunnel_layout import TunnelKind
from services.dataplane.datapath.programs import Datapath
from tests.bpf import frames
from tests.bpf.frames import UDP
from tests.bpf.frontends import read, seal, serve
from tests.bpf.live import UPLINK, LiveNode, LivePod, fill, live_node, opened, two_nodes
from tests.bpf.tunnels import DEVICES, IPIP, PORT, VNI, Outer, read_outer
from tests.bpf.world import ifindex_of, inside, namespace, run

pytestmark = pytest.mark.privileged

SERVED = 7000
PATH_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
DO = 2
HEADERS = {4: 28, 6: 48}
SIOCETHTOOL, STSO, SGSO, SCSUM, SSG = 0x8946, 0x1F, 0x24, 0x17, 0x19
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
NODES = {11: "02:61:00:00:00:11", 12: "02:61:00:00:00:12"}
"""MAC of the tunnel device on each node, by the last part of the node's address."""


def underlay(last: int, family: int) -> str:
    return f"172.30.0.{last}" if family == 4 else f"fd00:172:30::{last}"


def hop(last: int, family: int, version: int) -> str:
    """Next hop of routes to the pods of a node."""
    if family == 6:
        return f"fe80::61:0:1ff:fe00:{last}"
    return underlay(last, 4) if version == 4 else f"fe80::5efe:{underlay(last, 4)}"


def lay(node: LiveNode, tunnel: str, own: int, other: int, pod: LivePod) -> None:
    """The tunnel's device and the routes to the other node's pod, as ``routing`` makes them."""
    device, kind, family, overhead = DEVICES[tunnel]
    mtu = 1500 - overhead
    if kind is TunnelKind.IPIP:
        commands = [
            f"link add {device} mtu {mtu} type veth peer name {device}-p",
            f"link set {device}-p arp off up",
            f"link set {device} arp off",
        ]
    else:
        unsummed = "udp6zerocsumtx udp6zerocsumrx" if family == 6 else "df set"
        vxlan = f"type vxlan id {VNI} dstport {PORT} nolearning local {underlay(own, family)} {unsummed}"
        commands = [f"link add {device} address {NODES[own]} mtu {mtu} {vxlan}"]
    commands += [f"addr add 169.254.97.109/32 dev {device} scope host", f"link set {device} up"]
    for version in (4,) if kind is TunnelKind.IPIP else (4, 6):
        via, bits = hop(other, family, version), 32 if version == 4 else 128
        if kind is TunnelKind.VXLAN:
            commands.append(f"neigh replace {via} lladdr {NODES[other]} dev {device} nud permanent")
        inet = "inet6 " if ":" in via and version == 4 else ""
        commands.append(f"-{version} route replace {pod.address(version)}/{bits} via {inet}{via} dev {device} onlink")
    for command in commands:
        run("ip", "-n", node.netns, *command.split())
    if kind is TunnelKind.VXLAN:
        entry = f"fdb replace {NODES[other]} dev {device} dst {underlay(other, family)} permanent self"
        run("bridge", "-n", node.netns, *entry.split())
    run("nsenter", f"--net=/run/netns/{node.netns}", "sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=2")


def open_tunnel(datapath: Datapath, node: LiveNode, tunnel: str, own: int, other: int, pod: LivePod) -> None:
    """The maps and programs of the tunnel, as the agent has them."""
    device, kind, family, _ = DEVICES[tunnel]
    tables, ifindex = datapath.tables, ifindex_of(node.netns, device)
    local = ip_address(underlay(own, family))
    port, vni = (0, 0) if kind is TunnelKind.IPIP else (PORT, VNI)
    mac = frames.mac(NODES[own])
    tables.tunnels.put(
        at.LinkKey(ifindex=ifindex), tl.Tunnel(kind=kind, family=family, port=port, vni=vni, local=local, mac=mac)
    )
    tables.tunnel_ends.put(
        tl.TunnelEndKey(address=local, port=port, protocol=UDP if port else IPIP),
        tl.TunnelEnd(ifindex=ifindex, vni=vni),
    )
    peer = tl.TunnelPeer(
        node=7, ifindex=ifindex, outer=ip_address(underlay(other, family)), mac=frames.mac(NODES[other])
    )
    addresses = {underlay(other, 4), hop(other, family, 6)} | ({underlay(other, 6)} if tunnel != "ipip4" else set())
    for address in addresses:
        tables.tunnel_peers.put(at.AddressKey(address=ip_address(address)), peer)
    for inner in (pod.address(4), pod.address(6), *(ip_address(underlay(other, version)) for version in (4, 6))):
        tables.tunnel_sources.put(at.PrefixKey.host(inner), tl.TunnelSource(node=7))
    for version in (4, 6):
        tables.ipcache.put(
            at.PrefixKey.host(ip_address(underlay(other, version))), at.Peer(identity=6, flags=at.PeerFlag.NODE)
        )
    tables.configure(at.Config(flags=at.ConfigFlag.TUNNELS))
    with inside(node.netns):
        datapath.attach_tunnel(ifindex, device)


@dataclass(frozen=True, slots=True)
class Pair:
    """Pod a on one node, pod b on the other, and the tunnel between them."""

    one: LiveNode
    other: LiveNode
    tunnel: str
    kernel: bool
    """The other node is the kernel alone."""
    datapath: Datapath
    """The first node's."""

    @property
    def versions(self) -> tuple[int, ...]:
        return (4,) if self.tunnel == "ipip4" else (4, 6)

    @property
    def mtu(self) -> int:
        return 1500 - DEVICES[self.tunnel][3]

    @property
    def a(self) -> LivePod:
        return self.one.a

    @property
    def b(self) -> LivePod:
        return self.one.b


ENDS = [("vxlan4", False), ("vxlan4", True), ("vxlan6", False), ("vxlan6", True), ("ipip4", False)]


@pytest.fixture(scope="module", params=ENDS, ids=[f"{name}-{'kernel' if k else 'programs'}" for name, k in ENDS])
def pair(request: pytest.FixtureRequest, cache: Path, pins: Path) -> Iterator[Pair]:
    tunnel, kernel = request.param
    with ExitStack() as stack:
        one, other = stack.enter_context(two_nodes())
        lay(one, tunnel, 11, 12, one.b)
        lay(other, tunnel, 12, 11, one.a)
        opened_in_namespace: list[Datapath] = []
        for node, pod, away, own in ((one, one.a, one.b, 11), (other, other.b, other.a, 12)):
            if kernel and own == 12:
                continue
            folder = pins / f"{tunnel}-{int(kernel)}-{own}"
            datapath = opened(folder, cache, node)
            stack.callback(datapath.close)
            opened_in_namespace.append(datapath)
            fill(datapath, node, local=(pod.number,))
            open_tunnel(datapath, node, tunnel, own, 23 - own, away)
            with inside(node.netns):
                datapath.attach_endpoint(pod.ifindex, pod.device)
                datapath.attach_uplink(ifindex_of(node.netns, UPLINK), UPLINK)
        yield Pair(one, other, tunnel, kernel, opened_in_namespace[0])


def forget(pair: Pair) -> None:
    """What the pods have learnt of the path."""
    for pod in (pair.a, pair.b):
        for family in ("-4", "-6"):
            run("ip", "-n", pod.netns, family, "route", "flush", "cache")


def offload(netns: str, device: str, *, on: bool) -> None:
    """Whether segments are cut and sums are computed by whoever is behind the device, or before it."""
    with inside(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (STSO, SGSO, SCSUM, SSG) if not on else (SSG, SCSUM, SGSO, STSO):
            value = ctypes.create_string_buffer(struct.pack("II", command, int(on)))
            fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP16x", device.encode(), ctypes.addressof(value)))


def transfer(pair: Pair, version: int, sent: bytes, *, back: bool = False) -> bytes:
    """What one pod reads of what the other writes at once."""
    writer, reader = (pair.b, pair.a) if back else (pair.a, pair.b)
    with reader.socket(version, socket.SOCK_STREAM) as server, writer.socket(version, socket.SOCK_STREAM) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (server, client):
            one.settimeout(15)
        server.bind((str(reader.address(version)), SERVED))
        server.listen()
        client.connect((str(reader.address(version)), SERVED))
        accepted, _ = server.accept()

        def write() -> None:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)

        with accepted:
            accepted.settimeout(15)
            thread = threading.Thread(target=write)
            thread.start()
            got = bytearray()
            while part := accepted.recv(1 << 20):
                got += part
            thread.join()
    return bytes(got)


@contextmanager
def captured(netns: str, device: str) -> Iterator[list[bytes]]:
    """Frames that a device receives meanwhile."""
    found: list[bytes] = []
    with inside(netns):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind((device, 0))
    wire.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    with wire:
        yield found
        wire.setblocking(False)
        while select.select([wire], [], [], 0)[0]:
            raw, address = wire.recvfrom(70_000)
            if address[2] != socket.PACKET_OUTGOING:
                found.append(raw)


def outers(found: list[bytes]) -> list[Outer]:
    """Those that are a tunnel's."""
    return [
        read_outer(raw)
        for raw in found
        if (raw[12:14] == b"\x08\x00" and raw[23] in (IPIP, UDP)) or (raw[12:14] == b"\x86\xdd" and raw[20] == UDP)
    ]


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_large_writes_arrive(pair: Pair, back: bool) -> None:
    """Long GSO packets with sums that are pending; the pods hear from their node how long a packet may be."""
    sent = bytes(range(256)) * (4 << 12)
    for version in pair.versions:
        forget(pair)
        assert transfer(pair, version, sent, back=back) == sent


def test_on_the_wire_with_all_offloads_off(pair: Pair) -> None:
    """Every frame: outer and inner sums right, lengths as they say, no more than the wire takes; all by one port."""
    sent = bytes(range(256)) * (1 << 10)
    offload(pair.one.netns, UPLINK, on=False)
    try:
        for version in pair.versions:
            forget(pair)
            assert transfer(pair, version, sent[:100]) == sent[:100]
            with captured(pair.other.netns, UPLINK) as found:
                assert transfer(pair, version, sent) == sent
            seen = [outer for outer in outers(found) if read(outer.inner).text.endswith(f":{SERVED}")]
            assert sum(len(read(outer.inner).payload) for outer in seen) >= len(sent)
            longest = max(len(outer.frame) for outer in seen)
            assert longest == 1514, "as long as the wire takes, and no longer"
            assert len({outer.source_port for outer in seen}) == 1
    finally:
        offload(pair.one.netns, UPLINK, on=True)


def refused(sender: socket.socket, sent: bytes) -> bool:
    """Whether it is told, soon, that what it sends is too long."""
    for _ in range(300):
        try:
            sender.send(sent)
        except OSError as error:
            assert error.errno == errno.EMSGSIZE
            return True
        threading.Event().wait(0.01)
    return False


def deliver(sender: socket.socket, sent: bytes) -> None:
    """Sends what fits, after the answers to what did not."""
    for _ in range(300):
        try:
            sender.send(sent)
        except OSError as error:
            assert error.errno == errno.EMSGSIZE
            threading.Event().wait(0.01)
        else:
            return
    raise AssertionError("what fits is refused")


def test_datagrams_around_the_mtu(pair: Pair) -> None:
    for version in pair.versions:
        forget(pair)
        with pair.a.socket(version, socket.SOCK_DGRAM) as sender, pair.b.socket(version, socket.SOCK_DGRAM) as receiver:
            sender.setsockopt(*MTU_DISCOVER[version], DO)
            receiver.settimeout(20)
            receiver.bind((str(pair.b.address(version)), SERVED))
            sender.connect((str(pair.b.address(version)), SERVED))
            assert refused(sender, bytes(pair.mtu - HEADERS[version] + 1))
            assert sender.getsockopt(*PATH_MTU[version]) == pair.mtu
            deliver(sender, bytes(pair.mtu - HEADERS[version]))
            assert len(receiver.recv(2000)) == pair.mtu - HEADERS[version]


def test_ipv4_without_df_is_fragmented_before_the_tunnel(pair: Pair) -> None:
    forget(pair)
    with pair.a.socket(4, socket.SOCK_DGRAM) as sender, pair.b.socket(4, socket.SOCK_DGRAM) as receiver:
        sender.setsockopt(*MTU_DISCOVER[4], 0)
        receiver.settimeout(20)
        receiver.bind((str(pair.b.address(4)), SERVED))
        sender.sendto(b"x" * 1470, (str(pair.b.address(4)), SERVED))
        assert receiver.recv(2000) == b"x" * 1470


def test_a_node_and_the_other_s_pod(pair: Pair) -> None:
    """The stack's packets into the tunnel, the pod's answers to the node's address by the same way."""
    for version in pair.versions:
        own = underlay(11, version)
        with pair.b.socket(version, socket.SOCK_STREAM) as server, inside(pair.one.netns):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((str(pair.b.address(version)), SERVED))
            server.listen()
            with captured(pair.one.netns, UPLINK) as found:
                there = (str(pair.b.address(version)), SERVED)
                with socket.create_connection(there, 5, source_address=(own, 0)) as client:
                    assert client.getpeername()[0] == there[0]
        if pair.kernel:  # a node without programs has plain routes to nodes
            continue
        answers = [read(outer.inner, whole=False).text for outer in outers(found)]
        assert any(f":{SERVED} > " in text for text in answers), "not in the clear"
        kind, ends = (b"\x08\x00", slice(26, 34)) if version == 4 else (b"\x86\xdd", slice(22, 54))
        assert not [raw for raw in found if raw[12:14] == kind and pair.b.address(version).packed in raw[ends]]


@contextmanager
def client_of(node: LiveNode) -> Iterator[str]:
    """A namespace on a network of its own, which the first node is a router of."""
    with namespace(f"am-client-{os.getpid()}") as name:
        run("ip", "-n", node.netns, "link", "add", "am-out", "type", "veth", "peer", "name", "am-out", "netns", name)
        for netns, last in ((node.netns, 1), (name, 5)):
            for command in (f"addr add 192.0.2.{last}/24", f"addr add 2001:db8::{last}/64 nodad", "link set up"):
                run("ip", "-n", netns, *command.split(), "dev", "am-out")
        run("ip", "-n", name, "route", "add", "172.30.0.0/24", "via", "192.0.2.1")
        run("ip", "-n", name, "route", "add", "fd00:172:30::/64", "via", "2001:db8::1")
        yield name


def test_a_client_of_a_service_hears_how_long_a_packet_may_be(pair: Pair) -> None:
    """From outside to a backend behind the tunnel and back, by long packets whose sums are pending: nobody's stack sees
    them on the way, so the programs answer, the client and the pod.
    """
    if pair.kernel:  # the other end sends answers to nodes by itself
        return
    tables, sent = pair.datapath.tables, bytes(range(256)) * (1 << 11)
    tables.speak_as([ip_address(underlay(11, version)) for version in (4, 6)])
    with client_of(pair.one) as client_netns:
        with inside(pair.one.netns):
            pair.datapath.attach_uplink(ifindex_of(pair.one.netns, "am-out"), "am-out")
        for version in pair.versions:
            forget(pair)
            before = tables.metrics().get((DropReason.TOO_BIG, Direction.INGRESS))
            own, kind = underlay(11, version), socket.AF_INET if version == 4 else socket.AF_INET6
            text = (lambda one: f"[{one}]") if version == 6 else str
            serve(pair.datapath, f"{text(own)}:30080", f"{text(pair.b.address(version))}:{SERVED}", number=version)
            with pair.b.socket(version, socket.SOCK_STREAM) as server, inside(client_netns):
                client = socket.socket(kind, socket.SOCK_STREAM)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((str(pair.b.address(version)), SERVED))
                server.listen()
                for one in (server, client):
                    one.settimeout(15)
                with client:
                    client.connect((own, 30080))
                    accepted, peer = server.accept()
                    assert peer[0] == own
                    with accepted:
                        accepted.settimeout(15)
                        assert passed(client, accepted, sent) == sent
                        assert passed(accepted, client, sent) == sent
            after = tables.metrics().get((DropReason.TOO_BIG, Direction.INGRESS))
            assert after is not None
            assert before is None or after.packets > before.packets
        with inside(pair.one.netns):
            pair.datapath.detach("am-out")


def passed(writer: socket.socket, reader: socket.socket, sent: bytes) -> bytes:
    """What one reads while the other writes."""
    thread = threading.Thread(target=writer.sendall, args=(sent,))
    thread.start()
    got = bytearray()
    while len(got) < len(sent):
        part = reader.recv(1 << 20)
        assert part
        got += part
    thread.join()
    return bytes(got)


@contextmanager
def tun(netns: str, name: str) -> Iterator[int]:
    """A device without an Ethernet header, as WireGuard's: packets by its descriptor."""
    with inside(netns):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_packet(descriptor: int, version: int) -> bytes:
    """The next packet of a family."""
    while True:
        assert select.select([descriptor], [], [], 5)[0], "nothing came out of the device"
        raw = os.read(descriptor, 2000)
        if raw[0] >> 4 == version and not (version == 6 and raw[6] in (0, 58)):
            return raw


@pytest.mark.parametrize("version", [4, 6])
def test_a_device_without_an_ethernet_header(cache: Path, folder: Path, version: int) -> None:
    """What comes out of it reaches a pod and the node itself, whole; what a pod sends into it has a hop less."""
    away = "10.244.2.7" if version == 4 else "fd00:10:244:2::7"
    with live_node("tun") as node, tun(node.netns, "am-wg") as descriptor:
        run("ip", "-n", node.netns, "link", "set", "am-wg", "up")
        run("ip", "-n", node.netns, f"-{version}", "route", "add", away, "dev", "am-wg")
        datapath = opened(folder, cache, node)
        fill(datapath, node)
        datapath.tables.ipcache.put(at.PrefixKey.host(ip_address(away)), at.Peer(identity=77, flags=at.PeerFlag.POD))
        ifindex = ifindex_of(node.netns, "am-wg")
        datapath.tables.tunnels.put(at.LinkKey(ifindex=ifindex), tl.Tunnel(kind=TunnelKind.WIREGUARD, family=4))
        encrypt = at.ConfigFlag.ENCRYPT4 | at.ConfigFlag.ENCRYPT6
        refuse = at.ConfigFlag.REFUSE_PLAIN4 | at.ConfigFlag.REFUSE_PLAIN6
        datapath.tables.configure(at.Config(flags=at.ConfigFlag.TUNNELS | encrypt | refuse))
        with inside(node.netns):
            datapath.attach_endpoint(node.a.ifindex, node.a.device)
            datapath.attach_tunnel(ifindex, "am-wg")
            own = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        try:
            with node.a.socket(version, socket.SOCK_DGRAM) as pod, own:
                addresses = {"pod": str(node.a.address(version)), "node": underlay(11, version)}
                for receiver, address in ((pod, addresses["pod"]), (own, addresses["node"])):
                    receiver.settimeout(20)
                    receiver.bind((address, SERVED))
                    forged = frames.ip(str(node.b.address(version)), address, UDP, sealed(address, node, version))
                    os.write(descriptor, forged)
                    body = sealed(address, node, version, away)
                    os.write(descriptor, frames.ip(away, address, UDP, body))
                    data, sender = receiver.recvfrom(2000)
                    assert (data, sender[0]) == (b"hello", away), "and not what was forged before"
                pod.sendto(b"there", (away, 80))
                out = read_packet(descriptor, version)
                assert (read(out).payload, read(out).ttl) == (b"there", 63)
                own.sendto(b"own", (away, 80))
                assert read(read_packet(descriptor, version)).payload == b"own"
        finally:
            datapath.close()


def sealed(address: str, node: LiveNode, version: int, source: str = "") -> bytes:
    """A datagram for a socket of this test."""
    return seal(source or str(node.b.address(version)), address, UDP, frames.udp(80, SERVED))
