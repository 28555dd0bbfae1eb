"""A running lab for the tests that need one: brought up once a session, removed at its end.

Its name is `test` and a number of the folder that this tree is in: suites of two trees go side by side on one machine,
and the next run of a tree takes up what a killed one left.
`AIRMESH_TEST_LAB=<name>` uses a lab that is up already and leaves it up (for work on one test). Asking for it on
a machine that cannot hold a lab fails with preflight's table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from chassis.bus import tls
from lab import topology
from lab.cluster import launch, ledger, mesh, port_forward, preflight
from lab.cluster.record import Install, read_record
from lab.paths import SOURCE, Paths, paths, settings
from lab.topology import Host
from tests import containers
from tests.agent_logs import LOGS

NAME = f"test{crc32(os.fsencode(SOURCE)):08x}"
OTLP = f"http://{topology.plan(NAME, 3).control.management4}:4318"
_UP_SECONDS = 900
_DOWN_SECONDS = 360


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A lab that is up."""

    where: Paths
    topology: topology.Topology
    pods: bool = False
    """Whether its agents and NATS servers are pods."""
    _ports: port_forward.Ports = field(repr=False)

    @property
    def nats_url(self) -> str:
        """The NATS server, through the loopback port."""
        return f"nats://127.0.0.1:{self._ports.nats}"

    @property
    def api_port(self) -> int:
        """The API server's port, through the loopback port."""
        return self._ports.api

    @property
    def logs(self) -> Path:
        """One `<process>.log` each."""
        return self.where.logs

    def seed(self, user: str) -> Path:
        """File with the nkey seed of a NATS user: `cli`, `ipam`, `dataplane-n1`…"""
        return mesh.seed_file(self.where, user)

    @property
    def observer(self) -> dict[str, str]:
        """Settings of `airmesh`, as the user `cli`."""
        return mesh.observer_environment(self.where, self._ports.nats)

    @property
    def trust(self) -> dict[str, Any]:
        """What a plain NATS client needs to speak to the server."""
        return tls.options(mesh.authority(self.where))

    def node(self, name: str) -> Host:
        """`n1`… or `cp`: namespace and addresses."""
        return next(host for host in self.topology.hosts if host.name == name)

    def kubectl(self, *arguments: str, stdin: str = "", seconds: float = 60) -> str:
        """What kubectl printed. Raises `AssertionError` with its words when it failed."""
        return self._run([launch.kubectl(), f"--kubeconfig={self.where.kubeconfig}", *arguments], stdin, seconds)

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, manifest: str) -> None:
        """`kubectl apply` of a YAML text."""
        self.kubectl("apply", "-f", "-", stdin=manifest)

    def exec(self, namespace: str, pod: str, *command: str, seconds: float = 60) -> str:
        """What a command printed inside a pod."""
        return self.kubectl("exec", "-n", namespace, pod, "--", *command, seconds=seconds)

    def inside(self, name: str, *command: str, seconds: float = 60) -> str:
        """What a command printed in the network namespace of node `name`, `cp` or `fab` (the outside host)."""
        namespace = topology.prefix(self.where.lab) + name
        return self._run(["nsenter", f"--net=/run/netns/{namespace}", "--", *command], "", seconds)

    def pid(self, process: str) -> int:
        """Pid of a lab process by its name in the ledger (`ipam-1`, `dataplane-n1`, `nats`, `apiserver`…), or 0.

        Where agents are pods, those have the names of :mod:`tests.containers`.
        """
        alive = {entry.name: entry.pid for entry in ledger.alive(ledger.read(self.where.ledger))}
        if process not in alive and self.pods:
            return self.containers().get(process, 0)
        return alive.get(process, 0)

    def containers(self) -> dict[str, int]:
        """Agents and NATS servers that run now as containers: pid by name."""
        return containers.running({host.name: host.netns for host in self.topology.nodes})

    def kill(self, process: str, signal: int = 9) -> int:
        """Signal a process; its pid. An agent killed comes back by itself (after 0.2 s and more each time), by the
        lab's supervisor or its node's kubelet.
        """
        pid = self.pid(process)
        assert pid, f"{process} is not running"
        os.kill(pid, signal)
        return pid

    def until(self, what: str, ready: Callable[[], bool], seconds: float = 30) -> None:
        """Wait for a state. Raises `AssertionError` naming it, and how often was looked: seldom on a busy machine."""
        end, looks = time.monotonic() + seconds, 1
        while not ready():
            assert time.monotonic() < end, f"{what}: not within {seconds} s ({looks} looks)"
            time.sleep(0.1)
            looks += 1

    @staticmethod
    def _run(argv: list[str], stdin: str, seconds: float) -> str:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
        assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


def _lab(*arguments: str, seconds: float) -> None:
    argv = [sys.executable, "-m", "lab", *arguments]
    # The agents send their spans to the control plane's namespace, where tests/journeys/collector.py may listen.
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": OTLP, "OTEL_BSP_SCHEDULE_DELAY": "500"}
    done = subprocess.run(
        argv, cwd=SOURCE, capture_output=True, text=True, timeout=seconds, check=False, env=environment
    )
    if done.returncode:
        pytest.fail(f"lab {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)


def attach(name: str) -> Lab:
    """A lab that is up, by its name."""
    where = paths(name, settings())
    record = read_record(where)
    assert record is not None, f"lab {name} is not there"
    assert record.finished, f"lab {name} did not come up"
    pods = record.install is Install.PODS
    return Lab(where=where, topology=record.topology, pods=pods, _ports=port_forward.read_ports(where.ports))


@contextmanager
def raised(name: str, *arguments: str) -> Iterator[Lab]:
    """A lab of another shape than the session's, up meanwhile; ``arguments`` of `up`."""
    lacking: list[str] = []
    if preflight.report(lacking.append):
        pytest.fail("\n".join(lacking), pytrace=False)
    try:
        _lab("up", "--name", name, *arguments, seconds=_UP_SECONDS)
        yield attach(name)
    finally:
        _lab("down", "--name", name, seconds=_DOWN_SECONDS)


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The session's lab: three nodes with the mesh."""
    given = os.environ.get("AIRMESH_TEST_LAB")
    request.session.stash[LOGS] = paths(given or NAME, settings()).logs
    if given:
        yield attach(given)
        return
    lacking: list[str] = []
    if preflight.report(lacking.append):
        pytest.fail("\n".join(lacking), pytrace=False)
    try:
        _lab("up", "--name", NAME, seconds=_UP_SECONDS)
        yield attach(NAME)
    finally:
        _lab("down", "--name", NAME, seconds=_DOWN_SECONDS)
