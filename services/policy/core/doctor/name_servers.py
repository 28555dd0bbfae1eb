"""Checks that policies let pods ask the cluster's name servers, and let the servers be asked.

A policy that isolates a pod's egress and allows something, but not port 53 of CoreDNS, makes every name time out: the
query is dropped and nobody answers. One whose egress has no rules at all means it so. The verdicts are those of the
compiled rules, as nodes enforce them.

Sources: RFC 1035 4.2 (UDP and TCP port 53), RFC 7766 (TCP is not optional).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from proto.findings import OBJECT, Expected, Finding, Observed, object_name
from proto.net import Address
from proto.objects import Pod
from proto.policy import CidrPartition, CompiledPolicy, CompiledRule, Direction, RuleSource
from services.policy.core.cidrs import Partition, number_of
from services.policy.core.doctor.selectors import edit_named
from services.policy.core.explain import names
from services.policy.core.identities import FINISHED, Member
from services.policy.core.judge import Book, FlowEnd, matches_port

DNS_POLICY = "dns-policy"
CODES = (DNS_POLICY,)
NAMESPACE, LABEL = "kube-system", ("k8s-app", "kube-dns")
SERVICE = object_name("Service", NAMESPACE, "kube-dns")
UDP, TCP = 17, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A CoreDNS pod as policies see it."""

    name: str
    member: Member
    addresses: tuple[Address, ...]

    def port(self, protocol: int) -> int:
        """Where it listens: its container port that is named for DNS, else 53."""
        found = (one.port for one in self.member.named_ports if one.name.startswith("dns") and one.protocol == protocol)
        return next(found, 53)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """An identity of pods that may ask."""

    member: Member
    policy: CompiledPolicy
    partition: Partition | CidrPartition | None
    """Of its namespace."""


def is_server(pod: Pod) -> bool:
    """Whether the pod is a name server of the cluster on the pod network."""
    of_dns = pod.namespace == NAMESPACE and LABEL in pod.labels
    return of_dns and not pod.host_network and pod.phase not in FINISHED


def check(servers: Sequence[Server], clients: Iterable[Client], *, asked: bool) -> Iterator[Finding]:
    """Whose egress does not reach a server, one finding for each set of policies that isolates them."""
    found: dict[tuple[RuleSource, ...], list[Client]] = {}
    protocols: dict[tuple[RuleSource, ...], int] = {}
    for client in clients:
        protocol = _denied(client, servers, asked=asked)
        if protocol is None:
            continue
        isolating = tuple(one for one in client.policy.isolated_by if one.index == -2)
        found.setdefault(isolating, []).append(client)
        protocols[isolating] = protocol
    for isolating, them in sorted(found.items(), key=lambda item: names(item[0])):
        yield _forgotten(isolating, them, servers, protocols[isolating])


def check_servers(
    servers: Sequence[Server], clients: Mapping[int, Member], rules: Mapping[int, CompiledPolicy]
) -> Iterator[Finding]:
    """Whom policies that select CoreDNS itself keep away from it."""
    for identity in sorted({server.member.identity for server in servers}):
        policy = rules.get(identity)
        if policy is None or not policy.ingress_isolated:
            continue
        server = next(one for one in servers if one.member.identity == identity)
        book = Book(policy)
        port = server.port(UDP)
        ends = ((member, FlowEnd(candidate=member.candidate, cidr_set=0)) for member in clients.values())
        denied = [member for member, end in ends if not book.judge(Direction.INGRESS, end, UDP, port).allowed]
        denied.sort(key=lambda member: member.described)
        if denied and not any(rule.cidr_sets for rule in policy.rules):
            yield _kept_away(server, policy, denied, len(clients))


