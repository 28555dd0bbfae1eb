"""An ``ipBlock`` that clients from outside never match, since they come to the pod by the address of a node.

A node that takes a packet for a Service and sends it to a pod of another node speaks in its own name: the pod sees that
node, and not the client. A policy that allows the client's addresses denies it. Such packets are known by their source
port, which no connection of a node's own has (``nat_layout.FIRST_PORT``). What was denied is remembered for a while;
it is a finding when the pod's present policy denies it still, has an ``ipBlock`` for that port, and a Service whose
external traffic policy is ``Cluster`` leads there. Times are nanoseconds of the monotonic clock.

Source: kubernetes.io/docs/tutorials/services/source-ip; networking/v1 IPBlock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from proto.findings import OBJECT, Expected, Finding, Fix, Observed, object_name
from proto.flow import DropReason
from proto.identity import Reserved
from proto.net import Address
from proto.objects import EndpointSlice, Service
from proto.policy import CompiledRule, Direction, Verdict
from services.dataplane.core.datapath.layout import Event
from services.dataplane.core.datapath.nat_layout import FIRST_PORT
from services.dataplane.core.doctor.ingress import Subject, allows, is_on
from services.dataplane.core.loadbalancer.endpoint_choice import offers

CODE = "policy-ipblock-masqueraded"
KEPT = 600 * 1_000_000_000
"""How long a denial is remembered."""
MOST = 256
"""Denials that are remembered, by endpoint, source and port: the latest."""
LISTED = 4
_NODES = (Reserved.REMOTE_NODE, Reserved.KUBE_APISERVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """Who was denied where."""

    endpoint: int
    source: Address
    protocol: int
    port: int


class Denials:
    """Translated packets of other nodes that pods here denied. ``take`` is a sink of the ring buffer's reader."""

    def __init__(self) -> None:
        self._seen: dict[Denied, tuple[int, int]] = {}
        """How many, and when the last, oldest first."""

    def take(self, events: Iterable[Event]) -> None:
        """Remembers those of a batch."""
        for event in events:
            denied = event.reason == DropReason.POLICY_DENIED and event.direction == Direction.INGRESS
            if denied and event.source_port >= FIRST_PORT and event.peer in _NODES:
                key = Denied(
                    endpoint=event.endpoint,
                    source=event.source,
                    protocol=event.protocol,
                    port=event.destination_port,
                )
                count, last = self._seen.pop(key, (0, 0))
                count = count if event.time - last <= KEPT else 0
                self._seen[key] = count + 1 + event.missed, event.time
                if len(self._seen) > MOST:
                    del self._seen[next(iter(self._seen))]

    def now(self, now: int) -> Mapping[Denied, int]:
        """How many of each, of those that were denied lately."""
        self._seen = {key: one for key, one in self._seen.items() if now - one[1] <= KEPT}
        return {key: count for key, (count, _) in self._seen.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What this node knows of others."""

    node: str
    nodes: Mapping[Address, str]
    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]


def check(denials: Mapping[Denied, int], subjects: Mapping[int, Subject], facts: Facts) -> Iterator[Finding]:
    """``subjects``: by number of the endpoint. One finding for each pod, port and Service."""
    by_port: dict[tuple[int, int, int], dict[Address, int]] = defaultdict(dict)
    for key, count in denials.items():
        if key.endpoint in subjects and key.source in facts.nodes:
            by_port[key.endpoint, key.protocol, key.port][key.source] = count
    for (endpoint, protocol, port), sources in by_port.items():
        subject = subjects[endpoint]
        # A denial may be of a policy that was mended since.
        denied = {one: count for one, count in sources.items() if not allows(subject, one, protocol, port)}
        rule = next((one for one in subject.policy.rules if _names_blocks(one, protocol, port)), None)
        if denied and rule is not None:
            for service in _leading(subject, protocol, port, facts):
                yield _finding(subject, rule, service, port, denied, facts)


def _names_blocks(rule: CompiledRule, protocol: int, port: int) -> bool:
    allows = rule.direction == Direction.INGRESS and rule.verdict == Verdict.ALLOW
    return allows and bool(rule.cidr_sets) and is_on(rule.ports, protocol, port)


def _leading(subject: Subject, protocol: int, port: int, facts: Facts) -> Iterator[Service]:
    """Services that lead clients from outside to the pod's port by other nodes."""
    own: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for part in facts.slices:
        if any(address in subject.addresses for one in part.endpoints for address in one.addresses[:1]):
            own[part.namespace, part.service].append(part)
    for service in facts.services:
        slices = own.get((service.namespace, service.name))
        if (
            slices
            and service.external_policy == "Cluster"
            and any(
                number == port and endpoint.addresses[0] in subject.addresses
                for one in service.ports
                if one.protocol == protocol and (one.node_port or service.load_balancer_ips or service.external_ips)
                for version in (4, 6)
                for endpoint, number in offers(service, one, slices, version)
            )
        ):
            yield service


def _finding(
    subject: Subject, rule: CompiledRule, service: Service, port: int, denied: Mapping[Address, int], facts: Facts
) -> Finding:
    source = subject.policy.sources[rule.source]
    policy = object_name(source.kind, source.namespace, source.name)
    about = object_name("Service", service.namespace, service.name)
    blocks = sorted({str(one.prefix) for one in subject.partition.prefixes if one.number in rule.cidr_sets})
    listed = ", ".join(blocks[:LISTED]) + (f" and {len(blocks) - LISTED} more" if len(blocks) > LISTED else "")
    nodes = ", ".join(f"{facts.nodes[one]} ({one})" for one in sorted(denied, key=str)[:LISTED])
    patch = f'kubectl -n {service.namespace} patch service {service.name} -p \'{{"spec": {{"externalTrafficPolicy": '
    return Finding(
        code=CODE,
        fault="policy",
        about=policy,
        node=facts.node,
        cause=(
            f"clients of {service.namespace}/{service.name} reach {subject.name} by the address of node {nodes}: "
            f"ipBlock {listed} of {source.namespace}/{source.name} never sees theirs"
        ),
        expected=Expected(f"clients of {listed} are let in on port {port}", policy, subject.policy.revision.text),
        observed=(
            *(
                Observed("packet", f"{count} translated packets of {facts.nodes[one]} ({one}) to port {port} denied")
                for one, count in sorted(denied.items(), key=str)[:LISTED]
            ),
            Observed("object", f"{about}: externalTrafficPolicy Cluster, {subject.name} is its endpoint"),
        ),
        fixes=(
            Fix(
                command=f'{patch}"Local"}}}}\'',
                risk="Nodes without an endpoint of the Service drop what clients send to them.",
                on="cluster",
                undo=f'{patch}"Cluster"}}}}\'',
            ),
            Fix(
                command=f"kubectl -n {source.namespace} edit networkpolicy {source.name}  # allow ipBlock of the nodes",
                risk="Whoever reaches a node from outside is let in, whatever its address.",
                on="cluster",
            ),
        ),
        affects=(about, object_name("Pod", *subject.name.split("/", 1))),
        precedence=OBJECT,
    )
