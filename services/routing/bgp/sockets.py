"""TCP sockets of BGP: signed by TCP-MD5 (RFC 2385), held to a distance by GTSM (RFC 5082), marked CS6 (RFC 4271 E).

A socket with a distance sends with a TTL of 255 and takes only what has come with more than 255 less the peer's hops:
the kernel drops all else. Without a distance both are the kernel's. The listener always sends with 255, since a peer
with GTSM judges its SYN-ACK too; what it takes is bounded on each accepted connection.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from linux.netns import inside, open_netns
from proto.net import Address
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session.admission import Source
from services.routing.core.bgp.session.reasons import Reason

Opener = Callable[[int], socket.socket]
"""Makes a TCP socket of an address family, in the network namespace that sessions are held in."""

CS6 = 0xC0
"""Traffic class of network control (RFC 2474), in the octet of IPv4 and IPv6."""
LONGEST_PASSWORD = 80
"""In octets: TCP_MD5SIG_MAXKEYLEN (include/uapi/linux/tcp.h)."""
BACKLOG = 128
_TCP_MD5SIG = 14
_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
_MOST_HOPS = 255


class Refused(Exception):
    """A socket cannot be made as it is wished for."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


def tcp_socket(family: int) -> socket.socket:
    """A TCP socket in the network namespace of the calling thread."""
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


def tcp_socket_in(namespace: Path, family: int) -> socket.socket:
    """The same in another network namespace."""
    descriptor = open_netns(str(namespace))
    try:
        with inside(descriptor):
            return tcp_socket(family)
    finally:
        os.close(descriptor)


def family_of(address: Address) -> int:
    """``AF_INET`` or ``AF_INET6``."""
    return socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6


def outgoing(opener: Opener, settings: SessionSettings) -> socket.socket:
    """A socket that may be connected to the peer. Raises Refused."""
    made = _prepared(opener, settings.address)
    try:
        if settings.password:
            sign(made, settings.address, settings.password)
        bound_distance(made, settings)
        if settings.local is not None:
            made.bind(_endpoint(settings.local, 0, settings.interface))
    except OSError as error:
        made.close()
        raise Refused(_socket_reason(error, settings)) from error
    except Refused:
        made.close()
        raise
    return made


def listening(opener: Opener, address: Address, port: int) -> socket.socket:
    """A socket that listens. Raises Refused."""
    made = _prepared(opener, address)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _send_far(made)
        made.bind(_endpoint(address, port, ""))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        remedy = "see what else listens on this port, and whether this node has the address"
        raise Refused(Reason(f"cannot listen on {address}, port {port}: {error.strerror}", remedy)) from error
    return made


def connect(made: socket.socket, settings: SessionSettings) -> int:
    """Begin to connect; ``errno``, EINPROGRESS in the usual case."""
    return made.connect_ex(_endpoint(settings.address, settings.port, settings.interface))


def sign(made: socket.socket, address: Address, password: str | None) -> None:
    """Sign what goes to a peer and take only what it signs with this password; None: no longer. Raises Refused."""
    key = (password or "").encode()
    if len(key) > LONGEST_PASSWORD:
        said = f"the password has {len(key)} octets, more than TCP-MD5 takes"
        raise Refused(Reason(said, f"use one of at most {LONGEST_PASSWORD} octets on both sides"))
    if made.family == socket.AF_INET:
        peer = struct.pack("=H2x4s", socket.AF_INET, address.packed)
    else:
        peer = struct.pack("=H6x16s", socket.AF_INET6, address.packed)
    option = struct.pack("=128sBBHi80s", peer, 0, 0, len(key), 0, key)
    try:
        made.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, option)
    except OSError as error:
        if not key and error.errno == errno.ENOENT:
            return
        raise Refused(_key_reason(error)) from error


def bound_distance(made: socket.socket, settings: SessionSettings) -> None:
    """Take nothing that came farther than the peer's hops. Raises OSError."""
    if settings.hops is None:
        return
    _send_far(made)
    least = _MOST_HOPS + 1 - settings.hops
    if made.family == socket.AF_INET:
        made.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, least)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, least)


def source_of(name: tuple[str, int] | tuple[str, int, int, int]) -> Source:
    """The other end of an accepted connection, from its socket name."""
    address = ip_address(name[0].partition("%")[0])
    if len(name) == 4 and name[3] and address.is_link_local:
        return address, socket.if_indextoname(name[3])
    return address, ""


def connect_reason(code: int, settings: SessionSettings) -> Reason:
    """Why a connection was not made, from ``errno``."""
    where = f"{settings.address}, port {settings.port}"
    if code == errno.ECONNREFUSED:
        return Reason(f"{where} refuses connections", "start the peer's speaker, and let it listen at this address")
    if code in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return Reason(f"there is no way to {where}: {_words(code)}", "see this node's links and routes")
    if code == errno.EADDRNOTAVAIL:
        return Reason(f"this node has not the address {settings.local}", "correct sourceAddress of the BGPPeer")
    return Reason(f"no connection to {where}: {_words(code)}")


def ended_reason(error: OSError | None) -> Reason:
    """Why a connection ended; None: the peer closed it."""
    if error is None:
        return Reason("the peer has closed the connection without a word", "see what the peer says of it", ours=False)
    return Reason(f"the connection has ended: {error.strerror}", "see whether the peer's speaker runs", ours=False)


def _prepared(opener: Opener, address: Address) -> socket.socket:
    made = opener(family_of(address))
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if made.family == socket.AF_INET:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, CS6)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, CS6)
    return made


def _send_far(made: socket.socket) -> None:
    if made.family == socket.AF_INET:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _MOST_HOPS)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _MOST_HOPS)


def _endpoint(address: Address, port: int, interface: str) -> tuple[str, int] | tuple[str, int, int, int]:
    if isinstance(address, IPv4Address):
        return str(address), port
    scope = socket.if_nametoindex(interface) if interface and address.is_link_local else 0
    return str(address), port, 0, scope


def _socket_reason(error: OSError, settings: SessionSettings) -> Reason:
    if error.errno == errno.EADDRNOTAVAIL:
        return connect_reason(errno.EADDRNOTAVAIL, settings)
    if error.errno == errno.ENODEV:
        return Reason(f"this node has no interface {settings.interface}", "correct the peer's interface")
    return Reason(f"no socket for {settings.address}: {error.strerror}")


def _key_reason(error: OSError) -> Reason:
    if error.errno == errno.ENOMEM:
        return Reason("the kernel has no room for another TCP-MD5 password", "raise the sysctl net.core.optmem_max")
    said = f"the kernel refuses the TCP-MD5 password: {error.strerror}"
    return Reason(said, "use a kernel with CONFIG_TCP_MD5SIG, or no password on both sides")


def _words(code: int) -> str:
    return OSError(code, errno.errorcode.get(code, "")).strerror or str(code)
