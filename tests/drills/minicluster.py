"""A few nodes of the mesh in namespaces, to be hurt: real NATS, ipam, policy and dataplanes, the real CNI executable.

There is no Kubernetes here, so nobody but the drill asks for pods: it plays ``cluster`` (objects) and the container
runtime (CNI). Pools, rests and graces are the drill's to choose. The drill's thread is in the hub's namespace, where
NATS, ipam and policy live; every node has a namespace of its own on the hub's bridge.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from chassis.bus.client import Bus
from chassis.faults import Fault
from proto.codec import kind_prefix, object_key
from proto.objects import KINDS, IPPool, KubernetesObject, Namespace, Node
from proto.subjects import OBJECTS
from proto.sync import Complete, complete_key
from tests.bpf.world import bpffs, inside, namespace, run
from tests.natsd import NatsServer
from tests.node_annotations import annotated_nodes

REPOSITORY = Path(__file__).resolve().parents[2]
CGROUPS = Path("/sys/fs/cgroup/unified")
CACHE = Path(os.environ.get("AIRMESH_BPF_CACHE") or Path.home() / ".cache" / "airmesh" / "bpf")
HUB = "172.30.0.1"
UP_SECONDS = 60.0
ON_NODES = ("dataplane", "routing")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the executable said. ``code``: the CNI error code, 0 for success, -1 when it was killed."""

    code: int
    body: dict[str, Any]

    @property
    def addresses(self) -> list[str]:
        return [entry["address"].split("/")[0] for entry in self.body.get("ips", [])]


@dataclass(frozen=True, slots=True)
class PodRef:
    """The names that a runtime passes for a pod."""

    namespace: str
    name: str
    uid: str


