"""What a newcomer sees: the tour agrees with itself on a real lab, the observer is quick, the outside reaches pods."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.paths import SOURCE
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

QUICK = 1.0
"""Seconds of CPU a command may take: what it waits for on a busy machine is the machine's."""


@pytest.fixture(scope="module")
def toured(lab: Lab) -> Iterator[subprocess.CompletedProcess[str]]:
    """The tour, run as `make lab` runs it; its example is removed afterwards."""
    argv = [sys.executable, "-m", "lab", "tour", "--name", lab.where.lab]
    yield subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, timeout=180, check=False)
    lab.kubectl("delete", "-k", str(SOURCE / "examples" / "shop"), "--wait=false")


def test_everything_agrees(toured: subprocess.CompletedProcess[str]) -> None:
    assert toured.returncode == 0, toured.stdout[-8000:] + toured.stderr[-2000:]
    assert "Everything agrees" in toured.stdout
    assert "disagrees" not in toured.stdout


def test_each_table_of_the_tour_is_there(toured: subprocess.CompletedProcess[str]) -> None:
    for words in (
        "Nodes",
        "Agents",
        "Pods (",
        "Who reaches whom",
        "What was dropped, and by what",
        "on its way out of prod/worker",
        "prod/worker-egress",
        "shop/web-from-outside",
        "denied, as it should be",
        "addresses kept",
    ):
        assert words in toured.stdout, words


def test_the_node_that_was_cordoned_takes_pods_again(lab: Lab, toured: subprocess.CompletedProcess[str]) -> None:
    assert toured.returncode == 0
    assert [node["spec"].get("unschedulable", False) for node in lab.get("nodes")["items"]] == [False] * 3


@pytest.mark.parametrize("command", ["status", "pods", "policy status", "ipam show", "routes", "dns"])
def test_the_observer_is_quick(airmesh: Callable[..., Any], command: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert airmesh(*command.split())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < QUICK


def test_the_outside_is_answered_by_the_pods_own_address(lab: Lab) -> None:
    """Beside a pod's node stands a host that is none (the control plane): replies to it must not be masqueraded."""
    pods = lab.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]
    addresses = [one["ip"] for pod in pods for one in pod["status"]["podIPs"]]
    assert len(addresses) == 2 * len(pods) >= 4
    for address in addresses:
        host = f"[{address}]" if ":" in address else address
        said = lab.inside("cp", "curl", "--silent", "--show-error", "--max-time", "3", f"http://{host}:9153/metrics")
        assert "coredns_build_info" in said


def test_a_question_about_nobody_is_refused_in_a_sentence(lab: Lab, space: LabNamespace) -> None:
    argv = [sys.executable, "-m", "cli", "policy", "explain", f"{space.namespace}/nobody", "10.0.0.1:80"]
    env = {"PATH": "/usr/bin:/bin", **lab.observer}
    reported = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, timeout=20, check=False, env=env)
    assert reported.returncode == 4
    assert "nobody" in reported.stderr
    assert "Traceback" not in reported.stderr
