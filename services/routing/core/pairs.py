"""The pairs of this node with the others: what each takes now, what is to be measured, and what the models need for it.

A pair is one other node, one family of pods' packets, and what the pools ask for of it: pools that ask for different
models have routes of their own to the same node. What a pair takes now is read off the kernel's routes: they are the
only memory of it that outlives the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kit.models import ENCRYPTS, HOST_GW
from kit.tunnels import METRIC
from proto.net import Address, Network
from services.routing.core.bgp_pairs import by_bgp
from services.routing.core.choice import Choice, choose
from services.routing.core.devices import in_order, wanted
from services.routing.core.evidence import Evidence, Way
from services.routing.core.faults import Fault
from services.routing.core.fib import Device, Route, Snapshot, Uplink
from services.routing.core.mesh import Asked, Mesh
from services.routing.core.models import MODELS
from services.routing.core.models.contract import NodeContext, Pair, Path, first


class PairKey(NamedTuple):
    """See the module."""

    peer: str
    family: int
    asked: Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the agent has seen since it started."""

    now: float = 0.0
    """Seconds of the monotonic clock."""
    evidence: Mapping[Way, Evidence] = field(default_factory=dict)
    unneeded: Mapping[str, float] = field(default_factory=dict)
    """Tunnel devices that nobody asks for and no route leads out by, and since when."""
    encrypted_since: Mapping[int, float] = field(default_factory=dict)
    """Since when the packets of a family must be encrypted."""
    learnt: Callable[[Network], bool] | None = None
    """Whether BGP leads to a prefix; None: this node speaks none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be measured of a way."""

    peer: str
    device: str
    most: int
    """The largest packet that would fit, in bytes."""
    soon: bool
    """Something waits for it, or would be changed by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The node itself: what it has, and the devices that it should have."""

    own: NodeContext
    devices: Mapping[str, Device]
    needed: frozenset[str]
    """Names of devices that are asked for or in use."""
    faults: tuple[Fault, ...]


def underlay_of(uplinks: Iterable[Uplink], loopback: Uplink | None = None) -> tuple[Address, ...]:
    """Addresses of this node on the shared network, as it tells them: of its uplinks, link-local ones left out. In a
    family in which ``loopback`` has one the uplinks' do not count: each of those is reached by its own link alone.
    """
    own = _usable((loopback,)) if loopback is not None else set()
    families = {address.version for address in own}
    found = own | {address for address in _usable(uplinks) if address.version not in families}
    return tuple(sorted(found, key=lambda address: (address.version, int(address))))


def _usable(links: Iterable[Uplink]) -> set[Address]:
    found = {interface.ip for link in links for interface in link.addresses}
    return {address for address in found if not (address.is_link_local or address.is_loopback)}


def outer_addresses(mesh: Mesh, own: NodeContext) -> dict[int, dict[str, Address]]:
    """The outer addresses of the other nodes by family, by node: IPv4 where both have such an address, else IPv6."""
    found: dict[int, dict[str, Address]] = {4: {}, 6: {}}
    for name, reported in mesh.routes.items():
        for family in (4, 6):
            outer = first(reported.underlay, family)
            if name != mesh.me and outer is not None and own.address(family) is not None:
                if outer not in own.underlay:
                    found[family][name] = outer
                break
    return found


def this_node(mesh: Mesh, kernel: Snapshot) -> Node:
    """What the models have to work with here."""
    links = tuple(uplink for uplink in kernel.uplinks if uplink.up)
    bare = NodeContext(links=links, underlay=underlay_of(kernel.uplinks, kernel.loopback), settings=mesh.settings)
    names = {name for asked in mesh.pools.values() for name in asked}
    names |= {ENCRYPTS} if mesh.settings.encrypted else set()
    used = {route.link for route in kernel.routes if route.is_ours and route.link}
    in_use = {one.tunnel.model for one in kernel.devices if one.tunnel and one.index in used and one.is_ours}
    peers = outer_addresses(mesh, bare)
    families = {4, *(family for family, nodes in peers.items() if nodes)}
    devices, faults = wanted(bare, names | in_use, families)
    there = in_order(kernel.devices, devices, mesh.settings_complete)
    needed = {one.name for one in kernel.devices if one.tunnel and one.tunnel.model in names | in_use}
    if not mesh.pools_complete:
        needed |= {one.name for one in kernel.devices}
    own = replace(bare, devices=there, wireguard=kernel.wireguard)
    return Node(own=own, devices=devices, needed=frozenset(needed), faults=tuple(faults))


