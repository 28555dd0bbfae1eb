"""Evidence from the Kubernetes API of who holds a block or an address; it settles conflicts between nodes' reports.

A node's own word proves nothing about what is another's: whoever has its key can say anything, and nonces and epochs
are there for all to read. What counts stands in ``objects``: the annotation that ``cluster`` wrote on the Node while
``blocks`` was whole, and the addresses of pods, which each kubelet reports of its own pods alone. An annotation is
worth more than pods; where it is silent the pods tell. When they do not agree, or there is nothing, nobody is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address

from proto.net import Address, Network
from proto.objects import Node, Pod
from services.ipam.core.blocks import is_block
from services.ipam.core.claims import is_running


class Evidence:
    """Of one state of Nodes and Pods (by uid); its indexes are made when they are first asked for."""

    def __init__(self, nodes: Mapping[str, Node], pods: Mapping[str, Pod]) -> None:
        self._nodes = nodes
        self._pods = pods

    def holders(self, cidr: Network) -> frozenset[str]:
        """Nodes that may hold the block by what the API says: none, the one, or several that contradict each other."""
        annotated = self.annotated(cidr)
        if len(annotated) == 1:
            return annotated
        there = self.nodes_with_pods_in(cidr)
        return (there & annotated or annotated) if annotated else there

    def annotated(self, cidr: Network) -> frozenset[str]:
        """Nodes whose annotation names the block, or one that shares addresses with it."""
        exact = self._by_annotation.get(cidr)
        if exact is not None:
            return exact
        return frozenset().union(
            *(
                names
                for other, names in self._by_annotation.items()
                if other.version == cidr.version and other.overlaps(cidr)
            )
        )

    def nodes_with_pods_in(self, cidr: Network) -> frozenset[str]:
        """Nodes of running pods that have an address of the block."""
        first, shift = int(cidr.network_address), cidr.num_addresses
        found = (self._by_address.get((cidr.version, number)) for number in range(first, first + shift))
        return frozenset(pod.node for pods in found if pods for pod in pods)

    def pods_at(self, address: Address) -> tuple[Pod, ...]:
        """Running pods that have the address."""
        return self._by_address.get((address.version, int(address)), ())

    def addresses(self) -> Iterator[Address]:
        """Those that running pods have, host network left out."""
        return (IPv4Address(number) if version == 4 else IPv6Address(number) for version, number in self._by_address)

    @cached_property
    def _by_annotation(self) -> dict[Network, frozenset[str]]:
        found: dict[Network, frozenset[str]] = {}
        for node in self._nodes.values():
            for cidr in node.blocks:
                if is_block(cidr):
                    found[cidr] = found.get(cidr, frozenset()) | {node.name}
        return found

    @cached_property
    def _by_address(self) -> dict[tuple[int, int], tuple[Pod, ...]]:
        found: dict[tuple[int, int], tuple[Pod, ...]] = {}
        for pod in self._pods.values():
            if pod.node and not pod.host_network and is_running(pod):
                for address in pod.addresses:
                    key = address.version, int(address)
                    found[key] = (*found.get(key, ()), pod)
        return found


NO_EVIDENCE = Evidence({}, {})
