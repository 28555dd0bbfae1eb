"""Frames by hand: small functions that put a packet together from its headers, correct or broken on purpose."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

Address = IPv4Address | IPv6Address

TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
HOP_BY_HOP, ROUTING, FRAGMENT, AUTH, NO_NEXT, DESTINATION = 0, 43, 44, 51, 59, 60


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(raw: bytes) -> int:
    raw += bytes(len(raw) % 2)
    total: int = sum(struct.unpack(f">{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def eth(payload: bytes, *, source: bytes, destination: bytes = mac("02:00:00:00:00:01"), kind: int) -> bytes:
    return destination + source + struct.pack(">H", kind) + payload


def ip4(
    source: Address, destination: Address, protocol: int, payload: bytes, *, ttl: int = 64, ident: int = 1,
    frag: int = 0, options: bytes = b"", total: int | None = None, version: int = 4, ihl: int | None = None,
) -> bytes:  # fmt: skip
    words = 5 + len(options) // 4 if ihl is None else ihl
    length = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack(
        ">BBHHHBBH4s4s",
        version << 4 | words,
        0,
        length,
        ident,
        frag,
        ttl,
        protocol,
        0,
        source.packed,
        destination.packed,
    )
    head += options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def ip6(
    source: Address, destination: Address, protocol: int, payload: bytes, *, hops: int = 64, length: int | None = None,
    version: int = 6,
) -> bytes:  # fmt: skip
    size = len(payload) if length is None else length
    head = struct.pack(">IHBB", version << 28, size, protocol, hops)
    return head + source.packed + destination.packed + payload


def ip(source: str | Address, destination: str | Address, protocol: int, payload: bytes, **more: Any) -> bytes:
    one, other = ip_address(source), ip_address(destination)
    if one.version == 4:
        return ip4(one, other, protocol, payload, **more)
    return ip6(one, other, protocol, payload, **more)


def tcp(
    sport: int, dport: int, flags: int = SYN, payload: bytes = b"", *, offset: int = 5, sequence: int = 1,
    acknowledged: int = 0,
) -> bytes:  # fmt: skip
    return struct.pack(">HHIIBBHHH", sport, dport, sequence, acknowledged, offset << 4, flags, 1000, 0, 0) + payload


def udp(sport: int, dport: int, payload: bytes = b"hello") -> bytes:
    return struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload


def sctp(sport: int, dport: int) -> bytes:
    return struct.pack(">HHII", sport, dport, 1, 0) + bytes([1, 0, 0, 20]) + bytes(16)


def echo(version: int, *, reply: bool = False, ident: int = 7) -> bytes:
    kind = {4: (8, 0), 6: (128, 129)}[version][reply]
    return struct.pack(">BBHHH", kind, 0, 0, ident, 1) + b"ping-ping"


def icmp_error(version: int, about: bytes) -> bytes:
    """Destination unreachable (port) about a packet."""
    kind, code = (3, 3) if version == 4 else (1, 4)
    return struct.pack(">BBHI", kind, code, 0, 0) + about[:64]


def icmp6(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, 0) + body


def neighbour(kind: int, target: str, link_layer: bytes = b"", *, flags: int = 0) -> bytes:
    """A neighbour solicitation (135) or advertisement (136) with its link-layer address option."""
    option = bytes([1 if kind == 135 else 2, 1]) + link_layer if link_layer else b""
    return icmp6(kind, struct.pack(">I", flags) + IPv6Address(target).packed + option)


def arp(operation: int, sender_mac: bytes, sender: str, target: str, *, hardware: int = 1) -> bytes:
    return (
        struct.pack(">HHBBH", hardware, 0x0800, 6, 4, operation)
        + sender_mac
        + IPv4Address(sender).packed
        + bytes(6)
        + IPv4Address(target).packed
    )


def extension(next_header: int, *, words: int = 0) -> bytes:
    """A hop-by-hop or destination options header of (words + 1) * 8 bytes, all padding."""
    size = (words + 1) * 8
    return bytes([next_header, words, 1, size - 4]) + bytes(size - 4)


def fragment6(next_header: int, *, offset: int, more: bool, ident: int) -> bytes:
    return struct.pack(">BBHI", next_header, 0, offset | int(more), ident)
