"""How packets travel between each pair of nodes: what the kernel's routes say, and what was seen on the wire.

Owns the comparison of two witnesses: the routing table of the node that sends (`ip route get`), and a capture at the
bridge or at the switches. Pure. Agreed is a pair whose packets were in the tunnel that its route leads into and in
nothing else: where a tunnel is, no address of a pod may be in the clear. A pair without a route is told; that its
connections fail is the matrix' to say. Behind switches a route that was learnt by BGP leads by all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from lab.cluster.packets import IPIP, PLAIN, VXLAN, WIREGUARD, Packet
from lab.topology import FABRIC_LINK, Host, Port
from lab.tour.probes import Address, Pod

NONE = "none"
"""No route to the other node's pods."""
HOST_GW = "host-gw"
BGP = "bgp"
"""Learnt from the switches that the nodes are behind."""
LEARNT = "185"
"""Protocol of routes that were learnt by BGP."""
DEVICES = {"am-vxlan": VXLAN, "am-vxlan6": VXLAN, "am-ipip": IPIP, "am-wg": WIREGUARD, "am-wg2": WIREGUARD}
"""Device of a route → the model that it is of."""
SHOWN = {
    PLAIN: "as they are",
    IPIP: "in IP protocol 4",
    VXLAN: "in VXLAN",
    WIREGUARD: "in WireGuard",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From the pods of one node to those of another, in one family."""

    source: str
    destination: str
    family: int
    model: str
    """By the route of the node that sends: `host-gw`, `bgp`, a tunnel's name, or `NONE`."""
    route: str
    """That route, in the words of `ip`."""
    packets: Mapping[str, int] = field(default_factory=dict)
    """How many were seen in each tunnel, `PLAIN` for packets as they are."""
    crossed: bool = False
    """Whether a connection from one to the other was made meanwhile."""
    unused: tuple[str, ...] = ()
    """Links to switches by which a learnt route does not lead."""

    @property
    def expected(self) -> str:
        """What packets have to be in."""
        return PLAIN if self.model in {HOST_GW, BGP} else self.model

    @property
    def disagreement(self) -> str:
        """What is wrong, a sentence; empty: nothing."""
        name = f"{self.source} → {self.destination} IPv{self.family}"
        if self.model == NONE:
            return f"{name}: no route ({self.route})"
        if self.unused:
            return f"{name}: the route does not lead by {' and '.join(self.unused)} ({self.route})"
        others = {tunnel: count for tunnel, count in self.packets.items() if tunnel != self.expected and count}
        if others:
            seen = ", ".join(f"{count} {SHOWN[tunnel]}" for tunnel, count in sorted(others.items()))
            return f"{name}: the route is {self.model}'s, and on the wire were {seen}"
        if self.crossed and not self.packets.get(self.expected):
            return f"{name}: the route is {self.model}'s, and nothing was seen on the wire {SHOWN[self.expected]}"
        return ""


def next_hops(route: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(Router, device) of each next hop of a route as `ip --json route get` says it; empty for no router."""
    hops = route.get("nexthops", [route])
    return tuple((hop.get("gateway") or hop.get("via", {}).get("host", ""), hop.get("dev", "")) for hop in hops)


def model_of(route: Mapping[str, Any], peer: Collection[Address], uplinks: Collection[Port] = ()) -> str:
    """The model of a route as `ip --json route get` says it, to a pod on the node that has the addresses ``peer``.

    ``uplinks``: of the node that sends, where it is behind switches; then the route is the table's own (`fibmatch`).
    """
    router, device = next_hops(route)[0]
    if device in DEVICES:
        return DEVICES[device]
    if uplinks:
        return BGP if route.get("protocol") == LEARNT and all(router for router, _ in next_hops(route)) else NONE
    return HOST_GW if device == FABRIC_LINK and router and ip_address(router) in peer else NONE


def addresses_of(host: Host) -> tuple[Address, Address]:
    """A host's own on the fabric."""
    return host.fabric4, host.fabric6


def words(route: Mapping[str, Any]) -> str:
    """`via 172.30.0.12 dev am-vxlan mtu 1450`, more next hops after a comma, or why there is none."""
    if "error" in route:
        return str(route["error"])
    mtu = next((one["mtu"] for one in route.get("metrics", []) if "mtu" in one), None)
    hops = [(("via", router), ("dev", device)) for router, device in next_hops(route)]
    said = ", ".join(" ".join(f"{name} {value}" for name, value in hop if value) for hop in hops)
    return f"{said} mtu {mtu}" if mtu else said


def pairs(nodes: Sequence[Host], pods: Sequence[Pod]) -> Iterator[tuple[Host, Host, Address]]:
    """(Node, other node, an address of a pod on the other), for each family."""
    for source in nodes:
        for destination in nodes:
            there = [pod for pod in pods if pod.node == destination.name]
            if source.name == destination.name or not there:
                continue
            for family in (4, 6):
                found = [one for pod in there for one in pod.addresses if one.version == family]
                if found:
                    yield source, destination, found[0]


def counted(
    seen: Iterable[tuple[tuple[str, Packet], int]], nodes: Sequence[Host], pods: Sequence[Pod]
) -> dict[tuple[str, str, int], Counter[str]]:
    """Packets between pods of two nodes, by (sender's node, other node, family): how many in which tunnel.

    What is inside of WireGuard cannot be read: its packets count for both families of a pair.
    """
    on = {address: pod.node for pod in pods for address in pod.addresses}
    has = {address: node.name for node in nodes for address in addresses_of(node)}
    found: dict[tuple[str, str, int], Counter[str]] = {}
    for (sender, packet), count in seen:
        if (
            packet.tunnel == WIREGUARD
            and packet.carries
            and has.get(packet.source) == sender
            and packet.destination in has
        ):
            for family in (4, 6):
                found.setdefault((sender, has[packet.destination], family), Counter())[WIREGUARD] += count
        source, destination = packet.ends
        if on.get(source) == sender and destination in on and on[destination] != sender:
            found.setdefault((sender, on[destination], source.version), Counter())[packet.tunnel] += count
    return found


def ways(
    routes: Mapping[tuple[str, str, int], Mapping[str, Any]],
    counts: Mapping[tuple[str, str, int], Mapping[str, int]],
    crossed: Collection[tuple[str, str, int]],
    nodes: Sequence[Host],
) -> tuple[Way, ...]:
    """One for each route, in order of nodes and family."""
    hosts = {node.name: node for node in nodes}
    return tuple(
        _way(hosts[pair[0]], hosts[pair[1]], pair[2], route, counts.get(pair, {}), crossed=pair in crossed)
        for pair, route in sorted(routes.items())
    )


def _way(
    source: Host, there: Host, family: int, route: Mapping[str, Any], packets: Mapping[str, int], *, crossed: bool
) -> Way:
    model = model_of(route, addresses_of(there), source.uplinks)
    used = {device for _, device in next_hops(route)}
    return Way(
        source=source.name,
        destination=there.name,
        family=family,
        model=model,
        route=words(route),
        packets=packets,
        crossed=crossed,
        unused=tuple(port.link for port in source.uplinks if port.link not in used) if model == BGP else (),
    )
