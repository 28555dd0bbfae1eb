"""What a BGP session does when BFD with its peer fails (RFC 5882 3.2, 4.3, 10; the Cease subcode is RFC 9384's).

BFD that somebody switched off is no failure. With graceful restart agreed, a failure may be nothing but the peer's
agent restarting, unless BFD at both ends goes on without its control plane: then it speaks of the path alone.
"""

from __future__ import annotations

from enum import Enum

from services.routing.core.bfd.session import Failure

CEASE, CEASE_BFD_DOWN = 6, 10
"""NOTIFICATION code and subcode for a session that BFD ends (RFC 9384)."""


class Consequence(Enum):
    """What becomes of the BGP session and of what was learnt by it."""

    NONE = "none"
    """It goes on."""
    RESTART = "restart"
    """The connection ends; the routes stay, stale, for the peer's restart time (RFC 5882 4.3.2.2, RFC 4724 4.2)."""
    END = "end"
    """The connection ends with Cease, the routes go, and a graceful restart that is under way is given up."""


def consequence(failure: Failure, *, graceful_restart: bool) -> Consequence:
    """``graceful_restart``: both sides have agreed on it, for whichever family."""
    if failure.administrative:
        return Consequence.NONE
    if graceful_restart and not failure.independent:
        return Consequence.RESTART
    return Consequence.END
