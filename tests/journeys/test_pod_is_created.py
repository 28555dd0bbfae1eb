"""Journey one: a pod is created. From the API server's object to a pod that can be reached, in one trace."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.journeys.collector import FlowCollector
from tests.journeys.conftest import IMAGE, POD, LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

STATEFUL = f"""
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: keeper, namespace: NAMESPACE}}
spec:
  serviceName: keeper
  replicas: 1
  selector: {{matchLabels: {{app: keeper}}}}
  template:
    metadata: {{labels: {{app: keeper}}}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeName: NODE
      containers:
      - {{name: shop, image: "{IMAGE}", ports: [{{name: http, containerPort: 8080}}]}}
"""


def _sticky(space: LabNamespace, node: str) -> None:
    space.lab.apply(STATEFUL.replace("NAMESPACE", space.namespace).replace("NODE", node))


def test_a_pod_has_an_address_of_each_family_and_is_reached_without_nat(lab: Lab, space: LabNamespace) -> None:
    space.pod("here", "n1")
    space.pod("there", "n2")
    addresses = space.addresses("there")
    pools = [ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")]
    assert [
        any(ip_address(a) in pool for pool in pools if pool.version == ip_address(a).version) for a in addresses
    ] == [
        True,
        True,
    ]
    source = space.addresses("here")
    for mine, address in zip(source, addresses, strict=True):
        host = f"[{address}]" if ":" in address else address
        answer = lab.exec(space.namespace, "here", "curl", "-s", "-m", "3", f"http://{host}:8080/")
        assert mine in answer, f"there saw another source than {mine}: {answer}"


def test_the_mesh_knows_the_pod(space: LabNamespace, airmesh: Callable[..., Any]) -> None:
    space.pod("known", "n3")
    lab_says = set(space.addresses("known"))
    mine = [row for row in airmesh("pods", "-n", space.namespace)["pods"] if row["pod"] == "known"]
    assert [(row["node"], set(row["addresses"]), row["kept"]) for row in mine] == [("n3", lab_says, False)]


def test_a_static_pod_is_reached_and_known(lab: Lab, space: LabNamespace, airmesh: Callable[..., Any]) -> None:
    """A kubelet runs a manifest of its own folder under a uid of its own, and shows it by a mirror, whose uid is
    another each time that somebody deletes it.
    """
    manifest = lab.where.node("n1").static_pods / "static.yaml"
    values = {"name": "static", "namespace": space.namespace, "role": "any", "node": "n1", "image": IMAGE}
    manifest.write_text(POD.format(**values, annotations="{}"))
    try:
        lab.until("the mirror", lambda: "static-n1" in lab.kubectl("get", "pods", "-n", space.namespace, "-o", "name"))
        space.ready("static-n1")
        space.pod("client", "n2")
        addresses = space.addresses("static-n1")
        assert all(space.connects("client", address) for address in addresses)
        first = lab.get("pod", "-n", space.namespace, "static-n1")["metadata"]["uid"]
        lab.kubectl("delete", "pod", "-n", space.namespace, "static-n1", "--grace-period=0", "--force")

        def mirrored_again() -> bool:
            pods = lab.get("pods", "-n", space.namespace)["items"]
            return any(p["metadata"]["name"] == "static-n1" and p["metadata"]["uid"] != first for p in pods)

        lab.until("another mirror", mirrored_again)
        space.ready("static-n1")
        assert all(space.connects("client", address) for address in addresses)
        rows = [row for row in airmesh("pods", "-n", space.namespace)["pods"] if row["pod"] == "static-n1"]
        assert [set(row["addresses"]) for row in rows] == [set(addresses)]
    finally:
        manifest.unlink()


def test_one_trace_spans_all_services(space: LabNamespace, collector: FlowCollector) -> None:
    """A pod that keeps its address touches every service that has a part in a pod's start."""
    _sticky(space, "n2")
    space.lab.kubectl("rollout", "status", "-n", space.namespace, "statefulset/keeper", "--timeout=60s", seconds=70)
    spans = collector.trace_with(
        {"cluster", "policy", "dataplane", "ipam", "routing"}, {"k8s.namespace.name": space.namespace}, timeout=30
    )
    assert len({span.trace for span in spans}) == 1


def test_a_kept_address_moves_with_its_owner(lab: Lab, space: LabNamespace) -> None:
    _sticky(space, "n1")
    lab.kubectl("rollout", "status", "-n", space.namespace, "statefulset/keeper", "--timeout=60s", seconds=70)
    space.pod("client", "n3")
    before = space.addresses("keeper-0")
    assert all(space.connects("client", address) for address in before)
    _sticky(space, "n2")  # the template now says another node: the controller makes the pod again there
    lab.until(
        "keeper-0 on n2",
        lambda: (
            lab.get("pods", "-n", space.namespace, "-l", "app=keeper")["items"][:1] != []
            and lab.get("pods", "-n", space.namespace, "-l", "app=keeper")["items"][0]["spec"].get("nodeName") == "n2"
        ),
    )
    lab.kubectl("rollout", "status", "-n", space.namespace, "statefulset/keeper", "--timeout=60s", seconds=70)
    assert space.addresses("keeper-0") == before
    assert all(space.connects("client", address, seconds=3) for address in before)
