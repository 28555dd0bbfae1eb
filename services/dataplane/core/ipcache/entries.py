"""The entries of ``am_ipcache``: address → identity of every pod and node, and of the API server.

Owns the ordering of claims to one address: of all entries the one with the greatest (epoch, sequence) is true, whoever
wrote it and in whichever order the entries arrived, so a late delete of the pod that had the address before cannot
erase the one that has it now. Promises: depends on the present state alone, and a change costs the address that it is
about. This node's own endpoints come from its registry, not from the bus, so local policy does not wait for NATS.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from proto.addresses import Endpoint
from proto.identity import FIRST_COMPUTED, Reserved
from proto.net import Address
from proto.objects import EndpointSlice, Node
from services.dataplane.core.datapath import shares
from services.dataplane.core.datapath.layout import Peer, PeerFlag, PrefixKey

APISERVER = ("default", "kubernetes")
"""Namespace and name of the Service whose endpoints are the API servers."""
PATIENCE = 30.0
"""Seconds that an upgrade waits for nodes whose agents say nothing."""


def true_endpoint(endpoints: Iterable[Endpoint]) -> Endpoint | None:
    """Of all who claim one address, the endpoint that lives there; ties go to the greater node name and
    identity, the same everywhere. No pod is the host or the API server, whatever a node says: it stays a stranger.
    """
    able = [one for one in endpoints if FIRST_COMPUTED <= one.identity < 1 << 64]
    return max(able, key=_precedence, default=None)


def _precedence(endpoint: Endpoint) -> tuple[int, int, str, int]:
    return endpoint.epoch, endpoint.sequence, endpoint.node, endpoint.identity


def fixed_entries(
    node: str, nodes: Iterable[Node], slices: Iterable[EndpointSlice], own_addresses: Iterable[Address]
) -> dict[Address, Peer]:
    """What wins over whatever claims to be a pod at an address: nodes' own addresses, and the API server's.

    ``own_addresses``: every address of this node's interfaces, as the kernel has them.
    """
    entries: dict[Address, Peer] = {}
    for part in slices:
        if (part.namespace, part.service) == APISERVER:
            for endpoint in part.endpoints:
                entries |= {address: Peer(identity=int(Reserved.KUBE_APISERVER)) for address in endpoint.addresses}
    for one in nodes:
        whose = Reserved.HOST if one.name == node else Reserved.REMOTE_NODE
        entries |= {address: Peer(identity=int(whose), flags=int(PeerFlag.NODE)) for address in one.addresses}
    return entries | dict.fromkeys(own_addresses, Peer(identity=int(Reserved.HOST), flags=int(PeerFlag.NODE)))


class Entries:
    """``am_ipcache`` as it should be, kept by what changes."""

    def __init__(self) -> None:
        self._published: dict[str, Endpoint] = {}
        self._at: dict[Address, dict[str, Endpoint]] = {}
        self._fixed: Mapping[Address, Peer] = {}
        self._dirty: set[Address] = set()
        self._local: Mapping[str, Endpoint] = {}
        self.wanted: dict[PrefixKey, Peer] = {}
        """The entries."""
        self.sources: dict[PrefixKey, str] = {}
        """Node of the endpoint that an entry is of, or was of before it went (:meth:`forget`)."""

    def publish(self, key: str, endpoint: Endpoint | None) -> None:
        """What stands at a key of ``endpoints``, as far as it counts; None: nothing."""
        before = self._published.pop(key, None)
        if before is endpoint:
            if endpoint is not None:
                self._published[key] = endpoint
            return
        if before is not None:
            claims = self._at[before.address]
            del claims[key]
            if not claims:
                del self._at[before.address]
            self._dirty.add(before.address)
        if endpoint is not None:
            self._published[key] = endpoint
            self._at.setdefault(endpoint.address, {})[key] = endpoint
            self._dirty.add(endpoint.address)

    def set_local(self, endpoints: Iterable[Endpoint]) -> None:
        """All endpoints of this node."""
        local = {f"_local.{one.address}.{one.namespace}/{one.pod}/{one.sequence}": one for one in endpoints}
        for key in self._local.keys() - local.keys():
            self.publish(key, None)
        for key, one in local.items():
            if self._local.get(key) != one:
                self.publish(key, one)
        self._local = local

    def set_fixed(self, entries: Mapping[Address, Peer]) -> None:
        """What :func:`fixed_entries` says now."""
        if entries != self._fixed:
            both = entries.keys() | self._fixed.keys()
            self._dirty |= {address for address in both if entries.get(address) != self._fixed.get(address)}
            self._fixed = entries

    def settle(self) -> set[PrefixKey]:
        """Brings ``wanted`` up to date; the keys whose entry is another than before."""
        changed = set()
        for address in self._dirty:
            key, endpoint = PrefixKey.host(address), self.endpoint_at(address)
            entry = self._fixed.get(address)
            if entry is None and endpoint is not None:
                entry = Peer(identity=endpoint.identity, flags=int(PeerFlag.POD))
                self.sources[key] = endpoint.node
            if self.wanted.get(key) == entry:
                continue
            changed.add(key)
            if entry is None:
                del self.wanted[key]
            else:
                self.wanted[key] = entry
        self._dirty.clear()
        return changed

    def endpoint_at(self, address: Address) -> Endpoint | None:
        """The pod that lives at an address."""
        return true_endpoint(self._at.get(address, {}).values())

    def forget(self, key: PrefixKey) -> None:
        """An entry that is wanted no more is in no map either."""
        self.sources.pop(key, None)


def refused(
    foreign: Iterable[Endpoint], wanted: Mapping[PrefixKey, Peer], room: int
) -> dict[PrefixKey, shares.Refused]:
    """Which of the entries of other nodes' endpoints are left out so that all fit into ``room``: the newest of the node
    that has most. Nodes, the API server and what lives here keep theirs.
    """
    best: dict[Address, Endpoint] = {}
    for endpoint in foreign:
        other = best.get(endpoint.address)
        one = true_endpoint((endpoint,) if other is None else (other, endpoint))
        if one is not None:
            best[endpoint.address] = one
    claims: dict[PrefixKey, shares.Claim] = {}
    for endpoint in best.values():
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
