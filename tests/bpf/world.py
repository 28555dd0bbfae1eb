"""A node in one namespace: interfaces that stand for pods and an uplink, maps to fill, programs to run on frames."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from shutil import rmtree

from linux import bpf, netns
from proto.flow import DropReason
from proto.identity import Reserved
from proto.policy import Direction, PortMatch, Verdict
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.policy.scopes import flat_ports
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.tables import Tables
from services.dataplane.monitor.ring import EventReader
from tests.bpf import frames

COARSE = 6
"""``CLOCK_MONOTONIC_COARSE``: it moves with the ticks."""
LIBC = ctypes.CDLL(None, use_errno=True)
OK, SHOT, REDIRECT = 0, 2, 7
OUR_MAC = frames.mac("02:00:00:00:00:01")

TABLES = (
    "links", "uplinks", "endpoints", "ipcache", "cidrs", "subjects", "selected", "scope_peers", "scope_ports",
    "scope_rules", "flows", "budgets", "fragments", "services", "backends", "members", "source_ranges", "affinities",
    "reverses", "cookies", "nats", "clients", "tunnels", "tunnel_ends", "tunnel_peers", "tunnel_sources",
)  # fmt: skip


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace of ours, gone afterwards."""
    assert name.startswith("am-")
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "del", name)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread in another network namespace."""
    there = netns.open_netns(f"/run/netns/{name}")
    try:
        with netns.inside(there):
            yield
    finally:
        os.close(there)


def routes_changed() -> None:
    """Waits until programs ask the routing table again: two ticks of the kernel's clock (``bpf/fib.h``)."""
    for _ in range(2):
        before, until = time.clock_gettime(COARSE), time.monotonic() + 20
        while time.clock_gettime(COARSE) == before:
            assert time.monotonic() < until, "the kernel's clock stands still"


def ifindex_of(name: str, device: str) -> int:
    return int(run("ip", "-n", name, "-o", "link", "show", "dev", device).split(":")[0])


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of this node, as its link and endpoint entries say it."""

    ifindex: int
    number: int
    identity: int
    address4: IPv4Address
    address6: IPv6Address
    mac: bytes

    def address(self, version: int) -> IPv4Address | IPv6Address:
        return self.address4 if version == 4 else self.address6

    @property
    def link_local(self) -> str:
        return f"fe80::{self.number}:1"


class PeerKind(Enum):
    """How a line of these tests names its peer."""

    ANY = "any"
    IDENTITY = "identity"
    CIDR_SET = "CIDR set"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule with one peer and one port."""

    subject: int
    direction: Direction
    kind: PeerKind
    peer: int
    port: PortMatch
    precedence: int
    verdict: int
    rule: int

    @property
    def slot(self) -> tuple[object, ...]:
        return self.subject, self.direction, self.kind, self.peer, self.port


def scope_number(identity: int, direction: Direction) -> int:
    """The scope of a pod of these tests."""
    return identity * 2 + direction


