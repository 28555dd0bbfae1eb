"""Which routes this node should have, and the operations that lead there.

Every node's block is reached by the path that a model gives for that pair of nodes (``core.models``); a kept address
that is held on another node, outside of that node's blocks, is a host route of its own; what is held here is left to
the dataplane. Own blocks and the blocks that kept addresses come from are *unreachable* where nothing better is known,
or a packet for an address that nobody has would go out by the default route and come back.

Refuses: a prefix that ``blocks`` does not say its announcer holds, and what a node says in another's name (one node
cannot draw another's traffic), a pair that no model asked for serves (a route there would be a black hole; said as a
fault), and any change of a route that is not ours, whatever it covers. Nothing is removed that the state would want if
all of it were here: see :func:`may_remove`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import islice

from kit.models import HOST_GW
from kit.prefixes import overlap
from proto.addresses import CONTESTED, IPAM_HOLDER, Block, Claim
from proto.net import Address, Network
from proto.routes import NodeRoutes
from services.routing.core.faults import Fault
from services.routing.core.fib import (
    LAST_METRIC,
    METRIC,
    PODS,
    Kind,
    Operation,
    Remove,
    Replace,
    Route,
    Snapshot,
    Uplink,
)
from services.routing.core.models import MODELS, path_to
from services.routing.core.models.contract import Pair, Path

Asked = tuple[str, ...]
"""Names of models, the one to be preferred first."""
_AS_THEY_ARE: Asked = (HOST_GW.name,)
MOST_JUDGED = 16
"""Prefixes of one node, of those that it does not hold, that are compared with all blocks to say whose they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """What the buckets say, and how far it can be believed."""

    me: str
    """This node; empty in a gateway, which holds nothing."""
    routes: Mapping[str, NodeRoutes] = field(default_factory=dict)
    """By node."""
    claims: tuple[Claim, ...] = ()
    blocks: Mapping[Network, Block] = field(default_factory=dict)
    blocks_complete: bool = False
    claims_complete: bool = False
    reported: Set[str] = frozenset()
    """Nodes whose part of ``routes`` is complete in the bucket's present epoch."""
    impostors: tuple[tuple[str, str], ...] = ()
    """Who wrote under its own key of ``routes`` in another's name, and in whose."""
    pools: Mapping[Network, Asked] = field(default_factory=dict)
    """Models that the packets to a pool's addresses may take (``kit.models.asked``: host-gw as long as no other is
    served), by the pool's range. The first that an address lies in counts."""

    def asked_for(self, where: Network | Address) -> Asked:
        """The models asked for by the pool that a prefix or an address lies in."""
        return next((asked for cidr, asked in self.pools.items() if overlap(cidr, ip_network(where))), _AS_THEY_ARE)


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations in order (additions first) and what stands in the way."""

    operations: tuple[Operation, ...]
    faults: tuple[Fault, ...]
    desired: Mapping[tuple[Network, int], Route]


def plan(mesh: Mesh, kernel: Snapshot) -> Plan:
    """From the present state of both to what is to be done."""
    desired, faults = desired_routes(mesh, kernel.uplinks)
    faults += [
        Fault(f"this node has no interface {name}", "correct AIRMESH_UPLINKS or make the interface")
        for name in kernel.missing
    ]
    faults += [
        Fault(
            f"node {writer} tells routes in the name of {name[:64]!r}, which is not believed",
            "look at that node: its agent says what no agent of ours does; if it was taken over, take its key from it",
            of_others=True,
        )
        for writer, name in mesh.impostors
    ]
    faults += _overclaims(mesh)
    ours = {route.key: route for route in kernel.routes if route.is_ours}
    foreign = {route.key: route for route in kernel.routes if not route.is_ours and not _is_pods(route)}
    faults += _foreign_faults(desired, foreign)
    replaced = [Replace(route) for key, route in desired.items() if ours.get(key) != route and key not in foreign]
    removed = [Remove(route) for key, route in ours.items() if key not in desired and may_remove(route, mesh)]
    return Plan((*replaced, *removed), tuple(faults), desired)


def desired_routes(mesh: Mesh, uplinks: Iterable[Uplink]) -> tuple[dict[tuple[Network, int], Route], list[Fault]]:
    """All routes of ours that should be there, and why some cannot."""
    paths = _paths(mesh, tuple(uplink for uplink in uplinks if uplink.up))
    routes = [Route(destination=cidr, kind=Kind.UNREACHABLE, metric=LAST_METRIC) for cidr in _refused(mesh)]

    def route(node: str, destination: Network) -> None:
        path = paths.get((node, destination.version, mesh.asked_for(destination)))
        if isinstance(path, Path):
            mtu = path.mtu if path.mtu < path.link_mtu else 0
            routes.append(Route(destination=destination, via=path.via, link=path.link, mtu=mtu))

    for name, reported in mesh.routes.items():
        for prefix in reported.prefixes:
            if name != mesh.me and _holds(name, prefix, mesh):
                route(name, prefix)
    for claim in mesh.claims:
        if claim.node and claim.node != mesh.me and not _in_blocks_of(claim.node, claim.address, mesh):
            route(claim.node, ip_network(claim.address))
    faults = dict.fromkeys(path for path in paths.values() if isinstance(path, Fault))
    return {route.key: route for route in routes}, list(faults)


def _paths(mesh: Mesh, links: tuple[Uplink, ...]) -> dict[tuple[str, int, Asked], Path | Fault]:
    """To each other node, for each family and each wish of a pool that something behind it has."""
    needed: dict[str, set[tuple[int, Asked]]] = {}
    for name, reported in mesh.routes.items():
        held = [prefix for prefix in reported.prefixes if _holds(name, prefix, mesh)]
        needed[name] = {(prefix.version, mesh.asked_for(prefix)) for prefix in held}
    for claim in mesh.claims:
        if claim.node in needed:
            needed[claim.node].add((claim.address.version, mesh.asked_for(claim.address)))
    return {
        (name, family, asked): path_to(Pair(peer=mesh.routes[name], family=family, links=links), asked)
        for name in sorted(needed.keys() - {mesh.me})
        for family, asked in sorted(needed[name])
    }


def may_remove(route: Route, mesh: Mesh) -> bool:
    """Whether a route of ours that nothing asks for is surely not needed.

    A kept address: when all claims are known. A block: when ``blocks`` is whole, and whoever holds it has told
    everything of its own (a node that is silent under a new epoch of ``routes`` may still be there).
    """
    if not (mesh.blocks_complete and mesh.claims_complete):
        return False
    holder = mesh.blocks.get(route.destination)
    if holder is None or not holder.node or route.kind is Kind.UNREACHABLE:
        return True
    return holder.node in (mesh.me, IPAM_HOLDER) or holder.node in mesh.reported


def offered(me: str, blocks: Mapping[Network, Block], uplinks: Iterable[Uplink]) -> NodeRoutes:
    """What this node tells the others: its addresses on the shared links, their smallest MTU, and its blocks."""
    links = tuple(uplinks)
    underlay = tuple(
        sorted(
            {interface.ip for uplink in links for interface in uplink.addresses if not interface.ip.is_link_local},
            key=lambda address: (address.version, int(address)),
        )
    )
    prefixes = sorted(
        (cidr for cidr, block in blocks.items() if block.node == me),
        key=lambda cidr: (cidr.version, int(cidr.network_address)),
    )
    mtu = min((uplink.mtu for uplink in links), default=0)
    return NodeRoutes(node=me, underlay=underlay, prefixes=tuple(prefixes), models=tuple(MODELS), mtu=mtu)


def _refused(mesh: Mesh) -> list[Network]:
    own = (mesh.me, IPAM_HOLDER) if mesh.me else (IPAM_HOLDER,)
    return [cidr for cidr, block in mesh.blocks.items() if block.node in own]


def _holds(name: str, prefix: Network, mesh: Mesh) -> bool:
    block = mesh.blocks.get(prefix)
    return block is not None and block.node == name


def _overclaims(mesh: Mesh) -> list[Fault]:
    """Other nodes that announce what somebody else holds: one fault for each, of the first such prefix.

    A prefix that nobody holds is no fault: its record may be on its way here.
    """
    faults: list[Fault] = []
    for name, reported in mesh.routes.items() if mesh.blocks_complete else ():
        unheld = (prefix for prefix in reported.prefixes if not _holds(name, prefix, mesh))
        for prefix in islice(unheld, MOST_JUDGED if name != mesh.me else 0):
            if block := _others_block(name, prefix, mesh):
                holder = "ipam" if block.node == IPAM_HOLDER else f"node {block.node}"
                faults.append(
                    Fault(
                        f"node {name} announces {prefix}, but {holder} holds {block.cidr}; it is not believed",
                        "restart routing on that node; if it was taken over, take its key from it",
                        of_others=True,
                    )
                )
                break
    return faults


def _others_block(name: str, prefix: Network, mesh: Mesh) -> Block | None:
    """A block that shares addresses with the prefix, and that somebody else is known to hold."""
    exact = mesh.blocks.get(prefix)
    blocks = mesh.blocks.values() if exact is None else (exact,)
    return next(
        (block for block in blocks if block.node not in ("", CONTESTED, name) and overlap(block.cidr, prefix)), None
    )


def _in_blocks_of(node: str, address: Address, mesh: Mesh) -> bool:
    reported = mesh.routes.get(node)
    return reported is not None and any(
        prefix.version == address.version and address in prefix for prefix in reported.prefixes
    )


def _is_pods(route: Route) -> bool:
    """The dataplane's route to a pod of this node. It has neither of our metrics, so it is never in ours' place."""
    return route.protocol == PODS and route.metric not in (METRIC, LAST_METRIC)


def _foreign_faults(
    desired: Mapping[tuple[Network, int], Route], foreign: Mapping[tuple[Network, int], Route]
) -> list[Fault]:
    wanted = {route.destination for route in desired.values() if route.metric == METRIC}
    return [
        Fault(
            f"a route to {route.destination} that is not ours (protocol {route.protocol}, metric {route.metric}) "
            "stands beside or in place of ours",
            f"remove it with `ip route del {route.destination} metric {route.metric}`, or move the pool elsewhere",
        )
        for route in foreign.values()
        if route.destination in wanted
    ]
