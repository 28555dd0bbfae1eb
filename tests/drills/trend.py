"""Trends over time: a slope that outliers do not move, with its interval, of processes that end and begin.

The slope is Theil's and Sen's: the median of the slopes between any two points. Its interval of 95 % is Sen's (P. K.
Sen, 1968: Estimates of the regression coefficient based on Kendall's tau), without a correction for ties. It shares no
code with what it judges. Times are seconds from any beginning, slopes are units an hour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import NormalDist, median

LEVEL = 0.95
HOUR = 3600.0
FEWEST = 6
"""Points that a slope is made of at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Units an hour: what it is, and between which two it lies at the level of 95 %."""

    estimate: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at one process."""

    at: float
    process: tuple[int, int]
    """Pid and start time: another one after each restart."""
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Of one agent over a drill."""

    points: Sequence[tuple[float, float]]
    slope: Slope | None
    """None where there are too few points."""
    incarnations: int
    hours: float
    """From the first point to the last."""

    def grows(self, limit: float) -> bool:
        """Whether it grows, and by more than ``limit`` an hour (in less than an hour: by more than ``limit``)."""
        if self.slope is None or self.slope.least <= 0:
            return False
        return self.slope.estimate * self.hours > limit * max(1.0, self.hours)

    def __str__(self) -> str:
        kind = "one process" if self.incarnations == 1 else f"{self.incarnations} processes at one age"
        if self.slope is None:
            return f"{kind}, {len(self.points)} points: too few for a slope"
        first, last = self.points[0][1], self.points[-1][1]
        one = self.slope
        interval = f"[{one.least:+.2f}, {one.most:+.2f}]"
        return f"{one.estimate:+.2f} {interval} an hour; {first:.2f} to {last:.2f}; {kind}, {len(self.points)} points"


@dataclass(slots=True)
class Series:
    """What was seen of one agent, whichever process it was."""

    samples: list[Sample] = field(default_factory=list)

    def trend(self, age: float) -> Trend:
        """Of the one process where it is one; of many, what each had when it had been seen for ``age`` seconds: a leak
        within a process ends with it, and what a process finds at its start is what grows over many.
        """
        incarnations = {sample.process for sample in self.samples}
        points = [(one.at, one.value) for one in self.samples]
        if len(incarnations) > 1:
            points = at_age(self.samples, age)
        hours = (points[-1][0] - points[0][0]) / HOUR if points else 0.0
        found = slope(points) if len(points) >= FEWEST else None
        return Trend(points=points, slope=found, incarnations=len(incarnations), hours=hours)


def at_age(samples: Iterable[Sample], age: float) -> list[tuple[float, float]]:
    """Of each process the first look when it had been seen for so many seconds; none of those that ended sooner."""
    first: dict[tuple[int, int], float] = {}
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for one in samples:
        if one.at - first.setdefault(one.process, one.at) >= age:
            found.setdefault(one.process, (one.at, one.value))
    return list(found.values())


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Raises ValueError for fewer than two points of different times."""
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) * HOUR for a, b in combinations(points, 2) if a[0] != b[0])
    if not slopes:
        raise ValueError("a slope needs two points of different times")
    count = len(points)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * deviation
    low = max(0, round((len(slopes) - reach) / 2))
    high = min(len(slopes) - 1, round((len(slopes) + reach) / 2) - 1)
    return Slope(estimate=median(slopes), least=slopes[min(low, len(slopes) - 1)], most=slopes[max(high, 0)])