def write_rules(tables: Tables, subject: int, direction: Direction, rules: Iterable[Rule]) -> None:
    """The scope of a subject as these lines have it. Each identity that they name has a selector set of its number."""
    scope = scope_number(subject, direction)
    mine = sorted(
        (line for line in rules if (line.subject, line.direction) == (subject, direction)),
        key=lambda line: (line.precedence, line.verdict),
    )
    tables.scope_peers.apply({}, [key for key in tables.scope_peers.items() if key.scope == scope])
    tables.scope_ports.apply({}, [key for key in tables.scope_ports.items() if key.scope == scope])
    tables.scope_rules.apply({}, [key for key in tables.scope_rules.items() if key.scope == scope])
    peers: dict[pl.ScopePeerKey, int] = {}
    for j, line in enumerate(mine):
        keys = {
            PeerKind.ANY: [(pl.PeerMatch.ANYBODY, 0), (pl.PeerMatch.ANY_POD, 0)],
            PeerKind.IDENTITY: [(pl.PeerMatch.SELECTOR_SET, line.peer)],
            PeerKind.CIDR_SET: [(pl.PeerMatch.CIDR_SET, line.peer)],
        }[line.kind]
        for kind, peer in keys:
            key = pl.ScopePeerKey(scope=scope, kind=kind, peer=peer)
            peers[key] = peers.get(key, 0) | 1 << j
        if line.kind is PeerKind.IDENTITY:
            tables.selected.put(pl.IdentityKey(identity=line.peer), pl.SelectorSet(number=line.peer))
    ports = flat_ports((line.port, 1 << j) for j, line in enumerate(mine))
    tables.scope_peers.apply({key: pl.ScopeBits(bits=bits) for key, bits in peers.items()})
    tables.scope_ports.apply(
        {
            pl.ScopePortKey.of(scope, port.protocol, port.port, port.bits): pl.ScopeBits(bits=bits)
            for port, bits in ports.items()
        }
    )
    tables.scope_rules.apply(
        {
            pl.ScopeRuleKey(scope=scope, index=j): pl.ScopeRule(rule=line.rule, verdict=line.verdict)
            for j, line in enumerate(mine)
        }
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program did with a frame. ``reason`` is None when no event was told."""

    action: int
    reason: DropReason | None
    frame: bytes
    event: at.Event | None

    def __str__(self) -> str:
        name = {OK: "stack", SHOT: "drop", REDIRECT: "redirect"}[self.action]
        return name if self.reason is None else f"{name} {self.reason.name}"


class World:
    """The maps and programs of one node, and the verbs of the tests."""

    def __init__(self, datapath: Datapath, netns: str) -> None:
        self.datapath = datapath
        self.netns = netns
        self.tables = datapath.tables
        self.reader = EventReader(self.tables.events_fd, lambda events: None)
        self.wire = ifindex_of(netns, "am-wire")
        self.a = self._pod("am-a", 1)
        self.b = self._pod("am-b", 2)
        self._rules: list[Rule] = []

    def _pod(self, device: str, number: int) -> Pod:
        return Pod(
            ifindex=ifindex_of(self.netns, device),
            number=number,
            identity=1000 + number,
            address4=IPv4Address(f"10.244.1.{number}"),
            address6=IPv6Address(f"fd00:10:244:1::{number}"),
            mac=frames.mac(f"02:aa:00:00:00:0{number}"),
        )

    def reset(self) -> None:
        """Empties every map, then: two pods that are known and not isolated, a remote pod, the node, a remote node."""
        empty(self.tables, TABLES)
        self._rules = []
        for descriptor, size in (("am_throttle", 8),):
            fd = self.tables.descriptors[descriptor]
            while (key := next_key(fd, size)) is not None:
                bpf.delete(fd, key)
        self.tables.configure(at.Config(events_per_second=1_000_000, events_burst=1_000_000))
        self.reader.drain(1 << 20)
        self.tables.uplinks.apply(
            {at.LinkKey(ifindex=self.wire): at.Uplink(), at.LinkKey(ifindex=1): at.Uplink(flags=at.UplinkFlag.LOCAL)}
        )
        for pod in (self.a, self.b):
            self.add(pod)
            self.isolate(pod.identity)
        self.know("10.244.2.0/24", 2001, at.PeerFlag.POD)
        self.know("fd00:10:244:2::/64", 2001, at.PeerFlag.POD)
        self.know("172.30.0.11/32", Reserved.HOST, at.PeerFlag.NODE)
        self.know("fd00:172:30::11/128", Reserved.HOST, at.PeerFlag.NODE)
        self.tables.speak_as((IPv4Address("172.30.0.11"), IPv6Address("fd00:172:30::11")))
        self.know("172.30.0.12/32", Reserved.REMOTE_NODE, at.PeerFlag.NODE)
        self.know("fd00:172:30::12/128", Reserved.REMOTE_NODE, at.PeerFlag.NODE)

    def add(self, pod: Pod, *, budget: int = 1000) -> None:
        tables = self.tables
        tables.links.put(
            at.LinkKey(ifindex=pod.ifindex),
            at.Link(
                identity=pod.identity, address4=pod.address4, address6=pod.address6, mac=pod.mac, endpoint=pod.number
            ),
        )
        for address in (pod.address4, pod.address6):
            tables.endpoints.put(
                at.AddressKey(address=address),
                at.Endpoint(
                    identity=pod.identity, ifindex=pod.ifindex, endpoint=pod.number, mac=pod.mac, host_mac=OUR_MAC
                ),
            )
            tables.ipcache.put(at.PrefixKey.host(address), at.Peer(identity=pod.identity, flags=at.PeerFlag.POD))
        tables.set_budget(pod.number, budget)

    def limit(self, pod: Pod, flows: int) -> None:
        """Gives a pod another budget, with nothing counted yet."""
        self.tables.budgets.remove(at.EndpointKey(endpoint=pod.number))
        self.tables.set_budget(pod.number, flows)

    def connect(self, one: Pod, other: Pod, dport: int, *, sport: int = 4000, version: int = 4) -> list[str]:
        """A handshake between two pods; what became of its three packets."""
        there, back = one.address(version), other.address(version)
        steps = (
            (one, there, back, frames.tcp(sport, dport, frames.SYN, sequence=100)),
            (other, back, there, frames.tcp(dport, sport, frames.SYN | frames.ACK, sequence=900, acknowledged=101)),
            (one, there, back, frames.tcp(sport, dport, frames.ACK, sequence=101, acknowledged=901)),
        )
        return [str(self.from_pod(pod, frames.ip(src, dst, frames.TCP, raw))) for pod, src, dst, raw in steps]

    def forget_recent(self) -> None:
        """The places of flows that are not established are free, and no peer holds any."""
        tables = self.tables
        empty_set, none = at.Recent(room=bytes(208)), at.Held(count=0)
        for table in (tables.recent, tables.nat_recent):
            table.apply({key: empty_set for key, value in table.items().items() if value != empty_set})
        tables.peers.apply({key: none for key, value in tables.peers.items().items() if value != none})

    def know(self, network: str, identity: int, flags: int = 0) -> None:
        self.tables.ipcache.put(at.PrefixKey.of(ip_network(network)), at.Peer(identity=identity, flags=flags))

    def cidr(self, network: str, number: int, namespace: bytes = bytes(8)) -> None:
        self.tables.cidrs.put(pl.CidrKey.of(namespace, ip_network(network)), pl.CidrNumber(number=number))

    def isolate(
        self, identity: int, *, ingress: bool = False, egress: bool = False, namespace: bytes = bytes(8)
    ) -> None:
        self.tables.subjects.put(
            pl.SubjectKey(identity=identity),
            pl.Subject(
                ingress=scope_number(identity, Direction.INGRESS), egress=scope_number(identity, Direction.EGRESS),
                ingress_isolated=ingress, egress_isolated=egress, policy=1, namespace=namespace,
            ),
        )  # fmt: skip

    def rule(
        self, subject: Pod, direction: Direction, kind: PeerKind = PeerKind.ANY, peer: int = 0, *, protocol: int = 0,
        port: int = 0, bits: int = 0, precedence: int = 100, verdict: Verdict = Verdict.ALLOW, rule: int = 0,
    ) -> Rule:  # fmt: skip
        """One line more of a pod's policy; of two that are alike the later stays."""
        line = Rule(
            subject.identity,
            direction,
            kind,
            int(peer),
            PortMatch(protocol, port, bits),
            precedence,
            int(verdict),
            rule,
        )
        self._rules = [one for one in self._rules if one.slot != line.slot]
        self._rules.append(line)
        write_rules(self.tables, line.subject, direction, self._rules)
        return line

    def unrule(self, line: Rule) -> None:
        """A right is taken away; live flows are not told."""
        self._rules.remove(line)
        write_rules(self.tables, line.subject, line.direction, self._rules)

    def from_pod(self, pod: Pod, packet: bytes, *, mac: bytes | None = None, kind: int | None = None) -> Outcome:
        return self._run("from_pod", self._frame(packet, mac or pod.mac, kind), pod.ifindex, pod.ifindex)

    def to_pod(self, pod: Pod, packet: bytes, *, received_on: int = 0, kind: int | None = None) -> Outcome:
        return self._run("to_pod", self._frame(packet, OUR_MAC, kind), pod.ifindex, received_on)

    def from_wire(self, packet: bytes, *, kind: int | None = None) -> Outcome:
        return self._run("from_wire", self._frame(packet, OUR_MAC, kind), self.wire, self.wire)

    def to_wire(self, packet: bytes, *, received_on: int = 0) -> Outcome:
        return self._run("to_wire", self._frame(packet, OUR_MAC, None), self.wire, received_on)

    def send(self, packet: bytes) -> None:
        """Pod a sends; whatever is told stays in the ring."""
        context = struct.pack("<36xII", self.a.ifindex, self.a.ifindex)
        with inside(self.netns):
            bpf.run_on(self.datapath.programs["from_pod"], self._frame(packet, self.a.mac, None), context=context)

    def sender(self, program: str, pod: Pod | None) -> Callable[[bytes], int]:
        """A quick way to run one program many times (pod None: on the uplink): what it did, without what it told."""
        ifindex, source = (pod.ifindex, pod.mac) if pod else (self.wire, OUR_MAC)
        context, descriptor = struct.pack("<36xII", ifindex, ifindex), self.datapath.programs[program]

        def send(packet: bytes) -> int:
            with inside(self.netns):
                return bpf.run_on(descriptor, self._frame(packet, source, None), context=context).value

        return send

    @staticmethod
    def _frame(packet: bytes, source: bytes, kind: int | None) -> bytes:
        if kind is None:
            kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
        return frames.eth(packet, source=source, kind=kind)

    def _run(self, program: str, frame: bytes, ifindex: int, received_on: int) -> Outcome:
        with inside(self.netns):
            result = bpf.run_on(
                self.datapath.programs[program], frame, context=struct.pack("<36xII", received_on, ifindex)
            )
        reported = self.reader.drain()
        event = reported[-1] if reported else None
        return Outcome(result.value, DropReason(event.reason) if event else None, result.packet, event)


def empty(tables: Tables, names: Iterable[str]) -> None:
    """Takes everything out of these tables."""
    for name in names:
        table = getattr(tables, name)
        table.apply({}, tuple(table.items()))


def next_key(fd: int, size: int) -> bytes | None:
    """The first key of a map, None for an empty one."""
    out = ctypes.create_string_buffer(size)
    attr = struct.pack("<IIQQQ", fd, 0, 0, ctypes.addressof(out), 0)
    result, _ = bpf._call(bpf.Command.MAP_NEXT_KEY, attr, expected=(2,))
    return None if result < 0 else out.raw


@contextmanager
def bpffs(folder: Path) -> Iterator[Path]:
    """A bpf file system of our own, gone afterwards with all that is pinned on it.

    Every pin is removed by itself: a lab's kubelet that was started meanwhile has a copy of the mount in its own mount
    namespace, and would keep what is pinned there for as long as it runs.
    """
    folder.mkdir(parents=True)
    run("mount", "-t", "bpf", "bpf", str(folder))
    try:
        yield folder
    finally:
        for pinned in folder.iterdir():
            if pinned.is_dir():
                rmtree(pinned)
            elif pinned.suffix != ".debug":  # the kernel's own iterators
                pinned.unlink()
        run("umount", str(folder))


def both(address: str) -> int:
    """4 or 6."""
    return ip_address(address).version
