"""The plan's routes as rtnetlink messages and back, and which notifications may change the plan.

The bytes are those of ``linux.rtnl``; here stands which routes are looked at (unicast and unreachable ones of the main
table), and what of the kernel's telling is about this service. Nothing here does IO.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network, ip_address

from linux import rtnl
from linux.netlink import Message, parse
from services.routing.core.fib import OTHER_MTU, PODS, Kind, Operation, Replace, Route

_TABLE_AT, _PROTOCOL_AT = 4, 5
"""Places in ``struct rtmsg``: most notifications are judged by these two bytes alone."""
_PODS, _MAIN = bytes([PODS]), bytes([rtnl.TABLE_MAIN])


def message(operation: Operation) -> Message:
    """What does it. A route to be removed that is gone already is no failure."""
    route = operation.route
    given = {
        "kind": int(route.kind),
        "link": route.link,
        "metric": route.metric,
        "protocol": route.protocol,
        "mtu": max(route.mtu, 0),
    }
    if isinstance(operation, Replace):
        return rtnl.replace_route(route.destination, via=route.via, **given)
    return rtnl.remove_route(route.destination, via=route.via, **given, tolerated=(errno.ESRCH,))


def read(body: bytes) -> Route | None:
    """The route of an RTM_NEWROUTE body; None for other tables, cached ones and kinds that are not looked at."""
    seen = rtnl.parse_route(body)
    if seen.flags & rtnl.CLONED or seen.table != rtnl.TABLE_MAIN or seen.kind not in (Kind.UNICAST, Kind.UNREACHABLE):
        return None
    four = seen.family == socket.AF_INET
    network, size = (IPv4Network, 4) if four else (IPv6Network, 16)
    unicast = seen.kind == Kind.UNICAST
    return Route(
        destination=network((seen.destination or bytes(size), seen.length)),
        via=ip_address(seen.gateway) if seen.gateway else None,
        link=seen.link if unicast else 0,
        mtu=OTHER_MTU if seen.mtu is None else seen.mtu,
        kind=Kind.UNICAST if unicast else Kind.UNREACHABLE,
        metric=seen.metric,
        protocol=seen.protocol,
    )


def concerns(received: bytes, links: Collection[str]) -> bool:
    """Whether notifications may change what is planned: all but the dataplane's routes to this node's pods, those of
    tables that are not looked at (with each pod's link the kernel puts its multicast route into the local one), and
    links of other names than ``links``. On a node where pods come and go almost all of them are of those.
    """
    for kind, _, _, body in parse(received):
        if kind in (rtnl.NEWROUTE, rtnl.DELROUTE):
            if body[_TABLE_AT : _TABLE_AT + 1] == _MAIN and body[_PROTOCOL_AT : _PROTOCOL_AT + 1] != _PODS:
                return True
        elif kind in (rtnl.NEWLINK, rtnl.DELLINK):
            if rtnl.link_name(body) in links:
                return True
        else:
            return True
    return False
