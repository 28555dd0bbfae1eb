"""Faults on demand: a command is killed and comes back, a folder has no byte left and has again."""

from __future__ import annotations

import json
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
from tests.bpf.world import namespace, run

PROGRAM = Path(drill.__file__)
NOTES_ITS_START = "import sys, time; print('on', file=open(sys.argv[1], 'a')); time.sleep(600)"


@contextmanager
def drilling(*given: str, within: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*within, sys.executable, str(PROGRAM), *given], stdout=subprocess.PIPE) as running:
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


@pytest.mark.privileged
def test_a_server_is_cut_off_while_it_is_named(tmp_path: Path) -> None:
    sign, name = tmp_path / "sign", f"am-cut{os.getpid()}"

    def up() -> bool:
        return "UP" in json.loads(run("ip", "-n", name, "-j", "link", "show", "dev", "eth0"))[0]["flags"]

    with namespace(name):
        run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer")
        for link in ("eth0", "peer"):
            run("ip", "-n", name, "link", "set", link, "up")
        with drilling("cut", str(sign), "nats-2", within=("ip", "netns", "exec", name)) as running:
            sign.write_text("nats-1\n")
            assert running.stdout is not None
            sign.write_text("nats-2\n")
            assert running.stdout.readline() == b"eth0 is down\n"
            assert not up()
            sign.unlink()
            assert running.stdout.readline() == b"eth0 is up\n"
            assert up()


@pytest.mark.privileged
def test_who_leads_is_not_said_where_no_server_is() -> None:
    with namespace(f"am-leader{os.getpid()}") as name:
        asked = ["ip", "netns", "exec", name, sys.executable, str(PROGRAM), "leader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("jsz: ")


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
    assert "hold, health, die, fill, leader or cut" in capsys.readouterr().err
