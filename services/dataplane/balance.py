"""Where a Service's connections go: the tables of the socket programs and of packets from outside.

Owns ``am_services``, ``am_backends``, ``am_members`` and ``am_src_ranges``. Promises: nothing changes before the
watches are complete (an empty bucket is not an empty cluster); nothing is computed again while what it depends on is
the same; a claim that is not honoured is told. A mirror of the maps in memory makes a change cost what changed; a full
pass reads the maps themselves, so that what was deleted by hand returns.

When more is asked for than the tables take they grow, and when they cannot, the newest Services of the namespace that
asks for most are refused (:mod:`core.shares`): whole, never half, told on them, and served as soon as there is room.
Everybody else's are served, and what is to go goes, whatever finds no room. A namespace whose endpoints make much work
waits its turn (:mod:`core.turns`), and much work is done beside the loop, so that nobody else waits for it.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from chassis.log import Log
from proto.events import ObjectFault
from proto.net import Address, Network
from proto.objects import EndpointSlice, IPPool, KubernetesObject, Node, Pod, Service
from services.dataplane.core import fronts, service_demand, services
from services.dataplane.core.endpoint_choice import whose_slices_changed
from services.dataplane.core.fronts import HostPortPod, Plan, Refusal, fronts_of
from services.dataplane.core.here import Here
from services.dataplane.core.service_demand import Owner
from services.dataplane.core.shares import Pressure, Refused, Shares, usable
from services.dataplane.core.turns import Turns
from services.dataplane.core.wire import Record
from services.dataplane.feed import Feed
from services.dataplane.kernel.maps import Table, TableFull
from services.dataplane.kernel.tables import Tables
from services.dataplane.one_thread import OneThread
from services.dataplane.registry import Registry

ZONE = "topology.kubernetes.io/zone"
NEEDED: tuple[type[KubernetesObject], ...] = (Service, EndpointSlice, Node, Pod, IPPool)
_ENDED = ("Succeeded", "Failed")
NAMED = 5
"""Namespaces that a note names."""
INLINE = 2000
"""Entries whose change is reckoned on the loop: some 20 ms."""
K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """All that fronts depend on; equal inputs give equal fronts."""

    services: Sequence[Service]
    slices: Sequence[EndpointSlice]
    pods: Sequence[HostPortPod]
    here: Here


def _moved_services(before: _Inputs | None, now: _Inputs) -> frozenset[tuple[str, str]] | None:
    """Namespace and name of the Services whose slices changed; None when anything else did too, or all is unknown."""
    if before is None or (before.services, before.pods, before.here) != (now.services, now.pods, now.here):
        return None
    return whose_slices_changed(before.slices, now.slices)


class Balancer:
    """Keeps the Service tables."""

    def __init__(  # noqa: PLR0913 - what it reads, and whom it tells, each by name
        self,
        tables: Tables,
        feed: Feed,
        registry: Registry,
        log: Log,
        external: tuple[Network, ...],
        *,
        thread: OneThread,
        make_room: Callable[[Mapping[str, int]], Awaitable[None]],
        tell: Callable[[Iterable[ObjectFault]], int],
        note: Callable[[str, str], None],
    ) -> None:
        """``thread`` does what takes long, ``make_room`` is asked before more is written than tables take, ``tell`` is
        given all Services that are refused, ``note`` a sentence about them.
        """
        self._note = note
        self._thread = thread
        self._tables = tables
        self._feed = feed
        self._registry = registry
        self._log = log
        self._external = external
        self._make_room = make_room
        self._tell_objects = tell
        self._shares: Shares[Owner] = Shares(len(service_demand.TABLES))
        self._claimed: _Inputs | None = None
        self._turns = Turns()
        self._behind: frozenset[tuple[str, str]] = frozenset()
        self._without: frozenset[Owner] = frozenset()
        self._late: frozenset[Owner] = frozenset()
        self._actual: services.Tables | None = None
        self._applied: _Inputs | None = None
        self._plan = Plan()
        self._ever = False
        self._told: frozenset[Refusal] = frozenset()
        self.refused: Mapping[Owner, Refused] = {}
        """Services and pods with host ports that have no entry, since others ask for too much or they do."""
        self.own_addresses: frozenset[Address] = frozenset()
        """Addresses of this node's interfaces."""

    @property
    def applied(self) -> bool:
        """Whether the tables have been what they should be since this agent started."""
        return self._ever

    @property
    def asked(self) -> Mapping[str, int]:
        """Entries that all Services ask for, by table."""
        return dict(zip(service_demand.TABLES, self._shares.total, strict=True))

    def pressure(self) -> Iterable[Pressure]:
        """How full its tables are."""
        for table, (name, asked, room) in enumerate(
            zip(service_demand.TABLES, self._shares.total, self._room(), strict=True)
        ):
            groups = Counter(why.group for why in self.refused.values() if why.table == table)
            yield Pressure(name, asked, room, groups)

    async def apply(self, *, full: bool) -> float:
        """Makes the tables what they should be; returns after how many seconds it wants to be called again, 0 when
        nothing is left to do. Without complete watches it does nothing: Services stay as they were.
        """
        if not all(self._feed.complete(kind) for kind in NEEDED):
            return 0
        inputs = self._inputs()
        if inputs.here.addresses:
            self._tables.speak_as(inputs.here.addresses)
        if not full and self._actual is not None and inputs == self._applied and not self._behind:
            return 0
        names = None if full or self._actual is None else _moved_services(self._applied, inputs)
        self._claim(inputs, names)
        asked = self.asked
        await self._make_room({**asked, "am_members": asked["am_backends"]})
        self.refused = self._shares.refused(self._room())
        if full:
            self._actual = None
        if names is not None and self._without == self.refused.keys():
            now = time.monotonic()
            work = {name: self._entries_of(name) for name in names | self._behind}
            turn, later = self._turns.take(work, now)
            self._behind = later
            if sum(work[name] for name in turn) <= INLINE:
                moved = self._move(inputs, turn)
            else:
                moved = await self._run(partial(self._move, inputs, turn))
            if not moved:
                await self._run(partial(self._renew, inputs))
        else:
            self._behind = frozenset()
            await self._run(partial(self._renew, inputs))
        self._applied, self._ever = inputs, True
        self._tell(self._plan.refused)
        return self._turns.wait(self._behind, time.monotonic())

    async def _run(self, work: Callable[[], T]) -> T:
        """What may take long, on a thread of its own: the loop turns meanwhile."""
        return await self._thread.run(work, timeout=None)

    def _entries_of(self, name: tuple[str, str]) -> int:
        claim = self._shares.claims.get(("service", *name))
        return sum(claim.amounts) if claim else 0

    def _claim(self, inputs: _Inputs, moved: frozenset[tuple[str, str]] | None) -> None:
        """What everybody asks for, reckoned anew for whom something changed; ``moved``: it is known that only the
        slices of these did.
        """
        before, self._claimed = self._claimed, inputs
        names: frozenset[tuple[str, str]] | set[tuple[str, str]] | None
        if moved is not None:
            names = moved
        elif before is None or (before.here, before.pods) != (inputs.here, inputs.pods):
            names = None
            self._shares = Shares(len(service_demand.TABLES))
            self._shares.put(service_demand.of_pod(one, inputs.here) for one in inputs.pods)
        else:
            there = {(one.namespace, one.name): one for one in before.services}
            fresh = {
                (one.namespace, one.name)
                for one in inputs.services
                if there.pop((one.namespace, one.name), None) is not one
            }
            self._shares.drop(("service", *name) for name in there)
            names = fresh | whose_slices_changed(before.slices, inputs.slices)
        if names is not None and not names:
            return
        slices: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
        for part in inputs.slices:
            if names is None or (part.namespace, part.service) in names:
                slices[part.namespace, part.service].append(part)
        self._shares.put(
            service_demand.of_service(one, slices[one.namespace, one.name], inputs.here)
            for one in inputs.services
            if names is None or (one.namespace, one.name) in names
        )

    def _room(self) -> tuple[int, ...]:
        tables = self._tables
        backends = min(tables.backends.entries, tables.members.entries)
        return usable(tables.services.entries), usable(backends), usable(tables.source_ranges.entries)

    def _move(self, inputs: _Inputs, names: frozenset[tuple[str, str]]) -> bool:
        """Only the slices of these Services have changed. False when that cannot be written so."""
        actual, self._actual = self._actual, None  # unknown until every step has succeeded
        assert actual is not None
        targets = fronts.moved(self._plan, inputs.services, inputs.slices, names, inputs.here)
        steps = services.moved(self._plan, targets, actual)
        if self._write(steps):
            return False
        self._plan.backends.update(targets)
        services.apply(actual, steps)
        self._actual = actual
        return True

    def _renew(self, inputs: _Inputs) -> None:
        """Everything. Whoever finds no room after all (the kernel has no memory) is refused too, until next time."""
        actual, self._actual = self._actual, None
        if actual is None:
            actual = self._read()
        self._without, self._late = frozenset(self.refused), frozenset()
        without = self._without
        while True:
            self._plan = fronts_of(inputs.services, inputs.slices, inputs.pods, inputs.here, without)
            wanted = services.tables_of(self._plan, actual)
            short = self._write(services.change(actual, wanted))
            if short:
                actual = self._read()
                self._write(services.swept(actual, wanted, short))
                actual = self._read()
                short = self._write(services.change(actual, wanted))
            if not short:
                self._actual = wanted
                return
            whose = {key: front.backends.owner for key, front in self._plan.fronts.items()}
            late = {whose[key] for key, one in wanted.services.items() if one.number in short}
            self._log.error("services-without-room", services=len(late), first=min(late), why="the kernel took no more")
            without |= late
            self._late |= late
            self._without = frozenset()  # not what the shares say: the next pass looks at everything again
            actual = self._read()

    def _inputs(self) -> _Inputs:
        return _Inputs(
            services=self._feed.all_of(Service),
            slices=self._feed.all_of(EndpointSlice),
            pods=self._host_port_pods(),
            here=self._here(),
        )

    def _here(self) -> Here:
        feed = self._feed
        node = feed.node_object()
        return Here(
            node=feed.node,
            zone=dict(node.labels).get(ZONE, "") if node else "",
            addresses=node.addresses if node else (),
            own=self.own_addresses,
            nodes=frozenset(address for one in feed.all_of(Node) for address in one.addresses),
            pods=tuple(pool.cidr for pool in feed.all_of(IPPool) if not pool.disabled),
            former_pods=tuple(pool.cidr for pool in feed.all_of(IPPool) if pool.disabled),
            external=self._external,
        )

    def _host_port_pods(self) -> list[HostPortPod]:
        """Pods with host ports whose links are up; one that has ended leaves its ports to its successor."""
        wanted = {pod.uid: pod for pod in self._feed.all_of(Pod) if pod.host_ports and pod.phase not in _ENDED}
        if not wanted:
            return []
        return [
            HostPortPod(pod=wanted[one.first.pod_uid], addresses=one.addresses)
            for one in self._registry.up.values()
            if one.first.pod_uid in wanted
        ]

    def _read(self) -> services.Tables:
        tables = self._tables
        return services.Tables(
            tables.services.items(), tables.backends.items(), tables.members.items(), tables.source_ranges.items()
        )

    def _write(self, steps: services.TableChange) -> set[int]:
        """In an order in which no lookup in between finds less than it should, or lets in more, and no removal waits
        for an addition. Returns the numbers that something found no room for; their fronts are as they were.
        """
        tables = self._tables
        tables.members.apply({}, steps.drop_members)
        tables.services.apply({}, steps.drop_services)
        tables.source_ranges.apply({}, steps.drop_ranges)
        tables.backends.apply({}, steps.drop_backends)
        short = {key.service for key in _set(tables.backends, steps.set_backends)}
        short |= {key.service for key in _set(tables.members, steps.set_members)}
        short |= {key.service for key in _set(tables.source_ranges, steps.set_ranges)}
        rest = services.whole(steps, short) if short else steps
        late = {rest.set_services[key].number for key in _set(tables.services, rest.set_services)}
        if late:
            rest = services.whole(rest, late)
        tables.source_ranges.apply({}, rest.remove_ranges)
        tables.backends.apply({}, rest.remove_backends)
        return short | late

    def _tell(self, refused: Sequence[Refusal]) -> None:
        now = frozenset(refused)
        for refusal in sorted(now - self._told, key=lambda one: (one.claimant, one.why)):
            self._log.warning("front-refused", whose=refusal.claimant, why=refusal.why, remedy=refusal.remedy)
        self._told = now
        self._tell_objects(self._object_faults())
        groups = Counter(why.group for why in self.refused.values())
        said = ", ".join(f"{count} of namespace {group}" for group, count in sorted(groups.items())[:NAMED])
        left = f" and of {len(groups) - NAMED} more namespaces" if len(groups) > NAMED else ""
        self._note("services", f"without room in the Service tables: {said}{left}" if groups else "")

    def is_served(self, owner: Owner) -> bool:
        """Whether a Service (or pod with host ports) has what it asks for in the tables."""
        return owner not in self.refused and owner not in self._late

    def _object_faults(self) -> Iterable[ObjectFault]:
        node = self._feed.node
        for owner in self._late:
            yield self._not_served(
                owner,
                fault=f"not served on node {node}: its kernel took no more entries, its memory is short",
                remedy="give the node, or the agent's cgroup, more memory, or lower AIRMESH_TABLE_MEMORY",
            )
        for owner, why in self.refused.items():
            table = service_demand.TABLES[why.table]
            yield self._not_served(
                owner,
                fault=(
                    f"not served on node {node}: namespace {why.group} asks for {why.asked} of {why.total} entries of "
                    f"{table}, more than any other, and the node has room for {why.room}"
                ),
                remedy=(
                    f"delete Services, ports or endpoints in namespace {why.group}, or raise AIRMESH_TABLE_MEMORY or "
                    f"{'AIRMESH_BACKEND_ENTRIES' if table == 'am_backends' else 'AIRMESH_SERVICE_ENTRIES'}"
                ),
            )

    def _not_served(self, owner: Owner, *, fault: str, remedy: str) -> ObjectFault:
        kind, namespace, name = owner
        return ObjectFault(
            service="dataplane",
            node=self._feed.node,
            group="",
            kind=kind.capitalize(),
            namespace=namespace,
            name=name,
            reason="TableFull",
            fault=fault,
            remedy=remedy,
        )


def _set(table: Table[K, V], entries: Mapping[K, V]) -> frozenset[K]:
    """The keys that found no room."""
    try:
        table.apply(entries)
    except TableFull as full:
        return full.keys  # type: ignore[return-value]
    return frozenset()
