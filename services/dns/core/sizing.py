"""How many CoreDNS replicas: enough for the nodes, enough for the load, never a single one.

Grows ahead of the load, by its trend, and shrinks late: only when the fewer replicas would have carried the load with
room to spare for ``shrink_after`` seconds. Each decision carries its reason. Units: queries a second, seconds.

Figures: about 16 nodes a replica (cluster-proportional-autoscaler's default) and 2,500 queries a second a replica, a
twelfth of what one CoreDNS on two cores was measured to do. A load that grows tenfold at once is over before a pod has
started, so the servers that there are must carry it, with room for its queue to stay short; growth goes before what is
beyond, and gives the room back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

AHEAD_SECONDS = 60.0
"""A new replica needs so long at most: decided, scheduled, started, ready."""
FEWEST_RATES = 3
"""Rates that make a trend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The figures that sizing goes by."""

    least: int = 2
    most: int = 10
    nodes_each: int = 16
    queries_each: float = 2500.0
    shrink_after: float = 600.0
    room: float = 0.7
    """Share of ``queries_each`` that the fewer replicas may be loaded to."""

    def __post_init__(self) -> None:
        """Raise ValueError for figures that contradict each other."""
        if not 1 <= self.least <= self.most <= 1000:
            raise ValueError(f"replicas from {self.least} to {self.most}; use 1 ≤ least ≤ most ≤ 1000")
        if self.nodes_each < 1 or self.queries_each <= 0:
            raise ValueError("nodes and queries a replica must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A number of replicas and why."""

    replicas: int
    reason: str


def size(rule: Rule, *, nodes: int, queries: float, present: int | None, quiet_for: float) -> Size:
    """Replicas for ``nodes`` and the highest rate of late; ``present`` is the decision now in force.

    ``quiet_for``: how long :func:`is_quiet` has been true for one replica fewer than present.
    """
    by_nodes, by_queries = ceil(nodes / rule.nodes_each), ceil(queries / rule.queries_each)
    wanted = max(rule.least, by_nodes, by_queries)
    if wanted > rule.most:
        return Size(replicas=rule.most, reason=f"the most that is allowed; {_why(rule, nodes, queries, wanted)}")
    if present is not None and rule.least <= present <= rule.most and wanted < present:
        if quiet_for < rule.shrink_after:
            return Size(replicas=present, reason=f"kept: {wanted} would do, but not for {rule.shrink_after:.0f} s yet")
        return Size(replicas=max(wanted, present - 1), reason=_why(rule, nodes, queries, max(wanted, present - 1)))
    return Size(replicas=wanted, reason=_why(rule, nodes, queries, wanted))


def scaled(by: str, replicas: int, wanted: Size) -> Size:
    """The number that an autoscaler has set, which stays; ``by``: its field manager; ``wanted``: :func:`size`."""
    reason = f"{by} owns the Deployment's replicas"
    return Size(replicas=replicas, reason=reason if wanted.replicas == replicas else f"{reason}; else {wanted.reason}")


def is_quiet(rule: Rule, *, nodes: int, queries: float, present: int) -> bool:
    """True when one replica fewer would carry nodes and load with room to spare."""
    fewer = present - 1
    enough_for_nodes = fewer >= ceil(nodes / rule.nodes_each)
    return fewer >= rule.least and enough_for_nodes and queries <= fewer * rule.queries_each * rule.room


def ahead(rates: Sequence[tuple[float, float]], horizon: float) -> float:
    """Queries a second to be ready for: the highest rate of late, or what the trend makes of it by ``horizon``.

    ``rates``: (seconds of some clock, queries a second), the latest last. The trend is the line of least squares
    through them; it counts upwards alone, and up to four times the latest rate, so that one step is met in two.
    """
    if not rates:
        return 0.0
    highest, (last_at, latest) = max(rate for _, rate in rates), rates[-1]
    if len(rates) < FEWEST_RATES:
        return highest
    mean_at, mean = fmean(at for at, _ in rates), fmean(rate for _, rate in rates)
    spread = sum((at - mean_at) ** 2 for at, _ in rates)
    slope = sum((at - mean_at) * (rate - mean) for at, rate in rates) / spread if spread else 0.0
    expected = mean + slope * (last_at + horizon - mean_at)
    return max(highest, min(expected, 4 * latest))


def _why(rule: Rule, nodes: int, queries: float, replicas: int) -> str:
    return (
        f"{replicas} for {nodes} nodes ({rule.nodes_each} each) and {queries:.0f} queries/s "
        f"({rule.queries_each:.0f} each), at least {rule.least}"
    )
