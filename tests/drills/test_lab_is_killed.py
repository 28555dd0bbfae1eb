"""A lab whose launcher or supervisor is killed at some moment goes away completely, and a second `down` finds nothing.

The moments lie in each stage of `up`: namespaces and keys, the control plane's start, images and kubelets, objects.
What is proved is the machine's state afterwards, looked at here by other means than `down`'s own proof.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import leftovers
from lab.paths import MARKER, SOURCE, Paths, paths, settings

pytestmark = [pytest.mark.lab, pytest.mark.privileged]


def _lab(*arguments: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "lab", *arguments]
    return subprocess.Popen(argv, cwd=SOURCE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def where() -> Iterator[Paths]:
    """A lab of this test's own, taken away at the end in any case."""
    lab = paths("k" + uuid.uuid4().hex[:6], settings())
    yield lab
    _lab("down", "--name", lab.lab).communicate(timeout=120)


def _down(where: Paths) -> str:
    with _lab("down", "--name", where.lab) as down:
        said, _ = down.communicate(timeout=120)
    assert down.returncode == 0, said
    return said.splitlines()[-1]


def _traces(where: Paths) -> list[str]:
    """What of the lab the machine still shows, asked of /proc, /run and `ip` directly."""
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"/{where.lab}/" in line]
    found += [name.name for name in Path("/run/netns").iterdir() if name.name.startswith(f"am-{where.lab}-")]
    found += [str(path) for path in (where.state, where.run) if path.exists()]
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARKER}={where.lab}".encode() in environment.read_bytes():
                found.append(str(environment))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("seconds", "fabric"), [(0.3, "routed"), (0.9, "flat"), (2.5, "routed"), (4.5, "flat")])
def test_up_is_killed_midway(where: Paths, seconds: float, fabric: str) -> None:
    with _lab("up", "--without-mesh", "--nodes", "2", "--fabric", fabric, "--name", where.lab) as up:
        end = time.monotonic() + 600  # a build may come first; the moment counts from when the lab begins
        while not where.state.exists() and up.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(seconds)
        up.kill()
    assert _traces(where)
    assert _down(where).endswith("nothing is left")
    assert _traces(where) == []
    assert _down(where).endswith("nothing is there")


def test_supervisor_and_half_of_the_processes_are_killed(where: Paths) -> None:
    with _lab("up", "--without-mesh", "--nodes", "1", "--name", where.lab) as up:
        said, _ = up.communicate(timeout=600)
    assert up.returncode == 0, said
    processes = leftovers.lab_processes(where)
    for pid in [pid for pid, name in processes.items() if name == "supervisor"] + sorted(processes)[::2]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    where.ledger.unlink()
    assert _down(where).endswith("nothing is left")
    assert _traces(where) == []
    alive = [pid for pid, name in processes.items() if Path(f"/proc/{pid}/root").exists()]
    assert alive == []
