"""Where a Service's connections go: the tables of the socket programs and of packets from outside.

Owns ``am_services``, ``am_backends``, ``am_members`` and ``am_src_ranges``. Promises: nothing changes before the
watches are complete (an empty bucket is not an empty cluster); nothing is computed again while what it depends on is
the same; a claim that is not honoured is told once. A mirror of the maps in memory makes a change cost what changed; a
full pass reads the maps themselves, so that what was deleted by hand returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chassis.log import Log
from proto.net import Address, Network
from proto.objects import EndpointSlice, IPPool, KubernetesObject, Node, Pod, Service
from services.dataplane.core import fronts, services
from services.dataplane.core.endpoint_choice import whose_slices_changed
from services.dataplane.core.fronts import HostPortPod, Plan, Refusal, fronts_of
from services.dataplane.core.here import Here
from services.dataplane.feed import Feed
from services.dataplane.kernel.tables import Tables
from services.dataplane.registry import Registry

ZONE = "topology.kubernetes.io/zone"
NEEDED: tuple[type[KubernetesObject], ...] = (Service, EndpointSlice, Node, Pod, IPPool)
_ENDED = ("Succeeded", "Failed")


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

    def __init__(self, tables: Tables, feed: Feed, registry: Registry, log: Log, external: tuple[Network, ...]) -> None:
        self._tables = tables
        self._feed = feed
        self._registry = registry
        self._log = log
        self._external = external
        self._actual: services.Tables | None = None
        self._applied: _Inputs | None = None
        self._plan = Plan()
        self._ever = False
        self._told: frozenset[Refusal] = frozenset()
        self.own_addresses: frozenset[Address] = frozenset()
        """Addresses of this node's interfaces."""

    @property
    def applied(self) -> bool:
        """Whether the tables have been what they should be since this agent started."""
        return self._ever

    def apply(self, *, full: bool) -> int:
        """Makes the tables what they should be; returns the number of entries that changed. Without complete watches
        it does nothing: Services stay as they were.
        """
        if not all(self._feed.complete(kind) for kind in NEEDED):
            return 0
        inputs = self._inputs()
        if inputs.here.addresses:
            self._tables.speak_as(inputs.here.addresses)
        if full or self._actual is None:
            self._actual = self._read()
        elif inputs == self._applied:
            return 0
        actual, names = self._actual, _moved_services(self._applied, inputs)
        if full or names is None:
            self._plan = fronts_of(inputs.services, inputs.slices, inputs.pods, inputs.here)
            steps = services.change(actual, services.tables_of(self._plan, actual))
        else:
            targets = fronts.moved(self._plan, inputs.services, inputs.slices, names, inputs.here)
            steps = services.moved(self._plan, targets, actual)
            self._plan.backends.update(targets)
        self._actual = self._applied = None  # unknown until every step has succeeded
        self._write(steps)
        services.apply(actual, steps)
        self._actual, self._applied, self._ever = actual, inputs, True
        self._tell(self._plan.refused)
        return len(steps)

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

    def _write(self, steps: services.TableChange) -> None:
        """In an order in which no lookup in between finds less than it should, or lets in more."""
        tables = self._tables
        tables.backends.apply(steps.set_backends)
        tables.members.apply(steps.set_members)
        tables.source_ranges.apply(steps.set_ranges)
        tables.services.apply(steps.set_services, steps.remove_services)
        tables.source_ranges.apply({}, steps.remove_ranges)
        tables.backends.apply({}, steps.remove_backends)
        tables.members.apply({}, steps.remove_members)

    def _tell(self, refused: Sequence[Refusal]) -> None:
        now = frozenset(refused)
        for refusal in sorted(now - self._told, key=lambda one: (one.claimant, one.why)):
            self._log.warning("front-refused", whose=refusal.claimant, why=refusal.why, remedy=refusal.remedy)
        self._told = now
