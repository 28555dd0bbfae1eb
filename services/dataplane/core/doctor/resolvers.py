"""Checks of what this node's pods ask of name service: names that only a search list makes, and a resolver elsewhere.

A search list costs each lookup as many queries as it has suffixes, and a Service is slow by as much: it is how
Kubernetes is made, and so told only to who asks why a Service or names are slow. A pod whose resolv.conf(5) names other
servers than the cluster's is as its ``dnsPolicy`` asks; it is a fault once it asks them in vain for names of the
cluster.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from proto.dns_pods import PodDns, PodDnsName
from proto.findings import EFFECT, OBJECT, Expected, Finding, Fix, Observed, object_name
from proto.net import Address

SEARCH_LIST, ELSEWHERE = "dns-search-list", "dns-resolver-elsewhere"
CODES = (SEARCH_LIST, ELSEWHERE)
ENOUGH_QUERIES, ENOUGH_SAMPLES = 60, 24
"""Of a minute, before a pod's search list is judged."""
IN_VAIN = 3
"""Answers that a name of the cluster does not exist."""
_CLUSTER = ".svc."
"""Part of the full name of each Service (Kubernetes DNS-based service discovery 1.1.0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolver:
    """A pod's resolv.conf(5)."""

    nameservers: tuple[Address, ...] = ()
    ndots: int = 1


def parse(text: str) -> Resolver:
    """What it says; a line that is none is passed over, as resolvers do, and of several ``options`` the last counts."""
    nameservers, ndots = list[Address](), 1
    for words in (line.split() for line in text.splitlines()):
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                nameservers.append(ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
        elif words[:1] == ["options"]:
            dots = [word.partition(":")[2] for word in words if word.startswith("ndots:")]
            ndots = int(dots[-1]) if dots and dots[-1].isdecimal() else ndots
    return Resolver(nameservers=tuple(nameservers), ndots=ndots)


def in_vain(pod: PodDns) -> tuple[PodDnsName, ...]:
    """Full names of Services that a pod asks for, where none of them was ever answered with anything."""
    asked = tuple(one for one in pod.names if _CLUSTER in one.name)
    none = all(one.nxdomain >= one.sampled - one.retried for one in asked)
    return asked if none and sum(one.nxdomain for one in asked) >= IN_VAIN else ()


def check_resolvers(
    node: str, pods: Iterable[PodDns], resolvers: Mapping[str, Resolver], servers: Collection[Address]
) -> Iterator[Finding]:
    """``resolvers``: by ``namespace/pod``; ``servers``: addresses of the cluster's name service."""
    for pod in pods:
        names, resolver = in_vain(pod), resolvers.get(f"{pod.namespace}/{pod.pod}")
        if not names or resolver is None or not resolver.nameservers or not servers:
            continue
        if any(one in servers or one.is_loopback for one in resolver.nameservers):
            continue  # the cluster's, or one of the pod's own that may ask them
        yield _elsewhere(node, pod, names, resolver, servers)


def _elsewhere(
    node: str, pod: PodDns, names: Iterable[PodDnsName], resolver: Resolver, servers: Collection[Address]
) -> Finding:
    about, others = object_name("Pod", pod.namespace, pod.pod), ", ".join(map(str, resolver.nameservers))
    asked = ", ".join(f"{one.name} ({one.nxdomain} times)" for one in names)
    return Finding(
        code=ELSEWHERE,
        fault="dns",
        about=about,
        node=node,
        cause=f"{pod.namespace}/{pod.pod} asks {others} for names of the cluster, which they do not know",
        expected=Expected(f"nameserver {', '.join(sorted(map(str, servers)))} in its resolv.conf", about),
        observed=(
            Observed("object", f"its resolv.conf names {others}"),
            Observed("packet", f"answered that they do not exist: {asked}"),
        ),
        fixes=(
            Fix(
                command=f"kubectl -n {pod.namespace} get pod {pod.pod} -o yaml  # in its workload: dnsPolicy: "
                "ClusterFirst, or for a pod of the host's network ClusterFirstWithHostNet; no dnsConfig.nameservers",
                risk="A changed template starts new pods.",
                on="cluster",
            ),
        ),
        precedence=OBJECT,
    )


def check_search_lists(
    node: str, pods: Iterable[PodDns], resolvers: Mapping[str, Resolver], *, service: str = ""
) -> Iterator[Finding]:
    """Pods of which half the answers say that a name of the search list does not exist.

    ``service``: ``namespace/name`` of the one that is asked for; only pods count that ask for a name of it.
    """
    for pod in pods:
        if pod.queries < ENOUGH_QUERIES or pod.sampled < ENOUGH_SAMPLES or 2 * pod.searched < pod.sampled:
            continue
        if service and not _asks_for(pod, service):
            continue
        yield _search_list(node, pod, resolvers.get(f"{pod.namespace}/{pod.pod}"), service)


def _asks_for(pod: PodDns, service: str) -> bool:
    namespace, _, name = service.partition("/")
    begins = (f"{name}.{namespace}.", *((f"{name}.",) if pod.namespace == namespace else ()))
    return any(one.name.startswith(begins) or one.name == f"{name}.{namespace}" for one in pod.names)


def _search_list(node: str, pod: PodDns, resolver: Resolver | None, service: str) -> Finding:
    about = object_name("Pod", pod.namespace, pod.pod)
    useful = sum(count for rcode, count in pod.answers if rcode == "NOERROR")
    each = f"{pod.queries / useful:.1f} for each useful answer" if useful else "none of them answered usefully"
    seen = [
        Observed("packet", f"{pod.searched} of {pod.sampled} answers: the name of a search list does not exist"),
        Observed("packet", f"{pod.queries} queries in {pod.seconds:.0f} s, {each}"),
    ]
    if resolver is not None:
        seen.append(Observed("object", f"its resolv.conf: options ndots:{resolver.ndots}"))
    return Finding(
        code=SEARCH_LIST,
        fault="service" if service else "dns",
        about=about,
        node=node,
        cause=f"before each useful answer {pod.namespace}/{pod.pod} waits for names that only its search list makes",
        expected=Expected("one query of each type for a name", about),
        observed=tuple(seen),
        fixes=(
            Fix(
                command=f"kubectl -n {pod.namespace} get pod {pod.pod} -o yaml  # in its workload: dnsConfig.options "
                "{name: ndots, value: '2'}, or names that end with a dot",
                risk="Names with two dots or more are asked for as they are first; a changed template starts new pods.",
                on="cluster",
            ),
        ),
        affects=(object_name("Service", *service.split("/", 1)),) if service else (),
        precedence=EFFECT - 1,
    )
