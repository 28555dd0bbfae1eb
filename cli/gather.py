"""Reads off the bus what each report is made of.

The shell between `cli.link` and `cli.reports`: which buckets, which keys, which question. Order matters in one index:
frontiers are read before acknowledgements, so that a node that keeps up is never shown as lagging.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import msgspec

from cli.faults import Declined, Unreachable, Usage
from cli.link import Link
from cli.reports import (
    agents,
    bgp,
    dns,
    dns_ndots,
    dns_pods,
    dns_tuning,
    micro,
    pairs,
    paths,
    pods,
    policy,
    routes,
    trace,
)
from cli.reports import doctor as doctor_report
from proto.addresses import Claim, Endpoint
from proto.bgp import BgpRoutesRequest, BgpSessionsRequest, is_named
from proto.codec import Malformed, decode_segment, encode_segment, kind_prefix
from proto.dns import CoreDNSDecision, DnsChangeAnswer, DnsChangeRequest, DnsReport, DnsTuning
from proto.dns_pods import PodDnsRequest
from proto.findings import DoctorRequest
from proto.identity import IdentityRecord
from proto.objects import KIND_OF, EndpointSlice, NetworkPolicy, Node, Pod, Service
from proto.pairs import Pairs, PairsRequest
from proto.policy import Ack, Frontier
from proto.probes import MAX_PROBES, Probe, ProbeRequest
from proto.requests import ExplainMany, ExplainRequest, Explanation, Explanations, IpamShow, IpamState
from proto.routes import NodeRoutes
from proto.subjects import (
    ACKS,
    CLAIMS,
    DNS,
    DNS_CHANGE,
    ENDPOINTS,
    FINDINGS,
    IDENTITIES,
    IPAM_SHOW,
    OBJECTS,
    POLICY_EXPLAIN,
    POLICY_MATRIX,
    ROLES,
    ROUTES,
    RULES,
    Bucket,
)
from proto.traces import SpansRequest


async def _all(link: Link, bucket: Bucket, kind: type[Any], prefix: str = ">") -> dict[str, Any]:
    """Values of one type by raw key; markers (keys that begin with `_`) are left out unless the prefix names them."""
    marked = prefix.startswith("_")
    contents = await link.read(bucket, lambda key: kind if marked or not key.startswith("_") else None, prefix)
    return contents.of(kind)


def _honest(found: dict[str, Any]) -> dict[str, Any]:
    """Values under the key of the node that they name: no other may write there, whatever a value says."""
    return {key: value for key, value in found.items() if key.partition(".")[0] == encode_segment(value.node)}


def _by_node(found: dict[str, Any]) -> dict[str, Any]:
    """Values by the node that their key names; keys that name none are left out."""
    named: dict[str, Any] = {}
    for key, value in found.items():
        with suppress(Malformed):
            named[decode_segment(key)] = value
    return named


async def _acks(link: Link) -> dict[str, Ack]:
    """By the node whose key each stands under, which that node alone may write, whatever it says of itself."""
    return _by_node(await _all(link, ACKS, Ack))


async def status(link: Link) -> agents.Status:
    """Agents, nodes, and what is wrong."""
    answers, reported, nodes, frontiers, wrong = await asyncio.gather(
        link.discover(),
        link.pairs(PairsRequest(states=("none",))),
        _all(link, OBJECTS, Node, f"{kind_prefix(KIND_OF[Node])}.>"),
        _all(link, RULES, Frontier, "_frontier.>"),
        _wrong_with_addresses(link),
    )
    now = datetime.now(UTC)
    listed = [agent for user, answer in answers if (agent := micro.agent(user, answer, now)) is not None]
    acks = await _acks(link)
    return agents.status(
        listed, nodes.values(), acks, frontiers.values(), wrong, pairs.without_a_way(pairs.by_node(reported))
    )


async def _wrong_with_addresses(link: Link) -> tuple[str, ...] | None:
    """What `ipam` says is wrong with pools and blocks; None when it does not say within a second."""
    try:
        async with asyncio.timeout(1.0):
            return (await link.ask(IPAM_SHOW, IpamShow(summary=True), IpamState)).problems
    except (Declined, Unreachable, TimeoutError):
        return None


async def running(link: Link, namespace: str) -> pods.Pods:
    """Pods of the mesh."""
    endpoints, identities = await asyncio.gather(
        _all(link, ENDPOINTS, Endpoint), _all(link, IDENTITIES, IdentityRecord)
    )
    return pods.pods(_honest(endpoints).values(), {one.identity: one for one in identities.values()}, namespace)


async def policy_status(link: Link) -> policy.PolicyStatus:
    """Frontier and acknowledgements."""
    frontiers = await _all(link, RULES, Frontier, "_frontier.>")
    return policy.policy_status(frontiers.values(), await _acks(link))


async def explain(link: Link, asked: ExplainRequest) -> policy.Verdict:
    """What policy says to one question."""
    return policy.verdict(asked, await link.ask(POLICY_EXPLAIN, asked, Explanation))


async def matrix(link: Link, asked: tuple[ExplainRequest, ...]) -> policy.Matrix:
    """What policy says to many questions, in their order."""
    verdicts: list[policy.Verdict] = []
    for begin in range(0, len(asked), policy.QUESTIONS_AT_ONCE):
        some = asked[begin : begin + policy.QUESTIONS_AT_ONCE]
        explained = await link.ask(POLICY_MATRIX, ExplainMany(questions=some), Explanations)
        verdicts += [policy.verdict(one, answer) for one, answer in zip(some, explained.answers, strict=True)]
    return policy.Matrix(verdicts=tuple(verdicts))


async def addresses(link: Link) -> IpamState:
    """Pools, blocks and claims, by ipam's own words."""
    return await link.ask(IPAM_SHOW, IpamShow(), IpamState)


