"""Tunnel devices and routes of ``routing``, read from the kernel: all of them at a look, single ones as it tells.

Owns the sockets. :meth:`TunnelKernel.look` is what is true; notices only make it sooner, at the cost of what they are
about: a route is read off its notice, a link asks for another look at the links. An overflow of notices is not reported
(``linux.netlink.listen``) and ends with the next look. Blocking, apart from the listener; acts in the network namespace
of the thread that makes it, which is the node's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from kit.tunnels import LAST_METRIC, METRIC, ROUTE_PROTOCOL, is_tunnel_name, parse_alias
from linux import netlink, rtnl
from linux.netlink import Netlink
from proto.net import Address
from services.dataplane.core.tunnel.devices import Device
from services.dataplane.core.tunnel.routes import RouteKey, SeenRoute

MOST_NOTICES = 16_384
"""That wait; more than these are one look at all."""
_GROUPS = 0x1 | 0x40 | 0x400
"""RTMGRP_LINK, IPV4_ROUTE, IPV6_ROUTE."""
_PROTOCOL_AT = 5
"""Place in ``struct rtmsg``."""
_OURS = bytes([ROUTE_PROTOCOL])
_KINDS = (rtnl.UNICAST, rtnl.PROHIBIT)


@dataclass(frozen=True, slots=True)
class Links:
    """What a look at the links gives."""

    devices: tuple[Device, ...]
    """Tunnel devices."""
    up: frozenset[int]
    """Indices of all links that are set up."""


@dataclass(frozen=True, slots=True)
class Notices:
    """What the kernel told since it was asked last."""

    routes: tuple[tuple[RouteKey, SeenRoute, bool], ...] = ()
    """In their order: the route, and whether it is there now."""
    links: bool = False
    """Some tunnel device came, went or is another."""
    lost: bool = False
    """There were too many: all is to be looked at."""


def read_route(body: bytes) -> tuple[RouteKey, SeenRoute] | None:
    """The route of an RTM_NEWROUTE or RTM_DELROUTE body; None for one that is not ours or says nothing here."""
    seen = rtnl.parse_route(body)
    ours = seen.protocol == ROUTE_PROTOCOL and seen.metric in (METRIC, LAST_METRIC) and seen.table == rtnl.TABLE_MAIN
    if not ours or seen.flags & rtnl.CLONED or seen.kind not in _KINDS:
        return None
    network, size = (IPv4Network, 4) if seen.family == socket.AF_INET else (IPv6Network, 16)
    key = network((seen.destination or bytes(size), seen.length)), seen.metric
    if seen.kind == rtnl.PROHIBIT:
        return key, SeenRoute(link=0, via=None, prohibits=True)
    via: Address | None = ip_address(seen.gateway) if seen.gateway else None
    return key, SeenRoute(link=seen.link, via=via)


class TunnelKernel:
    """See the module."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def close(self) -> None:
        """Gives the socket back."""
        self._netlink.close()

    def links(self) -> Links:
        """Links as they are. Raises NetlinkRefused."""
        seen = [rtnl.parse_link(raw) for raw in self._netlink.dump(rtnl.GETLINK, rtnl.ifinfo())]
        devices = tuple(
            Device(index=one.link, name=one.name, mac=one.mac, tunnel=tunnel, up=one.up)
            for one in seen
            if one.alias and (tunnel := parse_alias(one.alias)) is not None
        )
        return Links(devices, frozenset(one.link for one in seen if one.up))

    def own_addresses(self) -> frozenset[Address]:
        """Addresses of this namespace's interfaces, loopback and link-local ones left out. Raises NetlinkRefused."""
        found = map(rtnl.parse_address, self._netlink.dump(rtnl.GETADDR, bytes(8)))
        addresses = (one[1] for one in found if one is not None)
        return frozenset(one for one in addresses if not (one.is_loopback or one.is_link_local))

    def routes(self) -> dict[RouteKey, SeenRoute]:
        """Routes of ``routing`` as they are. Raises NetlinkRefused."""
        found: dict[RouteKey, SeenRoute] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind in _KINDS:
                query = rtnl.routes_query(family, protocol=ROUTE_PROTOCOL, kind=kind)
                read = map(read_route, self._netlink.dump(rtnl.GETROUTE, query, rtnl.NO_TABLE))
                found.update(route for route in read if route is not None)
        return found


class KernelWatch:
    """Hears what the kernel tells, from :meth:`start` to :meth:`close`."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """``changed`` is called, in the event loop, when there is something to :meth:`take`."""
        self._changed = changed
        self._listener: socket.socket | None = None
        self._routes: list[tuple[RouteKey, SeenRoute, bool]] = []
        self._links = self._lost = False
        self.known: Collection[int] = ()
        """Indices of the tunnel devices that are known: what is told of them counts whatever their names."""

    def start(self) -> None:
        """From now on."""
        self._listener = netlink.listen(_GROUPS)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._drain)

    def close(self) -> None:
        """Hears no more."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    @property
    def pending(self) -> bool:
        """Whether there is something to :meth:`take`."""
        return bool(self._routes) or self._links or self._lost

    def take(self) -> Notices:
        """What was told since the last call."""
        notices = Notices(tuple(self._routes), self._links, self._lost)
        self._routes, self._links, self._lost = [], False, False
        return notices

    def _drain(self) -> None:
        assert self._listener is not None
        heard = False
        with suppress(BlockingIOError):
            while received := self._listener.recv(1 << 16):
                heard = self.hear(received) or heard
        if heard:
            self._changed()

    def hear(self, received: bytes) -> bool:
        """Notes what one message's bytes tell; whether it is about tunnels at all."""
        heard = False
        for kind, _, _, body in netlink.parse(received):
            if kind in (rtnl.NEWROUTE, rtnl.DELROUTE):
                if body[_PROTOCOL_AT : _PROTOCOL_AT + 1] == _OURS and (route := read_route(body)) is not None:
                    self._note(*route, kind == rtnl.NEWROUTE)
                    heard = True
            elif kind in (rtnl.NEWLINK, rtnl.DELLINK) and (
                rtnl.link_index(body) in self.known or is_tunnel_name(rtnl.link_name(body))
            ):
                self._links = heard = True
        return heard

    def _note(self, key: RouteKey, route: SeenRoute, is_there: bool) -> None:
        if len(self._routes) >= MOST_NOTICES:
            self._routes, self._lost = [], True
        if not self._lost:
            self._routes.append((key, route, is_there))
