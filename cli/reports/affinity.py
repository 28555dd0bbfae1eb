"""Session affinity of the whole cluster: whether so many clients of a Service keep one backend that it is no chance.

Pure. Each node says what it sees of its own clients (``proto.findings.AffinityClients``); a client from outside that
several nodes know counts once. Each client is given one of the ready backends by chance, all alike, so the number that
one certain backend has is binomial; that any of them has so many is at most as probable as the sum over all (union
bound). It is a finding when most clients keep one, and chance would do so once in a million times at most.

The other way to one backend needs no chance: who comes from outside behind one masquerading address is one client to
the Service, however many there are.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, lgamma, log

from proto.findings import AFFINITY, OBJECT, AffinityClients, Expected, Finding, Fix, Observed, object_name

SHARE = 0.75
"""Of all clients, those that have to keep one backend."""
CHANCE = 1e-6
"""A bound of the probability above this is no evidence."""
FLOWS, FROM_ONE = 30, 0.9
"""Flows from outside, and the share of them that comes from one address."""
MAX_ENTRIES = 65_536
"""Clients of one backend that a node's map may have: more is not believed."""
_NAME = re.compile(r"[a-z0-9.-]+/[a-z0-9.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A Service port's clients as all nodes see them."""

    service: str
    port: int
    seconds: int
    clients: Counter[str]
    """By backend, those without any too."""
    fewest: int
    """Backends that a client is given one of, on the node that has the fewest."""
    nodes: tuple[str, ...]
    flows: int
    busiest: str
    busiest_flows: int


def join(reports: Iterable[tuple[str, AffinityClients]]) -> Iterator[Joined]:
    """``reports``: each with the node that says it."""
    ports: dict[tuple[str, int, int, int], list[tuple[str, AffinityClients]]] = defaultdict(list)
    for node, one in reports:
        if _NAME.fullmatch(one.service) and len(one.backends) > 1 and len(one.pods) == len(one.backends):
            ports[one.service, one.port, one.protocol, one.family].append((node, one))
    for (service, port, _, _), said in sorted(ports.items()):
        clients = Counter({backend: 0 for _, one in said for backend in one.backends})
        outside: dict[str, str] = {}
        sources: Counter[str] = Counter()
        for _, one in said:
            own = (max(0, min(count, MAX_ENTRIES)) for count in one.pods)
            clients.update(dict(zip(one.backends, own, strict=True)))
            outside |= {client: one.backends[at] for client, at in one.outside if 0 <= at < len(one.backends)}
            sources[one.busiest] += one.busiest_flows
        clients.update(outside.values())
        busiest, most = max(sources.items(), key=lambda one: (one[1], one[0]))
        yield Joined(
            service=service,
            port=port,
            seconds=said[0][1].seconds,
            clients=clients,
            fewest=min(len(one.backends) for _, one in said),
            nodes=tuple(sorted(node for node, _ in said)),
            flows=sum(one.flows for _, one in said),
            busiest=busiest,
            busiest_flows=most,
        )


def at_least(least: int, trials: int, chance: float) -> float:
    """P(X ≥ ``least``) of a binomial X."""
    if least <= 0:
        return 1.0
    if chance >= 1:
        return float(least <= trials)
    found = 0.0
    for hits in range(least, trials + 1):
        more = exp(_log_of(hits, trials, chance))
        found += more
        if hits > trials * chance and more < found * 1e-12:
            break  # beyond its mean each term is smaller than the one before
    return min(1.0, found)


def _log_of(hits: int, trials: int, chance: float) -> float:
    ways = lgamma(trials + 1) - lgamma(hits + 1) - lgamma(trials - hits + 1)
    return ways + hits * log(chance) + (trials - hits) * log(1 - chance)


def check(reports: Iterable[tuple[str, AffinityClients]]) -> Iterator[Finding]:
    """One finding for a Service port at most."""
    for one in join(reports):
        found = _kept(one) or _masqueraded(one)
        if found is not None:
            yield found


def _kept(one: Joined) -> Finding | None:
    total = one.clients.total()
    backend, most = max(one.clients.items(), key=lambda entry: (entry[1], entry[0]))
    if not total or most < SHARE * total:
        return None
    chance = min(1.0, len(one.clients) * at_least(most, total, 1 / one.fewest))
    if chance > CHANCE:
        return None
    return _finding(
        one,
        f"{most} of {total} clients of {one.service} keep the backend {backend} by session affinity, of "
        f"{len(one.clients)} that are ready: those that came later get nobody who is known already",
        (
            Observed("map", f"clients by backend: {_listed(one.clients)}"),
            Observed("map", f"by chance so many would keep one with a probability of {chance:.1g} at most"),
        ),
    )


def _masqueraded(one: Joined) -> Finding | None:
    if one.flows < FLOWS or one.busiest_flows < FROM_ONE * one.flows:
        return None
    return _finding(
        one,
        f"{one.busiest_flows} of {one.flows} flows from outside to {one.service} come from {one.busiest}: by session "
        f"affinity whoever stands behind that address has one backend of {len(one.clients)}",
        (
            Observed("map", f"translated flows: {one.flows}, from {one.busiest}: {one.busiest_flows}"),
            Observed("map", f"clients by backend: {_listed(one.clients)}"),
        ),
    )


def _finding(one: Joined, cause: str, observed: Sequence[Observed]) -> Finding:
    namespace, _, name = one.service.partition("/")
    about = object_name("Service", namespace, name)
    undo = f'kubectl -n {namespace} patch service {name} -p \'{{"spec": {{"sessionAffinity": "ClientIP"}}}}\''
    return Finding(
        code=AFFINITY,
        fault="service",
        about=about,
        cause=cause,
        expected=Expected(f"clients of port {one.port} on all {len(one.clients)} ready backends", about),
        observed=(*observed, Observed("report", f"said by nodes {', '.join(one.nodes)}")),
        fixes=(
            Fix(
                command=undo.replace("ClientIP", "None"),
                risk="A client's next connection may reach another backend: sessions kept there alone are lost.",
                on="cluster",
                undo=undo,
            ),
        ),
        precedence=OBJECT,
    )


def _listed(clients: Counter[str]) -> str:
    return ", ".join(f"{backend} {count}" for backend, count in sorted(clients.items(), key=lambda one: -one[1]))
