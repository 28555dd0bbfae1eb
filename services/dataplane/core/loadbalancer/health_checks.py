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
from services.dataplane.core.loadbalancer.service_objects import Name


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


class Checks:
    """Port and check of each Service that has one; of two with the same port the older has it.

    Owns the Services that ask for a port, and their slices; of others nothing is remembered. A change costs the Service
    that it is about: :meth:`put` all that changed, then :meth:`settle`.
    """

    def __init__(self, node: str) -> None:
        self.by_port: dict[int, ServiceCheck] = {}
        self.visits = 0
        """Services whose endpoints were counted since the start."""
        self._node = node
        self._asking: dict[Name, Service] = {}
        self._names: dict[str, Name] = {}
        """Of those Services, by key."""
        self._slices: dict[str, EndpointSlice] = {}
        self._of: dict[Name, set[str]] = {}
        """Keys of the slices of each of them."""
        self._checks: dict[Name, ServiceCheck] = {}
        self._claims: dict[int, set[Name]] = {}
        """Who asks for a port."""
        self._dirty: set[Name] = set()
        self._ports: set[int] = set()
        """Ports of which another Service may be the oldest now."""

    def put(self, key: str, value: Service | EndpointSlice | None) -> Name | None:
        """What a key holds now, None when nothing (or another kind). Returns the Service that asks for a port from now
        on, if one does: its slices are to be put, whether or not they changed.
        """
        if isinstance(value, Service) or key in self._names:
            return self._put_service(key, value if isinstance(value, Service) else None)
        self._put_slice(key, value if isinstance(value, EndpointSlice) else None)
        return None

    def _put_service(self, key: str, service: Service | None) -> Name | None:
        name = self._names.pop(key, None)
        before = self._asking.pop(name) if name is not None else None
        if name is not None and before is not None:
            self._claims[before.health_check_port].discard(name)
            self._ports.add(before.health_check_port)
            self._dirty.add(name)
        if service is None or not service.health_check_port or not is_fronted(service):
            for part in self._of.pop(name, ()) if name is not None else ():
                del self._slices[part]
            return None
        name = self._names[key] = service.namespace, service.name
        self._asking[name] = service
        self._claims.setdefault(service.health_check_port, set()).add(name)
        self._ports.add(service.health_check_port)
        self._dirty.add(name)
        return name if before is None else None

    def _put_slice(self, key: str, part: EndpointSlice | None) -> None:
        before = self._slices.pop(key, None)
        if before is not None:
            self._of[before.namespace, before.service].discard(key)
            self._dirty.add((before.namespace, before.service))
        if part is not None and part.fronted and (part.namespace, part.service) in self._asking:
            self._slices[key] = part
            self._of.setdefault((part.namespace, part.service), set()).add(key)
            self._dirty.add((part.namespace, part.service))

    def settle(self) -> bool:
        """Brings :attr:`by_port` up to what was put; False when that was nothing."""
        changed = bool(self._dirty or self._ports)
        for name in self._dirty:
            service = self._asking.get(name)
            if service is None:
                self._checks.pop(name, None)
                continue
            self.visits += 1
            local = _ready_on(service, [self._slices[key] for key in self._of.get(name, ())], self._node)
            self._checks[name] = ServiceCheck(namespace=service.namespace, name=service.name, endpoints=local)
            self._ports.add(service.health_check_port)
        for port in self._ports:
            if claims := self._claims[port]:
                eldest = min(claims, key=lambda name: (self._asking[name].created, *name))
                self.by_port[port] = self._checks[eldest]
            else:
                del self._claims[port]
                self.by_port.pop(port, None)
        self._dirty.clear()
        self._ports.clear()
        return changed


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
