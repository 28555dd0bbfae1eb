"""All checks of name service: the servers that there should be, the Corefile, and whether everybody answers.

The servers and upstreams are asked by the agent itself while the question is open; what they said stands in the
evidence. A server that the endpoints call ready and that answers nothing is told apart from one that is not there. Of
an upstream, silence, slowness, refusal and lies are different faults: a name below ``invalid`` exists nowhere (RFC 6761
6.4), so whoever knows an address for it invents others, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from proto.findings import EFFECT, KERNEL, NETWORK, OBJECT, Expected, Finding, Fix, Observed, object_name
from proto.net import Address
from proto.objects import Deployment, EndpointSlice
from services.dns.core.caddyfile import Broken, parse
from services.dns.core.doctor.upstreams import Upstream, upstreams
from services.dns.core.question import Answer

NAMESPACE = "kube-system"
DOWN, SELECTOR, TOO_FEW = "dns-servers-down", "dns-service-selector", "dns-too-few"
SILENT = "dns-server-silent"
COREFILE, LOOP = "dns-corefile", "dns-loop"
UPSTREAM_SILENT, UPSTREAM_REFUSES = "dns-upstream-silent", "dns-upstream-refuses"
UPSTREAM_SLOW, UPSTREAM_LIES = "dns-upstream-slow", "dns-upstream-lies"
CODES = (
    *(DOWN, SELECTOR, TOO_FEW, COREFILE, LOOP),
    *(UPSTREAM_SILENT, UPSTREAM_REFUSES, UPSTREAM_SLOW, UPSTREAM_LIES),
)
SLOW = 300.0
"""Milliseconds of the fastest of several answers: a resolver across an ocean needs less."""
REFUSALS = frozenset({"REFUSED", "SERVFAIL", "NOTIMP"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a server answered to a name that it should know, and what it said of one that is none."""

    answer: Answer | None
    """The fastest; None: nothing, however often it was asked."""
    invalid: Answer | None = None
    """To a name below ``invalid``."""
    times: int = 1
    """How often it was asked."""
    name: str = ""
    """That it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is wanted of name service, what there is, and what it answered."""

    service: str
    """Name of the DNS Service."""
    cluster_ips: tuple[Address, ...] = ()
    """Of the Service."""
    slices: tuple[EndpointSlice, ...] = ()
    deployment: Deployment | None = None
    """CoreDNS'."""
    replicas: int | None = None
    """That were decided; None while nothing is."""
    corefile: str | None = None
    servers: Mapping[str, Address] = field(default_factory=dict)
    """Those that serve, by the endpoints: ``core.servers``."""
    by_server: Mapping[Address, Asked] = field(default_factory=dict)
    by_upstream: Mapping[Upstream, Asked] = field(default_factory=dict)


def wanted_upstreams(corefile: str | None) -> tuple[Upstream, ...]:
    """Whom to ask beside the servers: none for a Corefile that cannot be read."""
    try:
        return () if corefile is None else upstreams(parse(corefile))
    except Broken:
        return ()


def check(facts: Facts) -> Iterator[Finding]:
    """Everything that is wrong by the objects, the Corefile and what upstreams answered: :data:`CODES`."""
    yield from _servers(facts)
    yield from _corefile(facts)
    own = {*facts.cluster_ips, *facts.servers.values()}
    for upstream, asked in sorted(facts.by_upstream.items()):
        if upstream.ip not in own:  # that is a loop, and told as one
            yield from _upstream(upstream, asked)


