"""Faults on demand: a command is killed and comes back, a folder has no byte left and has again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.compose import drill
from tests.bpf.world import run

PROGRAM = Path(drill.__file__)
NOTES_ITS_START = "import sys, time; print('on', file=open(sys.argv[1], 'a')); time.sleep(600)"


@contextmanager
def drilling(*given: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, str(PROGRAM), *given], stdout=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(20)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def starts(noted: Path) -> int:
    return len(noted.read_text().splitlines()) if noted.exists() else 0


def children(of: subprocess.Popen[bytes]) -> list[str]:
    return Path(f"/proc/{of.pid}/task/{of.pid}/children").read_text().split()


def test_a_command_dies_with_the_fault_and_starts_when_it_ends(tmp_path: Path) -> None:
    now, noted = tmp_path / "now", tmp_path / "noted"
    with drilling("die", str(now), sys.executable, "-c", NOTES_ITS_START, str(noted)) as running:
        until(lambda: starts(noted) == 1)
        now.touch()
        until(lambda: not children(running))
        now.unlink()
        until(lambda: starts(noted) == 2)
        (child,) = children(running)
    until(lambda: not Path(f"/proc/{child}").exists())
    assert running.returncode == 0


@pytest.mark.privileged
def test_a_folder_is_full_while_the_fault_is_there_and_the_command_starts_again(tmp_path: Path) -> None:
    now, small, noted = tmp_path / "now", tmp_path / "small", tmp_path / "noted"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small))
    try:
        with drilling("fill", str(now), str(small), sys.executable, "-c", NOTES_ITS_START, str(noted)):
            until(lambda: starts(noted) == 1)
            now.touch()
            until(lambda: os.statvfs(small).f_bavail == 0)
            now.unlink()
            until(lambda: os.statvfs(small).f_bavail > 0)
            until(lambda: starts(noted) == 2)
    finally:
        run("umount", str(small))


def test_a_holder_ends_by_a_signal() -> None:
    with drilling("hold") as running:
        assert running.stdout is not None
        assert running.stdout.readline()
    assert running.returncode == 0


def test_a_page_that_is_not_there_is_no_health(capsys: pytest.CaptureFixture[str]) -> None:
    assert drill.main("health", "http://127.0.0.1:1/healthz") == 1
    assert "http://127.0.0.1:1/healthz" in capsys.readouterr().err


def test_a_verb_that_is_unknown_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert drill.main("dance") == 2
    assert "hold, health, die, fill or cut" in capsys.readouterr().err
