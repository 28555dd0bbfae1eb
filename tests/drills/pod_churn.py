"""Pods that come and go on every node of a lab, so many a second: by its kubelets, and for the rest by the drill.

A pod of the first kind is whole: sandbox, container, readiness. Kubelets make as many as they can beside everything
else. A pod of the second kind is an object of the API like any other, with a volume that is not there: its kubelet
waits for that, and never starts it. Meanwhile the drill does what a runtime would do: it calls the node's CNI
executable with ADD and DEL for this pod, in a network namespace of its own. Both go through every agent: API object,
identity, policy, address, link, maps. What is missing in the second is containerd, runc and the kubelet's part.

A call that is refused is said again, as a kubelet does: agents die meanwhile. Times are seconds.
"""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.cluster import node
from services.dataplane.cni.conf import NAME as CONFLIST
from tests.journeys.conftest import IMAGE
from tests.labkit import Lab

RATE = 5.0
"""Pods that begin in a second, of both kinds."""
BY_KUBELET, BY_DRILL = 3, 6
"""At one time on each node. On two cores that had other work, too, that made 0.6 and 2.9 pods a second."""
PATIENCE = 120.0
"""Until a pod is ready, is linked, or is gone: an agent and a server may be killed meanwhile."""
CALL_SECONDS = 70.0
BEHIND = 5.0
"""Of what was missed no more is made good than so many seconds of it."""
LABELS = 40
"""Different sets of labels of pods: as many identities, most of which come and go."""

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: some, namespace: {namespace}}}
spec:
  podSelector: {{}}
  policyTypes: [Ingress]
  ingress: [{{from: [{{podSelector: {{matchLabels: {{app: a0}}}}}}]}}]
"""


@dataclass(slots=True)
class Pace:
    """When the next pod may begin. No clock: times are arguments."""

    rate: float
    due: float
    """When the next one is due."""

    def count(self, now: float) -> None:
        """One has begun."""
        self.due = max(self.due, now - BEHIND) + 1 / self.rate

    def wait(self, now: float) -> float:
        """Seconds until one may begin; 0: now."""
        return max(0.0, self.due - now)


class Refused(Exception):
    """The API server did not do what it was asked."""


class Client:
    """A connection to a lab's API server, as the administrator; for one thread."""

    def __init__(self, lab: Lab) -> None:
        trust = ssl.create_default_context(cafile=str(lab.where.pki / "ca.crt"))
        trust.load_cert_chain(lab.where.pki / "admin.crt", lab.where.pki / "admin.key")
        self._link = http.client.HTTPSConnection("127.0.0.1", lab.api_port, timeout=30, context=trust)

    def call(self, verb: str, path: str, body: object = None, *, absent: bool = False) -> dict[str, Any]:
        """What it answers; ``absent``: that there is none is an answer, too, and empty. Raises `Refused`."""
        written = None if body is None else json.dumps(body)
        try:
            self._link.request(verb, path, written, {"Content-Type": "application/json"})
            answer = self._link.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._link.close()
            raise Refused(f"{verb} {path}: {error}") from error
        if absent and answer.status == 404:
            return {}
        if answer.status >= 300:
            raise Refused(f"{verb} {path}: {answer.status} {said[:300]!r}")
        return dict(json.loads(said))

    def close(self) -> None:
        self._link.close()


