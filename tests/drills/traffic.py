"""A street of pods with traffic that must go on and knocks that must stay unanswered, while a drill hurts the mesh.

`server` (n1) lets in `friend` and, when a drill edits the policy, `guest`; from `friend` (n2) run 50 TCP and 50 UDP
flows over both families. `near` (n1) and `far` (n3) knock at the server's door every 20 ms and may never be heard;
`caged` (n3) may send nothing at all and knocks at `friend`'s. `guest` (n3) knocks too: that it is heard, or not, tells
how far the latest edit has come. What is judged is what the programs of flows.py saw at both ends, and nothing else.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cli.install import names
from lab.cluster import ledger
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

PROGRAM = Path(__file__).with_name("flows.py")
PORT = 9444
FLOWS = 50
REPLY_SECONDS = 10.0
KEPT = ("friend",)
"""Whose addresses are kept ones: what comes back from the server goes by a host route, what goes to it by a block's."""
PODS = {"server": "n1", "friend": "n2", "near": "n1", "far": "n3", "caged": "n3", "guest": "n3"}

ADMITTED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: door, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{role: server}}}}
  policyTypes: [Ingress]
  ingress:
  - from: [{{podSelector: {{matchExpressions: [{{key: role, operator: In, values: [{roles}]}}]}}}}]
"""
CAGE = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: cage, namespace: {namespace}}}
spec: {{podSelector: {{matchLabels: {{role: caged}}}}, policyTypes: [Egress]}}
"""


def pid_in_pod(pod: Any) -> int:
    """A process of the pod (as the API tells it), found by its cgroup: its network namespace is the pod's."""
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with suppress(OSError):
            if container in path.read_text():
                return int(path.parent.name)
    raise AssertionError(f"no process of container {container}")


class Program:
    """One flows.py in a pod."""

    def __init__(self, pod: int | str, *arguments: str, program: Path = PROGRAM) -> None:
        """``pod``: a process of it, or the path of its network namespace."""
        netns = f"/proc/{pod}/ns/net" if isinstance(pod, int) else pod
        enter = ["nsenter", f"--net={netns}", "--"]
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-I", str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def report(self) -> dict[str, Any]:
        """What it saw since the last report."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], REPLY_SECONDS)
        assert ready, f"{self._process.args!r} does not answer"
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert not said["faults"], said
        return said

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Traffic:
    """All programs of one street. Made by :func:`street`."""

    def __init__(self, space: LabNamespace, stack: ExitStack) -> None:
        self.space, self.lab = space, space.lab
        pods = {pod["metadata"]["name"]: pod for pod in self.lab.get("pods", "-n", space.namespace)["items"]}
        self.addresses = {name: [ip["ip"] for ip in pods[name]["status"]["podIPs"]] for name in PODS}
        self.pids = {name: pid_in_pod(pods[name]) for name in PODS}
        server, friend = self.addresses["server"], self.addresses["friend"]

        def start(pod: str, *arguments: str) -> Program:
            program = Program(self.pids[pod], *arguments)
            stack.callback(program.close)
            return program

        self.listener = start("server", "serve", str(PORT), *friend, *self.addresses["guest"])
        self.outside = start("friend", "serve", str(PORT))
        for program in (self.listener, self.outside):
            program.report()  # it listens
        self.sender = start("friend", "send", str(PORT), str(FLOWS), str(FLOWS), *server)
        self.knockers = {
            "near": start("near", "knock", str(PORT), *server),
            "far": start("far", "knock", str(PORT), *server),
            "caged": start("caged", "knock", str(PORT), *friend),
        }
        self.guest = start("guest", "knock", str(PORT), *server)
        self.totals = {"echoed": 0, "tries": 0}

    def edit(self, *roles: str) -> None:
        """Apply the door's policy anew."""
        self.lab.apply(ADMITTED.format(namespace=self.space.namespace, roles=", ".join(roles)))

    def open(self, seconds: float = 30) -> None:
        """Let the guest in; returns when it was heard."""
        self.edit("friend", "guest")
        self.guest.report()
        self.lab.until("the guest is let in", lambda: bool(self.guest.report()["breaches"]), seconds)

    def shut(self, seconds: float = 30) -> None:
        """Let the guest in no more; returns when it was not heard for a quarter of a second."""
        self.edit("friend")

        def quiet() -> bool:
            self.guest.report()
            time.sleep(0.25)
            return not self.guest.report()["breaches"]

        self.lab.until("the guest is kept out", quiet, seconds)

    def unheard(self) -> None:
        """Nobody who may not was heard, at either end, since the last look."""
        for name, program in self.knockers.items():
            said = program.report()
            assert not said["breaches"], f"{name} got in: {said}"
            assert said["tries"], f"{name} does not knock"
            self.totals["tries"] += said["tries"]
        for end in (self.listener, self.outside):
            said = end.report()
            assert not said["breaches"], f"heard at the door: {said}"
            assert not said["broken"], said
            assert end is self.outside or not said["skipped"] or self.lossy, f"datagrams lost on the way: {said}"

    lossy = False

    def unbroken(self, *, lossy: bool = False) -> None:
        """No flow broke and (unless ``lossy``) no datagram was lost, and nobody was heard, since the last look."""
        self.lossy = lossy
        try:
            self.unheard()
        finally:
            self.lossy = False
        said = self.sender.report()
        assert not said["broken"], said
        assert said["echoed"], f"nothing came back: {said}"
        assert lossy or not sum(said["lost"].values()), said
        self.totals["echoed"] += said["echoed"]

    def flowing(self) -> None:
        """Every message of the last second came back: also those that waited in a stream."""

        def level() -> bool:
            self.sender.report()
            time.sleep(0.5)
            said = self.sender.report()
            return not said["broken"] and not said["lost"]["tcp"] and bool(said["echoed"] >= 0.9 * said["sent"] > 0)

        self.lab.until("all flows flow", level)


