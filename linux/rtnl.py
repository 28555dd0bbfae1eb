"""Hand-packed rtnetlink: the few messages that a pod's interface and a node's routes need, as bytes both ways.

Owns the bytes of links, addresses, routes and neighbours (``include/uapi/linux/rtnetlink.h``, ``if_link.h``,
``if_addr.h``, ``neighbour.h``); ``linux.netlink`` sends them. Nothing here does IO. Why by hand: 0.7 ms a pod, where
one message at a time through a general library costs 16. A thousand routes take pyroute2 75 ms to read and 250 ms to
write; these few lines take 8 and 5.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from linux.netlink import CREATE, REPLACE, Message, attribute, first_attribute, number, parse_attributes

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, GETADDR = 20, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30

IFF_UP = 1
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
TABLE_MAIN = 254
UNICAST, LOCAL, UNREACHABLE, PROHIBIT = 1, 2, 7, 8
PERMANENT = 0x80
NODAD, NOPREFIXROUTE = 0x02, 0x200
PEER_IN = 28
"""IFLA_NET_NS_FD."""
MTU, PEER = 4, 5
"""IFLA_MTU, IFLA_LINK (of a veth: index of the other end, in the namespace that it is in)."""
NO_TABLE = (errno.ENOENT,)
"""What a dump of routes says where there is no such table yet: in a namespace that never had a route."""
ONLINK = 4
"""RTNH_F_ONLINK: the next hop is believed to be on the link, whatever other routes say."""
CLONED = 0x200
"""RTM_F_CLONED: a cached exception (path MTU), not a route of the table."""

_LOOKUP_TABLE, _FIB_MATCH = 0x1000, 0x2000
"""RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH."""

_IFINFO = struct.Struct("<BBHiII")
_IFADDR = struct.Struct("<BBBBI")
_ROUTE = struct.Struct("<BBBBBBBBI")
_NEIGH = struct.Struct("<BBHiHBB")
_DESTINATION, _LINK, _GATEWAY, _PRIORITY, _SOURCE, _METRICS, _TABLE, _VIA = 1, 4, 5, 6, 7, 8, 15, 18
_BRIDGE = 7
"""AF_BRIDGE: the family of forwarding entries."""
_SELF = 0x02
"""NTF_SELF: the device's own table."""
_RTAX_LOCK, _RTAX_MTU = 1, 2
_ADDRESS, _LOCAL = 1, 2
_MAC, _IFNAME, _LINK_INFO, _IFALIAS, _GROUP = 1, 3, 18, 20, 27
_INFO_KIND = 1


class SeenRoute(NamedTuple):
    """A route as RTM_NEWROUTE and RTM_DELROUTE tell it; addresses as the kernel has them, empty where there is none."""

    family: int
    destination: bytes
    length: int
    table: int
    protocol: int
    kind: int
    """rtm_type: UNICAST, UNREACHABLE…"""
    flags: int
    gateway: bytes
    """The next hop, of whichever family (RFC 8950)."""
    link: int
    """Interface index, 0 without one."""
    metric: int
    mtu: int | None
    """Locked MTU in bytes, 0 without one; None where RTA_METRICS say anything else."""
    source: bytes
    """Preferred source (RTA_PREFSRC)."""


class SeenNeighbour(NamedTuple):
    """A neighbour, or a forwarding entry of a VXLAN device, as RTM_NEWNEIGH tells it; addresses as the kernel's."""

    link: int
    state: int
    """NUD_…; :data:`PERMANENT` of those that somebody set."""
    address: bytes
    """Of a forwarding entry: where the other end of the tunnel is."""
    mac: bytes


class SeenLink(NamedTuple):
    """A link as RTM_NEWLINK tells it."""

    link: int
    """Its index."""
    name: str
    alias: str
    group: int
    up: bool
    """Set up by whoever is in charge of it."""
    mtu: int
    mac: bytes
    """Empty where it has none."""
    peer: int
    """IFLA_LINK; 0 without one."""


