"""The peers of this node's BGP speaker: how to hold a session with each, and what may pass between it and the tables.

``core.bgp.resources`` makes these of BGPConfiguration, BGPPeer, BGPFilter and nodes. The session takes the first half
of a peer, the tables take the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from proto.bgp import PeerKind
from proto.net import Address, Network
from services.routing.core.bgp.values import AddPath, Asn, Family, RouterId


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How a session is held."""

    address: Address
    port: int = 179
    local: Address | None = None
    """This side's address; None: what the kernel takes."""
    interface: str = ""
    """Where the peer is reached, for a link-local address; empty: what the kernel takes."""
    passive: bool = False
    """Wait for the peer's connection, and make none."""
    local_asn: Asn
    peer_asn: Asn
    router_id: RouterId
    password: str | None = field(default=None, repr=False)
    """TCP-MD5 (RFC 2385), at most 80 octets."""
    hops: int | None = None
    """GTSM (RFC 5082): packets that came farther than this many hops are not the peer's; None: not looked at."""
    hold_seconds: int = 90
    """Proposed hold time: 0 or at least 3."""
    connect_retry_seconds: int = 5
    families: frozenset[Family] = frozenset(Family)
    add_path: tuple[tuple[Family, AddPath], ...] = ()
    extended_messages: bool = True
    extended_next_hops: frozenset[Family] = frozenset()
    restart_seconds: int = 120
    """Graceful restart time that is offered (RFC 4724), at most 4,095; 0: none is."""
    long_lived_seconds: int = 0
    """Long-lived graceful restart (RFC 9494); 0: not offered."""
    bfd: bool = False

    @property
    def external(self) -> bool:
        """The peer is in another autonomous system."""
        return self.local_asn != self.peer_asn


class Action(Enum):
    """What a rule of a filter does with a route that it matches."""

    ACCEPT = "Accept"
    REJECT = "Reject"


class MatchOperator(Enum):
    """How a route's prefix is compared with a rule's range (BGPFilter ``matchOperator``)."""

    EQUAL = "Equal"
    NOT_EQUAL = "NotEqual"
    IN = "In"
    NOT_IN = "NotIn"


class Source(Enum):
    """Where a route came from (BGPFilter ``source``)."""

    REMOTE_PEERS = "RemotePeers"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRule:
    """One rule; all that it names must match (BGPFilterRuleV4, BGPFilterRuleV6 of projectcalico.org/v3)."""

    action: Action
    family: Family
    network: Network | None = None
    operator: MatchOperator = MatchOperator.IN
    lengths: tuple[int, int] | None = None
    """Least and greatest length of a prefix."""
    source: Source | None = None
    interface: str = ""
    """The interface of the route's next hop."""
    communities: tuple[int | tuple[int, int, int], ...] = ()
    """Standard and large ones, any of which the route must have; empty: not looked at."""
    as_path_prefix: tuple[Asn, ...] = ()
    """The nearest systems of the AS path."""
    set_local_pref: int | None = None
    prepend: tuple[Asn, ...] = ()
    add_communities: tuple[int | tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """What passes between a peer and the tables."""

    imports: tuple[FilterRule, ...] = ()
    """Looked at in order; the first that matches decides, and where none does, ``default_import``."""
    exports: tuple[FilterRule, ...] = ()
    default_import: bool = True
    """What becomes of a learnt route that no rule matches. RFC 8212: False for an external peer without any policy."""
    default_export: bool = True
    client: bool = False
    """The peer is a client of this route reflector (RFC 4456)."""
    cluster_id: RouterId | None = None
    """Set when this node reflects."""
    keep_next_hop: bool = False
    """Send the next hop of an external route on as it came (BGPPeer ``keepOriginalNextHop``)."""
    allowed_own_asn: int = 0
    """How often this speaker's number may be in a learnt AS path (``numAllowedLocalASNumbers``)."""
    most_prefixes: int = 0
    """Of each family; more end the session with Cease 1 (RFC 4486); 0: no bound."""
    leaving: bool = False
    """What leads through this node is sent with the wish to be passed over (RFC 8326)."""
    first_asn_checked: bool = True
    """The nearest number in an external peer's AS path must be its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A peer of this node."""

    name: str
    """``<BGPPeer's name>/<address>`` of one that is asked for, ``mesh/<node>`` in the node-to-node mesh, where
    the session over IPv6 is ``mesh/<node>/ipv6``."""
    session: SessionSettings
    tables: TableSettings = TableSettings()
    kind: PeerKind = "GlobalPeer"
    """Who asks for it."""

    @property
    def in_mesh(self) -> bool:
        """Of the node-to-node mesh."""
        return self.kind == "NodeMesh"