def _servers(facts: Facts) -> Iterator[Finding]:
    service = object_name("Service", NAMESPACE, facts.service)
    deployment = facts.deployment
    ready = 0 if deployment is None else deployment.ready_replicas
    wanted = facts.replicas if facts.replicas is not None else (deployment.replicas if deployment is not None else 0)
    if not facts.servers:
        selector = ready > 0
        endpoints = list(_endpoints(facts))
        yield Finding(
            code=SELECTOR if selector else DOWN,
            fault="dns",
            about=service,
            cause=(
                f"{ready} CoreDNS pods are ready and none is an endpoint of {service}: its selector or ports miss them"
                if selector
                else "no CoreDNS server is ready: no name of the cluster is answered"
            ),
            expected=Expected(f"{wanted or 1} servers that serve", object_name("Deployment", NAMESPACE, "coredns")),
            observed=(
                Observed("object", _ready(deployment)),
                Observed("object", "endpoints: " + (", ".join(endpoints[:8]) or "none")),
            ),
            fixes=(_fix_selector(facts.service) if selector else _look(), *(() if selector else (_restart(),))),
            precedence=OBJECT if selector else KERNEL,
        )
        return
    if len(facts.servers) < wanted:
        yield Finding(
            code=TOO_FEW,
            fault="dns",
            about=service,
            cause=f"{len(facts.servers)} of {wanted} CoreDNS servers serve, with the others' share of queries",
            expected=Expected(f"{wanted} servers", object_name("Deployment", NAMESPACE, "coredns")),
            observed=(Observed("object", _ready(deployment)), Observed("object", ", ".join(_endpoints(facts)))),
            fixes=(_look(),),
            precedence=KERNEL + 1,
        )


def silence(facts: Facts, denied: Collection[Address] = ()) -> Iterator[Finding]:
    """Servers that answer nothing: :data:`SILENT`. Not those that policy lets the one who asked not speak to."""
    silent = [one for one in silent_servers(facts) if one not in denied]
    if silent:
        yield _silent(facts, silent)


def silent_servers(facts: Facts) -> list[Address]:
    """Those that gave no answer to any query."""
    return [address for address, asked in sorted(facts.by_server.items(), key=str) if asked.answer is None]


def _silent(facts: Facts, silent: list[Address]) -> Finding:
    listed = ", ".join(map(str, silent))
    asked = facts.by_server[silent[0]]
    answers = [one for one in facts.by_server.values() if one.answer is not None]
    others = f"{len(answers)} other servers answered" if answers else "no other server answered either"
    return Finding(
        code=SILENT,
        fault="dns",
        about=object_name("Service", NAMESPACE, facts.service),
        cause=f"the CoreDNS server {listed} is an endpoint and answers nothing: queries that are sent there time out",
        expected=Expected(f"an answer to {asked.name}", object_name("Service", NAMESPACE, facts.service)),
        observed=(
            Observed("packet", f"{listed}, UDP port 53: no answer to {asked.times} queries of the agent dns"),
            Observed("packet", others),
        ),
        fixes=(_restart(),),
        precedence=EFFECT - 4,
    )


def _corefile(facts: Facts) -> Iterator[Finding]:
    about = object_name("ConfigMap", NAMESPACE, "coredns")
    if facts.corefile is None:
        return
    try:
        found = upstreams(parse(facts.corefile))
    except Broken as broken:
        yield Finding(
            code=COREFILE,
            fault="dns",
            about=about,
            cause=f"the Corefile's line {broken.line} has {broken.problem}: no CoreDNS that starts now can load it",
            expected=Expected("a Corefile that CoreDNS loads", about),
            observed=(Observed("object", f"line {broken.line}: {_line(facts.corefile, broken.line)}"),),
            fixes=(_edit(broken.remedy),),
            precedence=OBJECT,
        )
        return
    own = dict.fromkeys(facts.cluster_ips, "the Service's own address")
    own |= dict.fromkeys(facts.servers.values(), "a CoreDNS server's own address")
    for upstream in found:
        if upstream.ip in own:
            yield Finding(
                code=LOOP,
                fault="dns",
                about=about,
                cause=f"names of zone {upstream.zone} are forwarded to {upstream}, which is {own[upstream.ip]}: a loop",
                expected=Expected("an upstream outside of the cluster's own name service", about),
                observed=(
                    Observed("object", f"Corefile: forward to {upstream} for {upstream.zone}"),
                    Observed("object", f"{upstream} is {own[upstream.ip]}"),
                ),
                fixes=(_edit(f"name a resolver outside of the cluster in place of {upstream}"),),
                precedence=OBJECT,
            )


