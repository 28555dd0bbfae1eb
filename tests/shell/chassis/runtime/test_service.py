"""A service as a process: starts without NATS, is found, tells its health, stops well, fails with one clear line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proto.subjects import discovery_inbox
from tests.conftest import BusFor
from tests.natsd import NatsServer, free_port

REPOSITORY = Path(__file__).resolve().parents[4]
PROGRAM = """
import asyncio, sys, threading
from chassis.runtime import garbage
from chassis.runtime.service import main, Runtime
from chassis.runtime.settings import BaseSettings

async def build(runtime):
    what = sys.argv[1]
    gone = asyncio.Event()
    async def tidy():
        gone.set()
        await asyncio.sleep(0.05)
        runtime.log.info("tidied")
    runtime.on_stop(tidy)
    async def idle():
        await asyncio.Event().wait()
    async def fails():
        await asyncio.sleep(0.1)
        raise OSError("the disk is gone")
    async def frees():
        pieces = [bytes(2000) for _ in range(40_000)]
        kept.extend(pieces[::-20])
        pieces.clear()
        await asyncio.Event().wait()
    async def threads():
        together = threading.Barrier(4)
        def allocate():
            kept.append([bytes(1000) for _ in range(100)])
            together.wait()
        await asyncio.gather(*(asyncio.to_thread(allocate) for _ in range(4)))
        runtime.log.info("allocated")
        await asyncio.Event().wait()
    async def stands_on_what_goes():
        await gone.wait()
        raise RuntimeError("cannot schedule new futures after shutdown")
    async def returns():
        await asyncio.sleep(0.1)
    async def deaf():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()
    if what.startswith("deaf"):
        runtime.spawn("deaf", deaf())
        what = what.removeprefix("deaf-")
    works = {"idle": idle, "fails": fails, "returns": returns, "frees": frees, "threads": threads}
    works["stands"] = stands_on_what_goes
    runtime.spawn("work", works[what]())

kept = []
if sys.argv[1] == "frees":
    garbage.GIVE_BACK_EVERY = 0.3