class MiniCluster:
    """See the module; made by :func:`minicluster`."""

    def __init__(self, folder: Path, label: str, nodes: Sequence[str], settings: dict[str, str]) -> None:
        self.folder = folder
        self.label = label
        self.nodes = tuple(nodes)
        self.settings = settings
        self.program: tuple[str, ...] = ("-m",)
        """What Python runs a service's module by."""
        self.executable = folder / "airmesh-cni"
        self.nats = NatsServer(folder / "nats", self.nodes, host="0.0.0.0")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, list[int]] = {}
        source = REPOSITORY / "services/dataplane/cni/airmesh-cni.c"
        run("musl-gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(self.executable), str(source))

    def netns(self, node: str) -> str:
        """Network namespace of a node."""
        return f"{self.label}-{node}"

    def socket(self, node: str) -> Path:
        return self.folder / node / "cni.sock"

    # --- objects, as `cluster` writes them ---

    async def make_buckets(self, bus: Bus) -> None:
        epochs = await bus.make_buckets()
        for kind in KINDS:
            await bus.bucket(OBJECTS).put(complete_key(kind_prefix(kind)), Complete(epoch=epochs["objects"]))

    async def put(self, bus: Bus, *objects: KubernetesObject) -> None:
        """Objects are there; waits for a NATS that is down."""
        for one in objects:
            await _insist(lambda one=one: bus.bucket(OBJECTS).put(object_key(one), one))  # type: ignore[misc]

    async def take(self, bus: Bus, *objects: KubernetesObject) -> None:
        """Objects are gone."""
        for one in objects:
            await _insist(lambda one=one: bus.bucket(OBJECTS).delete(object_key(one)))  # type: ignore[misc]

    # --- processes ---

    @property
    def services(self) -> list[str]:
        """`dataplane-n1`, `ipam-1`…"""
        return sorted(self._processes)

    def start(self, name: str) -> None:
        """A service by its name, `dataplane-n1` or `ipam-1`; its log is `<name>.log`."""
        service, _, which = name.partition("-")
        on_node = service in ON_NODES
        own = self._of_node(which) if on_node else {}
        user = name if on_node else service
        environment = {**os.environ, **self.nats.environment(user), **own, **self.settings, "AIRMESH_INSTANCE": name}
        environment["AIRMESH_NATS_URL"] = f"nats://{HUB}:{self.nats.port}"
        where = self.netns(which) if on_node else self.label
        command = self.command(name, f"/run/netns/{where}", environment)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)

    def command(self, name: str, netns: str, _environment: Mapping[str, str]) -> list[str]:
        """What runs a service in a network namespace; it ends when this ends."""
        return ["nsenter", f"--net={netns}", "--", sys.executable, *self.program, f"services.{name.partition('-')[0]}"]

    def _of_node(self, node: str) -> dict[str, str]:
        return {
            "AIRMESH_NODE": node,
            "AIRMESH_STATE_DIR": str(self.folder / node / "state"),
            "AIRMESH_UPLINKS": "fab0",
            "AIRMESH_PIN_ROOT": str(self.folder / node / "bpffs"),
            "AIRMESH_CGROUP": str(CGROUPS / self.netns(node)),
            "AIRMESH_CNI_SOCKET": str(self.socket(node)),
            "AIRMESH_CNI_CONF_DIR": str(self.folder / node / "cni"),
            "AIRMESH_BPF_CACHE": str(CACHE),
        }

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Ends a service that runs; its exit status."""
        process = self._processes.pop(name)
        self.signal(name, process, number)
        return process.wait(60)

    def signal(self, name: str, process: subprocess.Popen[bytes], number: int) -> None:
        """Sends a service a signal."""
        process.send_signal(number)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def fallen(self) -> list[str]:
        """Services that ended though nobody asked them to."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def troubles(self) -> list[str]:
        """Lines of any log that no drill may cause: bugs, tracebacks."""
        return [
            f"{path.stem}: {line[:2000]}"
            for path in sorted(self.folder.glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()
            if line.startswith("Traceback") or '"bug":true' in line.replace(" ", "")
        ]

    def tails(self) -> str:
        return "\n---\n".join(f"{name}: {self.log(name)[-1500:]}" for name in self.services)

    # --- the runtime ---

    async def cni(
        self,
        node: str,
        verb: str,
        container: str = "",
        netns: str = "",
        pod: PodRef | None = None,
        *,
        killed_after: float | None = None,
        environment: Mapping[str, str] | None = None,
        conf: Mapping[str, Any] | None = None,
    ) -> Answer:
        """One call of the executable; ``killed_after`` seconds it is killed with -9. ``environment`` and ``conf``:
        what differs from a good call.
        """
        env = {"CNI_COMMAND": verb, "CNI_PATH": "/opt/cni/bin"}
        if container:
            env |= {"CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
        if netns:
            env["CNI_NETNS"] = f"/run/netns/{netns}"
        if pod is not None:
            arguments = f"K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};K8S_POD_UID={pod.uid}"
            env["CNI_ARGS"] = f"IgnoreUnknown=1;{arguments}"
        document = {
            "cniVersion": "1.1.0",
            "name": "airmesh",
            "type": "airmesh-cni",
            "socket": str(self.socket(node)),
            **(conf or {}),
        }
        child = await asyncio.create_subprocess_exec(
            str(self.executable),
            env={**env, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        talk = asyncio.create_task(child.communicate(json.dumps(document).encode()))
        if killed_after is not None:
            await asyncio.wait([talk], timeout=killed_after)
            with suppress(ProcessLookupError):
                child.kill()
        said, _ = await asyncio.wait_for(talk, 70)
        if child.returncode not in (0, 1):
            return Answer(-1, {})
        body = json.loads(said or b"{}")
        return Answer(0 if child.returncode == 0 else int(body["code"]), body)

    async def ready(self, *nodes: str, seconds: float = UP_SECONDS) -> None:
        """Waits until an ADD could succeed on each node (verb STATUS)."""
        end = time.monotonic() + seconds
        for node in nodes or self.nodes:
            while (answer := await self.cni(node, "STATUS")).code:
                assert time.monotonic() < end, f"{node}: {answer.body}\n{self.tails()}"
                await asyncio.sleep(0.1)

    def pod_links(self, node: str) -> list[str]:
        """Names of the links of a node that lead to pods, living or doomed."""
        shown = json.loads(run("ip", "-n", self.netns(node), "-j", "link", "show") or "[]")
        return [link["ifname"] for link in shown if link["ifname"].startswith("am") and len(link["ifname"]) == 12]

    def close(self) -> None:
        for name in list(self._processes):
            with suppress(subprocess.TimeoutExpired, ProcessLookupError):
                self.kill(name, signal.SIGKILL if name.startswith("dataplane") else signal.SIGTERM)
        self.nats.close()


Cluster = TypeVar("Cluster", bound=MiniCluster)


async def _insist(call: Callable[[], Any], seconds: float = 40.0) -> None:
    """A write that waits for a NATS that is down."""
    end = time.monotonic() + seconds
    while True:
        try:
            await call()
        except Fault:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)
        else:
            return


def node_objects(nodes: Sequence[str]) -> list[KubernetesObject]:
    """What every drill needs: the two namespaces and the nodes."""
    return [
        Namespace(name="kube-system", uid="cluster-uid-1"),
        Namespace(name="shop", uid="ns-shop", labels=(("kubernetes.io/metadata.name", "shop"),)),
        *(
            Node(
                name=node,
                uid=f"node-uid-{node}",
                addresses=(ip_address(f"172.30.0.{11 + index}"), ip_address(f"fd00:172:30::{11 + index}")),
                ready=True,
            )
            for index, node in enumerate(nodes)
        ),
    ]


@contextmanager
def minicluster(
    folder: Path, label: str, nodes: Sequence[str] = ("n1",), annotated: bool = True, /, **settings: str
) -> Iterator[MiniCluster]:
    """Namespaces, bridge, mounts; nothing runs but NATS. ``label`` at most four letters. Gone afterwards, whatever.

    ``annotated``: Nodes are annotated with their blocks (False where ``cluster`` runs, and does it).
    """
    with minicluster_of(MiniCluster, folder, label, nodes, annotated, **settings) as world:
        yield world


@contextmanager
def minicluster_of(
    kind: type[Cluster], folder: Path, label: str, nodes: Sequence[str], annotated: bool = True, /, **settings: str
) -> Iterator[Cluster]:
    """As :func:`minicluster`, of a kind that starts its services in another way."""
    name = f"am-{label}{os.getpid() % 10_000}"
    with ExitStack() as stack:
        stack.enter_context(namespace(name))
        _hub(name)
        for index, node in enumerate(nodes):
            stack.enter_context(namespace(f"{name}-{node}"))
            _node(name, node, index)
            cgroup = CGROUPS / f"{name}-{node}"
            stack.callback(lambda cgroup=cgroup: cgroup.rmdir() if cgroup.exists() else None)  # type: ignore[misc]
            cgroup.mkdir()
            stack.enter_context(bpffs(folder / node / "bpffs"))
        stack.enter_context(inside(name))
        world = kind(folder, name, nodes, settings)
        stack.callback(world.close)
        world.nats.start()
        if annotated:
            stack.enter_context(annotated_nodes(world.nats))
        yield world


def _hub(name: str) -> None:
    for command in (
        "link add fabric type bridge",
        "link set fabric up",
        f"addr add {HUB}/24 dev fabric",
        "addr add fd00:172:30::1/64 dev fabric nodad",
    ):
        run("ip", "-n", name, *command.split())


def _node(hub: str, node: str, index: int) -> None:
    pair = f"{hub}-{node}"
    run("ip", "-n", pair, "link", "add", "fab0", "type", "veth", "peer", "name", f"to-{node}", "netns", hub)
    run("ip", "-n", hub, "link", "set", f"to-{node}", "master", "fabric", "up")
    for command in (
        "link set fab0 up",
        f"addr add 172.30.0.{11 + index}/24 dev fab0",
        f"addr add fd00:172:30::{11 + index}/64 dev fab0 nodad",
        f"route add default via {HUB}",
        "route add default via fd00:172:30::1 dev fab0",
    ):
        run("ip", "-n", pair, *command.split())
    run("nsenter", f"--net=/run/netns/{pair}", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    run("nsenter", f"--net=/run/netns/{pair}", "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")


def pools(*, four: str, six: str, block4: int = 26, block6: int = 122) -> list[IPPool]:
    """One pool a family."""
    return [
        IPPool(name="pods4", cidr=ip_network(four), block_size=block4),
        IPPool(name="pods6", cidr=ip_network(six), block_size=block6),
    ]