@contextmanager
def street(lab: Lab) -> Iterator[Traffic]:
    """Pods, policies and programs, all gone afterwards."""
    space = LabNamespace(lab, f"drill-{uuid.uuid4().hex[:8]}")
    lab.kubectl("create", "namespace", space.namespace)
    try:
        lab.apply(CAGE.format(namespace=space.namespace) + "---" + listener(space, "friend"))
        for name, node in PODS.items():
            space.pod(name, node, name, wait=False, kept=name in KEPT)
        for name in PODS:
            space.ready(name)
        with ExitStack() as stack:
            yield Traffic(space, stack)
    finally:
        lab.kubectl("delete", "namespace", space.namespace, "--wait=false")


def listener(space: LabNamespace, *roles: str) -> str:
    return ADMITTED.format(namespace=space.namespace, roles=", ".join(roles))


# --- the lab's agents and servers: its processes, or containers of its pods ---

SERVICES = ("cluster", "ipam", "policy", "dns")


def agents(lab: Lab) -> list[str]:
    """Names of all services' processes that are meant to run."""
    if lab.pods:
        listed = lab.get("pods", "--namespace", names.NAMESPACE, "--selector", f"{names.OURS},!{names.JOB}")["items"]
        labels = [(one["metadata"]["labels"][names.NAME], one["spec"].get("nodeName"), one) for one in listed]
        return [
            one["metadata"]["name"] if kind in SERVICES else f"{kind}-{host}"
            for kind, host, one in labels
            if kind != names.BUS and "deletionTimestamp" not in one["metadata"]
        ]
    entries = ledger.read(lab.where.ledger)
    return [entry.name for entry in entries if any(word.startswith("services.") for word in entry.argv)]


def service_of(name: str) -> str:
    """`ipam` of `ipam-1` and of a pod's name, `routing` of `routing-n1`."""
    return name.partition("-")[0]


