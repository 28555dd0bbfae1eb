"""Checks of one Service that somebody asks for: whether it has endpoints, where they are, and how fast each answers.

Times are those of TCP handshakes from this node, each endpoint a few times, the fastest kept: the kernel answers them,
so they say how long the way is and whether the pod's backlog takes connections, not how fast its program is. One
endpoint is slow beside the others, never by itself; of fewer than three nobody says which is the odd one.

An endpoint in another zone is as the cluster was asked for; it is told since the question was why this Service is slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from proto.findings import EFFECT, OBJECT, Expected, Finding, Fix, Observed, object_name
from proto.net import Address, host_port
from proto.objects import EndpointSlice, Service
from services.dataplane.core.loadbalancer.endpoint_choice import Offer, offers, takes_new

NONE, ELSEWHERE, SLOW = "service-no-endpoint", "service-endpoints-elsewhere", "service-slow-endpoint"
CODES = (NONE, ELSEWHERE, SLOW)
TCP = 6
TIMES, LEAST = 5.0, 20.0
"""An endpoint is slow that takes so many times as long as the middle one, and at least so many milliseconds longer."""
ENOUGH = 3
Target = tuple[Address, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The Service, what stands behind it, and where it is asked from."""

    service: Service
    slices: tuple[EndpointSlice, ...]
    node: str
    zone: str
    zones: frozenset[str]
    """Of all nodes."""

    @property
    def about(self) -> str:
        """``Service shop/web``."""
        return object_name("Service", self.service.namespace, self.service.name)


def ready(asked: Asked) -> tuple[Offer, ...]:
    """Endpoints that take new connections, of all ports and families."""
    service = asked.service
    found = {
        (offer[0].addresses[0], offer[1]): offer
        for port in service.ports
        for version in (4, 6)
        for offer in offers(service, port, asked.slices, version)
        if takes_new(offer[0], not_ready_too=service.publish_not_ready)
    }
    return tuple(found[key] for key in sorted(found, key=str))


def targets(asked: Asked) -> tuple[Target, ...]:
    """Where to connect by TCP to try each ready endpoint: one family, the first TCP port."""
    service = asked.service
    for port in service.ports:
        for version in (4, 6):
            found = {
                (endpoint.addresses[0], number)
                for endpoint, number in offers(service, port, asked.slices, version)
                if takes_new(endpoint, not_ready_too=service.publish_not_ready)
            }
            if port.protocol == TCP and found:
                return tuple(sorted(found, key=str))
    return ()


def check(asked: Asked) -> Iterator[Finding]:
    """Whether there are endpoints, and any in this node's zone."""
    found = ready(asked)
    if not asked.service.ports:
        return
    if not found:
        yield _none(asked)
        return
    zones = {endpoint.zone for endpoint, _ in found}
    if asked.zone and "" not in zones and asked.zone not in zones and len(asked.zones) > 1:
        yield _elsewhere(asked, found, sorted(zones))


def _none(asked: Asked) -> Finding:
    service = asked.service
    known = [endpoint for part in asked.slices for endpoint in part.endpoints]
    text = f"{len(known)} endpoints, none ready" if known else "no endpoint: its selector matches no pod"
    return Finding(
        code=NONE,
        fault="service",
        about=asked.about,
        cause=f"no endpoint of {service.namespace}/{service.name} takes connections: they are refused on every node",
        expected=Expected("a ready endpoint", asked.about),
        observed=(Observed("object", text),),
        fixes=(
            Fix(
                command=f"kubectl -n {service.namespace} describe service {service.name}",
                risk="None: it shows the selector; compare it with the pods' labels and their readiness.",
                on="cluster",
            ),
        ),
        precedence=OBJECT,
    )


def _elsewhere(asked: Asked, found: Sequence[Offer], zones: Sequence[str]) -> Finding:
    service = asked.service
    count = len({endpoint.pod_uid or str(endpoint.addresses[0]) for endpoint, _ in found})
    return Finding(
        code=ELSEWHERE,
        fault="service",
        about=asked.about,
        node=asked.node,
        cause=f"every connection from zone {asked.zone} leaves it: all ready endpoints are in {', '.join(zones)}",
        expected=Expected(f"an endpoint in zone {asked.zone}", asked.about),
        observed=(
            Observed("object", f"{count} ready endpoints, zones: {', '.join(zones)}"),
            Observed("object", f"Node {asked.node}: zone {asked.zone}"),
        ),
        fixes=(
            Fix(
                command=f"kubectl -n {service.namespace} get pods -o wide  # spread them: topologySpreadConstraints on "
                "topology.kubernetes.io/zone",
                risk="A changed template starts new pods.",
                on="cluster",
            ),
        ),
        precedence=OBJECT + 1,
    )


def check_times(asked: Asked, times: Mapping[Target, Sequence[float]]) -> Iterator[Finding]:
    """``times``: milliseconds of each handshake that was answered, by endpoint; none for one that answered none."""
    fastest = {target: min(some) for target, some in times.items() if some}
    if len(fastest) < ENOUGH:
        return
    middle = median(fastest.values())
    slow = {one: took for one, took in fastest.items() if took > max(TIMES * middle, middle + LEAST)}
    if 2 * len(slow) >= len(fastest):
        return  # no odd one: the way from here, or all of them
    pods = {endpoint.addresses[0]: endpoint for part in asked.slices for endpoint in part.endpoints}
    for target, took in sorted(slow.items(), key=str):
        node = pods[target[0]].node if target[0] in pods else ""
        yield Finding(
            code=SLOW,
            fault="service",
            about=asked.about,
            node=node,
            cause=(
                f"one endpoint of {len(fastest)} is slow: {host_port(*target)} on node {node or '?'} takes "
                f"{took:.0f} ms to answer a handshake, the others {middle:.1f} ms"
            ),
            expected=Expected(f"a handshake within {max(TIMES * middle, middle + LEAST):.0f} ms", asked.about),
            observed=(
                Observed("packet", f"{host_port(*target)} from node {asked.node}: {_listed(times[target])}"),
                Observed("packet", f"the middle of {len(fastest)} endpoints: {middle:.1f} ms"),
            ),
            fixes=(
                Fix(
                    command=f"kubectl -n {asked.service.namespace} get pods -o wide  # delete the one with {target[0]}",
                    risk="The pod's connections end; its workload starts another one.",
                    on="cluster",
                ),
            ),
            precedence=EFFECT - 2,
        )


def _listed(some: Iterable[float]) -> str:
    return ", ".join(f"{one:.0f} ms" for one in sorted(some))
