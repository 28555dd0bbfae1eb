"""Two nodes in two namespaces, each with its own programs and maps, and a link between their uplinks.

Node n has pods 10.244.n.1 (a) and 10.244.n.2 (b), and the underlay address 172.30.0.1n; likewise IPv6. Each pod has a
network namespace of its own, so that its sockets can be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from linux.netns import netns_cookie
from proto.addresses import Endpoint
from proto.identity import Reserved
from proto.net import Address
from proto.probes import Probe, ProbeResult
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath import tunnel_layout as tl
from services.dataplane.core.datapath.tunnel_layout import TunnelKind
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.core.monitor.flows import Interpreter
from services.dataplane.core.monitor.names import Names
from services.dataplane.core.policy.history import PolicyNames
from services.dataplane.datapath.programs import Datapath
from services.dataplane.doctor.dry_run import DryRun
from services.dataplane.doctor.probes import Node, result
from tests.bpf import frames
from tests.bpf.world import Rule, bpffs, empty, ifindex_of, inside, namespace, run, write_rules

VNI, PORT, MTU = 4096, 4789, 1400
WIRE = "am-wire"
PODS = ("a", "b")
DEVICES = {"vxlan": ("am-vxlan", TunnelKind.VXLAN), "ipip": ("am-ipip", TunnelKind.IPIP),
           "wireguard": ("am-wg", TunnelKind.WIREGUARD)}  # fmt: skip


def underlay(number: int, version: int = 4) -> Address:
    return ip_address(f"172.30.0.1{number}" if version == 4 else f"fd00:172:30::1{number}")


def pods_of(number: int, version: int) -> str:
    return f"10.244.{number}.0/24" if version == 4 else f"fd00:10:244:{number}::/64"


def mac_of(number: int) -> str:
    return f"02:aa:00:00:00:1{number}"


def vtep_of(number: int) -> str:
    return f"02:61:00:00:00:1{number}"


def identity_of(number: int, pod: str) -> int:
    return 1000 + number * 10 + PODS.index(pod)


@dataclass(slots=True)
class TestedNode:
    """One of the two."""

    __test__ = False
    number: int
    netns: str
    datapath: Datapath
    dry: DryRun
    pods: dict[str, LocalEndpoint]
    rules: list[Rule] = field(default_factory=list)
    names: dict[int, PolicyNames] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"n{self.number}"

    def address(self, pod: str, version: int) -> Address:
        return next(one for one in self.pods[pod].addresses if one.version == version)

    def ask(self, *probes: Probe) -> tuple[ProbeResult, ...]:
        """As the agent of this node answers."""
        tables = self.datapath.tables
        names = Names(endpoint_at=pod_at, nodes={underlay(n, v): f"n{n}" for n in (1, 2) for v in (4, 6)})
        interpreter = Interpreter(
            node=self.name, names=names, policies=lambda identity, _: self.names.get(identity), wall_offset=0
        )
        pods = {address: one for one in self.pods.values() for address in one.addresses}
        tunnels = {key.ifindex: one for key, one in tables.tunnels.items().items()}
        with inside(self.netns):
            node = Node(tables=tables, interpreter=interpreter, pods=pods, tunnels=tunnels)
            return tuple(result(node, self.dry, probe) for probe in probes)

    def isolate(self, pod: str, *, ingress: bool = False, egress: bool = False) -> None:
        """From now on only what rules allow, by a policy of the pod's name."""
        identity = self.pods[pod].identity
        self.datapath.tables.subjects.put(
            pl.SubjectKey(identity=identity),
            pl.Subject(
                ingress=identity * 2, egress=identity * 2 + 1, ingress_isolated=ingress, egress_isolated=egress,
                policy=1, namespace=bytes(8),
            ),
        )  # fmt: skip
        isolating = (f"shop/{pod}-in",) if ingress else (), (f"shop/{pod}-out",) if egress else ()
        self.names[identity] = PolicyNames("e1:7", (f"shop/{pod}-rule",), isolating)

    def allow(self, rule: Rule) -> None:
        self.rules.append(rule)
        write_rules(self.datapath.tables, rule.subject, rule.direction, self.rules)

    def reset(self) -> None:
        """Nobody is isolated, and pods of the other node are reached as they are."""
        for rule in self.rules:
            write_rules(self.datapath.tables, rule.subject, rule.direction, ())
        self.rules.clear()
        self.switch("host-gw")
        for pod in self.pods:
            self.isolate(pod)
        tables = self.datapath.tables
        empty(tables, ("services", "backends", "cookies"))

    def switch(self, model: str, version: int = 4, flags: int = 0) -> None:
        """The way to the other node's pods."""
        other, tables = 3 - self.number, self.datapath.tables
        device, hop = WIRE, str(underlay(other, version))
        if model != "host-gw":
            device = DEVICES[model][0]
            hop = hop if version == 4 else f"fe80::5efe:{underlay(other)}"
        prefix = pods_of(other, version)
        family = ("-6",) if version == 6 else ()
        onlink = ("onlink",) if model != "host-gw" else ()
        run("ip", "-n", self.netns, *family, "route", "replace", prefix, "via", hop, "dev", device, *onlink)
        flags |= 0 if model == "host-gw" else at.ConfigFlag.TUNNELS
        tables.configure(at.Config(flags=flags, events_per_second=1000, events_burst=1000))


