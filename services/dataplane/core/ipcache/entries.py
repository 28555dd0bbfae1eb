"""Whose an address is: pods of all nodes, nodes, the API server, as entries of ``am_ipcache``.

Owns the ordering of claims to one address: of all entries the one with the greatest (epoch, sequence) is true, whoever
wrote it and in whichever order the entries arrived, so a late delete of the pod that had the address before cannot
erase the one that has it now. Promises: a pure function of present state. This node's own endpoints come from its
registry, not from the bus, so local policy does not wait for NATS.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from proto.addresses import Endpoint
from proto.identity import FIRST_COMPUTED, Reserved
from proto.net import Address
from proto.objects import EndpointSlice, Node
from services.dataplane.core.datapath import shares
from services.dataplane.core.datapath.layout import (
    Peer,
    PeerFlag,
    PrefixKey,
)

APISERVER = ("default", "kubernetes")
"""Namespace and name of the Service whose endpoints are the API servers."""
PATIENCE = 30.0
"""Seconds that an upgrade waits for nodes whose agents say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What addresses can belong to."""

    node: str
    endpoints: Iterable[Endpoint]
    """Of all nodes but this one."""
    local: Iterable[Endpoint]
    nodes: Iterable[Node] = ()
    slices: Iterable[EndpointSlice] = ()
    own_addresses: Iterable[Address] = ()
    """Every address of this node's interfaces, as the kernel has them."""


def true_endpoints(endpoints: Iterable[Endpoint]) -> dict[Address, Endpoint]:
    """For each address the endpoint that lives there; ties go to the greater node name, the same everywhere."""
    best: dict[Address, Endpoint] = {}
    for endpoint in endpoints:
        if not FIRST_COMPUTED <= endpoint.identity < 1 << 64:
            continue  # no pod is the host or the API server, whatever a node says: it stays a stranger
        other = best.get(endpoint.address)
        if other is None or _rank(endpoint) > _rank(other):
            best[endpoint.address] = endpoint
    return best


def _rank(endpoint: Endpoint) -> tuple[int, int, str]:
    return endpoint.epoch, endpoint.sequence, endpoint.node


def entries_of(around: Surroundings) -> dict[PrefixKey, Peer]:
    """``am_ipcache``. A node's own address wins over whatever claims to be a pod there."""
    entries: dict[Address, Peer] = {
        address: Peer(identity=endpoint.identity, flags=int(PeerFlag.POD))
        for address, endpoint in true_endpoints([*around.endpoints, *around.local]).items()
    }
    for part in around.slices:
        if (part.namespace, part.service) == APISERVER:
            for endpoint in part.endpoints:
                entries |= {address: Peer(identity=int(Reserved.KUBE_APISERVER)) for address in endpoint.addresses}
    for node in around.nodes:
        whose = Reserved.HOST if node.name == around.node else Reserved.REMOTE_NODE
        entries |= {address: Peer(identity=int(whose), flags=int(PeerFlag.NODE)) for address in node.addresses}
    own = Peer(identity=int(Reserved.HOST), flags=int(PeerFlag.NODE))
    entries |= dict.fromkeys(around.own_addresses, own)
    return {PrefixKey.host(address): peer for address, peer in entries.items()}


def refused(
    foreign: Iterable[Endpoint], wanted: Mapping[PrefixKey, Peer], room: int
) -> dict[PrefixKey, shares.Refused]:
    """Which of the entries of other nodes' endpoints are left out so that all fit into ``room``: the newest of the node
    that has most. Nodes, the API server and what lives here keep theirs.
    """
    claims: dict[PrefixKey, shares.Claim] = {}
    for endpoint in true_endpoints(foreign).values():
        key = PrefixKey.host(endpoint.address)
        if key in wanted and wanted[key].flags & PeerFlag.POD:
            age = (endpoint.sequence, str(endpoint.address))
            claims[key] = shares.Claim(endpoint.node, age, (1,))
    return shares.share(claims, (max(0, room - (len(wanted) - len(claims))),))


def is_filled(in_sync: float, silent: Collection[str]) -> bool:
    """Whether a new map holds what is known of the cluster, once the watches have been in sync for ``in_sync`` seconds.

    Nodes that are ``silent`` (their agents have not said since the bus lost its streams that all of theirs is on it)
    are waited for, but no longer than :data:`PATIENCE`: one whose agent is gone for good holds up no upgrade.
    """
    return not silent or in_sync >= PATIENCE
