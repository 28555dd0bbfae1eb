"""Services and EndpointSlices as the load-balancing tables of the socket programs.

Owns the choice of backends: of a Service port's endpoints of the same family those that are ready; when none is, those
that still serve while they terminate (KEP-1669); with ``internalTrafficPolicy: Local`` only this node's. Promises:
numbers and slots are stable (a backend keeps its slot, a hole is filled from the end), so flows and affinity survive
updates and restarts; :func:`change` orders the steps so that a lookup in between finds old or new backends, never
none. Only TCP and UDP on cluster addresses; headless Services have none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from proto.net import Address
from proto.objects import EndpointSlice, Service, ServicePort, SliceEndpoint
from services.dataplane.core import service_layout as lb
from services.dataplane.core.service_layout import Backend, BackendKey, Member, MemberKey, ServiceKey

BALANCED = (6, 17)
"""Protocols that the socket programs translate."""

K = TypeVar("K")
V = TypeVar("V")

Target = tuple[Address, int]
"""Address and port of a backend."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What the three maps should hold, or hold."""

    services: dict[ServiceKey, lb.Service] = field(default_factory=dict)
    backends: dict[BackendKey, Backend] = field(default_factory=dict)
    members: dict[MemberKey, Member] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableChange:
    """Steps in the order of the fields."""

    set_backends: dict[BackendKey, Backend]
    set_members: dict[MemberKey, Member]
    set_services: dict[ServiceKey, lb.Service]
    remove_services: tuple[ServiceKey, ...]
    remove_backends: tuple[BackendKey, ...]
    remove_members: tuple[MemberKey, ...]

    def __bool__(self) -> bool:
        """True when anything changes."""
        return any((self.set_backends, self.set_members, self.set_services)) or any(
            (self.remove_services, self.remove_backends, self.remove_members)
        )


def slots_of(tables: Tables) -> dict[ServiceKey, tuple[Target, ...]]:
    """The order in which each Service's backends stand now; what the next tables are built upon."""
    found: dict[ServiceKey, tuple[Target, ...]] = {}
    for key, service in tables.services.items():
        entries = [tables.backends.get(BackendKey(service=service.number, index=i)) for i in range(service.backends)]
        found[key] = tuple((entry.address, entry.port) for entry in entries if entry is not None)
    return found


def tables_of(services: Iterable[Service], slices: Iterable[EndpointSlice], node: str, before: Tables) -> Tables:
    """The tables for these objects; ``before`` gives numbers and slots that are kept."""
    by_service: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for part in slices:
        if part.service:
            by_service[part.namespace, part.service].append(part)
    slots = slots_of(before)
    numbers = {key: value.number for key, value in before.services.items()}
    highest = max(numbers.values(), default=0)
    tables = Tables()
    for service in sorted(services, key=lambda one: (one.namespace, one.name)):
        for key, targets in _fronts(service, by_service[service.namespace, service.name], node):
            number = numbers.get(key, 0)
            if not number:
                highest += 1
                number = highest
            placed = place(slots.get(key, ()), targets)
            _write(tables, key, number, placed, service.affinity_seconds)
    return tables


def _fronts(service: Service, slices: Sequence[EndpointSlice], node: str) -> Iterable[tuple[ServiceKey, set[Target]]]:
    for address in service.cluster_ips:
        for port in service.ports:
            if port.protocol in BALANCED:
                key = ServiceKey(address=address, port=port.port, protocol=port.protocol)
                yield key, _targets(service, port, slices, address.version, node)


def _targets(
    service: Service, port: ServicePort, slices: Sequence[EndpointSlice], version: int, node: str
) -> set[Target]:
    ready: set[Target] = set()
    leaving: set[Target] = set()
    for part in slices:
        number = next((p.port for p in part.ports if p.name == port.name and p.protocol == port.protocol), None)
        if number is None:
            continue
        for endpoint in part.endpoints:
            if not endpoint.addresses or endpoint.addresses[0].version != version:
                continue
            if service.internal_policy == "Local" and endpoint.node != node:
                continue
            if _takes_new(endpoint, service.publish_not_ready):
                ready.add((endpoint.addresses[0], number))
            elif endpoint.serving and endpoint.terminating:
                leaving.add((endpoint.addresses[0], number))
    return ready or leaving


def _takes_new(endpoint: SliceEndpoint, not_ready_too: bool) -> bool:
    return not_ready_too or (endpoint.ready and not endpoint.terminating)


def place(before: Sequence[Target], targets: Iterable[Target]) -> tuple[Target, ...]:
    """The targets in slots: those that stay keep theirs, holes are filled by new ones, then from the end."""
    wanted = set(targets)
    fresh = sorted(wanted - set(before), key=lambda target: (target[0].packed, target[1]), reverse=True)
    slots: list[Target | None] = [target if target in wanted else None for target in dict.fromkeys(before)]
    for index, slot in enumerate(slots):
        if slot is None and fresh:
            slots[index] = fresh.pop()
    slots += reversed(fresh)
    while None in slots:
        last = slots.pop()
        if last is not None:
            slots[slots.index(None)] = last
    return tuple(slot for slot in slots if slot is not None)


def _write(tables: Tables, key: ServiceKey, number: int, targets: Sequence[Target], affinity: int) -> None:
    tables.services[key] = lb.Service(number=number, backends=len(targets), affinity_seconds=affinity)
    for index, (address, port) in enumerate(targets):
        tables.backends[BackendKey(service=number, index=index)] = Backend(address=address, port=port)
        tables.members[MemberKey(service=number, address=address, port=port)] = Member(index=index)


def change(actual: Tables, wanted: Tables) -> TableChange:
    """Steps from what the maps hold to what they should hold."""
    return TableChange(
        set_backends=_differing(actual.backends, wanted.backends),
        set_members=_differing(actual.members, wanted.members),
        set_services=_differing(actual.services, wanted.services),
        remove_services=tuple(key for key in actual.services if key not in wanted.services),
        remove_backends=tuple(key for key in actual.backends if key not in wanted.backends),
        remove_members=tuple(key for key in actual.members if key not in wanted.members),
    )


def _differing(actual: Mapping[K, V], wanted: Mapping[K, V]) -> dict[K, V]:
    return {key: value for key, value in wanted.items() if actual.get(key) != value}
