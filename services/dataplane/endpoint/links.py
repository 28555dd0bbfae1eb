"""Pods' links in the kernel: made, brought up, retired, removed in batches, read back.

Owns the veth pairs, their addresses, routes and neighbours on both ends, and the few sysctls of the host's end; runs on
the agent's one :class:`~services.dataplane.datapath.thread.NamespaceThread`. Promises: the peer is made directly in the
pod's namespace (moving it costs 19 ms); the host's end stays *down* until :meth:`Links.bring_up`, so no packet passes
before its policy is in the maps; a retired link is unreachable at once and removed with others of its group soon
after (one removal alone waits 20 ms for the kernel's grace period). Refuses a container that already has the interface.
Each end has one transmit and one receive queue: the kernel's default is one for each processor, which a veth has no
use for (it queues nothing), and each comes with a folder of sysfs that is made and removed with the link.
Kernel quirks: IFLA_IFALIAS and IFLA_AF_SPEC are ignored when a link is made and need a second message; an IPv6 address
without IFA_F_NODAD would be tentative for a second.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from linux import rtnl
from linux.netlink import (
    CREATE,
    EXCLUSIVE,
    Message,
    Netlink,
    NetlinkRefused,
    attribute,
    first_attribute,
    number,
    parse_attributes,
    text,
)
from linux.netns import by_cookie, inside
from proto.net import Address
from services.dataplane.core.cni.result import gateway
from services.dataplane.core.endpoint import links as marks
from services.dataplane.core.endpoint.links import KernelLinks, Mark, PodLink, SeenLink, Size

_BOOT = 3
_GONE = (errno.ENODEV, errno.ESRCH, errno.ENOENT)
_LOOPBACK = 1
"""Interface index of ``lo`` in every namespace (LOOPBACK_IFINDEX, include/net/flow.h)."""
_ONE_QUEUE = number(31, 1) + number(32, 1)
_HOST_CONF = attribute(26, attribute(socket.AF_INET, attribute(1, number(1, 1) + number(3, 0) + number(8, 0))))
_OPERSTATE, _OPERSTATE_UP = 16, b"\x06"
_CARRIER_TRIES, _CARRIER_PAUSE = 40, 0.0005
_GENERATE_NO_ADDRESS = attribute(26, attribute(socket.AF_INET6, attribute(8, b"\x01")))


Attach = Callable[[int, Callable[[Sequence[Message]], None]], None]
"""Hangs programs on the link of this index; calls once what sends the rtnetlink messages for it."""


class InterfaceExists(Exception):
    """The pod has an interface of this name already."""


@dataclass(frozen=True, slots=True)
class MadeLink:
    """A link that exists now, its host end down."""

    index: int
    """Interface index of the host's end."""
    cookie: int
    """Cookie of the pod's network namespace."""