def copies(lab: Lab, service: str) -> list[str]:
    """Names of the copies of a service (`cluster`, `ipam`…) that are meant to run, in order."""
    return sorted(name for name in agents(lab) if service_of(name) == service)


def servers(lab: Lab) -> list[str]:
    """Names of the NATS servers."""
    return [f"nats-{host.name}" for host in lab.topology.nodes] if lab.pods else ["nats"]


def stores(lab: Lab) -> list[Path]:
    """Where the NATS servers keep their streams."""
    if lab.pods:
        kept = Path("/var/lib/airmesh-nats/signed/jetstream")
        return [lab.where.node(host.name).on_host(kept) for host in lab.topology.nodes]
    return [lab.where.nats / "store"]


def ask(lab: Lab, verb: str, name: str) -> None:
    """Have the supervisor ``stop`` or ``restart`` a process."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(30)
        link.connect(str(lab.where.supervisor_socket))
        link.sendall(json.dumps({"verb": verb, "name": name}).encode() + b"\n")
        answer = json.loads(link.makefile().readline())
    assert not answer["error"], answer


def restart(lab: Lab, name: str, *, killed: bool) -> None:
    """End an agent, with -9 where it is ``killed``; returns when its supervisor, or kubelet, has started another."""
    if lab.pods:
        old = lab.kill(name, signal.SIGKILL if killed else signal.SIGTERM)
    else:
        old = lab.kill(name) if killed else lab.pid(name)
        ask(lab, "restart", name)
    reborn(lab, name, old)


def reborn(lab: Lab, name: str, old: int, seconds: float = 30) -> None:
    """Wait until the process has come back as another."""
    lab.until(f"{name} is back", lambda: lab.pid(name) not in (0, old), seconds)


def status(lab: Lab) -> dict[str, Any]:
    """`airmesh status`, as a person runs it."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        **lab.observer,
    }
    argv = [sys.executable, "-m", "cli", "status", "--output", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, env=environment, check=False)
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"well": False, "problems": [done.stderr], "agents": []}
    return said


def well(lab: Lab, seconds: float = 40) -> dict[str, Any]:
    """Wait until every agent is ready, every node acknowledges the same policy, and nothing is amiss."""
    end, count = time.monotonic() + seconds, len(agents(lab))
    while True:
        said = status(lab)
        if said["well"] and len(said["agents"]) == count:
            return said
        assert time.monotonic() < end, f"not well within {seconds} s: {said['problems']}, {len(said['agents'])} agents"
        time.sleep(0.3)


@contextmanager
def bus_down(lab: Lab) -> Iterator[None]:
    """All NATS servers killed, and nobody to start them until the end."""
    with _unscheduled(lab) if lab.pods else _unsupervised(lab):
        yield


@contextmanager
def _unsupervised(lab: Lab) -> Iterator[None]:
    supervisor = lab.pid("supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        lab.kill("nats")
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)


@contextmanager
def _unscheduled(lab: Lab) -> Iterator[None]:
    """The kubelets go on, since pods are to start meanwhile: it is the StatefulSet that wants none."""
    scale = ("scale", "--namespace", names.NAMESPACE, f"statefulset/{names.BUS}")
    lab.kubectl(*scale, "--replicas=0")
    try:
        for name in servers(lab):
            with suppress(AssertionError, ProcessLookupError):  # its pod is being ended already
                lab.kill(name)
        lab.until("no server runs", lambda: not any(lab.pid(name) for name in servers(lab)), 60)
        yield
    finally:
        lab.kubectl(*scale, f"--replicas={len(servers(lab))}")


@contextmanager
def asleep(lab: Lab, *names: str) -> Iterator[None]:
    """Processes that are stopped (SIGSTOP) and wake at the end."""
    pids = [lab.pid(name) for name in names]
    assert all(pids), names
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # a kubelet has ended what it found silent
                os.kill(pid, signal.SIGCONT)
