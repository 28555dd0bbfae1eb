"""Tunnel devices and their entries: which there should be, and the operations that lead there.

A device is there while a pool asks for its model or a route leads out by it, and :data:`LINGERS` seconds more, so that
packets of nodes that have not heard yet are taken. Its entries are there for every other node that tells an address,
whatever that node says it can do: a way can only be proved when it is laid.

Refuses: any change of an interface of the same name that is not ours. Nothing is removed that the state would want if
all of it were here: neither a device before the pools are known, nor an entry before all nodes have told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kit.models import LEAST_MTU
from kit.tunnels import DEVICES, vtep_mac
from proto.net import Address
from services.routing.core.faults import Fault
from services.routing.core.fib import (
    AddDevice,
    AddEntry,
    Device,
    Entry,
    Forwarding,
    MendDevice,
    Neighbour,
    Operation,
    RemoveDevice,
    RemoveEntry,
    SeenDevice,
)
from services.routing.core.models import MODELS
from services.routing.core.models.contract import Model, NodeContext

LINGERS = 60.0
"""Seconds that a device stays after the last route and the last wish for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """The devices and entries of one pass."""

    additions: tuple[Operation, ...] = ()
    removals: tuple[Operation, ...] = ()
    faults: tuple[Fault, ...] = ()


def wanted(own: NodeContext, names: Iterable[str], families: Iterable[int]) -> tuple[dict[str, Device], list[Fault]]:
    """Devices of these models for pairs that speak these families to each other, by name; and why some cannot be."""
    found: dict[str, Device] = {}
    faults: list[Fault] = []
    for name in sorted(set(names) & set(MODELS)):
        for family in sorted(set(families) & set(DEVICES.get(name, {}))):
            device = MODELS[name].device(own, family)
            if isinstance(device, Fault):
                faults.append(device)
            elif device is not None:
                found[device.name] = device
    return found, faults


def in_order(
    seen: Iterable[SeenDevice], devices: Mapping[str, Device], known: bool
) -> dict[tuple[str, int], SeenDevice]:
    """Those that routes may lead out by, by model and family of the outer addresses. ``known``: what is set of the
    models is; else one that does something else than the settings say is believed.
    """
    found: dict[tuple[str, int], SeenDevice] = {}
    for one in seen:
        device = devices.get(one.name)
        if not one.is_ours or not one.up or one.tunnel is None:
            continue
        if device is None or not known or one.tunnel == device.tunnel:
            found[one.tunnel.model, one.tunnel.local.version] = one
    return found


def device_operations(
    seen: Iterable[SeenDevice], devices: Mapping[str, Device], needed: Iterable[str], idle: Iterable[str], known: bool
) -> Laid:
    """``needed``: names of devices that are asked for or in use; ``idle``: those that were not for long enough."""
    there = {one.name: one for one in seen}
    additions: list[Operation] = []
    faults: list[Fault] = []
    for name, device in devices.items():
        one = there.get(name)
        if one is None:
            additions.append(AddDevice(device))
        elif not one.is_ours:
            faults.append(
                Fault(
                    f"this node has an interface {name} that is not ours, so {device.tunnel.model} cannot be laid",
                    f"rename or remove it (`ip link del {name}`)",
                )
            )
        elif one.kind != device.kind or (one.tunnel != device.tunnel and (known or one.tunnel is None)):
            additions += [RemoveDevice(name, one.index), AddDevice(device)]
        elif not (one.up and one.whole and one.mtu == device.mtu and one.alias == device.alias) and (
            known or one.tunnel == device.tunnel
        ):
            additions.append(MendDevice(device, one.index))
    stay = {*devices, *needed}
    removals = [RemoveDevice(name, there[name].index) for name in idle if name in there and name not in stay]
    return Laid(additions=tuple(additions), removals=tuple(removals), faults=tuple(faults))


def entry_operations(
    devices: Mapping[tuple[str, int], SeenDevice],
    peers: Mapping[int, Mapping[str, Address]],
    present: frozenset[Entry],
    *,
    complete: bool,
    models: Mapping[str, Model] = MODELS,
) -> Laid:
    """``peers``: by family, the outer addresses of the other nodes, by node; ``complete``: all nodes have told."""
    desired: dict[object, Entry] = {}
    faults: list[Fault] = []
    for (name, family), device in devices.items():
        ends: dict[bytes, str] = {}
        for node, outer in sorted(peers.get(family, {}).items()):
            other = ends.setdefault(vtep_mac(outer), node)
            if other != node and peers[family][other] != outer:
                faults.append(
                    Fault(
                        f"nodes {other} and {node} have addresses ({outer}) of which the same MAC address is made",
                        f"give node {node} another IPv{family} address",
                        of_others=True,
                    )
                )
                continue
            entries = models[name].entries(device.index, outer)
            desired |= {_key(entry): entry for entry in entries if _takes(device, entry)}
    links = {device.index for device in devices.values()}
    there = {_key(entry): entry for entry in present}
    additions = [AddEntry(entry) for key, entry in desired.items() if there.get(key) != entry]
    stale = [entry for key, entry in there.items() if key not in desired and entry.link in links]
    removals = [RemoveEntry(entry) for entry in stale] if complete else []
    return Laid(additions=tuple(additions), removals=tuple(removals), faults=tuple(faults))


def _takes(device: SeenDevice, entry: Entry) -> bool:
    """A link smaller than IPv6 needs has none of it, and the kernel takes no such neighbour."""
    return device.mtu >= LEAST_MTU or isinstance(entry, Forwarding) or entry.address.version == 4


def _key(entry: Entry) -> object:
    if isinstance(entry, Neighbour):
        return entry.link, entry.address
    return entry.link, entry.mac if isinstance(entry, Forwarding) else entry
