"""What each agent holds in memory and does when nothing happens, beside the real kube-proxy in the same cluster.

    python -m bench.first.agents [SECONDS]

Memory from /proc/<pid>/smaps_rollup: RSS counts shared pages (the interpreter, libraries) whole in every process, PSS
by their share, so PSS is what one more agent costs and RSS what a limit counts. CPU is user and system time over the
seconds given, in percent of one CPU. Programs' maps belong to the kernel and are in neither.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.first import ground, proxy
from bench.first.figures import table
from bench.first.stage import NAME, Stage, stage

SERVICES = ("cluster", "ipam", "policy", "dns", "routing", "dataplane")
BESIDE = ("nats", "kubelet-n1", "containerd-n1")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of one process. MB are 10^6 bytes; `cpu` is percent of one CPU."""

    rss: float
    pss: float
    cpu: float = 0.0


def memory(rollup: str) -> Usage:
    """From the text of smaps_rollup. Raises `ValueError` when it lacks a line."""
    sizes = {}
    for line in rollup.splitlines()[1:]:
        name, _, rest = line.partition(":")
        if rest.endswith("kB"):
            sizes[name] = int(rest.split()[0]) * 1024 / 1e6
    if not {"Rss", "Pss"} <= sizes.keys():
        raise ValueError(f"no Rss or Pss in smaps_rollup: {rollup[:100]!r}")
    return Usage(rss=sizes["Rss"], pss=sizes["Pss"])


def ticks(stat: str) -> int:
    """User and system time in the text of /proc/<pid>/stat, in clock ticks."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def measure(on: Stage, seconds: float) -> str:
    """The table."""
    kernel = ground.kernel(on)
    pids = {name: pid for name, pid in on.pids().items() if name.split("-")[0] in SERVICES or name in BESIDE}
    pids["kube-proxy"] = proxy.start(on, f"/run/netns/am-{NAME}-k1", kernel)
    time.sleep(10)  # what started is at rest
    before = {name: ticks(Path(f"/proc/{pid}/stat").read_text()) for name, pid in pids.items()}
    time.sleep(seconds)
    found = {}
    for name, pid in pids.items():
        spent = ticks(Path(f"/proc/{pid}/stat").read_text()) - before[name]
        held = memory(Path(f"/proc/{pid}/smaps_rollup").read_text())
        found[name] = Usage(rss=held.rss, pss=held.pss, cpu=spent / _TICKS / seconds * 100)
    peer = found["kube-proxy"]
    rows = [
        (name, f"{one.rss:.0f}", f"{one.pss:.0f}", f"{one.pss / peer.pss:.2f}", f"{one.cpu:.2f}")
        for name, one in sorted(found.items())
    ]
    head = ("process", "RSS, MB", "PSS, MB", "PSS / kube-proxy's", "idle CPU, %")
    return f"At rest, over {seconds:.0f} s.\n\n" + table(head, rows)


def main() -> None:
    """Print the table."""
    with stage() as on:
        print(measure(on, float(sys.argv[1]) if len(sys.argv) > 1 else 30.0))


if __name__ == "__main__":
    main()
