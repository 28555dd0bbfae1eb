"""The project of compose/ for real, by podman (`make compose-test` alone): each overlay's fault comes and goes.

All overlays lie over one project, and each fault is there for itself. Whatever it is: writes to the servers and pods go
on meanwhile, and afterwards nothing that was acknowledged is gone, every address is where it was, all are ready, and no
container has ended that should not (``mesh.py``).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from deploy.images.engine import find_engine
from lab.compose import keys
from lab.compose.project import Project, overlays
from lab.images.build import CNI, build_all
from lab.paths import settings
from tests.compose.mesh import Mesh, inside, query, traced, until
from tests.natsd import free_port

pytestmark = [pytest.mark.slow, pytest.mark.privileged, pytest.mark.timeout(1200)]
API_PORT = 6443
KUBECONFIG = f"""\
apiVersion: v1
kind: Config
clusters: [{{name: stub, cluster: {{server: "http://127.0.0.1:{API_PORT}"}}}}]
users: [{{name: stub, user: {{}}}}]
contexts: [{{name: stub, context: {{cluster: stub, user: stub}}}}]
current-context: stub
"""
JUMPS = {"ahead": ("+1h", 3600), "back": ("-1d", -86400)}
"""As libfaketime spells them, and in seconds."""
STOOD_STILL = 1.0
"""Seconds without an acknowledged write, after which a lease may have been lost."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """It is up, with an API server in its host's namespace; whatever happens nothing of it is left afterwards."""
    project = Project(tuple(overlays()))
    for name in ("AIRMESH_JAEGER_PORT", "AIRMESH_PROMETHEUS_PORT"):
        os.environ[name] = str(free_port())
    folder = tmp_path_factory.mktemp("compose")
    (folder / "kubeconfig").write_text(KUBECONFIG)
    cni = asyncio.run(build_all((CNI,), settings().cache, print))[CNI.name]
    try:
        project.down()
        project.prepare(folder / "kubeconfig", print)
        project.up()
        with ExitStack() as stack:
            serving = inside(project, "host", sys.executable, "-m", "tests.compose.api", str(API_PORT))
            made = Mesh(project, stack.enter_context(serving), cni, stack)
            made.ready()
            yield made
    finally:
        project.down()
    assert project.left() == []
    assert find_engine().run("network", "ls", "--format", "{{.Name}}").count("airmesh") == 0
    assert subprocess.run(["ip", "route", "show", "10.198.77.0/24"], capture_output=True, check=True).stdout == b""


def test_it_comes_up_and_is_seen(mesh: Mesh) -> None:
    until("all is well", lambda: not mesh.amiss(), mesh.amiss)
    until("Prometheus reads all copies, and the collector", lambda: len(query("up==1")) == 11, lambda: query("up"))
    on_a_pods_way = {"cluster", "policy", "ipam", "dataplane"}
    until("Jaeger has what the services did", lambda: on_a_pods_way <= traced(), traced)
    sent = "otelcol_exporter_sent_spans_total"
    until("it came by way of the collector", lambda: sum(query(sent).values()) > 0, lambda: query(sent))


def test_a_server_dies(mesh: Mesh) -> None:
    with mesh.fault("nats-dies"):
        until("two copies of each bucket are current", lambda: mesh.has_copies(2), mesh.copies)
        until("all but one are ready", lambda: set(mesh.project.unwell()) == {"nats-2"}, mesh.project.unwell)
        mesh.goes_on("nats-dies")


def test_the_leader_is_cut_off(mesh: Mesh) -> None:
    until("one leads", lambda: mesh.leader() in keys.SERVERS, mesh.leader)
    cut = mesh.leader()
    with mesh.fault("leader-cut-off"):
        until("another leads", lambda: mesh.leader(cut) not in ("", cut), lambda: mesh.leader(cut))
        until("two copies are current", lambda: mesh.has_copies(2, cut), lambda: mesh.copies(cut))
        until("all but it are ready", lambda: set(mesh.project.unwell()) == {cut}, mesh.project.unwell)
        mesh.goes_on("leader-cut-off")


def test_a_disk_is_full(mesh: Mesh) -> None:
    with mesh.fault("disk-full"):
        until("its server is not ready", lambda: set(mesh.project.unwell()) == {"nats-3"}, mesh.project.unwell)
        until("two copies are current", lambda: mesh.has_copies(2, "nats-3"), lambda: mesh.copies("nats-3"))
        mesh.goes_on("disk-full")


def test_a_service_is_down(mesh: Mesh) -> None:
    with mesh.fault("service-down"):
        both = {"ipam-1", "ipam-2"}
        until("both copies of it are not ready", lambda: set(mesh.project.unwell()) == both, mesh.project.unwell)
        mesh.goes_on("service-down")


@pytest.mark.parametrize("name", JUMPS)
def test_a_clock_jumps(mesh: Mesh, name: str) -> None:
    jump, seconds = JUMPS[name]
    before = leaders(mesh)
    with mesh.fault("clock-jumps", jump):
        for service in ("cluster-1", "cluster-2", "ipam-1", "ipam-2"):
            assert abs(mesh.clock(service) - seconds) < 600
        mesh.goes_on(f"clock-{name}")
        until("all are ready", lambda: not mesh.project.unwell(), mesh.project.unwell)
    # A copy that could not renew its lease in time gives it up rightly: on a machine that stood still.
    assert leaders(mesh) == before or mesh.writers.waited > STOOD_STILL


def leaders(mesh: Mesh) -> dict[str, str]:
    """The active copy of each service."""
    leases = {service: mesh.writers.lease(service) for service in ("cluster", "ipam", "policy", "dns")}
    return {service: lease.holder for service, lease in leases.items() if lease is not None}
