"""A node and two pods as real network namespaces, wired as the agent wires them, with the programs attached."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.datapath.programs import Datapath
from tests.bpf.world import ifindex_of, inside, namespace, run

UPLINK = "am-up"
HOST_MAC = "02:00:00:00:00:01"


@dataclass(frozen=True, slots=True)
class LivePod:
    """A pod that is really there."""

    netns: str
    device: str
    ifindex: int
    number: int
    identity: int
    mac: bytes

    def address(self, version: int) -> IPv4Address | IPv6Address:
        text = f"10.244.1.{self.number}" if version == 4 else f"fd00:10:244:1::{self.number}"
        return ip_address(text)

    def socket(self, version: int, kind: int) -> socket.socket:
        """A socket in the pod's namespace."""
        with inside(self.netns):
            return socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind)


@dataclass(frozen=True, slots=True)
class LiveNode:
    netns: str
    a: LivePod
    b: LivePod


def live_pod(node: str, netns: str, number: int) -> LivePod:
    device, mac = f"am-live{number}", f"02:aa:00:00:00:0{number}"
    v4, v6 = f"10.244.1.{number}", f"fd00:10:244:1::{number}"
    run("ip", "-n", node, "link", "add", device, "address", HOST_MAC, "type", "veth", "peer", "name", "eth0", "address",
        mac, "netns", netns)  # fmt: skip
    for command in ("addr add fe80::1/64 dev {0} nodad", "link set {0} up", f"route add {v4}/32 dev {{0}}",
                    f"route add {v6}/128 dev {{0}}", f"neigh add {v4} lladdr {mac} dev {{0}}",
                    f"neigh add {v6} lladdr {mac} dev {{0}}"):  # fmt: skip
        run("ip", "-n", node, *command.format(device).split())
    for command in (f"addr add {v4}/32 dev eth0", f"addr add {v6}/128 dev eth0 nodad", "link set eth0 up",
                    "route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1",
                    "route add default via fe80::1 dev eth0", f"neigh add 169.254.1.1 lladdr {HOST_MAC} dev eth0",
                    f"neigh add fe80::1 lladdr {HOST_MAC} dev eth0"):  # fmt: skip
        run("ip", "-n", netns, *command.split())
    return LivePod(netns, device, ifindex_of(node, device), number, 1000 + number, bytes.fromhex(mac.replace(":", "")))


@contextmanager
def live_node(label: str) -> Iterator[LiveNode]:
    """Namespaces am-<label>-<pid>-{n,a,b}, gone afterwards."""
    names = [f"am-{label}-{os.getpid()}-{suffix}" for suffix in "nab"]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(namespace(name))
        node = names[0]
        for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            run("nsenter", f"--net=/run/netns/{node}", "sysctl", "-qw", setting)
        run("ip", "-n", node, "addr", "add", "172.30.0.11/32", "dev", "lo")
        run("ip", "-n", node, "addr", "add", "fd00:172:30::11/128", "dev", "lo", "nodad")
        yield LiveNode(node, live_pod(node, names[1], 1), live_pod(node, names[2], 2))


@contextmanager
def two_nodes() -> Iterator[tuple[LiveNode, LiveNode]]:
    """Two nodes joined by a link, pod 1 on the first, pod 2 on the second, routed to each other (host-gw)."""
    pid = os.getpid()
    with ExitStack() as stack:
        names = [stack.enter_context(namespace(f"am-two-{pid}-{suffix}")) for suffix in ("n", "m", "a", "b")]
        one, other = names[0], names[1]
        for node in (one, other):
            # Without a link-local address that has stood its time of detection, no neighbour is asked for.
            run("nsenter", f"--net=/run/netns/{node}", "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        run("ip", "-n", one, "link", "add", UPLINK, "type", "veth", "peer", "name", UPLINK, "netns", other)
        for node, last in ((one, 11), (other, 12)):
            for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
                run("nsenter", f"--net=/run/netns/{node}", "sysctl", "-qw", setting)
            for command in (f"addr add 172.30.0.{last}/24", f"addr add fd00:172:30::{last}/64 nodad", "link set up"):
                run("ip", "-n", node, *command.split(), "dev", UPLINK)
        a, b = live_pod(one, names[2], 1), live_pod(other, names[3], 2)
        for node, pod, via in ((one, b, 12), (other, a, 11)):
            run("ip", "-n", node, "route", "add", f"{pod.address(4)}/32", "via", f"172.30.0.{via}")
            run("ip", "-n", node, "route", "add", f"{pod.address(6)}/128", "via", f"fd00:172:30::{via}")
        yield LiveNode(one, a, b), LiveNode(other, a, b)


def fill(datapath: Datapath, node: LiveNode, *, local: tuple[int, ...] = (1, 2)) -> None:
    """The maps as the agent would fill them: both pods known, nobody isolated, pods not ``local`` elsewhere."""
    tables = datapath.tables
    for pod in (node.a, node.b):
        if pod.number not in local:
            for version in (4, 6):
                peer = at.Peer(identity=pod.identity, flags=at.PeerFlag.POD)
                tables.ipcache.put(at.PrefixKey.host(pod.address(version)), peer)
            continue
        v4, v6 = pod.address(4), pod.address(6)
        tables.links.put(
            at.LinkKey(ifindex=pod.ifindex),
            at.Link(identity=pod.identity, address4=v4, address6=v6, mac=pod.mac, endpoint=pod.number),
        )
        endpoint = at.Endpoint(
            identity=pod.identity, ifindex=pod.ifindex, endpoint=pod.number, mac=pod.mac,
            host_mac=bytes.fromhex(HOST_MAC.replace(":", "")),
        )  # fmt: skip
        for address in (v4, v6):
            tables.endpoints.put(at.AddressKey(address=address), endpoint)
            tables.ipcache.put(at.PrefixKey.host(address), at.Peer(identity=pod.identity, flags=at.PeerFlag.POD))
        tables.set_budget(pod.number, 10_000)
        tables.subjects.put(
            pl.SubjectKey(identity=pod.identity), pl.Subject(ingress_isolated=False, egress_isolated=False)
        )
    last = 11 if 1 in local else 12
    for own in (f"172.30.0.{last}", f"fd00:172:30::{last}", "fe80::1"):
        tables.ipcache.put(at.PrefixKey.host(ip_address(own)), at.Peer(identity=1, flags=at.PeerFlag.NODE))
    tables.configure(at.Config())


def attach(datapath: Datapath, node: LiveNode) -> None:
    with inside(node.netns):
        for pod in (node.a, node.b):
            datapath.attach_endpoint(pod.ifindex, pod.device)


def opened(pins: Path, cache: Path, node: LiveNode, *, tcx: bool | None = None) -> Datapath:
    """A datapath opened where the agent lives: in the node's namespace."""
    with inside(node.netns):
        return Datapath.open(pins, cache, tcx=tcx)
