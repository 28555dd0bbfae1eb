"""Well-known communities (RFC 1997, IANA "BGP Well-known Communities"): those that this speaker acts upon."""

from __future__ import annotations

from typing import Final

NO_EXPORT: Final = 0xFFFFFF01
"""Not to leave the autonomous system (RFC 1997)."""
NO_ADVERTISE: Final = 0xFFFFFF02
"""Not to be sent to any peer (RFC 1997)."""
NO_EXPORT_SUBCONFED: Final = 0xFFFFFF03
"""Not to be sent to external peers, those of a confederation included (RFC 1997)."""
GRACEFUL_SHUTDOWN: Final = 0xFFFF0000
"""The session is about to end: prefer any other path (RFC 8326)."""
LLGR_STALE: Final = 0xFFFF0006
"""Kept after its speaker was lost for long: prefer any other path (RFC 9494)."""
NO_LLGR: Final = 0xFFFF0007
"""Not to be kept as a long-lived stale route (RFC 9494)."""
