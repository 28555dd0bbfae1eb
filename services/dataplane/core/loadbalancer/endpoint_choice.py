"""Which endpoints of a Service port a connection may reach, seen from one node.

Owns readiness, locality and hints, as kube-proxy 1.36 has them (pkg/proxy/topology.go): of a port's endpoints of one
family those that are ready; when none is, those that still serve while they terminate (KEP-1669). The local choice
looks at this node's endpoints only (both traffic policies ``Local``). The cluster choice follows hints (KEP-2433,
KEP-4444): of nodes, else of zones, and each kind only where every ready endpoint has it and one is meant for clients
here; else hints are passed over, for a hint that cannot be followed must not cost a connection. Where they leave a
single endpoint, another one stands in while that one refuses. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from zlib import crc32

from proto.net import Address
from proto.objects import EndpointSlice, Service, ServicePort, SliceEndpoint

Target = tuple[Address, int]
"""Address and port of a backend."""

Offer = tuple[SliceEndpoint, int]
"""An endpoint, and the number it has for the Service port in question."""


class Choice(StrEnum):
    """Which of a Service's endpoints are in question."""

    CLUSTER = "Cluster"
    """Those of all nodes, hints obeyed."""
    LOCAL = "Local"
    """This node's."""


def offers(service: Service, port: ServicePort, slices: Iterable[EndpointSlice], version: int) -> list[Offer]:
    """Endpoints of a family (4 or 6) that serve a port of a Service, ready or not. Ports are matched by name and
    protocol, and their numbers may differ from slice to slice.
    """
    found: list[Offer] = []
    for part in slices:
        number = next((p.port for p in part.ports if p.name == port.name and p.protocol == port.protocol), None)
        if number is not None:
            found += ((one, number) for one in part.endpoints if one.addresses and one.addresses[0].version == version)
    return found


def choose(offered: Sequence[Offer], choice: Choice, *, node: str, zone: str, not_ready_too: bool) -> frozenset[Target]:
    """The targets that new connections may have; none is an answer too."""
    if choice is Choice.LOCAL:
        offered = [one for one in offered if one[0].node == node]
    ready = [one for one in offered if takes_new(one[0], not_ready_too=not_ready_too)]
    if not ready:
        return frozenset(_targets(one for one in offered if one[0].serving and one[0].terminating))
    if choice is Choice.CLUSTER:
        ready = _hinted(ready, node, zone)
    return frozenset(_targets(ready))


def stand_in(
    offered: Sequence[Offer], chosen: frozenset[Target], choice: Choice, *, node: str, not_ready_too: bool
) -> Target | None:
    """Who serves the next attempt of a client while the only target that hints have left refuses (``bpf/sock_lb.h``):
    one of those that they leave out. Nodes differ in it, and keep it while it serves.
    """
    if choice is Choice.LOCAL or len(chosen) != 1:
        return None
    others = set(_targets(one for one in offered if takes_new(one[0], not_ready_too=not_ready_too))) - chosen
    return min(others, key=lambda target: (crc32(f"{node} {target}".encode()), target[1]), default=None)


def takes_new(endpoint: SliceEndpoint, *, not_ready_too: bool) -> bool:
    """Whether an endpoint is ready; all are where ``publishNotReadyAddresses`` says so."""
    return not_ready_too or (endpoint.ready and not endpoint.terminating)


def _hinted(ready: list[Offer], node: str, zone: str) -> list[Offer]:
    def hinted_for_node(hints: Callable[[SliceEndpoint], tuple[str, ...]], this_node: str) -> list[Offer]:
        if not all(hints(endpoint) for endpoint, _ in ready):
            return []
        return [one for one in ready if this_node in hints(one[0])]

    return (
        hinted_for_node(lambda endpoint: endpoint.for_nodes, node)
        or hinted_for_node(lambda endpoint: endpoint.for_zones, zone)
        or ready
    )


def _targets(offered: Iterable[Offer]) -> Iterator[Target]:
    return ((endpoint.addresses[0], number) for endpoint, number in offered)
