"""Whose word counts by which way in: an identity of the cluster is believed only where it can come from.

``to_pod`` and ``to_wire`` see what the node's stack hands on, and know by which interface it came; the live tests send
tagged frames and frames by another card through real interfaces.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from proto.flow import DropReason
from proto.identity import Reserved
from proto.policy import Direction
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.datapath.programs import Datapath
from tests.bpf import frames
from tests.bpf.frames import ACK, ICMP, ICMP6, SYN, TCP, UDP, mac
from tests.bpf.frontends import Names, seal
from tests.bpf.live import HOST_MAC, UPLINK, LiveNode, attach, fill, live_node, opened
from tests.bpf.world import World, ifindex_of, inside, run

pytestmark = pytest.mark.privileged

CARD = 4242
"""An interface that the agent was told nothing of."""
LOOPBACK = 1
APISERVER = {4: "172.30.0.20", 6: "fd00:172:30::20"}
FAMILIES = pytest.mark.parametrize("version", [4, 6])
WAYS = {"itself": 0, "loopback": LOOPBACK, "card": CARD}


def bare(name: str) -> str:
    return name.strip("[]")


def sources(n: Names) -> dict[str, str]:
    """Everybody there is."""
    return {
        "world": bare(n.client),
        "node": bare(n.node),
        "other node": bare(n.other),
        "apiserver": APISERVER[n.version],
        "pod here": bare(n.second),
        "pod away": bare(n.away),
    }


def segment(source: str, destination: str, *, sport: int = 4000, dport: int = 80, flags: int = SYN) -> bytes:
    return frames.ip(source, destination, TCP, frames.tcp(sport, dport, flags))


@pytest.fixture
def n(world: World, version: int) -> Names:
    world.know(f"{APISERVER[version]}/{32 if version == 4 else 128}", Reserved.KUBE_APISERVER)
    return Names(version)


MAY = {
    "itself": set(sources(Names(4))),
    "loopback": set(sources(Names(4))),
    "wire": {"world", "other node", "apiserver", "pod away"},
    "card": {"world"},
    "pod a's link": {"pod here"},
    "pod b's link": set(),
}  # fmt: skip


@FAMILIES
@pytest.mark.parametrize("way", MAY)
class TestToPod:
    """What the stack hands to pod b."""

    def by(self, world: World, way: str) -> int:
        links = {"wire": world.wire, "pod a's link": world.a.ifindex, "pod b's link": world.b.ifindex}
        return links[way] if way in links else WAYS[way]

    def test_who_is_accepted(self, world: World, n: Names, way: str) -> None:
        passed = set()
        for who, source in sources(n).items():
            outcome = world.to_pod(world.b, segment(source, bare(n.pod)), received_on=self.by(world, way))
            assert str(outcome) in ("stack", "drop SPOOFED_ADDRESS")
            passed |= {who} if outcome.action == 0 else set()
        assert passed == MAY[way]

    def test_reported_with_where_it_came_by(self, world: World, n: Names, way: str) -> None:
        source = next((source for who, source in sources(n).items() if who not in MAY[way]), None)
        if source is not None:
            outcome = world.to_pod(world.b, segment(source, bare(n.pod)), received_on=self.by(world, way))
            assert outcome.event is not None
            assert (outcome.event.ifindex, outcome.event.endpoint) == (self.by(world, way), world.b.number)

    def test_nor_in_a_flow_that_there_is(self, world: World, n: Names, way: str) -> None:
        """The forger knows ports, and the policy has changed since or has not."""
        for who, source in sources(n).items():
            if who in MAY[way]:
                continue
            key = at.FlowKey(
                local=ip_address(bare(n.pod)), remote=ip_address(source), local_port=80, remote_port=4000, protocol=TCP
            )
            flow = at.Flow(last_seen=1, generation=0, endpoint=world.b.number, rule=0, seen=1, flags=0, side=0)
            world.tables.flows.put(key, flow)
            for _ in range(2):
                raw = segment(source, bare(n.pod), flags=ACK)
                assert str(world.to_pod(world.b, raw, received_on=self.by(world, way))) == "drop SPOOFED_ADDRESS"
                world.tables.bump_generation()

    def test_errors_and_neighbours(self, world: World, n: Names, way: str) -> None:
        if not self.by(world, way):
            return
        protocol = ICMP if n.version == 4 else ICMP6
        for body in (redirects(n.version), *advertisements(n.version)):
            raw = frames.ip(bare(n.client), bare(n.pod), protocol, body, **{"ttl" if n.version == 4 else "hops": 255})
            outcome = str(world.to_pod(world.b, raw, received_on=self.by(world, way)))
            assert outcome.startswith("drop SPOOFED_")


def redirects(version: int) -> bytes:
    return struct.pack(">BBHI", 5, 1, 0, 0) + bytes(28) if version == 4 else frames.icmp6(137, bytes(36))


def advertisements(version: int) -> list[bytes]:
    if version == 4:
        return []
    solicitation, advertisement = (frames.neighbour(kind, "fe80::1", mac("02:aa:00:00:00:09")) for kind in (135, 136))
    return [frames.icmp6(133, bytes(4)), frames.icmp6(134, bytes(12)), solicitation, advertisement]


@FAMILIES
class TestFromWire:
    def test_link_local_matters_stay_on_their_link(self, world: World, n: Names) -> None:
        protocol, hops = (ICMP, {"ttl": 255}) if n.version == 4 else (ICMP6, {"hops": 255})
        for body in (redirects(n.version), *advertisements(n.version)):
            for source in (bare(n.client), *(["fe80::99", "fe80::1"] if n.version == 6 else [])):
                outcome = str(world.from_wire(frames.ip(source, bare(n.pod), protocol, body, **hops)))
                assert outcome in ("drop SPOOFED_NEIGHBOUR", "drop SPOOFED_ADDRESS")
        if n.version == 6:
            assert str(world.from_wire(segment("fe80::99", bare(n.pod)))) == "drop SPOOFED_ADDRESS"

    def test_tag_that_was_not_taken_off(self, world: World, n: Names) -> None:
        for kind in (0x8100, 0x88A8):
            tagged = struct.pack(">HH", 0, 0x0800) + segment("10.244.1.1", "10.244.1.2")
            assert str(world.from_wire(tagged, kind=kind)) == "drop NOT_IP"


@FAMILIES
class TestToWire:
    """What the stack forwards, and the next node will believe."""

    def test_from_a_card_comes_the_world_alone(self, world: World, n: Names) -> None:
        said = {
            who: str(world.to_wire(segment(source, bare(n.away)), received_on=CARD))
            for who, source in sources(n).items()
        }
        assert said == {who: "stack" if who == "world" else "drop SPOOFED_ADDRESS" for who in said}

    def test_whoever_has_got_the_nodes_address_may_use_it_outside(self, world: World, n: Names) -> None:
        """Containers that are no pods, which the node's own rules masquerade."""
        for destination, expected in ((n.client, "stack"), (n.other, "stack"), (n.pod, "drop SPOOFED_ADDRESS")):
            raw = segment(bare(n.node), bare(destination))
            assert str(world.to_wire(raw, received_on=CARD)) == expected

    def test_what_was_judged_as_it_came(self, world: World, n: Names) -> None:
        for received_on in (0, world.wire, world.a.ifindex):
            for source in sources(n).values():
                assert str(world.to_wire(segment(source, bare(n.away)), received_on=received_on)) == "stack"

    def test_cut_short(self, world: World, n: Names) -> None:
        raw = segment(bare(n.client), bare(n.away))
        wrong = bytes([raw[0] & 15 | 0x50]) + raw[1:]
        kind = 0x0800 if n.version == 4 else 0x86DD
        frame = frames.eth(wrong, source=mac(HOST_MAC), kind=kind)
        assert str(world._run("to_wire", frame, world.wire, CARD)) == "drop MALFORMED"


