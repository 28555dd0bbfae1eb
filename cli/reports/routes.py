"""`airmesh routes`: the routes that each node announces, and the host routes of sticky addresses.

What is in a node's kernel is that node's truth (`ip route`, protocol 186 and 187); this is what the bus says should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

import msgspec

from cli.reports import text
from cli.reports.pairs import Pair, listed, table
from cli.reports.table import Cell, Table, Tone
from proto.addresses import Claim
from proto.net import Address, Network
from proto.pairs import Pairs
from proto.routes import NodeRoutes

NOBODY: Mapping[str, Pairs] = {}


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One prefix and the node that it is reached through."""

    prefix: Network
    node: str
    via: tuple[Address, ...]
    """The node's underlay addresses of the prefix's family."""
    models: tuple[str, ...]
    mtu: int
    """Of the node's smallest uplink, in bytes; 0: it does not say. A pair of nodes takes the smaller of its two."""
    kept_for: str = ""
    """Owner, when it is the host route of a kept address."""


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh routes`."""

    routes: tuple[Route, ...]
    pairs: tuple[Pair, ...] = ()
    """What each node's kernel does now, by its routing agent's own word."""
    silent: tuple[str, ...] = ()
    """Nodes that offer routes and whose agents did not tell of their pairs."""
    left_out: int = 0
    """Pairs that found no room in the answers."""
    asked_at: int = 0
    """Unix seconds of this machine."""

    @property
    def well(self) -> bool:
        """Every node has a way to every other that it knows of."""
        return all(pair.state != "none" for pair in self.pairs)


def routes(
    offers: Iterable[NodeRoutes],
    claims: Iterable[Claim],
    reported: Mapping[str, Pairs] = NOBODY,
    *,
    asked_at: int = 0,
    of_node: str = "",
) -> Routes:
    """Routes in the order of their prefixes, IPv4 first; ``reported``: pairs by the node that says so.

    Of one node: what is reached through it, and the pairs that it is an end of.
    """
    by_node = {offer.node: offer for offer in offers}
    found = [_route(prefix, offer) for offer in by_node.values() for prefix in offer.prefixes]
    for claim in claims:
        offer = by_node.get(claim.node)
        if offer is not None:
            found.append(_route(_host(claim.address), offer, text.owner(claim.owner)))
    found.sort(key=lambda route: (route.prefix.version, route.prefix.network_address.packed, route.prefix.prefixlen))
    return Routes(
        routes=tuple(route for route in found if of_node in ("", route.node)),
        pairs=listed(reported, of_node),
        silent=tuple(sorted(by_node.keys() - reported.keys())),
        left_out=sum(answer.left_out for answer in reported.values()),
        asked_at=asked_at,
    )


def _host(address: Address) -> Network:
    return ip_network(address)


def _route(prefix: Network, offer: NodeRoutes, kept_for: str = "") -> Route:
    via = tuple(address for address in offer.underlay if address.version == prefix.version)
    return Route(prefix=prefix, node=offer.node, via=via, models=offer.models, mtu=offer.mtu, kept_for=kept_for)


def tables(report: Routes) -> tuple[Table, ...]:
    """Pairs, then prefixes. A node whose MTU is smaller than another's stands out: its routes are locked to it."""
    largest = max((route.mtu for route in report.routes), default=0)
    return (
        table(report.pairs, report.asked_at, report.silent, report.left_out),
        Table(
            title=f"Routes ({len(report.routes)})",
            columns=("prefix", "node", "via", "model", "mtu", "for"),
            rows=tuple(
                (
                    Cell(str(route.prefix), Tone.STRONG),
                    route.node,
                    ", ".join(map(str, route.via)) or Cell("no underlay address of this family", Tone.BAD),
                    ", ".join(route.models),
                    Cell(str(route.mtu or "not said"), Tone.WARN if 0 < route.mtu < largest else Tone.PLAIN),
                    route.kept_for or "the node's pods",
                )
                for route in report.routes
            ),
            empty="no node offers any: routing has not published yet",
        ),
    )
