"""Journeys two and three: a policy is edited, every node acknowledges it, and what it drops is told by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: only-{role}, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{role: server}}}}
  policyTypes: [Ingress]
  ingress:
  - from: [{{podSelector: {{matchLabels: {{role: {role}}}}}}}]
    ports: [{{protocol: TCP, port: 8080}}]
"""


def _three(space: LabNamespace) -> str:
    space.pod("server", "n1", "server", wait=False)
    space.pod("friend", "n2", "friend", wait=False)
    space.pod("stranger", "n1", "stranger", wait=False)
    for name in ("server", "friend", "stranger"):
        space.ready(name)
    return space.addresses("server")[0]


def test_an_edit_is_enforced_on_both_nodes_and_taken_back(lab: Lab, space: LabNamespace) -> None:
    server = _three(space)
    assert space.connects("friend", server)
    assert space.connects("stranger", server)
    lab.apply(POLICY.format(role="friend", namespace=space.namespace))
    lab.until("the stranger is kept out", lambda: not space.connects("stranger", server))
    assert space.connects("friend", server)
    for address in space.addresses("server"):
        assert not space.connects("stranger", address), f"{address}: the other family is open"
    lab.kubectl("delete", "networkpolicy", "-n", space.namespace, "only-friend")
    lab.until("the stranger is let in again", lambda: space.connects("stranger", server))


def test_every_node_acknowledges_the_revision(space: LabNamespace, airmesh: Callable[..., Any]) -> None:
    space.lab.apply(POLICY.format(role="friend", namespace=space.namespace))

    def level() -> bool:
        reported = airmesh("policy", "status")
        nodes = reported["nodes"]
        return len(nodes) == 3 and not any(node.get("lag") or node.get("lags") for node in nodes)

    space.lab.until("all nodes level with the frontier", level, seconds=20)


def test_probes_of_the_kubelet_pass_a_deny_all(lab: Lab, space: LabNamespace) -> None:
    lab.apply(f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: deny-all, namespace: {space.namespace}}}
spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}
""")
    lab.apply(f"""
apiVersion: v1
kind: Pod
metadata: {{name: probed, namespace: {space.namespace}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: shop
    image: lab.local/shop:1
    readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
""")
    space.ready("probed")


def test_a_drop_is_reported_with_the_policy_that_dropped_it(lab: Lab, space: LabNamespace, tmp_path: Path) -> None:
    server = _three(space)
    lab.apply(POLICY.format(role="friend", namespace=space.namespace))
    lab.until("the stranger is kept out", lambda: not space.connects("stranger", server))
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        **lab.observer,
    }
    with (tmp_path / "drops").open("w") as drops, (tmp_path / "errors").open("w") as wrong:
        follow = subprocess.Popen(
            [sys.executable, "-u", "-m", "cli", "flows", "--follow", "--dropped", "--output", "json"],
            stdout=drops,
            stderr=wrong,
            env=environment,
        )
    mine: list[dict[str, Any]] = []

    def reported() -> bool:
        space.connects("stranger", server)
        lines = (tmp_path / "drops").read_text().split("\n")[:-1]
        all_drops = [json.loads(line) for line in lines if line.strip()]
        mine[:] = [drop for drop in all_drops if drop["destination"] == server and drop["reason"] == "POLICY_DENIED"]
        return bool(mine)

    try:
        lab.until("a drop is reported", reported)
    finally:
        follow.terminate()
        follow.wait(10)
    assert f"{space.namespace}/only-friend" in mine[0]["policies"]
    assert mine[0]["source_name"] == f"{space.namespace}/stranger"
    assert mine[0]["revision"]


def test_explain_agrees_with_packets(lab: Lab, space: LabNamespace, airmesh: Callable[..., Any]) -> None:
    server = _three(space)
    lab.apply(POLICY.format(role="friend", namespace=space.namespace))
    lab.until("the stranger is kept out", lambda: not space.connects("stranger", server))
    for source in ("friend", "stranger"):
        reported = airmesh(
            "policy", "explain", f"{space.namespace}/{source}", f"{space.namespace}/server:8080", exits=(0, 1)
        )
        assert reported["allowed"] == space.connects(source, server), reported
