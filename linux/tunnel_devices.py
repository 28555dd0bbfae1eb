"""Devices that carry tunnels: VXLAN devices and pairs of veth, made, read and taken away by pyroute2.

Owns how they are made so that only what is set on them ever travels: a VXLAN device that learns nothing, asks nothing,
forbids fragments, and takes UDP without a checksum over IPv6 (RFC 6935: what carries a tunnel may be sent without); a
veth that speaks no neighbour protocol. There are few of them, read now and then. Acts in the network namespace of the
thread that makes it. Its dicts never leave this module.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from linux.netlink import NetlinkRefused
from linux.rtnl import Address

IFF_UP, IFF_NOARP = 0x1, 0x80
_DF_SET = 1
_NO_ADDRESSES = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}
_SCOPE_HOST, _NO_PREFIX_ROUTE = 254, 0x200


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelLink:
    """A device as the kernel tells it."""

    name: str
    index: int
    kind: str
    """``IFLA_INFO_KIND``; empty for none."""
    up: bool
    mtu: int
    group: int
    alias: str
    vni: int = 0
    port: int = 0
    """UDP port of a VXLAN device."""
    local: str = ""
    """Own outer address of a VXLAN device; empty for none."""


class TunnelDevices:
    """Reads and changes them over a socket of its own. Blocking; raises NetlinkRefused."""

    def __init__(self) -> None:
        self._kernel: Any = IPRoute()

    def close(self) -> None:
        """Gives the socket back."""
        self._kernel.close()

    def named(self, name: str) -> TunnelLink | None:
        """The device of this name, whatever it is; None when there is none."""
        with _reported():
            try:
                (message,) = self._kernel.link("get", ifname=name)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise
                return None
            return _link(message)

    def vxlans(self) -> tuple[TunnelLink, ...]:
        """All VXLAN devices of the namespace."""
        with _reported():
            found = self._kernel.link("dump", kind="vxlan")
            return tuple(link for link in map(_link, found) if link.kind == "vxlan")

    def make_vxlan(self, name: str, *, mac: bytes, local: Address, vni: int, port: int, group: int) -> int:
        """A VXLAN device, down; returns its index."""
        own = {"vxlan_local": str(local)} if local.version == 4 else {"vxlan_local6": str(local)}
        with _reported():
            self._kernel.link(
                "add",
                ifname=name,
                kind="vxlan",
                address=mac.hex(":"),
                group=group,
                vxlan_id=vni,
                vxlan_port=port,
                vxlan_learning=False,
                vxlan_df=_DF_SET,
                vxlan_udp_zero_csum6_rx=True,
                **own,
            )
            return self._index(name)

    def make_veth(self, name: str, peer: str, *, group: int) -> int:
        """A pair of veth, down, without ARP and neighbour discovery; returns the index of ``name``."""
        with _reported():
            self._kernel.link("add", ifname=name, kind="veth", peer={"ifname": peer, "group": group}, group=group)
            index = self._index(name)
            for one in (index, self._index(peer)):
                self._kernel.link("set", index=one, flags=IFF_NOARP, change=IFF_NOARP)
            return index

    def bring_up(self, index: int, mtu: int, address: IPv4Interface) -> None:
        """Give it its MTU and this address (scope host, no route), no IPv6 address of its own, and set it up.

        Without an IPv4 address of a device, the kernel drops what comes in there from a source that is not routed out
        by it (``__fib_validate_source``), however loose ``rp_filter`` is.
        """
        with _reported():
            self._kernel.link("set", index=index, mtu=mtu, IFLA_AF_SPEC=_NO_ADDRESSES)
            self._kernel.addr(
                "replace",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                scope=_SCOPE_HOST,
                flags=_NO_PREFIX_ROUTE,
            )
            self._kernel.link("set", index=index, state="up")

    def bring_peer_up(self, name: str, mtu: int) -> None:
        """The other end of a pair of veth."""
        with _reported():
            self._kernel.link("set", index=self._index(name), mtu=mtu, IFLA_AF_SPEC=_NO_ADDRESSES, state="up")

    def has(self, index: int, address: IPv4Interface) -> bool:
        """Whether the device has this address."""
        with _reported():
            found = self._kernel.get_addr(family=2, index=index)
            return any(message.get_attr("IFA_LOCAL") == str(address.ip) for message in found)

    def mark(self, index: int, alias: str) -> None:
        """Give it its alias."""
        with _reported():
            self._kernel.link("set", index=index, ifalias=alias)

    def remove(self, index: int) -> None:
        """Take it away; that it is gone already is no failure."""
        with _reported(errno.ENODEV):
            self._kernel.link("del", index=index)

    def bind_lookups(self, name: str, index: int, table: int, protocol: int) -> None:
        """Sockets bound to the device find every IPv6 address on its link, as IPv4 has it for all devices: by a rule
        for packets that go out by it, and a table of one route.
        """
        with _reported():
            if not self._rules(name, table):
                self._kernel.rule("add", family=10, FRA_OIFNAME=name, table=table, FRA_PROTOCOL=protocol)
            self._kernel.route("replace", family=10, dst="default", oif=index, table=table, proto=protocol)

    def bound(self, name: str, index: int, table: int) -> bool:
        """Whether :meth:`bind_lookups` has been done, and nobody undid it."""
        with _reported():
            routes = self._kernel.get_routes(family=10, table=table)
            there = any(message.get_attr("RTA_OIF") == index and not message["dst_len"] for message in routes)
            return there and bool(self._rules(name, table))

    def unbind_lookups(self, name: str, table: int) -> None:
        """Take its rules away; the routes go with the device."""
        with _reported():
            for _ in self._rules(name, table):
                self._kernel.rule("del", family=10, FRA_OIFNAME=name, table=table)

    def _rules(self, name: str, table: int) -> list[Any]:
        return [
            message
            for message in self._kernel.get_rules(family=10)
            if message.get_attr("FRA_OIFNAME") == name and message.get_attr("FRA_TABLE") == table
        ]

    def _index(self, name: str) -> int:
        (message,) = self._kernel.link("get", ifname=name)
        return int(message["index"])


def _link(message: Any) -> TunnelLink:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info is not None else None) or ""
    settings = info.get_attr("IFLA_INFO_DATA") if kind == "vxlan" else None

    def said(name: str) -> Any:
        return settings.get_attr(name) if settings is not None else None

    return TunnelLink(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        kind=kind,
        up=bool(message["flags"] & IFF_UP),
        mtu=message.get_attr("IFLA_MTU"),
        group=message.get_attr("IFLA_GROUP") or 0,
        alias=message.get_attr("IFLA_IFALIAS") or "",
        vni=said("IFLA_VXLAN_ID") or 0,
        port=said("IFLA_VXLAN_PORT") or 0,
        local=said("IFLA_VXLAN_LOCAL") or said("IFLA_VXLAN_LOCAL6") or "",
    )


@contextmanager
def _reported(*tolerated: int) -> Iterator[None]:
    with suppress(_Tolerated):
        try:
            yield
        except NetlinkError as error:
            if error.code in tolerated:
                raise _Tolerated from error
            raise NetlinkRefused(error.code, str(error)) from error


class _Tolerated(Exception):
    """What is to be passed over."""
