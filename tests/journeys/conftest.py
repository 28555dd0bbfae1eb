"""What the journeys share: a namespace of their own in the session's lab, pods to send from, a collector of spans."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.topology import prefix
from tests.journeys.collector import FlowCollector
from tests.labkit import Lab

IMAGE = "lab.local/shop:1"

POD = """
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{app: {name}, role: {role}}}
  annotations: {annotations}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: shop
    image: {image}
    ports: [{{name: http, containerPort: 8080}}]
"""


class LabNamespace:
    """One namespace in the lab, with the verbs that the journeys need."""

    def __init__(self, lab: Lab, namespace: str) -> None:
        self.lab = lab
        self.namespace = namespace

    def pod(self, name: str, node: str, role: str = "any", *, wait: bool = True, kept: bool = False) -> None:
        """A pod on a node, whose address may be a kept one; returns when it is Ready (or at once)."""
        values = {"name": name, "namespace": self.namespace, "role": role, "node": node, "image": IMAGE}
        self.lab.apply(POD.format(**values, annotations='{airmesh.io/keep-address: "true"}' if kept else "{}"))
        if wait:
            self.ready(name)

    def ready(self, name: str) -> None:
        self.lab.kubectl(
            "wait", "-n", self.namespace, "--for=condition=Ready", f"pod/{name}", "--timeout=60s", seconds=70
        )

    def addresses(self, name: str) -> list[str]:
        """podIPs, as they stand."""
        return [ip["ip"] for ip in self.lab.get("pod", "-n", self.namespace, name)["status"].get("podIPs", [])]

    def connects(self, source: str, address: str, port: int = 8080, seconds: int = 1) -> bool:
        """A real TCP connection from inside a pod."""
        host = f"[{address}]" if ":" in address else address
        # A connection that was made and is then denied would be waited for without an end.
        limits = ["--connect-timeout", str(seconds), "--max-time", str(seconds + 2)]
        command = ["curl", "-s", "-o", "/dev/null", *limits, f"http://{host}:{port}/"]
        try:
            self.lab.exec(self.namespace, source, *command)
        except AssertionError as refused:
            assert "exit code 28" in str(refused) or "exit code 7" in str(refused), refused
            return False
        return True


@pytest.fixture(scope="session")
def collector(lab: Lab) -> Iterator[FlowCollector]:
    """Receives the spans of every agent of the lab (labkit points them at the control plane's port 4318)."""
    control = lab.node("cp")
    made = FlowCollector(Path("/run/netns") / (prefix(lab.where.lab) + "cp"), str(control.management4))
    yield made
    made.close()


@pytest.fixture
def space(lab: Lab) -> Iterator[LabNamespace]:
    """A namespace of this test's own."""
    name = f"journey-{uuid.uuid4().hex[:8]}"
    lab.kubectl("create", "namespace", name)
    yield LabNamespace(lab, name)
    lab.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def airmesh(lab: Lab) -> Callable[..., Any]:
    """The `airmesh` command as a person runs it, with `--output json`, decoded."""

    def run(*arguments: str, exits: tuple[int, ...] = (0,)) -> Any:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            **lab.observer,
        }
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments, "--output", "json"],
            capture_output=True,
            text=True,
            timeout=20,
            env=environment,
            check=False,
        )
        assert done.returncode in exits, (
            f"airmesh {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return json.loads(done.stdout)

    return run
