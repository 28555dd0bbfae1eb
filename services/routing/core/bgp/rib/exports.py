"""Export policy: which path is sent to a peer, and with which attributes (RFC 4271 9.1.3, 9.2; RFC 4456).

Peers with equal ``ExportSettings`` are sent the same, so it is worked out once for all of them. What differs between
them is only that no peer is sent its own paths; the table that is sent from knows the source of each path for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv6Address

from proto.net import Address
from services.routing.core.bgp.communities import (
    GRACEFUL_SHUTDOWN,
    LLGR_STALE,
    NO_ADVERTISE,
    NO_EXPORT,
    NO_EXPORT_SUBCONFED,
)
from services.routing.core.bgp.filters import Rule, changed_by, prepended, with_communities
from services.routing.core.bgp.peers import FilterRule
from services.routing.core.bgp.rib.paths import DEFAULT_LOCAL_PREF, OWN, Path
from services.routing.core.bgp.values import Asn, Attributes, Family, RouterId, attributes_of


class Withheld(Enum):
    """Why a path is not sent to a peer."""

    SOURCE = "it was learnt from this peer"
    INTERNAL = "it was learnt from an internal peer, and this speaker does not reflect it to this one"
    NO_ADVERTISE = "it has the community NO_ADVERTISE"
    NO_EXPORT = "it has the community NO_EXPORT or NO_EXPORT_SUBCONFED, and the peer is external"
    LONG_LIVED = "it is long-lived stale, and the peer does not know of such routes"
    NEXT_HOP = "this node has no address of the family that the peer could send packets to"
    FILTER = "a rule of a filter rejects it"
    NO_POLICY = "no rule of a filter matches it, and without one nothing is sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNextHop:
    """The address of this node in a session, as the next hop that the peer is sent."""

    address: Address
    """For IPv4 prefixes an IPv6 one only where RFC 8950 was agreed on."""
    link_local: IPv6Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """All that decides what is sent to a peer of one family: peers that agree in it form one update group."""

    family: Family
    rules: tuple[FilterRule, ...]
    default: bool
    external: bool
    local_asn: Asn
    client: bool
    cluster_id: RouterId | None
    keep_next_hop: bool
    next_hop: OwnNextHop | None
    sends_paths: bool
    """Several paths of a prefix are sent (RFC 7911)."""
    extended_next_hop: bool
    """Next hops of IPv4 prefixes may be of IPv6 (RFC 8950)."""
    long_lived: bool
    """The peer knows of long-lived stale routes."""
    leaving: bool
    """What leads through this node is to be passed over (RFC 8326)."""


def withheld(path: Path, settings: ExportSettings) -> Withheld | None:
    """Why the path is not sent, whatever filters say; None where it may be."""
    if path.source is OWN:
        return None  # its communities are meant for whoever receives it
    communities = path.attributes.communities
    if NO_ADVERTISE in communities:
        return Withheld.NO_ADVERTISE
    if settings.external and (NO_EXPORT in communities or NO_EXPORT_SUBCONFED in communities):
        return Withheld.NO_EXPORT
    if LLGR_STALE in communities and not settings.long_lived:
        return Withheld.LONG_LIVED
    if not settings.external and not path.source.external and not _reflected(path, settings):
        return Withheld.INTERNAL
    return None


def _reflected(path: Path, settings: ExportSettings) -> bool:
    """A client's path goes to all internal peers, any other internal one to clients alone (RFC 4456 6)."""
    return settings.cluster_id is not None and (path.source.client or settings.client)


def _next_hop(path: Path, settings: ExportSettings) -> OwnNextHop | None:
    """The next hop that is sent: this node, but as it came within the system (RFC 4271 5.1.3) and where asked for."""
    came = path.attributes.next_hop
    if came is None:
        return settings.next_hop
    kept = settings.keep_next_hop if path.source.external else not settings.external
    encoded = settings.family is Family.IPV6 or came.version == 4 or settings.extended_next_hop
    if not kept or not encoded or came.is_link_local:
        return settings.next_hop
    return OwnNextHop(address=came)


def exported(path: Path, settings: ExportSettings, rule: Rule | None) -> Attributes | None:
    """The attributes that are sent, after the rule that accepted it; None without an own address of the family."""
    hop = _next_hop(path, settings)
    if hop is None:
        return None
    attributes = path.attributes if rule is None else changed_by(rule.rule, path.attributes)
    change = _external if settings.external else _internal
    sent = change(attributes, hop, path, settings)
    return _passed_over(sent, settings) if settings.leaving and hop is settings.next_hop else sent


def _passed_over(attributes: Attributes, settings: ExportSettings) -> Attributes:
    """Marked for peers in other systems, which are to prefer any other path, as those of this one do by the preference
    (RFC 8326 4.1, 4.2).
    """
    marked = with_communities(attributes, (GRACEFUL_SHUTDOWN,))
    return marked if settings.external else replace(marked, local_pref=0)


def _external(attributes: Attributes, hop: OwnNextHop, path: Path, settings: ExportSettings) -> Attributes:
    """Our number before the path, nothing that is only for this system, and another's MED not passed on (5.1.4)."""
    return attributes_of(
        attributes.origin,
        prepended(attributes.as_path, (settings.local_asn,)),
        hop.address,
        hop.link_local,
        attributes.med if path.source is OWN else None,
        None,
        attributes.atomic_aggregate,
        attributes.aggregator,
        attributes.communities,
        attributes.extended_communities,
        attributes.large_communities,
        None,
        (),
        attributes.unknown,
    )


def _internal(attributes: Attributes, hop: OwnNextHop, path: Path, settings: ExportSettings) -> Attributes:
    """A preference, and on what is reflected who began it and through which cluster it went (RFC 4456 8)."""
    originator, clusters = attributes.originator_id, attributes.cluster_list
    if path.source is not OWN and not path.source.external and settings.cluster_id is not None:
        originator = originator or path.source.router_id
        clusters = (settings.cluster_id, *clusters)
    return attributes_of(
        attributes.origin,
        attributes.as_path,
        hop.address,
        hop.link_local,
        attributes.med,
        DEFAULT_LOCAL_PREF if attributes.local_pref is None else attributes.local_pref,
        attributes.atomic_aggregate,
        attributes.aggregator,
        attributes.communities,
        attributes.extended_communities,
        attributes.large_communities,
        originator,
        clusters,
        attributes.unknown,
    )
