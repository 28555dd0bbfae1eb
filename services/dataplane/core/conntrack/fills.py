"""Thresholds of conntrack shares: when one that is nearly full is reported, and when the fault clears.

Pure. A share is what an endpoint's flows of one direction are counted against, the part of it that flows may have which
lead to nothing, or the node's whole table. It is told from RAISED on and taken back below CLEARED, so that one near the
line is not told again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proto.policy import Direction
from services.dataplane.core.datapath.layout import (
    NODE,
    Budget,
)
from services.dataplane.core.datapath.maps import WAYS

RAISED = 0.8
CLEARED = 0.7
MOST_OF = 0.5
"""A peer is named that has this part of the flows."""


@dataclass(frozen=True, slots=True)
class Share:
    """What flows are counted against: an endpoint's direction (INGRESS of :data:`NODE`: the node's table)."""

    endpoint: int
    direction: Direction
    is_pending: bool = False
    """Only flows that nobody has answered, against their places in ``am_ct_recent``."""


@dataclass(frozen=True, slots=True)
class Fill:
    """How much of a share is used."""

    used: int
    limit: int

    @property
    def part(self) -> float:
        """From 0 to 1, or more where a limit was lowered."""
        return self.used / self.limit if self.limit else 0.0


def fills(
    budgets: Mapping[int, Budget], entries: int, pending: Mapping[tuple[int, int], int] | None = None
) -> dict[Share, Fill]:
    """Every share of a node whose table has so many entries. ``pending``: flows that nobody has answered, by endpoint
    and direction; None: they are not known.
    """
    found: dict[Share, Fill] = {}
    for endpoint, budget in budgets.items():
        if endpoint == NODE:
            found[Share(NODE, Direction.INGRESS)] = Fill(budget.ingress, entries)
            continue
        found[Share(endpoint, Direction.INGRESS)] = Fill(budget.ingress, budget.ingress_limit)
        found[Share(endpoint, Direction.EGRESS)] = Fill(budget.egress, budget.egress_limit)
        if pending is not None:
            cells = (budget.mask + 1) * WAYS
            for direction in Direction:
                waiting = Fill(pending.get((endpoint, direction), 0), cells)
                found[Share(endpoint, direction, is_pending=True)] = waiting
    return found


def nearly_spent(present: Mapping[Share, Fill], reported: frozenset[Share]) -> frozenset[Share]:
    """The shares that are nearly spent now, given those that were told as such."""
    return frozenset(
        share for share, fill in present.items() if fill.part >= (CLEARED if share in reported else RAISED)
    )
