"""Services of the example, the ways to reach each (name, cluster IP, a pod's own name), and whether they led there.

Pure. For each Service a client is chosen that policy lets through to all of its pods, and one that it stops at all of
them, out of what the matrix found: a Service must neither lose a connection nor open a way round policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from lab.tour.probes import Address, Outcome, Pod, Port


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """A port of a Service and the pods' port behind it."""

    number: int
    protocol: str
    target: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service of the example with the pods behind it."""

    namespace: str
    name: str
    cluster_ips: tuple[Address, ...]
    """Empty when headless."""
    ports: tuple[ServicePort, ...]
    sticky: bool
    """sessionAffinity: ClientIP."""
    backends: tuple[Pod, ...]

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


def parse_service(item: Mapping[str, Any], pods: Sequence[Pod]) -> Service:
    """A Service of the API server's JSON, with those of `pods` that its selector takes."""
    metadata, spec = item["metadata"], item["spec"]
    selector = set(spec.get("selector", {}).items())
    behind = tuple(pod for pod in pods if pod.namespace == metadata["namespace"] and selector <= set(pod.labels))
    return Service(
        namespace=metadata["namespace"],
        name=metadata["name"],
        cluster_ips=tuple(ip_address(one) for one in spec.get("clusterIPs", []) if one != "None"),
        ports=tuple(_service_port(port, behind) for port in spec["ports"]),
        sticky=spec.get("sessionAffinity") == "ClientIP",
        backends=behind,
    )


def _service_port(port: Mapping[str, Any], behind: Sequence[Pod]) -> ServicePort:
    protocol = port.get("protocol", "TCP").lower()
    wanted = port.get("targetPort", port["port"])
    offered = [
        one for pod in behind for one in pod.ports if one.protocol == protocol and wanted in (one.name, one.number)
    ]
    number = wanted if isinstance(wanted, int) else port["port"]
    target = offered[0] if offered else Port(number=number, protocol=protocol)
    return ServicePort(number=port["port"], protocol=protocol, target=target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One way to a Service from one client. `way`: `name`, `IPv4`, `IPv6` or a pod's own name."""

    service: Service
    port: ServicePort
    client: Pod
    way: str
    host: str
    allowed: bool

    @property
    def url(self) -> str:
        """As `shop probe` takes it; HTTP where the pods' port speaks it, so that the answer says who answered."""
        scheme = "http" if self.port.target.name == "http" else self.port.protocol
        return f"{scheme}://{self.host}:{self.port.number}" + ("/" if scheme == "http" else "")


def checks(services: Sequence[Service], outcomes: Sequence[Outcome], domain: str) -> tuple[Check, ...]:
    """For each Service a client that policy lets through to all its pods and one that it stops at all of them."""
    found: list[Check] = []
    for service in services:
        for port in service.ports:
            for allowed in (True, False):
                client = _client(service, port, outcomes, allowed)
                if client is not None:
                    found += _ways(service, port, client, allowed, domain)
    return tuple(found)


def _client(service: Service, port: ServicePort, outcomes: Sequence[Outcome], allowed: bool) -> Pod | None:
    behind = {pod.uid for pod in service.backends}
    verdicts: dict[str, list[bool]] = {}
    by_uid: dict[str, Pod] = {}
    for outcome in outcomes:
        probe = outcome.probe
        if probe.target.uid in behind and probe.source.uid not in behind and probe.port == port.target:
            verdicts.setdefault(probe.source.uid, []).append(outcome.allowed)
            by_uid[probe.source.uid] = probe.source
    fitting = [by_uid[uid] for uid, said in verdicts.items() if all(one is allowed for one in said)]
    return min(fitting, key=lambda pod: pod.full_name, default=None)


def _ways(service: Service, port: ServicePort, client: Pod, allowed: bool, domain: str) -> list[Check]:
    name = f"{service.name}.{service.namespace}.svc.{domain}"
    hosts = [("name", name)]
    hosts += [(f"IPv{ip.version}", f"[{ip}]" if ip.version == 6 else str(ip)) for ip in service.cluster_ips]
    if not service.cluster_ips:
        hosts += [(pod.name, f"{pod.name}.{name}") for pod in service.backends]
    if not allowed:
        hosts = hosts[-1:]
    return [
        Check(service=service, port=port, client=client, way=way, host=host, allowed=allowed) for way, host in hosts
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What several connections of one check did."""

    check: Check
    connected: int
    tried: int
    pods: tuple[str, ...]
    """Names of the pods that answered."""
    errors: tuple[str, ...]
    milliseconds: float
    """Mean of those that were answered."""

    @property
    def agrees(self) -> bool:
        """All answered by the Service's own pods (by one of them when it is sticky), or none at all when denied."""
        if not self.check.allowed:
            return self.connected == 0 and "refused" not in self.errors
        behind = {pod.name for pod in self.check.service.backends}
        own = set(self.pods) <= behind and bool(self.pods)
        return self.connected == self.tried and own and (len(self.pods) == 1 or not self.check.service.sticky)


def answered(check: Check, results: Sequence[Mapping[str, Any]]) -> Answered:
    """Lines of `shop probe` for one check, together."""
    good = [one for one in results if one["ok"]]
    return Answered(
        check=check,
        connected=len(good),
        tried=len(results),
        pods=tuple(sorted({str(one["answer"]["pod"]) for one in good if isinstance(one.get("answer"), dict)})),
        errors=tuple(sorted({str(one["error"]) for one in results if not one["ok"]})),
        milliseconds=sum(one["ms"] for one in good) / len(good) if good else 0.0,
    )
