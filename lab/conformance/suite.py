"""Runs the stock Kubernetes end-to-end suite, unchanged, against a running lab: `python -m lab.conformance`.

The specs are asked of the suite itself (a dry run), chosen by focus and skip (regular expressions), and run one after
the other, each in a process of its own: a crash or kill costs one spec, and a later run goes on where this one stopped
(`--failed` runs once more what failed, `--again` everything). Results are lines of JSON in `<out>/results.jsonl`, what
a spec said is in a log of its name beside it; `<out>/report.json` sums them up, `lab.conformance.report` writes
`docs/conformance.md` of it. Exit code 0 only if no chosen spec failed.

Promises: nothing of the suite is changed; the suite's images are made here (`images.py`) and imported into
each node before the first spec, load balancers are there (`cloud.py`), and a resolver of public names (`resolver.py`).
Refuses a lab that is not up. Times are in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
import zlib
from dataclasses import asdict
from pathlib import Path

from lab.cluster.record import read_record
from lab.conformance import cloud, images, report, resolver
from lab.conformance.report import Result, done, note
from lab.paths import Paths, paths, settings
from lab.topology import LabError, Topology

SPEC_SECONDS, SLOW_SPEC_SECONDS = 420.0, 1500.0
"""After this a spec is ended and counts as failed; the suite's own waits are mostly at most five minutes. The longer
one is for what the suite itself calls slow, and for the spec that makes 10,000 Services."""
_SLOW = re.compile(r"\[Slow\]|PerformanceDNS|LoadBalancer|affinity timeout")
_DRY_RUN_SECONDS = 60.0
_IMPOSSIBLE = (
    (r"SCTPConnectivity|using SCTP|SCTP should", "the kernel has no SCTP"),
    (r"Internet connection", "needs the internet"),
    (r"IPerf2", "reads lines of iperf 2.2, Debian 12 has 2.1"),
    (r"KubeProxyNFAcct|kube-proxy urls", "asks kube-proxy which mode it has (its page of health airmesh has)"),
    (r"TCP CLOSE_WAIT timeout", "looks for kube-proxy's entry in the kernel's table of connections"),
)
"""Skipped by name, with the reason: each takes five minutes to fail, and says nothing about the network here."""


def choose(specs: list[str], focus: str, skip: str) -> list[str]:
    """Specs whose text matches `focus` and not `skip`; raises `LabError` for a pattern that is none."""
    try:
        wanted, unwanted = re.compile(focus or "."), re.compile(skip) if skip else None
    except re.error as error:
        raise LabError(f"FOCUS/SKIP is not a regular expression: {error}") from error
    return [spec for spec in specs if wanted.search(spec) and not (unwanted and unwanted.search(spec))]


def impossible(spec: str) -> str:
    """Why this machine cannot run a spec, or empty."""
    return next((why for pattern, why in _IMPOSSIBLE if re.search(pattern, spec)), "")


def texts(report: object) -> list[str]:
    """Full texts of the specs in a ginkgo JSON report, as `--ginkgo.focus` matches them."""
    suites = report if isinstance(report, list) else []
    found = []
    for suite in suites:
        found += [
            " ".join([*(spec.get("ContainerHierarchyTexts") or []), spec.get("LeafNodeText", "")])
            for spec in suite.get("SpecReports") or []
            if spec.get("LeafNodeType") == "It"
        ]
    return found


_ENDED = {"passed": "passed", "failed": "failed", "timedout": "failed", "panicked": "failed", "interrupted": "failed"}


def outcome(report: object, spec: str, seconds: float) -> Result:
    """What a ginkgo JSON report says of the one spec asked for (all others are `skipped` without a message)."""
    for suite in report if isinstance(report, list) else []:
        for entry in suite.get("SpecReports") or []:
            message = _first_lines((entry.get("Failure") or {}).get("Message", ""))
            word = _ENDED.get(entry.get("State"), "skipped" if message else "")
            if word and entry.get("LeafNodeType") == "It":
                return Result(spec=spec, outcome=word, seconds=seconds, reason=message)
    return Result(spec=spec, outcome="failed", seconds=seconds, reason="the suite ended without a verdict")


def _first_lines(text: str) -> str:
    return " ".join(text.split())[:400]


def log_name(spec: str) -> str:
    """File name of what a spec said: its words, short enough for every file system, and unlike that of any other."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", spec.removeprefix("[sig-network]")).strip("-").lower()
    return f"{words[:150]}-{zlib.crc32(spec.encode()):08x}.log"


