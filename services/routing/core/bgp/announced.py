"""What one node announces by BGP: its blocks, the kept addresses that live away from theirs, and Services' addresses.

Promises, each from the present state alone:

- A block of this node is one prefix, whatever pods it has: no pod is announced by itself. Blocks are never merged to a
  wider prefix: it would have to be withdrawn when one of them goes, and with it the way to the pods of the other.
- A kept address is a host route of the node that holds it, unless a block of that node has it already.
- Ranges of Services' addresses are announced by every node. An address of a Service with externalTrafficPolicy
  ``Local`` is announced by the nodes that have a ready endpoint of its family, and so draws the traffic there. An
  endpoint that terminates is none, so the route is withdrawn while it still serves.
- An address of a Service with policy ``Cluster`` is announced by itself only where no range of more than one address is
  announced for it: the range is one address, or load balancers' ranges are not aggregated.
- Nothing of a pool that says ``disableBGPExport``, and no Service's address outside the configured ranges.
- A node with the label ``node.kubernetes.io/exclude-from-external-load-balancers`` announces no Service's address.

Source: Calico's "Advertise Kubernetes service IP addresses".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from kit.holdings import Holdings
from kit.pools import within
from proto.addresses import Block, Claim
from proto.net import Address, Network
from proto.objects import EndpointSlice, IPPool, Node, Service, SliceEndpoint
from services.routing.core.bgp.configuration import Configuration, StandardOrLarge
from services.routing.core.bgp.values import Attributes, Origin

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
"""Label of a Node, whatever its value."""

ServiceName = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What lives in the cluster, as the buckets say."""

    blocks: tuple[Block, ...] = ()
    claims: tuple[Claim, ...] = ()
    pools: tuple[IPPool, ...] = ()
    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()


def announced(node: Node, held: Held, configured: Configuration) -> dict[Network, Attributes]:
    """Prefixes that ``node`` announces, in order, with their attributes; equal ones are one object."""
    prefixes = {*_of_pods(node.name, held), *_of_services(node, held, configured)}
    ordered = sorted(prefixes, key=lambda one: (one.version, int(one.network_address), one.prefixlen))
    made: dict[frozenset[StandardOrLarge], Attributes] = {}
    found: dict[Network, Attributes] = {}
    for prefix in ordered:
        communities = _communities(prefix, configured)
        if communities not in made:
            made[communities] = _attributes(communities)
        found[prefix] = made[communities]
    return found


def _communities(prefix: Network, configured: Configuration) -> frozenset[StandardOrLarge]:
    ranges = (one for one in configured.advertisements if within(prefix, one.cidr))
    return frozenset(community for one in ranges for community in one.communities)


def _attributes(communities: frozenset[StandardOrLarge]) -> Attributes:
    return Attributes(
        origin=Origin.IGP,
        communities=tuple(sorted(one for one in communities if isinstance(one, int))),
        large_communities=tuple(sorted(one for one in communities if not isinstance(one, int))),
    )


def _of_pods(me: str, held: Held) -> Iterator[Network]:
    hidden = [pool.cidr for pool in held.pools if pool.disable_bgp_export]
    holdings = Holdings(held.blocks)
    own = [block.cidr for block in held.blocks if block.node == me]
    for claim in held.claims:
        if claim.node == me:
            block = holdings.block_of(claim.address)
            if block is None or block.node != me:
                own.append(ip_network(claim.address))
    return (cidr for cidr in own if not any(within(cidr, pool) for pool in hidden))


def _of_services(node: Node, held: Held, configured: Configuration) -> Iterator[Network]:
    if EXCLUDED in dict(node.labels):
        return
    whole = tuple(dict.fromkeys(_whole(configured)))
    yield from whole
    served = {
        (one.namespace, one.name): (one, addresses)
        for one in held.services
        if one.fronted and (addresses := tuple(_addresses(one, configured)))
    }
    local = {name: service for name, (service, _) in served.items() if service.external_policy == "Local"}
    ready = set(_ready(node.name, local, held.slices))
    for name, (_, addresses) in served.items():
        for address in addresses:
            if (name, address.version) in ready if name in local else not _lies_in(address, whole):
                yield ip_network(address)


def _whole(configured: Configuration) -> Iterator[Network]:
    """Ranges that are announced as they are; one of a single address follows the Service that has it."""
    aggregated = configured.load_balancer_ips if configured.load_balancer_aggregation else ()
    ranges = (*configured.cluster_ips, *configured.external_ips, *aggregated)
    return (cidr for cidr in ranges if cidr.prefixlen < cidr.max_prefixlen)


def _addresses(service: Service, configured: Configuration) -> Iterator[Address]:
    """Addresses of a Service that lie in the range configured for their sort."""
    for addresses, ranges in (
        (service.cluster_ips, configured.cluster_ips),
        (service.external_ips, configured.external_ips),
        (service.load_balancer_ips, configured.load_balancer_ips),
    ):
        yield from (address for address in addresses if _lies_in(address, ranges))


def _lies_in(address: Address, ranges: Iterable[Network]) -> bool:
    return any(address in cidr for cidr in ranges if cidr.version == address.version)


def _ready(
    me: str, services: Mapping[ServiceName, Service], slices: Iterable[EndpointSlice]
) -> Iterator[tuple[ServiceName, int]]:
    """Those of ``services`` that have a ready endpoint on this node, with the family of its address."""
    for one in slices:
        name = (one.namespace, one.service)
        if one.fronted and name in services:
            for endpoint in one.endpoints:
                if endpoint.node == me and _takes_new(endpoint, services[name]):
                    yield from ((name, address.version) for address in endpoint.addresses[:1])


def _takes_new(endpoint: SliceEndpoint, service: Service) -> bool:
    """Ready, or meant to be reached before it is (``publishNotReadyAddresses``); never one that terminates."""
    return (endpoint.ready or service.publish_not_ready) and not endpoint.terminating
