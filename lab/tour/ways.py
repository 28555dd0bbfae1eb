"""How packets travel between each pair of nodes: what the kernel's routes say, and what was seen on the wire.

Owns the comparison of two witnesses: the routing table of the node that sends (`ip route get`), and a capture at the
bridge. Pure. Agreed is a pair whose packets were in the tunnel that its route leads into and in nothing else: where a
tunnel is, no address of a pod may be in the clear. A pair without a route is told; that its connections fail is the
matrix' to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from lab.cluster.packets import IPIP, PLAIN, VXLAN, WIREGUARD, Packet
from lab.topology import FABRIC_LINK, Host
from lab.tour.probes import Address, Pod

NONE = "none"
"""No route to the other node's pods."""
HOST_GW = "host-gw"
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
    """By the route of the node that sends: `host-gw`, a tunnel's name, or `NONE`."""
    route: str
    """That route, in the words of `ip`."""
    packets: Mapping[str, int] = field(default_factory=dict)
    """How many were seen in each tunnel, `PLAIN` for packets as they are."""
    crossed: bool = False
    """Whether a connection from one to the other was made meanwhile."""

    @property
    def expected(self) -> str:
        """What packets have to be in."""
        return PLAIN if self.model == HOST_GW else self.model

    @property
    def disagreement(self) -> str:
        """What is wrong, a sentence; empty: nothing."""
        name = f"{self.source} → {self.destination} IPv{self.family}"
        if self.model == NONE:
            return f"{name}: no route ({self.route})"
        others = {tunnel: count for tunnel, count in self.packets.items() if tunnel != self.expected and count}
        if others:
            seen = ", ".join(f"{count} {SHOWN[tunnel]}" for tunnel, count in sorted(others.items()))
            return f"{name}: the route is {self.model}'s, and on the wire were {seen}"
        if self.crossed and not self.packets.get(self.expected):
            return f"{name}: the route is {self.model}'s, and nothing was seen on the wire {SHOWN[self.expected]}"
        return ""


def model_of(route: Mapping[str, Any], peer: Collection[Address]) -> str:
    """The model of a route as `ip --json route get` says it, to a pod on the node that has the addresses ``peer``."""
    device = str(route.get("dev", ""))
    if device in DEVICES:
        return DEVICES[device]
    gateway = route.get("gateway") or route.get("via", {}).get("host")
    return HOST_GW if device == FABRIC_LINK and gateway and ip_address(gateway) in peer else NONE


def addresses_of(host: Host) -> tuple[Address, Address]:
    """A host's own on the fabric."""
    return host.fabric4, host.fabric6


def words(route: Mapping[str, Any]) -> str:
    """`via 172.30.0.12 dev am-vxlan mtu 1450`, or why there is none."""
    if "error" in route:
        return str(route["error"])
    gateway = route.get("gateway") or route.get("via", {}).get("host")
    mtu = next((one["mtu"] for one in route.get("metrics", []) if "mtu" in one), None)
    parts = [("via", gateway), ("dev", route.get("dev")), ("mtu", mtu)]
    return " ".join(f"{name} {value}" for name, value in parts if value)


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
        if packet.tunnel == WIREGUARD and has.get(packet.source) == sender and packet.destination in has:
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
        Way(
            source=pair[0],
            destination=pair[1],
            family=pair[2],
            model=model_of(route, addresses_of(hosts[pair[1]])),
            route=words(route),
            packets=counts.get(pair, {}),
            crossed=pair in crossed,
        )
        for pair, route in sorted(routes.items())
    )
