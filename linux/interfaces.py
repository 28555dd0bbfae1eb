"""Interfaces and their addresses, read by pyroute2: for whoever reads a few of them now and then.

Owns pyroute2: its dicts never leave this module. Acts in the network namespace of the thread that makes it. What is
read or changed for every pod goes by hand (``linux.rtnl``), where speed is felt.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from linux.netlink import NetlinkRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface as the kernel tells it."""

    name: str
    index: int
    up: bool
    mtu: int
    """Largest IP packet, in bytes."""
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    """With their prefix lengths; of a point-to-point link this end's."""


class Interfaces:
    """Reads them over a socket of its own. Blocking."""

    def __init__(self) -> None:
        self._kernel: Any = IPRoute()

    def close(self) -> None:
        """Gives the socket back."""
        self._kernel.close()

    def named(self, names: Iterable[str]) -> tuple[Interface, ...]:
        """Those of these names that there are, in this order. Raises NetlinkRefused.

        Each is asked for by its name: a node has as many as it has pods, and reading them all takes a while.
        """
        try:
            return tuple(self._named(names))
        except NetlinkError as error:
            raise NetlinkRefused(error.code, str(error)) from error

    def _named(self, names: Iterable[str]) -> Iterator[Interface]:
        addresses: dict[int, list[IPv4Interface | IPv6Interface]] = {}
        for message in self._kernel.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            addresses.setdefault(message["index"], []).append(ip_interface(f"{text}/{message['prefixlen']}"))
        for name in names:
            for message in self._asked(name):
                yield Interface(
                    name=message.get_attr("IFLA_IFNAME"),
                    index=message["index"],
                    up=bool(message["flags"] & 0x1),
                    mtu=message.get_attr("IFLA_MTU"),
                    addresses=tuple(addresses.get(message["index"], ())),
                )

    def _asked(self, name: str) -> tuple[Any, ...]:
        try:
            return tuple(self._kernel.link("get", ifname=name))
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
            return ()
