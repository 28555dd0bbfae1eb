"""How long a BGP peer's next attempt waits (RFC 4271 8.1.1, DampPeerOscillations): longer after each failure.

An attempt to connect that failed is repeated after 1, 2, 4 … seconds, at most the peer's ConnectRetry time. After an
error of a session, or while one was opened, the next attempt waits as long, at most :data:`LONGEST_DAMPING`. All waits
are spread by chance.
"""

from __future__ import annotations

from kit.backoff import delay

FIRST, LONGEST_DAMPING = 1.0, 60.0
"""Seconds, before they are spread."""
LASTING = 60.0
"""Seconds after which a session is one that works: errors count from one again."""


class Pacing:
    """Failures up to now."""

    def __init__(self) -> None:
        self._connects = 0
        self._errors = 0

    def connect_failed(self, chance: float, longest: float) -> float:
        """Seconds to wait after an attempt to connect."""
        self._connects += 1
        return delay(self._connects - 1, chance, first=FIRST, longest=max(FIRST, longest))

    def erred(self, chance: float) -> float:
        """Seconds to wait after an error."""
        self._errors += 1
        return delay(self._errors - 1, chance, first=FIRST, longest=LONGEST_DAMPING)

    def stopped(self, seconds: float) -> float:
        """Seconds to wait after this side has ended the session for a time: up to eight times ``seconds``."""
        return seconds * 2.0 ** min(self._errors, 3)

    def established(self) -> None:
        """There is a session: the peer can be reached."""
        self._connects = 0

    def lasted(self, seconds: float) -> None:
        """A session has ended after so long."""
        if seconds >= LASTING:
            self._errors = 0

    def forget(self) -> None:
        """A person has started or stopped the peer: nothing counts that was before."""
        self._connects = self._errors = 0