def family_of(address: Address) -> int:
    """AF_INET or AF_INET6."""
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


def ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """``struct ifinfomsg``."""
    return _IFINFO.pack(0, 0, 0, index, flags, change)


def add_address(index: int, address: Address) -> Message:
    """The address with its full length; IPv6 without duplicate detection, which would hold it back for a second."""
    flags = NODAD | NOPREFIXROUTE if address.version == 6 else NOPREFIXROUTE
    body = _IFADDR.pack(family_of(address), address.max_prefixlen, flags & 0xFF, SCOPE_UNIVERSE, index)
    body += attribute(1, address.packed) + attribute(2, address.packed) + number(8, flags)
    return Message(NEWADDR, CREATE | REPLACE, body, ("address", address))


def add_route(
    index: int,
    destination: Address | None,
    *,
    version: int,
    via: Address | None = None,
    protocol: int,
) -> Message:
    """A host route (or, without a destination, the default route) over a link; an equal one is replaced."""
    length = 0 if destination is None else destination.max_prefixlen
    scope = SCOPE_LINK if via is None and version == 4 else SCOPE_UNIVERSE
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, length, 0, 0, TABLE_MAIN, protocol, scope, UNICAST, 0) + number(4, index)
    if destination is not None:
        body += attribute(1, destination.packed)
    if via is not None:
        body += attribute(5, via.packed)
    return Message(NEWROUTE, CREATE | REPLACE, body, ("route", destination or "default", "via", via or "the link"))


def delete_route(index: int, destination: Address, *, protocol: int, tolerated: tuple[int, ...] = ()) -> Message:
    """Takes a host route of ours away; another protocol's is left alone."""
    length = destination.max_prefixlen
    body = _ROUTE.pack(family_of(destination), length, 0, 0, TABLE_MAIN, protocol, SCOPE_NOWHERE, UNICAST, 0)
    body += attribute(1, destination.packed) + number(4, index)
    return Message(DELROUTE, 0, body, ("route", destination), tolerated)


def add_neighbour(index: int, address: Address, mac: bytes) -> Message:
    """A permanent neighbour: nothing is ever asked on a pod's link."""
    body = _NEIGH.pack(family_of(address), 0, 0, index, PERMANENT, 0, UNICAST)
    body += attribute(1, address.packed) + attribute(2, mac)
    return Message(NEWNEIGH, CREATE | REPLACE, body, ("neighbour", address))


def remove_neighbour(index: int, address: Address, *, tolerated: tuple[int, ...] = ()) -> Message:
    """Takes a neighbour away, whatever its MAC address."""
    body = _NEIGH.pack(family_of(address), 0, 0, index, 0, 0, 0) + attribute(1, address.packed)
    return Message(DELNEIGH, 0, body, ("neighbour", address), tolerated)


def add_forwarding(index: int, mac: bytes, outer: Address) -> Message:
    """Frames to a MAC address go to the tunnel's end at ``outer``: the only one, in the place of any other."""
    body = _NEIGH.pack(_BRIDGE, 0, 0, index, PERMANENT, _SELF, 0) + attribute(1, outer.packed) + attribute(2, mac)
    return Message(NEWNEIGH, CREATE | REPLACE, body, ("forwarding to", outer))


def remove_forwarding(index: int, mac: bytes, outer: Address, *, tolerated: tuple[int, ...] = ()) -> Message:
    """Takes a forwarding entry away."""
    body = _NEIGH.pack(_BRIDGE, 0, 0, index, 0, _SELF, 0) + attribute(1, outer.packed) + attribute(2, mac)
    return Message(DELNEIGH, 0, body, ("forwarding to", outer), tolerated)


def neighbours_query(index: int, family: int) -> bytes:
    """Body of RTM_GETNEIGH for the neighbours of a family on a link."""
    return _NEIGH.pack(family, 0, 0, 0, 0, 0, 0) + number(8, index)


def forwardings_query(index: int) -> bytes:
    """Body of RTM_GETNEIGH for the forwarding entries of a VXLAN device."""
    return _NEIGH.pack(_BRIDGE, 0, 0, index, 0, 0, 0)


