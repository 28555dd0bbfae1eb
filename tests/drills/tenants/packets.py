"""Sends packets that no honest pod sends, as fast as it is told. Standard library only; needs CAP_NET_RAW.

    packets.py KIND --target ADDRESS --port PORT --rate PACKETS_PER_SECOND --seconds SECONDS [more]

    syn        half-open handshakes; --source forged: from benchmark networks (RFC 2544, RFC 5180), else the own address
    udp        datagrams from fresh ports (to port 53: a query for a name that there is not)
    icmp       errors about flows of others: --about SOURCE,DESTINATION,PORT is the packet that they complain of
    fragments  first fragments, tiny ones and overlapping ones, of the source given
    forged     whole datagrams in the name of another (--source ADDRESS)

Runs in a network namespace of a pod, or of a host on the fabric: `nsenter --net=… -- python3 -I packets.py …`. It
refuses the network of whoever started it. ``--via`` names the next hop where no route leads to the target;
``--priority-tag`` puts a VLAN tag of number 0 on each frame (IEEE 802.1Q). A line of JSON at the end says since when
(``began``, by the wall clock) and how many were sent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

MOST_RATE = 200_000
MOST_SECONDS = 900.0
POOL = 8192
"""Different packets that are made beforehand and sent in turn."""
EPHEMERAL = (32_768, 60_999)
STEP = 0.002
"""Seconds between two bursts."""
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
FORGED4, FORGED6 = int(IPv4Address("198.18.0.0")), int(IPv6Address("2001:2::"))
ROUTER = {4: "198.18.0.1", 6: "2001:2::1"}
QUERY = b"\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07nowhere\x07invalid\x00\x00\x01\x00\x01"

Address = IPv4Address | IPv6Address


def checksum(raw: bytes) -> int:
    """Internet checksum (RFC 1071)."""
    if len(raw) % 2:
        raw += b"\0"
    total: int = sum(struct.unpack(f"!{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(source: Address, target: Address, protocol: int, payload: bytes, *, ident: int = 0, part: int = 0) -> bytes:
    """A packet; ``part`` is IPv4's field of flags and fragment offset (a fragment header for IPv6)."""
    if source.version == 4:
        bare = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident, part, 64, protocol, 0)
        bare += source.packed + target.packed
        return bare[:10] + struct.pack("!H", checksum(bare)) + bare[12:] + payload
    if part:
        more, offset = part >> 13 & 1, part & 0x1FFF
        payload = struct.pack("!BBHI", protocol, 0, offset << 3 | more, ident) + payload
        protocol = 44
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source.packed + target.packed + payload


def _pseudo(source: Address, target: Address, protocol: int, size: int) -> bytes:
    return source.packed + target.packed + struct.pack("!IHBB", size, 0, 0, protocol)


def syn(source: Address, target: Address, sport: int, dport: int) -> bytes:
    """The first segment of a connection."""
    bare = struct.pack("!HHIIBBHHH", sport, dport, random.getrandbits(32), 0, 0x50, 2, 64_240, 0, 0)
    right = checksum(_pseudo(source, target, TCP, len(bare)) + bare)
    return bare[:16] + struct.pack("!H", right) + bare[18:]


def udp(source: Address, target: Address, sport: int, dport: int, payload: bytes) -> bytes:
    """A datagram."""
    bare = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    right = checksum(_pseudo(source, target, UDP, len(bare)) + bare) or 0xFFFF
    return bare[:6] + struct.pack("!H", right) + bare[8:]


def icmp_error(source: Address, target: Address, inner: bytes) -> bytes:
    """Port unreachable about ``inner``, whole with its IP header."""
    if source.version == 4:
        bare = struct.pack("!BBHI", 3, 3, 0, 0) + inner
        packet = bare[:2] + struct.pack("!H", checksum(bare)) + bare[4:]
        return ip(source, target, ICMP, packet)
    bare = struct.pack("!BBHI", 1, 4, 0, 0) + inner
    right = checksum(_pseudo(source, target, ICMP6, len(bare)) + bare)
    return ip(source, target, ICMP6, bare[:2] + struct.pack("!H", right) + bare[4:])


