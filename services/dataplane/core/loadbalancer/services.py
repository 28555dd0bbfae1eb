"""Frontends and their backends as the load-balancing tables of the programs.

Owns numbers. Promises: a set of backends keeps its number while a front that had it still leads there, so flows and
affinity survive updates and restarts; its backends stand in one order on every node (``core.loadbalancer.choice``);
:func:`change` orders the steps so that a lookup in between finds old or new backends, never none, and a
client outside a load balancer's source ranges never gets in; what belongs to nobody any more goes first, so that
removals never wait for room (:func:`whole` and :func:`swept` are for tables that had none left). Frontends of one
Service port with the same choice of endpoints share a number, and so their backends and their clients' affinity. Who
stands in for a single backend has the index after it, and is no member: no client keeps it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.service_layout import (
    Backend,
    BackendKey,
    Member,
    MemberKey,
    ServiceKey,
    SourceRange,
    SourceRangeKey,
)
from services.dataplane.core.loadbalancer.choice import in_order
from services.dataplane.core.loadbalancer.endpoint_choice import Target
from services.dataplane.core.loadbalancer.frontends import BackendsOf, Frontend, Moved
from services.dataplane.core.loadbalancer.stale_sockets import UDP

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Tables:
    """What the four maps should hold, or hold."""

    services: dict[ServiceKey, lb.Service] = field(default_factory=dict)
    backends: dict[BackendKey, Backend] = field(default_factory=dict)
    members: dict[MemberKey, Member] = field(default_factory=dict)
    ranges: dict[SourceRangeKey, SourceRange] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableChange:
    """Steps in the order of the fields: what nobody needs any more, what is new, what it took the place of."""

    drop_members: tuple[MemberKey, ...]
    """All that are not wanted: a backend that is none any more is not to be remembered."""
    drop_services: tuple[ServiceKey, ...]
    drop_ranges: tuple[SourceRangeKey, ...]
    """Of numbers that no front leads to that stays; so are the backends after it."""
    drop_backends: tuple[BackendKey, ...]
    set_backends: dict[BackendKey, Backend]
    set_members: dict[MemberKey, Member]
    set_ranges: dict[SourceRangeKey, SourceRange]
    set_services: dict[ServiceKey, lb.Service]
    remove_ranges: tuple[SourceRangeKey, ...]
    remove_backends: tuple[BackendKey, ...]

    def __len__(self) -> int:
        """Entries that change."""
        sets = len(self.set_backends) + len(self.set_members) + len(self.set_ranges) + len(self.set_services)
        dropped = len(self.drop_members) + len(self.drop_services) + len(self.drop_ranges) + len(self.drop_backends)
        return sets + dropped + len(self.remove_ranges) + len(self.remove_backends)


def tables_of(
    frontends: Mapping[ServiceKey, Frontend],
    backends: Mapping[BackendsOf, frozenset[Target]],
    stand_ins: Mapping[BackendsOf, Target],
    before: Tables,
) -> Tables:
    """The tables for these fronts; ``before`` gives numbers that are kept."""
    return _tables(frontends, backends, stand_ins, before, highest(before))


def highest(tables: Tables) -> int:
    """The greatest number that a set of backends has."""
    return max((service.number for service in tables.services.values()), default=0)


def _tables(
    frontends: Mapping[ServiceKey, Frontend],
    backends: Mapping[BackendsOf, frozenset[Target]],
    stand_ins: Mapping[BackendsOf, Target],
    before: Tables,
    last: int,
) -> Tables:
    numbers = _numbers(frontends, before, last)
    tables = Tables()
    counts: dict[BackendsOf, int] = {}
    for shared, number in numbers.items():
        ordered = in_order(backends[shared])
        counts[shared] = len(ordered)
        _write(tables, number, ordered)
        if shared in stand_ins:
            address, port = stand_ins[shared]
            tables.backends[BackendKey(service=number, index=len(ordered))] = Backend(address=address, port=port)
    for key, frontend in frontends.items():
        number = numbers[frontend.backends]
        tables.services[key] = lb.Service(
            number=number,
            backends=counts[frontend.backends],
            affinity_seconds=frontend.affinity_seconds,
            flags=int(frontend.flags),
        )
        for network in frontend.ranges:
            tables.ranges[SourceRangeKey.of(number, network)] = SourceRange()
    return tables


def moved(
    frontends: Moved,
    backends: Mapping[BackendsOf, frozenset[Target]],
    stand_ins: Mapping[BackendsOf, Target],
    before: Tables,
    last: int,
) -> TableChange:
    """Steps by which these fronts, and nothing else, change. A set of backends that is new gets a number above
    ``last``. Costs what these fronts and their backends cost.
    """
    old = _part(frontends.before, before)
    return change(old, _tables(frontends.after, backends, stand_ins, old, last))


def takes_udp_backends(steps: TableChange, frontends: Iterable[ServiceKey], before: Tables) -> bool:
    """Whether one of these frontends, as the tables had them ``before``, is of UDP and loses a backend by the steps."""
    numbers = {member.service for member in steps.drop_members}
    return bool(numbers) and any(key.protocol == UDP and before.services[key].number in numbers for key in frontends)


def _part(frontends: Mapping[ServiceKey, Frontend], tables: Tables) -> Tables:
    """What the tables hold of these fronts."""
    part = Tables()
    for key, frontend in frontends.items():
        service = part.services[key] = tables.services[key]
        part.ranges.update((SourceRangeKey.of(service.number, network), SourceRange()) for network in frontend.ranges)
    for number, count in {(service.number, service.backends) for service in part.services.values()}:
        for index in range(count):
            at = BackendKey(service=number, index=index)
            entry = part.backends[at] = tables.backends[at]
            member = MemberKey(service=number, address=entry.address, port=entry.port)
            part.members[member] = tables.members[member]
        behind = BackendKey(service=number, index=count)
        if behind in tables.backends:
            part.backends[behind] = tables.backends[behind]
    return part


def apply(tables: Tables, steps: TableChange) -> None:
    """The tables after the steps."""
    tables.services.update(steps.set_services)
    tables.backends.update(steps.set_backends)
    tables.members.update(steps.set_members)
    tables.ranges.update(steps.set_ranges)
    for frontend in steps.drop_services:
        del tables.services[frontend]
    for backend in (*steps.drop_backends, *steps.remove_backends):
        del tables.backends[backend]
    for member in steps.drop_members:
        del tables.members[member]
    for network in (*steps.drop_ranges, *steps.remove_ranges):
        del tables.ranges[network]


def _numbers(frontends: Mapping[ServiceKey, Frontend], before: Tables, last: int) -> dict[BackendsOf, int]:
    """A number for each set of backends that has a front: one that such a front had, else a new one.

    A number whose fronts now belong to different Service ports is nobody's: kept by one, it would lead the others'
    clients to that one's backends until their own entries are written.
    """
    ports: dict[int, set[tuple[object, ...]]] = defaultdict(set)
    for key, frontend in frontends.items():
        if key in before.services:
            ports[before.services[key].number].add(frontend.backends.port_of)
    numbers: dict[BackendsOf, int] = {}
    free = {number for number, owners in ports.items() if len(owners) == 1}
    for key, frontend in frontends.items():
        old = before.services.get(key)
        if frontend.backends not in numbers and old is not None and old.number in free:
            numbers[frontend.backends] = old.number
            free.remove(old.number)
    for frontend in frontends.values():
        if frontend.backends not in numbers:
            last += 1
            numbers[frontend.backends] = last
    return numbers


def _write(tables: Tables, number: int, targets: Sequence[Target]) -> None:
    for index, (address, port) in enumerate(targets):
        tables.backends[BackendKey(service=number, index=index)] = Backend(address=address, port=port)
        tables.members[MemberKey(service=number, address=address, port=port)] = Member(index=index)


def change(actual: Tables, wanted: Tables) -> TableChange:
    """Steps from what the maps hold to what they should hold."""
    kept = {service.number for key, service in actual.services.items() if key in wanted.services}
    ranges = [key for key in actual.ranges if key not in wanted.ranges]
    backends = [key for key in actual.backends if key not in wanted.backends]
    return TableChange(
        drop_members=tuple(key for key in actual.members if key not in wanted.members),
        drop_services=tuple(key for key in actual.services if key not in wanted.services),
        drop_ranges=tuple(key for key in ranges if key.service not in kept),
        drop_backends=tuple(key for key in backends if key.service not in kept),
        set_backends=_differing(actual.backends, wanted.backends),
        set_members=_differing(actual.members, wanted.members),
        set_ranges=_differing(actual.ranges, wanted.ranges),
        set_services=_differing(actual.services, wanted.services),
        remove_ranges=tuple(key for key in ranges if key.service in kept),
        remove_backends=tuple(key for key in backends if key.service in kept),
    )


def whole(steps: TableChange, short: Collection[int]) -> TableChange:
    """The steps from ``set_services`` on, without those of numbers that are short of an entry: their fronts stay as
    they were, with the backends that they lead to.
    """
    return replace(
        steps,
        set_services={key: one for key, one in steps.set_services.items() if one.number not in short},
        remove_ranges=tuple(key for key in steps.remove_ranges if key.service not in short),
        remove_backends=tuple(key for key in steps.remove_backends if key.service not in short),
    )


def swept(actual: Tables, wanted: Tables, short: Collection[int]) -> TableChange:
    """Steps that take out what these numbers hold and should not, and the fronts that lead there, so that there is room
    for what they should hold: for a moment they serve nobody.
    """
    keep = Tables(
        services={key: one for key, one in actual.services.items() if one.number not in short},
        backends={k: one for k, one in actual.backends.items() if k.service not in short or k in wanted.backends},
        members={k: one for k, one in actual.members.items() if k.service not in short or k in wanted.members},
        ranges={k: one for k, one in actual.ranges.items() if k.service not in short or k in wanted.ranges},
    )
    return change(actual, keep)


def _differing(actual: Mapping[K, V], wanted: Mapping[K, V]) -> dict[K, V]:
    return {key: value for key, value in wanted.items() if actual.get(key) != value}
