"""A peer of the tables: its session's settings, what it has sent, and how far it was sent each family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from services.routing.core.bgp.peers import SessionSettings, TableSettings
from services.routing.core.bgp.rib.adj_rib_in import AdjRibIn
from services.routing.core.bgp.rib.exports import ExportSettings, OwnNextHop
from services.routing.core.bgp.rib.groups import Group
from services.routing.core.bgp.rib.imports import Learner
from services.routing.core.bgp.rib.paths import Source
from services.routing.core.bgp.values import Agreed, Family, RouterId


class Completed(Enum):
    """What has been sent whole with a batch."""

    INITIAL = "initial"
    """The first full table: send End-of-RIB (RFC 4724 3)."""
    REFRESH = "refresh"
    """All again: end an enhanced route refresh (RFC 7313 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Established:
    """A session, as the tables need it."""

    session: SessionSettings
    tables: TableSettings
    agreed: Agreed
    router_id: RouterId
    """The peer's."""
    next_hops: Mapping[Family, OwnNextHop] = field(default_factory=dict)
    """This node's addresses that the peer can send packets to; nothing is sent of a family without one."""
    long_lived: bool = False
    """The peer knows of long-lived stale routes (RFC 9494)."""


@dataclass(slots=True)
class Outgoing:
    """How far a peer was sent a family."""

    group: Group
    awaited: Completed | None
    """To be said when all has been sent."""
    after: int
    """Only once this many marks were decided: those that there were when the peer came."""


class Neighbor:
    """A peer whose session is established, or which is awaited after a restart."""

    def __init__(self, name: str, known: Established) -> None:
        self.name = name
        self.known = known
        self.up = True
        self.ribs: dict[Family, AdjRibIn] = {}
        self.outgoing: dict[Family, Outgoing] = {}

    def learner(self) -> Learner:
        """What judging the peer's paths depends on."""
        known = self.known
        session = known.session
        own = {hop.address for hop in known.next_hops.values()} | ({session.local} if session.local else set())
        return Learner(
            source=Source(
                name=self.name,
                address=session.address,
                asn=session.peer_asn,
                router_id=known.router_id,
                external=session.external,
                client=known.tables.client,
                interface=session.interface,
            ),
            session=session,
            tables=known.tables,
            own=frozenset(own),
        )

    def exports(self, family: Family) -> ExportSettings:
        """By what a family is sent to the peer; peers with the same are one group."""
        known, tables = self.known, self.known.tables
        return ExportSettings(
            family=family,
            rules=tuple(rule for rule in tables.exports if rule.family is family),
            default=tables.default_export,
            external=known.session.external,
            local_asn=known.session.local_asn,
            client=tables.client,
            cluster_id=tables.cluster_id,
            keep_next_hop=tables.keep_next_hop,
            next_hop=known.next_hops.get(family),
            sends_paths=family in known.agreed.sends_paths,
            extended_next_hop=family in known.agreed.extended_next_hops,
            long_lived=known.long_lived,
            leaving=tables.leaving,
        )
