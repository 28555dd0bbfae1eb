"""The kernel's routing table and links, read and written in one thread.

Owns every netlink call of this service. Links and addresses are read by pyroute2; routes, which may be many, by
``rtnetlink`` in batches over a socket of our own. Each operation is acknowledged, and what the kernel refused is told.
A listing during which the table changed is made again.

A route is *replaced* (NLM_F_REPLACE), never taken away and added: no packet finds it missing.

A second socket only listens: whatever changes routes, addresses or uplinks wakes the service, which then reads all;
pods' own links and routes do not. So an overflow loses nothing that the next full pass would not find, and is not
reported as an error (NETLINK_NO_ENOBUFS): libuv, which uvloop stands on, gives up polling a socket once it shows one
(POLLERR). An IPv6 unreachable route is listed with the loopback as its link
(net/ipv6/route.c), which says nothing and is left out.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from chassis.faults import Retryable
from services.routing.core.fib import Operation, Replace, Route, Snapshot, Uplink
from services.routing.rtnetlink import (
    DUMP_INTERRUPTED,
    NLMSG_DONE,
    NLMSG_ERROR,
    ask_for_all,
    concerns,
    error_of,
    messages,
    pack,
    parse_route,
)

CHUNK = 256
"""Operations in one send; their acknowledgements fit into a default socket buffer."""
DEADLINE = 10.0
DUMP_ATTEMPTS = 5
BUFFER = 1 << 18
"""Bytes of one recv; the kernel sends dumps in pieces of at most 32 KiB."""
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")

_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
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
        """Call ``changed`` (in the event loop) whenever routes, addresses or uplinks may have changed."""
        self._listener = await self._run(_listen)
        descriptor = self._listener.fileno()

        def drain() -> None:
            assert self._listener is not None
            heard = False
            with suppress(BlockingIOError):
                while received := self._listener.recv(65536):
                    heard = heard or concerns(received, self._names)
            if heard:
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
            async with asyncio.timeout(DEADLINE):
                return await loop.run_in_executor(self._thread, inside)
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
        routes = [*self._routes(socket.AF_INET), *self._routes(socket.AF_INET6)]
        uplinks = self._uplinks()
        present = {uplink.name for uplink in uplinks}
        missing = tuple(name for name in self._names if name not in present)
        return Snapshot(routes=tuple(routes), uplinks=uplinks, missing=missing)

    def _routes(self, family: int) -> list[Route]:
        for _ in range(DUMP_ATTEMPTS):
            routes, whole = self._dump(family)
            if whole:
                return routes
        raise OSError(errno.EINTR, "the routing table changes faster than it can be read")

    def _dump(self, family: int) -> tuple[list[Route], bool]:
        """Routes of a family, and whether nothing changed meanwhile."""
        assert self._writer is not None
        self._sequence += 1
        self._writer.send(ask_for_all(family, self._sequence))
        routes: list[Route] = []
        whole = True
        while True:
            for kind, flags, sequence, body in messages(self._writer.recv(BUFFER)):
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & DUMP_INTERRUPTED
                if kind == NLMSG_DONE:
                    return routes, whole
                if kind == NLMSG_ERROR:
                    raise OSError(error_of(body), "the routing table cannot be read")
                if (route := parse_route(body)) is not None:
                    routes.append(route)

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
            for name in self._names
            for message in self._link(name)
        )

    def _link(self, name: str) -> Sequence[Any]:
        """The link of this name, if there is one: a node has as many links as pods, and reading each takes a while."""
        try:
            return tuple(self._reader.link("get", ifname=name))
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
            return ()

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
            for kind, _, sequence, body in messages(self._writer.recv(BUFFER)):
                place = sequence - first
                if kind != NLMSG_ERROR or place not in waiting:
                    continue
                waiting.discard(place)
                error = error_of(body)
                gone = error == errno.ESRCH and not isinstance(operations[place], Replace)
                if error and not gone:
                    refused.append((operations[place], error))
        return refused


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
