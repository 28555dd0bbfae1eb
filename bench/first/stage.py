"""The lab that is measured, and how programs are run in its corners.

Owns the lab `bench` for the time of a run (brought up when it is not there), the folder of compiled programs, and
every process and namespace it starts, all of which are gone when the `with` ends. Promises that everything runs in
namespaces whose names begin with `am-bench-`, which `lab down` would remove too after a crash.

Durations in seconds. CPUs: `pinned` runs a program on CPU 0 alone; client and server on one CPU make the time of a
transaction the sum of all that is executed for it, on both ends and in between, free of wake-ups between CPUs.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from chassis.bus import tls
from lab import topology
from lab.cluster import launch, ledger, mesh, namespaces, port_forward
from lab.cluster.record import read_record
from lab.paths import SOURCE, paths, settings
from lab.topology import Host

NAME = "bench"
CPU = "0"
PROGRAMS = ("spawner", "rr", "bulk", "pps", "frames")
_FOLDER = Path(__file__).parent


class Stage:
    """The lab `bench`, up."""

    def __init__(self, scratch: Path, stack: ExitStack) -> None:
        self.where = paths(NAME, settings())
        record = read_record(self.where)
        if record is None or not record.finished:
            raise SystemExit(f"lab {NAME} is not up: python -m lab up --name {NAME}")
        self.plan = record.topology
        self.scratch = scratch
        self._stack = stack

    @property
    def nats_url(self) -> str:
        """The NATS server, through the loopback port."""
        return f"nats://127.0.0.1:{port_forward.read_ports(self.where.ports).nats}"

    @property
    def trust(self) -> dict[str, Any]:
        """What a plain NATS client needs to speak to the server."""
        return tls.options(mesh.authority(self.where))

    def seed(self, user: str) -> Path:
        """File with the nkey seed of a NATS user."""
        return mesh.seed_file(self.where, user)

    def node(self, name: str) -> Host:
        """`n1`… or `cp`."""
        return next(host for host in self.plan.hosts if host.name == name)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl printed."""
        return self.run([launch.kubectl(), f"--kubeconfig={self.where.kubeconfig}", *arguments], stdin=stdin)

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *documents: Mapping[str, Any], verb: str = "apply") -> None:
        """Give objects to kubectl in one list."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        arguments = ("apply", "--server-side", "-f", "-") if verb == "apply" else (verb, "-f", "-")
        self.kubectl(*arguments, stdin=json.dumps(listed))

    def pid(self, name: str) -> int:
        """Pid of a process of the lab. Raises `SystemExit` when it is not running."""
        alive = {entry.name: entry.pid for entry in ledger.alive(ledger.read(self.where.ledger))}
        if name not in alive:
            raise SystemExit(f"{name} is not running in lab {NAME}")
        return alive[name]

    def pids(self) -> dict[str, int]:
        """Every process of the lab by name."""
        return {entry.name: entry.pid for entry in ledger.alive(ledger.read(self.where.ledger))}

    @staticmethod
    def run(argv: Sequence[str], *, stdin: str = "", seconds: float = 120) -> str:
        """Standard output of a command. Raises `SystemExit` with its words when it fails."""
        done = subprocess.run(list(argv), input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(argv)[:300]}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
        return done.stdout

    def program(self, name: str) -> str:
        """Path of a compiled program of this folder."""
        return str(self.scratch / name)

    def pinned(self, netns: str, program: str, *arguments: str) -> str:
        """What a program printed that ran on CPU 0 in a network namespace (a path)."""
        argv = ["nsenter", f"--net={netns}", "taskset", "-c", CPU, self.program(program), *arguments]
        return self.run(argv)

    def background(self, netns: str, *argv: str, log: str = "background") -> int:
        """Start something in a network namespace that ends with the stage; its pid."""
        with (self.scratch / f"{log}.log").open("ab") as out:
            child = subprocess.Popen(
                ["nsenter", f"--net={netns}", *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

        def end() -> None:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

        self._stack.callback(end)
        return child.pid

    def serve(self, netns: str, program: str, port: int) -> None:
        """Start the serving end of a program on CPU 0."""
        self.background(netns, "taskset", "-c", CPU, self.program(program), "serve", str(port))

    def namespace(self, name: str) -> str:
        """Make the namespace `am-bench-<name>`, removed with the stage; its path."""
        full = topology.prefix(NAME) + name
        self.run(["ip", "netns", "add", full])
        self._stack.callback(subprocess.run, ["ip", "netns", "delete", full], check=False, capture_output=True)
        self.run(["ip", "-n", full, "link", "set", "lo", "up"])
        return str(namespaces.NETNS / full)

    def ip(self, netns: str, *commands: str) -> None:
        """`ip` commands inside a namespace."""
        self.run(["ip", "-n", Path(netns).name, "-batch", "-"], stdin="\n".join(commands) + "\n")

    def finally_(self, action: Callable[[], object]) -> None:
        """Do this when the stage ends, last asked first."""
        self._stack.callback(action)

    def until(self, what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for a state. Raises `SystemExit` naming it."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise SystemExit(f"{what}: not within {seconds:.0f} s")
            time.sleep(0.1)

    def pods_namespace(self) -> str:
        """A Kubernetes namespace for one benchmark, deleted with the stage."""
        name = f"bench-{secrets.token_hex(3)}"
        self.kubectl("create", "namespace", name)
        self.finally_(lambda: self.kubectl("delete", "namespace", name, "--wait=false"))
        return name

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """A process of the lab stands still meanwhile."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def stage() -> Iterator[Stage]:
    """The lab, brought up if it is not (then it stays up), with compiled programs."""
    subprocess.run([sys.executable, "-m", "lab", "up", "--name", NAME], cwd=SOURCE, check=True, stdout=sys.stderr)
    scratch = Path(tempfile.mkdtemp(prefix="airmesh-bench-"))
    try:
        for program in PROGRAMS:
            source = str(_FOLDER / f"{program}.c")
            subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", str(scratch / program), source], check=True)
        with ExitStack() as stack:
            yield Stage(scratch, stack)
    finally:
        shutil.rmtree(scratch)
