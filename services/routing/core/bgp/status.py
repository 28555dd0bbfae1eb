"""What a node tells of its BGP speaker where a CalicoNodeStatus asks for it: sessions, and the routes that are chosen.

Bounded: :data:`proto.bgp.MAX_STATUS` sessions and routes of each family, the first in their own order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import msgspec

from proto.bgp import MAX_STATUS, BgpStatus, PeerStatus, RouteStatus, SessionReport
from proto.objects import CalicoNodeStatus
from services.routing.core.bgp.peers import Peer
from services.routing.core.bgp.rib.paths import OWN
from services.routing.core.bgp.rib.tables import Tables
from services.routing.core.bgp.values import Family, Prefix, RouterId, network_of

Forwarding = Callable[[Family, Prefix], bool]


def period(asked: Iterable[CalicoNodeStatus], node: str) -> int:
    """Seconds from one word of ``node`` to the next, as the most impatient object has it; 0: nobody asks."""
    periods = [one.period_seconds for one in asked if one.node == node and one.period_seconds and one.classes]
    return min(periods, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What a speaker has."""

    router_id: RouterId
    sessions: Sequence[SessionReport]
    peers: Mapping[str, Peer]
    """By name."""
    tables: Tables
    forwarding: Forwarding
    """Whether the kernel has a learnt route."""


def status(node: str, families: Iterable[int], spoken: Spoken | None, *, booted: int, configured: int) -> BgpStatus:
    """What is told. ``families``: of the node's addresses (4, 6); ``spoken``: None where it speaks no BGP; times are
    Unix seconds.
    """
    known = frozenset(families)
    of_node: tuple[tuple[Literal[4, 6], bool], ...] = ((4, 4 in known), (6, 6 in known))
    bare = BgpStatus(
        node=node,
        speaks=spoken is not None,
        families=tuple(family for family, there in of_node if there),
        booted=booted,
        configured=configured,
    )
    if spoken is None:
        return bare
    sessions = {family: [one for one in spoken.sessions if one.address.version == family] for family in (4, 6)}
    up4, up6 = (sum(map(_is_up, of_family)) for of_family in sessions.values())
    return msgspec.structs.replace(
        bare,
        router_id=str(spoken.router_id),
        peers=tuple(_peer(one, spoken.peers) for of in sessions.values() for one in of[:MAX_STATUS]),
        routes=tuple(_routes(spoken.tables, spoken.peers, spoken.forwarding)),
        established=(up4, up6),
        others=(len(sessions[4]) - up4, len(sessions[6]) - up6),
    )


def _is_up(session: SessionReport) -> bool:
    return session.state == "Established"


def _peer(session: SessionReport, peers: Mapping[str, Peer]) -> PeerStatus:
    return PeerStatus(address=session.address, kind=peers[session.peer].kind, state=session.state, since=session.since)


def _routes(tables: Tables, peers: Mapping[str, Peer], forwarding: Forwarding) -> Iterator[RouteStatus]:
    for family in Family:
        yield from islice(_of_family(tables, family, peers, forwarding), MAX_STATUS)


def _of_family(
    tables: Tables, family: Family, peers: Mapping[str, Peer], forwarding: Forwarding
) -> Iterator[RouteStatus]:
    """One for each path that is used."""
    for prefix, paths in tables.chosen(family).items():
        destination = network_of(family, prefix)
        for path in paths:
            if path.source is OWN:
                yield RouteStatus(destination=destination, forwarding=False)
                continue
            peer = peers.get(path.source.name)
            yield RouteStatus(
                destination=destination,
                forwarding=paths[0].source is not OWN and forwarding(family, prefix),
                gateway=path.hop.address if path.hop is not None else None,
                interface=path.interface,
                peer=path.source.address,
                kind=peer.kind if peer is not None else None,
            )
