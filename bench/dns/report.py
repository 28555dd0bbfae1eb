"""What is read off the rounds: a table for each load and C library, with ratios to kubeadm's Corefile. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from bench.dns.ways import KUBEADM, NODELOCAL
from bench.first.figures import compare, percentile, table

HEAD = ("way", "P50 ms", "P99 ms", "queries/lookup", f"P99 ÷ {KUBEADM}'s", f"P99 ÷ {NODELOCAL}'s")
TARGET = 1 / 3
"""Of the P99 of kubeadm's Corefile."""


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What `lookups` prints: microseconds of the lookups that found an address, and how many did not."""

    us: tuple[float, ...]
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One way, load and C library in one round."""

    way: str
    load: str
    library: str
    looked: Looked
    queries: int
    """That the pod's server was asked."""

    @property
    def each(self) -> float:
        """Queries per lookup."""
        return self.queries / max(1, len(self.looked.us) + self.looked.failed)

    def milliseconds(self, share: float) -> float:
        """Of the lookups that found an address."""
        return percentile(self.looked.us, share) / 1000


def report(runs: Sequence[Run]) -> str:
    """All tables. Raises `ValueError` when a way lacks rounds that its peer has."""
    parts = []
    for load, library in dict.fromkeys((run.load, run.library) for run in runs):
        mine = [run for run in runs if (run.load, run.library) == (load, library)]
        ways = dict.fromkeys(run.way for run in mine)
        rows = [_row([run for run in mine if run.way == way], mine) for way in ways]
        parts.append(f"{load}, {library}\n\n{table(HEAD, rows)}")
    return "\n\n".join(parts) + "\n"


def p99_ratio(runs: Iterable[Run], all_runs: Iterable[Run], peer: str) -> str:
    """`0.31 [0.28-0.40]`, of runs in the order of their rounds beside the peer's."""
    its = [run.milliseconds(0.99) for run in all_runs if run.way == peer]
    return compare([run.milliseconds(0.99) for run in runs], its).text


def _row(runs: Sequence[Run], all_runs: Sequence[Run]) -> tuple[str, ...]:
    failed = sum(run.looked.failed for run in runs)
    return (
        runs[0].way + (f" ({failed} failed)" if failed else ""),
        *(f"{statistics.median(run.milliseconds(share) for run in runs):.2f}" for share in (0.5, 0.99)),
        f"{statistics.median(run.each for run in runs):.2f}",
        *(p99_ratio(runs, all_runs, peer) for peer in (KUBEADM, NODELOCAL)),
    )
