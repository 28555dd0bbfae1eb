"""The reconciler of the load-balancing tables: frontends and backends of Services, for sockets and for packets.

Owns ``am_services``, ``am_backends``, ``am_members`` and ``am_src_ranges``. Promises: nothing changes before the
watches are complete (an empty bucket is not an empty cluster); nothing is computed again while what it depends on is
the same; a claim that is not honoured is told. A Service or slice that changes costs that Service's fronts, whatever
others there are; all are computed again only when the node, the nodes or the pools change. A full pass reads the maps
themselves, so that what was deleted by hand returns: of large maps more rarely (:data:`READ_REST`).

When more is asked for than the tables take they grow, and when they cannot, the newest Services of the namespace that
asks for most are refused (:mod:`core.datapath.shares`): whole, never half, told on them, and served as soon as there is
room. Everybody else's are served, and what is to go goes, whatever finds no room. A namespace whose endpoints make much
work waits its turn (:mod:`core.loadbalancer.pacing`), and much work is done beside the loop, so that nobody else waits
for it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from kit.once import Once
from proto.events import ObjectFault
from proto.net import Address, Network
from proto.objects import EndpointSlice, IPPool, KubernetesObject, Namespace, Node, Pod, Service
from services.dataplane.core.datapath.shares import Pressure, Refused, Shares, usable
from services.dataplane.core.datapath.wire import Record
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.loadbalancer import service_demand, services
from services.dataplane.core.loadbalancer.change_traces import ChangeTraces
from services.dataplane.core.loadbalancer.choice import choice_key
from services.dataplane.core.loadbalancer.frontends import Frontends, HostPortPod, Owner, Refusal
from services.dataplane.core.loadbalancer.node_context import NodeContext
from services.dataplane.core.loadbalancer.pacing import Pacing
from services.dataplane.core.loadbalancer.service_objects import Name, ServiceObjects
from services.dataplane.datapath.maps import Table, TableFull
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import Feed
from services.dataplane.one_thread import OneThread
from services.dataplane.signals import Signal

ZONE = "topology.kubernetes.io/zone"
KEY_NAMESPACE = "kube-system"
"""Whose uid keys the choice of backends, as it does identities."""
NEEDED: tuple[type[KubernetesObject], ...] = (Service, EndpointSlice, Namespace, Node, Pod, IPPool)
_ENDED = ("Succeeded", "Failed")
NAMED = 5
"""Namespaces that a note names."""
INLINE = 2000
"""Entries whose change is reckoned on the loop: some 20 ms."""
READ_REST = 50
"""After reading the maps for so long it does not for so many times as long, however large a tenant makes them."""
K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)
T = TypeVar("T")


class Balancer:
    """Keeps the Service tables."""

    _udp_left = False
    """Whether :attr:`udp_left` is to be notified at the end of the pass."""

    def __init__(  # noqa: PLR0913 - what it reads, and whom it tells, each by name
        self,
        tables: Tables,
        feed: Feed,
        endpoints: LocalEndpoints,
        log: Log,
        external: tuple[Network, ...],
        *,
        thread: OneThread,
        make_room: Callable[[Mapping[str, int]], Awaitable[None]],
        report: Callable[[Iterable[ObjectFault]], int],
        note: Callable[[str, str], None],
        telemetry: Telemetry,
    ) -> None:
        """``thread`` does what takes long, ``make_room`` is asked before more is written than tables take, ``report``
        is given all Services that are refused, ``note`` a sentence about them.
        """
        self._note = note
        self._telemetry = telemetry
        self._traces = ChangeTraces()
        self._written = 0
        """Entries that have changed in the maps, ever."""
        self._thread = thread
        self._tables = tables
        self._feed = feed
        self._local = endpoints
        self._log = log
        self._external = external
        self._make_room = make_room
        self._report_objects = report
        self._shares: Shares[Owner] = Shares(len(service_demand.TABLES))
        self._pacing = Pacing()
        self._changes = feed.changes(Service, EndpointSlice)
        self._objects = ServiceObjects()
        self._dirty: frozenset[Name] = frozenset()
        """Services that have changed since the tables were written."""
        self._context_version = self._said = tuple[object, ...]()
        self._context = NodeContext(node=feed.node)
        self._frontends: Frontends | None = None
        self._pods: Sequence[HostPortPod] = ()
        """Those that ``_frontends`` has."""
        self._without: frozenset[Owner] = frozenset()
        """Those who were refused when ``_frontends`` was made."""
        self._closed: frozenset[Owner] = frozenset()  # of these, those who had their fronts then
        self._late: frozenset[Owner] = frozenset()
        self._last = 0
        """The greatest number that a set of backends has had."""
        self._actual: services.Tables | None = None
        self._read_again = 0.0
        """When the maps may be read next."""
        self._ever = False
        self._once: Once[Refusal] = Once()
        self.refused: Mapping[Owner, Refused] = {}
        """Services and pods with host ports that are not served, since others ask for too much or they do."""
        self.seen: tuple[int, ...] = ()
        """Which Services and slices (:meth:`Feed.version`) the tables have been written after."""
        self.udp_left = Signal()
        """Notified when a backend of UDP has left the tables: sockets that talk to it may be stale."""
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
        seen = self._feed.version(Service, EndpointSlice)
        self._dirty |= self._changed()
        context, pods = self._current_context(), self._host_port_pods()
        self._say(context.addresses, full=full)
        unknown = self._frontends is None or self._actual is None or context != self._frontends.context
        if not (full or unknown or self._dirty or pods != self._pods):
            self.seen = seen
            return 0
        again = unknown or bool(self._late)
        self._claim(context, pods, None if again else self._dirty)
        asked = self.asked
        await self._make_room({**asked, "am_members": asked["am_backends"]})
        self.refused = self._shares.refused(self._room())
        if again:
            with self._traced(self._dirty):
                await self._run(partial(self._renew, context, pods))
        else:
            await self._move_some(pods)
            if full and self._actual is not None and (now := time.monotonic()) >= self._read_again:
                await self._run(self._verify)
                self._read_again = time.monotonic() + READ_REST * (time.monotonic() - now)
        self._ever, self.seen = True, seen
        if self._udp_left:
            self._udp_left = False
            self.udp_left.notify()
        self._report()
        return self._pacing.wait(self._dirty, time.monotonic())

    def _say(self, addresses: tuple[Address, ...], *, full: bool) -> None:
        """The node's addresses and the key of choices; the maps are read when these change, and on full passes."""
        system = self._feed.namespace(KEY_NAMESPACE)
        said = (addresses, system and system.uid)
        if said == self._said and not full:
            return
        if addresses:
            self._tables.speak_as(addresses)
        if system is not None:
            self._tables.choose_by(choice_key(system.uid))
        self._said = said

    async def _move_some(self, pods: Sequence[HostPortPod]) -> None:
        """What has changed, of those whose turn it is. Who is gone or refused goes without waiting for one."""
        assert self._frontends is not None
        without, closed = self._refused()
        refused = without | closed
        others = (self._without ^ without) | (self._closed ^ closed)
        names = self._dirty | {owner[1:] for owner in others if owner[0] == "service"}
        leaving = {name for name in names if name not in self._objects.services or ("service", *name) in refused}
        admitted, later = self._pacing.take(
            {name: self._entries_of(name) for name in names - leaving}, time.monotonic()
        )
        work = partial(
            self._move,
            admitted | leaving,
            pods if pods != self._pods or any(owner[0] == "pod" for owner in others) else None,
            without,
            closed,
        )
        entries = sum(map(self._entries_of, admitted)) + sum(
            self._frontends.count(("service", *name)) for name in leaving
        )
        entries += sum(self._shares.claims[owner].amounts[0] for owner in closed - self._closed)
        with self._traced(admitted | leaving):
            moved = work() if entries <= INLINE else await self._run(work)
            if moved:
                self._dirty, self._pods, self._without, self._closed = later, pods, without, closed
            else:
                await self._run(partial(self._renew, self._context, pods))

    @contextmanager
    def _traced(self, names: Collection[Name]) -> Iterator[None]:
        """What the block writes for these Services is part of the traces of their changes."""
        chosen = self._traces.choose(names, time.monotonic())
        about = {
            traceparent: {
                "k8s__namespace__name": namespace,
                "k8s__object__kind": Service.__name__,
                "k8s__object__name": name,
            }
            for traceparent, (namespace, name) in chosen.items()
        }
        before = self._written
        with self._telemetry.together(
            "loadbalancer.apply", about, k8s__node__name=self._feed.node, airmesh__changes=len(names)
        ) as span:
            yield
            if span is not None:
                span.set(airmesh__changed=self._written - before)
        self._traces.keep(self._dirty)

    def _refused(self) -> tuple[frozenset[Owner], frozenset[Owner]]:
        """Who has no front, and who has fronts with nobody behind them: a connection to those ends at once.

        Room for fronts is shared before that for what is behind them, with what all ask for who have not been refused
        it: so whoever is refused only the latter has room for the former. Pods with host ports have neither.
        """
        frontends = service_demand.TABLES.index("am_services")
        closed = {owner for owner, why in self.refused.items() if why.table != frontends and owner[0] == "service"}
        return frozenset(self.refused.keys() - closed), frozenset(closed)

    def _changed(self) -> frozenset[Name]:
        """Names of Services that changed, or whose slices did, since the last call."""
        objects, found = self._feed.objects, set[Name]()
        for key in self._changes.take():
            entry = objects.entries.get(key)
            value = None if entry is None else entry.value
            names = self._objects.put(key, value if isinstance(value, (Service, EndpointSlice)) else None)
            found.update(names)
            if self._ever:  # what was there before this agent started is no change of now
                for name in names:
                    self._traces.put(name, objects.removed_in(key) if entry is None else entry.traceparent)
        return frozenset(found)

    async def _run(self, work: Callable[[], T]) -> T:
        """What may take long, on a thread of its own: the loop turns meanwhile."""
        return await self._thread.run(work, timeout=None)

    def _entries_of(self, name: tuple[str, str]) -> int:
        claim = self._shares.claims.get(("service", *name))
        return sum(claim.amounts) if claim else 0

    def _claim(self, context: NodeContext, pods: Sequence[HostPortPod], names: Collection[Name] | None) -> None:
        """What everybody asks for, reckoned anew for these Services and all pods; None: for everybody."""
        if names is None:
            self._shares, names = Shares(len(service_demand.TABLES)), self._objects.names()
        if pods != self._pods:
            now = {("pod", one.pod.namespace, one.pod.name) for one in pods}
            self._shares.drop([owner for owner in self._shares.claims if owner[0] == "pod" and owner not in now])
        self._shares.put(service_demand.of_pod(one, context) for one in pods)
        there = self._objects.services
        self._shares.drop(("service", *name) for name in names if name not in there)
        self._shares.put(
            service_demand.of_service(there[name], self._objects.slices(name), context)
            for name in names
            if name in there
        )

    def _room(self) -> tuple[int, ...]:
        tables = self._tables
        backends = min(tables.backends.entries, tables.members.entries)
        return usable(tables.services.entries), usable(backends), usable(tables.source_ranges.entries)

    def _move(
        self,
        names: frozenset[Name],
        pods: Sequence[HostPortPod] | None,
        without: frozenset[Owner],
        closed: frozenset[Owner],
    ) -> bool:
        """What these Services and pods have now. False when that cannot be written so."""
        actual, self._actual = self._actual, None  # unknown until every step has succeeded
        assert actual is not None
        assert self._frontends is not None
        moved = self._frontends.move(self._objects, names, pods, without, closed)
        steps = services.moved(moved, self._frontends.backends, self._frontends.stand_ins, actual, self._last)
        self._udp_left |= services.takes_udp_backends(steps, moved.before, actual)
        if self._write(steps):
            return False
        services.apply(actual, steps)
        self._last = max([self._last, *(one.number for one in steps.set_services.values())])
        self._actual = actual
        return True

    def _verify(self) -> None:
        """What the maps hold against what they should hold."""
        wanted, self._actual = self._actual, None
        assert wanted is not None
        if not self._write(services.change(self._read(), wanted)):
            self._actual = wanted

    def _renew(self, context: NodeContext, pods: Sequence[HostPortPod]) -> None:
        """Everything. Whoever finds no room after all (the kernel has no memory) is refused too, until next time."""
        self._actual = None
        actual = self._read()
        self._without, self._closed = self._refused()
        self._late = frozenset()
        without = self._without
        while True:
            self._frontends = Frontends(context)
            moved = self._frontends.move(self._objects, self._objects.names(), pods, without, self._closed)
            wanted = services.tables_of(moved.after, self._frontends.backends, self._frontends.stand_ins, actual)
            steps = services.change(actual, wanted)
            self._udp_left |= services.takes_udp_backends(steps, actual.services, actual)
            short = self._write(steps)
            if short:
                actual = self._read()
                self._write(services.swept(actual, wanted, short))
                actual = self._read()
                short = self._write(services.change(actual, wanted))
            if not short:
                break
            late = {self._frontends.owner(key) for key, one in wanted.services.items() if one.number in short}
            self._log.error("services-without-room", services=len(late), first=min(late), why="the kernel took no more")
            without |= late
            self._late |= late  # the next pass looks at everything again
            actual = self._read()
        self._actual, self._last = wanted, services.highest(wanted)
        self._pods, self._dirty = pods, frozenset()

    def _current_context(self) -> NodeContext:
        feed = self._feed
        at = (*feed.version(Node, IPPool), self.own_addresses)
        if at != self._context_version:
            self._context_version, self._context = at, self._read_context()
        return self._context

    def _read_context(self) -> NodeContext:
        feed = self._feed
        node = feed.node_object()
        return NodeContext(
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
        pods = [pod for pod in self._feed.all_of(Pod) if pod.host_ports and pod.phase not in _ENDED]
        wanted = {(pod.namespace, pod.name): pod for pod in pods}
        if not wanted:
            return []
        return [
            HostPortPod(pod=pod, addresses=one.addresses)
            for one in self._local.up.values()
            if (pod := wanted.get((one.first.namespace, one.first.pod))) and pod.runs_as(one.first.pod_uid)
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
        self._written += len(steps)
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

    def _report(self) -> None:
        present = frozenset(self._frontends.refused() if self._frontends is not None else ())
        due = self._once.take(present, time.monotonic())
        for refusal in sorted(due, key=lambda one: (one.claimant, one.why)):
            self._log.warning("frontend-refused", whose=refusal.claimant, why=refusal.why, remedy=refusal.remedy)
        self._report_objects(self._object_faults())
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
