"""The oracle of health-check ports: who has one, and with how many endpoints, from all Services and slices at once."""

from __future__ import annotations

from collections.abc import Iterable

from proto.objects import EndpointSlice, Service
from services.dataplane.core.loadbalancer.endpoint_choice import takes_new
from services.dataplane.core.loadbalancer.health_checks import ServiceCheck


def checks_of(services: Iterable[Service], slices: Iterable[EndpointSlice], node: str) -> dict[int, ServiceCheck]:
    """Ready pods of the node, by port; each pod once. Of two Services with one port the older has it."""
    parts = list(slices)
    found: dict[int, ServiceCheck] = {}
    for service in sorted(services, key=lambda one: (one.created, one.namespace, one.name)):
        ours = service.fronted and service.type != "ExternalName" and service.cluster_ips
        if service.health_check_port and ours and service.health_check_port not in found:
            pods = {
                endpoint.pod_uid or str(endpoint.addresses[0])
                for part in parts
                if part.fronted and (part.namespace, part.service) == (service.namespace, service.name)
                for endpoint in part.endpoints
                if endpoint.node == node and takes_new(endpoint, not_ready_too=service.publish_not_ready)
            }
            check = ServiceCheck(namespace=service.namespace, name=service.name, endpoints=len(pods))
            found[service.health_check_port] = check
    return found
