"""BGP as a node's speaker has it now: its sessions, and the routes that it received, chose and sent.

Asked of all routing agents at once on ``proto.subjects.BGP`` and ``BGP_ROUTES``, and answered with a
``proto.requests.Reply`` whose body is :class:`BgpSessions` or :class:`BgpRoutes`. Whose answer it is, is known by the
key that it came with. Nothing of it is stored, and no password is part of it. Changes of a session are events besides
(``proto.events.BgpSession``).

Peers are named ``<BGPPeer>/<address>``, or ``mesh/<node>`` in the node-to-node mesh (``mesh/<node>/ipv6`` over IPv6).
A question names one by its whole name or by a part of it between slashes: the BGPPeer, the address, the other node.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.net import Address, Network

MAX_SESSIONS = 1024
"""Sessions of one answer: some 600 bytes each, and a message has at most a megabyte."""
MAX_PATHS = 1000
"""Paths of one answer."""
MAX_PATHS_BYTES = 1 << 19
"""Bytes of all paths of one answer, about: a path of the Internet may have thousands of communities."""

MAX_STATUS = 500
"""Peers, and routes, of one family in a :class:`BgpStatus`: the object that it is written to has a megabyte."""

SessionState = Literal["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"]
"""States of RFC 4271 8.2.2."""
RoutesTable = Literal["chosen", "received", "sent"]
"""Loc-RIB: of each prefix the paths that policy accepted, and which are used; Adj-RIB-In: what peers sent, with what
was rejected; Adj-RIB-Out: what peers are sent (RFC 4271 3.2)."""
Standing = Literal["best", "used", "unused", "rejected", "sent", "withheld"]
"""The best path; one that shares its traffic; one that another is preferred to, or whose next hop is not reached; one
that import policy rejects; one that is sent to the peer; one that is not."""


def is_named(peer: str, asked: str) -> bool:
    """A peer's name is the one that is asked for, or has it as a part between slashes; empty: any."""
    return not asked or asked == peer or asked in peer.split("/")


class BgpSessionsRequest(msgspec.Struct, frozen=True):
    """``$SRV.BGP`` → :class:`BgpSessions`, from each agent that is asked; others stay silent."""

    nodes: tuple[str, ...] = ()
    """Only agents of these nodes answer; none: all."""
    down: bool = False
    """Only sessions that are not established."""


class PrefixCount(msgspec.Struct, frozen=True):
    """Prefixes of one family in a session; with ADD-PATH (RFC 7911) paths."""

    family: Literal[4, 6]
    received: int
    """Also those that policy rejects."""
    sent: int
    stale: int = 0
    """Of those received: kept over a restart of the peer, and not sent again yet (RFC 4724)."""


class SessionReport(msgspec.Struct, frozen=True):
    """One peer that this node is to hold a session with."""

    peer: str
    address: Address
    asn: int
    """The peer's autonomous system number, as configured."""
    local_asn: int
    state: SessionState
    since: int = 0
    """When it came to be in this state, in Unix seconds of its node; 0: never tried."""
    port: int = 179
    local: Address | None = None
    """This side's address; none: what the kernel takes."""
    interface: str = ""
    families: tuple[PrefixCount, ...] = ()
    """Those that both sides agreed on, and those whose stale paths are kept."""
    hold_seconds: int = 0
    """Agreed on; 0: none, or no session."""
    established: int = 0
    """How often there was a session since the agent started."""
    received_messages: int = 0
    sent_messages: int = 0
    why: str = ""
    """Why there is no session: one sentence; empty while there is one, or before the first attempt."""
    remedy: str = ""


class BgpFault(msgspec.Struct, frozen=True):
    """What is asked for and this node cannot do."""

    fault: str
    remedy: str


class BgpSessions(msgspec.Struct, frozen=True):
    """What one node's agent answers; sessions by name of the peer."""

    node: str
    speaks: bool = False
    """There is a speaker: somebody asks for one."""
    asn: int = 0
    router_id: str = ""
    sessions: tuple[SessionReport, ...] = ()
    faults: tuple[BgpFault, ...] = ()
    left_out: int = 0
    """Sessions that found no room in this answer."""
    leaving: bool = False
    """What it sends asks to be passed over (RFC 8326): the Node is cordoned, or about to be deleted."""


