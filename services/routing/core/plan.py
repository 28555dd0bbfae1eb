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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import islice

from kit.models import HOST_GW
from kit.prefixes import overlap
from kit.tunnels import DEVICES, LAST_METRIC, METRIC
from proto.addresses import CONTESTED, IPAM_HOLDER, Block
from proto.net import Address, Network
from proto.routes import NodeRoutes, WireguardKey
from services.routing.core.choice import Choice
from services.routing.core.devices import LINGERS, device_operations, entry_operations
from services.routing.core.encryption import withheld
from services.routing.core.evidence import Way
from services.routing.core.faults import Fault
from services.routing.core.fib import (
    PODS,
    Device,
    Kind,
    Operation,
    Remove,
    Replace,
    Route,
    Snapshot,
    Uplink,
)
from services.routing.core.mesh import Mesh, holder_of
from services.routing.core.models.wireguard import prohibited
from services.routing.core.pairs import (
    Memory,
    PairKey,
    Target,
    behind,
    choices,
    outer_addresses,
    shared_addresses,
    targets,
    this_node,
    underlay_of,
)

MOST_JUDGED = 16
"""Prefixes of one node, of those that it does not hold, that are compared with all blocks to say whose they are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations in order (additions first) and what stands in the way."""

    operations: tuple[Operation, ...]
    faults: tuple[Fault, ...]
    desired: Mapping[tuple[Network, int], Route]
    pairs: Mapping[PairKey, Choice] = field(default_factory=dict)
    targets: Mapping[Way, Target] = field(default_factory=dict)
    """What is to be measured."""
    devices: Mapping[str, Device] = field(default_factory=dict)
    """Tunnel devices that there should be, by name."""
    needed: frozenset[str] = frozenset()
    """Names of tunnel devices that are asked for or in use."""
    received: tuple[str, ...] = ()
    """Models by which this node receives packets now."""
    tunnelled: bool = False
    """Some pool asks for more than packets as they are, or did: other nodes measure their ways to this one."""

    @property
    def changes(self) -> tuple[Replace | Remove, ...]:
        """Of the operations those on routes."""
        return tuple(one for one in self.operations if isinstance(one, Replace | Remove))


def plan(mesh: Mesh, kernel: Snapshot, memory: Memory | None = None) -> Plan:
    """From the present state of both to what is to be done. ``memory``: without it nothing was measured."""
    memory = memory or Memory()
    node = this_node(mesh, kernel)
    ours = {route.key: route for route in kernel.routes if route.is_ours}
    foreign = {route.key: route for route in kernel.routes if not route.is_ours and not _is_pods(route)}
    pairs = behind(mesh, _behind(mesh))
    chosen = {
        key: withheld(choice, key.family, memory.encrypted_since, memory.now)
        for key, choice in choices(mesh, node.own, pairs, ours, memory).items()
    }
    desired = _desired(mesh, pairs, chosen)
    idle = _idle(kernel, desired, node.needed, memory)
    devices = device_operations(kernel.devices, node.devices, node.needed, idle, mesh.settings_complete)
    peers = outer_addresses(mesh, node.own)
    entries = entry_operations(node.own.devices, peers, kernel.entries, complete=mesh.all_reported)
    faults = [
        *dict.fromkeys(fault for choice in chosen.values() for fault in choice.faults),
        *_faults(mesh, kernel),
        *node.faults,
        *kernel.wireguard.faults,
        *devices.faults,
        *entries.faults,
        *(shared_addresses(mesh) if node.needed or node.devices else ()),
        *_foreign_faults(desired, foreign),
    ]
    replaced = [Replace(route) for key, route in desired.items() if ours.get(key) != route and key not in foreign]
    unasked = [route for key, route in ours.items() if key not in desired]
    holder = holder_of(mesh.blocks, mesh.claims if unasked else ())
    removed = [Remove(route) for route in unasked if may_remove(route, mesh, holder)]
    return Plan(
        (*devices.additions, *entries.additions, *replaced, *removed, *entries.removals, *devices.removals),
        tuple(faults),
        desired,
        pairs=chosen,
        targets=targets(chosen),
        devices=node.devices,
        needed=node.needed,
        received=_received(kernel, node.devices.keys(), {model for model, _ in node.own.devices}),
        tunnelled=bool(kernel.devices) or any(asked != (HOST_GW.name,) for asked in mesh.pools.values()),
    )


def _received(kernel: Snapshot, devices: Iterable[str], models: Iterable[str]) -> tuple[str, ...]:
    """host-gw, and each model all of whose devices take packets."""
    seen = {one.name: one for one in kernel.devices}
    lacking = {one.tunnel.model for one in kernel.devices if one.tunnel and not (one.receives and one.whole)}
    missing = {name for name in devices if name not in seen}
    ready = [name for name in sorted(models) if name not in lacking and not missing & _devices_of(name)]
    return (HOST_GW.name, *ready)


