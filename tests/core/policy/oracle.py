"""A second opinion: may this flow begin? Read off the text of the NetworkPolicy API over plain sets, nothing compiled.

Shares no code with ``services.policy`` (only the message types), computes no identities, cuts no address space, and is
slow. The sentences in quotes are those of the API reference (networking.k8s.io/v1) that each step follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from proto.objects import IPBlock, Namespace, NetworkPolicy, Node, Peer, Pod, PolicyPort, PolicyRule, Selector


@dataclass(frozen=True)
class TrafficPeer:
    """One end of a flow: an address, and the pod (on the pod network) or node that has it, if any."""

    address: IPv4Address | IPv6Address
    pod: Pod | None = None
    node: str = ""


def peer_at(address: IPv4Address | IPv6Address, pods: Iterable[Pod], nodes: Iterable[Node]) -> TrafficPeer:
    """Who has this address. Host-network pods have their node's; finished pods have none any more."""
    for pod in pods:
        if address in pod.addresses and not pod.host_network and pod.phase not in ("Succeeded", "Failed"):
            return TrafficPeer(address, pod, pod.node)
    for node in nodes:
        if address in node.addresses:
            return TrafficPeer(address, None, node.name)
    return TrafficPeer(address)


class Oracle:
    def __init__(self, policies: Iterable[NetworkPolicy], namespaces: Iterable[Namespace]) -> None:
        self.policies = list(policies)
        self.namespaces = {n.name: dict(n.labels) for n in namespaces}

    def allows(self, source: TrafficPeer, destination: TrafficPeer, protocol: int, port: int) -> bool:
        if source.pod is not None and source.pod == destination.pod:
            return True  # "a pod cannot block access to itself"
        return self.egress(source, destination, protocol, port) and self.ingress(source, destination, protocol, port)

    def egress(self, source: TrafficPeer, destination: TrafficPeer, protocol: int, port: int) -> bool:
        if source.pod is None:
            return True  # policies select pods
        selecting = [p for p in self.policies if p.applies_egress and self.selected(p, source.pod)]
        # "Outgoing traffic is allowed if there are no NetworkPolicies selecting the pod [...] OR if the traffic matches
        # at least one egress rule across all of the NetworkPolicy objects whose podSelector matches the pod."
        return not selecting or any(
            self.rule(p, rule, destination, destination, protocol, port) for p in selecting for rule in p.egress
        )

    def ingress(self, source: TrafficPeer, destination: TrafficPeer, protocol: int, port: int) -> bool:
        if destination.pod is None:
            return True
        if source.pod is None and source.node and source.node == destination.node:
            return True  # "traffic to and from the node where a Pod is running is always allowed"
        selecting = [p for p in self.policies if p.applies_ingress and self.selected(p, destination.pod)]
        return not selecting or any(
            self.rule(p, rule, source, destination, protocol, port) for p in selecting for rule in p.ingress
        )

    def selected(self, policy: NetworkPolicy, pod: Pod) -> bool:
        return pod.namespace == policy.namespace and pod.labels in _chosen(policy.pod_selector, {pod.labels})

    def rule(
        self,
        policy: NetworkPolicy,
        rule: PolicyRule,
        peer: TrafficPeer,
        destination: TrafficPeer,
        protocol: int,
        port: int,
    ) -> bool:
        # "If this field is empty or missing, this rule matches all sources"; likewise destinations and ports.
        if not rule.peers:
            return self.ports(rule.ports, destination.pod, protocol, port)
        return any(
            self.peer(policy, entry, peer)
            # An ipBlock is about addresses outside any pod's spec, so nobody on it has named ports to go out to.
            and self.ports(
                rule.ports,
                None if entry.ip_block and peer is destination else destination.pod,
                protocol,
                port,
            )
            for entry in rule.peers
        )

    def peer(self, policy: NetworkPolicy, entry: Peer, end: TrafficPeer) -> bool:
        if entry.ip_block is not None:
            return _in_block(entry.ip_block, end.address)
        pod = end.pod
        if pod is None or (entry.pod_selector is None and entry.namespace_selector is None):
            return False
        if entry.namespace_selector is None:
            # "Otherwise it selects the pods matching podSelector in the policy's own namespace."
            spaces = {policy.namespace}
        else:
            # "an empty selector selects all namespaces"
            labels = {tuple(sorted(v.items())) for v in self.namespaces.values()}
            chosen = _chosen(entry.namespace_selector, labels)
            spaces = {n for n, v in self.namespaces.items() if tuple(sorted(v.items())) in chosen}
        # "Otherwise it selects all pods in the namespaces selected by namespaceSelector."
        return pod.namespace in spaces and (
            entry.pod_selector is None or pod.labels in _chosen(entry.pod_selector, {pod.labels})
        )

    def ports(self, ports: tuple[PolicyPort, ...], destination: Pod | None, protocol: int, port: int) -> bool:
        return not ports or any(port in self.numbers(p, destination) for p in ports if p.protocol == protocol)

    def numbers(self, port: PolicyPort, destination: Pod | None) -> Iterable[int]:
        if port.port_name is not None:
            listening = destination.named_ports if destination else ()
            return {own.port for own in listening if (own.name, own.protocol) == (port.port_name, port.protocol)}
        if port.port is None:
            return range(65536)  # "If this field is not provided, this matches all port names and numbers."
        return range(port.port, (port.end_port or port.port) + 1)


type_of_labels = tuple[tuple[str, str], ...]


def _chosen(selector: Selector, candidates: set[type_of_labels]) -> set[type_of_labels]:
    """Those of the candidates that stay after each requirement has taken its own away."""
    left = set(candidates)
    for pair in selector.match_labels:
        left -= {c for c in left if pair not in c}
    for entry in selector.match_expressions:
        having = {c for c in left if entry.key in {k for k, _ in c}}
        among = {c for c in left if {(entry.key, value) for value in entry.values} & set(c)}
        left &= {"In": among, "NotIn": left - among, "Exists": having, "DoesNotExist": left - having}[entry.operator]
    return left


def _in_block(block: IPBlock, address: IPv4Address | IPv6Address) -> bool:
    """In the CIDR and "should not be included within" any except. Families never mix."""

    def inside(network: object) -> bool:
        return network.version == address.version and address in network  # type: ignore[attr-defined, operator]

    return inside(block.cidr) and not any(inside(network) for network in block.excepted)
