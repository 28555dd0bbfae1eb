"""The kernel's FIB, tunnel devices and links as values, and the operations on them.

A route is known by destination and metric, as the kernel knows it (main table, TOS 0). Protocol numbers say who put a
route there (``rtm_protocol``; names in iproute2's rt_protos): 186 is ours, 187 the dataplane's for pods of this node.
iproute2 calls 186 ``bgp`` and routing suites use it too, with metric 20 (FRR) or 32 (BIRD): so only protocol *and* one
of our two metrics make a route ours (:meth:`Route.is_ours`), and whatever else is there is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Interface, IPv6Interface

from kit.tunnels import DEVICES, LAST_METRIC, METRIC, ROUTE_PROTOCOL, Tunnel, parse_alias, tunnel_alias
from proto.net import Address, Network
from services.routing.core.wireguard import WireguardState

PODS = 187
"""rtm_protocol of the dataplane's routes to pods of this node."""
GROUP = 0x6174
"""Link group of tunnel devices, given when they are made; the mark (``kit.tunnels``) comes last, when all is there."""
OTHER_MTU = -1
"""MTU of a route that carries what this service never writes (an MTU that is not locked, other RTAX_* values)."""


class Kind(IntEnum):
    """rtm_type (linux/rtnetlink.h)."""

    UNICAST = 1
    UNREACHABLE = 7
    PROHIBIT = 8


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
    onlink: bool = False
    """The next hop is reached by the interface whatever other routes say: so over a tunnel device."""
    source: Address | None = None
    """Source of this node's own packets, where the interface has no address that the other node knows."""
    kind: Kind = Kind.UNICAST
    metric: int = METRIC
    protocol: int = ROUTE_PROTOCOL

    @property
    def key(self) -> tuple[Network, int]:
        """What tells it from other routes."""
        return self.destination, self.metric

    @property
    def is_ours(self) -> bool:
        """Whether this service put it there."""
        return self.protocol == ROUTE_PROTOCOL and self.metric in (METRIC, LAST_METRIC)

    def __str__(self) -> str:
        kind = "" if self.kind is Kind.UNICAST else f"{self.kind.name.lower()} "
        other = " inet6" if self.via is not None and self.via.version != self.destination.version else ""
        via = f" via{other} {self.via}" if self.via is not None else ""
        dev = f" dev {self.link}" if self.link else ""
        onlink = " onlink" if self.onlink else ""
        source = f" src {self.source}" if self.source is not None else ""
        mtu = f" mtu lock {self.mtu}" if self.mtu else ""
        return f"{kind}{self.destination}{via}{dev}{onlink}{source} metric {self.metric}{mtu}"


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
class Device:
    """A tunnel device as it should be."""

    tunnel: Tunnel
    mtu: int
    """Largest IP packet that goes in, in bytes."""

    @property
    def name(self) -> str:
        """Its name in the kernel."""
        return DEVICES[self.tunnel.model][self.tunnel.local.version]

    @property
    def alias(self) -> str:
        """Its mark."""
        return tunnel_alias(self.tunnel)

    @property
    def kind(self) -> str:
        """``IFLA_INFO_KIND``: what carries IPIP is a veth, whose packets the datapath encapsulates."""
        return {"vxlan": "vxlan", "ipip": "veth"}.get(self.tunnel.model, "wireguard")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenDevice:
    """An interface with the name of a tunnel device, as the kernel tells it."""

    name: str
    index: int
    kind: str
    """``IFLA_INFO_KIND``."""
    up: bool
    mtu: int
    group: int
    alias: str
    tunnel: Tunnel | None
    """What it does: of a VXLAN device as the kernel has it, else as its mark says; None: neither says it."""
    whole: bool = True
    """It has its address, and what the kernel filters on it is as it must be."""
    receives: bool = True
    """The datapath's programs are on it, or nobody needs them."""

    @property
    def is_ours(self) -> bool:
        """By its mark, or by its group if whoever made it died before it was marked."""
        return self.group == GROUP or parse_alias(self.alias) is not None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour on a tunnel device: the next hop has this MAC address."""

    link: int
    address: Address
    mac: bytes

    def __str__(self) -> str:
        return f"neighbour {self.address} lladdr {self.mac.hex(':')} dev {self.link}"


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A forwarding entry of a VXLAN device: frames to this MAC address go to this outer address."""

    link: int
    mac: bytes
    outer: Address

    def __str__(self) -> str:
        return f"forwarding {self.mac.hex(':')} dst {self.outer} dev {self.link}"


Entry = Neighbour | Forwarding


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The kernel as it was just read."""

    routes: tuple[Route, ...] = ()
    """Unicast and unreachable routes of the main table, of every protocol."""
    uplinks: tuple[Uplink, ...] = ()
    loopback: Uplink | None = None
    """The interface that leads nowhere and has the node's own address, where there is one."""
    missing: tuple[str, ...] = ()
    """Interfaces of the settings that this namespace does not have."""
    devices: tuple[SeenDevice, ...] = ()
    """Those that have the names of tunnel devices, whoever made them."""
    entries: frozenset[Entry] = frozenset()
    """Permanent neighbours and forwarding entries of tunnel devices of ours."""
    wireguard: WireguardState = field(default_factory=WireguardState)
    """As of the last pass over its devices."""


@dataclass(frozen=True, slots=True)
class _OfRoute:
    route: Route

    def __str__(self) -> str:
        return str(self.route)


@dataclass(frozen=True, slots=True)
class Replace(_OfRoute):
    """Add the route, or put it in the place of ours with the same destination and metric."""


@dataclass(frozen=True, slots=True)
class Remove(_OfRoute):
    """Take the route away."""


@dataclass(frozen=True, slots=True)
class _OfDevice:
    device: Device

    def __str__(self) -> str:
        return f"device {self.device.name} ({self.device.alias})"


@dataclass(frozen=True, slots=True)
class AddDevice(_OfDevice):
    """Make the device, whole."""


@dataclass(frozen=True, slots=True)
class MendDevice(_OfDevice):
    """Give a device that is there what it lacks: it is up, has its MTU, its address and its mark."""

    index: int


@dataclass(frozen=True, slots=True)
class RemoveDevice:
    """Take the device away, and with it all routes and entries on it."""

    name: str
    index: int

    def __str__(self) -> str:
        return f"device {self.name}"


@dataclass(frozen=True, slots=True)
class _OfEntry:
    entry: Entry

    def __str__(self) -> str:
        return str(self.entry)


@dataclass(frozen=True, slots=True)
class AddEntry(_OfEntry):
    """Set the entry, in the place of another of its key."""


@dataclass(frozen=True, slots=True)
class RemoveEntry(_OfEntry):
    """Take the entry away."""


Operation = Replace | Remove | AddDevice | MendDevice | RemoveDevice | AddEntry | RemoveEntry
Addition = Replace | AddDevice | MendDevice | AddEntry