def pod_at(address: Address) -> Endpoint | None:
    """The pod of either node, as a whole ipcache knows it."""
    for number in (1, 2):
        for index, pod in enumerate(PODS, 1):
            for version in (4, 6):
                if address == ip_network(pods_of(number, version))[index]:
                    return Endpoint(
                        node=f"n{number}", address=address, namespace="shop", pod=f"{pod}{number}", pod_uid="",
                        identity=identity_of(number, pod), mac=b"", epoch=1, sequence=1,
                    )  # fmt: skip
    return None


def _pod(netns: str, inner: str, number: int, pod: str) -> LocalEndpoint:
    device = f"am-{pod}"
    run("ip", "-n", netns, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", inner)
    run("ip", "-n", netns, "link", "set", device, "up")
    run("ip", "-n", inner, "link", "set", "eth0", "up")
    with inside(inner):
        cookie = netns_cookie()
    container = f"{number}{pod}"
    leases = tuple(
        Lease(
            address=ip_network(pods_of(number, version))[PODS.index(pod) + 1], container=container, interface="eth0",
            namespace="shop", pod=f"{pod}{number}", pod_uid=container, identity=identity_of(number, pod), nonce="",
            epoch=1, sequence=1, boot="", at=0.0,
        )
        for version in (4, 6)
    )  # fmt: skip
    return LocalEndpoint(
        attachment=Attachment(container, "eth0"), leases=leases, index=ifindex_of(netns, device), cookie=cookie
    )


def _devices(netns: str, number: int) -> None:
    other = 3 - number
    other_mac, vtep, own_vtep, own = mac_of(other), vtep_of(other), vtep_of(number), underlay(number)
    vxlan = f"type vxlan id {VNI} dstport {PORT} nolearning"
    commands = (
        f"link set {WIRE} address {mac_of(number)}",
        f"link set {WIRE} up",
        f"addr add {underlay(number)}/24 dev {WIRE}",
        f"addr add {underlay(number, 6)}/64 dev {WIRE} nodad",
        f"neigh add {underlay(other)} lladdr {other_mac} dev {WIRE} nud permanent",
        f"neigh add {underlay(other, 6)} lladdr {other_mac} dev {WIRE} nud permanent",
        f"link add am-vxlan address {own_vtep} mtu {MTU} {vxlan} local {own} df set",
        f"link add am-ipip mtu {MTU} type veth peer name am-ipip-p",
        f"link add am-wg mtu {MTU} type veth peer name am-wg-p",
        *(f"link set {device}-p arp off up" for device in ("am-ipip", "am-wg")),
        *(f"link set {device} arp off" for device in ("am-ipip", "am-wg")),
        *(f"link set {device} up" for device, _ in DEVICES.values()),
        f"neigh add {underlay(other)} lladdr {vtep} dev am-vxlan nud permanent",
        f"neigh add fe80::5efe:{underlay(other)} lladdr {vtep} dev am-vxlan nud permanent",
    )
    for setting in ("net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding"):
        run("nsenter", f"--net=/run/netns/{netns}", "sysctl", "-qw", f"{setting}=1")
    for command in commands:
        run("ip", "-n", netns, *command.split())


def _fill(node: TestedNode) -> None:
    tables, number, other = node.datapath.tables, node.number, 3 - node.number
    tables.uplinks.put(at.LinkKey(ifindex=ifindex_of(node.netns, WIRE)), at.Uplink())
    for one in node.pods.values():
        tables.links.put(at.LinkKey(ifindex=one.index), one.link())
        tables.set_budget(one.index, 1000)
        for address in one.addresses:
            tables.endpoints.put(at.AddressKey(address=address), one.delivery())
            tables.ipcache.put(at.PrefixKey.host(address), at.Peer(identity=one.identity, flags=at.PeerFlag.POD))
    tables.watch_table()
    for version in (4, 6):
        for index, pod in enumerate(PODS, 1):
            there = ip_network(pods_of(other, version))[index]
            peer = at.Peer(identity=identity_of(other, pod), flags=at.PeerFlag.POD)
            tables.ipcache.put(at.PrefixKey.host(there), peer)
        tables.ipcache.put(
            at.PrefixKey.host(underlay(number, version)), at.Peer(identity=Reserved.HOST, flags=at.PeerFlag.NODE)
        )
        tables.ipcache.put(
            at.PrefixKey.host(underlay(other, version)),
            at.Peer(identity=Reserved.REMOTE_NODE, flags=at.PeerFlag.NODE),
        )
        tables.tunnel_sources.put(at.PrefixKey.of(ip_network(pods_of(other, version))), tl.TunnelSource(node=7))
    vtep = frames.mac(vtep_of(other))
    tables.tunnel_peers.put(at.AddressKey(address=underlay(other)), tl.TunnelPeer(node=7, mac=vtep))
    for device, kind in DEVICES.values():
        index, is_vxlan = ifindex_of(node.netns, device), kind is TunnelKind.VXLAN
        tables.tunnels.put(
            at.LinkKey(ifindex=index),
            tl.Tunnel(
                kind=kind, family=4, port=PORT if is_vxlan else 0, vni=VNI if is_vxlan else 0, local=underlay(number),
                mac=frames.mac(vtep_of(number)),
            ),
        )  # fmt: skip
        if kind is not TunnelKind.WIREGUARD:
            tables.tunnel_ends.put(
                tl.TunnelEndKey(address=underlay(number), port=PORT if is_vxlan else 0, protocol=17 if is_vxlan else 4),
                tl.TunnelEnd(ifindex=index, vni=VNI if is_vxlan else 0),
            )


@contextmanager
def two_nodes(folder: Path, cache: Path) -> Iterator[dict[int, TestedNode]]:
    """The nodes by number; all of them is gone afterwards."""
    with ExitStack() as stack:
        pins = stack.enter_context(bpffs(folder / "bpffs"))
        names = {n: stack.enter_context(namespace(f"am-pr{n}-{os.getpid()}")) for n in (1, 2)}
        run("ip", "-n", names[1], "link", "add", WIRE, "type", "veth", "peer", "name", WIRE, "netns", names[2])
        nodes: dict[int, TestedNode] = {}
        for number, netns in names.items():
            _devices(netns, number)
            inner = {pod: stack.enter_context(namespace(f"am-pr{number}{pod}-{os.getpid()}")) for pod in PODS}
            pods = {pod: _pod(netns, inner[pod], number, pod) for pod in PODS}
            datapath = Datapath.open(pins / f"node{number}", cache)
            stack.callback(datapath.close)
            dry = stack.enter_context(closing(DryRun.open(datapath)))
            nodes[number] = TestedNode(number, netns, datapath, dry, pods)
            _fill(nodes[number])
        yield nodes


def inner_of(number: int, pod: str) -> str:
    """Name of a pod's namespace."""
    return f"am-pr{number}{pod}-{os.getpid()}"
