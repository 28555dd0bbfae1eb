"""Packets of the fabric, read: which tunnel one is in, whose it is inside, and which connection it is of.

Pure. Of a frame it reads the outer addresses and, where the packet is a tunnel's of which the contents can be read,
the inner ones. VXLAN is known by its port and its header's flag, WireGuard by its port and a message's type, IP in IP
by its protocol. What a frame is too short for is left out. Source: RFC 7348, 2003, 2473; WireGuard's white paper, 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

PLAIN, IPIP, VXLAN, WIREGUARD = "", "ipip", "vxlan", "wireguard"
VXLAN_PORTS = frozenset({4789, 8472})
"""The registered one, and Linux' own, as Flannel has it."""
WIREGUARD_PORTS = frozenset({51820, 51821})
_ETHERNET, _IPV4, _IPV6, _UDP, _VXLAN = 14, 20, 40, 8, 8
_PROTO_IPV4, _PROTO_IPV6, _PROTO_TCP, _PROTO_UDP = 4, 41, 6, 17
_VNI_IS_VALID = 0x08
_WIREGUARD_TRANSPORT, _WIREGUARD_EMPTY = 4, 32


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet as it was on the wire. `tunnel`: a name of this module, empty for a packet as it is."""

    tunnel: str
    source: Address
    destination: Address
    inner_source: Address | None = None
    inner_destination: Address | None = None
    """Of the packet in the tunnel, where it can be read."""
    vni: int = 0
    carries: bool = True
    """False for a message of WireGuard that has no packet in it: a handshake's, a keepalive."""

    @property
    def ends(self) -> tuple[Address, Address]:
        """Whose packet it is: the inner addresses of one in a tunnel, where they can be read."""
        if self.inner_source is None or self.inner_destination is None:
            return self.source, self.destination
        return self.inner_source, self.inner_destination


def parse(frame: bytes) -> Packet | None:
    """The packet in an Ethernet frame; None when it is not IP."""
    outer = _ip(frame, _ETHERNET, int.from_bytes(frame[12:14], "big"))
    if outer is None:
        return None
    source, destination, protocol, offset = outer
    if protocol in (_PROTO_IPV4, _PROTO_IPV6):
        inner = _ip(frame, offset, 0x0800 if protocol == _PROTO_IPV4 else 0x86DD)
        if inner is not None:
            return Packet(IPIP, source, destination, inner[0], inner[1])
    if protocol == _PROTO_UDP and len(frame) >= offset + _UDP + 4:
        return _udp(frame, offset, source, destination)
    return Packet(PLAIN, source, destination)


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a TCP connection."""

    source: Address
    source_port: int
    destination: Address
    port: int


def parse_flow(frame: bytes) -> Flow | None:
    """The TCP connection that an Ethernet frame is of; None for any other, and for what is in a tunnel."""
    packet = _ip(frame, _ETHERNET, int.from_bytes(frame[12:14], "big"))
    if packet is None or packet[2] != _PROTO_TCP or len(frame) < packet[3] + 4:
        return None
    source, destination, _, offset = packet
    return Flow(
        source,
        int.from_bytes(frame[offset : offset + 2], "big"),
        destination,
        int.from_bytes(frame[offset + 2 : offset + 4], "big"),
    )


def _udp(frame: bytes, offset: int, source: Address, destination: Address) -> Packet:
    ports = {int.from_bytes(frame[at : at + 2], "big") for at in (offset, offset + 2)}
    body = offset + _UDP
    if int.from_bytes(frame[offset + 2 : offset + 4], "big") in VXLAN_PORTS and frame[body] & _VNI_IS_VALID:
        ethernet = body + _VXLAN
        kind = int.from_bytes(frame[ethernet + 12 : ethernet + 14], "big")
        inner = _ip(frame, ethernet + _ETHERNET, kind)
        vni = int.from_bytes(frame[body + 4 : body + 7], "big")
        if inner is None:
            return Packet(VXLAN, source, destination, vni=vni)
        return Packet(VXLAN, source, destination, inner[0], inner[1], vni)
    if ports & WIREGUARD_PORTS and 1 <= frame[body] <= 4 and not any(frame[body + 1 : body + 4]):
        length = int.from_bytes(frame[offset + 4 : offset + 6], "big")
        carries = frame[body] == _WIREGUARD_TRANSPORT and length > _UDP + _WIREGUARD_EMPTY
        return Packet(WIREGUARD, source, destination, carries=carries)
    return Packet(PLAIN, source, destination)


def _ip(frame: bytes, at: int, kind: int) -> tuple[Address, Address, int, int] | None:
    """(source, destination, protocol, where its header ends); protocol -1 for a later fragment."""
    if kind == 0x0800 and len(frame) >= at + _IPV4:
        later = int.from_bytes(frame[at + 6 : at + 8], "big") & 0x1FFF
        source, destination = ip_address(frame[at + 12 : at + 16]), ip_address(frame[at + 16 : at + 20])
        return source, destination, -1 if later else frame[at + 9], at + (frame[at] & 15) * 4
    if kind == 0x86DD and len(frame) >= at + _IPV6:
        source, destination = ip_address(frame[at + 8 : at + 24]), ip_address(frame[at + 24 : at + 40])
        return source, destination, frame[at + 6], at + _IPV6
    return None