@dataclass(slots=True)
class PodChurn:
    """What is done on all nodes; made by :func:`churning`."""

    lab: Lab
    namespace: str
    spaces: dict[str, list[str]]
    """Network namespaces of each node."""
    counts: Counter[str] = field(default_factory=Counter)
    """``kubelet`` and ``drill``: pods that came and went. ``again``: calls of CNI that were refused."""
    failures: list[str] = field(default_factory=list)
    _number: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pace: Pace = field(default_factory=lambda: Pace(RATE, 0.0))
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Pods come and go until the end, when all of them are gone."""
        self._over.clear()
        self._pace.due = time.monotonic()
        work: list[Callable[[Client], None]] = []
        for name, spaces in self.spaces.items():
            work += [lambda client, name=name: self._by_kubelet(client, name)] * BY_KUBELET  # type: ignore[misc]
            work += [lambda client, name=name, one=one: self._by_drill(client, name, one) for one in spaces]  # type: ignore[misc]
        threads = [threading.Thread(target=self._work, args=(one,), daemon=True) for one in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(3 * PATIENCE)

    def _work(self, one: Callable[[Client], None]) -> None:
        client = Client(self.lab)
        while not self._over.is_set():
            try:
                one(client)
            except (Refused, AssertionError, OSError, subprocess.SubprocessError, ValueError) as error:
                self.failures.append(str(error)[:500])
                self._over.wait(1)
        client.close()

    def _begin(self, what: str) -> str:
        """The name of a pod that begins now."""
        with self._lock:
            self._pace.count(time.monotonic())
            self._number += 1
            return f"{what}-{self._number}"

    def _make(self, client: Client, name: str, on: str, spec: dict[str, Any]) -> str:
        """Its uid."""
        labels = {"app": f"a{int(name.rpartition('-')[2]) % LABELS}"}
        common = {"nodeName": on, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False}
        container = {"name": "shop", "image": IMAGE}
        made = {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container], **common, **spec}}
        return str(client.call("POST", self._path(), made)["metadata"]["uid"])

    def _path(self, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods" + (f"/{name}" if name else "")

    def _by_kubelet(self, client: Client, on: str) -> None:
        name = self._begin("whole")
        self._make(client, name, on, {})
        try:
            _until(f"{name} is ready", lambda: _is_ready(client.call("GET", self._path(name))))
        finally:
            client.call("DELETE", self._path(name), absent=True)
        _until(f"{name} is gone", lambda: not client.call("GET", self._path(name), absent=True))
        self.counts["kubelet"] += 1

    def _by_drill(self, client: Client, on: str, space: str) -> None:
        with self._lock:
            pause = self._pace.wait(time.monotonic())
        if pause:
            self._over.wait(pause)
            return
        name = self._begin("linked")
        absent = [{"name": "absent", "secret": {"secretName": "never-there"}}]
        uid = self._make(client, name, on, {"volumes": absent})
        try:
            try:
                self._call(on, "ADD", name, uid, space)
            finally:
                self._call(on, "DEL", name, uid, space)
        finally:
            client.call("DELETE", self._path(name), {"gracePeriodSeconds": 0}, absent=True)
        self.counts["drill"] += 1

    def _call(self, on: str, verb: str, name: str, uid: str, space: str) -> None:
        """Until it succeeds, as a kubelet insists."""
        end, said = time.monotonic() + PATIENCE, ""
        while time.monotonic() < end:
            code, said = cni(
                self.lab, on, verb, {"K8S_POD_NAMESPACE": self.namespace, "K8S_POD_NAME": name}, uid, space
            )
            if not code:
                return
            self.counts["again"] += 1
            time.sleep(0.5)
        raise AssertionError(f"{verb} {name} on {on}: {said}")


def cni(lab: Lab, on: str, verb: str, pod: dict[str, str], uid: str, space: str) -> tuple[int, str]:
    """One call of a node's own executable: exit code and answer. The container's id follows from the pod's uid."""
    of = lab.where.node(on)
    document = json.loads((of.on_host(node.CNI_CONF) / CONFLIST).read_text())
    (plugin,) = document["plugins"]
    socket = of.on_host(Path(plugin["socket"]))
    conf = {**plugin, "cniVersion": document["cniVersion"], "name": document["name"], "socket": str(socket)}
    arguments = ";".join(f"{key}={value}" for key, value in {"IgnoreUnknown": "1", **pod, "K8S_POD_UID": uid}.items())
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": uid.replace("-", ""),
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": f"/run/netns/{space}",
        "CNI_ARGS": arguments,
        "CNI_PATH": str(node.CNI_BIN),
    }
    program = str(of.on_host(node.CNI_BIN) / "airmesh-cni")
    done = subprocess.run(
        [program],
        input=json.dumps(conf),
        env=environment,
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _until(what: str, true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.25)


@contextmanager
def churning(lab: Lab, namespace: str) -> Iterator[PodChurn]:
    """A namespace with a policy, and network namespaces on each node; all gone afterwards."""
    with ExitStack() as stack:
        spaces = {host.name: list(_spaces(lab, host.name, stack)) for host in lab.topology.nodes}
        lab.kubectl("create", "namespace", namespace)
        stack.callback(lab.kubectl, "delete", "namespace", namespace, "--wait=false")
        lab.until("it has an account", lambda: bool(lab.get("serviceaccounts", "--namespace", namespace)["items"]))
        lab.apply(POLICY.format(namespace=namespace))
        yield PodChurn(lab=lab, namespace=namespace, spaces=spaces)


def _spaces(lab: Lab, on: str, stack: ExitStack) -> Iterator[str]:
    """In the mount namespace of the node's runtime: its agents see them at the same path, as those of pods."""
    within = ["nsenter", f"--mount=/proc/{lab.pid('containerd-' + on)}/ns/mnt", "--", "ip", "netns"]
    for number in range(BY_DRILL):
        name = f"am-soak-{number}"
        subprocess.run([*within, "add", name], check=True, timeout=30, capture_output=True)
        stack.callback(subprocess.run, [*within, "del", name], check=True, timeout=30, capture_output=True)
        yield name
