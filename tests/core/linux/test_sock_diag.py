"""The bytes of sock_diag: what the kernel says of a socket."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest

from linux.sock_diag import Transfer, parse, parse_transfer


@pytest.mark.parametrize(
    ("family", "raw", "peer"),
    [
        (socket.AF_INET, ip_address("10.9.0.1").packed + bytes(12), "10.9.0.1"),
        (socket.AF_INET6, ip_address("fd00:9::1").packed, "fd00:9::1"),
        (socket.AF_INET6, ip_address("::ffff:10.9.0.1").packed, "10.9.0.1"),
    ],
)
def test_a_socket_as_the_kernel_shows_it(family: int, raw: bytes, peer: str) -> None:
    name = struct.pack(">HH16s16s", 40000, 5353, bytes(16), raw) + struct.pack("<IQ", 0, 0x1122334455667788)
    one = parse(family, name)
    assert (one.peer, one.port, one.cookie) == (ip_address(peer), 5353, 0x1122334455667788)


def transfer(repeated: int, needless: int, *, size: int = 232) -> bytes:
    """An answer with ``struct tcp_info`` of this size."""
    name = struct.pack(">HH16s16s", 40000, 80, bytes(16), ip_address("10.9.0.1").packed + bytes(12))
    info = bytearray(size)
    for offset, value in ((100, repeated), (156, 1000), (216, needless)):
        if offset + 4 <= size:
            struct.pack_into("<I", info, offset, value)
    head = struct.pack("<BBBB", socket.AF_INET, 1, 0, 0) + name + struct.pack("<IQ", 0, 7) + bytes(20)
    return head + struct.pack("<HH", 4 + size, 2) + bytes(info)


def test_what_a_socket_had_to_send_again() -> None:
    peer = ip_address("10.9.0.1")
    assert parse_transfer(transfer(30, 4)) == Transfer(cookie=7, peer=peer, segments=1000, retransmitted=26)
    assert parse_transfer(transfer(3, 4)) == Transfer(cookie=7, peer=peer, segments=1000, retransmitted=0)
    assert parse_transfer(transfer(3, 4, size=160)) is None
    assert parse_transfer(transfer(3, 4)[:72]) is None
