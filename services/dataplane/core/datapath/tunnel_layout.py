"""The layouts of tunnels: the devices of this node, the other ends, and who may send what through them.

Part of the one place for layouts: see ``layout.py`` for units and for what becomes of these records. A packet for
another node goes into the tunnel whose device its route names (``am_tunnels``). One that arrives is taken when its
outer destination is an end of ours (``am_tunnel_ends``), its outer source a node's (``am_tunnel_peers``), and its inner
source that node's (``am_tunnel_srcs``). The agent fills all four, and says by ``ConfigFlag.TUNNELS`` that there is
anything in them: without it no program looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from services.dataplane.core.datapath.wire import U8, U16, U32, Addr, Mac, MaybeAddr, Port, Record

TUNNEL_MARK = 0x0A150002
"""Mark of a packet that a program has judged and hands to a tunnel device: that device's own programs let it pass."""
FIRST_TUNNEL_PORT = 49_152
LAST_TUNNEL_PORT = 65_535
"""Source ports of VXLAN packets (RFC 7348, 5): the inner flow chooses one, so that fabrics spread flows."""
TUNNEL_TTL = 64
"""Hops that an outer packet may take."""


class TunnelKind(IntEnum):
    """What a tunnel device makes of a packet."""

    VXLAN = 1
    """RFC 7348."""
    IPIP = 2
    """RFC 2003: IPv4 in IPv4."""
    WIREGUARD = 3
    """A device without an Ethernet header, which encrypts by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel(Record):
    """A tunnel device, and what its outer packets have in common."""

    kind: U8
    """:class:`TunnelKind`."""
    family: U8
    """4 or 6: of the outer packets."""
    port: U16 = 0
    """UDP destination port of VXLAN packets."""
    vni: U32 = 0
    local: MaybeAddr = None
    """Source of the outer packets; needless for WireGuard."""
    mac: Mac = bytes(6)
    """The device's own: source of the inner Ethernet header of VXLAN packets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelEndKey(Record):
    """What outer packets for one of this node's tunnels are sent to: by protocol 4 (port 0), or 17."""

    address: Addr
    port: Port = 0
    protocol: U8


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelEnd(Record):
    """Which tunnel they are for."""

    ifindex: U32
    vni: U32 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelPeer(Record):
    """The node that has an underlay address, and how packets to this address go from here."""

    node: U32
    """This agent's own number of that node, never 0."""
    ifindex: U32 = 0
    """The tunnel device that the pair's packets take now; 0: none, they go as they are."""
    outer: MaybeAddr = None
    """Where that device sends packets to this address."""
    mac: Mac = bytes(6)
    """Of the other end, if this address is the outer one: destination of the inner Ethernet header (VXLAN)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSource(Record):
    """Which node may send packets with sources of a prefix; 0: none."""

    node: U32
