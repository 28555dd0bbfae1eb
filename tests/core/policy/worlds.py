"""Random small clusters with policies in all that NetworkPolicy can say, and probes that sit on its edges.

One generator, two sources of chance: a seeded ``random.Random`` for many clusters a second, hypothesis for shrinking.
Values are few on purpose, so that selectors meet labels, CIDRs meet addresses and exceptions, and names meet ports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random
from typing import Protocol, TypeVar

from proto.identity import NamedPort
from proto.objects import (
    IPBlock,
    Namespace,
    NetworkPolicy,
    Node,
    Peer,
    Pod,
    PolicyPort,
    PolicyRule,
    Requirement,
    Selector,
)

T = TypeVar("T")
NAMES = ("x", "y", "z")
KEYS = ("app", "tier", "pod-template-hash")
VALUES = ("a", "b", "c")
PROTOCOLS = (6, 17, 132)
PORTS = (79, 80, 81, 82, 100, 443)
STRANGERS = tuple(map(ip_address, ("8.8.8.8", "10.9.0.1", "172.16.0.9", "2001:db8::1", "fd00:9::1", "255.255.255.255")))
CIDRS = {
    4: ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.1.0/30", "10.1.0.2/32", "8.8.8.0/24"),
    6: ("::/0", "fd00::/8", "fd00:1::/32", "fd00:1::/64", "fd00:1:0:1::/126", "fd00:1::2/128", "2001:db8::/32"),
}


class Chance(Protocol):
    def choice(self, seq: Sequence[T], /) -> T: ...


@dataclass(frozen=True)
class World:
    namespaces: tuple[Namespace, ...]
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    policies: tuple[NetworkPolicy, ...]

    @property
    def addresses(self) -> list[IPv4Address | IPv6Address]:
        found = {address: None for pod in self.pods for address in pod.addresses}
        return [*found, *(address for node in self.nodes for address in node.addresses), *STRANGERS]


class Builder:
    def __init__(self, chance: Chance) -> None:
        self.choice = chance.choice

    def maybe(self, make: Callable[[], T], one_in: int = 2) -> T | None:
        return make() if self.choice(range(one_in)) == 0 else None

    def some(self, make: Callable[[], T], most: int) -> tuple[T, ...]:
        return tuple(make() for _ in range(self.choice(range(most + 1))))

    def world(self, pods_per_namespace: int = 3, policies: int = 5) -> World:
        nodes = tuple(
            Node(f"n{i}", f"uid-n{i}", addresses=(ip_address(f"172.30.0.{i}"), ip_address(f"fd00:172::{i}")))
            for i in (1, 2)
        )
        namespaces = (Namespace("kube-system", "cluster"), *(self.namespace(name) for name in NAMES))
        pods = [
            self.pod(name, position, index)
            for position, name in enumerate(NAMES)
            for index in range(self.choice(range(pods_per_namespace + 1)))
        ]
        return World(
            namespaces, nodes, tuple(pods), tuple(self.policy(i) for i in range(self.choice(range(policies + 1))))
        )

    def labels(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((key, self.choice(VALUES)) for key in KEYS if self.choice((True, False))))

    def namespace(self, name: str) -> Namespace:
        return Namespace(name, f"uid-{name}", tuple(sorted((("kubernetes.io/metadata.name", name), *self.labels()))))

    def pod(self, namespace: str, position: int, index: int) -> Pod:
        node = self.choice(("n1", "n2"))
        host = self.choice(range(8)) == 0
        # Low host numbers on purpose: they fall in and out of the narrow CIDRs. A finished pod's address is reused.
        own = (ip_address(f"10.1.{position}.{index + 1}"), ip_address(f"fd00:1:0:{position}::{index + 1}"))
        number = node[1:]
        return Pod(
            namespace=namespace,
            name=f"p{index}",
            uid=f"uid-{namespace}-{index}",
            node=node,
            labels=self.labels(),
            service_account=self.choice(("default", "robot")),
            named_ports=tuple(
                sorted({self.named_port() for _ in range(self.choice((0, 1, 2)))}, key=lambda p: (p.name, p.port))
            ),
            host_network=host,
            addresses=(ip_address(f"172.30.0.{number}"), ip_address(f"fd00:172::{number}")) if host else own,
            phase=self.choice(("Running", "Running", "Running", "Pending", "Succeeded")),
        )

    def named_port(self) -> NamedPort:
        return NamedPort(self.choice(("web", "dns")), self.choice(PROTOCOLS), self.choice((80, 81, 443)))

    def selector(self) -> Selector:
        return Selector(
            match_labels=tuple((key, self.choice(VALUES)) for key in KEYS if self.choice(range(5)) == 0),
            match_expressions=self.some(self.requirement, 1),
        )

    def requirement(self) -> Requirement:
        operator = self.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        values = tuple(v for v in VALUES if self.choice((True, False))) or ("a",) if operator.endswith("In") else ()
        return Requirement(self.choice(KEYS), operator, values)  # type: ignore[arg-type]

    def policy(self, index: int) -> NetworkPolicy:
        ingress = self.choice((True, True, False))
        egress = self.choice((True, False)) or not ingress
        return NetworkPolicy(
            namespace=self.choice(NAMES),
            name=f"np{index}",
            uid=f"uid-np{index}",
            pod_selector=self.selector(),
            applies_ingress=ingress,
            applies_egress=egress,
            ingress=self.some(self.rule, 2) if ingress else (),
            egress=self.some(self.rule, 2) if egress else (),
        )

    def rule(self) -> PolicyRule:
        return PolicyRule(peers=self.some(self.peer, 2), ports=self.some(self.port, 2))

    def peer(self) -> Peer:
        kind = self.choice(("block", "pods", "namespaces", "both"))
        if kind == "block":
            return Peer(ip_block=self.block())
        return Peer(
            pod_selector=self.selector() if kind in ("pods", "both") else None,
            namespace_selector=self.selector() if kind in ("namespaces", "both") else None,
        )

    def block(self) -> IPBlock:
        texts = CIDRS[self.choice((4, 6))]
        cidr = ip_network(self.choice(texts))
        inside = [n for n in map(ip_network, texts) if n != cidr and n.subnet_of(cidr)]  # type: ignore[arg-type]
        return IPBlock(cidr, tuple(self.choice(inside) for _ in range(self.choice((0, 1, 2)))) if inside else ())

    def port(self) -> PolicyPort:
        protocol = self.choice(PROTOCOLS)
        match self.choice(("number", "number", "range", "name", "any")):
            case "number":
                return PolicyPort(protocol, port=self.choice(PORTS))
            case "range":
                first = self.choice(PORTS)
                return PolicyPort(protocol, port=first, end_port=self.choice([p for p in PORTS if p >= first]))
            case "name":
                return PolicyPort(protocol, port_name=self.choice(("web", "dns")))
            case _:
                return PolicyPort(protocol)


def seeded(seed: int) -> Builder:
    return Builder(Random(seed))
