"""All checks of policy for one question: of the whole cluster, of a policy, of a connection, of name service.

Promises that nothing is found in a cluster whose policies name what is there and let pods ask for names. The whole is
looked at policy by policy, so that the caller may pause between two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from proto.findings import OBJECT, DoctorRequest, Expected, Finding, Observed, object_name
from proto.objects import Namespace, NetworkPolicy
from services.policy.core.doctor import additive, name_servers, ports, selectors
from services.policy.core.doctor.population import Population
from services.policy.core.explain import End, Explainer
from services.policy.core.graph import Graph
from services.policy.core.identities import Member
from services.policy.core.model import Policy

DENIED = "policy-denied"
CODES = (*selectors.CODES, *ports.CODES, *additive.CODES, *name_servers.CODES, DENIED)
"""All that may be found."""
KINDS = frozenset({"all", "policy", "connection", "dns"})
"""Questions that this is an answer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One settled graph and the objects that it was made of."""

    graph: Graph
    policies: Mapping[str, NetworkPolicy]
    """By the key of ``objects``, as the graph has them."""
    namespaces: tuple[Namespace, ...]


class Examination:
    """The checks of one question over the present state."""

    def __init__(self, facts: Facts) -> None:
        self._graph = facts.graph
        self._policies = facts.policies
        self._population = Population(facts.graph.pods.values(), facts.namespaces)
        self._members: Mapping[int, Member] = facts.graph.in_use()

    def named(self, name: str) -> str | None:
        """Key of the policy ``namespace/name``; None where there is none."""
        return next((key for key, one in self._policies.items() if f"{one.namespace}/{one.name}" == name), None)

    def examine(self, question: DoctorRequest) -> Iterator[tuple[Finding, ...]]:
        """Findings, policy by policy. Raises ``explain.NotFound`` for an end of a connection that is not there."""
        match question.kind:
            case "all":
                yield from (self._policy(key, asked=False) for key in sorted(self._policies))
                yield self._names(asked=False)
            case "policy":
                key = self.named(question.name)
                if key is not None:
                    yield self._policy(key, asked=True)
                    about = object_name("NetworkPolicy", *question.name.split("/", 1))
                    yield tuple(one for one in self._names(asked=True) if about in (one.about, *one.affects))
            case "connection":
                yield from self._connection(question)
            case "dns":
                yield self._names(asked=True)
            case _:
                return

    def _policy(self, key: str, *, asked: bool) -> tuple[Finding, ...]:
        written, policy = self._policies[key], self._graph.policies.get(key)
        found = [
            *selectors.check(written, self._population, asked=asked),
            *ports.check(written, self._population, asked=asked),
        ]
        if policy is not None:
            found += additive.check(policy, self._subjects(key), self._members, asked=asked)
        return tuple(found)

    def _subjects(self, key: str) -> list[additive.Subject]:
        identities = sorted(self._graph.subjects_of(key) & self._members.keys())
        return [
            additive.Subject(member=self._members[identity], policies=self._graph.selecting(identity))
            for identity in identities
        ]

    def _names(self, *, asked: bool) -> tuple[Finding, ...]:
        servers = []
        for pod in sorted(self._graph.pods.values(), key=lambda one: one.name):
            if name_servers.is_server(pod):
                identity = self._graph.roster.identity_of(pod, self._graph.relevant)
                member = None if identity is None else self._members.get(identity)
                if member is not None:
                    name = f"{pod.namespace}/{pod.name}"
                    servers.append(name_servers.Server(name=name, member=member, addresses=pod.addresses))
        clients = [
            name_servers.Client(
                member=member,
                policy=self._graph.compiled[identity].policy,
                partition=self._graph.partitions.get(member.namespace),
            )
            for identity, member in sorted(self._members.items())
            if identity in self._graph.compiled
        ]
        rules = {client.member.identity: client.policy for client in clients}
        return (
            *name_servers.check(servers, clients, asked=asked),
            *name_servers.check_servers(servers, self._members, rules),
        )

    def _connection(self, question: DoctorRequest) -> Iterator[tuple[Finding, ...]]:
        """What denies a connection, and what is wrong with the policies that judge it."""
        verdicts = Explainer(self._graph).explain(
            question.source, question.destination, question.protocol, question.port
        )
        if verdicts.allowed:
            return
        side, end = ("egress", verdicts.source) if not verdicts.egress.allowed else ("ingress", verdicts.destination)
        judging = self._graph.selecting(end.identity)
        faults = [one for key in self._keys(judging) for one in self._policy(key, asked=True)]
        reason = verdicts.egress.reason if side == "egress" else verdicts.ingress.reason
        yield (_denied(question, end, reason, judging),)
        yield tuple(faults)

    def _keys(self, policies: list[Policy]) -> list[str]:
        names = {policy.name for policy in policies}
        return sorted(key for key, one in self._graph.policies.items() if one.name in names)


def _denied(question: DoctorRequest, end: End, reason: str, judging: list[Policy]) -> Finding:
    names = sorted(str(policy.name) for policy in judging)
    return Finding(
        code=DENIED,
        fault="policy",
        about=object_name("Pod", *end.name.split("/", 1)) if end.pod_key else end.name,
        cause=reason,
        expected=Expected(f"{question.source} to {question.destination}, port {question.port}, allowed"),
        observed=tuple(Observed("object", f"{name} selects {end.name}") for name in names)
        or (Observed("object", reason),),
        fixes=(),
        affects=tuple(names),
        precedence=OBJECT + 1,
    )
