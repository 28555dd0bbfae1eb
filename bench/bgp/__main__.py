"""Convergence and memory of BGP speakers side by side, one after the other in each round.

    python -m bench.bgp [--routes 100000] [--family ipv4|ipv6] [--rounds 3] [--speakers airmesh,BIRD,…] [--output json]
    python -m bench.bgp.reflector

A round measures every speaker once; each begins with another one. The time is from the first octet that the sender
sends until the receiver has every prefix that import policy accepts, each by its AS path. It needs root, for network
namespaces of its own (`am-bench-bgp-…`), and the packages of bench/apt.txt.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.bgp.ground import links, namespaces
from bench.bgp.measured import usage
from bench.bgp.peers import Receiver, Sender
from bench.bgp.report import Run, report, run_of
from bench.bgp.speakers import KERNEL, MAKERS, SPEAKERS, Running
from bench.bgp.tables import Table, table
from services.routing.core.bgp.values import Family

SETTLE = 2.0
"""Seconds after both sessions are up, before anything is sent."""
LONGEST = 600.0
"""Seconds in which a table has to arrive."""


def measure(name: str, sent: Table, number: int) -> Run:
    """One speaker, one table. Raises `SessionLost` where the speaker gives up."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airmesh-bench-bgp-")))
        first, second = links(sent.family)
        sender, receiver = Sender(first, sent.family), Receiver(second, sent.family)
        stack.callback(receiver.close)
        stack.callback(sender.close)
        running = stack.enter_context(Running(name, MAKERS[name](sent.family, folder), folder))
        receiver.establish()
        sender.establish()
        time.sleep(SETTLE)
        before = usage(running.pid)
        sender.send(sent.messages)
        arrived = receiver.collect(sent.paths, LONGEST, lambda: running.death() or sender.ended)
        time.sleep(SETTLE)
        after = usage(running.pid)
        run = run_of(name, sent.family.name, sent.count, number, sender.began, arrived, before, after)
        return replace(run, **_written(running)) if name == KERNEL else run


def _written(running: Running) -> dict[str, Any]:
    """Routes in the kernel, and the time that they took."""
    said = json.loads(running.output.read_text().splitlines()[-1])
    return {name: said[name] for name in ("written", "written_seconds", "written_cpu")}


def _asked(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.bgp", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--routes", type=int, default=100_000)
    parser.add_argument("--family", choices=("ipv4", "ipv6"), default="ipv4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speakers", default=",".join(SPEAKERS), help=f"of {', '.join(MAKERS)}, separated by commas")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    asked = parser.parse_args(words)
    if unknown := [name for name in asked.speakers.split(",") if name not in MAKERS]:
        parser.error(f"--speakers names {unknown[0]}; take of {', '.join(MAKERS)}")
    return asked


def main(words: Sequence[str]) -> int:
    """Print the tables, or the runs as JSON; 1 where a speaker did not pass the table on."""
    asked = _asked(words)
    family = Family[asked.family.upper()]
    sent = table(family, asked.routes, str(links(family)[0].peer))
    runs: list[Run] = []
    names = asked.speakers.split(",")
    with namespaces():
        for number in range(asked.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                runs.append(measure(name, sent, number))
                print(f"round {number + 1} of {asked.rounds}: {runs[-1].line}", file=sys.stderr, flush=True)
    print(json.dumps([asdict(run) for run in runs]) if asked.output == "json" else report(runs))
    return 0 if all(run.seconds is not None for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
