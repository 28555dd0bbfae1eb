"""Names for numbers: what a flow event calls an identity or an address.

Owns nothing but the look-up: the ipcache says which pod lives at an address, an endpoint's number says which pod of
this node a packet was judged for, whatever address it claims, nodes and reserved identities have names of their own,
``identities`` tells the namespace of a number whose pod is not known. An address that belongs to nothing has no name:
the reader sees the address itself. Promises: a name costs its own look-up, however many there could be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from proto.addresses import Endpoint
from proto.identity import FIRST_COMPUTED, Reserved
from proto.net import Address
from proto.objects import Node


def _nobody(_: object) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Where names are looked up."""

    endpoint_at: Callable[[Address], Endpoint | None] = _nobody
    """The pod that lives at an address."""
    namespace_of: Callable[[int], str | None] = _nobody
    """The namespace of an identity."""
    nodes: Mapping[Address, str] = field(default_factory=dict)
    by_endpoint: Mapping[int, str] = field(default_factory=dict)
    """Pods of this node, by the numbers that the programs know them by."""
    interfaces: Mapping[int, str] = field(default_factory=dict)
    """Interfaces of this node."""

    def of(self, address: Address, identity: int) -> str:
        """``namespace/pod``, ``node/<name>``, a reserved name, ``namespace/?``, or empty."""
        endpoint = self.endpoint_at(address)
        if endpoint is not None:
            return f"{endpoint.namespace}/{endpoint.pod}"
        if address in self.nodes:
            return f"node/{self.nodes[address]}"
        if identity >= FIRST_COMPUTED:
            namespace = self.namespace_of(identity)
            return "" if namespace is None else f"{namespace}/?"
        if identity in (Reserved.UNKNOWN, Reserved.WORLD):
            return ""
        return Reserved(identity).name.lower().replace("_", "-") if identity in set(Reserved) else ""


def nodes_at(nodes: Iterable[Node]) -> dict[Address, str]:
    """Node names by address."""
    return {address: node.name for node in nodes for address in node.addresses}
