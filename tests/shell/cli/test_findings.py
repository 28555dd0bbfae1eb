"""`airmesh doctor --watch` beside a real agent: what its standing check finds, a line each, until it is interrupted."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from cli.app import run
from cli.faults import Exit
from proto.findings import DoctorRequest, Expected, Finding
from proto.subjects import FINDINGS
from tests.conftest import RuntimeFor
from tests.natsd import NatsServer
from tests.shell.cli.test_commands import ROOT, environment

FOUND = Finding(
    code="dns-loop",
    fault="dns",
    about="ConfigMap kube-system/coredns",
    cause="it asks itself",
    expected=Expected(text="another"),
    observed=(),
    fixes=(),
)


async def test_it_prints_what_comes_and_goes(
    nats_server: NatsServer, buckets: dict[str, str], runtime_for: RuntimeFor
) -> None:
    found: list[Finding] = [FOUND]

    async def check(_: DoctorRequest) -> Iterable[Finding]:
        return tuple(found)

    agents = {name: await runtime_for(name) for name in ("dns", "cluster", "ipam", "policy")}
    for one in agents.values():
        await one.bus.serve_everyone(FINDINGS, DoctorRequest, one.standing.answer)
    agent = agents["dns"]
    agent.checks.add((FOUND.code,), check)
    for _ in range(2):
        await agent.standing.look()
    watch = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "doctor", "--watch", "--output", "json"),
        cwd=ROOT,
        env=environment(nats_server),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(120):
            lasts = await next_line(watch)
            assert (lasts["state"], lasts["agent"], lasts["finding"]["code"]) == ("lasts", "dns", FOUND.code)
            assert lasts["finding"]["since"] > 0
            found.clear()
            for _ in range(2):
                await agent.standing.look()
            assert (await next_line(watch))["state"] == "gone"
        watch.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            assert await watch.wait() == 130
    finally:
        if watch.returncode is None:
            watch.kill()
            await watch.wait()


async def next_line(watch: asyncio.subprocess.Process) -> dict[str, Any]:
    assert watch.stdout is not None
    said: dict[str, Any] = json.loads(await watch.stdout.readline())
    return said


@pytest.mark.parametrize("more", [("dns",), ("--fix", "--by", "ssh {node}"), ("--family", "4")])
def test_it_takes_no_target_fix_or_family(more: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--watch", *more]) == Exit.USAGE
    assert "--watch" in capsys.readouterr().err


@pytest.mark.parametrize("target", [(), ("dns",), ("node", "n1")])
def test_a_family_is_refused_without_a_connection(target: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *target, "--family", "6"]) == Exit.USAGE
    assert "--family is of a connection alone" in capsys.readouterr().err
