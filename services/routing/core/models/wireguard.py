"""WireGuard: packets go encrypted to the other node's address, over any network that takes UDP between the two.

Serves a pair in which each node knows the other's key and has a device; keys, devices and peers are what
``core.wireguard`` is about.
The next hop tells the other node's address for people and for the datapath: WireGuard itself goes by the destination.

Where packets of a family must be encrypted, every pool's range of it is *prohibited* beneath the routes to its blocks:
while a device, a key, a peer's record or this agent is missing, packets to other nodes' pods meet that and are refused,
instead of leaving as they are by the default route. The kernel keeps it with every agent dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from kit.models import ENCRYPTS
from kit.prefixes import overlap
from proto.net import Address, Network
from proto.routes import WireguardKey
from services.routing.core.faults import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardState:
    """The WireGuard of this node as the last pass over its devices left it. Made without arguments: it has none."""

    mine: tuple[WireguardKey, ...] = ()
    """What others are told: devices that are ready."""
    links: Mapping[int, int] = field(default_factory=dict)
    """Index of the interface of each slot."""
    mtu: int = 0
    """Of those."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """The slot that packets to a node take."""
    outer: Mapping[str, Address] = field(default_factory=dict)
    """A node's address on the shared network."""
    proved: frozenset[str] = frozenset()
    """Nodes with which there was a handshake that still counts."""
    fault: Fault | None = None
    """Why there is no device."""
    faults: tuple[Fault, ...] = ()
    """What else a person must know."""


def prohibited(
    pools: Mapping[Network, tuple[str, ...]], blocks: Iterable[Network], encrypted: Set[int]
) -> list[Network]:
    """The ranges to which packets go encrypted or not at all: pools, and blocks that lie in none.

    ``pools`` is what each asks for (``kit.models.asked``); ``encrypted``, the families that must be.
    """
    found = [cidr for cidr, asked in pools.items() if asked == (ENCRYPTS,) and cidr.version in encrypted]
    alone = (cidr for cidr in blocks if cidr.version in encrypted and not any(overlap(cidr, pool) for pool in pools))
    return [*found, *alone]
