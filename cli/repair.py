"""Applies the fixes of a diagnosis that may be applied by a program, verifies each, and takes back what did not help.

The mesh gives nobody a right to run commands on its nodes, and this command asks for none: a fix is run the way the
person who asks reaches a node (`--by`, e.g. `ssh root@{node}`), and only when that person agrees to its very text: an
agent wrote it, and whoever has a node's key could have, too. A fix has helped when its finding stays away from all
later diagnoses for :data:`STANDS` seconds: another daemon may set again what was mended. Until then the diagnosis is
made again, for :data:`VERIFIED` seconds at most.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator

from cli.faults import Usage
from cli.reports.doctor import Applied, Cause, Diagnosis, Outcome, of_user
from proto.findings import Finding, Fix

SECONDS = 30
VERIFIED = 45.0
STANDS = 10.0
EVERY = 1.0
"""Seconds between two diagnoses."""
NODE = "{node}"


def check_way(by: str) -> str:
    """The command that reaches a node. Raises :class:`Usage`."""
    if NODE not in by:
        raise Usage(f"--by {by!r} does not say where the node's name belongs", f'write it as "ssh root@{NODE}"')
    return by


def automatic(report: Diagnosis) -> Iterator[tuple[Cause, Fix]]:
    """Causes with the fix that a program may apply: on the node whose own agent, known by its key, asks for it. So a
    stolen key brings no command to another node.
    """
    for cause in report.causes:
        fix = next((one for one in cause.finding.fixes if one.automatic and one.on == "node"), None)
        if fix is not None and cause.finding.node and cause.finding.node == of_user(cause.agent)[1]:
            yield cause, fix


def apply(
    report: Diagnosis, by: str, again: Callable[[], Diagnosis], agreed: Callable[[Finding, Fix], bool]
) -> tuple[Applied, ...]:
    """Runs each automatic fix of a diagnosis that is ``agreed`` to; ``again`` makes another diagnosis."""
    return tuple(
        _applied(cause.finding, fix, by, again) for cause, fix in automatic(report) if agreed(cause.finding, fix)
    )


def _applied(finding: Finding, fix: Fix, by: str, again: Callable[[], Diagnosis]) -> Applied:
    def ended(outcome: Outcome, why: str = "") -> Applied:
        return Applied(
            code=finding.code,
            about=finding.about,
            node=finding.node,
            command=fix.command,
            outcome=outcome,
            why=why,
        )

    if why := _run(by, finding.node, fix.command):
        return ended("failed", why)
    if _is_gone(finding, again):
        return ended("verified")
    if why := _run(by, finding.node, fix.undo):
        return ended("left", why)
    return ended("undone", f"{finding.code} was found still, or once more, {VERIFIED:.0f} s later")


def _is_gone(finding: Finding, again: Callable[[], Diagnosis]) -> bool:
    end = time.monotonic() + VERIFIED
    gone_since: float | None = None
    while True:
        causes = again().causes
        found = [cause.finding for cause in causes] + [one.finding for cause in causes for one in cause.consequences]
        now = time.monotonic()
        if (finding.code, finding.about) in {(one.code, one.about) for one in found}:
            gone_since = None
            if now > end:
                return False
        elif gone_since is None:
            gone_since = now
        elif now >= gone_since + STANDS:
            return True
        time.sleep(EVERY)


def _run(by: str, node: str, command: str) -> str:
    """Why a command did not end well on a node; empty when it did."""
    argv = [part.replace(NODE, node) for part in shlex.split(by)]
    try:
        done = subprocess.run([*argv, command], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.strip() or f"exit code {done.returncode}")[:400] if done.returncode else ""
