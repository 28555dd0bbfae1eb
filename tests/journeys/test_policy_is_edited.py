"""Journeys two and three: a policy is edited, every node acknowledges it, and what it drops is told by name."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.journeys.conftest import Place
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


def _three(place: Place) -> str:
    place.pod("server", "n1", "server", wait=False)
    place.pod("friend", "n2", "friend", wait=False)
    place.pod("stranger", "n1", "stranger", wait=False)
    for name in ("server", "friend", "stranger"):
        place.ready(name)
    return place.addresses("server")[0]


def test_an_edit_is_enforced_on_both_nodes_and_taken_back(lab: Lab, place: Place) -> None:
    server = _three(place)
    assert place.connects("friend", server)
    assert place.connects("stranger", server)
    lab.apply(POLICY.format(role="friend", namespace=place.namespace))
    lab.until("the stranger is kept out", lambda: not place.connects("stranger", server))
    assert place.connects("friend", server)
    for address in place.addresses("server"):
        assert not place.connects("stranger", address), f"{address}: the other family is open"
    lab.kubectl("delete", "networkpolicy", "-n", place.namespace, "only-friend")
    lab.until("the stranger is let in again", lambda: place.connects("stranger", server))


def test_every_node_acknowledges_the_revision(place: Place, airmesh: Callable[..., Any]) -> None:
    place.lab.apply(POLICY.format(role="friend", namespace=place.namespace))

    def level() -> bool:
        told = airmesh("policy", "status")
        nodes = told["nodes"]
        return len(nodes) == 3 and not any(node.get("lag") or node.get("lags") for node in nodes)

    place.lab.until("all nodes level with the frontier", level, seconds=20)


def test_probes_of_the_kubelet_pass_a_deny_all(lab: Lab, place: Place) -> None:
    lab.apply(f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: deny-all, namespace: {place.namespace}}}
spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}
""")
    lab.apply(f"""
apiVersion: v1
kind: Pod
metadata: {{name: probed, namespace: {place.namespace}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: shop
    image: lab.local/shop:1
    readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
""")
    place.ready("probed")


def test_a_drop_is_told_with_the_policy_that_dropped_it(lab: Lab, place: Place) -> None:
    server = _three(place)
    lab.apply(POLICY.format(role="friend", namespace=place.namespace))
    lab.until("the stranger is kept out", lambda: not place.connects("stranger", server))
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "AIRMESH_NATS": lab.nats_url,
        "AIRMESH_NATS_SEED_FILE": str(lab.seed("cli")),
    }
    follow = subprocess.Popen(
        [sys.executable, "-m", "cli", "flows", "--follow", "--dropped", "--output", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        time.sleep(1.5)  # the subscription has no mark to wait for
        place.connects("stranger", server)
        time.sleep(1)
    finally:
        follow.terminate()
        said, wrong = follow.communicate(timeout=10)
    drops = [json.loads(line) for line in said.splitlines() if line.strip()]
    mine = [drop for drop in drops if drop["destination"] == server and drop["reason"] == "POLICY_DENIED"]
    assert mine, f"no drop told for {server}: {said}{wrong}"
    assert f"{place.namespace}/only-friend" in mine[0]["policies"]
    assert mine[0]["source_name"] == f"{place.namespace}/stranger"
    assert mine[0]["revision"]


def test_explain_agrees_with_packets(lab: Lab, place: Place, airmesh: Callable[..., Any]) -> None:
    server = _three(place)
    lab.apply(POLICY.format(role="friend", namespace=place.namespace))
    lab.until("the stranger is kept out", lambda: not place.connects("stranger", server))
    for source in ("friend", "stranger"):
        told = airmesh(
            "policy", "explain", f"{place.namespace}/{source}", f"{place.namespace}/server:8080", exits=(0, 1)
        )
        assert told["allowed"] == place.connects(source, server), told
