"""Thousands of Services are made, and nobody notices: agents answer, their loops stay free, a dataplane costs little.

Services are made as the stock suite's spec of 10,000 makes them: one after the other, at its client's rate, by halves
in two namespaces, without endpoints. The short one is part of `make test`; `make drill-services` runs the long one.
Beside it `airmesh status` is asked as a person asks it, and every agent's metrics are read.

Source: kubernetes/test/e2e/network/dns_scale_records.go; QPS of test/e2e/framework/framework.go.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chassis.telemetry.loop_holds import SLOT, WINDOW
from lab.cluster.mesh import Agent, agents
from tests.drills.tenants.api import Api, services
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.uncontended]

PER_SECOND = 20.0
"""Requests of the stock suite's client in a second."""
NAMESPACES = ("many-services-0", "many-services-1")
LOOK_EVERY = 2.0
SETTLING = WINDOW + 2 * SLOT
"""Seconds after which a hold is not reported any more."""
STATUS_SECONDS = 1.0
CPU_SHARE, CPU_SHARE_BESIDE = 0.05, 0.10
"""Of each dataplane, on a quiet machine and beside other work, where a second of a CPU does half as much."""
HOLD_SECONDS = 0.020
HELD, HELD_CPU = "airmesh_loop_hold_seconds", "airmesh_loop_hold_cpu_seconds"
"""On the clock, and what of it had a CPU: where all share two processors, the second is the agent's own."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many, and what may be asked of a machine that others use too."""

    services: int
    """Made at the suite's rate, and measured."""
    before: int = 0
    """Made before that, as fast as the API server takes them."""
    quiet: bool
    """The machine does nothing else: then what takes its time on the clock is ours, and is judged."""

    @property
    def share(self) -> float:
        """Most that a dataplane may take of a CPU."""
        return CPU_SHARE if self.quiet else CPU_SHARE_BESIDE


@dataclass(slots=True)
class Measured:
    """What was seen while Services were made."""

    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds of a CPU by agent."""
    holds: dict[str, float] = field(default_factory=dict)
    """Longest hold of each agent's loop, in seconds on the clock."""
    cpu_holds: dict[str, float] = field(default_factory=dict)
    """The longest by what it had of a CPU."""
    status: list[float] = field(default_factory=list)
    """How long `airmesh status` took, in seconds."""
    silent: list[str] = field(default_factory=list)
    """What `airmesh status` had to say of agents that do not answer."""

    def table(self) -> str:
        """The figures, a line an agent."""
        lines = [
            f"{name:<14} CPU {used / self.seconds:6.1%}, longest hold {1000 * self.holds.get(name, 0):6.1f} ms, "
            f"of a CPU {1000 * self.cpu_holds.get(name, 0):6.1f} ms"
            for name, used in self.cpu.items()
        ]
        status = sorted(self.status)
        asked = (
            f"airmesh status: {len(status)} times, median {status[len(status) // 2]:.2f} s, slowest {status[-1]:.2f} s"
        )
        return "\n".join([f"{self.seconds:.0f} s", *lines, asked])


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(Scale(services=300, quiet=False), id="short"),
        pytest.param(
            Scale(services=1000, before=9000, quiet=True),
            id="last-thousand",
            marks=[pytest.mark.slow, pytest.mark.timeout(900)],
        ),
        pytest.param(
            Scale(services=10_000, quiet=True), id="ten-thousand", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]
        ),
    ],
)
def test_nobody_notices_that_services_are_made(lab: Lab, scale: Scale) -> None:
    if scale.quiet:
        time.sleep(SETTLING)  # what held loops while the lab began
    with namespaces(lab) as api:
        for number in range(scale.before):
            make(api, number)
        time.sleep(SETTLING if scale.before else 0)
        measured = measure(lab, api, range(scale.before, scale.before + scale.services))
    print(measured.table())
    faults = measured.silent
    faults += [
        f"{name} took {used / measured.seconds:.1%} of a CPU"
        for name, used in measured.cpu.items()
        if name.startswith("dataplane-") and used > scale.share * measured.seconds
    ]
    if scale.quiet:
        faults += [f"airmesh status took {took:.2f} s" for took in measured.status if took > STATUS_SECONDS]
        faults += [
            f"{name} held its loop for {1000 * took:.0f} ms"
            for name, took in measured.cpu_holds.items()
            if took > HOLD_SECONDS
        ]
    assert not faults, "\n".join([*faults, measured.table()])


def measure(lab: Lab, api: Api, numbers: range) -> Measured:
    """Make these Services, and look at all agents meanwhile."""
    seen = Measured()
    found = list(agents(lab.where, lab.topology, Path(), ""))
    before = {agent.name: cpu_seconds(lab, agent) for agent in found}
    began = time.monotonic()
    ended = threading.Event()
    watching = threading.Thread(target=look, args=(lab, found, seen, ended))
    watching.start()
    try:
        for count, number in enumerate(numbers, 1):
            make(api, number)
            time.sleep(max(0.0, began + count / PER_SECOND - time.monotonic()))
    finally:
        ended.set()
        watching.join()
    seen.seconds = time.monotonic() - began
    seen.cpu = {agent.name: cpu_seconds(lab, agent) - before[agent.name] for agent in found}
    return seen


def make(api: Api, number: int) -> None:
    """One Service, as the stock spec has it."""
    body = {"metadata": {"name": f"svc-{number}"}, "spec": {"ports": [{"port": 80}]}}
    api.create(services(NAMESPACES[number % 2]), body)


def look(lab: Lab, found: list[Agent], seen: Measured, ended: threading.Event) -> None:
    """Ask for the mesh's status and for each agent's longest hold until it is over, and once after."""
    over = False
    while not over:
        over = ended.wait(LOOK_EVERY)
        began = time.monotonic()
        said = status(lab)
        seen.status.append(time.monotonic() - began)
        seen.silent += [line for line in said.splitlines() if "does not answer" in line]
        for agent in found:
            for holds, name in ((seen.holds, HELD), (seen.cpu_holds, HELD_CPU)):
                holds[agent.name] = max(holds.get(agent.name, 0.0), longest_hold(lab, agent, name))


def status(lab: Lab) -> str:
    """What `airmesh status` prints."""
    argv = [sys.executable, "-m", "cli", "status"]
    environment = {**os.environ, **lab.observer}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, env=environment, check=False)
    return done.stdout + done.stderr


def longest_hold(lab: Lab, agent: Agent, name: str) -> float:
    """Seconds, of the last minute, as the agent's page of metrics has it."""
    page = lab.inside(agent.host.name, "curl", "--silent", "--fail", f"http://127.0.0.1:{agent.health_port}/metrics")
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return next(sample.value for sample in samples if sample.name == name)


def cpu_seconds(lab: Lab, agent: Agent) -> float:
    """User and system time of an agent's process (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{lab.pid(agent.name)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def namespaces(lab: Lab) -> Iterator[Api]:
    """The two namespaces, gone with all that is in them after."""
    api = Api(lab)
    try:
        for name in NAMESPACES:
            api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        yield api
    finally:
        for name in NAMESPACES:
            lab.kubectl("delete", "namespace", name, "--ignore-not-found", seconds=600)
