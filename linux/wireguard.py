"""WireGuard devices, of the kernel's driver and of wireguard-go behind one interface.

Owns the bytes of the driver's generic netlink (``include/uapi/linux/wireguard.h``, ``genetlink.h``) and the lines of
the cross-platform UAPI socket (wireguard.com/xplatform). A :class:`Control` reads a device and changes what a
:class:`Change` names, nothing else: an allowed address that is given to a peer is taken from whoever had it at the same
moment, which both implementations promise. Neither can take an address from a peer without a gap in which the peer has
none (before Linux 6.16); whoever must, gives it to a peer that is removed next. Blocking and short. Knows no
cryptography: keys are 32 bytes. Private ones are shown by no ``repr``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Protocol

from linux import rtnl
from linux.netlink import CREATE, EXCLUSIVE, Message, Netlink, attribute, each_attribute, number, parse_attributes, text
from linux.rtnl import Address, Network

KEY_BYTES = 32
MOST_ANSWER = 64 << 20
"""Bytes of an answer of wireguard-go: some 100,000 peers."""
_TIMEOUT = 5.0
_CHUNK = 16_384
"""Bytes of attributes of peers in one message of generic netlink; a length there has 16 bits."""

_NETLINK_GENERIC = 16
_CONTROL_FAMILY, _GET_FAMILY = 0x10, 3
_FAMILY_ID, _FAMILY_NAME = 1, 2
_GET_DEVICE, _SET_DEVICE = 0, 1
_IFNAME, _PRIVATE_KEY, _PORT, _PEERS = 2, 3, 6, 8
_PEER_KEY, _PEER_FLAGS, _ENDPOINT, _KEEPALIVE, _HANDSHAKE, _RX, _TX, _ALLOWED = 1, 3, 4, 5, 6, 7, 8, 9
_REMOVE_PEER, _UPDATE_ONLY = 1, 4
_IP_FAMILY, _IP_ADDRESS, _IP_LENGTH = 1, 2, 3
_NESTED = 0x8000
_INFO_KIND, _LINK_INFO = 1, 18


class NoDriver(OSError):
    """The kernel has no WireGuard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A peer as a device has it."""

    public_key: bytes
    endpoint: tuple[Address, int] | None = None
    """Address and UDP port: where it was last heard from, else where it is said to be."""
    keepalive: int = 0
    """Seconds between persistent keepalives; 0: none."""
    allowed: frozenset[Network] = frozenset()
    """What is sent to it, and what is taken from it."""
    handshake: int = 0
    """Time of the last handshake in Unix seconds; 0: there was none."""
    received: int = 0
    """Bytes, handshakes and keepalives included."""
    sent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device as it is."""

    private_key: bytes = field(repr=False, default=bytes(KEY_BYTES))
    """All zeros: it has none, and takes and sends nothing."""
    port: int = 0
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChange:
    """What is to be different of one peer, which is made unless it is there; None and empty: as it is."""

    public_key: bytes
    remove: bool = False
    endpoint: tuple[Address, int] | None = None
    keepalive: int | None = None
    allow: tuple[Network, ...] = ()
    """Allowed addresses that it gets, from whoever has them."""
    existing: bool = False
    """Only if it is there: nobody who was removed meanwhile comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be different of a device; None and empty: as it is. Peers in this order."""

    private_key: bytes | None = field(repr=False, default=None)
    port: int | None = None
    peers: tuple[PeerChange, ...] = ()


class Control(Protocol):
    """One device."""

    def read(self) -> Device:
        """The present state. Raises OSError (ENODEV: there is no such device)."""

    def apply(self, change: Change) -> None:
        """Makes the change; it is no transaction, and may be done in part when OSError is raised."""


def add_link(name: str) -> Message:
    """Makes a device of the kernel's driver. It is refused with EOPNOTSUPP where there is none, EEXIST for a name that
    is taken.
    """
    info = attribute(_LINK_INFO | _NESTED, text(_INFO_KIND, "wireguard"))
    return Message(rtnl.NEWLINK, CREATE | EXCLUSIVE, rtnl.ifinfo() + text(3, name) + info, ("link", name))


class KernelControl:
    """A device of the kernel's driver, in the network namespace of the thread that makes this."""

    def __init__(self, name: str) -> None:
        """Raises NoDriver."""
        self._name = name
        self._netlink = Netlink(protocol=_NETLINK_GENERIC)
        try:
            self._family = family_id(self._netlink)
        except OSError as error:
            self._netlink.close()
            raise NoDriver(errno.EOPNOTSUPP, "this kernel has no WireGuard") from error

    def close(self) -> None:
        """Gives the socket back."""
        self._netlink.close()

    def read(self) -> Device:
        """See :class:`Control`."""
        return parse_device(self._netlink.dump(self._family, _command(_GET_DEVICE) + text(_IFNAME, self._name)))

    def apply(self, change: Change) -> None:
        """See :class:`Control`."""
        for body in set_device(self._name, change):  # each by itself: together they may exceed a socket's buffer
            self._netlink.run([Message(self._family, 0, body, ("WireGuard device", self._name))])


