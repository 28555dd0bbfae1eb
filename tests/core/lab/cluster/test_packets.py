"""Frames of the fabric are told apart: as they are, in IP in IP, in VXLAN over either family, in WireGuard."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from lab.cluster.packets import IPIP, PLAIN, VXLAN, WIREGUARD, Flow, Packet, parse, parse_flow

N1, N2, N1_6, N2_6 = "172.30.0.11", "172.30.1.12", "fd00:172:30::11", "fd00:172:30:1::12"
P1, P2, P1_6, P2_6 = "10.244.0.1", "10.244.0.65", "fd00:10:244::1", "fd00:10:244::41"


def ip(source: str, destination: str, protocol: int, body: bytes = b"", fragment: int = 0) -> bytes:
    ends = ip_address(source).packed + ip_address(destination).packed
    if ":" in source:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + ends + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, fragment, 64, protocol, 0)
    return header + ends + body


def udp(port: int, body: bytes, source: int = 50000) -> bytes:
    return struct.pack("!HHHH", source, port, 8 + len(body), 0) + body


def ethernet(packet: bytes) -> bytes:
    return bytes(12) + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet


def vxlan(packet: bytes, vni: int = 4096, flags: int = 8) -> bytes:
    return struct.pack("!B3xI", flags, vni << 8) + ethernet(packet)


def seen(
    tunnel: str, outer: tuple[str, str], inner: tuple[str, str] | None = None, vni: int = 0, *, carries: bool = True
) -> Packet:
    source, destination = map(ip_address, outer)
    ends = (ip_address(inner[0]), ip_address(inner[1])) if inner else (None, None)
    return Packet(tunnel, source, destination, ends[0], ends[1], vni, carries)


INNER, INNER_6 = ip(P1, P2, 6, bytes(20)), ip(P1_6, P2_6, 6, bytes(20))


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param(INNER, seen(PLAIN, (P1, P2)), id="plain-4"),
        pytest.param(INNER_6, seen(PLAIN, (P1_6, P2_6)), id="plain-6"),
        pytest.param(ip(N1, N2, 4, INNER), seen(IPIP, (N1, N2), (P1, P2)), id="ipip"),
        pytest.param(ip(N1, N2, 41, INNER_6), seen(IPIP, (N1, N2), (P1_6, P2_6)), id="6in4"),
        pytest.param(ip(N1, N2, 4, b"\x45"), seen(PLAIN, (N1, N2)), id="ipip-too-short"),
        pytest.param(ip(N1, N2, 4, INNER, 100), seen(PLAIN, (N1, N2)), id="ipip-later-fragment"),
        pytest.param(
            ip(N1, N2, 17, udp(4789, vxlan(INNER))), seen(VXLAN, (N1, N2), (P1, P2), 4096), id="vxlan-4-over-4"
        ),
        pytest.param(
            ip(N1, N2, 17, udp(8472, vxlan(INNER_6, 1))), seen(VXLAN, (N1, N2), (P1_6, P2_6), 1), id="vxlan-6-over-4"
        ),
        pytest.param(
            ip(N1_6, N2_6, 17, udp(4789, vxlan(INNER))), seen(VXLAN, (N1_6, N2_6), (P1, P2), 4096), id="vxlan-4-over-6"
        ),
        pytest.param(ip(N1, N2, 17, udp(4789, vxlan(INNER, flags=0))), seen(PLAIN, (N1, N2)), id="vxlan-without-flag"),
        pytest.param(ip(N1, N2, 17, udp(4790, vxlan(INNER))), seen(PLAIN, (N1, N2)), id="another-port"),
        pytest.param(ip(N1, N2, 17, udp(4789, b"\x08\0\0\0")), seen(VXLAN, (N1, N2)), id="vxlan-cut-off"),
        pytest.param(ip(N1, N2, 17, udp(51820, b"\x04\0\0\0" + bytes(44))), seen(WIREGUARD, (N1, N2)), id="wireguard"),
        pytest.param(
            ip(N1, N2, 17, udp(51820, b"\x04\0\0\0" + bytes(28))),
            seen(WIREGUARD, (N1, N2), carries=False),
            id="keepalive",
        ),
        pytest.param(
            ip(N1_6, N2_6, 17, udp(51820, b"\x01\0\0\0" + bytes(144))),
            seen(WIREGUARD, (N1_6, N2_6), carries=False),
            id="handshake",
        ),
        pytest.param(ip(N1, N2, 17, udp(51820, b"\x05\0\0\0")), seen(PLAIN, (N1, N2)), id="no-wireguard-message"),
        pytest.param(ip(N1, N2, 17, b"\x12"), seen(PLAIN, (N1, N2)), id="udp-cut-off"),
    ],
)
def test_a_packet_is_in_its_tunnel_and_of_its_ends(packet: bytes, expected: Packet) -> None:
    assert parse(ethernet(packet)) == expected


@pytest.mark.parametrize("frame", [b"", bytes(12) + b"\x08\x06" + bytes(28), bytes(12) + b"\x08\x00" + bytes(19)])
def test_what_is_no_ip_or_cut_off_is_nothing(frame: bytes) -> None:
    assert parse(frame) is None


def test_the_ends_are_those_of_the_pods_where_they_can_be_read() -> None:
    assert seen(IPIP, (N1, N2), (P1, P2)).ends == (ip_address(P1), ip_address(P2))
    assert seen(WIREGUARD, (N1, N2)).ends == (ip_address(N1), ip_address(N2))


PORTS = struct.pack("!HH", 40001, 5432) + bytes(16)


@pytest.mark.parametrize(
    ("packet", "ends"),
    [
        (ip(P1, P2, 6, PORTS), (P1, P2)),
        (ip(P1_6, P2_6, 6, PORTS), (P1_6, P2_6)),
        (ip(P1, P2, 17, PORTS), None),
        (ip(P1, P2, 6, PORTS, fragment=100), None),
        (ip(P1, P2, 6, PORTS[:3]), None),
        (ip(N1, N2, 4, ip(P1, P2, 6, PORTS)), None),
    ],
    ids=["4", "6", "udp", "later-fragment", "cut-off", "in-a-tunnel"],
)
def test_a_flow_is_a_tcp_connections_addresses_and_ports(packet: bytes, ends: tuple[str, str] | None) -> None:
    expected = Flow(ip_address(ends[0]), 40001, ip_address(ends[1]), 5432) if ends else None
    assert parse_flow(ethernet(packet)) == expected
