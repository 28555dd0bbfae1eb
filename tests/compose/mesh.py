"""The project of compose/ while a test has it up: its pages, an API server of its own, pods on its node, writers.

What must be so whatever fault there was is :meth:`Mesh.amiss`: nothing is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.images.engine import find_engine
from lab.compose import keys
from lab.compose.project import JUMP, Project
from tests.bpf.world import namespace
from tests.compose.writers import URLS, Writers

ROOT = Path(__file__).resolve().parents[2]
POD_PORT = 8080
ASK = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=5).read())"
"""A program that prints a page."""
CLOCK = "import time; print(time.time())"


def until(what: str, holds: Callable[[], bool], seen: Callable[[], object], seconds: float = 240) -> float:
    """Waits, and returns for how long; what is `seen` instead is said when it takes too long."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() < started + seconds, f"not within {seconds} s: {what}: {seen()}"
        time.sleep(0.5)
    return time.monotonic() - started


@contextmanager
def inside(project: Project, service: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine in the network namespace of a container; it reads what is written to its stdin."""
    enter = f"--net=/proc/{project.pids(service)[0]}/ns/net"
    with subprocess.Popen(["nsenter", enter, "--", *command], cwd=ROOT, stdin=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.terminate()
            running.wait(10)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the node: its namespace's name, and the addresses that it was given."""

    netns: str
    addresses: tuple[str, ...]


class Mesh:
    """The running project. ``api`` is the process of tests/compose/api.py."""

    def __init__(self, project: Project, api: subprocess.Popen[bytes], cni: Path, stack: ExitStack) -> None:
        self.project = project
        self.pods: dict[str, Pod] = {}
        self.writers = Writers(project.secrets)
        self._api, self._cni, self._stack = api, cni, stack
        self._services = sorted(project.services())
        self._pids: list[int] = []

    def ready(self) -> None:
        """Waits until all is as it should be, and remembers each container's process."""
        until("all are ready", lambda: not self.project.unwell(), self.project.unwell)
        until("three copies of each bucket", self.has_copies, self.copies)
        self._pids = self.project.pids(*self._services)
        self._stack.enter_context(self.writers)
        self.start_pod("first")
        serving = [
            sys.executable,
            "-m",
            "http.server",
            "--bind",
            "::",
            "--directory",
            str(self.project.state / "drill"),
            str(POD_PORT),
        ]
        where = ["ip", "netns", "exec", self.pods["first"].netns]
        self._stack.enter_context(_ended(subprocess.Popen([*where, *serving], stderr=subprocess.DEVNULL)))
        self.start_pod("second")

    # --- the servers

    def page(self, server: str, path: str) -> Any:
        """A page of a server's monitor; None when it does not answer."""
        try:
            enter = f"--net=/proc/{self.project.pids(server)[0]}/ns/net"
            command = ["nsenter", enter, "--", sys.executable, "-c", ASK, f"http://127.0.0.1:8222/{path}"]
            return json.loads(subprocess.run(command, capture_output=True, timeout=20, check=True).stdout)
        except (subprocess.SubprocessError, ValueError, LookupError):
            return None

    def leader(self, *but: str) -> str:
        """The server that leads the others, as all say but those named; empty while they do not agree."""
        pages = [self.page(server, "jsz") or {} for server in keys.SERVERS if server not in but]
        said = {str(page.get("meta_cluster", {}).get("leader", "")) for page in pages}
        return said.pop() if len(said) == 1 else ""

    def copies(self, *but: str) -> dict[str, tuple[int, int]]:
        """Of each bucket, as its leader says: how many copies there are, how many of them are current.

        Servers named are not asked.
        """
        found: dict[str, tuple[int, int]] = {}
        for server in keys.SERVERS:
            page = {} if server in but else self.page(server, "jsz?streams=true&config=true") or {}
            for account in page.get("account_details") or []:
                for stream in account.get("stream_detail") or []:
                    cluster = stream.get("cluster") or {}
                    if cluster.get("leader") == server:
                        others = cluster.get("replicas") or []
                        current = 1 + sum(bool(one.get("current")) and not one.get("offline") for one in others)
                        found[stream["name"]] = (stream["config"]["num_replicas"], current)
        return found

    def has_copies(self, current: int = 3, *but: str) -> bool:
        """Whether every bucket has three copies, so many of them current."""
        found = self.copies(*but)
        return len(found) > 5 and all(has == (3, current) for has in found.values())

    # --- the node

    def put(self, kind: str, written: dict[str, Any], name: str, space: str = "") -> None:
        """An object is in the API server."""
        assert self._api.stdin is not None
        self._api.stdin.write(json.dumps([kind, written, space, name]).encode() + b"\n")
        self._api.stdin.flush()

    def start_pod(self, name: str) -> float:
        """A pod starts on the node, tried again until it does; returns how long that took."""
        netns = self._stack.enter_context(namespace(f"am-compose-{name}"))
        metadata = {"uid": f"uid-{name}", "labels": {"app": name}}
        spec = {"nodeName": keys.NODE, "containers": [{"name": "app", "image": "app"}]}
        self.put("Pod", {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}, name, "default")
        said: list[Any] = []

        def given() -> bool:
            said[:] = [self._add(name, netns)]
            return "ips" in said[0]

        took = until(f"{name} has addresses", given, lambda: said)
        addresses = tuple(one["address"].split("/")[0] for one in said[0]["ips"])
        assert len(addresses) == 2, said
        self.pods[name] = Pod(netns, addresses)
        status = {"phase": "Running", "podIP": addresses[0], "podIPs": [{"ip": one} for one in addresses]}
        self.put("Pod", {"metadata": metadata, "spec": spec, "status": status}, name, "default")
        return took

    def _add(self, name: str, netns: str) -> Any:
        given = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": name,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": f"/run/netns/{netns}",
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}",
        }
        socket = str(self.project.state / "node" / "run" / "cni.sock")
        conf = {"cniVersion": "1.1.0", "name": "airmesh", "type": "airmesh-cni", "socket": socket}
        done = subprocess.run(
            [str(self._cni)], env=given, input=json.dumps(conf).encode(), capture_output=True, timeout=120, check=False
        )
        return json.loads(done.stdout or b"{}")

    def unreached(self) -> list[str]:
        """Which pods do not reach the first one, in which family."""
        found = []
        for name, pod in self.pods.items():
            for address in self.pods["first"].addresses:
                url = f"http://[{address}]:{POD_PORT}/" if ":" in address else f"http://{address}:{POD_PORT}/"
                asked = ["ip", "netns", "exec", pod.netns, sys.executable, "-c", ASK, url]
                if subprocess.run(asked, capture_output=True, timeout=20, check=False).returncode:
                    found.append(f"{name} to {address}")
        return found

    def moved(self) -> dict[str, object]:
        """Pods whose addresses are not those that they were given, as `airmesh pods` or their interface says."""
        reported = {}
        for url in URLS:
            given = {
                **os.environ,
                "AIRMESH_NATS": url,
                "AIRMESH_NATS_SEED_FILE": str(self.project.secrets / "seeds" / "cli.seed"),
                "AIRMESH_NATS_CA_FILE": str(self.project.secrets / "ca.crt"),
            }
            asked = [sys.executable, "-m", "cli", "pods", "-o", "json"]
            done = subprocess.run(asked, cwd=ROOT, env=given, capture_output=True, timeout=60, check=False)
            if done.returncode == 0:
                reported = {one["pod"]: set(one["addresses"]) for one in json.loads(done.stdout)["pods"]}
                break
        found: dict[str, object] = {}
        for name, pod in self.pods.items():
            has = reported.get(name, set())
            if has != set(pod.addresses):
                found[name] = f"has {pod.addresses}, and the mesh says {sorted(has)}"
            elif not has <= _interface(pod.netns):
                found[name] = f"has {pod.addresses}, and its interface {sorted(_interface(pod.netns))}"
        every = [address for pod in self.pods.values() for address in pod.addresses]
        if len(set(every)) != len(every):
            found["twice"] = every
        return found

    def clock(self, service: str) -> float:
        """How far a service's wall clock is from this machine's, in seconds; its process has libfaketime."""
        (pid,) = self.project.pids(service)
        family = [str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        assert any("faketime.so" in Path(f"/proc/{one}/maps").read_text() for one in family)
        says = find_engine().run("exec", self.project.container(service), "/usr/bin/python3.11", "-c", CLOCK)
        return float(says) - time.time()

    # --- all of it

    def ended(self) -> dict[str, str]:
        """Containers whose process is not the one that it was: none may end, whatever the fault."""
        now = self.project.pids(*self._services)
        at = zip(self._services, self._pids, now, strict=True)
        return {name: f"process {before} is now {after}" for name, before, after in at if before != after}

    def amiss(self) -> str:
        """The first thing that is not as it should be."""
        checks: dict[str, Callable[[], object]] = {
            "ended": self.ended,
            "copies": lambda: {} if self.has_copies() else self.copies(),
            "acknowledged, and gone": self.writers.lost,
            "addresses": self.moved,
            "unreached": self.unreached,
            "not ready": self.project.unwell,
        }
        for what, look in checks.items():
            if seen := look():
                return f"{what}: {seen}"
        return ""

    def goes_on(self, name: str) -> None:
        """While a fault is there: writes are acknowledged, a pod starts, pods reach one another, nothing was lost."""
        before = self.writers.sum()
        until("writes are acknowledged", lambda: self.writers.sum() > before + 30, lambda: self.writers.acknowledged)
        took = self.start_pod(name)
        until("pods reach one another", lambda: not self.unreached(), self.unreached)
        assert self.writers.lost() == {}
        assert self.ended() == {}
        print(f"{name}: a pod started within {took:.1f} s", flush=True)

    @contextmanager
    def fault(self, overlay: str, jump: str = JUMP) -> Iterator[None]:
        """An overlay's fault is there meanwhile; all is as before when this ends."""
        self.writers.waited = 0.0
        self.project.fault(overlay, jump)
        try:
            yield
        finally:
            self.project.heal(overlay)
        took = until("all is as before", lambda: not self.amiss(), self.amiss)
        waited = self.writers.waited
        print(f"{overlay}: writes waited {waited:.1f} s at most, whole {took:.0f} s after the fault", flush=True)


def _interface(netns: str) -> set[str]:
    asked = ["ip", "-n", netns, "-j", "address", "show", "dev", "eth0"]
    said = json.loads(subprocess.run(asked, capture_output=True, timeout=20, check=True).stdout)
    return {one["local"] for one in said[0]["addr_info"]}


@contextmanager
def _ended(running: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        running.kill()
        running.wait()


def query(asked: str) -> dict[str, float]:
    """What Prometheus has of each instance, as it says on the port of the machine's loopback."""
    url = f"http://127.0.0.1:{os.environ['AIRMESH_PROMETHEUS_PORT']}/api/v1/query?query={urllib.parse.quote(asked)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    return {one["metric"]["instance"]: float(one["value"][1]) for one in found}


def traced() -> set[str]:
    """Services of which Jaeger has spans."""
    with urllib.request.urlopen(
        f"http://127.0.0.1:{os.environ['AIRMESH_JAEGER_PORT']}/api/services", timeout=10
    ) as answer:
        return set(json.load(answer)["data"] or ())
