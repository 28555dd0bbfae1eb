"""The Corefile that the settings ask for: which plugins with which arguments and options, and its text.

Promises that ``errors``, ``health``, ``ready``, ``loop``, ``reload`` and ``cache`` are always there: without them
faults are silent, rollouts drop queries, a resolver that points at itself burns a core, and a change never arrives.
``forward`` appears only where an upstream is named; without one, strange names are SERVFAIL at once, not after a
timeout. Pods are ``verified`` (a pod's name answers only while the pod exists), which ``autopath`` needs too. Answers
about the cluster itself are not cached: CoreDNS has them in memory as they are now, and a name that was asked for a
moment too early would be missing for half a minute (RFC 1035 6.1.2: what a server knows goes before what it caches).
What a setting may take away again is marked with :data:`MARK`: so it is known from what a person wrote. Refuses
settings that CoreDNS would refuse later, or silently read as something else. Times are in seconds.

Source: coredns/plugin/*/README.md. CoreDNS orders plugins by itself, so the order of lines means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from proto.net import Address, host_port

_DOMAIN = re.compile(r"(?=.{1,200}\Z)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
MAX_UPSTREAMS = 15
"""plugin/forward takes no more."""
CAPACITY = 9984
"""Answers of each kind that plugin/cache keeps when nothing is said."""
MARK = "# airmesh"
"""Comment behind a line that goes when no setting asks for it any more."""
INDENT = "    "
ROOT = ".:53"


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
    capacity: int = 0
    """Answers of each kind that the cache keeps; 0: CoreDNS' own 9,984."""
    denial_ttl: int = 0
    """Longest time that an upstream's "no such name" is kept; 0: as long as any answer."""
    prefetch: bool = False
    """Names asked ten times a minute are asked again before they expire."""
    serve_stale: bool = False
    """An expired answer is given for an hour while no upstream gives a new one."""
    sequential: bool = False
    """Upstreams are asked in their order, not at random."""


class Unusable(ValueError):
    """A recipe that makes no Corefile: names the field and the remedy."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.remedy = remedy


class Args(Enum):
    """What is ours of a line's arguments."""

    ANY = "any"
    """Nothing: the line has to be there."""
    ALL = "all"
    """They are these and no others."""
    NUMBER = "number"
    """The first one, a number; zones may follow."""
    ZONES = "zones"
    """These are among them; a person may name more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A line within a plugin's braces. It is known by its name, and by its first argument where ``by_argument``."""

    name: str
    args: tuple[str, ...] = ()
    by_argument: bool = False
    kind: Args = Args.ALL
    marked: bool = False

    @property
    def text(self) -> str:
        """As it is written."""
        return " ".join((self.name, *self.args, *((MARK,) if self.marked else ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plugin as we want it. ``everywhere``: one of the whole server, in whichever block it stands."""

    name: str
    args: tuple[str, ...] = ()
    kind: Args = Args.ANY
    options: tuple[Option, ...] = ()
    everywhere: bool = False
    marked: bool = False

    def lines(self) -> Iterator[str]:
        """As it is written."""
        mark = (MARK,) if self.marked else ()
        if not self.options:
            yield " ".join((self.name, *self.args, *mark))
            return
        yield " ".join((self.name, *self.args, "{", *mark))
        yield from (INDENT + option.text for option in self.options)
        yield "}"


def plugins(recipe: Recipe) -> tuple[Plugin, ...]:
    """What the settings ask for; raises :class:`Unusable`."""
    check(recipe)
    domain = recipe.cluster_domain
    kubernetes = [Option(name="pods", args=("verified",)), Option(name="ttl", args=(str(recipe.ttl),))]
    if recipe.upstreams:
        # Addresses that are no pod's or Service's may be the upstream's to name.
        kubernetes.append(Option(name="fallthrough", args=("in-addr.arpa", "ip6.arpa"), kind=Args.ZONES, marked=True))
    found = [
        Plugin(name="errors"),
        Plugin(name="health", options=(Option(name="lameduck", args=("5s",)),), everywhere=True),
        Plugin(name="ready"),
        Plugin(name="loop"),
        Plugin(name="reload", args=("10s", "5s"), kind=Args.ALL, everywhere=True),
        Plugin(
            name="kubernetes", args=(domain, "in-addr.arpa", "ip6.arpa"), kind=Args.ZONES, options=tuple(kubernetes)
        ),
    ]
    if recipe.autopath:
        found.append(Plugin(name="autopath", args=("@kubernetes",), kind=Args.ALL, marked=True))
    found.append(Plugin(name="prometheus", args=(":9153",), kind=Args.ALL))
    if recipe.upstreams:
        targets = (".", *(host_port(upstream, 53) for upstream in recipe.upstreams))
        options = [Option(name="max_concurrent", args=("1000",))]
        if recipe.sequential:
            options.append(Option(name="policy", args=("sequential",), marked=True))
        found.append(Plugin(name="forward", args=targets, kind=Args.ALL, options=tuple(options), marked=True))
    found += [
        Plugin(name="cache", args=(str(recipe.cache),), kind=Args.NUMBER, options=tuple(_cached(recipe))),
        Plugin(name="loadbalance"),
    ]
    return tuple(found)


def _cached(recipe: Recipe) -> Iterator[Option]:
    for answers in ("success", "denial"):
        yield Option(name="disable", args=(answers, recipe.cluster_domain), by_argument=True, kind=Args.ZONES)
    capacity = str(recipe.capacity or CAPACITY)
    if recipe.capacity:
        yield Option(name="success", args=(capacity,), marked=True)
    if recipe.capacity or recipe.denial_ttl:
        ttl = (str(recipe.denial_ttl),) if recipe.denial_ttl else ()
        yield Option(name="denial", args=(capacity, *ttl), marked=True)
    if recipe.prefetch:
        yield Option(name="prefetch", args=("10", "1m", "10%"), marked=True)
    if recipe.serve_stale:
        yield Option(name="serve_stale", args=("1h",), marked=True)


def render(recipe: Recipe) -> str:
    """Text of the Corefile where there is none yet; raises :class:`Unusable`."""
    lines = (INDENT + line for plugin in plugins(recipe) for line in plugin.lines())
    return "\n".join((f"{ROOT} {{", *lines, "}")) + "\n"


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
