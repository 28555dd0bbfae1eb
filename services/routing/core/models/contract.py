"""The contract of a model of routing: what it says of a pair of nodes.

A model is a value with no memory. Of a pair it says the :class:`Path` that packets to the other node's pods take, or
why it cannot serve it. The planner makes the path's routes, one for each prefix behind that node. What a model adds to
a packet is in ``kit.models``, from which pods' MTUs follow.

The kernel's routing table is all that a model leaves behind of a pair: next hop, interface, and MTU where that is
smaller than the interface's. So ``ip route`` tells
each pair's model, and the datapath, which asks that table for every packet (``dataplane/bpf/fib.h``), follows a change
at the next packet, told by nobody. DESIGN.md, 6, says who owns the devices and entries of models that tunnel, and what
the datapath knows them by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kit.models import LEAST_MTU
from kit.models import Model as Traits
from proto.net import Address
from proto.routes import NodeRoutes
from services.routing.core.faults import Fault
from services.routing.core.fib import Uplink


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A pair of nodes, seen from this one: for pods' packets of one family."""

    peer: NodeRoutes
    """What the other node tells: its addresses on the shared network, and the models that it can do."""
    family: int
    """Of the packets of pods, 4 or 6."""
    links: tuple[Uplink, ...]
    """This node's uplinks that are up."""

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


class Model(Protocol):
    """One model."""

    @property
    def traits(self) -> Traits:
        """Its name, and what it adds to a packet."""

    def path(self, pair: Pair) -> Path | Fault:
        """The way to the other node, or why this pair cannot have one by this model."""
