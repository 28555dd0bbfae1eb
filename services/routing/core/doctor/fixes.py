"""What the findings of this service have in common: a pair's name, a route's text, a kernel setting and its reset."""

from __future__ import annotations

from collections.abc import Mapping

from proto.findings import Fix
from services.routing.core.fib import Route

PROTOCOLS = {0: "unspec", 2: "kernel", 3: "boot", 4: "static", 11: "zebra", 12: "bird", 16: "dhcp", 186: "bgp"}
"""rtm_protocol as iproute2 names it (rt_protos)."""


def protocol_name(number: int) -> str:
    """``bird``, ``static``, or the number."""
    return PROTOCOLS.get(number, str(number))


def route_text(route: Route, links: Mapping[int, str]) -> str:
    """A route as `ip route` shows it, its interface by name."""
    return str(route).replace(f" dev {route.link} ", f" dev {links.get(route.link, route.link)} ")


def setting(name: str, value: int, before: int, risk: str) -> Fix:
    """A sysctl that is set."""
    return Fix(command=f"sysctl -w {name}={value}", risk=risk, automatic=True, undo=f"sysctl -w {name}={before}")