def parse_neighbour(body: bytes) -> SeenNeighbour:
    """The entry of a body. Raises struct.error for less than a ``struct ndmsg``."""
    _, _, _, link, state, _, _ = _NEIGH.unpack_from(body)
    attributes = parse_attributes(body[_NEIGH.size :])
    return SeenNeighbour(link, state, attributes.get(1, b""), attributes.get(2, b""))


def set_up(index: int, *, up: bool = True) -> Message:
    """Sets a link up or down."""
    return Message(NEWLINK, 0, ifinfo(index, IFF_UP if up else 0, IFF_UP), ("link", index, "up" if up else "down"))


def set_mtu(index: int, mtu: int, *, tolerated: tuple[int, ...] = ()) -> Message:
    """Sets the MTU of a link."""
    return Message(NEWLINK, 0, ifinfo(index) + number(MTU, mtu), ("MTU of link", index), tolerated)


def set_group(index: int, group: int, *, tolerated: tuple[int, ...] = ()) -> Message:
    """Moves a link to another group."""
    return Message(NEWLINK, 0, ifinfo(index) + number(27, group), ("group of link", index), tolerated)


def delete_group(group: int, *, tolerated: tuple[int, ...] = ()) -> Message:
    """Deletes every link of a group at once: one RCU grace period for all instead of one for each."""
    return Message(DELLINK, 0, ifinfo() + number(27, group), ("links of group", group), tolerated)


def replace_route(  # noqa: PLR0913 - a route has these parts, each by name
    network: Network,
    *,
    kind: int = UNICAST,
    via: Address | None = None,
    link: int = 0,
    metric: int,
    protocol: int,
    mtu: int = 0,
    onlink: bool = False,
    source: Address | None = None,
) -> Message:
    """A route of the main table; one of the same destination and metric is replaced, so no packet finds it missing.

    ``via`` may be of the other family for an IPv4 route (RFC 8950); ``mtu``: locked, in bytes; 0 for none; ``onlink``:
    whatever other routes say of the next hop; ``source``: what the machine's own packets have as their source.
    """
    body = _network_route(network, kind, metric, protocol, onlink)
    body += _next_hop(network, via, link) + _metrics(mtu)
    if source is not None:
        body += attribute(_SOURCE, source.packed)
    return Message(NEWROUTE, CREATE | REPLACE, body, ("route", network))


def remove_route(
    network: Network,
    *,
    kind: int = UNICAST,
    via: Address | None = None,
    link: int = 0,
    metric: int,
    protocol: int,
    mtu: int = 0,
    tolerated: tuple[int, ...] = (),
) -> Message:
    """Takes away the route that is all of this, of whatever scope; another protocol's is left alone."""
    body = _network_route(network, kind, metric, protocol, False, SCOPE_NOWHERE)
    body += _next_hop(network, via, link) + _metrics(mtu)
    return Message(DELROUTE, 0, body, ("route", network), tolerated)


def _network_route(
    network: Network, kind: int, metric: int, protocol: int, onlink: bool, scope: int = SCOPE_UNIVERSE
) -> bytes:
    family, flags = family_of(network.network_address), ONLINK if onlink else 0
    body = _ROUTE.pack(family, network.prefixlen, 0, 0, TABLE_MAIN, protocol, scope, kind, flags)
    return body + attribute(_DESTINATION, network.network_address.packed) + number(_PRIORITY, metric)


def _next_hop(network: Network, via: Address | None, link: int) -> bytes:
    body = b""
    if via is not None and via.version == network.version:
        body += attribute(_GATEWAY, via.packed)
    elif via is not None:
        body += attribute(_VIA, family_of(via).to_bytes(2, "little") + via.packed)  # struct rtvia
    return body + number(_LINK, link) if link else body


def _metrics(mtu: int) -> bytes:
    if not mtu:
        return b""
    return attribute(_METRICS, number(_RTAX_LOCK, 1 << _RTAX_MTU) + number(_RTAX_MTU, mtu))


