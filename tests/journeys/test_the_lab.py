"""The lab is a real Kubernetes: what people and tests rely on works, and the machine is left as it was."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import leftovers, node
from lab.paths import SOURCE
from tests.drills.traffic import pid_in_pod
from tests.labkit import Lab
from tests.pki import Authority

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

POD = """
apiVersion: v1
kind: Pod
metadata: {name: {name}, namespace: default, labels: {app: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: shop
    image: lab.local/shop:1
    imagePullPolicy: IfNotPresent
    args: [--http, "8080", --tcp, "9000", --udp, "9000"]
    env:
    - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
"""


def _pod(name: str, node: str) -> str:
    return POD.replace("{name}", name).replace("{node}", node)


@pytest.fixture(scope="module")
def two(lab: Lab) -> Iterator[dict[str, list[str]]]:
    """Two pods on two nodes, Ready; their addresses by name."""
    lab.apply(_pod("here", "n1") + "---" + _pod("there", "n2"))
    lab.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/here", "pod/there")
    pods = lab.get("pods", "here", "there")["items"]
    yield {pod["metadata"]["name"]: [one["ip"] for one in pod["status"]["podIPs"]] for pod in pods}
    lab.kubectl("delete", "pod", "here", "there", "--wait=true", "--timeout=60s")


def test_nodes_are_ready_with_both_families_of_their_fabric_address(lab: Lab) -> None:
    nodes = lab.get("nodes")["items"]
    addresses = {
        node["metadata"]["name"]: [a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"]
        for node in nodes
    }
    assert addresses == {host.name: [str(host.fabric4), str(host.fabric6)] for host in lab.topology.nodes}


def test_pods_have_both_families_and_reach_each_other_across_nodes(lab: Lab, two: dict[str, list[str]]) -> None:
    assert [len(addresses) for addresses in two.values()] == [2, 2]
    v4, v6 = two["there"]
    targets = [f"tcp://{v4}:9000", f"udp://{v4}:9000", f"tcp://[{v6}]:9000", f"http://[{v6}]:8080/"]
    answers = [json.loads(line) for line in lab.exec("default", "here", "shop", "probe", *targets).splitlines()]
    assert {answer["target"] for answer in answers if answer["ok"]} == set(targets)
    # Directly, without NAT: the server saw the client's own address.
    clients = {answer["answer"]["client"].rpartition(":")[0].strip("[]") for answer in answers}
    assert clients == set(two["here"])


def test_names_work_and_the_api_is_verified_by_its_own(lab: Lab, two: dict[str, list[str]]) -> None:
    assert lab.exec("default", "here", "getent", "hosts", "kubernetes.default.svc.cluster.local").split()[0] in {
        "10.96.0.1",
        "fd00:10:96::1",
    }
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = f"curl -s --max-time 5 --cacert {account}/ca.crt https://kubernetes.default.svc/readyz"
    assert lab.exec("default", "here", "sh", "-c", script) == "ok"


def test_exec_and_logs_go_through_an_authenticated_kubelet(lab: Lab, two: dict[str, list[str]]) -> None:
    assert lab.exec("default", "here", "hostname").strip() == "here"
    assert lab.kubectl("logs", "here") == ""
    refused = lab.inside("n2", "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "https://172.30.0.12:10250/pods")
    assert refused == "401"


VOLUMES = """
apiVersion: v1
kind: Secret
metadata: {name: volumes, namespace: default}
stringData: {word: open sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: {name}, namespace: default}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: shop
    image: lab.local/shop:1
    volumeMounts:
    - {name: secret, mountPath: /secret}
    - {name: secret, mountPath: /single/word, subPath: word}
    - {name: projected, mountPath: /projected}
    - {name: scratch, mountPath: /scratch}
  volumes:
  - {name: secret, secret: {secretName: volumes}}
  - {name: projected, projected: {sources: [{secret: {name: volumes}}, {serviceAccountToken: {path: token}}]}}
  - {name: scratch, emptyDir: {medium: Memory}}
"""


def test_volumes_of_all_kinds_reach_pods_and_each_kubelet_has_its_own_device_plugins(lab: Lab) -> None:
    pods = {name: host.name for name, host in zip(("full", "also"), lab.topology.nodes, strict=False)}
    lab.apply("---".join(VOLUMES.replace("{name}", name).replace("{node}", on) for name, on in pods.items()))
    lab.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in pods))
    words = "cat /secret/word /single/word /projected/word; test -s /projected/token"
    read = f"{words}; grep -c ' /scratch tmpfs' /proc/mounts"
    for name in pods:
        assert lab.exec("default", name, "sh", "-ec", read) == "open sesame" * 3 + "1\n"
    mounted = leftovers.lab_mounts(lab.where)
    for on in pods.values():
        of = lab.where.node(on)
        assert [one for one in mounted if one.startswith(f"{of.kubelet}/pods/")], "volumes are mounted out of sight"
        assert (of.device_plugins / "kubelet.sock").is_socket()
    assert not (node.DEVICE_PLUGINS / "kubelet.sock").exists()
    assert str(node.DEVICE_PLUGINS) not in mounted
    lab.kubectl("delete", "secret/volumes", *(f"pod/{name}" for name in pods), "--wait=true", "--timeout=60s")
    for on in pods.values():
        below = f"{lab.where.node(on).kubelet}/pods/"
        known = {pod["metadata"]["uid"] for pod in lab.get("pods", "-A")["items"]}

        def gone(below: str = below, known: set[str] = known) -> bool:
            mine = [one for one in leftovers.lab_mounts(lab.where) if one.startswith(below)]
            return all(one.removeprefix(below).split("/")[0] in known for one in mine)

        lab.until("volumes of pods that are gone are unmounted", gone)


def test_the_machine_has_no_link_or_listener_of_the_lab_beyond_loopback(lab: Lab) -> None:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert lab.topology.fabric_namespace not in links
    assert "link-netns" not in links
    listeners = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    ours = [line.split()[3] for line in listeners.splitlines() if f"pid={lab.pid('port-forward')}," in line]
    assert len(ours) == 2
    assert all(address.startswith("127.0.0.1:") for address in ours)


def test_an_agent_that_is_killed_comes_back(lab: Lab) -> None:
    before = lab.kill("ipam-2")
    lab.until("ipam-2 again", lambda: lab.pid("ipam-2") not in {0, before})


def test_up_on_a_lab_that_is_up_says_so_quickly(lab: Lab) -> None:
    lab.until("every process runs", lambda: lab.pid("ipam-2") != 0)
    born = time.monotonic()
    argv = [sys.executable, "-m", "lab", "up", "--name", lab.where.lab, "--nodes", str(len(lab.topology.nodes))]
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, timeout=60, check=False)
    assert "is up already" in done.stdout
    assert done.returncode == 0
    assert time.monotonic() - born < 3


AGGREGATED = """
apiVersion: v1
kind: Service
metadata: {name: aggregated, namespace: default}
spec: {selector: {app: here}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.drill.airmesh.io}
spec:
  group: drill.airmesh.io
  version: v1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: aggregated, namespace: default}
"""


def test_an_aggregated_api_is_asked_at_its_pods(lab: Lab, two: dict[str, list[str]], tmp_path: Path) -> None:
    """The API server is on no node and knows no Service: it goes to the endpoints (`--enable-aggregator-routing`)."""
    certificate = Authority(tmp_path / "authority").sign(tmp_path / "tls")
    enter = ["nsenter", f"--net=/proc/{pid_in_pod(lab.get('pod', 'here'))}/ns/net", "--"]
    program = [sys.executable, "-I", str(Path(__file__).with_name("aggregated.py"))]
    with subprocess.Popen([*enter, *program, "drill.airmesh.io/v1", "8443", str(certificate)]) as server:
        try:
            lab.apply(AGGREGATED)
            lab.kubectl("wait", "--for=condition=Available", "--timeout=60s", "apiservice/v1.drill.airmesh.io")
            said = json.loads(lab.kubectl("get", "--raw", "/apis/drill.airmesh.io/v1"))
        finally:
            lab.kubectl("delete", "apiservice/v1.drill.airmesh.io", "service/aggregated", "--wait=false")
            server.terminate()
    assert said["groupVersion"] == "drill.airmesh.io/v1"
