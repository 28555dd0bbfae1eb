"""What a BGP session does when BFD with its peer fails (RFC 5882 3.2, 4.3, 10; the Cease subcode is RFC 9384's).

BFD that somebody switched off is no failure. Any other failure ends the session and takes its routes, also where
graceful restart was agreed: BGP does not say beforehand that it restarts, and routes kept for the restart time of a
peer that is dead lead nowhere (RFC 5882 4.3.2.2.2). Once a graceful restart of the peer is under way, a failure may be
part of it; only BFD that goes on without its control plane at both ends (C bit) then speaks of the path (4.3.2.1).
"""

from __future__ import annotations

from enum import Enum

from services.routing.core.bfd.session import Failure

CEASE, CEASE_BFD_DOWN = 6, 10
"""NOTIFICATION code and subcode for a session that BFD ends (RFC 9384)."""


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
