"""What a process and those that it has started have used: memory and CPU time, from /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of all these processes together."""

    pss_kib: int
    """Proportional set size: pages that n processes share count as an n-th each."""
    rss_kib: int
    cpu_seconds: float
    """In user and kernel mode."""


def usage(pid: int) -> Usage:
    """Of a process and its descendants; what has ended meanwhile counts as nothing."""
    pss = rss = 0
    cpu = 0.0
    for one in (pid, *_descendants(pid)):
        with suppress(FileNotFoundError, ProcessLookupError):
            rolled = _numbers(PROC / str(one) / "smaps_rollup")
            pss, rss = pss + rolled["Pss"], rss + rolled["Rss"]
            cpu += _cpu_seconds(one)
    return Usage(pss_kib=pss, rss_kib=rss, cpu_seconds=cpu)


def _cpu_seconds(pid: int) -> float:
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _numbers(file: Path) -> dict[str, int]:
    found = {}
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith("kB"):
            found[name] = int(value.split()[0])
    return found


def _descendants(pid: int) -> Iterator[int]:
    for task in (PROC / str(pid) / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _descendants(child)
