"""The project of compose/ for real, by podman (`make compose-test` alone): an overlay's fault comes and goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deploy.images.engine import find_engine
from lab.compose import keys
from lab.compose.project import Project
from tests.natsd import free_port

pytestmark = [pytest.mark.slow, pytest.mark.privileged, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
API_PORT = 6443
KUBECONFIG = f"""\
apiVersion: v1
kind: Config
clusters: [{{name: stub, cluster: {{server: "http://127.0.0.1:{API_PORT}"}}}}]
users: [{{name: stub, user: {{}}}}]
contexts: [{{name: stub, context: {{cluster: stub, user: stub}}}}]
current-context: stub
"""
ASK = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=5).read())"


def until(what: str, holds: Callable[[], bool], seen: Callable[[], object], seconds: float = 180) -> None:
    """Waits; what is `seen` instead is said when it takes too long."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}: {seen()}"
        time.sleep(0.5)


@contextmanager
def inside(project: Project, service: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine in the network namespace of a container."""
    pid = project.inspect(service)["State"]["Pid"]
    with subprocess.Popen(["nsenter", f"--net=/proc/{pid}/ns/net", "--", *command], cwd=ROOT) as running:
        try:
            yield running
        finally:
            running.terminate()
            running.wait(10)


@contextmanager
def running(folder: Path, *overlays: str) -> Iterator[Project]:
    """The project is up, with an API server in its host's namespace; whatever happens it is gone afterwards."""
    project = Project(overlays)
    for name in ("AIRMESH_JAEGER_PORT", "AIRMESH_PROMETHEUS_PORT"):
        os.environ[name] = str(free_port())
    (folder / "kubeconfig").write_text(KUBECONFIG)
    try:
        project.down()
        project.prepare(folder / "kubeconfig", print)
        project.up()
        with inside(project, "host", sys.executable, "-m", "tests.compose.api", str(API_PORT)):
            until("all are ready", lambda: not project.unwell(), project.unwell)
            yield project
    finally:
        project.down()


def page(project: Project, service: str, path: str) -> Any:
    """A page of a server's monitor; None when it does not answer."""
    try:
        pid = project.inspect(service)["State"]["Pid"]
        command = [
            "nsenter",
            f"--net=/proc/{pid}/ns/net",
            "--",
            sys.executable,
            "-c",
            ASK,
            f"http://127.0.0.1:8222/{path}",
        ]
        return json.loads(subprocess.run(command, capture_output=True, timeout=20, check=True).stdout)
    except (subprocess.SubprocessError, ValueError, LookupError):
        return None


def copies(project: Project) -> dict[str, tuple[int, int]]:
    """Of each bucket, as its leader says: how many copies there are, and how many of them are current."""
    found: dict[str, tuple[int, int]] = {}
    for server in keys.SERVERS:
        for account in (page(project, server, "jsz?streams=true&config=true") or {}).get("account_details") or []:
            for stream in account.get("stream_detail") or []:
                cluster = stream.get("cluster") or {}
                if cluster.get("leader") == server:
                    others = cluster.get("replicas") or []
                    current = 1 + sum(bool(one.get("current")) and not one.get("offline") for one in others)
                    found[stream["name"]] = (stream["config"]["num_replicas"], current)
    return found


def whole(project: Project, current: int = 3) -> bool:
    found = copies(project)
    return len(found) > 5 and all(has == (3, current) for has in found.values())


def scraped() -> list[str]:
    """Agents whose metrics Prometheus has, as it says on the port of the machine's loopback."""
    url = f"http://127.0.0.1:{os.environ['AIRMESH_PROMETHEUS_PORT']}/api/v1/query?query=up==1"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return [one["metric"]["instance"] for one in json.load(answer)["data"]["result"]]


def test_all_are_ready_and_a_server_that_dies_is_done_without(tmp_path: Path) -> None:
    with running(tmp_path, "nats-dies") as project:
        seen = partial(copies, project)
        until("three copies of each bucket", lambda: whole(project), seen)
        project.now.touch()
        until("two copies of each bucket are current", lambda: whole(project, 2), seen)
        until("all but one are ready", lambda: set(project.unwell()) == {"nats-2"}, project.unwell)
        project.now.unlink()
        until("three copies again", lambda: whole(project), seen)
        until("all are ready again", lambda: not project.unwell(), project.unwell)
        until("Prometheus reads all copies", lambda: len(scraped()) == 10, scraped)
    assert project.left() == []
    assert find_engine().run("network", "ls", "--format", "{{.Name}}").count("airmesh") == 0
