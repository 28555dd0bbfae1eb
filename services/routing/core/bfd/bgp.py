"""BGP as a client of BFD (RFC 5882 10): with whom there is a BFD session, and what a BGP session does when it fails.

RFC 5882 3.2 and 4.3 say what follows from a failure; the Cease that ends a session is RFC 9384's.

BFD that somebody switched off is no failure. Any other failure ends the session and takes its routes, also where
graceful restart was agreed: BGP does not say beforehand that it restarts, and routes kept for the restart time of a
peer that is dead lead nowhere (RFC 5882 4.3.2.2.2). Once a graceful restart of the peer is under way, a failure may be
part of it; only BFD that goes on without its control plane at both ends (C bit) then speaks of the path (4.3.2.1).
"""

from __future__ import annotations

from enum import Enum

from services.routing.core.bfd.session import Failure
from services.routing.core.bfd.sessions import Key
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.fib import Uplink


class Consequence(Enum):
    """What becomes of the BGP session and of what was learnt by it."""

    NONE = "none"
    """All stays as it is."""
    END = "end"
    """The connection ends with Cease and the routes go, also those that a graceful restart of the peer keeps."""


def consequence(failure: Failure, *, restarting: bool) -> Consequence:
    """``restarting``: the peer's routes are stale, kept for its restart time (RFC 4724 4.2)."""
    if failure.administrative or (restarting and not failure.independent):
        return Consequence.NONE
    return Consequence.END


def key_of(session: SessionSettings, link: Uplink) -> Key | None:
    """The BFD session that goes with a BGP session with a peer on a link, between the same two addresses (RFC 5881 3);
    None where BGP's own address is not on the link, since BFD of one hop is not for it.
    """
    peer = session.address
    own = [one for one in link.addresses if one.version == peer.version]
    if session.local is not None:
        return Key(session.local, peer, link.name) if session.local in {one.ip for one in own} else None
    found = next((one.ip for one in own if peer in one.network), None)
    return Key(found, peer, link.name) if found is not None else None
