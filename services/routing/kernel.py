"""The kernel's routing table, tunnel devices and links, read and written in one thread.

Owns every netlink call of this service: uplinks and their addresses by ``linux.interfaces``, tunnel devices by
``services.routing.devices``; routes and entries, which may be many, in batches by ``linux.netlink``. What the kernel
refused is told of each operation. A listing during which the table changed is made again.

A route is *replaced* (NLM_F_REPLACE), never taken away and added: no packet finds it missing.

A second socket only listens: whatever changes routes, addresses or uplinks, or takes entries, rules or learnt routes
away, wakes the service, which then reads all; pods' own links and routes do not. So an overflow loses nothing that the
next full pass would not find, and is not reported as an error. An IPv6 unreachable route is listed with the loopback as
its link (net/ipv6/route.c), which says nothing and is left out.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

from chassis.faults import Retryable
from linux import netlink, rtnl
from linux.interfaces import Interfaces
from linux.netlink import Netlink, NetlinkRefused
from linux.netns import NotANamespace, enter
from proto.net import Address
from services.routing.core.fib import (
    AddDevice,
    MendDevice,
    Operation,
    RemoveDevice,
    Route,
    Snapshot,
    Uplink,
)
from services.routing.core.learnt import PROTOCOL as LEARNT
from services.routing.core.wireguard import WireguardState, Wish
from services.routing.devices import LOOKUPS, NAMES, Devices, why_refused
from services.routing.probes import open_probe
from services.routing.rtnetlink import ALL, NOTHING, Change, Concern, concerns, is_others, message, read
from services.routing.wireguard import Wireguard

CHUNK = 256
"""Operations in one send; their acknowledgements fit into a default socket buffer."""
DEADLINE = 10.0
FORWARDING = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv6/fib_multipath_hash_policy",
)
"""Switches that must not be 0. The last two: the hash that chooses one of several next hops is over ports too (1), or
over what somebody asks for who knows more of the packets (2 and 3).
"""

_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400 | 0x40000 | 0x80000000
"""RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE; bits of RTNLGRP_IPV6_RULE and NEXTHOP."""
READ_AT_ONCE = 256
"""Notifications that are read before others have the event loop: a millisecond or two."""

_OF_DEVICES = (AddDevice, MendDevice, RemoveDevice)

T = TypeVar("T")
MakeWireguard = Callable[[Netlink, Devices], Wireguard]


class KernelFault(Retryable):
    """The kernel could not be asked, or refused; says what."""


class Refusal(NamedTuple):
    """An operation that the kernel refused."""

    operation: Operation
    number: int
    """Its errno."""
    why: str = ""
    remedy: str = ""
    """What that means and what to do, where more is known than the errno says."""


class Kernel:
    """One namespace's routes. ``namespace`` is the path of a network namespace to enter (None: the process' own);
    ``sysctls`` is where the kernel's switches are.
    """

    def __init__(
        self,
        uplinks: Sequence[str],
        namespace: Path | None = None,
        sysctls: Path = Path("/proc/sys"),
        *,
        loopback: str = "",
        programs: bool = False,
        wireguard: MakeWireguard | None = None,
    ) -> None:
        """``loopback``: the interface with the node's own address, if that is on no uplink. ``programs``: a tunnel
        device takes packets only with the datapath's programs. ``wireguard`` makes what drives its devices; without it
        there are none.
        """
        self._make_wireguard = wireguard
        self._wireguard: Wireguard | None = None
        self._names = tuple(uplinks)
        self._loopback = loopback
        self._namespace = namespace
        self._sysctls = sysctls
        self._programs = programs
        self._devices: Devices | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink")
        self._interfaces: Interfaces | None = None
        self._netlink: Netlink | None = None
        self._listener: socket.socket | None = None
        self._indexes: frozenset[int] = frozenset()
        """Of the tunnel devices, as of the last snapshot."""

    async def snapshot(self) -> Snapshot:
        """Routes of the main table and the uplinks; raises KernelFault."""
        return await self._run(self._snapshot)

    async def apply(self, operations: Sequence[Operation]) -> tuple[Refusal, ...]:
        """Do all of them in their order; returns those that the kernel refused. Raises KernelFault.

        A route to be removed that is gone already is no failure.
        """
        return await self._run(lambda: self._apply(operations))

    async def wireguard(self, wish: Wish) -> WireguardState:
        """One pass over the devices of WireGuard; what fails is in the state. Raises KernelFault for a deadline."""

        def work() -> WireguardState:
            assert self._netlink is not None
            assert self._devices is not None
            assert self._make_wireguard is not None
            if self._wireguard is None:
                self._wireguard = self._make_wireguard(self._netlink, self._devices)
            return self._wireguard.run(wish, now=time.time(), clock=time.monotonic())

        return await self._run(work)

    async def open_probe(self, device: str, local: Address, port: int, hops: int) -> socket.socket:
        """A socket for packets of measurement; see ``services.routing.probes``. Raises KernelFault."""
        return await self._run(lambda: open_probe(device, local, port, hops))

    async def forward(self) -> tuple[str, ...]:
        """Let this namespace forward both families; returns the switches that cannot be set."""
        return await self._run(lambda: _set_forwarding(self._sysctls))

    async def learnt(self, work: Callable[[Netlink], T]) -> T:
        """Have a slice of work on learnt routes done in the thread, between others of its kind. Raises KernelFault."""

        def inside() -> T:
            assert self._netlink is not None
            return work(self._netlink)

        return await self._run(inside)

    async def watch(self, changed: Callable[[Concern], None]) -> None:
        """Call ``changed`` (in the event loop) with what may have changed, whenever it may."""
        self._listener = await self._run(self._listen)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._hear, self._listener, changed)

    def _listen(self) -> socket.socket:
        assert self._netlink is not None
        return netlink.listen(_GROUPS, silent=LEARNT, own=self._netlink.port)

    def _hear(self, listener: socket.socket, changed: Callable[[Concern], None]) -> None:
        """Take a part of what has come; the loop calls again while there is more."""
        heard, links = NOTHING, (*self._names, self._loopback, *NAMES)
        with suppress(BlockingIOError):
            for _ in range(READ_AT_ONCE):
                received = listener.recv(65536)
                if heard is not ALL:
                    heard |= concerns(received, links, self._indexes, LOOKUPS.values())
        if heard:
            changed(heard)

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
        except (OSError, NotANamespace) as error:  # TimeoutError is one
            raise KernelFault(f"netlink: {str(error) or type(error).__name__}") from error

    def _open(self) -> None:
        """In the thread, once: enter the namespace and open the sockets."""
        if self._netlink is None:
            if self._namespace is not None:
                enter(str(self._namespace))
            self._netlink = Netlink()
        if self._interfaces is None:
            self._interfaces = Interfaces()
        if self._devices is None:
            self._devices = Devices(self._sysctls, programs=self._programs)

    def _close(self) -> None:
        if self._interfaces is not None:
            self._interfaces.close()
        if self._devices is not None:
            self._devices.close()
        if self._netlink is not None:
            self._netlink.close()

    def _snapshot(self) -> Snapshot:
        routes = [*self._routes(socket.AF_INET), *self._routes(socket.AF_INET6)]
        links = self._links()
        missing = tuple(name for name in self._wanted_links if name not in links)
        assert self._devices is not None
        assert self._netlink is not None
        devices = self._devices.seen()
        entries = self._devices.entries(self._netlink, devices)
        self._indexes = frozenset(one.index for one in devices)
        return Snapshot(
            routes=tuple(routes),
            uplinks=tuple(links[name] for name in self._names if name in links),
            loopback=links.get(self._loopback),
            missing=missing,
            devices=devices,
            entries=entries,
        )

    def _routes(self, family: int) -> list[Route]:
        """Without those that were learnt: there may be 100,000, and ``services.routing.learnt`` compares them."""
        assert self._netlink is not None
        bodies = self._netlink.dump(rtnl.GETROUTE, rtnl.routes_query(family), rtnl.NO_TABLE, is_others)
        return [route for route in map(read, bodies) if route is not None]

    @property
    def _wanted_links(self) -> tuple[str, ...]:
        return (*self._names, self._loopback) if self._loopback else self._names

    def _links(self) -> dict[str, Uplink]:
        """Those of the settings that there are, by name."""
        assert self._interfaces is not None
        found = self._interfaces.named(dict.fromkeys(self._wanted_links))
        return {
            one.name: Uplink(name=one.name, index=one.index, up=one.up, mtu=one.mtu, addresses=one.addresses)
            for one in found
        }

    def _apply(self, operations: Sequence[Operation]) -> tuple[Refusal, ...]:
        refused: list[Refusal] = []
        for of_device, group in groupby(operations, lambda one: isinstance(one, _OF_DEVICES)):
            if of_device:
                refused += [refusal for one in group if (refusal := self._device(one)) is not None]
            else:
                refused += self._changes([one for one in group if not isinstance(one, _OF_DEVICES)])
        return tuple(refused)

    def _changes(self, operations: Sequence[Change]) -> list[Refusal]:
        assert self._netlink is not None
        refused: list[Refusal] = []
        for start in range(0, len(operations), CHUNK):
            part = operations[start : start + CHUNK]
            answers = self._netlink.attempt([message(operation) for operation in part])
            refused += [Refusal(part[position], error.errno or 0) for position, error in answers]
        return refused

    def _device(self, operation: Operation) -> Refusal | None:
        assert self._devices is not None
        assert isinstance(operation, _OF_DEVICES)
        try:
            self._devices.apply(operation)
        except NetlinkRefused as error:
            other = "" if isinstance(operation, RemoveDevice) else self._devices.in_the_way(operation.device)
            return Refusal(operation, error.errno or 0, *why_refused(error, operation, other))
        return None


def _set_forwarding(sysctls: Path) -> tuple[str, ...]:
    """``net`` below ``sysctls`` is that of the calling thread's namespace."""
    failed = []
    for switch in FORWARDING:
        path = sysctls / switch
        try:
            if path.read_text().strip() == "0":
                path.write_text("1\n")
            if path.read_text().strip() == "0":
                failed.append(switch)
        except OSError:
            failed.append(switch)
    return tuple(failed)