class Links:
    """Blocking; every method runs on the namespace thread, in the node's namespace."""

    def __init__(self, sysctls: Path = Path("/proc/sys")) -> None:
        self._sysctls = sysctls
        self._host = Netlink()
        self._begun: dict[str, _PodEnd] = {}
        """Pods' ends by the host end's name, from :meth:`create` until :meth:`bring_up` or :meth:`retire_named`."""

    def close(self) -> None:
        """Gives the sockets back; links stay."""
        self._host.close()
        for name in list(self._begun):
            self._leave(name)

    def create(self, wanted: PodLink, netns: int, attach: Attach) -> MadeLink:
        """Makes the pair with the pod's end configured in ``netns`` (a descriptor) and what ``attach`` hangs on the
        host's end.

        Raises InterfaceExists or NetlinkRefused; nothing is left behind then.
        """
        self._make_pair(wanted, netns)
        try:
            index = self._host.index_of(wanted.host_name)
            with inside(netns):
                pod = self._begun[wanted.host_name] = _PodEnd(wanted.attachment.interface)
                _configure_pod(wanted, pod, self._sysctls)
            made = MadeLink(index, pod.netlink.cookie)
            marks_of_it = _marks(index, Mark(wanted.attachment, wanted.uid, made.cookie))
            attach(index, lambda messages: self._host.run([marks_of_it, *messages]))
        except BaseException:
            self._leave(wanted.host_name)
            self._remove_now(wanted.host_name)
            raise
        return made

    def _leave(self, name: str) -> None:
        """Lets go of a pod's end."""
        if (pod := self._begun.pop(name, None)) is not None:
            pod.netlink.close()

    def _make_pair(self, wanted: PodLink, netns: int) -> None:
        """The veth. One of either name may be there still: ours from an ADD that was cut off, or the pod's from a
        container that had this namespace before and was deleted just now.
        """
        pair = _veth(wanted, netns)
        try:
            self._host.run([pair])
        except NetlinkRefused as error:
            if error.errno != errno.EEXIST:
                raise
            self._remove_now(wanted.host_name)
            self.reap()
            if _has(netns, wanted.attachment.interface):
                raise InterfaceExists(wanted.attachment.interface) from error
            self._host.run([pair])

    def bring_up(self, index: int, wanted: PodLink) -> None:
        """The pod's traffic begins: sysctls, up, permanent neighbours, routes. May be repeated.

        After :meth:`create` it also waits (a millisecond or so) until the pod's end can send.
        """
        _set_sysctls(wanted, self._sysctls)
        messages = [_host_conf(index), rtnl.set_up(index)]
        messages += [rtnl.add_neighbour(index, address, wanted.mac) for address in wanted.addresses]
        messages += [
            rtnl.add_route(index, address, version=address.version, protocol=marks.PROTOCOL)
            for address in wanted.addresses
        ]
        try:
            self._host.run(messages)
            if (pod := self._begun.get(wanted.host_name)) is not None:
                _await_carrier(pod)
        finally:
            self._leave(wanted.host_name)

    def retire(self, index: int, addresses: tuple[Address, ...]) -> None:
        """The node routes nothing to the pod from now on; the link goes with the next :meth:`reap`. Succeeds if it is
        gone. Until then its programs judge: who forgets the endpoint in their maps first has cut it off whole. Setting
        it down here would wait for a grace period of the kernel (1 to 2 ms each; together they wait once).
        """
        messages = [
            rtnl.delete_route(index, address, protocol=marks.PROTOCOL, tolerated=_GONE) for address in addresses
        ]
        messages.append(rtnl.set_group(index, marks.GROUP_DELETING, tolerated=_GONE))
        self._host.run(messages)

    def retire_named(self, name: str, addresses: tuple[Address, ...]) -> None:
        """Like :meth:`retire`, for a link of which only the name is known; succeeds if there is none."""
        self._leave(name)
        with suppress(OSError):
            self.retire(self._host.index_of(name), addresses)

    def reap(self) -> None:
        """Removes every retired link at once."""
        self._host.run([rtnl.delete_group(marks.GROUP_DELETING, tolerated=(errno.ENODEV, errno.ENOENT, errno.ESRCH))])

    def remove(self, index: int) -> None:
        """Removes one link now (some 20 ms)."""
        self._host.run([Message(rtnl.DELLINK, 0, rtnl.ifinfo(index), f"link {index}", (errno.ENODEV,))])

    def _remove_now(self, name: str) -> None:
        with suppress(OSError):
            self.remove(self._host.index_of(name))

    def repair(self, missing_routes: list[tuple[int, Address]], missing: list[tuple[int, Address, bytes]]) -> None:
        """Puts routes and neighbours of pods back."""
        messages = [rtnl.add_neighbour(index, address, mac) for index, address, mac in missing]
        messages += [
            rtnl.add_route(index, address, version=address.version, protocol=marks.PROTOCOL)
            for index, address in missing_routes
        ]
        self._host.run(messages)

    def remove_routes(self, stale: list[tuple[int, Address]]) -> None:
        """Takes routes of ours away that no endpoint asks for."""
        self._host.run([rtnl.delete_route(i, a, protocol=marks.PROTOCOL, tolerated=_GONE) for i, a in stale])

    def resize(self, sizes: Sequence[Size]) -> tuple[str, ...]:
        """Gives live links another MTU at both ends; connections go on. Names those that stay as they are: the pod's
        end is not found, or an end refuses (a program of the pod's own may limit it).

        Both or none: an end drops what is larger than its own MTU, and says so to nobody.
        """
        left = []
        with by_cookie(size.cookie for size in sizes) as namespaces:
            for size in sizes:
                netns = namespaces.get(size.cookie)
                if netns is None or not self._resize(size, netns):
                    left.append(size.name)
        return tuple(left)

    def _resize(self, size: Size, netns: int) -> bool:
        """The pod's end goes first: the host's tells the next look that both have it."""
        with inside(netns), Netlink() as pod:
            try:
                pod.run([rtnl.set_mtu(size.peer, size.mtu, tolerated=_GONE)])
                self._host.run([rtnl.set_mtu(size.index, size.mtu, tolerated=_GONE)])
            except NetlinkRefused:
                pod.attempt([rtnl.set_mtu(size.peer, size.before)])
                return False
        return True

    def pod_addresses(self, netns: int, interface: str) -> frozenset[Address]:
        """Addresses of a pod's interface, read in its namespace; empty when there is no such interface."""
        with inside(netns):
            try:
                index = socket.if_nametoindex(interface)
            except OSError:
                return frozenset()
            with Netlink() as pod:
                return frozenset(address for at, address in _addresses(pod) if at == index)

    def own_addresses(self) -> frozenset[Address]:
        """Addresses of this namespace's interfaces, loopback and link-local ones left out."""
        found = (address for _, address in _addresses(self._host))
        return frozenset(address for address in found if not (address.is_loopback or address.is_link_local))

    def snapshot(self) -> KernelLinks:
        """Links, our routes and permanent neighbours as they are."""
        return KernelLinks(
            links=tuple(map(_seen, self._host.dump(rtnl.GETLINK, rtnl.ifinfo()))),
            routes=frozenset(self._routes()),
            neighbours=frozenset(self._neighbours()),
        )

    def _routes(self) -> list[tuple[int, Address]]:
        found: list[tuple[int, Address]] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            query = rtnl.routes_query(family, protocol=marks.PROTOCOL, kind=rtnl.UNICAST)
            routes = map(rtnl.parse_route, self._host.dump(rtnl.GETROUTE, query, rtnl.NO_TABLE))
            found += [
                (route.link, ip_address(route.destination))
                for route in routes
                if route.protocol == marks.PROTOCOL and route.destination and route.link
            ]
        return found

    def _neighbours(self) -> list[tuple[int, Address, bytes]]:
        found: list[tuple[int, Address, bytes]] = []
        for raw in self._host.dump(rtnl.GETNEIGH, struct.pack("<BBHiHBB", 0, 0, 0, 0, 0, 0, 0)):
            _, _, _, index, state, _, _ = struct.unpack_from("<BBHiHBB", raw)
            attributes = parse_attributes(raw[12:])
            if state & rtnl.PERMANENT and len(attributes.get(1, b"")) in (4, 16) and len(attributes.get(2, b"")) == 6:
                found.append((index, ip_address(attributes[1]), attributes[2]))
        return found


