"""The contract of a model of routing: what it needs of this node, and what it says of a pair of nodes.

A model is a value with no memory. Of this node it says which device it wants in the kernel; of a pair, the
:class:`Path` that packets to the other node's pods take, or why it cannot serve it, and which entries the device needs
for the other node. What it adds to a packet is in ``kit.models``, from which pods' MTUs follow. What proves that it
works is the same for all: packets of measurement from :attr:`Path.local` to :attr:`Path.remote` by the interface of the
path are answered (``core.evidence``).

The planner makes the path's routes, one for each prefix behind the other node. So ``ip route`` tells each pair's model,
and the datapath, which asks that table for every packet (``dataplane/bpf/fib.h``), follows a change at the next packet,
told by nobody. DESIGN.md, 6, says who owns the devices and entries of models that tunnel, and what the datapath knows
them by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kit.model_settings import ModelSettings
from kit.models import LEAST_MTU
from kit.models import Model as Traits
from proto.net import Address
from proto.routes import NodeRoutes
from services.routing.core.evidence import Way
from services.routing.core.faults import Fault
from services.routing.core.fib import Device, Entry, SeenDevice, Uplink
from services.routing.core.wireguard import WireguardState


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """The node itself, as the models need it."""

    links: tuple[Uplink, ...]
    """Its uplinks that are up."""
    underlay: tuple[Address, ...] = ()
    """Its addresses on the shared network, as it tells them to the others."""
    devices: Mapping[tuple[str, int], SeenDevice] = field(default_factory=dict)
    """Tunnel devices that are there and in order, by model and family of the outer addresses."""
    settings: ModelSettings = field(default_factory=ModelSettings)
    wireguard: WireguardState = field(default_factory=WireguardState)

    def address(self, family: int) -> Address | None:
        """Its first address of a family."""
        return first(self.underlay, family)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A pair of nodes, seen from this one: for pods' packets of one family."""

    peer: NodeRoutes
    """What the other node tells: its addresses on the shared network, and the models by which it receives."""
    family: int
    """Of the packets of pods, 4 or 6."""
    own: NodeContext

    @property
    def links(self) -> tuple[Uplink, ...]:
        """Uplinks of this node that are up."""
        return self.own.links

    def mtu(self, uplink: Uplink) -> int:
        """The largest packet between the two nodes by this uplink: the smaller of its MTU and the other node's.

        What the other node tells counts for this pair alone, and no less than every IPv6 link takes (RFC 8200, 5).
        """
        return min(uplink.mtu, max(self.peer.mtu, LEAST_MTU)) if self.peer.mtu else uplink.mtu


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """How packets reach the pods of the other node."""

    model: str
    via: Address
    """Next hop of the routes."""
    link: int
    """Index of the interface that they lead out by: an uplink, or the model's own."""
    mtu: int
    """The largest packet of a pod that fits, in bytes: :attr:`Pair.mtu` of the uplink, less what the model adds."""
    link_mtu: int
    """What that interface takes by itself. Where ``mtu`` is smaller, the routes carry it."""
    device: str = ""
    """Name of that interface."""
    local: Address | None = None
    """This node's address on the shared network; None where it has none that packets of measurement could have."""
    remote: Address | None = None
    """The other node's."""
    onlink: bool = False
    """The kernel cannot know that the next hop is on the interface."""
    source: Address | None = None
    """Source of this node's own packets to the pods; None: the interface has it."""

    @property
    def way(self) -> Way | None:
        """What proves it."""
        if self.local is None or self.remote is None:
            return None
        return Way(self.model, self.link, self.local, self.remote)


class Model(Protocol):
    """One model."""

    @property
    def traits(self) -> Traits:
        """Its name, and what it adds to a packet."""

    def device(self, own: NodeContext, underlay: int) -> Device | Fault | None:
        """The device that this node should have for pairs that speak this family to each other; None: it needs none."""

    def path(self, pair: Pair) -> Path | Fault:
        """The way to the other node, or why this pair cannot have one by this model."""

    def entries(self, link: int, outer: Address) -> tuple[Entry, ...]:
        """What its device with this index needs for the node with this outer address."""


def first(addresses: Iterable[Address], family: int) -> Address | None:
    """The first address of a family."""
    return next((address for address in addresses if address.version == family), None)
