"""Graceful restart of a peer (RFC 4724, RFC 8538) and its long-lived form (RFC 9494), on the side that helps.

When a session is lost in a way that may be a restart, routes of some families stay as stale ones: at first until the
peer's restart time is over, then, where both sides offered it, as long-lived stale ones, that are preferred least. When
the session is back they stay until the peer has sent all of its routes again (End-of-RIB), at most :data:`REFRESHED`
seconds; those of a family whose forwarding state the peer did not keep go at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from services.routing.core.bgp.codec.messages import Notification
from services.routing.core.bgp.session.reasons import is_hard_reset
from services.routing.core.bgp.values import Agreed, Capabilities, Family

REFRESHED = 360.0
"""Seconds from the new session to the End-of-RIB that are waited for at most."""


@dataclass(frozen=True, slots=True)
class LongLived:
    """Stale routes of these families are long-lived stale ones from now on: preferred least, with LLGR_STALE."""

    families: frozenset[Family]
    until: float


@dataclass(frozen=True, slots=True)
class DropStale:
    """Routes of these families that are still stale go."""

    families: frozenset[Family]


class _Phase(Enum):
    RESTARTING = auto()
    LONG_LIVED = auto()
    REFRESHING = auto()


@dataclass(frozen=True, slots=True)
class _Stale:
    phase: _Phase
    until: float
    long_lived: int = 0
    """Seconds that follow as long-lived stale ones."""


def outlives(notification: Notification, ours: Capabilities, theirs: Capabilities) -> bool:
    """A NOTIFICATION is a restart, too, where both sides set the N bit and it is no hard reset (RFC 8538 4)."""
    offers = ours.graceful_restart, theirs.graceful_restart
    return not is_hard_reset(notification) and all(offer is not None and offer.notification for offer in offers)


def kept_families(ours: Capabilities, theirs: Capabilities, agreed: Agreed) -> frozenset[Family]:
    """Families whose routes outlive the session when the peer restarts."""
    if ours.graceful_restart is None or theirs.graceful_restart is None:
        return frozenset()
    offered = {restart.family for restart in theirs.graceful_restart.families}
    stays = frozenset(offered & agreed.families)
    if theirs.graceful_restart.seconds:
        return stays
    return frozenset(family for family in stays if long_lived_seconds(ours, theirs, family))


def long_lived_seconds(ours: Capabilities, theirs: Capabilities, family: Family) -> int:
    """How long the routes stay after the restart time: the shorter of both sides' words; 0 where one offers none."""
    offers = [{one.family: one.stale_seconds for one in side.long_lived} for side in (ours, theirs)]
    return min(offer.get(family, 0) for offer in offers)


class StaleRoutes:
    """What is kept of a peer's routes while its session is down, or has just come back."""

    def __init__(self) -> None:
        self._by_family: dict[Family, _Stale] = {}

    @property
    def deadline(self) -> float | None:
        """When :meth:`expire` has something to do."""
        return min((stale.until for stale in self._by_family.values()), default=None)

    @property
    def families(self) -> frozenset[Family]:
        """Families that have, or may have, stale routes."""
        return frozenset(self._by_family)

    def keep(self, now: float, ours: Capabilities, theirs: Capabilities, families: frozenset[Family]) -> None:
        """The session was lost; the routes of ``families`` are stale, those that already were are gone."""
        offer = theirs.graceful_restart
        until = now + (offer.seconds if offer is not None else 0)
        self._by_family = {
            family: _Stale(_Phase.RESTARTING, until, long_lived_seconds(ours, theirs, family)) for family in families
        }

    def drop(self) -> list[DropStale]:
        """Nothing is kept any longer."""
        gone = self.families
        self._by_family.clear()
        return _drop(gone)

    def established(self, now: float, theirs: Capabilities, families: frozenset[Family]) -> list[DropStale]:
        """The session is back, for ``families``: what the peer has not kept goes."""
        offer = theirs.graceful_restart
        preserved = {one.family for one in (offer.families if offer else ()) if one.preserved}
        preserved |= {one.family for one in theirs.long_lived if one.preserved and offer}
        refreshing = self._by_family.keys() & preserved & families
        gone = self.families - refreshing
        self._by_family = {family: _Stale(_Phase.REFRESHING, now + REFRESHED) for family in refreshing}
        return _drop(gone)

    def end_of_rib(self, family: Family) -> list[DropStale]:
        """The peer has sent all routes of a family: what is still stale goes."""
        return _drop(frozenset({family})) if self._by_family.pop(family, None) is not None else []

    def expire(self, now: float) -> list[DropStale | LongLived]:
        """What has been stale for long enough."""
        due = {family: stale for family, stale in self._by_family.items() if stale.until <= now}
        steps: list[DropStale | LongLived] = []
        for family, stale in sorted(due.items()):
            if stale.phase is _Phase.RESTARTING and stale.long_lived:
                until = stale.until + stale.long_lived
                self._by_family[family] = _Stale(_Phase.LONG_LIVED, until)
                steps.append(LongLived(frozenset({family}), until))
            else:
                del self._by_family[family]
                steps.append(DropStale(frozenset({family})))
        return steps


def _drop(families: frozenset[Family]) -> list[DropStale]:
    return [DropStale(families)] if families else []
