"""A client, a router, two nodes and their pods as network namespaces, with the programs and without agents.

::

    client ──── edge ══1450══ router ──── one (172.30.0.11): pods 1 and 2
    192.0.2.5                   ╚══1400══ back ──── other (172.30.1.12): pod 3

Two links in the middle are narrower than what both ends see, so whoever sends large packets has to be told by ICMP.
The router reckons the checksums of what it sends there: until then those of local senders are only begun.
Servers answer ``<name> <address they see>`` and give back whatever they are sent.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from proto.identity import Reserved
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath.service_layout import ServiceFlag
from services.dataplane.datapath.programs import Datapath
from tests.bpf.frontends import PLAIN, PROTOCOLS, serve
from tests.bpf.live import HOST_MAC, LivePod, live_pod
from tests.bpf.world import ifindex_of, inside, namespace, run

UPLINK = "am-up"
PORT = 30080
TARGET = 8080
CLIENT = {4: "192.0.2.5", 6: "2001:db8::5"}
ONE = {4: "172.30.0.11", 6: "fd00:172:30::11"}
OTHER = {4: "172.30.1.12", 6: "fd00:172:31::12"}
VIP = {4: "203.0.113.250", 6: "2001:db8:113::250"}
_SIOCETHTOOL, _STXCSUM = 0x8946, 0x17
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def family(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def opened(netns: str, version: int, kind: str) -> socket.socket:
    """A socket in a namespace."""
    with inside(netns):
        return socket.socket(family(version), KINDS[kind])


def _set(netns: str, *settings: str) -> None:
    run("nsenter", f"--net=/run/netns/{netns}", "sysctl", "-qw", *settings)


def _ip(netns: str, *commands: str) -> None:
    for command in commands:
        run("ip", "-n", netns, *command.split())


@dataclass
class Town:
    """All of it."""

    client: str
    router: str
    one: str
    other: str
    pods: dict[int, LivePod]
    datapaths: dict[str, Datapath] = field(default_factory=dict)

    def serve(
        self, version: int, kind: str, *backends: str, frontend: str = "", flags: ServiceFlag = PLAIN,
        affinity: int = 0, ranges: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """What ``one`` does with packets to its port: backends by address."""
        serve(
            self.datapaths[self.one],
            end(frontend or ONE[version], PORT),
            *(end(backend, TARGET) for backend in backends),
            protocol=PROTOCOLS[kind],
            flags=flags,
            affinity=affinity,
            ranges=ranges,
            number=version * 100 + PROTOCOLS[kind],
        )

    def pod(self, number: int, version: int) -> str:
        return str(self.pods[number].address(version))

    def ask(self, version: int, kind: str, *, netns: str = "", address: str = "", seconds: float = 2.0) -> str:
        """One connection or datagram from the client to ``one``'s port: the answer; empty without one."""
        with opened(netns or self.client, version, kind) as asking:
            asking.settimeout(seconds)
            try:
                asking.connect((address or ONE[version], PORT))
                asking.send(b"?")
                return asking.recv(200).decode().removesuffix("?")
            except TimeoutError:
                return ""


def _link(netns: str, router: str, four: str, six: str, last: int) -> None:
    """A leaf and its gateway, which is ``.1``."""
    device = f"am-r{last}"
    run("ip", "-n", netns, "link", "add", UPLINK, "type", "veth", "peer", "name", device, "netns", router)
    _ip(router, f"addr add {four}.1/24 dev {device}", f"addr add {six}1/64 dev {device} nodad", f"link set {device} up")
    _ip(netns, f"addr add {four}.{last}/24 dev {UPLINK}", f"addr add {six}{last}/64 dev {UPLINK} nodad",
        f"link set {UPLINK} up", f"route add default via {four}.1", f"route add default via {six}1")  # fmt: skip


def _sum_in_software(netns: str, device: str) -> None:
    """Checksums that were put off until the device are reckoned when it sends, so that a wrong one is noticed."""
    value = array.array("I", (_STXCSUM, 0))
    with inside(netns), socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, struct.pack("16sP", device.encode(), value.buffer_info()[0]))


def _trunk(leaf: str, router: str, number: int, mtu: int, *behind: str) -> None:
    """A narrow link from the router to another; ``behind`` is what lies there."""
    device, four, six = f"am-t{number}", f"10.9.{number}", f"fd00:9:{number}::"
    run("ip", "-n", router, "link", "add", device, "type", "veth", "peer", "name", device, "netns", leaf)
    for netns, last in ((router, 1), (leaf, 2)):
        _ip(netns, f"addr add {four}.{last}/24 dev {device}", f"addr add {six}{last}/64 dev {device} nodad",
            f"link set {device} up mtu {mtu}")  # fmt: skip
    _sum_in_software(router, device)
    _ip(leaf, f"route add default via {four}.1", f"route add default via {six}1")
    _ip(router, *(f"route add {net} via {six if ':' in net else four + '.'}2" for net in behind))


