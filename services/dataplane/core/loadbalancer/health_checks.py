"""Health checks of load balancers: the node's answers (``healthCheckNodePort``, ``/healthz``, ``/livez``).

Owns the answers of health-check node ports (``spec.healthCheckNodePort``: a Service of type LoadBalancer with
externalTrafficPolicy Local) and of the port that asks about the node as a whole, in the form that kube-proxy 1.36 gives
them (pkg/proxy/healthcheck). Only ready endpoints of this node count: ones that terminate still serve the connections
they have, but no load balancer should send more. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import msgspec

from proto.objects import EndpointSlice, Service
from services.dataplane.core.loadbalancer.endpoint_choice import takes_new
from services.dataplane.core.loadbalancer.frontends import is_fronted


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP response; ``body`` is JSON."""

    status: HTTPStatus
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


Page = Callable[[str], Answer]
"""The answer to a GET of a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCheck:
    """What is asked at one Service's health-check node port."""

    namespace: str
    name: str
    endpoints: int
    """Of this node, ready."""

    def answer(self, *, healthy: bool) -> Answer:
        """200 when this node has a ready endpoint and its tables are kept, else 503."""
        body = {
            "service": {"namespace": self.namespace, "name": self.name},
            "localEndpoints": self.endpoints,
            "serviceProxyHealthy": healthy,
        }
        return Answer(
            status=HTTPStatus.OK if healthy and self.endpoints else HTTPStatus.SERVICE_UNAVAILABLE,
            body=msgspec.json.encode(body),
            headers=(("X-Load-Balancing-Endpoint-Weight", str(self.endpoints)),),
        )


def checks_of(services: Iterable[Service], slices: Iterable[EndpointSlice], node: str) -> dict[int, ServiceCheck]:
    """Port and check of each Service that has one; of two with the same port the older has it."""
    asked = [service for service in services if service.health_check_port and is_fronted(service)]
    asked.sort(key=lambda service: (service.created, service.namespace, service.name))
    if not asked:
        return {}
    parts: dict[tuple[str, str], list[EndpointSlice]] = {(one.namespace, one.name): [] for one in asked}
    for part in slices:
        if part.fronted and (part.namespace, part.service) in parts:
            parts[part.namespace, part.service].append(part)
    found: dict[int, ServiceCheck] = {}
    for service in asked:
        local = _ready_on(service, parts[service.namespace, service.name], node)
        check = ServiceCheck(namespace=service.namespace, name=service.name, endpoints=local)
        found.setdefault(service.health_check_port, check)
    return found


def _ready_on(service: Service, slices: Iterable[EndpointSlice], node: str) -> int:
    """Pods, not addresses: one of both families counts once."""
    return len(
        {
            endpoint.pod_uid or str(endpoint.addresses[0])
            for part in slices
            for endpoint in part.endpoints
            if endpoint.node == node
            and endpoint.addresses
            and takes_new(endpoint, not_ready_too=service.publish_not_ready)
        }
    )


def node_answer(path: str, *, healthy: bool, eligible: bool, now: float, last_healthy: float) -> Answer:
    """``/healthz``: should load balancers use this node? ``/livez``: does the agent keep its tables? Else 404."""
    good = {"/healthz": healthy and eligible, "/livez": healthy}
    if path not in good:
        return Answer(status=HTTPStatus.NOT_FOUND)
    body: dict[str, object] = {"lastUpdated": _stamp(now if healthy else last_healthy), "currentTime": _stamp(now)}
    if path == "/healthz":
        body["nodeEligible"] = eligible
    status = HTTPStatus.OK if good[path] else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status=status, body=msgspec.json.encode(body))


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
