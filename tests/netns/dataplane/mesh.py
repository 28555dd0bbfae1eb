"""A node of the mesh in a namespace: real NATS, ipam, policy and dataplane, pods made by the real executable.

The test plays ``cluster`` (it writes the objects) and the container runtime (it runs the executable). While a
:class:`Mesh` is open the test's main thread is inside the node's namespace, so everything started there lives there.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from chassis.bus.client import Bus
from proto.addresses import Block
from proto.codec import block_key, kind_prefix, object_key
from proto.net import Address
from proto.objects import (
    KINDS,
    EndpointPort,
    EndpointSlice,
    IPPool,
    KubernetesObject,
    Namespace,
    NetworkPolicy,
    Node,
    Owner,
    Pod,
    Service,
)
from proto.policy import Revision
from proto.residents import Residents, residents_key
from proto.subjects import BLOCKS, IDENTITIES, OBJECTS
from proto.sync import Complete, complete_key
from tests.bpf.world import bpffs, inside, namespace, run
from tests.natsd import NatsServer, bus_of
from tests.node_annotations import annotated_nodes

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[3]
CGROUPS = Path("/sys/fs/cgroup/unified")
CACHE = Path(os.environ.get("AIRMESH_BPF_CACHE") or Path.home() / ".cache" / "airmesh" / "bpf")
TRY_AGAIN_LATER = 11
"""CNI error code (SPEC.md, "Error")."""

__all__ = [
    "EndpointPort",
    "EndpointSlice",
    "Mesh",
    "NetworkPolicy",
    "Owner",
    "RunningPod",
    "Service",
    "mesh",
    "wait_for",
]


def wait_for(what: str, check: Callable[[], T], seconds: float = 60.0) -> T:
    """The first true value of ``check``."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the executable said."""

    code: int
    body: dict[str, Any]
    milliseconds: float


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod that was attached."""

    pod: Pod
    container: str
    netns: str
    addresses: tuple[str, ...]

    @property
    def four(self) -> str:
        return next(address for address in self.addresses if "." in address)

    @property
    def six(self) -> str:
        return next(address for address in self.addresses if ":" in address)


class Mesh:
    """See the module."""

    def __init__(self, folder: Path, netns: str, pins: Path, cgroup: Path) -> None:
        self.folder = folder
        self.netns = netns
        self.pins = pins
        self.cgroup = cgroup
        self.nats = NatsServer(folder / "nats")
        self.socket = folder / "cni.sock"
        self.conf = folder / "cni"
        self.executable = folder / "airmesh-cni"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._pods = ExitStack()
        self._count = 0
        source = REPOSITORY / "services/dataplane/cni/airmesh-cni.c"
        run("musl-gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(self.executable), str(source))

    # --- the bus ---

    def as_node(self, node: str, work: Callable[[Bus], Awaitable[T]]) -> T:
        """What the dataplane of another node says."""

        async def go() -> T:
            async with bus_of(self.nats, "dataplane", node) as bus:
                return await work(bus)

        return asyncio.run(go())

    def hold(self, block: str, holder: str) -> None:
        """``ipam`` has it on record that another node holds a block."""
        network = ip_network(block)
        record = Block(network, "pods", holder, f"node-uid-{holder}", epoch=3, nonce="n")

        async def go() -> None:
            async with bus_of(self.nats, "ipam") as bus:
                await bus.bucket(BLOCKS).put(block_key(network), record)

        asyncio.run(go())

    def lose_the_bus(self, *objects: KubernetesObject) -> None:
        """NATS comes back without anything it ever stored; cluster fills it again, and says so when it is done."""
        self.nats.kill()
        shutil.rmtree(self.folder / "nats" / "store")
        self.nats.start()
        self.make_buckets(*objects)

    def as_cluster(self, work: Callable[[Bus], Awaitable[T]]) -> T:
        async def go() -> T:
            async with bus_of(self.nats, "cluster") as bus:
                return await work(bus)

        return asyncio.run(go())

    def make_buckets(self, *objects: KubernetesObject) -> None:
        async def go(bus: Bus) -> None:
            epochs = await bus.make_buckets()
            kv = bus.bucket(OBJECTS)
            for one in objects:
                await kv.put(object_key(one), one)
            for kind in KINDS:
                await kv.put(complete_key(kind_prefix(kind)), Complete(epoch=epochs["objects"]))

        self.as_cluster(go)

    def put(self, *objects: KubernetesObject) -> None:
        async def go(bus: Bus) -> None:
            for one in objects:
                await bus.bucket(OBJECTS).put(object_key(one), one)

        self.as_cluster(go)

    def delete(self, *objects: KubernetesObject) -> None:
        async def go(bus: Bus) -> None:
            for one in objects:
                await bus.bucket(OBJECTS).delete(object_key(one))

        self.as_cluster(go)

    def read(self, bucket: Any, kind: type[T], prefix: str = ">") -> dict[str, T]:
        async def go(bus: Bus) -> dict[str, T]:
            return {key: entry.value for key, entry in (await bus.bucket(bucket).list(kind, prefix)).items()}

        return self.as_cluster(go)

    # --- services ---

    def start(self, service: str, user: str, **more: str) -> None:
        environment = {**os.environ, **self.nats.environment(user), **more, "AIRMESH_LOG_LEVEL": "debug"}
        with (self.folder / f"{service}.log").open("ab") as log:
            self._processes[service] = subprocess.Popen(
                [sys.executable, "-m", f"services.{service}"],
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def start_dataplane(self, **more: str) -> None:
        self.start(
            "dataplane",
            "dataplane-n1",
            AIRMESH_NODE="n1",
            AIRMESH_STATE_DIR=str(self.folder / "state"),
            AIRMESH_UPLINKS="fab0",
            AIRMESH_PIN_ROOT=str(self.pins),
            AIRMESH_CGROUP=str(self.cgroup),
            AIRMESH_CNI_SOCKET=str(self.socket),
            AIRMESH_CNI_CONF_DIR=str(self.conf),
            AIRMESH_BPF_CACHE=str(CACHE),
            AIRMESH_GC_GRACE="1",
            **{"AIRMESH_ADD_DEADLINE": "3", **more},
        )

    def kill(self, service: str, number: int = signal.SIGKILL) -> int:
        process = self._processes.pop(service)
        process.send_signal(number)
        return process.wait(60)

    def cpu_seconds(self, service: str) -> float:
        """Processor time of a service's process so far."""
        user, kernel = Path(f"/proc/{self._processes[service].pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(kernel)) / os.sysconf("SC_CLK_TCK")

    def log(self, service: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{service}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def tail(self, service: str) -> str:
        path = self.folder / f"{service}.log"
        return path.read_text()[-3000:] if path.exists() else ""

    def samples(self) -> dict[str, float]:
        """What the agent measures of itself, read on the node's loopback, by name and labels."""
        port = next(line["health_port"] for line in reversed(self.log("dataplane")) if line["event"] == "started")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
            lines = page.read().decode().splitlines()
        return {name: float(value) for name, value in (one.rsplit(" ", 1) for one in lines if not one.startswith("#"))}

    # --- the runtime ---

    def cni(self, verb: str, container: str, netns: str = "", pod: Pod | None = None, **conf: Any) -> Answer:
        environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_PATH": "/opt"}
        if netns:
            environment["CNI_NETNS"] = f"/run/netns/{netns}"
        if pod is not None:
            environment["CNI_ARGS"] = (
                f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};K8S_POD_UID={pod.uid}"
            )
        document = {
            "cniVersion": "1.1.0",
            "name": "airmesh",
            "type": "airmesh-cni",
            "socket": str(self.socket),
            **conf,
        }
        started = time.monotonic()
        done = subprocess.run(
            [str(self.executable)],
            input=msgspec.json.encode(document),
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        spent = (time.monotonic() - started) * 1000
        return Answer(done.returncode, json.loads(done.stdout or b"{}"), spent)

    def pod(
        self, name: str, *, patience: float = 0.0, labels: dict[str, str] | None = None, **fields: Any
    ) -> RunningPod:
        """A pod with its object, its namespace, attached. ``patience``: for so many seconds "try again later" (CNI
        error code 11) is followed, as a kubelet does.
        """
        self._count += 1
        pod = Pod(
            namespace="shop",
            name=name,
            uid=f"uid-{name}-{self._count}",
            node="n1",
            labels=tuple(sorted((labels or {"app": name}).items())),
            **fields,
        )
        self.put(pod)
        netns = self._pods.enter_context(namespace(f"{self.netns}-{self._count}"))
        container = f"c{self._count}-{name}"
        until = time.monotonic() + patience
        answer = self.cni("ADD", container, netns, pod)
        while answer.body.get("code") == TRY_AGAIN_LATER and time.monotonic() < until:
            answer = self.cni("ADD", container, netns, pod)
        assert answer.code == 0, (answer, self.tail("dataplane"), self.tail("policy"), self.tail("ipam"))
        addresses = tuple(entry["address"].split("/")[0] for entry in answer.body["ips"])
        return RunningPod(pod, container, netns, addresses)

    def empty_namespace(self) -> str:
        self._count += 1
        return self._pods.enter_context(namespace(f"{self.netns}-{self._count}"))

    def close(self) -> None:
        for name in list(self._processes):
            with suppress(subprocess.TimeoutExpired, ProcessLookupError):
                self.kill(name, signal.SIGTERM if name != "dataplane" else signal.SIGKILL)
        self.nats.close()
        self._pods.close()


class Listener:
    """A TCP server in a pod; answers each connection with the address it sees."""

    def __init__(self, netns: str, port: int = 80) -> None:
        with inside(netns):
            self._socket = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        self._socket.setblocking(False)

    def answer(self) -> bool:
        """Whether there was a connection to answer."""
        with suppress(BlockingIOError):
            connection, peer = self._socket.accept()
            connection.setblocking(True)
            connection.sendall(peer[0].removeprefix("::ffff:").encode() + b"\n")
            connection.close()
            return True
        return False

    def close(self) -> None:
        self._socket.close()


def dial(netns: str, address: str, port: int, listener: Listener | None, seconds: float = 10) -> str:
    """What the listener saw as the peer's address; empty when the connection does not come about in so many seconds."""
    with inside(netns):
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with client:
        client.setblocking(False)
        client.connect_ex((address, port))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if listener is not None:
                listener.answer()
            try:
                got = client.recv(100)
            except (BlockingIOError, OSError):
                time.sleep(0.002)
                continue
            return got.decode().strip()
    return ""


@contextmanager
def mesh(folder: Path, label: str, **settings: str) -> Iterator[Mesh]:
    """A node with NATS, buckets, objects, ipam, policy and the agent (with these settings), all ready; nothing is left
    of it.
    """
    name = f"am-{label}{os.getpid() % 10_000}"
    cgroup = CGROUPS / name
    with ExitStack() as stack:
        stack.enter_context(namespace(name))
        stack.enter_context(namespace(f"{name}-f"))
        stack.callback(lambda: cgroup.rmdir() if cgroup.exists() else None)
        cgroup.mkdir()
        pins = stack.enter_context(bpffs(folder / "bpffs"))
        _wire(name)
        stack.enter_context(inside(name))
        world = Mesh(folder, name, pins, cgroup)
        stack.callback(world.close)
        world.nats.start()
        stack.enter_context(annotated_nodes(world.nats))
        world.make_buckets()
        world.put(*cluster_objects())
        world.start("ipam", "ipam")
        world.start("policy", "policy")
        world.start_dataplane(**settings)
        try:
            wait_for("the node's configuration", lambda: list(world.conf.glob("*.conflist")), 40)
        except AssertionError:
            print(world.tail("dataplane"), world.tail("ipam"), world.tail("policy"), sep="\n---\n")
            raise
        yield world


def _wire(node: str) -> None:
    run("ip", "-n", node, "link", "set", "lo", "up")
    run("ip", "-n", node, "link", "add", "fab0", "type", "veth", "peer", "name", "fab0", "netns", f"{node}-f")
    for command in (
        "link set fab0 up",
        "addr add 172.30.0.11/24 dev fab0",
        "addr add fd00:172:30::11/64 dev fab0 nodad",
        "route add default via 172.30.0.1",
        "route add default via fd00:172:30::1 dev fab0",
    ):
        run("ip", "-n", node, *command.split())
    for command in ("link set fab0 up", "addr add 172.30.0.1/24 dev fab0", "addr add fd00:172:30::1/64 dev fab0 nodad"):
        run("ip", "-n", f"{node}-f", *command.split())
    for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
        run("nsenter", f"--net=/run/netns/{node}", "sysctl", "-qw", setting)


def cluster_objects() -> list[KubernetesObject]:
    addresses: tuple[Address, ...] = (ip_address("172.30.0.11"), ip_address("fd00:172:30::11"))
    return [
        Namespace(name="kube-system", uid="cluster-uid-1"),
        Namespace(name="shop", uid="ns-shop", labels=(("kubernetes.io/metadata.name", "shop"),)),
        Node(name="n1", uid="node-uid-1", addresses=addresses, ready=True),
        IPPool(name="pods4", cidr=ip_network("10.244.0.0/16"), block_size=26, nat_outgoing=True),
        IPPool(name="pods6", cidr=ip_network("fd00:10:244::/56"), block_size=122, nat_outgoing=True),
    ]


def resident(node: Mesh, **identities: tuple[int, ...]) -> None:
    """``policy`` says that pods of these nodes have these identities; they stay for its grace, though none is seen."""

    async def speak() -> None:
        async with bus_of(node.nats, "policy") as bus:
            for name, some in identities.items():
                value = Residents(identities=some, revision=Revision(epoch="e", sequence=1))
                await bus.bucket(IDENTITIES).put(residents_key(name), value)

    asyncio.run(speak())
