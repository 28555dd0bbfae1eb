"""How many entries of the Service tables a Service, or a pod with host ports, can ask for.

Owns the reckoning by which the tables are shared (:mod:`shares`) before anything is computed from an object: bounds
from the objects alone, so that all nodes find the same but for host ports and the number of a node's own addresses.
Every endpoint counts, whether or not it is ready or near, so a Service whose endpoints come and go keeps its share.
Costs what slices there are, never ports times endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable

from proto.objects import EndpointSlice, Service
from services.dataplane.core.datapath.shares import Claim
from services.dataplane.core.loadbalancer.frontends import BALANCED, LOOPBACK, HostPortPod, Owner, is_fronted
from services.dataplane.core.loadbalancer.node_context import NodeContext

TABLES = ("am_services", "am_backends", "am_src_ranges")
"""Which table each amount is of. ``am_members`` has an entry for each of ``am_backends``."""


def of_service(service: Service, slices: Iterable[EndpointSlice], context: NodeContext) -> tuple[Owner, Claim]:
    """What a Service asks for, given the slices of it."""
    owner = ("service", service.namespace, service.name)
    age = (service.created, service.name)
    if not is_fronted(service):
        return owner, Claim(service.namespace, age, (0, 0, 0))
    ports = sum(port.protocol in BALANCED for port in service.ports)
    versions = {address.version for address in service.cluster_ips}
    outside = [*service.load_balancer_ips, *service.external_ips]
    if service.type in ("NodePort", "LoadBalancer"):
        outside += context.addresses
    rows = len(service.cluster_ips) + 2 * sum(address.version in versions for address in outside)
    choices = 1 + (bool(outside) and "Local" in (service.internal_policy, service.external_policy))
    endpoints = sum(len(part.endpoints) * min(ports, len(part.ports)) for part in slices if part.fronted)
    ranges = ports * len(service.source_ranges) * len(versions) if service.load_balancer_ips else 0
    return owner, Claim(service.namespace, age, (ports * rows, endpoints * choices, ranges))


def of_pod(one: HostPortPod, context: NodeContext) -> tuple[Owner, Claim]:
    """What a pod of this node with host ports asks for."""
    pod = one.pod
    ports = sum(port.protocol in BALANCED for port in pod.host_ports)
    rows = ports * (len(context.addresses) + len(LOOPBACK)) * 2
    claim = Claim(pod.namespace, (0, f"{pod.name}/pod"), (rows, ports * len(one.addresses), 0))
    return ("pod", pod.namespace, pod.name), claim
