"""The examples of consumers hear what a node tells, from a real server, with the user that listens."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab import paths
from lab.images.build import build_all
from lab.images.observability import CONSUMER, NATS
from proto.events import EndpointUp
from proto.subjects import event_subject
from tests.conftest import RuntimeFor
from tests.natsd import NatsServer

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "consumers"
BODY = r"(?m)^\{.*\}$"
UP = EndpointUp("n1", "shop", "web-0", "u", (ip_address("10.244.0.9"), ip_address("fd00::9")), 7, 1.5)


@asynccontextmanager
async def running(
    *argv: str, begun: bytes = b"istening", **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A consumer that says that it listens."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while begun not in (line := await process.stderr.readline()):
                assert line, "it ended"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def heard(process: asyncio.subprocess.Process, runtime_for: RuntimeFor, wanted: str) -> tuple[str, str]:
    """What it printed in answer to an event, and the event's trace."""
    node = await runtime_for("dataplane", "n1")
    with node.telemetry.span("cni-add") as span:
        node.bus.publish(event_subject("dataplane", "endpoint-up"), UP)
    printed = ""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        while not re.search(wanted, printed):
            line = await process.stdout.readline()
            assert line, printed
            printed += line.decode()
    return printed, span.traceparent


def where(server: NatsServer) -> tuple[str, str]:
    return server.url, str(server.seeds / "cli.seed")


async def test_python(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    async with running(sys.executable, str(EXAMPLES / "consumer.py"), *where(nats_server)) as process:
        line, trace = await heard(process, runtime_for, "\n")
    assert line == f"endpoint-up n1 shop web-0 10.244.0.9 fd00::9 {trace}\n"


@pytest.mark.slow
async def test_go(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    built = await build_all((CONSUMER,), paths.settings().cache, print)
    async with running(str(built[CONSUMER.name]), *where(nats_server)) as process:
        line, trace = await heard(process, runtime_for, "\n")
    assert line == f"endpoint-up n1 shop web-0 10.244.0.9 fd00::9 {trace}\n"


@pytest.mark.slow
async def test_the_nats_command_line(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    built = await build_all((NATS,), paths.settings().cache, print)
    path = f"{built[NATS.name].parent}:{os.environ['PATH']}"
    argv = (str(EXAMPLES / "nats.sh"), *where(nats_server), "--count", "1")
    async with running(*argv, begun=b"ubscri", PATH=path, PYTHON=sys.executable) as process:
        printed, trace = await heard(process, runtime_for, BODY)
    assert "airmesh.v1.events.dataplane.endpoint-up.n1" in printed
    assert trace in printed
    found = re.search(BODY, printed)
    assert found is not None
    assert json.loads(found[0])["addresses"] == ["10.244.0.9", "fd00::9"]
