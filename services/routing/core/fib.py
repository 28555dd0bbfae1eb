"""The kernel's FIB and links as values, and the operations on them.

A route is known by destination and metric, as the kernel knows it (main table, TOS 0). Protocol numbers say who put a
route there (``rtm_protocol``; names in iproute2's rt_protos): 186 is ours, 187 the dataplane's for pods of this node.
iproute2 calls 186 ``bgp`` and routing suites use it too, with metric 20 (FRR) or 32 (BIRD): so only protocol *and* one
of our two metrics make a route ours (:meth:`Route.is_ours`), and whatever else is there is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Interface, IPv6Interface

from proto.net import Address, Network

OURS = 186
"""rtm_protocol of every route of this service: by it and the metric, ours are found again after a restart."""
PODS = 187
"""rtm_protocol of the dataplane's routes to pods of this node."""
METRIC = 64
"""Of routes to other nodes: not 0, so that a route made by hand for the same prefix is another route, not this one."""
OTHER_MTU = -1
"""MTU of a route that carries what this service never writes (an MTU that is not locked, other RTAX_* values)."""
LAST_METRIC = 4096
"""Of routes that refuse: any other route to the same prefix is better."""


class Kind(IntEnum):
    """rtm_type (linux/rtnetlink.h)."""

    UNICAST = 1
    UNREACHABLE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route of the main table."""

    destination: Network
    via: Address | None = None
    link: int = 0
    """Index of the outgoing interface; 0 for an unreachable one."""
    mtu: int = 0
    """The largest packet that may go this way, in bytes, locked (``mtu lock`` in iproute2); 0: the interface's.
    Locked, because the kernel asks a route of either family for its MTU only then (``ip_mtu_from_fib_result``,
    ``ip6_mtu_from_fib6``), and because no ICMP error can make it another.
    """
    kind: Kind = Kind.UNICAST
    metric: int = METRIC
    protocol: int = OURS

    @property
    def key(self) -> tuple[Network, int]:
        """What tells it from other routes."""
        return self.destination, self.metric

    @property
    def is_ours(self) -> bool:
        """Whether this service put it there."""
        return self.protocol == OURS and self.metric in (METRIC, LAST_METRIC)

    def __str__(self) -> str:
        kind = "unreachable " if self.kind is Kind.UNREACHABLE else ""
        via = f" via {self.via}" if self.via is not None else ""
        dev = f" dev {self.link}" if self.link else ""
        mtu = f" mtu lock {self.mtu}" if self.mtu else ""
        return f"{kind}{self.destination}{via}{dev} metric {self.metric}{mtu}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """An interface that leads to other nodes, and this node's addresses on it with their prefix lengths."""

    name: str
    index: int
    up: bool
    mtu: int = 1500
    """Largest IP packet, in bytes."""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The kernel as it was just read."""

    routes: tuple[Route, ...] = ()
    """Unicast and unreachable routes of the main table, of every protocol."""
    uplinks: tuple[Uplink, ...] = ()
    missing: tuple[str, ...] = ()
    """Uplinks of the settings that this namespace does not have."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Add the route, or put it in the place of ours with the same destination and metric."""

    route: Route


@dataclass(frozen=True, slots=True)
class Remove:
    """Take the route away."""

    route: Route


Operation = Replace | Remove