def _denied(client: Client, servers: Sequence[Server], *, asked: bool) -> int | None:
    """The protocol by which some server is not reached; None where all are, or where no name is meant to be asked."""
    policy = client.policy
    egress = [rule for rule in policy.rules if rule.direction is Direction.EGRESS]
    if not policy.egress_isolated or not egress:
        return None
    if not asked and any(rule.cidr_sets and matches_port(rule.ports, UDP, 53) for rule in egress):
        return None  # it asks a server outside of the cluster
    book = Book(policy)
    for protocol in (UDP, TCP) if asked else (UDP,):
        for server in servers:
            if not _reaches(book, client, server, protocol):
                return protocol
    return None


def _reaches(book: Book, client: Client, server: Server, protocol: int) -> bool:
    prefixes = () if client.partition is None else client.partition.prefixes
    numbers = {number_of(prefixes, address) for address in server.addresses} or {0}
    ends = (FlowEnd(candidate=server.member.candidate, cidr_set=number) for number in numbers)
    return all(book.judge(Direction.EGRESS, end, protocol, server.port(protocol)).allowed for end in ends)


def _forgotten(
    isolating: Sequence[RuleSource], clients: Sequence[Client], servers: Sequence[Server], protocol: int
) -> Finding:
    word = {UDP: "UDP", TCP: "TCP"}[protocol]
    policy = clients[0].policy
    near = [rule for rule in policy.rules if rule.direction is Direction.EGRESS and _is_of_dns(rule, protocol)]
    why = (
        f"their rules for {word} port 53 name peers that CoreDNS is not among"
        if near
        else f"no rule of theirs allows {word} port 53"
    )
    writers = [policy.sources[rule.source] for rule in policy.rules if rule.direction is Direction.EGRESS]
    at = next((one for one in writers if one in [policy.sources[rule.source] for rule in near]), writers[0])
    listed = ", ".join(names(isolating))
    server, who = servers[0], _described([client.member for client in clients])
    return Finding(
        code=DNS_POLICY,
        fault="dns",
        about=names((at,))[0],
        cause=f"{who} cannot ask CoreDNS by {word}: {listed} isolate their egress, and {why}",
        expected=Expected(f"egress to {server.name}, {word} port {server.port(protocol)}", SERVICE),
        observed=(
            Observed("object", f"egress isolated by {listed}"),
            *(
                Observed("object", f"{names((one,))[0]}, egress rule {one.index}: not to CoreDNS")
                for one in writers[:8]
            ),
        ),
        fixes=(
            edit_named(
                at.namespace,
                at.name,
                "add to egress: {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], "
                "ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}",
            ),
        ),
        affects=tuple(names(isolating)),
        precedence=OBJECT,
    )


def _kept_away(server: Server, policy: CompiledPolicy, denied: Sequence[Member], asked: int) -> Finding:
    isolating = [one for one in policy.isolated_by if one.index == -1]
    listed = ", ".join(names(isolating))
    return Finding(
        code=DNS_POLICY,
        fault="dns",
        about=names(isolating)[0],
        cause=f"CoreDNS takes no query of {_described(denied)}: {listed} isolate its ingress",
        expected=Expected("ingress of UDP port 53 from every pod", SERVICE),
        observed=(
            Observed("object", f"{listed} select {server.name}"),
            Observed("object", f"{len(denied)} of {asked} kinds of pods are denied UDP port {server.port(UDP)}"),
        ),
        fixes=(
            edit_named(
                isolating[0].namespace,
                isolating[0].name,
                "add to ingress: {from: [{namespaceSelector: {}}], "
                "ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}",
            ),
        ),
        affects=(SERVICE,),
        precedence=OBJECT,
    )


def _is_of_dns(rule: CompiledRule, protocol: int) -> bool:
    """Whether it names port 53, and is not just about every port."""
    return matches_port([match for match in rule.ports if match.bits], protocol, 53)


def _described(members: Sequence[Member]) -> str:
    first = members[0].described
    return first if len(members) == 1 else f"{first}, and {len(members) - 1} more kinds of pods"
