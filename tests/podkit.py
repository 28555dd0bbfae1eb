"""A lab whose agents are pods, brought there by `airmesh install`: for tests of the installation itself (all slow).

Its images are those of `make images`; `AIRMESH_TEST_TAG` names another tag. `AIRMESH_TEST_PODS=<name>` uses a lab that
is up already and leaves it up (for work on one test).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from zlib import crc32

import pytest

from lab.cluster import launch, mesh
from lab.paths import MARKER, SOURCE
from tests.labkit import Lab, attach

NAME = f"inst{crc32(os.fsencode(SOURCE)):08x}"
TAG = os.environ.get("AIRMESH_TEST_TAG", "")
_UP_SECONDS, _DOWN_SECONDS, _COMMAND_SECONDS = 900, 120, 600


def lab_command(*arguments: str, seconds: float = _COMMAND_SECONDS) -> str:
    """What `python -m lab …` says; it must end well."""
    argv = [sys.executable, "-m", "lab", *arguments]
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"lab {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def begin(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
    """`airmesh …` on the lab's API server; both its outputs are one."""
    argv = mesh.python("cli", *arguments, "--kubeconfig", str(lab.where.kubeconfig))
    environment = launch.environment(**{MARKER: lab.where.lab}, COLUMNS="160")
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(running: subprocess.Popen[str]) -> str:
    """What it said; it must end well."""
    try:
        said, _ = running.communicate(timeout=_COMMAND_SECONDS)
    finally:
        running.kill()
    assert running.returncode == 0, f"{running.args!r}: exit {running.returncode}\n{said}"
    return said


def airmesh(lab: Lab, *arguments: str) -> str:
    """What `airmesh …` says; it must end well."""
    return finish(begin(lab, *arguments))


@pytest.fixture(scope="session")
def installed() -> Iterator[Lab]:
    """The session's lab in pods: three nodes, airmesh installed, and nothing left of it at the end."""
    if given := os.environ.get("AIRMESH_TEST_PODS"):
        yield attach(given)
        return
    try:
        lab_command("up", "--name", NAME, "--install", "pods", "--tag", TAG, seconds=_UP_SECONDS)
        yield attach(NAME)
    finally:
        said = lab_command("down", "--name", NAME, seconds=_DOWN_SECONDS)
    assert "nothing is left" in said
