"""Packets and services from outside, in the notation of the tests: ``tcp 192.0.2.5:4000 > 172.30.0.11:30080``.

:func:`seal` gives a packet the checksum that a sender would; :func:`read` refuses one whose sums are wrong, so every
packet that a test looks at is proved whole.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.service_layout import Scope, ServiceFlag
from services.dataplane.datapath.programs import Datapath
from tests.bpf import frames
from tests.bpf.frames import ICMP, ICMP6, TCP, UDP, Address
from tests.bpf.world import Outcome, World

PROTOCOLS = {"tcp": TCP, "udp": UDP}
SUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
PLAIN = ServiceFlag(0)
NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp"}


def _pseudo(one: Address, other: Address, protocol: int, length: int) -> bytes:
    if protocol == ICMP:
        return b""
    if one.version == 4:
        return one.packed + other.packed + struct.pack(">BBH", 0, protocol, length)
    return one.packed + other.packed + struct.pack(">II", length, protocol)


def seal(one: str, other: str, protocol: int, body: bytes) -> bytes:
    """The transport part with its checksum."""
    at = SUM_AT[protocol]
    bare = body[:at] + b"\0\0" + body[at + 2 :]
    total = frames.checksum(_pseudo(ip_address(one), ip_address(other), protocol, len(bare)) + bare)
    return body[:at] + struct.pack(">H", total or 0xFFFF) + body[at + 2 :]


def split(end: str) -> tuple[str, int]:
    """``[fd00::1]:80`` or ``10.0.0.1:80``."""
    address, port = end.rsplit(":", 1)
    return address.strip("[]"), int(port)


def packet(text: str, *, flags: int = frames.SYN, body: bytes = b"abc", unsummed: bool = False, ttl: int = 64) -> bytes:
    """``tcp a:p > b:q`` as a whole IP packet."""
    kind, one, _, other = text.split()
    (source, sport), (destination, dport) = split(one), split(other)
    protocol = PROTOCOLS[kind]
    made = frames.tcp(sport, dport, flags, body) if protocol == TCP else frames.udp(sport, dport, body)
    if not unsummed:
        made = seal(source, destination, protocol, made)
    more = {"ttl": ttl} if "." in source else {"hops": ttl}
    return frames.ip(source, destination, protocol, made, **more)


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet that was read."""

    text: str
    ttl: int
    payload: bytes


def _end(address: Address, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def read(raw: bytes, *, whole: bool = True) -> Seen:
    """An IP packet in the notation. Raises AssertionError when a checksum is wrong (``whole``: all of it is here)."""
    if raw[0] >> 4 == 4:
        head, protocol, ttl = (raw[0] & 15) * 4, raw[9], raw[8]
        assert frames.checksum(raw[:head]) == 0, "IPv4 header checksum"
        one, other = ip_address(raw[12:16]), ip_address(raw[16:20])
        length = struct.unpack_from(">H", raw, 2)[0]
    else:
        head, protocol, ttl = 40, raw[6], raw[7]
        one, other = ip_address(raw[8:24]), ip_address(raw[24:40])
        length = 40 + struct.unpack_from(">H", raw, 4)[0]
    body = raw[head:length]
    unsummed = protocol == UDP and body[6:8] == b"\0\0"
    if whole and not unsummed:
        assert frames.checksum(_pseudo(one, other, protocol, len(body)) + body) == 0, f"{NAMES[protocol]} checksum"
    if protocol in (ICMP, ICMP6):
        inner = read(body[8:], whole=len(body[8:]) >= _length(body[8:]))
        return Seen(f"icmp {one} > {other} ({inner.text})", ttl, inner.payload)
    sport, dport = struct.unpack_from(">HH", body)
    offset = (body[12] >> 4) * 4 if protocol == TCP and len(body) > 12 else 8
    return Seen(f"{NAMES[protocol]} {_end(one, sport)} > {_end(other, dport)}", ttl, body[offset:])


def _length(raw: bytes) -> int:
    at, base = (2, 0) if raw[0] >> 4 == 4 else (4, 40)
    return base + int(struct.unpack_from(">H", raw, at)[0])


def error(source: str, about: bytes, *, kind: tuple[int, int] | None = None, keep: int = 64) -> bytes:
    """An ICMP error from ``source`` to whoever sent ``about``: packet too big, unless said otherwise."""
    version = about[0] >> 4
    to = str(ip_address(about[12:16] if version == 4 else about[8:24]))
    number, code = kind or ((3, 4) if version == 4 else (2, 0))
    protocol = ICMP if version == 4 else ICMP6
    body = struct.pack(">BBHI", number, code, 0, 1400) + about[:keep]
    return frames.ip(source, to, protocol, seal(source, to, protocol, body))


def serve(
    world: World | Datapath, frontend: str, *backends: str, protocol: int = TCP, flags: ServiceFlag = PLAIN,
    affinity: int = 0, ranges: tuple[str, ...] = (), number: int = 7,
) -> None:  # fmt: skip
    """A service for packets from outside, as the agent would write it."""
    address, port = split(frontend)
    tables = world.tables
    before = tables.services.get(lb.ServiceKey(address=ip_address(address), port=port, protocol=protocol, scope=1))
    targets = [(ip_address(a), p) for a, p in map(split, backends)]
    tables.backends.apply(
        {lb.BackendKey(service=number, index=i): lb.Backend(address=a, port=p) for i, (a, p) in enumerate(targets)},
        [key for key in tables.backends.items() if before and key.service == number and key.index >= len(targets)],
    )
    members = {lb.MemberKey(service=number, address=a, port=p): lb.Member(index=i) for i, (a, p) in enumerate(targets)}
    gone = [key for key in tables.members.items() if key.service == number and key not in members]
    tables.members.apply(members, gone)
    tables.source_ranges.apply({lb.SourceRangeKey.of(number, ip_network(net)): lb.SourceRange() for net in ranges})
    if ranges:
        flags |= ServiceFlag.SOURCE_RANGES
    tables.services.put(
        lb.ServiceKey(address=ip_address(address), port=port, protocol=protocol, scope=Scope.PACKET),
        lb.Service(number=number, backends=len(targets), affinity_seconds=affinity, flags=flags),
    )


def port_of(text: str, end: int) -> int:
    """The port of the source (0) or destination (1) in the notation."""
    return int(re.findall(r":(\d+)(?= |$)", text)[end])


def sent(outcome: Outcome) -> str:
    """The packet as it leaves."""
    return read(outcome.frame[14:]).text


def answer(text: str) -> str:
    kind, one, _, other = text.split()
    return f"{kind} {other} > {one}"


class Names:
    """The cast, with one family's addresses."""

    def __init__(self, version: int) -> None:
        four = version == 4
        self.version = version
        self.client = "192.0.2.5" if four else "[2001:db8::5]"
        self.node = "172.30.0.11" if four else "[fd00:172:30::11]"
        self.other = "172.30.0.12" if four else "[fd00:172:30::12]"
        self.vip = "203.0.113.250" if four else "[2001:db8:113::250]"
        self.pod = "10.244.1.2" if four else "[fd00:10:244:1::2]"
        self.second = "10.244.1.1" if four else "[fd00:10:244:1::1]"
        self.away = "10.244.2.7" if four else "[fd00:10:244:2::7]"
