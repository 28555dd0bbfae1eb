"""The node context of load balancing: which addresses are its own, which lie inside the cluster, which may come from
outside.

Pure and immutable; made anew whenever the Node, the nodes or the pools change. All questions are about present state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network

from proto.net import Address, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """One node, its addresses and the networks around it."""

    node: str
    zone: str = ""
    """Label ``topology.kubernetes.io/zone``; empty when it has none."""
    addresses: tuple[Address, ...] = ()
    """InternalIPs of its Node: node ports and host ports are there."""
    own: frozenset[Address] = frozenset()
    """All addresses of its interfaces."""
    nodes: frozenset[Address] = frozenset()
    """InternalIPs of all nodes."""
    pods: tuple[Network, ...] = ()
    """Networks that pods are given addresses from."""
    former_pods: tuple[Network, ...] = ()
    """Networks that they no longer are: some may still live there."""
    external: tuple[Network, ...] = ()
    """Where ``spec.externalIPs`` are honoured."""

    def is_own(self, address: Address) -> bool:
        """Whether this node has an address."""
        return address in self.own or address in self.addresses

    def is_external(self, address: Address) -> bool:
        """Whether a Service may have it among its external IPs."""
        return any(address in network for network in self.external)

    def whose(self, address: Address) -> str:
        """Why no Service may have an address from outside; empty when one may."""
        if address in self.nodes or address in self.addresses:
            return "a node's own"
        if any(address in network for network in self.pods):
            return "in a network of pods"
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            return "none that packets from outside may have"
        return ""

    def all_in(self, ranges: Iterable[Network], version: int) -> bool:
        """Whether every address that may send from this node lies in one of the ranges. No ranges hold everything."""
        ranges = tuple(ranges)
        senders = [*self.pods, *self.former_pods, *(ip_network(address) for address in (*self.addresses, *self.own))]
        return not ranges or all(_lies_in(sender, ranges) for sender in senders if sender.version == version)


def _lies_in(network: Network, ranges: Iterable[Network]) -> bool:
    return any(
        wider.version == network.version and wider.prefixlen <= network.prefixlen and network.network_address in wider
        for wider in ranges
    )
