"""What is read off the rounds: a table of figures, and one of ratios with their targets. Pure.

A ratio is the median over the rounds of (this project's / a peer's), both measured in that round, with the lowest and
highest round beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.bgp.measured import Usage
from bench.bgp.peers import Arrived
from bench.bgp.speakers import AIRMESH, FRR, GOBGP, KERNEL
from bench.first.figures import compare, table

MIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One speaker, one table, one round."""

    speaker: str
    family: str
    routes: int
    round: int
    seconds: float | None
    """From the first octet that the sender sent until the receiver had all; None: it never had."""
    cpu_seconds: float
    """Of the speaker, until some seconds after that."""
    pss_mib: float
    """By which its memory has grown since its sessions were up."""
    rss_mib: float
    whole_rss_mib: float
    """All that it has then."""
    arrived: int
    """Prefixes at the receiver."""
    wrong: int
    """Those that were not to come, or came by another AS path."""
    messages: int
    """UPDATEs at the receiver."""
    written: int = 0
    """Routes in the kernel."""
    written_seconds: float = 0.0
    """On the clock, in which they were written."""
    written_cpu: float = 0.0
    """CPU time of the speaker meanwhile."""

    @property
    def line(self) -> str:
        """For whoever waits."""
        took = (
            f"{self.seconds:.2f} s" if self.seconds is not None else f"never: {self.arrived} came, {self.wrong} wrong"
        )
        return f"{self.speaker}: {took}, {self.cpu_seconds:.2f} s of CPU, {self.pss_mib:.0f} MiB more"


def run_of(
    speaker: str, family: str, routes: int, number: int, began: float, arrived: Arrived, before: Usage, after: Usage
) -> Run:
    """A run, from what was measured before and after it."""
    return Run(
        speaker=speaker,
        family=family,
        routes=routes,
        round=number,
        seconds=arrived.at - began if arrived.at is not None else None,
        cpu_seconds=after.cpu_seconds - before.cpu_seconds,
        pss_mib=(after.pss_kib - before.pss_kib) / MIB,
        rss_mib=(after.rss_kib - before.rss_kib) / MIB,
        whole_rss_mib=after.rss_kib / MIB,
        arrived=arrived.count,
        wrong=arrived.wrong,
        messages=arrived.messages,
    )


Runs = Mapping[str, Sequence[Run]]
"""By speaker, one for each round in which the table arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound of this project's time by a peer's."""

    peer: str
    at_most: float

    def judged(self, ratio: float) -> tuple[str, str]:
        """The bound, and whether it is met."""
        return f"≤ {self.at_most:.2f}", "yes" if ratio <= self.at_most else "no"


TARGETS = {one.peer: one for one in (Target(peer=FRR, at_most=1.0), Target(peer=GOBGP, at_most=0.2))}
MOST_MEMORY = 60.0
"""MiB by which 100,000 IPv4 routes may let it grow."""


def _by_speaker(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.seconds is not None:
            found.setdefault(run.speaker, []).append(run)
    return found


def _figures(speaker: str, runs: Sequence[Run]) -> tuple[str, ...]:
    def spread(value: Callable[[Run], float], decimals: int) -> str:
        values = [value(run) for run in runs]
        return f"{statistics.median(values):.{decimals}f} [{min(values):.{decimals}f}-{max(values):.{decimals}f}]"

    return (
        speaker,
        spread(lambda run: run.seconds or 0.0, 2),
        spread(lambda run: run.cpu_seconds, 2),
        f"{runs[0].routes / statistics.median(run.seconds or 1.0 for run in runs) / 1000:.0f}",
        spread(lambda run: run.pss_mib, 0),
        spread(lambda run: run.rss_mib, 0),
        f"{statistics.median(run.messages for run in runs):.0f}",
    )


def _ratios(found: Runs) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    ours = found.get(AIRMESH, [])
    for peer, theirs in found.items():
        if peer in (AIRMESH, KERNEL) or [run.round for run in ours] != [run.round for run in theirs]:
            continue
        times = compare([run.seconds or 0.0 for run in ours], [run.seconds or 0.0 for run in theirs])
        cpu = compare([run.cpu_seconds for run in ours], [run.cpu_seconds for run in theirs])
        target = TARGETS.get(peer)
        bound, met = target.judged(times.ratio) if target is not None else ("–", "")
        rows.append((f"{AIRMESH} / {peer}", times.text, bound, met, cpu.text))
    return rows


def _memory(found: Runs) -> list[str]:
    runs = found.get(AIRMESH, [])
    if not runs or (runs[0].routes, runs[0].family) != (100_000, "IPV4"):
        return []
    grown = statistics.median(run.pss_mib for run in runs)
    return [f"Memory: {grown:.0f} MiB more, at most {MOST_MEMORY:.0f}: {'yes' if grown <= MOST_MEMORY else 'no'}."]


def _kernel(found: Runs) -> list[str]:
    runs = [run for run in found.get(KERNEL, []) if run.written_seconds and run.written_cpu]
    if not runs:
        return []
    clock = statistics.median(run.written / run.written_seconds / 1000 for run in runs)
    cpu = statistics.median(run.written / run.written_cpu / 1000 for run in runs)
    return [f"Kernel routes: {clock:.0f} thousand a second, {cpu:.0f} thousand a second of CPU."]


def report(runs: Sequence[Run]) -> str:
    """Figures, ratios, and what else has a target; what failed is said first."""
    found = _by_speaker(runs)
    failed = [f"{run.speaker} did not pass the table on: {run.line}" for run in runs if run.seconds is None]
    figures = table(
        ("speaker", "seconds", "seconds of CPU", "thousand routes/s", "PSS more, MiB", "RSS more, MiB", "UPDATEs sent"),
        [_figures(speaker, some) for speaker, some in found.items()],
    )
    ratios = table(("", "time [of rounds]", "target", "met", "CPU time [of rounds]"), _ratios(found))
    return "\n\n".join([*failed, figures, ratios, *_memory(found), *_kernel(found)])
