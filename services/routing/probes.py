"""Packets of measurement: their bytes, and the sockets that send and answer them.

A socket is bound to one interface and to this node's address on the shared network, and fragments nothing: what it
sends takes the way that the routes of a model lead by, in the tunnel where there is one, and the kernel takes the
address that it goes to as one on that link. On an uplink, packets of measurement have a hop limit of one: answered, the
two nodes are on one layer-2 network.

An answer has the question's number, which nobody guesses, and is small, whatever was asked.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from proto.net import Address

PORT = 48186
_FORM = struct.Struct(">8sBxHQ")
_MAGIC = b"airmesh1"
_ASK, _ANSWER = 1, 2
_UDP = 8
_IP = {4: 20, 6: 40}
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_ROOM = 1 << 16


class Probe(NamedTuple):
    """One packet."""

    is_answer: bool
    nonce: int
    size: int
    """Bytes of the question, IP header included."""


def question(nonce: int, size: int, family: int) -> bytes:
    """Payload of a question that is ``size`` bytes long on the way, IP header included."""
    return _FORM.pack(_MAGIC, _ASK, size, nonce).ljust(size - _UDP - _IP[family], b"\0")


def answer(probe: Probe) -> bytes:
    """Payload of the answer to a question."""
    return _FORM.pack(_MAGIC, _ANSWER, probe.size, probe.nonce)


def read_probe(payload: bytes, family: int) -> Probe | None:
    """What a payload says; None for anything else, and for a question of another length than it says."""
    if len(payload) < _FORM.size:
        return None
    magic, kind, size, nonce = _FORM.unpack_from(payload)
    if magic != _MAGIC or kind not in (_ASK, _ANSWER):
        return None
    if kind == _ASK and len(payload) != max(size - _UDP - _IP[family], _FORM.size):
        return None
    return Probe(kind == _ANSWER, nonce, size)


def open_probe(device: str, local: Address, port: int, hops: int) -> socket.socket:
    """A socket in the calling thread's namespace. ``hops``: its packets' hop limit, 0 for the usual. Raises OSError."""
    four = local.version == 4
    made = socket.socket(socket.AF_INET if four else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if four:
            made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        if hops and four:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
        elif hops:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
        made.bind((str(local), port))
    except BaseException:
        made.close()
        raise
    return made


def receive(opened: socket.socket) -> tuple[bytes, str] | None:
    """The next payload and the address that it came from; None when there is none. Raises OSError."""
    try:
        payload, sender = opened.recvfrom(_ROOM)
    except BlockingIOError:
        return None
    return payload, sender[0]
