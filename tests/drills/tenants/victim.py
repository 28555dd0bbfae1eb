"""The tenant that is attacked: what it goes on doing, and what is measured of it.

On the street of ``tests/drills/traffic.py``: 50 TCP and 50 UDP flows from `friend` to `server`, 20 new connections a
second beside them, look-ups of names, pods that start one after the other, and an edit of the door's policy whenever
the one before is in force. Whatever goes wrong is written down with its moment.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.topology import CLUSTER_DNS
from tests.drills.tenants.api import Api, Refused, pods, policies
from tests.drills.traffic import PORT, Program, Traffic
from tests.journeys.conftest import IMAGE

VISITS = Path(__file__).with_name("visits.py")
CONNECTIONS, LOOKUPS = 20, 5
NAMES = ("kubernetes.default.svc.cluster.local", "kube-dns.kube-system.svc.cluster.local")
START_NODES = ("n1", "n2")
START_EVERY = 1.5
"""Seconds from one start to the next, by turns a pod of the mesh and one of the host's network."""
EDIT_PAUSE = 0.5
LOOK_EVERY = 1.0
PATIENCE = 30.0
"""Seconds for a start or an edit before it is written down as one that never came."""
QUIET = 0.4
"""Seconds without the guest being heard before it counts as kept out."""
_AT = re.compile(r" at ([0-9.]+)$")


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that broke, and when."""

    at: float
    what: str


@dataclass(slots=True)
class Phase:
    """What was measured between two moments; times in seconds."""

    name: str
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    starts: list[float] = field(default_factory=list)
    """From creating a pod to its being Ready."""
    hosts: list[float] = field(default_factory=list)
    """The same of pods on the host's network, which have no address of the mesh's: what Kubernetes itself takes."""
    edits: list[float] = field(default_factory=list)
    """From the request to the last packet (or the first) that the edit decided on."""
    connects: list[float] = field(default_factory=list)
    lookups: list[float] = field(default_factory=list)
    echoed: int = 0
    lost: int = 0
    """Datagrams that did not come back in two seconds."""
    sent: int = 0
    failures: list[Failure] = field(default_factory=list)

    def summary(self) -> str:
        """The figures, on one line."""
        took = ", ".join(
            f"{what} {len(values)} (p50 {share(values, 0.5):.3f} s, p99 {share(values, 0.99):.3f} s)"
            for what, values in (
                ("pod starts", self.starts),
                ("of the host's network", self.hosts),
                ("policy edits", self.edits),
                ("connections", self.connects),
                ("look-ups", self.lookups),
            )
        )
        span = (self.ended or time.time()) - self.began
        return f"{self.name}: {span:.0f} s, {took}, messages {self.sent}, datagrams lost {self.lost}"


def share(values: list[float], part: float) -> float:
    """The value that so great a part does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


