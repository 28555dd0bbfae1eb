"""A cluster of three nodes that only the API server knows, and what controllers and kubelets would write there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.install.names import NAMESPACE
from tests.kubeapi import KubeApi

ROOT = Path(__file__).parents[4]
NODES = ("n1", "n2", "n3")
APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
BATCH = f"/apis/batch/v1/namespaces/{NAMESPACE}"


@dataclass(frozen=True, slots=True)
class Output:
    code: int
    out: str
    err: str


@dataclass
class World:
    """``airmesh`` runs a command; ``rolls``: what is applied comes to run."""

    kube: KubeApi
    rolls: bool = True
    speak: bool = True
    """Nodes say that they are ready when their agents run."""
    no_image: str = ""
    """The name of a workload whose image no node can have."""
    works: Callable[[Any], bool] = lambda _: True
    """Does what a Job is for; True once it is done."""
    order: list[str] = field(default_factory=list)
    """Workloads in the order in which they came to run."""

    def airmesh(self, *arguments: str, user: str = "admin", timeout: float = 900) -> Output:
        with self.command(*arguments, user=user) as running:
            out, err = running.communicate(timeout=timeout)
        assert "Traceback" not in out + err, err
        assert "fault of this program" not in err, err
        return Output(running.returncode, out, err)

    def killed(self, when: int | str, file: Path, *arguments: str) -> bool:
        """Run a command that is killed after so many changes, or after the first one whose path has this in it;
        whether it came so far. ``file`` gets a line for each change.
        """
        with self.command(*arguments, program=("tests.shell.cli.install.killed", str(when), str(file))) as running:
            _, said = running.communicate(timeout=900)
        assert running.returncode in (-signal.SIGKILL, 0, 1), said
        return running.returncode == -signal.SIGKILL

    def command(self, *arguments: str, user: str = "admin", program: Sequence[str] = ("cli",)) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", *program, *arguments, "--kubeconfig", str(self.kube.kubeconfig(user))]
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def get(self, path: str) -> Any:
        try:
            return self.kube.call("GET", path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def items(self, path: str) -> list[Any]:
        return list((self.get(path) or {}).get("items") or ())

    def one_pass(self) -> None:
        """What controllers would write now."""
        for plural in ("statefulsets", "deployments", "daemonsets"):
            for one in self.items(f"{APPS}/{plural}"):
                self._roll(plural, one)
        for one in self.items(f"{BATCH}/jobs"):
            if not (one["status"].get("conditions")) and self.rolls:
                self._job(one)
        self._end_pods()
        self._end_namespace()

    def _end_pods(self) -> None:
        """A pod goes with the workload that it is of."""
        for one in self.items(f"/api/v1/namespaces/{NAMESPACE}/pods"):
            name = one["metadata"]["name"].partition("--")[0].removesuffix("-x")
            if not any(self.get(f"{APPS}/{plural}/{name}") for plural in ("statefulsets", "deployments", "daemonsets")):
                path = f"/api/v1/namespaces/{NAMESPACE}/pods/{one['metadata']['name']}"
                self.kube.call("DELETE", path, {"gracePeriodSeconds": 0})

    def _roll(self, plural: str, one: Any) -> None:
        name, generation = one["metadata"]["name"], one["metadata"]["generation"]
        if one["metadata"].get("deletionTimestamp") or one["status"].get("observedGeneration") == generation:
            return
        if name == self.no_image:
            self._pod_without_image(one)
            return
        if not self.rolls or self._waits(name):
            return
        count = one["spec"].get("replicas", len(NODES))
        status: dict[str, Any] = {"observedGeneration": generation}
        if plural == "daemonsets":
            many = ("desiredNumberScheduled", "currentNumberScheduled", "updatedNumberScheduled", "numberAvailable")
            status |= {**dict.fromkeys((*many, "numberReady"), count), "numberMisscheduled": 0}
        else:
            status |= dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), count)
        self.kube.merge(f"{APPS}/{plural}/{name}/status", {"status": status})
        self.order.append(name)
        if name == "dataplane" and self.speak:
            self.ready()

    def _waits(self, name: str) -> bool:
        """Ipam is ready when every node's agent has reported which blocks it holds; that one when it has addresses."""
        if name == "ipam":
            return self.get(f"{APPS}/daemonsets/dataplane") is None
        return name == "dataplane" and not self.items("/apis/crd.projectcalico.org/v1/ippools")

    def _job(self, one: Any) -> None:
        if not self.works(one):
            return
        now = "2026-01-01T00:00:00Z"
        done = [
            {"type": kind, "status": "True", "lastTransitionTime": now, "lastProbeTime": now}
            for kind in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"conditions": done, "succeeded": 1, "startTime": now, "completionTime": now}
        self.kube.merge(f"{BATCH}/jobs/{one['metadata']['name']}/status", {"status": status})

    def _pod_without_image(self, one: Any) -> None:
        name = f"{one['metadata']['name']}-x"
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        if self.get(f"{path}/{name}") is not None:
            return
        spec = {**one["spec"]["template"]["spec"], "nodeName": "n2"}
        labels = one["spec"]["template"]["metadata"]["labels"]
        self.kube.call(
            "POST",
            path,
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec},
        )
        image = spec["containers"][0]["image"]
        waiting = {"reason": "ImagePullBackOff", "message": "not found"}
        container = {
            "name": spec["containers"][0]["name"],
            "image": image,
            "imageID": "",
            "ready": False,
            "restartCount": 0,
        }
        self.kube.merge(
            f"{path}/{name}/status", {"status": {"containerStatuses": [{**container, "state": {"waiting": waiting}}]}}
        )

    def _end_namespace(self) -> None:
        """No controller empties a namespace that is being deleted: as it would, all in it goes, then itself."""
        found = self.get(f"/api/v1/namespaces/{NAMESPACE}")
        if not found or not found["metadata"].get("deletionTimestamp"):
            return
        empty(self.kube)
        self.kube.call("PUT", f"/api/v1/namespaces/{NAMESPACE}/finalize", {**found, "spec": {"finalizers": []}})

    def ready(self) -> None:
        """Every node's agents say that they are ready, as `cluster` writes it."""
        condition = {"type": "NetworkUnavailable", "status": "False", "reason": "AirmeshReady", "message": ""}
        for node in NODES:
            self.kube.merge(f"/api/v1/nodes/{node}/status", {"status": {"conditions": [condition]}})


