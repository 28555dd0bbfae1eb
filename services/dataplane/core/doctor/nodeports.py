"""Node ports that something on the host or in front of it takes, hides or drops.

A node port is no socket: the datapath translates what comes to it before the host's stack sees it. So a process that
listens there hears nothing from outside, a host port and a node port exclude each other, and a port that the kernel
also gives to outgoing connections takes their answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proto.findings import HOST, NETWORK, OBJECT, Expected, Finding, Fix, Observed, object_name
from proto.net import Address
from proto.objects import EndpointSlice, Pod, Service, ServicePort
from services.dataplane.core.doctor.ingress import Subject, allows
from services.dataplane.core.loadbalancer.endpoint_choice import offers

CODES = ("nodeport-taken-by-process", "nodeport-taken-by-hostport", "nodeport-ephemeral", "nodeport-health-check")
LOCAL = ("nodeport-no-local-endpoint",)
FILTERED = ("nodeport-filtered",)
TCP, UDP = 6, 17
NAMES = {TCP: "TCP", UDP: "UDP"}
PortKey = tuple[int, int]
"""IANA number of the protocol, and the port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A socket of the host that has a port."""

    inode: int
    process: str
    """``nginx (pid 71)``; empty when it cannot be told."""
    is_ours: bool = False
    """It is the agent's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePorts:
    """What is judged."""

    node: str
    services: tuple[Service, ...]
    pods: tuple[Pod, ...]
    """Of this node."""
    listeners: Mapping[PortKey, Listener]
    ephemeral: tuple[int, int]
    """net.ipv4.ip_local_port_range."""
    reserved: frozenset[int] = field(default_factory=frozenset)
    """net.ipv4.ip_local_reserved_ports."""


def claimed(services: Iterable[Service]) -> Iterable[tuple[Service, ServicePort]]:
    """Services with their node ports."""
    for service in services:
        for port in service.ports:
            if service.fronted and port.node_port and port.protocol in NAMES:
                yield service, port


def check(seen: NodePorts) -> Iterable[Finding]:
    """Findings of one node's node ports and health checks."""
    host_ports = {
        (one.protocol, one.port): pod
        for pod in seen.pods
        if pod.phase not in ("Succeeded", "Failed") and not pod.terminating
        for one in pod.host_ports
    }
    for service, port in claimed(seen.services):
        key = port.protocol, port.node_port
        if (pod := host_ports.get(key)) is not None:
            yield _host_port(seen, service, port, pod)
        elif (listener := seen.listeners.get(key)) is not None:
            yield _process(seen, service, port, listener)
        if seen.ephemeral[0] <= port.node_port <= seen.ephemeral[1] and port.node_port not in seen.reserved:
            yield _ephemeral(seen, service, port)
    for service in seen.services:
        listener = seen.listeners.get((TCP, service.health_check_port)) if service.health_check_port else None
        if listener is not None and not listener.is_ours:
            yield _health_check(seen, service, listener)


