"""The Corefile: CoreDNS' whole configuration as text, from a few settings.

Promises that ``errors``, ``health``, ``ready``, ``loop``, ``reload`` and ``cache`` are always there: without them
faults are silent, rollouts drop queries, a resolver that points at itself burns a core, and a change never arrives.
``forward`` appears only where an upstream is named; without one, strange names are SERVFAIL at once, not after a
timeout. Pods are ``verified`` (a pod's name answers only while the pod exists), which ``autopath`` needs too. Answers
about the cluster itself are not cached: CoreDNS has them in memory as they are now, and a name that was asked for a
moment too early would be missing for half a minute (RFC 1035 6.1.2: what a server knows goes before what it caches).
Refuses settings that CoreDNS would refuse later, or silently read as something else. Times are in seconds.

Source: coredns/plugin/*/README.md. CoreDNS orders plugins by itself, so the order of lines means nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from proto.net import Address

_DOMAIN = re.compile(r"(?=.{1,200}\Z)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
MAX_UPSTREAMS = 15
"""plugin/forward takes no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the Corefile is made of."""

    cluster_domain: str = "cluster.local"
    upstreams: tuple[Address, ...] = ()
    """Resolvers for names outside of the cluster."""
    ttl: int = 30
    """Of answers about the cluster; 0 to 3600."""
    cache: int = 30
    """Longest time that an upstream's answer is kept; 1 to 86400."""
    autopath: bool = False
    """Walk the pod's search path on the server, in one round trip."""


class Unusable(ValueError):
    """A recipe that makes no Corefile: names the field and the remedy."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.remedy = remedy


def render(recipe: Recipe) -> str:
    """Text of the Corefile; raises :class:`Unusable`."""
    check(recipe)
    kubernetes = ["pods verified", f"ttl {recipe.ttl}"]
    lines = ["errors", *_block("health", ["lameduck 5s"]), "ready", "loop", "reload 10s 5s"]
    if recipe.upstreams:
        # Addresses that are no pod's or Service's may be the upstream's to name.
        kubernetes.append("fallthrough in-addr.arpa ip6.arpa")
    lines += _block(f"kubernetes {recipe.cluster_domain} in-addr.arpa ip6.arpa", kubernetes)
    if recipe.autopath:
        lines.append("autopath @kubernetes")
    lines.append("prometheus :9153")
    if recipe.upstreams:
        targets = " ".join(_target(upstream) for upstream in recipe.upstreams)
        lines += _block(f"forward . {targets}", ["max_concurrent 1000"])
    uncached = [f"disable {answers} {recipe.cluster_domain}" for answers in ("success", "denial")]
    lines += [*_block(f"cache {recipe.cache}", uncached), "loadbalance"]
    return "\n".join(_block(".:53", lines)) + "\n"


def check(recipe: Recipe) -> None:
    """Raise :class:`Unusable` for a recipe that makes no Corefile."""
    if not _DOMAIN.fullmatch(recipe.cluster_domain):
        problem = f"{recipe.cluster_domain!r} is not a domain"
        raise Unusable("cluster_domain", problem, "write lower-case labels joined by dots, e.g. cluster.local")
    if not 0 <= recipe.ttl <= 3600:
        raise Unusable("ttl", f"{recipe.ttl} is out of range", "use 0 to 3600 seconds")
    if not 1 <= recipe.cache <= 86400:
        raise Unusable("cache", f"{recipe.cache} is out of range", "use 1 to 86400 seconds")
    if len(recipe.upstreams) > MAX_UPSTREAMS:
        raise Unusable("upstreams", f"{len(recipe.upstreams)} of them", f"name at most {MAX_UPSTREAMS}")
    if len(set(recipe.upstreams)) != len(recipe.upstreams):
        raise Unusable("upstreams", "one of them stands there twice", "name each once")
    for upstream in recipe.upstreams:
        if upstream.is_unspecified or upstream.is_multicast:
            raise Unusable("upstreams", f"{upstream} is no server's address", "name a resolver's own address")


def _target(upstream: Address) -> str:
    return f"[{upstream}]:53" if upstream.version == 6 else f"{upstream}:53"


def _block(head: str, lines: list[str]) -> list[str]:
    return [f"{head} {{", *(f"    {line}" for line in lines), "}"]
