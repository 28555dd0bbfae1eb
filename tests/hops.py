"""What next hops of tunnels stand for, read backwards: the inverse of ``kit.tunnels.next_hop``, to judge by."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from kit.tunnels import next_hop
from proto.net import Address

_ISATAP = int(IPv6Address("fe80::5efe:0:0"))
_LOW = 0xFFFFFFFF


def outer_address(via: Address) -> Address | None:
    """The outer address that can be read from a next hop alone; None for any other, see :func:`outer_addresses`."""
    if isinstance(via, IPv6Address):
        return IPv4Address(int(via) & _LOW) if int(via) & ~_LOW == _ISATAP else None
    return via


def outer_addresses(outers: Iterable[Address]) -> dict[Address, Address]:
    """Next hops of these outer addresses, in both families, and what they stand for."""
    return {next_hop(outer, family): outer for outer in outers for family in (4, 6)}
