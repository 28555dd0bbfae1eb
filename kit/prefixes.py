"""Networks of either family, compared without a thought for which."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

from proto.net import Network


def overlap(one: Network, other: Network) -> bool:
    """True when some address is in both; False for different families."""
    if one.version != other.version:
        return False
    shorter, longer = (one, other) if one.prefixlen <= other.prefixlen else (other, one)
    shift = shorter.max_prefixlen - shorter.prefixlen
    return int(shorter.network_address) >> shift == int(longer.network_address) >> shift


def router_anycast(network: Network) -> IPv6Address | None:
    """The Subnet-Router anycast address of an IPv6 network: all host bits zero (RFC 4291 2.6.1).

    Every router on a link with this prefix answers to it, so no pod can have it. None for IPv4, and for a /127 or
    /128, which have no such address (RFC 6164 5.1; Linux' addrconf_join_anycast).
    """
    if isinstance(network, IPv6Network) and network.prefixlen < 127:
        return network.network_address
    return None
