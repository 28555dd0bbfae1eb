"""Journey: a person asks what became of a change. `airmesh trace` shows it from the object to the nodes' kernels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

NODES = {"n1", "n2", "n3"}

OBJECTS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{app: web-0}}}}
  policyTypes: [Ingress]
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {namespace}}}
spec:
  selector: {{app: web-0}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"""


def test_a_change_is_followed_from_its_object_to_the_kernels(
    lab: Lab, space: LabNamespace, airmesh: Callable[..., Any]
) -> None:
    """A pod starts on n1, a policy about it comes, and a Service in front of it, both of one name."""

    def followed(kind: str, name: str, last: str, nodes: set[str]) -> list[dict[str, Any]]:
        """The trace's spans, when its last step has been taken on these nodes."""
        found: list[dict[str, Any]] = []

        def whole() -> bool:
            found[:] = airmesh("trace", kind, f"{space.namespace}/{name}", exits=(0, 1))["spans"]
            return {span["node"] for span in found if span["name"] == last} >= nodes

        lab.until(f"a trace of {kind} {name} with {last} on {', '.join(sorted(nodes))}", whole)
        return found

    space.pod("web-0", "n1")
    (head, *rest) = followed("pod", "web-0", "cni-add", {"n1"})
    assert (head["service"], head["name"], head["depth"]) == ("cluster", "cluster.upsert", 0)
    (add,) = [span for span in rest if span["name"] == "cni-add"]
    assert [event["name"] for event in add["events"]] == ["admitted", "addressed", "linked", "up"]
    assert add["milliseconds"] > 0
    lab.apply(OBJECTS.format(namespace=space.namespace))
    (head, *rest) = followed("policy", "web", "policy.enforce", {"n1"})
    assert head["name"] == "cluster.upsert"
    assert {"policy", "dataplane"} <= {span["service"] for span in rest}
    followed("service", "web", "loadbalancer.apply", NODES)
    either = airmesh_says(lab, "trace", f"{space.namespace}/web")
    assert "NetworkPolicy and a Service" in either
    assert "airmesh trace policy or service" in either


def airmesh_says(lab: Lab, *arguments: str) -> str:
    """What the command complains of, as one line."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **lab.observer}
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return " ".join(done.stderr.split())
