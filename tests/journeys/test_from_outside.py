"""Whoever is outside reaches a Service at any node and a pod at its host port, and policy holds on that way too.

The client is the host beside the nodes (the fabric's namespace), with nothing of ours in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

NODES = ("n1", "n2", "n3")

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  type: {type}
  allocateLoadBalancerNodePorts: {allocate}
  externalTrafficPolicy: {policy}
  ipFamilyPolicy: PreferDualStack
  selector: {{app: server}}
  ports: [{{port: 80, targetPort: 8080}}]
"""

HOST_PORT = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: shop
    image: lab.local/shop:1
    ports: [{{containerPort: 8080, hostPort: {port}}}]
"""

FROM_OUTSIDE = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: servers, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  policyTypes: [Ingress]
  ingress: [{{from: [{{ipBlock: {{cidr: {outside4}/32}}}}, {{ipBlock: {{cidr: {outside6}/128}}}}]}}]
"""

NOBODY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: servers, namespace: {namespace}}}
spec: {{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress]}}
"""


def _service(space: LabNamespace, name: str, kind: str = "NodePort", policy: str = "Cluster") -> Any:
    """A Service of both families in front of the pod `server`; its spec as the API server completed it."""
    allocate = "true" if kind == "LoadBalancer" else "null"
    space.lab.apply(SERVICE.format(name=name, namespace=space.namespace, type=kind, allocate=allocate, policy=policy))
    return space.lab.get("service", "-n", space.namespace, name)["spec"]


def _asked(lab: Lab, address: str, port: int, *, by: str = "fab", path: str = "/") -> dict[str, Any] | None:
    """The server's answer to a host (`fab` is the one outside), or None when there was none within a second."""
    host = f"[{address}]" if ":" in address else address
    command = ["curl", "-s", "-m", "2", "--connect-timeout", "1", f"http://{host}:{port}{path}"]
    try:
        found: dict[str, Any] = json.loads(lab.inside(by, *command))
    except AssertionError as error:
        assert any(f"exit {code}\n" in str(error) for code in (7, 28)), error
        return None
    return found


def _addresses(lab: Lab, node: str) -> list[str]:
    return [one["address"] for one in lab.get("node", node)["status"]["addresses"] if one["type"] == "InternalIP"]


def _everywhere(lab: Lab, port: int) -> dict[str, str]:
    """What a client outside sees at each node's addresses: the client address that the server saw, or nothing."""
    frontends = [(node, address) for node in NODES for address in _addresses(lab, node)]
    with ThreadPoolExecutor(len(frontends)) as pool:  # silence takes a second each
        answers = list(pool.map(lambda one: _asked(lab, one[1], port), frontends))
    return {
        f"{node} {6 if ':' in address else 4}": answer["client"].rpartition(":")[0] if answer else "–"
        for (node, address), answer in zip(frontends, answers, strict=True)
    }


def _outside(lab: Lab) -> dict[int, str]:
    """The outside host's own addresses towards the nodes, as a server sees them."""
    found = {}
    for address in _addresses(lab, "n1"):
        (route,) = json.loads(lab.inside("fab", "ip", "-j", "route", "get", address))
        found[6 if ":" in address else 4] = f"[{route['prefsrc']}]" if ":" in address else route["prefsrc"]
    return found


def _becomes(lab: Lab, what: str, seen: Callable[[], object], wanted: object) -> None:
    last: list[object] = []

    def same() -> bool:
        last[:] = [seen()]
        return last[0] == wanted

    try:
        lab.until(what, same)
    except AssertionError as error:
        raise AssertionError(f"{error}: {last[0]} instead of {wanted}") from None


def test_a_node_port_is_reached_at_every_node_and_policy_holds(lab: Lab, space: LabNamespace) -> None:
    """At the pod's own node it sees the client; at the others the node that passed the packet on."""
    space.pod("server", "n2")
    port = _service(space, "web")["ports"][0]["nodePort"]
    outside = _outside(lab)
    through = {}
    for node in NODES:
        for address in _addresses(lab, node):
            version = 6 if ":" in address else 4
            passed_on = f"[{address}]" if version == 6 else address
            through[f"{node} {version}"] = outside[version] if node == "n2" else passed_on
    _becomes(lab, "the node port answers everywhere", lambda: _everywhere(lab, port), through)
    nowhere = dict.fromkeys(through, "–")
    lab.apply(NOBODY.format(namespace=space.namespace))
    _becomes(lab, "nobody gets in", lambda: _everywhere(lab, port), nowhere)
    lab.apply(FROM_OUTSIDE.format(namespace=space.namespace, outside4=outside[4], outside6=outside[6].strip("[]")))
    own = {f"n2 {version}": outside[version] for version in (4, 6)}
    _becomes(lab, "the client gets in where it is seen", lambda: _everywhere(lab, port), nowhere | own)