async def doctor(link: Link, asked: DoctorRequest, seconds: float, family: int = 0) -> doctor_report.Diagnosis:
    """What all agents find; of a connection, also each way of its packets (``family`` 0: of both). Raises Usage and
    Declined when an end is nobody that packets could be followed to.
    """
    if asked.kind != "connection":
        return await _found(link, asked, seconds)
    found, ways = await asyncio.gather(_found(link, asked, seconds), followed(link, asked, family, seconds))
    return doctor_report.of_connection(found, ways)


async def _found(link: Link, asked: DoctorRequest, seconds: float) -> doctor_report.Diagnosis:
    """What all agents find. Those that should answer are the cluster's services, and the agents of each Node that have
    told something of it; ``seconds``: how long the slowest may take.
    """
    nodes, acks, offers = await asyncio.gather(
        _all(link, OBJECTS, Node, f"{kind_prefix(KIND_OF[Node])}.>"),
        _all(link, ACKS, Ack),
        _all(link, ROUTES, NodeRoutes),
    )
    segments = {encode_segment(node.name) for node in nodes.values()}
    of_cluster = [role.name for role in ROLES if FINDINGS in role.discovered and not role.per_node]
    reported = (("dataplane", acks), ("routing", offers))
    per_node = [f"{name}-{segment}" for name, found in reported for segment in sorted(segments & found.keys())]
    begun = time.time_ns() // 1_000_000
    expected = (*of_cluster, *per_node)
    answers = [
        doctor_report.Answered(user=user, findings=found, asked_ms=begun, came_ms=came)
        for user, found, came in await link.findings(asked, expected, seconds)
    ]
    return doctor_report.diagnosis(asked, answers, expected, int(time.time()))


async def followed(link: Link, asked: DoctorRequest, family: int, seconds: float) -> tuple[paths.Path, ...]:
    """Each way that a connection's packets take. Raises as :func:`doctor`."""
    endpoints = _honest(await _all(link, ENDPOINTS, Endpoint)).values()
    ends = {one.address: paths.end_of(one) for one in endpoints}
    sources, targets = paths.named(asked.source, ends.values()), paths.named(asked.destination, ends.values())
    if not sources:
        raise paths.no_source(asked.source, await _pod(link, asked.source))
    service = None if targets else await _service(link, asked.destination)
    if service is not None:
        targets = paths.service_ends(service, asked.port, asked.protocol)
    if not targets:
        raise paths.no_target(asked.destination, await _pod(link, asked.destination))
    ways = paths.between(sources, targets, asked.port, asked.protocol, family)
    end = time.monotonic() + seconds
    while any(one.question() for one in ways):
        ways = await _asked_on(link, ways, end)
        ways = tuple(part for one in ways for part in paths.of_backends(one, ends))
    return ways