def behind(mesh: Mesh, holds: Iterable[tuple[str, Network]]) -> dict[PairKey, list[Network]]:
    """The prefixes behind each pair. ``holds``: node and prefix."""
    found: dict[PairKey, list[Network]] = {}
    for name, prefix in holds:
        found.setdefault(PairKey(name, prefix.version, mesh.asked_for(prefix)), []).append(prefix)
    return found


def choices(
    mesh: Mesh,
    own: NodeContext,
    pairs: Mapping[PairKey, list[Network]],
    routes: Mapping[tuple[Network, int], Route],
    memory: Memory,
) -> dict[PairKey, Choice]:
    """What each pair takes. ``routes``: ours in the kernel."""
    found: dict[PairKey, Choice] = {}
    for key in sorted(pairs):
        pair = Pair(peer=mesh.routes[key.peer], family=key.family, own=own)
        hops = {(route.via, route.link) for prefix in pairs[key] if (route := routes.get((prefix, METRIC))) is not None}
        before = _current(pair, key.asked, hops)
        choice = replace(choose(pair, key.asked, before, memory.evidence, memory.now), before=before)
        if memory.learnt is not None:
            choice = by_bgp(choice, key.peer, pairs[key], memory.learnt, memory.evidence, speaks=bool(mesh.me))
        pool = mesh.pool_of(pairs[key][0])
        if key.family in mesh.settings.encrypted:
            found[key] = _about(choice, ("FelixConfiguration", "default"))
        else:
            found[key] = _about(choice, ("IPPool", mesh.names.get(pool, "") if pool is not None else ""))
    return found


def _current(pair: Pair, asked: Asked, hops: set[tuple[Address | None, int]]) -> str:
    """The model that routes to the other node take now; of several the one to be preferred; empty when none does."""
    if not hops:
        return ""
    for name in dict.fromkeys((*asked, *MODELS)):
        path = MODELS[name].path(pair) if name in MODELS else None
        if isinstance(path, Path) and (path.via, path.link) in hops:
            return name
    return ""


def _about(choice: Choice, asking: tuple[str, str]) -> Choice:
    """The object that asks for more than packets as they are is told what cannot be done."""
    if not asking[1] or choice.asked == (HOST_GW.name,) or not choice.faults:
        return choice
    faults = (replace(fault, about=fault.about or asking) for fault in choice.faults)
    return replace(choice, faults=tuple(faults))


def targets(found: Mapping[PairKey, Choice]) -> dict[Way, Target]:
    """What is to be measured: each way of a pair that asks for more than packets as they are, or waits for a change."""
    ways: dict[Way, Target] = {}
    for key, choice in found.items():
        current = choice.path.model if choice.path is not None else ""
        if choice.asked in ((HOST_GW.name,), ()) and current in (HOST_GW.name, "") and not choice.pending:
            continue
        several = len(choice.asked) > 1
        for path in choice.candidates:
            if path.way is None:
                continue
            soon = choice.state in ("pending", "none") or (several and (choice.failing or path.model == current))
            target = Target(peer=key.peer, device=path.device, most=path.mtu, soon=soon)
            other = ways.get(path.way)
            if other is not None:
                target = replace(target, most=max(target.most, other.most), soon=soon or other.soon)
            ways[path.way] = target
    return ways


def shared_addresses(mesh: Mesh) -> list[Fault]:
    """Nodes that tell one address, when there are tunnels: what is sent there reaches one of them."""
    owners: dict[Address, str] = {}
    faults: list[Fault] = []
    for name in sorted(mesh.routes):
        for address in mesh.routes[name].underlay:
            other = owners.setdefault(address, name)
            if other != name and mesh.me not in (other, name):
                faults.append(
                    Fault(
                        f"nodes {other} and {name} both tell that they have {address}",
                        "give each node an address of its own; if one was taken over, take its key from it",
                        of_others=True,
                    )
                )
                break
    return faults