def family_id(netlink: Netlink) -> int:
    """Number of the family ``wireguard`` of generic netlink. Raises NetlinkRefused where there is none."""
    answer = netlink.ask(_CONTROL_FAMILY, _command(_GET_FAMILY) + text(_FAMILY_NAME, "wireguard"))
    return int.from_bytes(parse_attributes(answer[4:])[_FAMILY_ID][:2], "little")


def set_device(name: str, change: Change) -> list[bytes]:
    """Bodies of WG_CMD_SET_DEVICE: as many as it takes, to be sent in this order."""
    device = text(_IFNAME, name)
    first = device
    if change.private_key is not None:
        first += attribute(_PRIVATE_KEY, change.private_key)
    if change.port is not None:
        first += attribute(_PORT, struct.pack("=H", change.port))
    bodies: list[bytes] = []
    peers, size = bytearray(), 0
    for peer in (one for whole in change.peers for one in _parts(whole)):
        encoded = attribute(_NESTED, peer)
        if size and size + len(encoded) > _CHUNK:
            bodies.append(first + attribute(_PEERS | _NESTED, bytes(peers)))
            peers, size, first = bytearray(), 0, device
        peers += encoded
        size += len(encoded)
    bodies.append(first + (attribute(_PEERS | _NESTED, bytes(peers)) if peers else b""))
    return [_command(_SET_DEVICE) + body for body in bodies]


def _parts(change: PeerChange) -> Iterator[bytes]:
    """One peer in pieces that fit into a message each: all of it in the first but the addresses that do not fit."""
    flags = (_REMOVE_PEER if change.remove else 0) | (_UPDATE_ONLY if change.existing else 0)
    head = attribute(_PEER_KEY, change.public_key)
    first = head + (number(_PEER_FLAGS, flags) if flags else b"")
    if change.endpoint is not None:
        first += attribute(_ENDPOINT, _sockaddr(*change.endpoint))
    if change.keepalive is not None:
        first += attribute(_KEEPALIVE, struct.pack("=H", change.keepalive))
    encoded = [_allowed(network) for network in change.allow]
    per_piece = _CHUNK // 40  # an IPv6 one with its three attributes takes 40 bytes
    for start in range(0, max(len(encoded), 1), per_piece):
        piece = b"".join(encoded[start : start + per_piece])
        yield first + (attribute(_ALLOWED | _NESTED, piece) if piece else b"")
        first = head


def _allowed(network: Network) -> bytes:
    family = int(rtnl.family_of(network.network_address))
    body = attribute(_IP_FAMILY, struct.pack("=H", family)) + attribute(_IP_ADDRESS, network.network_address.packed)
    return attribute(_NESTED, body + attribute(_IP_LENGTH, bytes([network.prefixlen])))


def _sockaddr(address: Address, port: int) -> bytes:
    family = struct.pack("=H", int(rtnl.family_of(address))) + port.to_bytes(2, "big")
    return family + (address.packed + bytes(8) if address.version == 4 else bytes(4) + address.packed + bytes(4))


def _parse_sockaddr(raw: bytes) -> tuple[Address, int] | None:
    if len(raw) < 8:
        return None
    family, port = int.from_bytes(raw[:2], "little"), int.from_bytes(raw[2:4], "big")
    if family == socket.AF_INET:
        return ip_address(raw[4:8]), port
    return (ip_address(raw[8:24]), port) if family == socket.AF_INET6 and len(raw) >= 24 else None


def _command(number_of_command: int) -> bytes:
    """``struct genlmsghdr``; version 1 is that of both families that are spoken here."""
    return bytes([number_of_command, 1, 0, 0])


def parse_device(bodies: Iterable[bytes]) -> Device:
    """A device from the messages of WG_CMD_GET_DEVICE: a peer whose addresses do not fit goes on in the next one."""
    private_key, port = bytes(KEY_BYTES), 0
    peers: dict[bytes, Peer] = {}
    for body in bodies:
        device = parse_attributes(body[4:])
        private_key = device.get(_PRIVATE_KEY, private_key)
        port = int.from_bytes(device[_PORT][:2], "little") if _PORT in device else port
        for _, raw in each_attribute(device.get(_PEERS, b"")):
            peer = _parse_peer(raw)
            before = peers.get(peer.public_key)
            peers[peer.public_key] = peer if before is None else _joined(before, peer)
    return Device(private_key=private_key, port=port, peers=tuple(peers.values()))