def _upstream(upstream: Upstream, asked: Asked) -> Iterator[Finding]:
    stub = upstream.zone != "."
    whose = f"the stub domain {upstream.zone}" if stub else "names outside of the cluster"
    answer = asked.answer
    if answer is None:
        yield _of_upstream(
            UPSTREAM_SILENT,
            upstream,
            f"{upstream}, the upstream of {whose}, answers nothing: such names time out",
            f"no answer to {asked.times} queries for {asked.name} of the agent dns",
        )
    elif answer.rcode in REFUSALS:
        yield _of_upstream(
            UPSTREAM_REFUSES,
            upstream,
            f"{upstream}, the upstream of {whose}, answers {answer.rcode}: it does not serve them",
            f"{answer.rcode} to {asked.name}",
        )
    else:
        if answer.milliseconds > SLOW:
            yield _of_upstream(
                UPSTREAM_SLOW,
                upstream,
                f"{upstream}, the upstream of {whose}, takes {answer.milliseconds:.0f} ms for an answer",
                f"the fastest of {asked.times} answers to {asked.name} took {answer.milliseconds:.0f} ms",
            )
        if asked.invalid is not None and asked.invalid.rcode == "NOERROR" and asked.invalid.records:
            yield _of_upstream(
                UPSTREAM_LIES,
                upstream,
                f"{upstream}, the upstream of {whose}, invents addresses for names that do not exist",
                f"NOERROR with {asked.invalid.records} records to a name below invalid, which can have none",
            )


def _of_upstream(code: str, upstream: Upstream, cause: str, seen: str) -> Finding:
    return Finding(
        code=code,
        fault="dns",
        about=f"Upstream {upstream}",
        cause=cause,
        expected=Expected(
            f"answers of {upstream} within {SLOW:.0f} ms", object_name("ConfigMap", NAMESPACE, "coredns")
        ),
        observed=(
            Observed("packet", f"{upstream}, UDP: {seen}"),
            Observed("object", f"Corefile: forward to {upstream} for {upstream.zone}"),
        ),
        fixes=(_edit(f"name another upstream in place of {upstream}, or take the zone {upstream.zone} out"),),
        precedence=NETWORK,
    )


def _endpoints(facts: Facts) -> Iterable[str]:
    for one in facts.slices:
        if (one.namespace, one.service) == (NAMESPACE, facts.service):
            for endpoint in one.endpoints:
                state = "ready" if endpoint.ready else "serving" if endpoint.serving else "not ready"
                yield f"{', '.join(map(str, endpoint.addresses))} {state}"


def _ready(deployment: Deployment | None) -> str:
    if deployment is None:
        return "there is no Deployment kube-system/coredns"
    return f"Deployment kube-system/coredns: {deployment.ready_replicas} of {deployment.replicas} pods ready"


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number - 1].strip()[:100] if 0 < number <= len(lines) else ""


def _look() -> Fix:
    return Fix(
        command="kubectl -n kube-system describe pods -l k8s-app=kube-dns",
        risk="None: it says why they are not ready.",
        on="cluster",
    )


def _restart() -> Fix:
    return Fix(
        command="kubectl -n kube-system rollout restart deployment coredns",
        risk="Servers are replaced one after the other; a query to one that ends is asked again.",
        on="cluster",
    )


def _fix_selector(service: str) -> Fix:
    patch = '{"spec":{"selector":{"k8s-app":"kube-dns"}}}'
    return Fix(
        command=f"kubectl -n kube-system patch service {service} -p '{patch}'",
        risk="None when CoreDNS' pods have this label; see kubectl -n kube-system get pods --show-labels.",
        on="cluster",
    )


def _edit(what: str) -> Fix:
    return Fix(
        command=f"kubectl -n kube-system edit configmap coredns  # {what}",
        risk="Every name of the cluster is answered by this text; CoreDNS keeps its last one when it cannot read it.",
        on="cluster",
    )