def parse_ports(text: str) -> frozenset[int]:
    """``net.ipv4.ip_local_reserved_ports``: ``8080,30000-32767``. Raises ValueError for anything else."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _named(port: ServicePort) -> str:
    return f"{NAMES[port.protocol]} {port.node_port}"


def _finding(
    node: str,
    code: str,
    service: Service,
    cause: str,
    expected: str,
    observed: tuple[Observed, ...],
    fixes: tuple[Fix, ...],
    precedence: int = HOST,
) -> Finding:
    name = object_name("Service", service.namespace, service.name)
    return Finding(
        code=code,
        fault="nodeport",
        about=name,
        node=node,
        cause=cause,
        expected=Expected(text=expected, object=name),
        observed=observed,
        fixes=fixes,
        precedence=precedence,
    )


def _another_port(service: Service, port: ServicePort) -> Fix:
    index = service.ports.index(port)
    patch = f'[{{"op":"remove","path":"/spec/ports/{index}/nodePort"}}]'
    return Fix(
        command=f"kubectl -n {service.namespace} patch service {service.name} --type json -p '{patch}'",
        risk="the Service gets another node port: clients and load balancers must follow",
        on="cluster",
    )


def _look_for(port: int) -> Fix:
    """Who has a port."""
    command = f"ss -Hlnp 'sport = :{port}'  # then stop it, or give it another port"
    return Fix(command=command, risk="none to look; who uses the process loses it when it is stopped")


def _process(seen: NodePorts, service: Service, port: ServicePort, listener: Listener) -> Finding:
    who = listener.process or f"socket with inode {listener.inode}"
    cause = (
        f"{who} listens on {_named(port)} of node {seen.node}, which is the node port of {service.namespace}/"
        f"{service.name}: what comes from outside goes to the Service"
    )
    observed = (Observed(where="socket", text=f"{_named(port)} on {seen.node}: {who}"),)
    fixes = (
        Fix(
            command=f"ss -Hlnp 'sport = :{port.node_port}'  # then stop it or give it another port",
            risk="as the process has users",
        ),
        _another_port(service, port),
    )
    expected = f"nothing of the host listens on {_named(port)}"
    return _finding(seen.node, "nodeport-taken-by-process", service, cause, expected, observed, fixes)


def _host_port(seen: NodePorts, service: Service, port: ServicePort, pod: Pod) -> Finding:
    cause = f"pod {pod.namespace}/{pod.name} has {_named(port)} of node {seen.node} as its hostPort: one is not reached"
    observed = (Observed(where="object", text=f"Pod {pod.namespace}/{pod.name}: hostPort {port.node_port}"),)
    expected = f"{_named(port)} leads to {service.namespace}/{service.name} alone"
    fixes = (_another_port(service, port),)
    return _finding(seen.node, "nodeport-taken-by-hostport", service, cause, expected, observed, fixes, HOST - 1)


def _ephemeral(seen: NodePorts, service: Service, port: ServicePort) -> Finding:
    low, high = seen.ephemeral
    cause = (
        f"the kernel of {seen.node} gives {_named(port)} to outgoing connections, too: answers to them go to "
        f"{service.namespace}/{service.name}"
    )
    reserved = ",".join(str(one) for one in sorted({*seen.reserved, port.node_port}))
    before = ",".join(str(one) for one in sorted(seen.reserved))
    fix = Fix(
        command=f"sysctl -w net.ipv4.ip_local_reserved_ports={reserved}",
        risk="none: one port less for outgoing connections",
        automatic=True,
        undo=f"sysctl -w net.ipv4.ip_local_reserved_ports={before}",
    )
    observed = (
        Observed(where="setting", text=f"net.ipv4.ip_local_port_range = {low} {high}"),
        Observed(where="setting", text=f"net.ipv4.ip_local_reserved_ports = {before}"),
    )
    expected = f"{port.node_port} outside of the ephemeral range, or reserved"
    return _finding(seen.node, "nodeport-ephemeral", service, cause, expected, observed, (fix,), HOST + 1)


def _health_check(seen: NodePorts, service: Service, listener: Listener) -> Finding:
    port, who = service.health_check_port, listener.process or f"socket with inode {listener.inode}"
    cause = f"the health check of {service.namespace}/{service.name} cannot pass on {seen.node}: {who} has TCP {port}"
    observed = (Observed(where="socket", text=f"TCP {port} on {seen.node}: {who}"),)
    fixes = (
        Fix(
            command=f"ss -Hltnp 'sport = :{port}'  # then stop it or give it another port",
            risk="as the process has users",
        ),
    )
    expected = f"the agent answers health checks on TCP {port} (spec.healthCheckNodePort)"
    return _finding(seen.node, "nodeport-health-check", service, cause, expected, observed, fixes)


def without_local_endpoint(
    node: str, services: Iterable[Service], slices: Iterable[EndpointSlice]
) -> tuple[Service, ...]:
    """Services reached from outside with externalTrafficPolicy Local that have endpoints, and none on this node."""
    ready: dict[tuple[str, str], set[str]] = {}
    for part in slices:
        names = {one.node for one in part.endpoints if one.ready}
        ready.setdefault((part.namespace, part.service), set()).update(names)
    return tuple(
        service
        for service in services
        if service.external_policy == "Local" and (nodes := ready.get((service.namespace, service.name)))
        if node not in nodes and any(True for _ in claimed((service,)))
    )


def check_local(node: str, services: Iterable[Service], dropped: int, seconds: float) -> Iterable[Finding]:
    """Findings of Services without a local endpoint, when packets were ``dropped`` for that within ``seconds``."""
    for service in services if dropped else ():
        name = f"{service.namespace}/{service.name}"
        cause = f"{name} is asked for on {node}, and has no endpoint there (externalTrafficPolicy Local)"
        observed = (
            Observed(where="counter", text=f"SERVICE_NO_LOCAL_BACKEND rose by {dropped} in {seconds:.0f} s on {node}"),
        )
        fixes = (
            Fix(
                command=f"kubectl -n {service.namespace} patch service {service.name} -p "
                '\'{"spec":{"externalTrafficPolicy":"Cluster"}}\'',
                risk="backends no longer see the client's address",
                on="cluster",
            ),
        )
        expected = f"clients ask nodes that have an endpoint (the load balancer's health check leaves {node} out)"
        yield _finding(node, "nodeport-no-local-endpoint", service, cause, expected, observed, fixes, OBJECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of connections to one node port on another node."""

    service: Service
    port: ServicePort
    peer: str
    address: Address
    answered: bool
    """The node port answered a connection, with whatever."""
    node_answers: bool
    """The node itself does."""
    inside_answers: bool
    """The cluster IP does, asked from here: see :func:`would_answer`."""


def would_answer(
    service: Service,
    port: ServicePort,
    peer: Address,
    slices: Iterable[EndpointSlice],
    local: Mapping[Address, Subject],
) -> bool:
    """Whether what answers the cluster IP from this node answers that peer, too: not a ``local`` pod, by address, that
    policy lets only its own node reach.
    """
    own = [one for one in slices if (one.namespace, one.service) == (service.namespace, service.name)]
    return all(
        allows(subject, peer, port.protocol, number)
        for endpoint, number in offers(service, port, own, peer.version)
        if (subject := local.get(endpoint.addresses[0])) is not None
    )


def check_tried(node: str, tried: Iterable[Tried]) -> Iterable[Finding]:
    """Findings of node ports that are silent from here although node and Service answer."""
    for one in tried:
        if one.answered or not (one.node_answers and one.inside_answers):
            continue
        named = f"{_named(one.port)} of {one.peer}"
        cause = f"something before {named} drops what is sent to {one.service.namespace}/{one.service.name} there"
        observed = (
            Observed(where="packet", text=f"from {node}: {one.address}:{one.port.node_port} answers nothing"),
            Observed(where="socket", text=f"from {node}: {one.address} itself, and the cluster IP, answer"),
        )
        fix = Fix(
            command=f"# in the firewall before {one.peer}: let {_named(one.port)} through",
            risk="the Service can be reached from where the firewall did not let it",
            on="cluster",
        )
        expected = f"{one.address}:{one.port.node_port} answers as the cluster IP does"
        yield _finding(one.peer, "nodeport-filtered", one.service, cause, expected, observed, (fix,), NETWORK)