def _wire(town: Town, edge: str, back: str) -> None:
    _link(town.client, edge, "192.0.2", "2001:db8::", 5)
    _link(town.one, town.router, "172.30.0", "fd00:172:30::", 11)
    _link(town.other, back, "172.30.1", "fd00:172:31::", 12)
    pod3 = town.pods[3]
    _trunk(edge, town.router, 1, 1450, "192.0.2.0/24", "2001:db8::/64")
    _trunk(
        back,
        town.router,
        2,
        1400,
        "172.30.1.0/24",
        "fd00:172:31::/64",
        f"{pod3.address(4)}/32",
        f"{pod3.address(6)}/128",
    )
    for near, pods, node in ((town.router, (1, 2), ONE), (back, (3,), OTHER)):
        for number in pods:
            pod = town.pods[number]
            _ip(near, f"route add {pod.address(4)}/32 via {node[4]}", f"route add {pod.address(6)}/128 via {node[6]}")
    _ip(town.router, f"route add {VIP[4]}/32 via {ONE[4]}", f"route add {VIP[6]}/128 via {ONE[6]}")


def _fill(datapath: Datapath, town: Town, *, local: tuple[int, ...], own: dict[int, str], peer: dict[int, str]) -> None:
    tables = datapath.tables
    for number, pod in town.pods.items():
        for version in (4, 6):
            entry = at.Peer(identity=pod.identity, flags=at.PeerFlag.POD)
            tables.ipcache.put(at.PrefixKey.host(pod.address(version)), entry)
        if number not in local:
            continue
        v4, v6 = pod.address(4), pod.address(6)
        link = at.Link(identity=pod.identity, address4=v4, address6=v6, mac=pod.mac, endpoint=number)
        tables.links.put(at.LinkKey(ifindex=pod.ifindex), link)
        mac = bytes.fromhex(HOST_MAC.replace(":", ""))
        delivery = at.Endpoint(identity=pod.identity, ifindex=pod.ifindex, endpoint=number, mac=pod.mac, host_mac=mac)
        for address in (v4, v6):
            tables.endpoints.put(at.AddressKey(address=address), delivery)
        tables.set_budget(number, 10_000)
        tables.subjects.put(
            pl.SubjectKey(identity=pod.identity), pl.Subject(ingress_isolated=False, egress_isolated=False)
        )
    for addresses, identity in ((own, Reserved.HOST), (peer, Reserved.REMOTE_NODE)):
        for text in addresses.values():
            key = at.PrefixKey.host(ip_address(text))
            tables.ipcache.put(key, at.Peer(identity=identity, flags=at.PeerFlag.NODE))
    tables.speak_as([ip_address(address) for address in own.values()])
    tables.configure(at.Config())


class Server:
    """Answers in a thread of its own until it is closed."""

    def __init__(self, netns: str, version: int, kind: str, name: str, address: str = "") -> None:
        self._name = name
        self._socket = opened(netns, version, kind)
        if version == 6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address or ("0.0.0.0" if version == 4 else "::"), TARGET))
        if kind == "tcp":
            self._socket.listen(64)
        threading.Thread(target=self._accept if kind == "tcp" else self._reply, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, peer = self._socket.accept()
                threading.Thread(target=self._echo, args=(connection, peer[0]), daemon=True).start()

    def _echo(self, connection: socket.socket, peer: str) -> None:
        with connection, suppress(OSError):
            connection.sendall(f"{self._name} {peer}".encode())
            while raw := connection.recv(1 << 20):
                connection.sendall(raw)

    def _reply(self) -> None:
        with suppress(OSError):
            while True:
                raw, peer = self._socket.recvfrom(1 << 16)
                if peer is None:  # shut down
                    return
                self._socket.sendto(f"{self._name} {peer[0]}".encode() + raw, peer)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextmanager
def town(pins: Path, cache: Path, *, tcx: bool | None = None) -> Iterator[Town]:
    """Everything up, servers on every pod and on the first node; nothing is left of it."""
    with ExitStack() as stack:
        names = [stack.enter_context(namespace(f"am-out-{os.getpid()}-{s}")) for s in "crnmeb123"]
        client, router, one, other, edge, back, *homes = names
        for name in names:
            _set(name, "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        for name in (router, one, other, edge, back):
            _set(name, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        pods = {n: live_pod(one if n < 3 else other, homes[n - 1], n) for n in (1, 2, 3)}
        built = Town(client, router, one, other, pods)
        _wire(built, edge, back)
        for node, local, own, peer in ((one, (1, 2), ONE, OTHER), (other, (3,), OTHER, ONE)):
            with inside(node):
                datapath = Datapath.open(pins / node, cache, tcx=tcx)
                stack.callback(datapath.close)
                for number in local:
                    datapath.attach_endpoint(pods[number].ifindex, pods[number].device)
                datapath.attach_uplink(ifindex_of(node, UPLINK), UPLINK)
            built.datapaths[node] = datapath
            _fill(datapath, built, local=local, own=own, peer=peer)
        for version in (4, 6):
            for kind in KINDS:
                for number, pod in pods.items():
                    server = Server(pod.netns, version, kind, f"pod{number}")
                    stack.callback(server.close)
                for node, name, address in ((one, "one", ONE[version]), (other, "other", OTHER[version])):
                    server = Server(node, version, kind, name, address)
                    stack.callback(server.close)
        yield built