def _joined(before: Peer, more: Peer) -> Peer:
    return Peer(
        public_key=before.public_key,
        endpoint=before.endpoint,
        keepalive=before.keepalive,
        allowed=before.allowed | more.allowed,
        handshake=before.handshake,
        received=before.received,
        sent=before.sent,
    )


def _parse_peer(raw: bytes) -> Peer:
    found = parse_attributes(raw)

    def numbered(kind: int) -> int:
        return int.from_bytes(found.get(kind, b""), "little")

    networks = []
    for _, entry in each_attribute(found.get(_ALLOWED, b"")):
        parts = parse_attributes(entry)
        size = 4 if int.from_bytes(parts[_IP_FAMILY][:2], "little") == socket.AF_INET else 16
        address = ip_address(parts[_IP_ADDRESS][:size])
        networks.append(ip_network((address, parts[_IP_LENGTH][0])))
    return Peer(
        public_key=found[_PEER_KEY][:KEY_BYTES],
        endpoint=_parse_sockaddr(found.get(_ENDPOINT, b"")),
        keepalive=numbered(_KEEPALIVE),
        allowed=frozenset(networks),
        handshake=int.from_bytes(found.get(_HANDSHAKE, b"")[:8], "little", signed=True),
        received=numbered(_RX),
        sent=numbered(_TX),
    )


class SocketControl:
    """A device of wireguard-go by its UAPI socket; a connection for each call, so that a new one is found again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Device:
        """See :class:`Control`. Raises ConnectionRefusedError or FileNotFoundError where it has ended."""
        return parse_lines(self._ask("get=1\n\n"))

    def apply(self, change: Change) -> None:
        """See :class:`Control`."""
        self._ask("".join(f"{line}\n" for line in ("set=1", *set_lines(change), "")))

    def _ask(self, words: str) -> Sequence[str]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as opened:
            opened.settimeout(_TIMEOUT)
            opened.connect(str(self._path))
            opened.sendall(words.encode())
            answer = bytearray()
            while not answer.endswith(b"\n\n"):
                received = opened.recv(1 << 16)
                if not received or len(answer) > MOST_ANSWER:
                    raise ConnectionResetError(errno.ECONNRESET, f"{self._path}: the answer has no end")
                answer += received
        lines = answer.decode().split("\n")[:-2]
        code = abs(int(lines[-1].removeprefix("errno=")))
        if code:
            raise OSError(code, f"{self._path}: {os.strerror(code)}")
        return lines[:-1]


def set_lines(change: Change) -> Iterator[str]:
    """The lines of a set operation, without its first and its end."""
    if change.private_key is not None:
        yield f"private_key={change.private_key.hex()}"
    if change.port is not None:
        yield f"listen_port={change.port}"
    for peer in change.peers:
        yield f"public_key={peer.public_key.hex()}"
        if peer.remove:
            yield "remove=true"
            continue
        if peer.existing:
            yield "update_only=true"
        if peer.endpoint is not None:
            address, port = peer.endpoint
            yield f"endpoint={address}:{port}" if address.version == 4 else f"endpoint=[{address}]:{port}"
        if peer.keepalive is not None:
            yield f"persistent_keepalive_interval={peer.keepalive}"
        yield from (f"allowed_ip={network}" for network in peer.allow)


def parse_lines(lines: Iterable[str]) -> Device:
    """A device from the lines of a get operation, without the one of its errno."""
    device: dict[str, str] = {}
    peers: list[tuple[dict[str, str], list[str]]] = []
    for line in lines:
        name, _, value = line.partition("=")
        if name == "public_key":
            peers.append(({name: value}, []))
        elif not peers:
            device[name] = value
        elif name == "allowed_ip":
            peers[-1][1].append(value)
        else:
            peers[-1][0][name] = value
    return Device(
        private_key=bytes.fromhex(device.get("private_key", "00" * KEY_BYTES)),
        port=int(device.get("listen_port", "0")),
        peers=tuple(_peer_of(words, allowed) for words, allowed in peers),
    )


def _peer_of(words: dict[str, str], allowed: list[str]) -> Peer:
    def numbered(name: str) -> int:
        return int(words.get(name, "0"))

    host, _, port = words.get("endpoint", "").rpartition(":")
    address = host.strip("[]").partition("%")[0]
    return Peer(
        public_key=bytes.fromhex(words["public_key"]),
        endpoint=(ip_address(address), int(port)) if address else None,
        keepalive=numbered("persistent_keepalive_interval"),
        allowed=frozenset(map(ip_network, allowed)),
        handshake=numbered("last_handshake_time_sec"),
        received=numbered("rx_bytes"),
        sent=numbered("tx_bytes"),
    )