raise SystemExit(main("dns", BaseSettings, build))
"""


class Service:
    def __init__(self, folder: Path, environ: dict[str, str], what: str = "idle") -> None:
        self.port = free_port()
        program = folder / "program.py"
        program.write_text(PROGRAM)
        keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(program), what],
            env={"AIRMESH_HEALTH_PORT": str(self.port), **environ, **keep, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self, seconds: float = 10) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and log lines."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, [json.loads(line) for line in errors.splitlines() if line.startswith("{")]

    async def page(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session:
            for _ in range(200):
                try:
                    async with session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
                        return answer.status, await answer.text()
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)
        raise AssertionError("the health pages never came up")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """Not started."""
    server = NatsServer(tmp_path / "nats")
    yield server
    server.close()


async def test_lifecycle_from_before_nats_to_a_graceful_end(server: NatsServer, tmp_path: Path) -> None:
    service = Service(tmp_path, server.environment("dns"))
    assert await service.page("/livez") == (200, "ok\n")
    status, body = await service.page("/readyz")
    assert status == 503
    assert json.loads(body)["missing"]["bus"].startswith(("not connected to NATS", "cannot connect to NATS at"))
    server.start()
    for _ in range(200):
        status, body = await service.page("/readyz")
        if status == 200:
            break
        await asyncio.sleep(0.05)
    assert status == 200
    _, metrics = await service.page("/metrics")
    assert 'airmesh_condition{condition="bus"} 1.0' in metrics
    assert "\nairmesh_loop_hold_seconds " in metrics
    service.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    code, lines = service.end()
    assert time.monotonic() - started < 3
    assert code == 0
    events = [line["event"] for line in lines]
    assert events.index("started") < events.index("stopping") < events.index("tidied") < events.index("stopped")


async def test_it_is_found_by_nats_micro(nats_server: NatsServer, tmp_path: Path, bus_for: BusFor) -> None:
    service = Service(tmp_path, nats_server.environment("dns", AIRMESH_INSTANCE="dns-a"))
    client = (await bus_for("cli")).connection.client()
    inbox = discovery_inbox("cli")
    answers = await client.subscribe(f"{inbox}.*.token")
    try:
        await service.page("/livez")
        await asyncio.sleep(0.5)
        for verb in ("PING", "INFO", "STATS"):
            await client.publish(f"$SRV.{verb}.dns", reply=f"{inbox}.token")
            answer = await answers.next_msg(3)
            assert answer.subject == f"{inbox}.dns.token"
            said = json.loads(answer.data)
            assert said["name"] == "dns"
            reported = {"instance": "dns-a", "node": "", "health_port": str(service.port)}
            assert said["metadata"] | reported == said["metadata"]
    finally:
        service.process.terminate()
        service.end()


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [("fails", "OSError", "the disk is gone"), ("returns", "TaskEnded", "task work ended although")],
)
def test_a_failed_task_ends_the_service_with_one_line(
    server: NatsServer, tmp_path: Path, what: str, kind: str, says: str
) -> None:
    code, lines = Service(tmp_path, server.environment("dns"), what).end()
    failed = [line for line in lines if line["event"] == "failed"]
    assert code == 1
    assert len(failed) == 1
    assert failed[0]["kind"] == kind
    assert says in failed[0]["error"]


async def test_a_task_whose_ground_is_let_go_of_at_a_stop_is_no_failure(server: NatsServer, tmp_path: Path) -> None:
    service = Service(tmp_path, server.environment("dns"), "stands")
    await service.page("/livez")
    service.process.terminate()
    code, lines = await asyncio.to_thread(service.end, 8)
    events = [line["event"] for line in lines]
    assert code == 0
    assert events.index("task-ended-by-stop") < events.index("tidied") < events.index("stopped")


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "failed"])
async def test_a_task_that_missed_its_end_is_reported_again(server: NatsServer, tmp_path: Path, stopped: bool) -> None:
    service = Service(tmp_path, server.environment("dns"), "deaf-idle" if stopped else "deaf-fails")
    if stopped:
        await service.page("/livez")
        service.process.terminate()
    code, lines = await asyncio.to_thread(service.end, 8)
    assert code == (0 if stopped else 1)
    assert [line["task"] for line in lines if line["event"] == "task-ends-late"] == ["deaf"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"AIRMESH_NATS_USER": None}, "dns: AIRMESH_NATS_USER is not set: set it to text"),
        ({"AIRMESH_HEALTH_PORT": "http"}, "AIRMESH_HEALTH_PORT = 'http' cannot be used: use a whole number"),
        ({"AIRMESH_LOG_LEVEL": "loud"}, "use one of debug, info, warning, error"),
    ],
)
def test_bad_settings_are_one_line(
    server: NatsServer, tmp_path: Path, change: dict[str, str | None], line: str
) -> None:
    environ = {**server.environment("dns"), **change}
    service = Service(tmp_path, {key: value for key, value in environ.items() if value is not None})
    _, errors = service.process.communicate(timeout=10)
    assert service.process.returncode == 1
    assert line in errors
    assert len(errors.splitlines()) == 1


def test_a_seed_that_others_may_read_is_refused(server: NatsServer, tmp_path: Path) -> None:
    (server.seeds / "dns.seed").chmod(0o644)
    code, lines = Service(tmp_path, server.environment("dns")).end()
    assert code == 1
    assert "chmod 600" in lines[-1]["error"]


async def test_what_is_free_between_what_is_kept_is_given_back(nats_server: NatsServer, tmp_path: Path) -> None:
    """80 MB in pieces, of which each twentieth is kept, the last one too."""
    service = Service(tmp_path, nats_server.environment("dns"), "frees")
    most, now = 0, 0
    for _ in range(400):
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        now = int(status.partition("RssAnon:")[2].split()[0]) >> 10
        most = max(most, now)
        if most - now > 50:
            break
        await asyncio.sleep(0.05)
    service.process.send_signal(signal.SIGTERM)
    assert service.end()[0] == 0
    assert most - now > 50, f"MiB: {most}, and then {now}"


async def test_threads_share_one_arena(nats_server: NatsServer, tmp_path: Path) -> None:
    """Any other begins at a multiple of 64 MiB (glibc, malloc/arena.c: HEAP_MAX_SIZE)."""
    exports = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}  # by threads of their own
    service = Service(tmp_path, {**nats_server.environment("dns"), **exports}, "threads")
    assert service.process.stderr is not None
    assert any('"allocated"' in line for line in service.process.stderr)
    maps = Path(f"/proc/{service.process.pid}/maps").read_text().splitlines()
    begins = [
        int(line.partition("-")[0], 16) for line in maps if line.split()[1:] == ["rw-p", "00000000", "00:00", "0"]
    ]
    service.process.send_signal(signal.SIGTERM)
    assert service.end()[0] == 0
    assert [hex(begin) for begin in begins if begin % (64 << 20) == 0] == []


async def test_an_idle_service_is_small(nats_server: NatsServer, tmp_path: Path) -> None:
    service = Service(tmp_path, nats_server.environment("dns"))
    try:
        await service.page("/readyz")
        await asyncio.sleep(0.5)
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
        print(f"an empty service takes {resident:.0f} MiB")
        assert resident < 60
        assert "opentelemetry" not in Path(f"/proc/{service.process.pid}/maps").read_text()
    finally:
        service.process.terminate()
        service.end()
