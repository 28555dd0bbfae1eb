"""The bytes of sock_diag: what the kernel says of a socket."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest

from linux.sock_diag import parse


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
