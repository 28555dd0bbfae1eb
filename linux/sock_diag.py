"""UDP sockets that are connected, and their end; TCP sockets that listen, and what others sent: sock_diag(7), by
network namespaces.

Owns the bytes of ``struct inet_diag_req_v2`` and ``struct inet_diag_msg`` (include/uapi/linux/inet_diag.h). Promises:
what is ended is the very socket that was read, known by its cookie (the number that bpf_get_socket_cookie gives the
programs), so one that was closed meanwhile is never mistaken for its successor. Its owner's receive, or poll, ends with
ECONNABORTED, a send with EDESTADDRREQ: it is connected no more (net/ipv4/udp.c, udp_abort). Only namespaces with
one of the cookies that are asked for are looked into; they are found by their processes, so the agent must see those
(hostPID). Blocking; for the namespace thread. Needs CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from linux.netlink import Message, Netlink, NetlinkRefused, parse_attributes
from linux.netns import NotANamespace, inside, netns_cookie, of_processes, open_first
from linux.rtnl import Address

CHUNK = 512
"""Sockets ended by one message, well below the send buffer."""

_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
_CONNECTED = 1 << 1
"""Bit of TCP_ESTABLISHED, the state of a connected UDP socket, too."""
_LISTENS = 1 << 10
"""Bit of TCP_LISTEN."""
_REQUEST = struct.Struct("<BBBxI48s")
_ANSWER = struct.Struct("<BBBB48s")
_QUEUES = struct.Struct("<4x48s4xII")
"""Of an answer: name, accept queue (idiag_rqueue) and its bound (idiag_wqueue; net/ipv4/tcp_diag.c)."""
_MESSAGE_SIZE = 72
"""Bytes of ``struct inet_diag_msg``; attributes follow."""
_INFO, _WITH_INFO = 2, 1 << 1
"""INET_DIAG_INFO, and its bit in a request (idiag_ext)."""
_TCP_INFO = struct.Struct("<100xI52xI56xI")
"""Of ``struct tcp_info`` (include/uapi/linux/tcp.h): tcpi_total_retrans, tcpi_data_segs_out and tcpi_dsack_dups."""
_NAME = struct.Struct(">HH16s16s4x8s")
"""``struct inet_diag_sockid``: ports (network order), addresses, interface, cookie."""


class CannotEnd(Exception):
    """UDP sockets cannot be listed or ended by this kernel; the message says what it lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A connected UDP socket as the kernel tells it."""

    family: int
    name: bytes
    cookie: int
    peer: Address
    """Where it sends to; an IPv4-mapped one is the IPv4 address."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """A TCP socket that listens. One with more connections waiting than its bound drops the next handshake."""

    port: int
    waiting: int
    """Connections that stand and that nobody has accepted."""
    bound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What an established TCP socket has sent in its life."""

    cookie: int
    peer: Address
    segments: int
    """With data, those that were sent again included."""
    retransmitted: int
    """Those sent again but for what the other end says that it had already (RFC 2883): what was lost on one way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a round has done. ``resume`` is 0 when every namespace was looked into, else where to go on."""

    sockets: tuple[Connected, ...]
    resume: int = 0


def end_sockets(
    cookies: Collection[int], stale: Callable[[Connected], bool], *, overdue: Callable[[], bool], resume: int = 0
) -> Ended:
    """Ends connected UDP sockets that are ``stale`` in the namespaces of these cookies; stops once it is ``overdue``.

    Raises CannotEnd. A namespace that goes away meanwhile is passed over.
    """
    ended: list[Connected] = []
    # By inode, from the one to go on at and around.
    for inode, paths in sorted(of_processes().items(), key=lambda one: (one[0] < resume, one[0])):
        if overdue():
            return Ended(sockets=tuple(ended), resume=inode)
        with suppress(OSError, NotANamespace):
            descriptor = open_first(paths)
            try:
                with inside(descriptor):
                    if netns_cookie() in cookies:
                        ended += _end_in_namespace(stale)
            finally:
                os.close(descriptor)
    return Ended(sockets=tuple(ended))


def _end_in_namespace(stale: Callable[[Connected], bool]) -> list[Connected]:
    with Netlink(protocol=_SOCK_DIAG) as netlink:
        try:
            those = [one for one in connected(netlink) if stale(one)]
            for start in range(0, len(those), CHUNK):
                netlink.run([_end(one) for one in those[start : start + CHUNK]])
        except NetlinkRefused as refused:
            if refused.errno == errno.ENOENT:
                raise CannotEnd("the kernel does not tell of UDP sockets: it needs CONFIG_INET_UDP_DIAG") from refused
            if refused.errno == errno.EOPNOTSUPP:
                raise CannotEnd("the kernel does not end sockets: it needs CONFIG_INET_DIAG_DESTROY") from refused
            raise
    return those


def connected(netlink: Netlink) -> Iterator[Connected]:
    """Every connected UDP socket of the namespace that ``netlink`` (of sock_diag) belongs to. Raises NetlinkRefused."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for answer in netlink.dump(_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_UDP, 0, _CONNECTED, bytes(48))):
            its_family, _, _, _, name = _ANSWER.unpack_from(answer)
            yield parse(its_family, name)


def listening(netlink: Netlink) -> Iterator[Listening]:
    """Every TCP socket that listens in the namespace of ``netlink`` (of sock_diag). Raises NetlinkRefused."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for answer in netlink.dump(_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LISTENS, bytes(48))):
            name, waiting, bound = _QUEUES.unpack_from(answer)
            yield Listening(port=_NAME.unpack(name)[0], waiting=waiting, bound=bound)


def listening_sockets() -> tuple[Listening, ...]:
    """Those of the calling thread's namespace. Raises NetlinkRefused and OSError."""
    with Netlink(protocol=_SOCK_DIAG) as netlink:
        return tuple(listening(netlink))


def transfers() -> Iterator[Transfer]:
    """Every established TCP socket of the calling thread's namespace. Raises NetlinkRefused and OSError."""
    with Netlink(protocol=_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            asked = _REQUEST.pack(family, socket.IPPROTO_TCP, _WITH_INFO, _CONNECTED, bytes(48))
            for answer in netlink.dump(_BY_FAMILY, asked):
                if (found := parse_transfer(answer)) is not None:
                    yield found


def parse_transfer(answer: bytes) -> Transfer | None:
    """A TCP socket from ``struct inet_diag_msg`` and its attributes; None where the kernel tells nothing of it."""
    family, _, _, _, name = _ANSWER.unpack_from(answer)
    info = parse_attributes(answer[_MESSAGE_SIZE:]).get(_INFO, b"")
    if len(info) < _TCP_INFO.size:
        return None
    one, (repeated, segments, needless) = parse(family, name), _TCP_INFO.unpack_from(info)
    return Transfer(cookie=one.cookie, peer=one.peer, segments=segments, retransmitted=max(0, repeated - needless))


def parse(family: int, name: bytes) -> Connected:
    """A socket from its family and ``struct inet_diag_sockid``."""
    _, port, _, raw, cookie = _NAME.unpack(name)
    peer = ip_address(raw[:4] if family == socket.AF_INET else raw)
    mapped = getattr(peer, "ipv4_mapped", None)
    return Connected(family=family, name=name, cookie=int.from_bytes(cookie, "little"), peer=mapped or peer, port=port)


def _end(one: Connected) -> Message:
    body = _REQUEST.pack(one.family, socket.IPPROTO_UDP, 0, _CONNECTED, one.name)
    return Message(_DESTROY, 0, body, f"UDP socket {one.cookie}", (errno.ENOENT,))
