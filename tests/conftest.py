"""Fixtures of all tests: a real NATS with the mesh's users and buckets, buses and runtimes of any role, golden bytes.

``nats_server`` is a test's own; ``shared_nats`` lives for the whole run (buckets are shared by all who use it).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from chassis.bus.client import Bus
from chassis.runtime.service import Runtime
from lab.cluster import preflight
from tests.agent_logs import pytest_runtest_makereport, pytest_runtest_setup
from tests.kubeapi import kube_api
from tests.labkit import lab
from tests.natsd import NatsServer, bus_of, runtime_of
from tests.podkit import installed
from tests.workers import arrange, is_worker, pytest_configure, pytest_runtest_protocol, pytest_xdist_make_scheduler

__all__ = [
    "installed",
    "kube_api",
    "lab",
    "pytest_configure",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "pytest_runtest_setup",
    "pytest_xdist_make_scheduler",
]

settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], report_multiple_bugs=False
)
settings.load_profile("untimed")
"""How long an example takes is the machine's."""

_PRIVILEGES = ("root", "network namespaces", "bpf(2)", "bcc", "program ip", "program nft", "program nsenter")
"""What a test marked ``privileged`` needs, as ``lab.cluster.preflight`` names it."""

BusFor = Callable[..., Awaitable[Bus]]
RuntimeFor = Callable[..., Awaitable[Runtime[Any]]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew instead of comparing")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True when golden files are to be written (``--update-golden`` or UPDATE_GOLDEN=1)."""
    return bool(request.config.getoption("--update-golden")) or os.environ.get("UPDATE_GOLDEN") == "1"


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server of this test's own, started."""
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server for the whole run."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.close()


@pytest_asyncio.fixture
async def bus_for(nats_server: NatsServer) -> AsyncIterator[BusFor]:
    """``await bus_for("dataplane", "n1")``: a connected bus with that role's rights, on ``nats_server``."""
    async with AsyncExitStack() as stack:

        async def make(role: str, node: str | None = None) -> Bus:
            return await stack.enter_async_context(bus_of(nats_server, role, node))

        yield make


@pytest_asyncio.fixture
async def runtime_for(nats_server: NatsServer) -> AsyncIterator[RuntimeFor]:
    """``await runtime_for("ipam", settings=…)``: a service's real runtime on ``nats_server`` (no process around it)."""
    async with AsyncExitStack() as stack:

        async def make(role: str, node: str | None = None, **more: Any) -> Runtime[Any]:
            return await stack.enter_async_context(runtime_of(nats_server, role, node, **more))

        yield make


@pytest_asyncio.fixture
async def buckets(bus_for: BusFor) -> dict[str, str]:
    """All buckets made on ``nats_server``; their epochs by name."""
    cluster = await bus_for("cluster")
    return await cluster.make_buckets()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What this machine cannot run is left out, each test with what it lacks; what it can run never is.

    A worker's tests come in the order in which workers begin them.
    """
    if is_worker(config):
        arrange(items)
    marked = [item for item in items if item.get_closest_marker("privileged") or item.get_closest_marker("lab")]
    if not marked:
        return
    lacking = [finding for finding in preflight.judge(preflight.look()) if finding.weight == "lacks"]
    if not lacking:
        return
    words = [f"{finding.what} ({finding.found}; {finding.remedy})" for finding in lacking]
    kernel = [word for finding, word in zip(lacking, words, strict=True) if finding.what in _PRIVILEGES]
    for item in marked:
        needs = words if item.get_closest_marker("lab") else kernel
        if needs:
            item.add_marker(pytest.mark.skip(reason=f"this machine lacks {', '.join(needs)}"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The very last lines say loudly what was left out, and why."""
    terminalreporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    skipped = terminalreporter.stats.get("skipped", []) if terminalreporter else []
    if not skipped:
        return
    reasons = Counter(_reason(report) for report in skipped)
    terminalreporter.section(f"LEFT OUT: {len(skipped)} tests", sep="=", red=True, bold=True)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"LEFT OUT: {count} tests because {reason}")


def _reason(report: Any) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")