class _PodEnd:
    """A pod's interface, seen by a socket of its namespace; made there, used from anywhere. Raises OSError."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.netlink = Netlink()
        try:
            self.index = self.netlink.index_of(interface)
        except BaseException:
            self.netlink.close()
            raise


def _has(netns: int, interface: str) -> bool:
    """Whether a namespace has an interface of this name."""
    with inside(netns):
        return interface in (name for _, name in socket.if_nameindex())


def _seen(raw: bytes) -> SeenLink:
    one = rtnl.parse_link(raw)
    return SeenLink(
        index=one.link,
        name=one.name,
        alias=one.alias,
        group=one.group,
        up=one.up,
        mtu=one.mtu,
        mac=one.mac,
        peer=one.peer,
    )


def _addresses(netlink: Netlink) -> list[tuple[int, Address]]:
    found = map(rtnl.parse_address, netlink.dump(rtnl.GETADDR, bytes(8)))
    return [one for one in found if one is not None]


def _veth(wanted: PodLink, netns: int) -> Message:
    mtu = number(4, wanted.mtu)
    peer = rtnl.ifinfo() + text(3, wanted.attachment.interface) + attribute(1, wanted.mac) + mtu + _ONE_QUEUE
    peer += attribute(rtnl.PEER_IN, struct.pack("<i", netns))
    pair = attribute(18, text(1, "veth") + attribute(2, attribute(1, peer)))
    body = rtnl.ifinfo() + text(3, wanted.host_name) + attribute(1, marks.HOST_MAC) + mtu
    body += _ONE_QUEUE + number(27, marks.GROUP_LIVE) + pair
    return Message(rtnl.NEWLINK, CREATE | EXCLUSIVE, body, ("veth", wanted.host_name))


def _marks(index: int, mark: Mark) -> Message:
    body = rtnl.ifinfo(index) + text(20, marks.alias(mark)) + _GENERATE_NO_ADDRESS
    return Message(rtnl.NEWLINK, 0, body, ("alias of link", index))


def _host_conf(index: int) -> Message:
    """The host end's ``net.ipv4.conf``: forwarding on, proxy_arp and rp_filter off (include/uapi/linux/ip.h)."""
    return Message(rtnl.NEWLINK, 0, rtnl.ifinfo(index) + _HOST_CONF, ("configuration of link", index))


