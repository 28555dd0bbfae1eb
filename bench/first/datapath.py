"""Round trips, connections, throughput and packets between pods across nodes, beside the kernel's plain routing.

    python -m bench.first.datapath [ROUNDS] [SECONDS]

Client and server run on one CPU, so a duration is the work of both ends and of everything between. Every round measures
both ways in turn, and which one comes first alternates.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bench.first import ground
from bench.first.figures import Summary, compare, summary, table
from bench.first.ground import PORTS, Ends
from bench.first.stage import Stage, stage

CLOSED = 7200
"""A port outside of the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One figure: which program, its verb, and what is read off its result."""

    name: str
    program: str
    verb: str
    read: Callable[[Summary], float]
    unit: str
    decimals: int = 1


QUESTIONS = (
    Question(name="TCP round trip, p50", program="rr", verb="ping", read=lambda s: s.p50_us, unit="µs"),
    Question(name="TCP round trip, p99", program="rr", verb="ping", read=lambda s: s.p99_us, unit="µs"),
    Question(
        name="TCP connect and one round trip, p50", program="rr", verb="connect", read=lambda s: s.p50_us, unit="µs"
    ),
    Question(
        name="TCP connections a second",
        program="rr",
        verb="connect",
        read=lambda s: s.count / s.seconds,
        unit="/s",
        decimals=0,
    ),
    Question(
        name="TCP throughput, one CPU",
        program="bulk",
        verb="send",
        read=lambda s: (512 << 10) * 8e-3 / s.p50_us,
        unit="Gbit/s",
        decimals=2,
    ),
    Question(
        name="UDP packets of 64 bytes, socket to socket, one CPU",
        program="pps",
        verb="send",
        read=lambda s: 64e3 / s.p50_us,
        unit="thousand/s",
        decimals=0,
    ),
    Question(
        name="UDP packets of 64 bytes, link to link, one CPU",
        program="frames",
        verb="send",
        read=lambda s: 256e3 / s.p50_us,
        unit="thousand/s",
        decimals=0,
    ),
)


def serve(on: Stage, ends: Ends) -> None:
    """Start the serving ends."""
    for program, port in PORTS.items():
        on.serve(ends.server, program, port)


def ask(on: Stage, ends: Ends, program: str, verb: str, seconds: float) -> Summary:
    """One measurement."""
    return summary(on.pinned(ends.client, program, verb, ends.address, str(PORTS[program]), str(seconds)))


def prove_guarded(on: Stage, ends: Ends) -> None:
    """The policy is in force: a port that it does not name is closed, though somebody listens there."""
    on.serve(ends.server, "rr", CLOSED)
    on.run(["sleep", "0.3"])
    argv = ["nsenter", f"--net={ends.client}", on.program("rr"), "connect", ends.address, str(CLOSED), "0.1"]
    if subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0:
        raise SystemExit(f"port {CLOSED} is open between the pods: the policy is not in force, this would measure less")


def measure(on: Stage, rounds: int, seconds: float) -> str:
    """The table."""
    ways = [("airmesh", ground.mesh(on)), ("kernel", ground.kernel(on))]
    prove_guarded(on, ways[0][1])
    for _, ends in ways:
        serve(on, ends)
    on.run(["sleep", "0.5"])
    runs = sorted({(question.program, question.verb) for question in QUESTIONS})
    results: dict[tuple[str, str, str], list[Summary]] = {}
    for number in range(rounds):
        for program, verb in runs:
            for name, ends in ways if number % 2 else reversed(ways):
                results.setdefault((name, program, verb), []).append(ask(on, ends, program, verb, seconds))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    rows = []
    for question in QUESTIONS:
        mine, its = (
            [question.read(one) for one in results[name, question.program, question.verb]]
            for name in ("airmesh", "kernel")
        )
        found = compare(mine, its)
        values = (f"{value:.{question.decimals}f} {question.unit}" for value in (found.ours, found.peer))
        rows.append((question.name, *values, found.text))
    return f"{rounds} rounds of {seconds} s.\n\n" + table(
        ("figure", "airmesh, policy and conntrack", "kernel routing", "ratio [of rounds]"), rows
    )


def main() -> None:
    """Print the table."""
    rounds, seconds = (sys.argv[1:] + ["8", "0.7"][len(sys.argv) - 1 :])[:2]
    with stage() as on:
        print(measure(on, int(rounds), float(seconds)))


if __name__ == "__main__":
    main()