class Victim:
    """See the module. Made by :func:`victim`; ``phase`` is what is being measured now."""

    def __init__(self, traffic: Traffic, stack: ExitStack, patience: float) -> None:
        self.traffic, self.lab = traffic, traffic.lab
        self.namespace = traffic.space.namespace
        self.phase = Phase("before")
        self._over = threading.Event()
        friend = traffic.pids["friend"]
        server = traffic.addresses["server"]

        def start(*arguments: str) -> Program:
            program = Program(friend, *arguments, program=VISITS)
            stack.callback(program.close)
            return program

        self.visitor = start("visit", str(PORT), str(CONNECTIONS), str(patience), *server)
        self.resolver = start("resolve", str(CLUSTER_DNS), str(LOOKUPS), *NAMES)
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._watch, self._start_pods, self._edit)
        ]
        for thread in self._threads:
            thread.start()

    def enter(self, name: str) -> Phase:
        """Begin another phase; the one that ends is returned by the next call's predecessor, kept by the caller."""
        self.phase.ended = time.time()
        self.phase = Phase(name)
        return self.phase

    def close(self) -> None:
        """Stop, and wait for what is under way."""
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE + 10)
        self.phase.ended = time.time()

    def fail(self, what: str, at: float | None = None) -> None:
        """Write down what broke."""
        self.phase.failures.append(Failure(time.time() if at is None else at, what))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.fail(f"the drill's own {work.__name__} ended: {error!r}")

    # --- flows, connections, names ---

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            phase = self.phase
            for name, program in self.traffic.knockers.items():
                for breach in program.report()["breaches"]:
                    self.fail(f"forbidden: {name} got in: {breach}", _moment(breach))
            for name, program in (("server", self.traffic.listener), ("friend", self.traffic.outside)):
                said = program.report()
                for breach in said["breaches"]:
                    self.fail(f"forbidden: heard at {name}: {breach}", _moment(breach))
                for broken in said["broken"]:
                    self.fail(f"flow broken, as {name} sees it: {broken}")
            said = self.traffic.sender.report()
            for broken in said["broken"]:
                self.fail(f"flow broken, as friend sees it: {broken}")
            if not said["echoed"]:
                self.fail(f"no flow had any echo: {said}")
            phase.sent, phase.echoed = phase.sent + said["sent"], phase.echoed + said["echoed"]
            phase.lost += said["lost"]["udp"]
            for what, program, into in (
                ("new connection", self.visitor, phase.connects),
                ("look-up", self.resolver, phase.lookups),
            ):
                said = program.report()
                into.extend(milliseconds / 1000 for milliseconds in said["took"])
                for failed in said["failed"]:
                    self.fail(f"{what} failed: {failed}")

    # --- pods ---

    def _start_pods(self) -> None:
        api, count = Api(self.lab), 0
        while not self._over.is_set():
            name, node, on_host = f"start-{count}", START_NODES[count // 2 % len(START_NODES)], bool(count % 2)
            count += 1
            phase, began = self.phase, time.monotonic()
            api.create(pods(self.namespace), _pod(name, node, on_host=on_host))
            while not (ready := _is_ready(api, self.namespace, name)) and time.monotonic() - began < PATIENCE:
                time.sleep(0.05)
            took = time.monotonic() - began
            if ready:
                (phase.hosts if on_host else phase.starts).append(took)
            else:
                self.fail(f"pod {name} on {node} is not Ready after {took:.1f} s: {self._why(api, name)}")
            api.delete(pods(self.namespace, name))
            self._over.wait(max(0.0, began + START_EVERY - time.monotonic()))

    def _why(self, api: Api, name: str) -> str:
        found = api.call("GET", f"/api/v1/namespaces/{self.namespace}/events?fieldSelector=involvedObject.name={name}")
        return "; ".join(str(one["message"])[:300] for one in found["items"][-3:])

    # --- edits ---

    def _edit(self) -> None:
        api = Api(self.lab)
        while not self._over.is_set():
            for wanted in (True, False):
                phase, guest = self.phase, self.traffic.guest
                guest.report()
                began = time.time()
                roles = ["friend", "guest"] if wanted else ["friend"]
                api.merge(policies(self.namespace, "door"), {"spec": {"ingress": [{"from": [_roles(roles)]}]}})
                decided = self._heard(began) if wanted else self._silent(began)
                if decided is None:
                    word = "let in" if wanted else "kept out"
                    self.fail(f"an edit at {began:.3f}: the guest is not {word} after {PATIENCE} s", began)
                else:
                    phase.edits.append(max(0.0, decided - began))
                self._over.wait(EDIT_PAUSE)

    def _heard(self, began: float) -> float | None:
        """When the guest was first heard."""
        while time.time() - began < PATIENCE:
            times = [_moment(breach) for breach in self.traffic.guest.report()["breaches"]]
            if times:
                return min(times)
            time.sleep(0.05)
        return None

    def _silent(self, began: float) -> float | None:
        """When the guest was last heard."""
        last = began
        while time.time() - began < PATIENCE:
            last = max([last, *(_moment(breach) for breach in self.traffic.guest.report()["breaches"])])
            if time.time() - last > QUIET:
                return last
            time.sleep(0.05)
        return None


def _moment(breach: str) -> float:
    found = _AT.search(breach)
    return float(found[1]) if found else time.time()


def _roles(roles: list[str]) -> dict[str, Any]:
    return {"podSelector": {"matchExpressions": [{"key": "role", "operator": "In", "values": roles}]}}


def _pod(name: str, node: str, *, on_host: bool) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"role": "started"}},
        "spec": {
            "nodeName": node,
            "hostNetwork": on_host,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "shop", "image": IMAGE}],
        },
    }


def _is_ready(api: Api, namespace: str, name: str) -> bool:
    with suppress(Refused):
        status = api.call("GET", pods(namespace, name))["status"]
        return any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))
    return False


@contextmanager
def victim(traffic: Traffic, patience: float) -> Iterator[Victim]:
    """All of it runs until the end; a new connection may take ``patience`` seconds."""
    with ExitStack() as stack:
        made = Victim(traffic, stack, patience)
        stack.callback(made.close)
        yield made