async def _asked_on(link: Link, ways: tuple[paths.Path, ...], end: float) -> tuple[paths.Path, ...]:
    """Each path one question further: every node is asked once, for all of its own."""
    by_node: dict[str, list[tuple[int, Probe]]] = {}
    for index, one in enumerate(ways):
        if (question := one.question()) is not None:
            by_node.setdefault(question[0], []).append((index, question[1]))
    requests = [
        ProbeRequest(node=node, probes=tuple(probe for _, probe in some[:MAX_PROBES])) for node, some in by_node.items()
    ]
    left = max(0.1, end - time.monotonic())
    answers = await asyncio.gather(*(link.probe(request, left) for request in requests))
    after = list(ways)
    for some, request, answer in zip(by_node.values(), requests, answers, strict=True):
        for number, (index, _) in enumerate(some):
            after[index] = after[index].reported(paths.result_of(request.node, answer, number))
    return tuple(after)


async def _pod(link: Link, name: str) -> Pod | None:
    """The Pod of a ``namespace/name``, on whichever node."""
    namespace, _, pod = name.partition("/")
    below = f"*.{encode_segment(namespace)}.{encode_segment(pod)}"
    found = await _all(link, OBJECTS, Pod, f"{kind_prefix(KIND_OF[Pod])}.{below}") if pod else {}
    return next(iter(found.values()), None)


async def _service(link: Link, name: str) -> Service | None:
    namespace, _, service = name.partition("/")
    below = f"{encode_segment(namespace)}.{encode_segment(service)}"
    found = await _all(link, OBJECTS, Service, f"{kind_prefix(KIND_OF[Service])}.{below}") if service else {}
    return next(iter(found.values()), None)


async def offered(link: Link, of_node: str = "") -> routes.Routes:
    """What nodes offer each other, and what their kernels do with it."""
    offers, claims, answers = await asyncio.gather(
        _all(link, ROUTES, NodeRoutes), _all(link, CLAIMS, Claim), link.pairs(PairsRequest())
    )
    known = _honest(offers).values()
    reported = pairs.by_node(answers)
    if of_node and of_node not in reported and of_node not in {offer.node for offer in known}:
        raise Declined(f"no node {of_node} offers routes, and none of that name answers", "airmesh routes lists all")
    return routes.routes(known, claims.values(), reported, asked_at=int(time.time()), of_node=of_node)


async def pair(link: Link, nodes: tuple[str, str]) -> pairs.Explained:
    """What both ends of a pair say of it. Raises Declined when neither answers."""
    answers = await link.pairs(PairsRequest(nodes=nodes, peers=nodes, measured=True))
    reported: dict[str, Pairs] = pairs.by_node(answers)
    if not reported:
        what = f"no routing agent of {nodes[0]} or {nodes[1]} answers"
        raise Declined(what, "see that both are names of nodes (airmesh status), and that routing runs there")
    return pairs.explained(nodes, reported, int(time.time()))


async def bgp_sessions(link: Link, node: str, *, down: bool) -> bgp.Sessions:
    """What BGP speakers say of their sessions. Raises Declined when ``node`` is asked about and does not answer."""
    asked = BgpSessionsRequest(nodes=(node,) if node else (), down=down)
    offers, answers = await asyncio.gather(_all(link, ROUTES, NodeRoutes), link.bgp_sessions(asked))
    reported = pairs.by_node(answers)
    if node and node not in reported:
        raise no_agent(node)
    nodes = (node,) if node else (offer.node for offer in _honest(offers).values())
    return bgp.sessions(reported, nodes, int(time.time()))


async def bgp_routes(link: Link, asked: BgpRoutesRequest) -> bgp.Routes:
    """What one BGP speaker says of its routes. Raises Declined where there is none, or no such peer."""
    answer = pairs.by_node(await link.bgp_routes(asked)).get(asked.node)
    if answer is None:
        raise no_agent(asked.node)
    if not answer.speaks:
        raise Declined(f"node {asked.node} speaks no BGP", "make a BGPConfiguration named default, or a BGPPeer")
    if asked.peer and not answer.peers:
        raise Declined(f"node {asked.node} has no peer {asked.peer}", f"airmesh bgp --node {asked.node} lists them")
    return bgp.routes(answer, asked.node, asked.table, asked.prefix)