def routes_query(family: int, *, table: int = TABLE_MAIN, protocol: int = 0, kind: int = 0) -> bytes:
    """Body of RTM_GETROUTE for the routes of a family in a table, or only those of a protocol or kind."""
    return _ROUTE.pack(family, 0, 0, 0, table, protocol, 0, kind, 0)


def lookup_query(address: Address) -> bytes:
    """Body of RTM_GETROUTE for the route that the kernel takes to an address, whichever table it is in (``ip route get
    … fibmatch``): the answer is the entry of the table as it stands there.
    """
    flags = _FIB_MATCH | (_LOOKUP_TABLE if address.version == 4 else 0)  # IPv6 tells the table unasked
    body = _ROUTE.pack(family_of(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    return body + attribute(_DESTINATION, address.packed)


def parse_route(body: bytes) -> SeenRoute:
    """The route of a body. Raises struct.error for less than a ``struct rtmsg``."""
    family, length, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    attributes = parse_attributes(body[_ROUTE.size :])

    def numbered(name: int, default: int) -> int:
        return int.from_bytes(attributes[name], "little") if name in attributes else default

    return SeenRoute(
        family=family,
        destination=attributes.get(_DESTINATION, b""),
        length=length,
        table=numbered(_TABLE, table),
        protocol=protocol,
        kind=kind,
        flags=flags,
        gateway=attributes.get(_GATEWAY) or attributes.get(_VIA, b"")[2:],  # struct rtvia: its family first
        link=numbered(_LINK, 0),
        metric=numbered(_PRIORITY, 0),
        mtu=_locked_mtu(attributes[_METRICS]) if _METRICS in attributes else 0,
        source=attributes.get(_SOURCE, b""),
    )


def _locked_mtu(metrics: bytes) -> int | None:
    found = {name: int.from_bytes(value[:4], "little") for name, value in parse_attributes(metrics).items()}
    mtu = found.pop(_RTAX_MTU, 0)
    return mtu if mtu and found == {_RTAX_LOCK: 1 << _RTAX_MTU} else None


def parse_link(body: bytes) -> SeenLink:
    """The link of a body. Raises struct.error for less than a ``struct ifinfomsg``."""
    _, _, _, index, flags, _ = _IFINFO.unpack_from(body)
    attributes = parse_attributes(body[_IFINFO.size :])

    def words(kind: int) -> str:
        return _words(attributes.get(kind, b""))

    def numbered(kind: int) -> int:
        return int.from_bytes(attributes.get(kind, b"\0"), "little")

    return SeenLink(
        link=index,
        name=words(_IFNAME),
        alias=words(_IFALIAS),
        group=numbered(_GROUP),
        up=bool(flags & IFF_UP),
        mtu=numbered(MTU),
        mac=attributes.get(_MAC, b""),
        peer=numbered(PEER),
    )


def parse_address(body: bytes) -> tuple[int, Address] | None:
    """Interface index and this end's address of an RTM_NEWADDR body; None for one that is no IP address."""
    attributes = parse_attributes(body[_IFADDR.size :])
    local = attributes.get(_LOCAL) or attributes.get(_ADDRESS, b"")
    return (int(_IFADDR.unpack_from(body)[4]), ip_address(local)) if len(local) in (4, 16) else None


def link_index(body: bytes) -> int:
    """The index of an RTM_NEWLINK or RTM_DELLINK body."""
    return int(_IFINFO.unpack_from(body)[3])


def link_name(body: bytes) -> str:
    """The name of an RTM_NEWLINK body; the kernel tells it first, and some sixty other attributes after it."""
    return _words(first_attribute(body[_IFINFO.size :], _IFNAME))


def link_kind(body: bytes) -> str:
    """IFLA_INFO_KIND of an RTM_NEWLINK body: ``wireguard``, ``tun``…; empty for a link that has none."""
    return _words(first_attribute(first_attribute(body[_IFINFO.size :], _LINK_INFO), _INFO_KIND))


def _words(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
