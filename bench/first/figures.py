"""Numbers out of what the C programs print, and tables out of numbers. Pure.

A figure is only worth its ratio: machines differ and are busy, but what is measured in the same round on the same CPU
has met the same conditions. So a result is the median over the rounds of (ours / peer), with the lowest and highest
round beside it; absolute values are the medians of the rounds. Refuses output it does not know, with the words of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What `rr`, `bulk`, `pps` and `frames` print: durations of `count` transactions in microseconds."""

    count: int
    failed: int
    seconds: float
    p50_us: float
    p99_us: float


class Spawned(msgspec.Struct, frozen=True, kw_only=True):
    """What `spawner` prints: how long each run took, and all of them together."""

    failed: int
    wall_us: float
    us: tuple[float, ...]


class Unreadable(Exception):
    """A program printed something else than its result; the text holds it."""


def summary(printed: str) -> Summary:
    """The result of `rr`, `bulk`, `pps` or `frames`. Raises `Unreadable`, also when more than 1 in 100 failed."""
    try:
        read = msgspec.json.decode(printed, type=Summary)
    except msgspec.DecodeError as wrong:
        raise Unreadable(f"not a result of a benchmark ({wrong}): {printed[:200]!r}") from wrong
    if read.count <= 0 or read.failed * 100 > read.count:
        raise Unreadable(f"{read.failed} of {read.count + read.failed} transactions failed")
    return read


def spawned(printed: str) -> Spawned:
    """The result of `spawner`. Raises `Unreadable`, also when any run failed: a refusal is quicker than work."""
    try:
        read = msgspec.json.decode(printed, type=Spawned)
    except msgspec.DecodeError as wrong:
        raise Unreadable(f"not a result of spawner ({wrong}): {printed[:200]!r}") from wrong
    if read.failed or not read.us:
        raise Unreadable(f"{read.failed} of {len(read.us)} runs failed")
    return read


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0…1) of the values do not exceed. Raises `ValueError` when there are none."""
    if not values:
        raise ValueError("no values: nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Ours beside a peer's, both the medians of the rounds, and the median, lowest and highest ratio of a round."""

    ours: float
    peer: float
    ratio: float
    lowest: float
    highest: float

    @property
    def text(self) -> str:
        """`0.41 [0.39-0.45]`."""
        return f"{self.ratio:.3g} [{self.lowest:.3g}-{self.highest:.3g}]"


def compare(ours: Sequence[float], peers: Sequence[float]) -> Compared:
    """One value a round each, in the rounds' order. Raises `ValueError` when rounds are missing."""
    ratios = [mine / its for mine, its in zip(ours, peers, strict=True)]
    if not ratios:
        raise ValueError("no rounds: nothing was measured")
    return Compared(
        ours=statistics.median(ours),
        peer=statistics.median(peers),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