async def captured(link: Link, node: str, peer: str) -> tuple[bgp.Session, ...]:
    """The sessions that a capture is of. Raises Declined where there are none."""
    answers = pairs.by_node(await link.bgp_sessions(BgpSessionsRequest(nodes=(node,) if node else ())))
    if node and node not in answers:
        raise no_agent(node)
    where = f"node {node}" if node else "no node that answers"
    if not any(answer.speaks for answer in answers.values()):
        said = f"{where} speaks no BGP" if node else f"{where} speaks BGP"
        raise Declined(said, "make a BGPConfiguration named default, or a BGPPeer")
    listed = bgp.sessions(answers, answers, int(time.time())).sessions
    found = tuple(one for one in listed if is_named(one.peer, peer))
    if not found:
        said = f"{where} has {'no' if node else 'a'} peer {peer}" if peer else f"{where} has a peer"
        raise Declined(said, f"airmesh bgp{f' --node {node}' * bool(node)} lists those that there are")
    return found


def no_agent(node: str, service: str = "routing") -> Declined:
    """Nobody answers for a node."""
    remedy = f"see that it is a node's name (airmesh status), and that {service} runs there"
    return Declined(f"no {service} agent of {node} answers", remedy)


async def names(link: Link) -> dns.DnsState:
    """Decision and last report."""
    kinds = {"coredns": CoreDNSDecision, "report": DnsReport}
    contents = await link.read(DNS, kinds.get)
    return dns.DnsState(
        decision=next(iter(contents.of(CoreDNSDecision).values()), None),
        report=next(iter(contents.of(DnsReport).values()), None),
    )


async def tuning(link: Link) -> dns_tuning.TuningState:
    """What is tuned and proposed, and the last report."""
    kinds = {"tuning": DnsTuning, "report": DnsReport}
    contents = await link.read(DNS, kinds.get)
    return dns_tuning.TuningState(
        tuning=next(iter(contents.of(DnsTuning).values()), None),
        report=next(iter(contents.of(DnsReport).values()), None),
    )


async def dns_plan(link: Link) -> dns_tuning.TuningState:
    """As :func:`tuning`, with what namespaces' search lists cost, as far as agents answer."""
    state, measured = await asyncio.gather(tuning(link), pods_dns(link, "", ""))
    return msgspec.structs.replace(state, ndots=dns_ndots.proposals(measured.pods))


async def change_dns(link: Link, request: DnsChangeRequest) -> str:
    """What a request to apply or to revert comes to; raises :class:`Declined`."""
    answer = await link.ask(DNS_CHANGE, request, DnsChangeAnswer)
    return answer.said


KINDS: dict[str, tuple[type[Any], ...]] = {
    "pod": (Pod,),
    "policy": (NetworkPolicy,),
    "service": (Service, EndpointSlice),
}
"""What each of `trace.NAMESPACED` is made of in ``objects``: the object itself first."""


async def pods_dns(link: Link, namespace: str, node: str) -> dns_pods.PodsDns:
    """Pods' DNS as the agents of their nodes measured it. Raises Declined when ``node`` is asked about and does not
    answer.
    """
    asked = PodDnsRequest(nodes=(node,) if node else (), namespace=namespace)
    acks, answers, contents = await asyncio.gather(
        _acks(link), link.dns_pods(asked), link.read(DNS, {"report": DnsReport}.get)
    )
    reported = pairs.by_node(answers, "dataplane")
    if node and node not in reported:
        raise no_agent(node, "dataplane")
    coredns = next(iter(contents.of(DnsReport).values()), None)
    return dns_pods.pods_dns(reported, (node,) if node else acks, coredns)


async def change(link: Link, asked: trace.Target) -> trace.Trace:
    """The story of the last change of what is asked about.

    Raises Usage when the name is that of several, Declined when nothing is known of such an object.
    """
    trace_id = asked.trace_id or await _last_trace(link, asked)
    answers = list(await link.spans(SpansRequest(trace_id=trace_id)))
    others = (link.spans(SpansRequest(trace_id=other)) for other in trace.linked(answers) if other != trace_id)
    for more in await asyncio.gather(*others):
        answers += more
    return trace.trace(asked, trace_id, answers)