def _idle(
    kernel: Snapshot, desired: Mapping[tuple[Network, int], Route], needed: frozenset[str], memory: Memory
) -> list[str]:
    """Tunnel devices of ours that nobody has needed for a while, and no route will."""
    used = {route.link for route in desired.values()}
    return [
        one.name
        for one in kernel.devices
        if one.is_ours
        and one.name not in needed
        and one.index not in used
        and memory.now - memory.unneeded.get(one.name, memory.now) >= LINGERS
    ]


def _desired(
    mesh: Mesh, pairs: Mapping[PairKey, list[Network]], chosen: Mapping[PairKey, Choice]
) -> dict[tuple[Network, int], Route]:
    """All routes of ours that should be there."""
    refused = _refused(mesh)
    others = (cidr for cidr in mesh.blocks if cidr not in refused)
    secret = prohibited(mesh.pools.keys(), others, mesh.settings.encrypted)
    routes = [Route(destination=cidr, kind=Kind.PROHIBIT, metric=LAST_METRIC) for cidr in secret]
    routes += [Route(destination=cidr, kind=Kind.UNREACHABLE, metric=LAST_METRIC) for cidr in refused]
    for key, prefixes in pairs.items():
        if (path := chosen[key].path) is not None:
            mtu = path.mtu if path.mtu < path.link_mtu else 0
            routes += [
                Route(
                    destination=prefix,
                    via=path.via,
                    link=path.link,
                    mtu=mtu,
                    onlink=path.onlink,
                    source=path.source,
                )
                for prefix in prefixes
            ]
    return {route.key: route for route in routes}


def _behind(mesh: Mesh) -> Iterable[tuple[str, Network]]:
    """The prefixes that are reached through another node: its blocks, and kept addresses outside of them."""
    for name, reported in mesh.routes.items():
        for prefix in reported.prefixes:
            if name != mesh.me and _holds(name, prefix, mesh):
                yield name, prefix
    for claim in mesh.claims:
        if claim.node in mesh.routes and claim.node != mesh.me and not _in_blocks_of(claim.node, claim.address, mesh):
            yield claim.node, ip_network(claim.address)


def _faults(mesh: Mesh, kernel: Snapshot) -> list[Fault]:
    """What is wrong whatever is asked for."""
    missing = [
        Fault(f"this node has no interface {name}", "correct AIRMESH_UPLINKS (AIRMESH_LOOPBACK) or make the interface")
        for name in kernel.missing
    ]
    impostors = [
        Fault(
            f"node {writer} tells routes in the name of {name[:64]!r}, which is not believed",
            "look at that node: its agent says what no agent of ours does; if it was taken over, take its key from it",
            of_others=True,
        )
        for writer, name in mesh.impostors
    ]
    return missing + impostors + _overclaims(mesh)


def may_remove(route: Route, mesh: Mesh, holder: Callable[[Network], str]) -> bool:
    """Whether a route of ours that nothing asks for is surely not needed.

    Blocks and claims must be known whole, and whoever holds the block or the kept address must have told everything of
    its own: a node that is silent under a new epoch of ``routes`` may still be there. ``holder``: see ``holder_of``.
    """
    if not (mesh.blocks_complete and mesh.claims_complete):
        return False
    if route.kind is Kind.PROHIBIT:
        return mesh.pools_complete and mesh.settings_complete
    if route.kind is not Kind.UNICAST:
        return True
    name = holder(route.destination)
    return name in ("", mesh.me, IPAM_HOLDER) or name in mesh.reported


def offered(
    me: str,
    blocks: Mapping[Network, Block],
    uplinks: Iterable[Uplink],
    models: tuple[str, ...] = (HOST_GW.name,),
    wireguard: tuple[WireguardKey, ...] = (),
    loopback: Uplink | None = None,
) -> NodeRoutes:
    """What this node tells the others: its addresses on the shared links, their smallest MTU, its blocks, and the
    models by which it receives packets now.
    """
    links = tuple(uplinks)
    prefixes = sorted(
        (cidr for cidr, block in blocks.items() if block.node == me),
        key=lambda cidr: (cidr.version, int(cidr.network_address)),
    )
    mtu = min((uplink.mtu for uplink in links), default=0)
    return NodeRoutes(
        node=me,
        underlay=underlay_of(links, loopback),
        prefixes=tuple(prefixes),
        models=models,
        mtu=mtu,
        wireguard=wireguard,
    )


def _devices_of(model: str) -> set[str]:
    return set(DEVICES.get(model, {}).values())


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
