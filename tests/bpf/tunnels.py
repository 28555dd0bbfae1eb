"""A node with tunnels to another: devices, routes and maps as they are made by the agents; outer packets by hand.

Pods of the other node: 10.244.3.0/24 and fd00:10:244:3::/64 by VXLAN over IPv4, 10.244.4.0/24 by IPIP, 10.244.5.0/24
and fd00:10:244:5::/64 by VXLAN over IPv6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import tunnel_layout as tl
from services.dataplane.core.datapath.tunnel_layout import TunnelKind
from tests.bpf import frames
from tests.bpf.frames import UDP, Address
from tests.bpf.world import World, ifindex_of, routes_changed, run

IPIP = 4
VNI, PORT, MTU = 4096, 4789, 1400
LOCAL = {4: "172.30.0.11", 6: "fd00:172:30::11"}
REMOTE = {4: "172.30.0.12", 6: "fd00:172:30::12"}
REMOTE_MAC = frames.mac("02:61:00:00:00:12")
OWN_MAC = frames.mac("02:61:00:00:00:11")
HOP = "fe80::61:0:1ff:fe00:12"
"""Next hop of routes over IPv6: the link-local address of the other end's device."""
NODE, STRANGER, OTHER = 7, "172.30.0.13", "172.30.0.14"
"""The other node's number; an address that no node has; another node's, of number 8."""
DEVICES = {
    "vxlan4": ("am-vxlan", TunnelKind.VXLAN, 4, 50),
    "ipip4": ("am-ipip", TunnelKind.IPIP, 4, 20),
    "vxlan6": ("am-vxlan6", TunnelKind.VXLAN, 6, 70),
}
"""Device, kind, family of the outer packets, bytes that they have more."""
PODS = {("vxlan4", 4): "10.244.3.7", ("vxlan4", 6): "fd00:10:244:3::7", ("ipip4", 4): "10.244.4.7",
        ("vxlan6", 4): "10.244.5.7", ("vxlan6", 6): "fd00:10:244:5::7"}  # fmt: skip
"""A pod of the other node by (tunnel, family of its packets)."""
WAYS = tuple(PODS)


@contextmanager
def tunnel_devices(netns: str) -> Iterator[dict[str, int]]:
    """The devices and routes in a namespace; gone afterwards. Interface numbers by tunnel."""
    vxlan = f"type vxlan id {VNI} dstport {PORT} nolearning"
    unsummed = "udp6zerocsumtx udp6zerocsumrx"
    commands = [
        f"link add am-vxlan address {OWN_MAC.hex(':')} mtu {MTU} {vxlan} local {LOCAL[4]} df set",
        f"link add am-vxlan6 address {OWN_MAC.hex(':')} mtu {MTU} {vxlan} local {LOCAL[6]} {unsummed}",
        f"link add am-ipip mtu {MTU} type veth peer name am-ipip-p",
        "link set am-ipip-p arp off up",
        "link set am-ipip arp off",
        *(f"link set {device} up" for device, *_ in DEVICES.values()),
        f"neigh add {REMOTE[4]} lladdr {REMOTE_MAC.hex(':')} dev am-vxlan nud permanent",
        f"neigh add fe80::5efe:{REMOTE[4]} lladdr {REMOTE_MAC.hex(':')} dev am-vxlan nud permanent",
        f"neigh add {HOP} lladdr {REMOTE_MAC.hex(':')} dev am-vxlan6 nud permanent",
        f"route add 10.244.3.0/24 via {REMOTE[4]} dev am-vxlan onlink",
        f"-6 route add fd00:10:244:3::/64 via fe80::5efe:{REMOTE[4]} dev am-vxlan onlink",
        f"route add 10.244.4.0/24 via {REMOTE[4]} dev am-ipip onlink",
        f"route add 10.244.5.0/24 via inet6 {HOP} dev am-vxlan6 onlink",
        f"-6 route add fd00:10:244:5::/64 via {HOP} dev am-vxlan6 onlink",
    ]
    try:
        for command in commands:
            run("ip", "-n", netns, *command.split())
        routes_changed()
        yield {name: ifindex_of(netns, device) for name, (device, *_) in DEVICES.items()}
    finally:
        for device, *_ in DEVICES.values():
            run("ip", "-n", netns, "link", "del", device)
        routes_changed()


def fill(world: World, devices: dict[str, int], *, takes: str = "vxlan4") -> None:
    """The maps. ``takes``: the tunnel that packets to the other node's own addresses take now; empty: none."""
    tables = world.tables
    for name, ifindex in devices.items():
        _, kind, family, _ = DEVICES[name]
        local = ip_address(LOCAL[family])
        port, vni = (PORT, VNI) if kind is TunnelKind.VXLAN else (0, 0)
        tables.tunnels.put(
            at.LinkKey(ifindex=ifindex),
            tl.Tunnel(kind=kind, family=family, port=port, vni=vni, local=local, mac=OWN_MAC),
        )
        tables.tunnel_ends.put(
            tl.TunnelEndKey(address=local, port=port, protocol=UDP if port else IPIP),
            tl.TunnelEnd(ifindex=ifindex, vni=vni),
        )
    ifindex, family = (devices[takes], DEVICES[takes][2]) if takes else (0, 0)
    outer = ip_address(REMOTE[family]) if takes else None
    for address in (REMOTE[4], REMOTE[6]):
        tables.tunnel_peers.put(
            at.AddressKey(address=ip_address(address)),
            tl.TunnelPeer(node=NODE, ifindex=ifindex, outer=outer, mac=REMOTE_MAC),
        )
    tables.tunnel_peers.put(
        at.AddressKey(address=ip_address(HOP)),
        tl.TunnelPeer(node=NODE, ifindex=devices["vxlan6"], outer=ip_address(REMOTE[6]), mac=REMOTE_MAC),
    )
    tables.tunnel_peers.put(at.AddressKey(address=ip_address(OTHER)), tl.TunnelPeer(node=NODE + 1))
    networks = ("10.244.3.0/24", "10.244.4.0/24", "10.244.5.0/24", "fd00:10:244:3::/64", "fd00:10:244:5::/64",
                f"{REMOTE[4]}/32", f"{REMOTE[6]}/128")  # fmt: skip
    for network in networks:
        tables.tunnel_sources.put(at.PrefixKey.of(ip_network(network)), tl.TunnelSource(node=NODE))
        if network.startswith(("10.", "fd00:10:")):
            world.know(network, 2003, at.PeerFlag.POD)
    tables.tunnel_sources.put(at.PrefixKey.of(ip_network("10.244.6.0/24")), tl.TunnelSource(node=NODE + 1))
    switch(world, at.ConfigFlag.TUNNELS)


