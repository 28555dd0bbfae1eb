"""Proposals of `ndots` by namespace: what its pods' search lists cost of late, and what fewer dots would leave.

A pod's resolver asks for a name of fewer dots than `ndots` with each domain of its search list first, for both
families: eight vain queries before two useful ones, where a node has a domain of its own. With two dots the short names
of Services (`db`, `db.shop`) are still searched for, and a name of two dots or more is asked for as it is.

Source: resolv.conf(5); kubernetes.io/docs/concepts/services-networking/dns-pod-service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from cli.reports.dns_pods import USEFUL, PodFigures
from cli.reports.table import Table

PREFIX = "ndots/"
"""Before the namespace, in the name of a proposal."""
FEWER = 2
FEWEST = 200
"""Queries of a namespace in the last minute that say something."""
_VAIN = 0.4
"""Share of queries that search lists have to make in vain."""


class NdotsProposal(msgspec.Struct, frozen=True, kw_only=True):
    """Of one namespace."""

    name: str
    """As `airmesh dns apply` takes it."""
    evidence: str
    effect: str


def proposals(pods: Iterable[PodFigures]) -> tuple[NdotsProposal, ...]:
    """Those of namespaces whose search lists cost most first."""
    by_namespace: dict[str, list[PodFigures]] = {}
    for pod in pods:
        if pod.namespace:
            by_namespace.setdefault(pod.namespace, []).append(pod)
    found = [one for namespace, mine in by_namespace.items() for one in _proposal(namespace, mine)]
    return tuple(one for _, one in sorted(found, key=lambda one: (-one[0], one[1].name)))


def _proposal(namespace: str, pods: list[PodFigures]) -> Iterator[tuple[float, NdotsProposal]]:
    queries = sum(pod.queries for pod in pods)
    useful = sum(dict(pod.answers).get(USEFUL, 0) for pod in pods)
    vain = min(sum(_searched_in_vain(pod) for pod in pods), float(queries))
    if queries < FEWEST or not useful or vain < _VAIN * queries:
        return
    most = max(pods, key=_searched_in_vain)
    evidence = (
        f"{vain / queries:.0%} of {queries} queries of {len(pods)} pods were search lists', for names that there are "
        f"not, most of them {most.pod}'s; a useful answer takes {queries / useful:.1f} queries"
    )
    effect = (
        f"{(queries - vain) / useful:.1f} queries for a useful answer where names have {FEWER} dots or more, in pods "
        "that are made from then on; a pod of musl no more finds SERVICE.NAMESPACE.svc without the cluster's domain"
    )
    yield vain, NdotsProposal(name=f"{PREFIX}{namespace}", evidence=evidence, effect=effect)


def _searched_in_vain(pod: PodFigures) -> float:
    """Queries, by the samples' share of those that were told that there is no such name."""
    return dict(pod.answers).get("NXDOMAIN", 0) * (pod.searched_share or 0.0)


def table(found: Iterable[NdotsProposal]) -> Table:
    """The proposals."""
    return Table(
        title=f"Fewer dots (ndots {FEWER}) for a namespace's pods",
        columns=("name", "evidence", "expected"),
        rows=tuple((one.name, one.evidence, one.effect) for one in found),
        empty="no namespace's search lists cost much",
    )