class TestKept:
    def test_what_is_reported_no_more_is_accepted_no_more(self, world: World) -> None:
        away = segment("10.244.2.7", "10.244.1.2")
        world.datapath.keep_uplinks([world.wire, CARD], LOOPBACK)
        assert str(world.to_pod(world.b, away, received_on=CARD)) == "stack"
        world.datapath.keep_uplinks([world.wire], LOOPBACK)
        assert str(world.to_pod(world.b, away, received_on=CARD)) == "drop SPOOFED_ADDRESS"
        assert str(world.to_pod(world.b, away, received_on=world.wire)) == "stack"
        assert world.tables.uplinks.items() == {
            at.LinkKey(ifindex=world.wire): at.Uplink(),
            at.LinkKey(ifindex=LOOPBACK): at.Uplink(flags=at.UplinkFlag.LOCAL),
        }

    @FAMILIES
    def test_what_is_for_another_is_not_tracked_as_the_pods(self, world: World, n: Names) -> None:
        for received_on in (0, world.wire):
            raw = segment(bare(n.other), bare(n.second))
            assert str(world.to_pod(world.b, raw, received_on=received_on)) == "drop ENDPOINT_GONE"
        assert world.tables.flows.items() == {}


@dataclass(frozen=True, slots=True)
class Edge:
    """A node with an uplink and a card that nobody told its agent of, and the far ends of both."""

    node: LiveNode
    datapath: Datapath
    macs: dict[str, bytes]

    def send(self, way: str, packet: bytes, *, tags: tuple[int, ...] = (), kind: int = 0x8100) -> None:
        """A frame with these VLAN tags from the far end of an interface."""
        payload, ethertype = packet, 0x0800 if packet[0] >> 4 == 4 else 0x86DD
        for tag in reversed(tags):
            payload, ethertype = struct.pack(">HH", tag, ethertype) + payload, kind
        with inside(self.node.netns + "o"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((f"{way}p", 0))
            raw.send(frames.eth(payload, source=mac("02:cc:00:00:00:01"), destination=self.macs[way], kind=ethertype))

    def dropped(self, reason: DropReason) -> int:
        metric = self.datapath.tables.metrics().get((reason, Direction.INGRESS))
        return metric.packets if metric else 0


@contextmanager
def edge(folder: Path, cache: Path, way: bool) -> Iterator[Edge]:
    with live_node("edge") as node:
        outside = node.netns + "o"
        run("ip", "netns", "add", outside)
        try:
            macs = {}
            for device in (UPLINK, "am-card"):
                run(
                    "ip",
                    "-n",
                    node.netns,
                    "link",
                    "add",
                    device,
                    "type",
                    "veth",
                    "peer",
                    f"{device}p",
                    "netns",
                    outside,
                )
                for netns, name in ((node.netns, device), (outside, f"{device}p")):
                    run("ip", "-n", netns, "link", "set", name, "up")
                for setting in ("rp_filter=0", "accept_local=1"):  # the least that a node may say about sources
                    for where in ("all", device):
                        knob = f"net.ipv4.conf.{where}.{setting}"
                        run("nsenter", f"--net=/run/netns/{node.netns}", "sysctl", "-qw", knob)
                text = run("ip", "-n", node.netns, "-o", "link", "show", "dev", device).split("link/ether ")[1]
                macs[device] = mac(text.split()[0])
            datapath = opened(folder, cache, node, tcx=way)
            fill(datapath, node)
            attach(datapath, node)
            with inside(node.netns):
                index = ifindex_of(node.netns, UPLINK)
                datapath.attach_uplink(index, UPLINK)
                datapath.keep_uplinks([index], LOOPBACK)
            for address in ("10.244.2.7", "fd00:10:244:2::7"):
                key = at.PrefixKey.host(ip_address(address))
                datapath.tables.ipcache.put(key, at.Peer(identity=2001, flags=at.PeerFlag.POD))
            yield Edge(node, datapath, macs)
            datapath.close()
        finally:
            run("ip", "netns", "del", outside)


@pytest.fixture(params=["tcx", "clsact"])
def outer(request: pytest.FixtureRequest, folder: Path, cache: Path) -> Iterator[Edge]:
    with edge(folder, cache, request.param == "tcx") as built:
        yield built


def datagram(source: str, destination: str, text: bytes) -> bytes:
    return frames.ip(source, destination, UDP, seal(source, destination, UDP, frames.udp(4000, 7000, text)))


TAGS = {"plain": (), "priority": (0xE000,), "two of them": (0, 0), "another network's": (5,), "hidden": (0, 5)}


@FAMILIES
def test_frames_as_they_come(outer: Edge, version: int) -> None:
    """Everything that may be in front of an IP header, by both ways in; what the pod's own socket then gets."""
    n = Names(version)
    pod = outer.node.b
    got: dict[tuple[str, str, str], bool] = {}
    with pod.socket(version, socket.SOCK_DGRAM) as server:
        server.bind((str(pod.address(version)), 7000))
        server.settimeout(0.15)
        for way in (UPLINK, "am-card"):
            for label, tags in TAGS.items():
                for who in ("world", "node", "pod here", "pod away"):
                    source = sources(n)[who]
                    text = f"{way} {label} {who}".encode()
                    outer.send(way, datagram(source, str(pod.address(version)), text), tags=tags)
                    got[way, label, who] = False
        while True:
            try:
                way, label, *rest = server.recv(200).decode().split(" ", 1)
            except TimeoutError:
                break
            label, who = next((one, label[len(one) + 1 :]) for one in TAGS if label.startswith(one))
            assert not rest
            got[way, label, who] = True
    passed = {key for key, seen in got.items() if seen}
    uplink = {(UPLINK, label, who) for label in ("plain", "priority") for who in ("world", "pod away")}
    card = {("am-card", label, "world") for label in ("plain", "priority", "two of them")}
    assert passed == uplink | card


def lead_away(outer: Edge, n: Names) -> None:
    """A route by the uplink to the pod that is away."""
    node, outside = outer.node.netns, outer.node.netns + "o"
    length, next_hop = (32, "172.30.0.12") if n.version == 4 else (128, "fd00:172:30::12")
    far = run("ip", "-n", outside, "-o", "link", "show", "dev", f"{UPLINK}p").split("link/ether ")[1].split()[0]
    for command in (
        f"addr add {bare(n.node)}/{24 if n.version == 4 else 64} dev {UPLINK}" + (" nodad" if n.version == 6 else ""),
        f"neigh add {next_hop} lladdr {far} dev {UPLINK}",
        f"route add {bare(n.away)}/{length} via {next_hop}",
    ):
        run("ip", "-n", node, *command.split())


def strays(source: str, destination: str, text: bytes) -> list[bytes]:
    """A datagram in two fragments which the node's stack, once conntrack has joined them, cuts anew out of whole cloth:
    what stands before the first one's fragment header leaves no room in the second one's memory.
    """
    body = datagram(source, destination, text + bytes(1200))[40:]
    option = bytes([0x1E, 253]) + bytes(253)
    options = option * 2
    size = 2 + len(options)
    first, second = (frames.fragment6(UDP, offset=at, more=not at, ident=77) for at in (0, 504))
    long = bytes([frames.FRAGMENT, size // 8 - 1]) + options + first + body[:504]
    return [
        frames.ip(source, destination, frames.HOP_BY_HOP, long),
        frames.ip(source, destination, frames.FRAGMENT, second + body[504:]),
    ]


TRACKING = b"""table inet tracking {
 chain postrouting {
  type nat hook postrouting priority srcnat;
  ip6 saddr 2001:db8:99::/64 masquerade
 }
}
"""


def track(netns: str) -> None:
    """Conntrack, as the table of masquerading brings it."""
    command = ["nsenter", f"--net=/run/netns/{netns}", "nft", "-f", "-"]
    subprocess.run(command, input=TRACKING, check=True, capture_output=True)


def test_fragments_that_forget_where_they_came_from(outer: Edge) -> None:
    """As the node itself they would pass whatever isolates the pod; and what the node does send itself still does."""
    n, pod = Names(6), outer.node.b
    track(outer.node.netns)
    isolated = pl.Subject(ingress_isolated=True, egress_isolated=True)
    with pod.socket(6, socket.SOCK_DGRAM) as server:
        server.bind((str(pod.address(6)), 7000))
        server.settimeout(0.3)
        for isolation, reached in (
            (pl.Subject(ingress_isolated=False, egress_isolated=False), {"world"}),
            (isolated, set()),
        ):
            outer.datapath.tables.subjects.put(pl.SubjectKey(identity=pod.identity), isolation)
            outer.datapath.tables.bump_generation()
            got = set()
            for who in ("node", "pod here", "pod away", "world"):
                for piece in strays(sources(n)[who], str(pod.address(6)), who.encode()):
                    outer.send("am-card", piece)
                with suppress(TimeoutError):
                    got.add(server.recv(3000).rstrip(b"\0").decode())
            assert got == reached
        with inside(outer.node.netns), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as own:
            own.bind((bare(n.node), 0))
            own.sendto(bytes(4000), (str(pod.address(6)), 7000))
        assert len(server.recv(5000)) == 4000


@FAMILIES
def test_no_forged_source_is_forwarded(outer: Edge, version: int) -> None:
    """From the card through the node's stack to the uplink, as to a pod elsewhere."""
    n, outside = Names(version), outer.node.netns + "o"
    lead_away(outer, n)
    with inside(outside), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as seen:
        seen.bind((f"{UPLINK}p", 0))
        for who in ("pod away", "pod here", "other node", "world"):
            source = sources(n)[who]
            if who == "other node":
                key = at.PrefixKey.host(ip_address(source))
                outer.datapath.tables.ipcache.put(key, at.Peer(identity=4, flags=at.PeerFlag.NODE))
            text = f"from {who}".encode()
            outer.send("am-card", datagram(source, bare(n.away), text))
        seen.settimeout(20)
        arrived: list[bytes] = []
        while not arrived or b"from world" not in arrived[-1]:
            frame = seen.recv(2000)
            if b"from " in frame:
                arrived.append(frame[frame.index(b"from ") :])
    assert arrived == [b"from world"]
    assert outer.dropped(DropReason.SPOOFED_ADDRESS) == 3


def test_nor_in_fragments_that_forget_where_they_came_from(outer: Edge) -> None:
    n, outside = Names(6), outer.node.netns + "o"
    track(outer.node.netns)
    lead_away(outer, n)
    with inside(outside), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as seen:
        seen.bind((f"{UPLINK}p", 0))
        for who in ("pod away", "pod here", "world"):
            for piece in strays(sources(n)[who], bare(n.away), f"from {who};".encode()):
                outer.send("am-card", piece)
        seen.settimeout(20)
        arrived: list[bytes] = []
        while not arrived:
            frame = seen.recv(2000)
            if b"from " in frame:
                arrived.append(frame[frame.index(b"from ") :].partition(b";")[0])
    assert arrived == [b"from world"]