def test_external_policy_local_keeps_the_client_and_answers_only_where_the_pod_is(
    lab: Lab, space: LabNamespace
) -> None:
    space.pod("server", "n2")
    spec = _service(space, "web", "LoadBalancer", "Local")
    port, check = spec["ports"][0]["nodePort"], spec["healthCheckNodePort"]
    outside = _outside(lab)
    wanted = {f"{node} {v}": outside[v] if node == "n2" else "–" for node in NODES for v in (4, 6)}
    _becomes(lab, "the pod's own node answers", lambda: _everywhere(lab, port), wanted)

    def health() -> dict[str, int]:
        reported = {node: _asked(lab, _addresses(lab, node)[0], check) for node in NODES}
        return {node: answer["localEndpoints"] if answer else -1 for node, answer in reported.items()}

    _becomes(lab, "health checks tell where the pod is", health, {"n1": 0, "n2": 1, "n3": 0})
    lab.kubectl("delete", "pod", "-n", space.namespace, "server", "--wait=true")
    _becomes(lab, "and that it is gone", health, {"n1": 0, "n2": 0, "n3": 0})
    lab.kubectl("delete", "service", "-n", space.namespace, "web")
    _becomes(lab, "no Service, no health check", health, dict.fromkeys(NODES, -1))


def test_every_node_says_that_load_balancers_may_use_it(lab: Lab) -> None:
    reported = {node: _asked(lab, _addresses(lab, node)[0], 10256, path="/healthz") for node in NODES}
    assert {node: answer and answer["nodeEligible"] for node, answer in reported.items()} == dict.fromkeys(NODES, True)


def test_a_host_port_is_the_pods_own_at_its_node_alone(lab: Lab, space: LabNamespace) -> None:
    space.pod("client", "n1", wait=False)
    lab.apply(HOST_PORT.format(name="server", namespace=space.namespace, node="n1", port=54320))
    space.ready("server")
    space.ready("client")
    outside = _outside(lab)
    wanted = {f"{node} {v}": outside[v] if node == "n1" else "–" for node in NODES for v in (4, 6)}
    _becomes(lab, "the host port answers at its node", lambda: _everywhere(lab, 54320), wanted)
    assert _asked(lab, "127.0.0.1", 54320, by="n1"), "the node's own loopback does not lead to the pod"
    assert not space.connects("client", "127.0.0.1", 54320), "a pod's loopback leads to another pod"
    assert space.connects("client", _addresses(lab, "n1")[0], 54320), "a pod of that node does not reach it"
    lab.apply(NOBODY.format(namespace=space.namespace))
    _becomes(lab, "policy holds", lambda: _everywhere(lab, 54320), dict.fromkeys(wanted, "–"))
    lab.kubectl("delete", "pod", "-n", space.namespace, "server", "--wait=true")
    lab.kubectl("delete", "networkpolicy", "-n", space.namespace, "servers")
    assert _asked(lab, "127.0.0.1", 54320, by="n1") is None


def test_an_external_ip_is_served_where_the_settings_allow_it(lab: Lab, space: LabNamespace) -> None:
    space.pod("server", "n2")
    space.pod("client", "n3", wait=False)
    _service(space, "web")
    lab.kubectl("patch", "service", "-n", space.namespace, "web", "-p", '{"spec":{"externalIPs":["203.0.113.77"]}}')
    space.ready("client")
    lab.until("pods reach it", lambda: space.connects("client", "203.0.113.77", 80))
    lab.inside("fab", "ip", "route", "add", "203.0.113.77/32", "via", str(lab.node("n1").fabric4))
    try:
        lab.until("the host outside reaches it", lambda: _asked(lab, "203.0.113.77", 80) is not None)
        lab.kubectl("patch", "service", "-n", space.namespace, "web", "-p", '{"spec":{"externalIPs":null}}')
        lab.until("it is nobody's any more", lambda: _asked(lab, "203.0.113.77", 80) is None)
    finally:
        lab.inside("fab", "ip", "route", "del", "203.0.113.77/32")
