"""What a BGP session asks for: connections to be made, octets to be sent, and what the tables have to do."""

from __future__ import annotations

from dataclasses import dataclass

from services.routing.core.bgp.codec.messages import MessageKind, Open, RouteRefresh
from services.routing.core.bgp.session.reasons import Reason
from services.routing.core.bgp.session.restart import DropStale, LongLived
from services.routing.core.bgp.values import Agreed, Family, Update

Link = int
"""Number of one of a peer's connections: :data:`OUTGOING`, or one of :data:`INCOMING`, which the peer made."""
OUTGOING: Link = 0
INCOMING: tuple[Link, ...] = (1, 2)
"""Two: while a session stands on one, a peer that has restarted without a word comes by the other."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin the TCP connection :data:`OUTGOING`; answered by ``Machine.connected`` or ``Machine.failed``."""


@dataclass(frozen=True, slots=True)
class Accept:
    """The connection that the peer has just made is this one. Another one of the number has been closed before."""

    link: Link


@dataclass(frozen=True, slots=True)
class Close:
    """Close a connection, or give up making it. What was sent by it just before is still to arrive."""

    link: Link


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message. A NOTIFICATION takes the place of all that waits to be sent by the connection."""

    link: Link
    octets: bytes
    last: bool = False
    """A NOTIFICATION: nothing follows it."""


@dataclass(frozen=True, slots=True)
class Established:
    """The session is up by this connection."""

    link: Link
    agreed: Agreed
    theirs: Open
    hold_seconds: int
    """The shorter of both sides' hold times; 0: no KEEPALIVEs, and nothing expires."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The session is down."""

    reason: Reason
    kept: frozenset[Family] = frozenset()
    """Families whose routes stay as stale ones; those of all others go, as do routes that were stale before."""
    until: float | None = None
    """When the restart time is over; ``DropStale`` or ``LongLived`` says so again."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the peer by the session."""

    message: Update | RouteRefresh


@dataclass(frozen=True, slots=True)
class Seen:
    """A message of the peer as it came, on any connection, whatever becomes of it: only while ``Machine.captured``."""

    link: Link
    kind: MessageKind | None
    """None: what came has no header of a message."""
    body: bytes
    agreed: Agreed | None
    refused: str = ""
    """Why it ends the connection; empty: it is in order."""


@dataclass(frozen=True, slots=True)
class DeferSelection:
    """After a restart of this speaker: no route is chosen or announced before this peer's End-of-RIB of these families,
    at most until then (RFC 4724 4.1).
    """

    families: frozenset[Family]
    until: float


Action = Connect | Accept | Close | Send | Established | Lost | Received | Seen | DeferSelection | LongLived | DropStale