PeerKind = Literal["NodeMesh", "NodePeer", "GlobalPeer"]
"""Who asks for a session: the node-to-node mesh, a BGPPeer of certain nodes, a BGPPeer of all (CalicoNodeStatus)."""


class PeerStatus(msgspec.Struct, frozen=True):
    """One peer, as CalicoNodeStatus has it."""

    address: Address
    kind: PeerKind
    state: SessionState
    since: int = 0
    """Unix seconds of the node; 0: never tried."""


class RouteStatus(msgspec.Struct, frozen=True):
    """One route of the speaker's, as CalicoNodeStatus has it."""

    destination: Network
    forwarding: bool
    """It is in the kernel."""
    gateway: Address | None = None
    interface: str = ""
    peer: Address | None = None
    """Whom it was learnt from; none: the node announces it itself."""
    kind: PeerKind | None = None
    """Of that peer."""


class BgpStatus(msgspec.Struct, frozen=True):
    """A node's BGP speaker as it is now, told as often as some CalicoNodeStatus of the node asks for it."""

    node: str
    speaks: bool
    families: tuple[Literal[4, 6], ...] = ()
    """Those that the node has an address of."""
    router_id: str = ""
    booted: int = 0
    """When the agent started, in Unix seconds of the node."""
    configured: int = 0
    """When what is asked of the speaker changed last, likewise."""
    peers: tuple[PeerStatus, ...] = ()
    """At most :data:`MAX_STATUS` of each family."""
    routes: tuple[RouteStatus, ...] = ()
    """At most :data:`MAX_STATUS` of each family."""
    established: tuple[int, int] = (0, 0)
    """Sessions over IPv4 and IPv6, those that found no room included."""
    others: tuple[int, int] = (0, 0)
    """Peers without a session, likewise."""


class BgpRoutesRequest(msgspec.Struct, frozen=True):
    """``$SRV.BGP-ROUTES`` → :class:`BgpRoutes`, from the agent of one node, or of each."""

    node: str
    """Empty: all nodes answer."""
    table: RoutesTable = "chosen"
    prefix: Network | None = None
    """Only this prefix and those that hold it; none: all."""
    peer: str = ""
    """Only what was received from this peer, or is sent to it; empty: any. Of the chosen paths it leaves out none."""


class BgpPath(msgspec.Struct, frozen=True):
    """A path to a prefix, and what became of it. Attributes are those after import policy; of what is sent, as sent."""

    prefix: Network
    peer: str
    """Whom it was received from, empty: this node itself; in the table of what is sent, whom it is sent to."""
    standing: Standing
    why: str = ""
    """One phrase: what decided."""
    next_hop: Address | None = None
    as_path: str = ""
    """Numbers, the nearest first; a set in braces, a confederation's segment in parentheses."""
    origin: Literal["", "igp", "egp", "incomplete"] = ""
    med: int | None = None
    local_pref: int | None = None
    communities: tuple[str, ...] = ()
    """Standard and large ones, ``65001:7`` and ``65001:7:8``."""
    path_id: int = 0
    """ADD-PATH's identifier (RFC 7911); 0: none."""
    stale: bool = False


class BgpRoutes(msgspec.Struct, frozen=True):
    """What one node's agent answers: paths by prefix, IPv4 first, the best one first."""

    node: str
    speaks: bool = False
    peers: int = 0
    """Peers that the question names, or all."""
    paths: tuple[BgpPath, ...] = ()
    left_out: int = 0
    """Paths that found no room in this answer; of the table of chosen ones prefixes."""
    trace_id: str = ""
    """Of the UPDATE messages that named the prefix asked about last, or of the longest one that holds it and has a
    path; empty: they are not remembered, or were not traced."""
    traced_at: int = 0
    """When they were decided, in Unix seconds of the node."""