def _configure_pod(wanted: PodLink, pod: _PodEnd, sysctls: Path) -> None:
    """In the pod's namespace: loopback, addresses, routes through the gateway, the gateway as permanent neighbour."""
    switches = [("accept_ra", b"0"), ("accept_dad", b"0")]
    if any(address.version == 6 for address in wanted.addresses):
        switches.append(("disable_ipv6", b"0"))
    _switch(sysctls, pod.interface, switches)
    messages = [rtnl.set_up(_LOOPBACK), rtnl.set_up(pod.index)]
    for address in wanted.addresses:
        messages.append(rtnl.add_address(pod.index, address))
        messages += _through(gateway(address), pod.index)
    pod.netlink.run(messages)


@lru_cache(maxsize=64)
def _through(via: Address, index: int) -> tuple[Message, ...]:
    """A pod's way out; the same for all pods whose interface has this index in their namespace."""
    return (
        rtnl.add_route(index, via, version=via.version, protocol=_BOOT),
        rtnl.add_route(index, None, version=via.version, via=via, protocol=_BOOT),
        rtnl.add_neighbour(index, via, marks.HOST_MAC),
    )


def _await_carrier(pod: _PodEnd) -> None:
    """Until the pod's end is operational.

    Its carrier came with the host's end, but the kernel gives it a queue only in the link watch work; what is sent
    before is lost, and a lost SYN is a second. RTM_GETLINK does that work at once since Linux 6.8
    (net/core/rtnetlink.c, rtnl_getlink: linkwatch_sync_dev); before, it is asked again until it says so.
    """
    query = rtnl.ifinfo(pod.index)
    for _ in range(_CARRIER_TRIES):
        if first_attribute(pod.netlink.ask(rtnl.GETLINK, query)[16:], _OPERSTATE) == _OPERSTATE_UP:
            return
        time.sleep(_CARRIER_PAUSE)


def _set_sysctls(wanted: PodLink, sysctls: Path) -> None:
    """Those of the host's end that rtnetlink does not take."""
    _switch(sysctls, wanted.host_name, (("accept_ra", b"0"), ("forwarding", b"1")))


def _switch(sysctls: Path, interface: str, values: Iterable[tuple[str, bytes]]) -> None:
    """Sets IPv6 sysctls of an interface in the calling thread's namespace; a kernel without IPv6 has none of them.

    By their folder: the way there is long, and at each step the kernel passes by every other namespace's entry of the
    same name.
    """
    with suppress(FileNotFoundError):
        folder = os.open(f"{sysctls}/net/ipv6/conf/{interface}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name, value in values:
                descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
                try:
                    os.write(descriptor, value)
                finally:
                    os.close(descriptor)
        finally:
            os.close(folder)
