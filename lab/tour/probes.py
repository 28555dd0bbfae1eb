"""Pods, the connections the tour tries between them, and whether policy and packets agree.

Owns the pods of `examples/shop` as the API server tells them (parsed once, here), the probes between them, and the
comparison of what policy says with what a real connection from inside the pod did. Pure, and knows no policy by name:
change the example and the expectation follows.

A denied packet is dropped in silence, so its connection ends by time-out. "Refused" means that a packet got through to
a port where nobody listens: for a denied connection that is a disagreement too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from proto.net import host_port

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Port:
    """A container port. `protocol`: `tcp` or `udp`."""

    number: int
    protocol: str
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.number}" + ("" if self.protocol == "tcp" else f"/{self.protocol}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod that runs. `workload`: `namespace/name` of the Deployment or StatefulSet, by its label."""

    namespace: str
    name: str
    uid: str
    workload: str
    node: str
    addresses: tuple[Address, ...]
    ports: tuple[Port, ...]
    labels: tuple[tuple[str, str], ...]
    ready: bool
    waits_for: str = ""
    """Why it is not ready, in Kubernetes' words."""

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One connection to try: from a pod to an address and port of another."""

    source: Pod
    target: Pod
    address: Address
    port: Port

    @property
    def url(self) -> str:
        """As `shop probe` takes it."""
        return f"{self.port.protocol}://{host_port(self.address, self.port.number)}"

    @property
    def question(self) -> str:
        """As `airmesh policy matrix` takes it: by address, so that a CIDR in a policy counts as it does for packets."""
        own = next(one for one in self.source.addresses if one.version == self.address.version)
        return f"{own} {host_port(self.address, self.port.number)}/{self.port.protocol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A probe, what policy says to it and what the connection did."""

    probe: Probe
    allowed: bool
    connected: bool
    error: str
    reasons: str = ""
    """Policy's own words for its verdict."""

    @property
    def agrees(self) -> bool:
        """The connection did what policy says."""
        return self.connected if self.allowed else not self.connected and self.error != "refused"


Cell = tuple[str, str, Port]
"""Source workload, target workload, port."""


def cell_of(probe: Probe) -> Cell:
    """The cell of the matrix that a probe belongs to."""
    return probe.source.workload, probe.target.workload, probe.port


def parse_pod(item: Mapping[str, Any]) -> Pod:
    """A pod of the API server's JSON."""
    metadata, spec, status = item["metadata"], item["spec"], item.get("status", {})
    labels = metadata.get("labels", {})
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    ready = conditions.get("Ready", {})
    ports = [
        Port(number=port["containerPort"], protocol=port.get("protocol", "TCP").lower(), name=port.get("name", ""))
        for container in spec["containers"]
        for port in container.get("ports", [])
    ]
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        workload=f"{metadata['namespace']}/{labels.get('app') or labels.get('role') or metadata['name']}",
        node=spec.get("nodeName", ""),
        addresses=tuple(ip_address(one["ip"]) for one in status.get("podIPs", [])),
        ports=tuple(sorted(ports)),
        labels=tuple(sorted(labels.items())),
        ready=ready.get("status") == "True" and "deletionTimestamp" not in metadata,
        waits_for=_waits_for(status, ready),
    )


def _waits_for(status: Mapping[str, Any], ready: Mapping[str, Any]) -> str:
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip()
    return str(ready.get("message") or status.get("phase", "unknown"))


def probes(pods: Sequence[Pod]) -> tuple[Probe, ...]:
    """Every pod to every port of every other pod, in each family that both have."""
    return tuple(
        Probe(source=source, target=target, address=address, port=port)
        for source in pods
        for target in pods
        if source.uid != target.uid
        for address in target.addresses
        if any(own.version == address.version for own in source.addresses)
        for port in target.ports
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """What the outcomes of one cell say together."""

    allowed: int
    denied: int
    connected: int
    wrong: tuple[Outcome, ...]

    @property
    def total(self) -> int:
        """How many connections were tried."""
        return self.allowed + self.denied


def cells(outcomes: Iterable[Outcome]) -> dict[Cell, CellState]:
    """Outcomes by cell."""
    grouped: dict[Cell, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(cell_of(outcome.probe), []).append(outcome)
    return {
        cell: CellState(
            allowed=sum(one.allowed for one in group),
            denied=sum(not one.allowed for one in group),
            connected=sum(one.connected for one in group),
            wrong=tuple(one for one in group if not one.agrees),
        )
        for cell, group in grouped.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A StatefulSet's pod before and after it was moved, and the longest silence that a peer heard, by family."""

    before: Pod
    after: Pod
    gaps_ms: tuple[tuple[str, float], ...]
    seconds: float
    """From the deletion until the new pod was Ready."""

    @property
    def agrees(self) -> bool:
        """Another node, the same addresses, and the peer heard it again."""
        moved = self.before.node != self.after.node
        return moved and set(self.before.addresses) == set(self.after.addresses) and bool(self.gaps_ms)
