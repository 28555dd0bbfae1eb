"""Resolution of next hops (RFC 4271 5.1.3, 9.1.2.1): by which router, on which link, packets to one go.

A next hop is reached on a network of one of this node's uplinks, by the gateway that an object names for it
(``reachableBy``), or by a router that a route of somebody else's leads to; never by the default route, by a route to a
pod, or by one that was learnt. So a learnt route depends on no other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from kit.tunnels import ROUTE_PROTOCOL
from proto.net import Address, Network
from services.routing.core.bgp.peers import Peer, SessionSettings
from services.routing.core.bgp.rib.paths import Reach
from services.routing.core.bgp.values import Family, Prefix, prefix_of
from services.routing.core.faults import Fault
from services.routing.core.fib import PODS, Kind, Snapshot, Uplink
from services.routing.core.learnt import PROTOCOL, Hop

BY_ROUTER = 1
"""Interior cost of a next hop that another router leads to; 0: it is on a link."""


@dataclass(frozen=True, slots=True)
class Way:
    """How packets to the next hops of a network leave."""

    network: Network
    link: int
    interface: str
    via: Address | None = None
    """The router on the link; None: the next hop is one itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """All ways to next hops, the longest prefix first."""

    ways: tuple[Way, ...] = ()
    links: Mapping[str, int] = field(default_factory=dict)
    """Index by name, of uplinks that are up."""
    gateways: Mapping[Address, Address] = field(default_factory=dict)
    """Next hops that an object names a gateway for."""
    own: frozenset[Address] = frozenset()

    def hop(self, address: Address, interface: str = "") -> Hop | None:
        """The router and the link by which a next hop is reached; None: it is not.

        ``interface``: of the session that a link-local next hop came by.
        """
        found = self._find(address, interface)
        return found[0] if found is not None else None

    def reach(self, address: Address, interface: str = "") -> Reach | None:
        """The same, as the decision process asks for it."""
        found = self._find(address, interface)
        return found[1] if found is not None else None

    def _find(self, address: Address, interface: str) -> tuple[Hop, Reach] | None:
        if address in self.own:
            return None
        if address.is_link_local:
            index = self.links.get(interface)
            return (Hop(address, index), Reach(interface=interface)) if index is not None else None
        router = self.gateways.get(address, address)
        for way in self.ways:
            if way.network.version == router.version and router in way.network:
                cost = 0 if way.via is None and router == address else BY_ROUTER
                return Hop(way.via or router, way.link), Reach(cost=cost, interface=way.interface)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The links of this node, as sessions see them: made once for all peers (:func:`links_of`)."""

    uplinks: Mapping[int, Uplink]
    """By index."""
    ways: Ways
    ways_if_up: Ways
    """As if all links were up, and no router led anywhere."""

    def link_of(self, session: SessionSettings) -> Uplink | None:
        """The link that a peer is on itself, behind no router; None: it is on none. A link that is down for a while
        stays its link: what follows from that is for failure detection, and another address would be another session.
        """
        for ways in (self.ways, self.ways_if_up):
            hop = ways.hop(session.address, session.interface)
            link = self.uplinks.get(hop.link) if hop is not None and hop.via == session.address else None
            if link is not None and (ways is self.ways or not link.up):
                return link
        return None

    def bound(self, session: SessionSettings) -> SessionSettings:
        """The session of an external peer that is on a link of this node, while the address it is held from is not.

        It is held from the link's address: from another one the peer would not take it for a neighbor on the link, and
        BFD (RFC 5881) and the next hop that it is sent would be another router's.
        """
        if not session.external or session.local is None or (link := self.link_of(session)) is None:
            return session
        own = [one for one in link.addresses if one.version == session.address.version and not one.ip.is_link_local]
        if not own or session.local in (one.ip for one in own):
            return session
        return replace(session, local=next((one.ip for one in own if session.address in one.network), own[0].ip))


def links_of(kernel: Snapshot, gateways: Iterable[tuple[Address, Address]] = ()) -> Links:
    """The links that the kernel has now. ``gateways``: as in :func:`ways_of`."""
    named = tuple(gateways)
    up = tuple(replace(uplink, up=True) for uplink in kernel.uplinks)
    on_links = tuple(route for route in kernel.routes if route.via is None)
    return Links(
        uplinks={uplink.index: uplink for uplink in kernel.uplinks},
        ways=ways_of(kernel, named),
        ways_if_up=ways_of(replace(kernel, uplinks=up, routes=on_links), named),
    )


def static_routes(
    peers: Iterable[Peer], gateways: Iterable[tuple[Address, Address]], ways: Ways
) -> tuple[dict[tuple[Family, Prefix], Hop], tuple[Fault, ...]]:
    """Host routes to peers by the gateways that objects name for them (``reachableBy``), and why one cannot be."""
    names = {peer.session.address: peer.name for peer in peers}
    found: dict[tuple[Family, Prefix], Hop] = {}
    faults = []
    for address, gateway in gateways:
        if (hop := ways.hop(address)) is not None:
            found[prefix_of(ip_network(address))] = hop
        else:
            what = f"the gateway {gateway} to {address} is on no network of this node's uplinks that are up"
            remedy = "correct spec.reachableBy, or bring the link up"
            faults.append(Fault(what, remedy, about=("BGPPeer", names[address].partition("/")[0])))
    return found, tuple(faults)


def own_next_hops(session: SessionSettings, kernel: Snapshot, addresses: Mapping[int, Address]) -> dict[int, Address]:
    """Addresses of this node by family (4, 6) that a peer can use as next hops: on the link that the session is held
    from those of the link, elsewhere the node's own, which are ``addresses``.
    """
    for uplink in kernel.uplinks:
        own = [one.ip for one in uplink.addresses if not one.ip.is_link_local]
        if session.local in own:
            found = dict(addresses)
            for one in reversed(own):
                if addresses.get(one.version) not in own:
                    found[one.version] = one
            return found
    return dict(addresses)


def ways_of(kernel: Snapshot, gateways: Iterable[tuple[Address, Address]] = ()) -> Ways:
    """What the kernel has of ways to next hops now."""
    names = {uplink.index: uplink.name for uplink in kernel.uplinks if uplink.up}
    found = [
        (0, Way(interface.network, uplink.index, uplink.name))
        for uplink in kernel.uplinks
        for interface in uplink.addresses
        if uplink.up and not interface.ip.is_link_local and interface.network.prefixlen < interface.max_prefixlen
    ]
    found += [
        (route.metric, Way(route.destination, route.link, names[route.link], route.via))
        for route in kernel.routes
        if route.kind is Kind.UNICAST
        and route.link in names
        and route.destination.prefixlen
        and route.protocol not in (ROUTE_PROTOCOL, PODS, PROTOCOL)
    ]
    holders = (*kernel.uplinks, *((kernel.loopback,) if kernel.loopback is not None else ()))
    return Ways(
        ways=tuple(dict.fromkeys(way for _, way in sorted(found, key=lambda one: _precedence(*one)))),
        links={name: index for index, name in names.items()},
        gateways=dict(gateways),
        own=frozenset(interface.ip for holder in holders for interface in holder.addresses),
    )


def _precedence(metric: int, way: Way) -> tuple[int, ...]:
    """The longest prefix first, of equal ones the least metric, as the kernel takes them; then any order, but one."""
    network, via = way.network, way.via
    router = (via.version, int(via)) if via is not None else (0, 0)
    return -network.prefixlen, network.version, int(network.network_address), metric, *router, way.link