@dataclass(frozen=True)
class Wanted:
    """What to send, and as whom."""

    kind: str
    target: Address
    ports: list[int]
    own: Address
    source: str
    about: tuple[Address, Address, int] | None
    payloads: list[bytes]

    def sender(self) -> Address:
        """The source of the next packet."""
        if self.source == "own":
            return self.own
        if self.source != "forged":
            return ip_address(self.source)
        if self.target.version == 4:
            return IPv4Address(FORGED4 + random.randrange(1, 1 << 17))
        return IPv6Address(FORGED6 + random.getrandbits(80))


def packets(wanted: Wanted) -> list[bytes]:
    """The pool: packets that differ in what makes them a flow of their own."""
    make: Callable[[Wanted], Iterator[bytes]] = {
        "syn": _syns,
        "udp": _datagrams,
        "forged": _datagrams,
        "icmp": _errors,
        "fragments": _fragments,
    }[wanted.kind]
    return list(make(wanted))


def _syns(wanted: Wanted) -> Iterator[bytes]:
    for index in range(POOL):
        source, sport = wanted.sender(), random.randint(1024, 65_535)
        port = wanted.ports[index % len(wanted.ports)]
        yield ip(source, wanted.target, TCP, syn(source, wanted.target, sport, port))


def _datagrams(wanted: Wanted) -> Iterator[bytes]:
    first = random.randint(1024, 40_000)
    for index in range(POOL):
        source, port = wanted.sender(), wanted.ports[index % len(wanted.ports)]
        payload = QUERY if port == 53 else wanted.payloads[index % len(wanted.payloads)]
        yield ip(source, wanted.target, UDP, udp(source, wanted.target, first + index, port, payload))


def _errors(wanted: Wanted) -> Iterator[bytes]:
    """About a flow of others between any ephemeral port and the one named, either way, TCP and UDP."""
    assert wanted.about is not None, "--about SOURCE,DESTINATION,PORT is needed"
    near, there, port = wanted.about
    ports = list(range(EPHEMERAL[0], EPHEMERAL[1] + 1))
    random.shuffle(ports)
    for index, other in enumerate(ports):
        for protocol in (TCP, UDP):
            back = index % 2
            head = struct.pack("!HHI", *((port, other) if back else (other, port)), 0)
            source, target = (there, near) if back else (near, there)
            yield icmp_error(wanted.sender(), wanted.target, ip(source, target, protocol, head))


def _fragments(wanted: Wanted) -> Iterator[bytes]:
    for index in range(POOL):
        source, port = wanted.sender(), wanted.ports[index % len(wanted.ports)]
        whole = udp(source, wanted.target, 1024 + index, port, bytes(40))
        ident, more = index, 0x2000
        part = (
            (whole[:24], more),  # a first one, whose rest never comes
            (whole[:8], more),  # a tiny one
            (whole[16:40], more | 1),  # one that overlaps the first
            (whole[24:], 3),  # a last one
        )[index % 4]
        yield ip(source, wanted.target, UDP, part[0], ident=ident & 0xFFFF, part=part[1])


# --- the way ---


@dataclass(frozen=True)
class Way:
    """The link, the own address there, and both ends' link addresses."""

    link: str
    own: Address
    mac: bytes
    next_mac: bytes


def _ip(*arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(["ip", "-j", *arguments], capture_output=True, text=True, check=False, timeout=10)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    found: list[dict[str, object]] = json.loads(done.stdout or "[]")
    return found


def _mac(text: object) -> bytes:
    return bytes.fromhex(str(text).replace(":", ""))


def way(target: Address, via: str) -> Way:
    """How a packet for ``target`` leaves; asks the kernel for the next hop's link address."""
    (route,) = _ip("route", "get", via or str(target))[:1]
    link, hop = str(route["dev"]), str(via or route.get("gateway") or target)
    own = ip_address(str(route.get("prefsrc") or _first_address(link, target.version)))
    (about,) = _ip("link", "show", "dev", link)[:1]
    for _ in range(20):
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET6 if ":" in hop else socket.AF_INET, socket.SOCK_DGRAM) as probe,
        ):
            scope = socket.if_nametoindex(link) if hop.startswith("fe80") else 0
            probe.sendto(b"", (hop, 9, 0, scope) if ":" in hop else (hop, 9))
        for neighbour in _ip("neigh", "show", hop, "dev", link):
            if "lladdr" in neighbour:
                return Way(link, own, _mac(about["address"]), _mac(neighbour["lladdr"]))
        time.sleep(0.1)
    raise SystemExit(f"{hop} on {link} has no link address: name a neighbour with --via")


