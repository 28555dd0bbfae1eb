"""The plan's routes and entries as rtnetlink messages and back, and which notifications are about what.

The bytes are those of ``linux.rtnl``; here stands which routes are looked at (unicast ones and those that refuse, of
the main table), and what of the kernel's telling is about this service. Nothing here does IO.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from enum import Flag, auto
from ipaddress import IPv4Network, IPv6Network, ip_address

from linux import nexthops, rtnl
from linux.netlink import Message, parse
from services.routing.core.fib import (
    OTHER_MTU,
    PODS,
    AddEntry,
    Entry,
    Forwarding,
    Kind,
    Neighbour,
    Remove,
    RemoveEntry,
    Replace,
    Route,
)
from services.routing.core.learnt import FIRST_ID, LAST_ID
from services.routing.core.learnt import PROTOCOL as LEARNT

_TABLE_AT, _PROTOCOL_AT = 4, 5
"""Places in ``struct rtmsg``: most notifications are judged by these two bytes alone."""
_KINDS = frozenset(Kind)
_PODS, _LEARNT, _MAIN = bytes([PODS]), bytes([LEARNT]), bytes([rtnl.TABLE_MAIN])

_OTHER_TABLE = bytes([252])
"""RT_TABLE_COMPAT: the table's number is in an attribute."""

Change = Replace | Remove | AddEntry | RemoveEntry
"""Operations of which there may be many at once."""
_GONE = (errno.ENOENT, errno.ENODEV)


def message(operation: Change) -> Message:
    """What does it. What is to be removed and is gone already is no failure."""
    if isinstance(operation, AddEntry | RemoveEntry):
        return _entry(operation)
    route, mtu = operation.route, max(operation.route.mtu, 0)
    given = {"kind": int(route.kind), "link": route.link, "metric": route.metric, "protocol": route.protocol}
    if isinstance(operation, Replace):
        return rtnl.replace_route(
            route.destination, via=route.via, mtu=mtu, onlink=route.onlink, source=route.source, **given
        )
    return rtnl.remove_route(route.destination, via=route.via, mtu=mtu, **given, tolerated=(errno.ESRCH,))


def _entry(operation: AddEntry | RemoveEntry) -> Message:
    entry, added = operation.entry, isinstance(operation, AddEntry)
    if isinstance(entry, Neighbour):
        if added:
            return rtnl.add_neighbour(entry.link, entry.address, entry.mac)
        return rtnl.remove_neighbour(entry.link, entry.address, tolerated=_GONE)
    if added:
        return rtnl.add_forwarding(entry.link, entry.mac, entry.outer)
    return rtnl.remove_forwarding(entry.link, entry.mac, entry.outer, tolerated=_GONE)


def read_neighbour(body: bytes) -> Entry | None:
    """The permanent neighbour of an RTM_NEWNEIGH body; None for one that the kernel has found by itself."""
    seen = rtnl.parse_neighbour(body)
    if not seen.state & rtnl.PERMANENT or not seen.address:
        return None
    return Neighbour(seen.link, ip_address(seen.address), seen.mac)


def read_forwarding(body: bytes) -> Entry | None:
    """The forwarding entry of an RTM_NEWNEIGH body; None for one that leads nowhere."""
    seen = rtnl.parse_neighbour(body)
    return Forwarding(seen.link, seen.mac, ip_address(seen.address)) if seen.address and seen.mac else None


def is_others(received: bytes, start: int) -> bool:
    """Whether the RTM_NEWROUTE body that begins there is of any route but those that were learnt."""
    return received[start + _PROTOCOL_AT] != LEARNT


def read(body: bytes) -> Route | None:
    """The route of an RTM_NEWROUTE body; None for other tables, cached ones and kinds that are not looked at."""
    seen = rtnl.parse_route(body)
    if seen.flags & rtnl.CLONED or seen.table != rtnl.TABLE_MAIN or seen.kind not in _KINDS:
        return None
    four = seen.family == socket.AF_INET
    network, size = (IPv4Network, 4) if four else (IPv6Network, 16)
    unicast = seen.kind == Kind.UNICAST
    return Route(
        destination=network((seen.destination or bytes(size), seen.length)),
        via=ip_address(seen.gateway) if seen.gateway else None,
        link=seen.link if unicast else 0,
        mtu=OTHER_MTU if seen.mtu is None else seen.mtu,
        onlink=bool(seen.flags & rtnl.ONLINK),
        source=ip_address(seen.source) if seen.source else None,
        kind=Kind(seen.kind),
        metric=seen.metric,
        protocol=seen.protocol,
    )


class Concern(Flag):
    """What a full pass is due of."""

    PLAN = auto()
    """Routes, entries and devices of the plan."""
    LEARNT = auto()
    """Learnt routes and their next hop objects."""


NOTHING, ALL = Concern(0), Concern.PLAN | Concern.LEARNT


def concerns(
    received: bytes, links: Collection[str], devices: Collection[int] = (), tables: Collection[int] = ()
) -> Concern:
    """What notifications may change. ``links``: names of those that are looked at; ``devices``: indexes of those with
    entries of ours; ``tables``: those with routes of ours, besides the main one.

    Not the dataplane's routes to this node's pods, those of other tables (with each pod's link the kernel puts its
    multicast route into the local one), other links, nor what is learnt of neighbours. On a node where pods come and go
    almost all of them are of those.
    """
    found = NOTHING
    for kind, _, _, body in parse(received):
        match kind:
            case rtnl.NEWROUTE | rtnl.DELROUTE:
                found |= _of_route(body, tables)
            case rtnl.NEWLINK | rtnl.DELLINK:
                found |= Concern.PLAN if rtnl.link_name(body) in links else NOTHING
            case rtnl.NEWNEIGH | nexthops.NEWNEXTHOP:
                continue
            case rtnl.DELNEIGH:
                found |= Concern.PLAN if rtnl.parse_neighbour(body).link in devices else NOTHING
            case nexthops.DELNEXTHOP:
                identifier = nexthops.parse_next_hop(body).identifier
                found |= Concern.LEARNT if FIRST_ID <= identifier <= LAST_ID else NOTHING
            case _:
                found |= Concern.PLAN
        if found is ALL:
            break
    return found


def _of_route(body: bytes, tables: Collection[int]) -> Concern:
    table, protocol = body[_TABLE_AT : _TABLE_AT + 1], body[_PROTOCOL_AT : _PROTOCOL_AT + 1]
    if table == _MAIN and protocol != _PODS:
        return Concern.LEARNT if protocol == _LEARNT else Concern.PLAN
    return Concern.PLAN if table == _OTHER_TABLE and rtnl.parse_route(body).table in tables else NOTHING
