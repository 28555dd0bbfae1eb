"""ARP requests over a packet socket: which MAC addresses answer for an IPv4 address on a link (RFC 826, RFC 5227).

A request for an address of this host itself is a probe (RFC 5227, 1.1: the sender's address is 0.0.0.0), so that
nobody's cache is changed by it. Blocking, for as long as the caller says. Needs CAP_NET_RAW.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import struct
import time
from collections.abc import Iterable
from ipaddress import IPv4Address

_ETHERTYPE = 0x0806
_BROADCAST = b"\xff" * 6
_FRAME = struct.Struct(">6s6sHHHBBH6s4s6s4s")
_REQUEST, _REPLY = 1, 2
_SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("16sH6s8x")


def answers(
    device: str, asked: Iterable[IPv4Address], sender: IPv4Address, seconds: float
) -> dict[IPv4Address, set[bytes]]:
    """MAC addresses that answer for each address on ``device`` within ``seconds``. ``sender`` is this host's own
    address; it is itself asked for by a probe. Raises OSError.
    """
    wanted = tuple(asked)
    found: dict[IPv4Address, set[bytes]] = {address: set() for address in wanted}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE)) as link:
        link.bind((device, _ETHERTYPE))
        own = _IFREQ.unpack(fcntl.ioctl(link, _SIOCGIFHWADDR, _IFREQ.pack(device.encode(), 0, b"")))[2]
        for address in wanted:
            said = IPv4Address(0) if address == sender else sender
            _send(link, _request(own, said, address))
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([link], [], [], left)[0]:
            if (answer := _answer(link.recv(128))) is not None and answer[0] in found and answer[1] != own:
                found[answer[0]].add(answer[1])
    return found


def _send(link: socket.socket, frame: bytes) -> None:
    """A link without a carrier takes no frame: then nobody answers, and that is what is asked."""
    try:
        link.send(frame)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise


def _request(own: bytes, sender: IPv4Address, target: IPv4Address) -> bytes:
    return _FRAME.pack(
        _BROADCAST, own, _ETHERTYPE, 1, 0x0800, 6, 4, _REQUEST, own, sender.packed, bytes(6), target.packed
    )


def _answer(frame: bytes) -> tuple[IPv4Address, bytes] | None:
    if len(frame) < _FRAME.size:
        return None
    parts = _FRAME.unpack_from(frame)
    return (IPv4Address(parts[9]), parts[8]) if parts[7] == _REPLY else None
