"""Routes that the kernel does not follow: missing, removed again and again, shadowed, or in another table.

The kernel itself is asked which entry it takes to an address (RTM_GETROUTE with RTM_F_FIB_MATCH, ``ip route get …
fibmatch``), so rules of policy routing, other tables and longer prefixes all count as they do for packets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from proto.findings import HOST, KERNEL, Expected, Finding, Fix, Observed, pair_name
from proto.net import Address, Network
from services.routing.core.doctor.fixes import protocol_name, route_text
from services.routing.core.fib import PODS, Kind, Route

CODES = ("route-missing", "route-removed", "route-shadowed", "route-other-table")
TABLE_MAIN = 254
REMOVED_OFTEN = 3
"""Repairs of one route within :data:`WITHIN` that are somebody's doing, and no restart."""
WITHIN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The entry that the kernel takes to an address."""

    destination: Network
    table: int
    kind: int
    """rtm_type."""
    via: Address | None
    link: int
    metric: int
    protocol: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A route of ours that was gone, or another, and was set again."""

    destination: Network
    at: int
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What is compared."""

    node: str
    desired: tuple[Route, ...]
    """Unicast routes to other nodes' pods."""
    routes: tuple[Route, ...]
    """All of the main table."""
    taken: Mapping[Address, Taken | str]
    """What the kernel takes to each of :func:`addresses`; text: why it takes none."""
    links: Mapping[int, str]
    holder: Callable[[Network], str]
    """The node that has a prefix; empty when it is not known."""
    repairs: tuple[Repair, ...]
    now: int
    """Unix seconds."""


def addresses(desired: Iterable[Route], others: Iterable[Route]) -> tuple[Address, ...]:
    """Which addresses to ask the kernel of: one of each route, and one of each longer prefix that is not ours."""
    wanted = [route.destination for route in desired]
    longer = [
        one.destination
        for one in others
        if not one.is_ours
        and one.protocol != PODS
        and any(one.destination.version == each.version and one.destination.subnet_of(each) for each in wanted)  # type: ignore[arg-type]
    ]
    return tuple(dict.fromkeys(each[-1] for each in (*wanted, *longer)))


def check(seen: Routing) -> Iterable[Finding]:
    """Findings of all routes; of one that is removed again and again only that."""
    removed = {finding.about: finding for finding in _removed(seen)}
    yield from removed.values()
    found: set[tuple[str, str]] = set()
    for address, taken in seen.taken.items():
        route = next((one for one in seen.desired if _has(one.destination, address)), None)
        if route is None or (not isinstance(taken, str) and _leads(taken, route)):
            continue
        finding = _misled(seen, route, address, taken)
        if finding.about not in removed and (finding.code, finding.about) not in found:
            found.add((finding.code, finding.about))
            yield finding


def _has(network: Network, address: Address) -> bool:
    return network.version == address.version and address in network


def _leads(taken: Taken, route: Route) -> bool:
    return taken.kind == Kind.UNICAST and (taken.link, taken.via) == (route.link, route.via)


def _misled(seen: Routing, route: Route, address: Address, taken: Taken | str) -> Finding:
    is_there = any(one.key == route.key and one.is_ours for one in seen.routes)
    expected = route_text(route, seen.links)
    family = "-6 " * (address.version == 6)
    asked = f"ip {family}route get {address} fibmatch"
    if isinstance(taken, str) or (taken.table == TABLE_MAIN and not is_there and _holds(taken.destination, route)):
        found = taken if isinstance(taken, str) else _text(taken, seen.links)
        if not is_there:
            cause = f"the route to {route.destination} is not in the kernel's table"
            restore = f"ip {family}route replace {expected} proto 186"
            fix = Fix(command=restore, risk="none: it is the route that the agent sets")
            return _finding(seen, "route-missing", route, cause, (asked, found), fix, KERNEL)
        cause = f"packets to {address} are refused by the routing tables: {found}"
        fix = Fix(command="ip rule show; ip route show table all", risk="none: it only shows")
        return _finding(seen, "route-shadowed", route, cause, (asked, found), fix, HOST)
    found, table = _text(taken, seen.links), f" table {taken.table}"
    removal = f"ip {family}route del {found}{table if taken.table != TABLE_MAIN else ''}"
    who = f"whoever set it ({protocol_name(taken.protocol)}) may need it for something else"
    fix = Fix(command=removal, risk=who, automatic=True, undo=removal.replace("route del", "route add"))
    if taken.table != TABLE_MAIN:
        cause = f"a rule sends packets to {address} to table {taken.table}, whose route leads elsewhere"
        return _finding(seen, "route-other-table", route, cause, (asked, f"{found}{table}"), fix, HOST)
    longer = taken.destination.prefixlen > route.destination.prefixlen
    why = "a longer prefix" if longer else f"metric {taken.metric}, before our {route.metric}"
    cause = f"a route of {protocol_name(taken.protocol)} shadows the one to {route.destination}: it has {why}"
    return _finding(seen, "route-shadowed", route, cause, (asked, found), fix, HOST)


def _holds(network: Network, route: Route) -> bool:
    """Whether what the kernel takes is broader than the route: it took that for want of ours."""
    return network.prefixlen < route.destination.prefixlen


def _text(taken: Taken, links: Mapping[int, str]) -> str:
    kinds = {1: "", 6: "blackhole ", 7: "unreachable ", 8: "prohibit ", 9: "throw "}
    via = f" via{' inet6' * _is_other(taken)} {taken.via}" if taken.via is not None else ""
    dev = f" dev {links.get(taken.link, taken.link)}" if taken.link and taken.kind == Kind.UNICAST else ""
    metric = f" metric {taken.metric}" if taken.metric else ""
    return f"{kinds.get(taken.kind, '')}{taken.destination}{via}{dev} proto {protocol_name(taken.protocol)}{metric}"


def _is_other(taken: Taken) -> bool:
    return taken.via is not None and taken.via.version != taken.destination.version


def _removed(seen: Routing) -> Iterable[Finding]:
    """Routes that somebody takes away as fast as they are repaired."""
    for destination in dict.fromkeys(one.destination for one in seen.repairs):
        times = [one.at for one in seen.repairs if one.destination == destination and one.at > seen.now - WITHIN]
        route = next((one for one in seen.desired if one.destination == destination), None)
        if route is None or len(times) < REMOVED_OFTEN:
            continue
        cause = f"somebody removes the route to {destination} again and again: {len(times)} times in {WITHIN} s"
        seconds = seen.now - min(times)
        evidence = ("the agent's repairs", f"set again {len(times)} times in the last {seconds} s")
        fix = Fix(command="ip -ts monitor route", risk="none: it shows each removal as it happens")
        yield _finding(seen, "route-removed", route, cause, evidence, fix, HOST, since=min(times))


def _finding(
    seen: Routing,
    code: str,
    route: Route,
    cause: str,
    evidence: tuple[str, str],
    fix: Fix,
    precedence: int,
    since: int = 0,
) -> Finding:
    peer = seen.holder(ip_network(route.destination))
    where, found = evidence
    return Finding(
        code=code,
        fault="nodes-apart",
        about=pair_name(seen.node, peer),
        node=seen.node,
        cause=cause,
        expected=Expected(text=route_text(route, seen.links), object=f"Node {peer}" if peer else ""),
        observed=(Observed(where="route", text=f"{where}: {found}"),),
        fixes=(fix,),
        since=since,
        precedence=precedence,
    )