def _first_address(link: str, version: int) -> str:
    for one in _ip("address", "show", "dev", link):
        for address in one["addr_info"]:  # type: ignore[attr-defined]
            if address["family"] == ("inet6" if version == 6 else "inet") and address["scope"] == "global":
                return str(address["local"])
    raise SystemExit(f"{link} has no address of IPv{version}")


def frames(pool: list[bytes], out: Way, version: int, *, tagged: bool) -> list[bytes]:
    """The packets with their Ethernet headers."""
    kind = struct.pack("!H", 0x0800 if version == 4 else 0x86DD)
    head = out.next_mac + out.mac + (b"\x81\x00\x00\x00" if tagged else b"") + kind
    return [head + packet for packet in pool]


def send(pool: list[bytes], link: str, rate: int, seconds: float, count: int) -> dict[str, float]:
    """Send in bursts, so many a second; returns what became of it."""
    sent = errors = 0
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: over.set())
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        out.bind((link, 0))
        began, clock = time.monotonic(), time.time()
        while (spent := time.monotonic() - began) < seconds and sent + errors < count and not over.is_set():
            due = min(int(spent * rate) + 1, count) - sent - errors
            for _ in range(min(due, rate // 20 + 1)):
                try:
                    out.send(pool[(sent + errors) % len(pool)])
                    sent += 1
                except OSError:
                    errors += 1
            time.sleep(STEP)
        return {"began": clock, "sent": sent, "errors": errors, "seconds": round(time.monotonic() - began, 3)}


def _alone() -> bool:
    """Whether whoever started this is in another network namespace: then it was entered for this."""
    return os.stat("/proc/self/ns/net").st_ino != os.stat(f"/proc/{os.getppid()}/ns/net").st_ino


def main(arguments: list[str]) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="packets.py", description="Packets that no honest pod sends.")
    parser.add_argument("kind", choices=("syn", "udp", "icmp", "fragments", "forged"))
    parser.add_argument("--target", type=ip_address, required=True)
    parser.add_argument("--port", type=int, action="append", default=[])
    parser.add_argument("--source", default="own", help="own, forged, or an address")
    parser.add_argument("--about", default="", metavar="SOURCE,DESTINATION,PORT")
    parser.add_argument("--payload", action="append", default=[], metavar="HEX")
    parser.add_argument("--via", default="", metavar="ADDRESS")
    parser.add_argument("--priority-tag", action="store_true")
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--count", type=int, default=1 << 40)
    given = parser.parse_args(arguments)
    if not _alone():
        raise SystemExit("whoever started this is in the same network: start it by nsenter --net=… in a lab's pod")
    if not 0 < given.rate <= MOST_RATE or not 0 < given.seconds <= MOST_SECONDS:
        raise SystemExit(f"use a rate of 1 to {MOST_RATE} and 0 to {MOST_SECONDS} seconds")
    about = given.about.split(",") if given.about else []
    out = way(given.target, given.via)
    wanted = Wanted(
        kind=given.kind,
        target=given.target,
        ports=given.port or [9],
        own=out.own,
        source=given.source,
        about=(ip_address(about[0]), ip_address(about[1]), int(about[2])) if about else None,
        payloads=[bytes.fromhex(text) for text in given.payload] or [b"drill"],
    )
    pool = frames(packets(wanted), out, given.target.version, tagged=given.priority_tag)
    print(json.dumps(send(pool, out.link, given.rate, given.seconds, given.count)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
