"""Names while CoreDNS is killed: one replica after the other, or the server of a node (the example's YAML), which its
pods ask first, and which may hang, too."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.paths import SOURCE
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "kubernetes.default.svc.cluster.local"
QUERY_TIMEOUT = 5.0
"""Seconds that a resolver waits for an answer before it asks again (resolv.conf(5), ``timeout``)."""
KILLS_SECONDS = 90
"""Of lookups while replicas are killed: a kubelet lets one that dies again and again wait longer and longer."""
LOOKUPS = f"""
now() {{ awk '{{printf "%d", $1 * 1000}}' /proc/uptime; }}
end=$(( $(now) + $1 * 1000 ))
while began=$(now); [ "$began" -lt "$end" ]; do
  getent hosts {NAME} > /dev/null && echo "answered $(( $(now) - began ))" || echo "failed $(( $(now) - began ))"
  sleep 0.05
done
"""
UNDO = '[{"op": "remove", "path": "/spec/trafficDistribution"}]'


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[dict[str, str]]:
    """Name of the server's pod on each node."""
    lab.kubectl("apply", "--server-side", "-f", str(SOURCE / "examples/dns/node-local.yaml"))
    try:
        lab.kubectl("rollout", "status", "-n", "kube-system", "daemonset/coredns-node", "--timeout=90s", seconds=100)
        pods = lab.get("pods", "-n", "kube-system", "-l", "airmesh.io/dns=node")["items"]
        yield {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in pods}
    finally:
        lab.kubectl("delete", "daemonset", "-n", "kube-system", "coredns-node")
        lab.kubectl("patch", "service", "-n", "kube-system", "kube-dns", "--type=json", "-p", UNDO)


def process_of(pod: str) -> int:
    """Pid of a pod's CoreDNS, which has the pod's name in its environment; 0 while there is none."""
    for one in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            runs = (one / "comm").read_text().strip() == "coredns"
            if runs and f"HOSTNAME={pod}".encode() in (one / "environ").read_bytes().split(b"\0"):
                return int(one.name)
    return 0


def answered(space: LabNamespace, asker: str, pod: str) -> int:
    """Queries that a server counts."""
    address = space.lab.get("pod", "-n", "kube-system", pod)["status"]["podIP"]
    page = space.lab.exec(space.namespace, asker, "curl", "-s", f"http://{address}:9153/metrics")
    return sum(int(line.split()[-1]) for line in page.splitlines() if line.startswith("coredns_dns_requests_total{"))


def ask(space: LabNamespace, times: int) -> None:
    """Lookups out of a pod, one after the other."""
    script = f"for i in $(seq {times}); do dig +short {NAME} > /dev/null; done"
    space.lab.exec(space.namespace, "asker", "sh", "-c", script)


def read(said: str) -> list[tuple[str, float]]:
    """What came of each lookup, and in how many seconds, as :data:`LOOKUPS` says it."""
    return [(word, int(milliseconds) / 1e3) for word, milliseconds in map(str.split, said.splitlines())]


def lookups(lab: Lab, space: LabNamespace, struck: str, kind: signal.Signals, seconds: int) -> list[tuple[str, float]]:
    """What came of each lookup of a pod, and in how many seconds, while this signal strikes the server of its node."""
    lab.until("the server runs", lambda: bool(process_of(struck)), 60)
    pid = process_of(struck)
    strike = threading.Timer(3.0, os.kill, (pid, kind))
    strike.start()
    try:
        said = lab.exec(space.namespace, "asker", "sh", "-c", LOOKUPS, "sh", str(seconds), seconds=seconds + 30)
    finally:
        strike.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return read(said)


def test_one_replica_after_the_other_is_killed_and_names_go_on(lab: Lab, space: LabNamespace) -> None:
    """At least ten seconds apart, each when both are ready again, under lookups without a pause."""
    space.pod("asker", "n1")
    pods = [pod["metadata"]["name"] for pod in lab.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]]
    assert len(pods) == 2
    over = threading.Event()
    killed: list[str] = []

    def kill() -> None:
        while not over.wait(10):
            lab.kubectl("wait", "-n", "kube-system", "--for=condition=Ready", "pod", *pods, "--timeout=60s", seconds=70)
            os.kill(process_of(pods[len(killed) % 2]), signal.SIGKILL)
            killed.append(pods[len(killed) % 2])

    killer = threading.Thread(target=kill)
    killer.start()
    script = LOOKUPS.replace("  sleep 0.05\n", "")
    said = lab.exec(space.namespace, "asker", "sh", "-c", script, "sh", str(KILLS_SECONDS), seconds=KILLS_SECONDS + 30)
    over.set()
    killer.join()
    outcomes = read(said)
    failed, longest = sum(word == "failed" for word, _ in outcomes), max(took for _, took in outcomes)
    print(f"{len(killed)} kills: {len(outcomes)} lookups, {failed} failed, the longest took {longest:.2f} s")
    assert len(killed) >= 3
    assert failed <= len(outcomes) / 1000
    assert longest < 2


def test_pods_ask_the_server_of_their_node_and_go_on_without_it(
    lab: Lab, space: LabNamespace, servers: dict[str, str]
) -> None:
    space.pod("asker", "n1")

    def is_asked_alone() -> bool:
        """The Service's hints have come to the node, and nothing refused a query of late."""
        before = answered(space, "asker", servers["n1"])
        ask(space, 20)
        return answered(space, "asker", servers["n1"]) >= before + 20

    lab.until("the server of the node is asked alone", is_asked_alone, 30)
    before = {node: answered(space, "asker", pod) for node, pod in servers.items()}
    ask(space, 100)
    after = {node: answered(space, "asker", pod) for node, pod in servers.items()}
    assert after["n1"] - before["n1"] >= 100
    others = [after[node] - before[node] for node in ("n2", "n3")]
    assert max(others) < 10, "the agent dns asks each server now and then, and pods of this node none of these"
    for kind, seconds, most_failed in ((signal.SIGSTOP, 20, 0), (signal.SIGKILL, 15, 2)):
        outcomes = lookups(lab, space, servers["n1"], kind, seconds)
        failed = sum(word == "failed" for word, _ in outcomes)
        longest = max(took for _, took in outcomes)
        print(f"{kind.name}: {len(outcomes)} lookups, {failed} failed, the longest took {longest:.2f} s")
        assert failed <= most_failed, "what is refused at once fails; what hangs is asked of the others"
        assert longest < QUERY_TIMEOUT
        assert outcomes[-1][0] == "answered"