def switch(world: World, flags: int) -> None:
    """The switches from now on."""
    world.tables.configure(at.Config(flags=flags, events_per_second=1_000_000, events_burst=1_000_000))


def with_tos(packet: bytes, tos: int) -> bytes:
    """The same packet with another TOS or traffic class."""
    if packet[0] >> 4 == 6:
        (word,) = struct.unpack_from(">I", packet)
        return struct.pack(">I", word & ~(0xFF << 20) | tos << 20) + packet[4:]
    head = bytearray(packet[:20])
    head[1], head[10:12] = tos, b"\0\0"
    head[10:12] = struct.pack(">H", frames.checksum(bytes(head)))
    return bytes(head) + packet[20:]


def tos_of(packet: bytes) -> int:
    """TOS or traffic class."""
    return packet[1] if packet[0] >> 4 == 4 else struct.unpack_from(">I", packet)[0] >> 20 & 0xFF


@dataclass(frozen=True, slots=True)
class Outer:
    """A frame that was read as a tunnel's; every length and sum in it is right, or reading fails."""

    source: Address
    destination: Address
    tos: int
    ttl: int
    inner: bytes
    port: int = 0
    source_port: int = 0
    vni: int = 0
    label: int = 0
    macs: bytes = b""
    frame: bytes = field(default=b"", repr=False)


def read_outer(frame: bytes) -> Outer:
    """Raises AssertionError when it is no well-formed packet of a tunnel."""
    (kind,) = struct.unpack_from(">H", frame, 12)
    packet = frame[14:]
    label = 0
    if kind == 0x0800:
        assert packet[0] == 0x45
        assert frames.checksum(packet[:20]) == 0
        total, fragment = struct.unpack_from(">HxxH", packet, 2)
        assert total == len(packet)
        assert fragment == 0x4000, "DF, and no fragment"
        source, destination, protocol, ttl, rest = packet[12:16], packet[16:20], packet[9], packet[8], packet[20:]
    else:
        assert (kind, packet[0] >> 4) == (0x86DD, 6)
        (word, length) = struct.unpack_from(">IH", packet)
        assert length == len(packet) - 40
        label = word & 0xFFFFF
        source, destination, protocol, ttl, rest = packet[8:24], packet[24:40], packet[6], packet[7], packet[40:]
    seen = Outer(ip_address(source), ip_address(destination), tos_of(packet), ttl, rest, label=label, frame=frame)
    if protocol == IPIP:
        return seen
    assert protocol == UDP
    sport, dport, length, check, flags, vni = struct.unpack_from(">HHHHII", rest)
    assert (length, check, flags, vni & 0xFF) == (len(rest), 0, 0x08000000, 0)
    inner = rest[30:]
    assert struct.unpack_from(">H", rest, 28) == ((0x0800 if inner[0] >> 4 == 4 else 0x86DD),)
    return Outer(seen.source, seen.destination, seen.tos, ttl, inner, dport, sport, vni >> 8, label, rest[16:28], frame)


def vxlan(inner: bytes, *, vni: int = VNI, flags: int = 0x08000000, kind: int | None = None, port: int = PORT) -> bytes:
    """UDP, VXLAN and the inner frame."""
    if kind is None:
        kind = 0x0800 if inner[0] >> 4 == 4 else 0x86DD
    frame = frames.eth(inner, source=REMOTE_MAC, destination=OWN_MAC, kind=kind)
    return frames.udp(50_000, port, struct.pack(">II", flags, vni << 8) + frame)


def wrapped(tunnel: str, inner: bytes, *, source: str = "", tos: int = 0) -> bytes:
    """The packet that the other node sends with ``inner`` in it."""
    _, kind, family, _ = DEVICES[tunnel]
    source = source or REMOTE[family]
    if kind is TunnelKind.IPIP:
        return with_tos(frames.ip(source, LOCAL[4], IPIP, inner), tos)
    return with_tos(frames.ip(source, LOCAL[family], UDP, vxlan(inner)), tos)


def less_a_hop(packet: bytes) -> bytes:
    """The packet as a router sends it on."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes([packet[7] - 1]) + packet[8:]
    head = bytearray(packet[:20])
    head[8] -= 1
    head[10:12] = b"\0\0"
    head[10:12] = struct.pack(">H", frames.checksum(bytes(head)))
    return bytes(head) + packet[20:]
