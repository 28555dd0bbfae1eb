"""The verdict for a flow from A to B and its reasons: compiled rules of both sides, in sentences.

An end is ``namespace/pod`` or an address. An address is looked up among pods, then among nodes; what is neither is the
world. Host-network pods are their node: no policy selects them, and their own node's pods always take from them (the
kubelet's probes come that way). Between two pods of both families each family is judged, and the flow is allowed only
when every one is: an ipBlock of one family says nothing of the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from proto.identity import Reserved
from proto.net import Address
from proto.objects import Pod
from proto.policy import CompiledRule, Direction, RuleSource
from services.policy.core.cidrs import number_of
from services.policy.core.graph import Graph
from services.policy.core.identities import FINISHED
from services.policy.core.judge import Book, FlowEnd

PROTOCOL_NAMES = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


class NotFound(LookupError):
    """An end that is not there; the message names it and says what it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a question, found."""

    name: str
    identity: int
    node: str
    """Node the end lives on; empty for the world."""
    addresses: tuple[Address, ...]
    pod_key: str = ""
    """Key of the pod; empty for what is no pod with an identity of its own."""


@dataclass(frozen=True, slots=True)
class Side:
    """The verdict of one side."""

    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """The answer: the flow is allowed when both sides allow it."""

    source: End
    destination: End
    egress: Side
    ingress: Side

    @property
    def reasons(self) -> tuple[str, ...]:
        """Egress first, since its side is asked first."""
        return self.egress.reason, self.ingress.reason

    @property
    def allowed(self) -> bool:
        """Whether the flow may begin."""
        return self.egress.allowed and self.ingress.allowed


class Explainer:
    """Answers questions about one settled graph; make a new one when the graph has changed."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._books: dict[int, Book] = {}
        self._numbers: dict[tuple[str, Address], int] = {}
        self._pods_by_name: dict[str, tuple[str, Pod]] = {}
        self._pods_by_address: dict[Address, tuple[str, Pod]] = {}
        for key, pod in sorted(graph.pods.items(), key=lambda item: _liveliness(item[1])):
            self._pods_by_name[f"{pod.namespace}/{pod.name}"] = key, pod
            if not pod.host_network and pod.phase not in FINISHED:
                self._pods_by_address.update(dict.fromkeys(pod.addresses, (key, pod)))
        self._nodes = {address: node for node in graph.nodes.values() for address in node.addresses}

    def explain(self, source: str, destination: str, protocol: int, port: int) -> Verdicts:
        """Verdict on a new flow; raises :class:`NotFound` for an end that is not there."""
        start, end = self._end(source), self._end(destination)
        flow = f"{PROTOCOL_NAMES.get(protocol, f'protocol {protocol}')} port {port}"
        if start.pod_key and start.pod_key == end.pod_key:
            own = Side(True, f"{start.name} speaks to itself: such traffic never leaves the pod")
            return Verdicts(source=start, destination=end, egress=own, ingress=own)
        start, end = self._seen_from(start, end), self._seen_from(end, start)
        return Verdicts(
            source=start,
            destination=end,
            egress=self._side(Direction.EGRESS, start, end, protocol, port, flow),
            ingress=self._side(Direction.INGRESS, end, start, protocol, port, flow),
        )

    def _end(self, text: str) -> End:
        if "/" in text:
            found = self._pods_by_name.get(text)
            if found is None:
                raise NotFound(f"no pod {text} has a node: give namespace/pod as kubectl lists it, or an address")
            return self._pod_end(*found)
        try:
            address = ip_address(text)
        except ValueError as error:
            raise NotFound(f"{text!r} is neither namespace/pod nor an address") from error
        if (pod := self._pods_by_address.get(address)) is not None:
            return self._pod_end(*pod, only=address)
        if (node := self._nodes.get(address)) is not None:
            return _node_end(f"node {node.name}", node.name, (address,))
        return End(name=f"world ({address})", identity=Reserved.WORLD, node="", addresses=(address,))

    def _pod_end(self, key: str, pod: Pod, only: Address | None = None) -> End:
        name = f"{pod.namespace}/{pod.name}"
        addresses = pod.addresses if only is None else (only,)
        if pod.host_network:
            return _node_end(f"{name} (on the network of node {pod.node})", pod.node, addresses)
        found = self._graph.roster.identity_of(pod, self._graph.relevant)
        if found is None:
            raise NotFound(f"{name} has no identity: it has finished, or its namespace is not known")
        return End(name=name, identity=found, node=pod.node, addresses=addresses, pod_key=key)

    def _seen_from(self, end: End, other: End) -> End:
        """A node is HOST to its own pods and REMOTE_NODE to others'."""
        if end.identity != Reserved.HOST or end.node == other.node:
            return end
        return End(name=end.name, identity=Reserved.REMOTE_NODE, node=end.node, addresses=end.addresses)

    def _side(self, direction: Direction, subject: End, peer: End, protocol: int, port: int, flow: str) -> Side:
        label = f"{direction.name.lower()} of {subject.name}"
        if not subject.pod_key:
            return Side(True, f"{label}: allowed, policies apply to pods on the pod network only")
        if direction is Direction.INGRESS and peer.identity == Reserved.HOST:
            return Side(True, f"{label}: allowed, a pod always takes from its own node (kubelet probes)")
        compiled = self._graph.compiled.get(subject.identity)
        if compiled is None:
            return Side(
                False, f"{label}: denied, its identity has no rules: {self._graph.why_refused(subject.identity)}"
            )
        book = self._books.setdefault(subject.identity, Book(compiled.policy))
        sides = {
            version: self._judged(book, direction, peer, number, protocol, port, label, flow)
            for version, number in self._numbers_by_version(subject, peer).items()
        }
        denied = next((version for version, side in sides.items() if not side.allowed), None)
        if denied is None or not any(side.allowed for side in sides.values()):
            return next(iter(sides.values()))
        return Side(False, sides[denied].reason.replace(label, f"{label} by IPv{denied}", 1))

    def _numbers_by_version(self, subject: End, peer: End) -> dict[int, int]:
        """CIDR set of the peer for each family that both ends have; in none while no address is known."""
        versions = {address.version for address in subject.addresses} or {4, 6}
        namespace = self._graph.pods[subject.pod_key].namespace
        numbers = {
            address.version: self._number(namespace, address)
            for address in peer.addresses
            if address.version in versions
        }
        return dict(sorted(numbers.items())) or {0: 0}

    def _number(self, namespace: str, address: Address) -> int:
        if (namespace, address) not in self._numbers:
            partition = self._graph.partitions.get(namespace)
            self._numbers[namespace, address] = 0 if partition is None else number_of(partition.prefixes, address)
        return self._numbers[namespace, address]

    def _judged(
        self, book: Book, direction: Direction, peer: End, number: int, protocol: int, port: int, label: str, flow: str
    ) -> Side:
        policy = book.policy
        member = self._graph.member(peer.identity)
        end = FlowEnd(candidate=None if member is None else member.candidate, cidr_set=number)
        verdict = book.judge(direction, end, protocol, port)
        preposition = "from" if direction is Direction.INGRESS else "to"
        what = f"{flow} {preposition} {peer.name}"
        if verdict.rule is not None:
            source = policy.sources[verdict.rule.source]
            word = "allowed" if verdict.allowed else "denied"
            return Side(verdict.allowed, f"{label}: {word} by {rule_name(source, verdict.rule)} ({what})")
        if verdict.allowed:
            return Side(True, f"{label}: allowed, no policy selects it in this direction ({what})")
        other = Direction(1 - direction).name.lower()
        for problem in self._graph.compiled[policy.identity].problems:
            if not problem.fault.startswith(other):
                return Side(False, f"{label}: denied, {problem.fault}")
        isolating = ", ".join(names(self._graph.isolating(policy.identity, direction)))
        return Side(False, f"{label}: denied, isolated by {isolating} and no rule allows {what}")


def _liveliness(pod: Pod) -> tuple[bool, bool, bool]:
    """Of two pods with one name (one moves), the one that is not going away is meant: sorted last, it stays."""
    return pod.phase not in FINISHED, not pod.terminating, bool(pod.addresses)


def _node_end(name: str, node: str, addresses: tuple[Address, ...]) -> End:
    return End(name=name, identity=Reserved.HOST, node=node, addresses=addresses)


def names(sources: Iterable[RuleSource]) -> list[str]:
    """``NetworkPolicy prod/default-deny`` for each source."""
    return [f"{source.kind} {'/'.join(filter(None, (source.namespace, source.name)))}" for source in sources]


def rule_name(source: RuleSource, rule: CompiledRule) -> str:
    """``NetworkPolicy prod/db-from-api, ingress rule 0``."""
    return f"{names((source,))[0]}, {rule.direction.name.lower()} rule {source.index}"