class Suite:
    """The suite's program against one lab, run outside of the cluster: in the fabric's namespace."""

    def __init__(self, program: Path, lab: Paths, topology: Topology, out: Path) -> None:
        self._program = program
        self._lab = lab
        self._topology = topology
        self._out = out
        self._report = out / ".report.json"

    async def specs(self) -> list[str]:
        """Texts of all specs the program has."""
        await self._run(["--ginkgo.dry-run"], Path(os.devnull), _DRY_RUN_SECONDS)
        return texts(self._read())

    async def run(self, spec: str) -> Result:
        """One spec; never raises for what a spec does, but LabError for a lab that does not do what it asks for."""
        born = time.monotonic()
        allowed = SLOW_SPEC_SECONDS if _SLOW.search(spec) else SPEC_SECONDS
        if resolver.is_asked(spec):
            async with resolver.upstream(self._lab, self._topology):
                return await self._run_one(spec, allowed, born)
        return await self._run_one(spec, allowed, born)

    async def _run_one(self, spec: str, allowed: float, born: float) -> Result:
        # \Q…\E: the text as it stands (RE2)
        in_time = await self._run([f"--ginkgo.focus=\\Q{spec}\\E"], self._out / log_name(spec), allowed)
        seconds = round(time.monotonic() - born, 1)
        if not in_time:
            return Result(spec=spec, outcome="failed", seconds=seconds, reason=f"not done within {allowed:.0f} s")
        return outcome(self._read(), spec, seconds)

    def _read(self) -> object:
        try:
            return json.loads(self._report.read_bytes())
        except (OSError, ValueError):
            return None

    async def _run(self, extra: list[str], log: Path, deadline: float) -> bool:
        self._report.unlink(missing_ok=True)
        argv = [
            str(self._program),
            "--provider=skeleton",
            f"--kubeconfig={self._lab.kubeconfig_of('admin')}",
            f"--num-nodes={len(self._topology.nodes)}",
            "--ginkgo.no-color",
            f"--ginkgo.json-report={self._report}",
            "--allowed-not-ready-nodes=0",
            "--test.timeout=0",
            *extra,
        ]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
        with log.open("wb") as said:
            running = await asyncio.create_subprocess_exec(
                *cloud.outside(self._topology, argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(deadline):
                    await running.wait()
            except TimeoutError:
                return False
            finally:
                if running.returncode is None:
                    os.killpg(running.pid, signal.SIGKILL)
                    await running.wait()
        return True


async def run(arguments: argparse.Namespace) -> int:
    """The whole job; returns the exit code."""
    given = settings()
    lab = paths(arguments.name, given)
    record = read_record(lab)
    if record is None or not record.finished:
        raise LabError(f"lab {arguments.name} is not up: run `make lab` first")
    topology = record.topology
    print(f"suite and images for {len(topology.nodes)} nodes", flush=True)
    program = await images.prepare(lab, given.cache, topology, print)
    out = Path(arguments.out or given.cache / "conformance" / arguments.name)
    results = out / "results.jsonl"
    await asyncio.to_thread(_prepare, out, results, arguments.again)
    suite = Suite(program, lab, topology, out)
    chosen = choose(await suite.specs(), arguments.focus, arguments.skip)
    earlier = done(results)
    if arguments.failed:
        earlier = {spec: result for spec, result in earlier.items() if result.outcome != "failed"}
    print(f"{len(chosen)} specs chosen, {sum(spec in earlier for spec in chosen)} of them done before", flush=True)
    outcomes = []
    stop = time.monotonic() + arguments.minutes * 60 if arguments.minutes else float("inf")
    for number, spec in enumerate(chosen, 1):
        if time.monotonic() > stop:
            print(f"stopped after {arguments.minutes} minutes with {len(chosen) - number + 1} specs left; run it again")
            break
        result = earlier.get(spec) or await _one(suite, spec)
        if spec not in earlier:
            await asyncio.to_thread(note, results, result)
        outcomes.append(result)
        line = f"{result.outcome:7} {result.seconds:6.1f} s  {spec}  {result.reason}"
        print(f"[{number}/{len(chosen)}] {line}", flush=True)
    return _sum_up(outcomes, out)


def _prepare(out: Path, results: Path, again: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if again:
        results.unlink(missing_ok=True)


async def _one(suite: Suite, spec: str) -> Result:
    why = impossible(spec)
    if why:
        return Result(spec=spec, outcome="skipped", seconds=0.0, reason=why)
    return await suite.run(spec)


def _sum_up(outcomes: list[Result], out: Path) -> int:
    counts = report.counts(outcomes)
    summary = {"counts": counts, "results": [asdict(o) for o in outcomes]}
    (out / "report.json").write_text(json.dumps(summary, indent=1))
    (out / "report.md").write_text(report.table(outcomes))
    line = ", ".join(f"{number} {word}" for word, number in counts.items())
    print(f"{line}; report: {out}/report.json")
    return 1 if counts["failed"] or not outcomes else 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m lab.conformance", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--name", default="air", help="the lab")
    parser.add_argument("--focus", default=r"\[sig-network\].*\[Conformance\]", help="run specs that match")
    parser.add_argument("--skip", default="", help="but not those that match this")
    parser.add_argument("--out", default="", help="folder of logs and results")
    parser.add_argument("--minutes", type=float, default=0, help="begin no spec after this long (0: no end)")
    parser.add_argument("--failed", action="store_true", help="run once more what failed in an earlier run")
    parser.add_argument("--again", action="store_true", help="forget the results of an earlier run")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the running spec's process is ended
    try:
        return asyncio.run(run(parser.parse_args()))
    except KeyboardInterrupt:
        print("stopped; run it again to go on", file=sys.stderr)
        return 130
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