async def _last_trace(link: Link, asked: trace.Target) -> str:
    """Of the last word of a node, of the last decision of `dns`, of a route, or of an object."""
    if asked.kind == "route":
        return await _last_of_route(link, asked)
    if asked.kind == "node":
        found = await link.read(ROUTES, lambda _: NodeRoutes, encode_segment(asked.name))
        what, remedy = f"node {asked.name} has announced no routes", "airmesh routes has those that have"
    elif asked.kind == "dns":
        found = await link.read(DNS, lambda _: CoreDNSDecision, "coredns")
        what, remedy = "dns has decided nothing yet", "see airmesh status for an agent dns"
    else:
        return await _last_of_object(link, asked)
    for traceparent in found.traceparents.values():
        if traceparent:
            return traceparent[3:35]
    raise Declined(what, remedy)


async def _last_of_route(link: Link, asked: trace.Target) -> str:
    """Of the UPDATE messages that named a prefix last, on a node or on any."""
    question = BgpRoutesRequest(node=asked.node, prefix=ip_network(asked.name))
    answers = pairs.by_node(await link.bgp_routes(question))
    if asked.node and asked.node not in answers:
        raise no_agent(asked.node)
    traced = [answer for answer in answers.values() if answer.trace_id]
    if traced:
        return max(traced, key=lambda answer: answer.traced_at).trace_id
    where = f"node {asked.node}" if asked.node else "no node that answers"
    if not any(answer.speaks for answer in answers.values()):
        raise Declined(f"{where} {'speaks no' if asked.node else 'speaks'} BGP", "name a node that does: airmesh bgp")
    raise Declined(
        f"{where} remembers {'no ' if asked.node else ''}UPDATE messages that named {asked.name}",
        "agents remember those of the last 65,536 prefixes; airmesh bgp routes says what became of the prefix",
    )


async def _last_of_object(link: Link, asked: trace.Target) -> str:
    """Of the object as the mirror has it; of one that is gone as agents of `cluster` remember it."""
    named = [asked.kind] if asked.kind else list(KINDS)
    present = await asyncio.gather(*(_present(link, asked, kind) for kind in named))
    found = {kind: trace_id for kind, trace_id in zip(named, present, strict=True) if trace_id is not None}
    if len(found) > 1:
        kinds = " and a ".join(KINDS[kind][0].__name__ for kind in found)
        raise Usage(f"{asked.text} is a {kinds}", f"name one: airmesh trace {' or '.join(found)} {asked.text}")
    for trace_id in found.values():
        if trace_id:
            return trace_id
    for kind in named:
        attributes = (
            ("k8s.object.kind", KINDS[kind][0].__name__),
            ("k8s.namespace.name", asked.namespace),
            ("k8s.object.name", asked.name),
        )
        trace_id = trace.latest(await link.spans(SpansRequest(attributes=attributes)), "cluster")
        if trace_id:
            return trace_id
    what = " or ".join(KINDS[kind][0].__name__ for kind in named)
    raise Declined(
        f"no {what} {asked.namespace}/{asked.name} is there, and no agent keeps a span of one",
        "see that the name is right, and airmesh status for an agent cluster; or give a trace id from a log line",
    )


async def _present(link: Link, asked: trace.Target, kind: str) -> str | None:
    """Id of the trace in which an object was written last, or one that is part of it; None while there is none."""
    written: list[tuple[int, str]] = []
    namespace, name = encode_segment(asked.namespace), encode_segment(asked.name)
    for of in KINDS[kind]:
        below = f"*.{namespace}.{name}" if of is Pod else f"{namespace}.{'>' if of is EndpointSlice else name}"
        contents = await link.read(OBJECTS, lambda _, of=of: of, f"{kind_prefix(KIND_OF[of])}.{below}")  # type: ignore[misc]
        written += [
            (contents.revisions[key], contents.traceparents[key][3:35])
            for key, value in contents.values.items()
            if not isinstance(value, EndpointSlice) or value.service == asked.name
        ]
    return max(written)[1] if written else None
