"""The kernel's routing table and links, read and written in one thread.

Owns every netlink call of this service. Reading is pyroute2's (one socket, so dumps never meet: concurrent dumps on one
socket are EBUSY); writing is a batch of our own packing, because one by one through pyroute2 is 2,000 routes a second
and a batch is a hundred times that. Each operation of a batch is acknowledged, and what the kernel refused is told.
A route is *replaced* (NLM_F_REPLACE), never taken away and added: no packet finds it missing.

A second socket only listens: whatever changes routes, addresses or links wakes the service, which then reads all. So an
overflow loses nothing, and is not reported as an error (NETLINK_NO_ENOBUFS): libuv, which uvloop stands on, gives up
polling a socket once it shows one (POLLERR). Layouts: linux/rtnetlink.h, RFC 3549; numbers are in the machine's byte
order. An IPv6 unreachable route is listed with the loopback as its link (net/ipv6/route.c), which says nothing and is
left out.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from chassis.faults import Retryable
from services.routing.core.fib import Kind, Operation, Replace, Route, Snapshot, Uplink

MAIN_TABLE = 254
CHUNK = 256
"""Operations in one send; their acknowledgements fit into a default socket buffer."""
DEADLINE = 10.0
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")

_NLMSG = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_REQUEST, _ACK, _REPLACE, _CREATE = 0x1, 0x4, 0x100, 0x400
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_NLMSG_ERROR = 2
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SCOPE_UNIVERSE = 0
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""

T = TypeVar("T")


class KernelFault(Retryable):
    """The kernel could not be asked, or refused; says what."""


class Kernel:
    """One namespace's routes. ``namespace`` is the path of a network namespace to enter (None: the process' own)."""

    def __init__(self, uplinks: Sequence[str], namespace: Path | None = None) -> None:
        self._names = tuple(uplinks)
        self._namespace = namespace
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink")
        self._reader: Any = None
        self._writer: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._sequence = 0

    async def snapshot(self) -> Snapshot:
        """Routes of the main table and the uplinks; raises KernelFault."""
        return await self._run(self._snapshot)

    async def apply(self, operations: Sequence[Operation]) -> tuple[tuple[Operation, int], ...]:
        """Do all of them; returns those that the kernel refused, with its errno. Raises KernelFault.

        A route to be removed that is gone already is no failure.
        """
        return await self._run(lambda: self._apply(operations))

    async def forward(self) -> tuple[str, ...]:
        """Let this namespace forward both families; returns the switches that cannot be set."""
        return await self._run(_set_forwarding)

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` (in the event loop) whenever routes, addresses or links may have changed."""
        self._listener = await self._run(_listen)
        descriptor = self._listener.fileno()

        def drain() -> None:
            assert self._listener is not None
            try:
                while self._listener.recv(65536):
                    continue
            except BlockingIOError:
                changed()

        asyncio.get_running_loop().add_reader(descriptor, drain)

    async def close(self) -> None:
        """Let go of all sockets and the thread."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        def inside() -> T:
            self._open()
            return work()

        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._thread, inside), DEADLINE)
        except (OSError, TimeoutError, NetlinkError) as error:
            raise KernelFault(f"netlink: {error or type(error).__name__}") from error

    def _open(self) -> None:
        """In the thread, once: enter the namespace and open the sockets."""
        if self._reader is not None:
            return
        if self._namespace is not None:
            enter(self._namespace)
        self._writer = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._writer.settimeout(DEADLINE / 2)
        self._writer.bind((0, 0))
        self._reader = IPRoute()

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.close()

    def _snapshot(self) -> Snapshot:
        routes = [
            route
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in self._reader.get_routes(family=family)
            if (route := _route(message)) is not None
        ]
        uplinks = self._uplinks()
        present = {uplink.name for uplink in uplinks}
        missing = tuple(name for name in self._names if name not in present)
        return Snapshot(routes=tuple(routes), uplinks=uplinks, missing=missing)

    def _uplinks(self) -> tuple[Uplink, ...]:
        addresses: dict[int, list[IPv4Interface | IPv6Interface]] = {}
        for message in self._reader.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            addresses.setdefault(message["index"], []).append(ip_interface(f"{text}/{message['prefixlen']}"))
        return tuple(
            Uplink(
                name=message.get_attr("IFLA_IFNAME"),
                index=message["index"],
                up=bool(message["flags"] & 0x1),
                addresses=tuple(addresses.get(message["index"], ())),
            )
            for message in self._reader.get_links()
            if message.get_attr("IFLA_IFNAME") in self._names
        )

    def _apply(self, operations: Sequence[Operation]) -> tuple[tuple[Operation, int], ...]:
        refused: list[tuple[Operation, int]] = []
        for start in range(0, len(operations), CHUNK):
            refused += self._send(operations[start : start + CHUNK])
        return tuple(refused)

    def _send(self, operations: Sequence[Operation]) -> list[tuple[Operation, int]]:
        assert self._writer is not None
        first = self._sequence + 1
        self._sequence += len(operations)
        self._writer.send(b"".join(pack(operation, first + place) for place, operation in enumerate(operations)))
        waiting = set(range(len(operations)))
        refused = []
        while waiting:
            for sequence, error in _acknowledgements(self._writer.recv(65536)):
                place = sequence - first
                if place not in waiting:
                    continue
                waiting.discard(place)
                gone = error == errno.ESRCH and not isinstance(operations[place], Replace)
                if error and not gone:
                    refused.append((operations[place], error))
        return refused


def pack(operation: Operation, sequence: int) -> bytes:
    """One RTM_NEWROUTE (create or replace) or RTM_DELROUTE message."""
    route = operation.route
    replace = isinstance(operation, Replace)
    family = socket.AF_INET if route.destination.version == 4 else socket.AF_INET6
    body = _RTMSG.pack(
        family, route.destination.prefixlen, 0, 0, MAIN_TABLE, route.protocol, _SCOPE_UNIVERSE, int(route.kind), 0
    )
    body += _attribute(_RTA_DST, route.destination.network_address.packed)
    body += _attribute(_RTA_PRIORITY, struct.pack("=I", route.metric))
    if route.via is not None:
        body += _attribute(_RTA_GATEWAY, route.via.packed)
    if route.link:
        body += _attribute(_RTA_OIF, struct.pack("=I", route.link))
    kind = _RTM_NEWROUTE if replace else _RTM_DELROUTE
    flags = _REQUEST | _ACK | (_CREATE | _REPLACE if replace else 0)
    return _NLMSG.pack(_NLMSG.size + len(body), kind, flags, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _acknowledgements(received: bytes) -> Iterable[tuple[int, int]]:
    """Sequence and errno (0: done) of each NLMSG_ERROR message."""
    offset = 0
    while offset + _NLMSG.size <= len(received):
        length, kind, _, sequence, _ = _NLMSG.unpack_from(received, offset)
        if kind == _NLMSG_ERROR:
            yield sequence, -struct.unpack_from("=i", received, offset + _NLMSG.size)[0]
        offset += max(_NLMSG.size, (length + 3) & ~3)


def _route(message: Any) -> Route | None:
    """A dumped route as the planner knows it; None for other tables, cached ones and kinds it does not care for."""
    if message.get_attr("RTA_TABLE", message["table"]) != MAIN_TABLE or message["flags"] & 0x200:
        return None
    if message["type"] not in (Kind.UNICAST, Kind.UNREACHABLE):
        return None
    everything = bytes(4 if message["family"] == socket.AF_INET else 16)
    kind = Kind(message["type"])
    via = message.get_attr("RTA_GATEWAY")
    return Route(
        destination=ip_network((message.get_attr("RTA_DST") or everything, message["dst_len"])),
        via=ip_address(via) if via else None,
        link=(message.get_attr("RTA_OIF") or 0) if kind is Kind.UNICAST else 0,
        kind=kind,
        metric=message.get_attr("RTA_PRIORITY") or 0,
        protocol=message["proto"],
    )


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    listener.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
    listener.bind((0, _GROUPS))
    return listener


def _set_forwarding() -> tuple[str, ...]:
    """/proc/sys/net is that of the calling thread's namespace."""
    failed = []
    for switch in FORWARDING:
        path = Path("/proc/sys") / switch
        try:
            if path.read_text().strip() == "0":
                path.write_text("1\n")
            if path.read_text().strip() == "0":
                failed.append(switch)
        except OSError:
            failed.append(switch)
    return tuple(failed)


def enter(namespace: Path) -> None:
    """Move the calling thread into a network namespace (setns, CLONE_NEWNET)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, 0x40000000):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    finally:
        os.close(descriptor)
