"""Names for numbers: what a flow event calls an identity or an address.

Owns nothing but the lookup: endpoints say which pod lives at an address (the true one by ``core.ipcache.entries``), an
endpoint's number says which pod of this node a packet was judged for, whatever address it claims, nodes and reserved
identities have names of their own, ``identities`` tells the namespace of a number whose pod is not known. An address
that belongs to nothing has no name: the reader sees the address itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proto.addresses import Endpoint
from proto.identity import FIRST_COMPUTED, IdentityRecord, Reserved
from proto.net import Address
from proto.objects import Node
from services.dataplane.core.ipcache.entries import true_endpoints


@dataclass(frozen=True, slots=True)
class Names:
    """Names at one moment."""

    by_address: Mapping[Address, str] = field(default_factory=dict)
    by_identity: Mapping[int, str] = field(default_factory=dict)
    by_endpoint: Mapping[int, str] = field(default_factory=dict)
    """Pods of this node, by the numbers that the programs know them by."""
    interfaces: Mapping[int, str] = field(default_factory=dict)
    """Interfaces of this node."""

    def of(self, address: Address, identity: int) -> str:
        """``namespace/pod``, ``node/<name>``, a reserved name, ``namespace/?``, or empty."""
        named = self.by_address.get(address)
        if named:
            return named
        if identity >= FIRST_COMPUTED:
            return self.by_identity.get(identity, "")
        if identity in (Reserved.UNKNOWN, Reserved.WORLD):
            return ""
        return Reserved(identity).name.lower().replace("_", "-") if identity in set(Reserved) else ""


def names_of(
    endpoints: Iterable[Endpoint],
    nodes: Iterable[Node],
    identities: Iterable[IdentityRecord],
    local: Mapping[int, str] | None = None,
    interfaces: Mapping[int, str] | None = None,
) -> Names:
    """Names for all that is known now."""
    by_address = {address: f"node/{node.name}" for node in nodes for address in node.addresses}
    by_address |= {
        address: f"{endpoint.namespace}/{endpoint.pod}" for address, endpoint in true_endpoints(endpoints).items()
    }
    by_identity = {record.identity: f"{record.namespace}/?" for record in identities}
    return Names(by_address, by_identity, local or {}, interfaces or {})
