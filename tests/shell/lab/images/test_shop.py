"""The pods' program: it says who it is, tells refusals from time-outs and bad names, and measures a silence."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.images import build
from lab.paths import settings
from lab.topology import LabError


def _go_is_installed() -> bool:
    try:
        build.go_command()
    except LabError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _go_is_installed(), reason="no Go 1.26 on this machine")
HTTP, TCP, UDP = 28080, 28081, 28082


@pytest.fixture(scope="module")
def shop() -> Path:
    """The built program."""
    return asyncio.run(build.build_all((build.SHOP,), settings().cache, print))["shop"]


@pytest.fixture
def server(shop: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A server of this test."""
    argv = [str(shop), "serve", "--http", str(HTTP), "--tcp", str(TCP), "--udp", str(UDP)]
    with subprocess.Popen(argv, env={"POD_NAME": "web-1", "NODE_NAME": "n7"}) as running:
        for _ in range(100):
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", HTTP)) == 0:
                    break
            time.sleep(0.02)
        yield running
        running.kill()


def _probe(shop: Path, *arguments: str, stdin: str = "") -> dict[str, Any]:
    done = subprocess.run(
        [shop, "probe", *arguments], input=stdin, capture_output=True, text=True, timeout=20, check=True
    )
    return {line["target"]: line for line in map(json.loads, done.stdout.splitlines())}


def test_a_server_says_who_it_is_and_who_asked(shop: Path, server: "subprocess.Popen[bytes]") -> None:
    targets = [
        f"http://127.0.0.1:{HTTP}/a",
        f"tcp://127.0.0.1:{TCP}",
        f"udp://127.0.0.1:{UDP}",
        f"http://[::1]:{HTTP}/",
    ]
    answers = _probe(shop, *targets)
    assert all(answers[target]["ok"] for target in targets)
    assert {answers[target]["answer"]["pod"] for target in targets} == {"web-1"}
    assert answers[targets[0]]["answer"]["node"] == "n7"
    assert answers[targets[0]]["answer"]["path"] == "/a"
    assert answers[targets[3]]["answer"]["client"].startswith("[::1]:")


def test_what_went_wrong_is_one_word(shop: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        quiet = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        refused, name, nonsense = "tcp://127.0.0.1:1", "http://no.invalid/", "what"
        answers = _probe(shop, "--timeout", "300ms", "-", stdin="\n".join([quiet, refused, name, nonsense]))
    assert answers[quiet]["error"] == "timeout"
    assert answers[refused]["error"] == "refused"
    assert answers[name]["error"] in {"name", "timeout"}
    assert answers[nonsense]["error"].startswith("not a target")
    assert not any(answer["ok"] for answer in answers.values())


@pytest.mark.parametrize("stops", [0.0, 0.4])
def test_a_silence_is_measured(shop: Path, server: "subprocess.Popen[bytes]", stops: float) -> None:
    argv = [str(shop), "beat", "--interval", "5ms", "--for", "1500ms", "--report", "200ms", f"127.0.0.1:{UDP}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as beating:
        time.sleep(0.4)
        if stops:
            server.send_signal(signal.SIGSTOP)
            time.sleep(stops)
            server.send_signal(signal.SIGCONT)
        assert beating.stdout is not None
        lines = [json.loads(line) for line in beating.stdout.read().splitlines()]
    *gaps, summary = lines
    assert summary["sent"] > 150
    if stops:
        assert stops * 1000 - 50 <= summary["longest_gap_ms"] < stops * 1000 + 400
        assert [gap["gap_ms"] for gap in gaps] == [pytest.approx(summary["longest_gap_ms"])]
    else:
        assert summary["received"] > summary["sent"] * 0.9


def test_connections_that_are_held_say_who_is_silent_and_who_is_lost(
    shop: Path, server: "subprocess.Popen[bytes]"
) -> None:
    argv = [str(shop), "talk", "--flows", "6", "--interval", "10ms", "--report", "400ms", "--for", "60s"]
    targets = [f"127.0.0.1:{TCP}", f"[::1]:{TCP}"]
    with subprocess.Popen([*argv, *targets], stdout=subprocess.PIPE, text=True) as talking:
        assert talking.stdout is not None
        lines = (json.loads(line) for line in talking.stdout)
        going_on = next(line for line in lines if not line["silent"])
        assert (going_on["flows"], going_on["broken"]) == (6, [])
        assert going_on["echoed"] >= 6
        server.send_signal(signal.SIGSTOP)
        stopped = next(line for line in lines if line["silent"] == 6)
        assert (stopped["echoed"], stopped["broken"]) == (0, [])
        assert next(lines)["longest_wait_ms"] > 600, "of the line before, too"
        server.send_signal(signal.SIGCONT)
        assert not next(line for line in lines if not line["silent"])["broken"]
        server.kill()
        assert next(line for line in lines if line["broken"])
        after = next(line for line in lines if line["silent"] == 6)
        assert len(after["broken"]) == 6
        talking.terminate()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "usage"),
        (["dance"], "no command"),
        (["serve", "--tcp", ","], "at least one port"),
        (["probe"], "name targets"),
        (["beat"], "HOST:PORT"),
        (["talk"], "HOST:PORT"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(shop: Path, arguments: list[str], word: str) -> None:
    done = subprocess.run([shop, *arguments], capture_output=True, text=True, timeout=10, check=False, env={})
    assert done.returncode == 2
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


async def test_a_source_that_does_not_compile_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    if shutil.which("musl-gcc") is None:
        pytest.skip("no C compiler on this machine")
    (tmp_path / "broken.c").write_text("int main(void) { return oops; }\n")
    target = build.Target(name="broken", folder=tmp_path, sources=("broken.c",), go=False, estimate=1)
    with pytest.raises(LabError, match="oops"):
        await build.build_all((target,), tmp_path / "cache", lambda _: None)
    assert list((tmp_path / "cache" / "built").iterdir()) == []
    (tmp_path / "broken.c").write_text("int main(void) { return 7; }\n")
    made = await build.build_all((target,), tmp_path / "cache", lambda _: None)
    assert subprocess.run([made["broken"]], check=False).returncode == 7
    assert (await build.build_all((target,), tmp_path / "cache", pytest.fail)) == made