def empty(kube: KubeApi) -> None:
    for path in (f"{APPS}/statefulsets", f"{APPS}/deployments", f"{APPS}/daemonsets", f"{BATCH}/jobs"):
        kube.call("DELETE", path, {"propagationPolicy": "Background"})
    for kind in ("pods", "secrets", "configmaps", "services", "serviceaccounts", "resourcequotas"):
        options = {"gracePeriodSeconds": 0} if kind == "pods" else {}
        if kind == "services":
            with suppress(urllib.error.HTTPError):
                kube.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/services/nats")
            continue
        kube.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/{kind}", options)
    with suppress(urllib.error.HTTPError):
        kube.call("DELETE", f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets")


@pytest.fixture
def world(kube_api: KubeApi) -> Iterator[World]:
    """Three nodes, nothing installed; a thread writes what controllers would."""
    for number, name in enumerate(NODES, 1):
        with suppress(urllib.error.HTTPError):
            kube_api.call("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        addresses = [{"type": "InternalIP", "address": f"192.0.2.{number}"}]
        kube_api.merge(f"/api/v1/nodes/{name}/status", {"status": {"addresses": addresses, "conditions": []}})
    made, end = World(kube_api), threading.Event()

    def play() -> None:
        while not end.wait(0.1):
            with suppress(urllib.error.HTTPError):  # an object changed or went meanwhile
                made.one_pass()

    thread = threading.Thread(target=play)
    thread.start()
    yield made
    made.rolls, made.no_image = True, ""
    with suppress(urllib.error.HTTPError):
        kube_api.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
    deadline = time.monotonic() + 20
    while made.get(f"/api/v1/namespaces/{NAMESPACE}") is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    for kind in ("ippools",):
        with suppress(urllib.error.HTTPError):
            kube_api.call("DELETE", f"/apis/crd.projectcalico.org/v1/{kind}")
    for name in NODES:
        with suppress(urllib.error.HTTPError):
            kube_api.call("DELETE", f"/api/v1/nodes/{name}")
    end.set()
    thread.join()


def dumped(found: Any) -> str:
    """For comparing: without what only the server writes."""
    kept = {key: value for key, value in found["metadata"].items() if key in ("name", "labels", "annotations")}
    return json.dumps({**found, "metadata": kept, "status": None}, sort_keys=True)
