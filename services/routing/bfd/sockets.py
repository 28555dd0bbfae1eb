"""The UDP sockets of BFD on one hop: ports, TTL 255, and the TTL of what comes (RFC 5881 4, 5).

One socket listens for each address and interface that sessions have, port 3784, and none on all addresses. Each session
has another that sends, from a port of its own within 49152 to 65535. Sockets belong to the namespace of the thread that
opens them, and to an interface that may go: the owner opens them again when sending fails.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from proto.net import Address
from services.routing.core.bfd.packet import HOPS, PORT
from services.routing.core.bfd.sessions import Key

FIRST_PORT, LAST_PORT = 49152, 65535
_ATTEMPTS = 64
_CONTROL = 0xC0
"""DSCP CS6, network control (RFC 4594)."""
_ROOM = 512
_IP_RECVTTL, _IPV6_RECVHOPLIMIT = 12, 51
_TTL_OF_PACKET = {(socket.IPPROTO_IP, 2), (socket.IPPROTO_IPV6, 52)}
"""IP_TTL, IPV6_HOPLIMIT."""
_INT = struct.Struct("=i")


class Received(NamedTuple):
    """One datagram."""

    payload: bytes
    source: Address
    hops: int


def open_listener(local: Address, interface: str) -> socket.socket:
    """The socket that hears of all sessions of an address and interface. Raises OSError."""
    made = _udp(local, interface)
    try:
        if local.version == 4:
            made.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
        made.bind(_name(local, interface, PORT))
    except BaseException:
        made.close()
        raise
    return made


def open_sender(local: Address, interface: str, ports: Callable[[int, int], int]) -> socket.socket:
    """The socket that one session sends from; ``ports`` draws a number within bounds. Raises OSError."""
    made = _udp(local, interface)
    try:
        if local.version == 4:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOPS)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CONTROL)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOPS)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _CONTROL)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        _bind_free(made, local, interface, ports)
    except BaseException:
        made.close()
        raise
    return made


def _bind_free(made: socket.socket, local: Address, interface: str, ports: Callable[[int, int], int]) -> None:
    for _ in range(_ATTEMPTS):
        try:
            made.bind(_name(local, interface, ports(FIRST_PORT, LAST_PORT)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    raise OSError(errno.EADDRINUSE, "no free UDP port within 49152 to 65535")


def send(opened: socket.socket, key: Key, payload: bytes) -> None:
    """To the peer of a session. Raises OSError."""
    opened.sendto(payload, _name(key.peer, key.interface, PORT))


def receive(opened: socket.socket) -> Received | None:
    """The next datagram; None when there is none. Raises OSError."""
    try:
        payload, ancillary, _, sender = opened.recvmsg(_ROOM, socket.CMSG_SPACE(_INT.size))
    except BlockingIOError:
        return None
    hops = next((_INT.unpack(value)[0] for level, kind, value in ancillary if (level, kind) in _TTL_OF_PACKET), 0)
    return Received(payload, _address(sender[0]), hops)


@lru_cache(maxsize=1024)
def _address(text: str) -> Address:
    return ip_address(text.partition("%")[0])


def index_of(interface: str) -> int:
    """Index of the interface that has this name now; 0: none has, or none is named."""
    try:
        return socket.if_nametoindex(interface) if interface else 0
    except OSError:
        return 0


def _udp(local: Address, interface: str) -> socket.socket:
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if interface:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        if local.version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    except BaseException:
        made.close()
        raise
    return made


def _name(address: Address, interface: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if address.version == 4:
        return str(address), port
    scope = socket.if_nametoindex(interface) if interface and address.is_link_local else 0
    return str(address), port, 0, scope
