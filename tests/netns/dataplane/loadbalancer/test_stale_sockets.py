"""A connected UDP client whose backend leaves: it is told, and its next connect goes to one that is there."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

import pytest

from proto.objects import EndpointPort, EndpointSlice, Service, ServicePort, SliceEndpoint
from tests.bpf.world import inside
from tests.netns.dataplane.mesh import Mesh, RunningPod, wait_for

pytestmark = pytest.mark.privileged

VIP = {4: "10.96.0.53", 6: "fd00:10:96::53"}
DNS = Service(
    namespace="shop",
    name="dns",
    uid="uid-dns",
    cluster_ips=tuple(ip_address(address) for address in VIP.values()),
    ports=(ServicePort(name="dns", protocol=17, port=53),),
)

_CLIENT = """
import os, select, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs: procs.write(str(os.getpid()))
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, socket.SOCK_DGRAM)
for line in sys.stdin:
    word, seconds = line.split()
    s.settimeout(float(seconds))
    try:
        if word == "connect":
            s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # hear what there is to hear of the last one
            answers = select.select([s], [], [], 0)[0]
            while answers and s.recv(100): answers = select.select([s], [], [], 0)[0]
            s.connect((sys.argv[2], int(sys.argv[3])))
        if word != "wait": s.send(b"who")
        print(s.recv(100).decode(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


class Client:
    """A process with one UDP socket. ``connect`` and ``ask`` give the name of who answers, or of the error."""

    def __init__(self, node: Mesh, netns: str, address: str, port: int) -> None:
        command = ["nsenter", f"--net=/run/netns/{netns}", sys.executable, "-c", _CLIENT, str(node.cgroup)]
        self._process = subprocess.Popen(
            [*command, address, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _say(self, word: str, seconds: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word} {seconds}\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def connect(self) -> str:
        self._say("connect", 0.7)
        return self._hear()

    def ask(self) -> str:
        self._say("ask", 0.7)
        return self._hear()

    @contextmanager
    def waiting(self, said: list[str], seconds: float = 60) -> Iterator[None]:
        """Waits to receive, as a resolver does, while the block does something; then ``said`` has what came."""
        self._say("wait", seconds)
        time.sleep(0.1)
        yield
        said.append(self._hear())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def server(pod: RunningPod) -> Iterator[None]:
    """Answers with the pod's name at UDP port 5353, of both families."""
    with inside(pod.netns):
        listening = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(("::", 5353))
    listening.settimeout(0.1)
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                _, peer = listening.recvfrom(100)
                listening.sendto(pod.pod.name.encode(), peer)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        listening.close()


def slices(*ready: RunningPod, leaving: tuple[RunningPod, ...] = ()) -> list[EndpointSlice]:
    """Both families' slices of the Service."""
    return [
        EndpointSlice(
            namespace="shop",
            name=f"dns-{family}",
            service="dns",
            endpoints=tuple(
                SliceEndpoint(
                    addresses=(ip_address(pod.four if family == 4 else pod.six),),
                    ready=pod in ready,
                    serving=True,
                    terminating=pod in leaving,
                    node="n1",
                )
                for pod in (*ready, *leaving)
            ),
            ports=(EndpointPort(name="dns", protocol=17, port=5353),),
        )
        for family in (4, 6)
    ]


@pytest.fixture(scope="module")
def pods(node: Mesh) -> Iterator[tuple[RunningPod, RunningPod, RunningPod]]:
    client, old, new = node.pod("asks"), node.pod("old"), node.pod("new")
    with server(old), server(new):
        yield client, old, new


@contextmanager
def clients(node: Mesh, pods: tuple[RunningPod, RunningPod, RunningPod]) -> Iterator[dict[str, Client]]:
    """Each connected to the old backend: by the Service from a pod and from the node, or by its own address."""
    asks, old, _ = pods
    node.put(DNS, *slices(old))
    found = {
        "pod 4": Client(node, asks.netns, VIP[4], 53),
        "pod 6": Client(node, asks.netns, VIP[6], 53),
        "pod mapped": Client(node, asks.netns, f"::ffff:{VIP[4]}", 53),
        "node": Client(node, node.netns, VIP[4], 53),
        "direct 4": Client(node, asks.netns, old.four, 5353),
        "direct 6": Client(node, asks.netns, old.six, 5353),
    }
    try:
        for name, client in found.items():
            wait_for(f"{name} to reach the old backend", lambda client=client: client.connect() == "old")  # type: ignore[misc]
        yield found
    finally:
        for client in found.values():
            client.close()
        node.put(*slices())


THROUGH = ("pod 4", "pod 6", "pod mapped", "node")
DIRECT = ("direct 4", "direct 6")


def test_a_client_gets_an_error_and_connects_to_another(
    node: Mesh, pods: tuple[RunningPod, RunningPod, RunningPod]
) -> None:
    _, old, new = pods
    with clients(node, pods) as those:
        said: list[str] = []
        with those["pod 4"].waiting(said):
            node.put(*slices(new))
        assert said == ["ConnectionAbortedError"]
        for name in THROUGH[1:]:
            wait_for(f"{name} to be told", lambda name=name: those[name].ask() == "OSError")  # type: ignore[misc]
        assert {those[name].connect() for name in THROUGH} == {"new"}
        assert {those[name].ask() for name in DIRECT} == {"old"}, "they never asked for the Service"
    reported = [line for line in node.log("dataplane") if line["event"] == "stale-sockets-ended"]
    assert sum(line["count"] for line in reported) == len(THROUGH)
    assert f"{old.four} port 5353" in reported[0]["backends"]


def test_a_backend_that_leaves_in_order_keeps_its_clients_until_it_stops(
    node: Mesh, pods: tuple[RunningPod, RunningPod, RunningPod]
) -> None:
    _, old, new = pods
    with clients(node, pods) as those:
        node.put(*slices(new, leaving=(old,)))
        fresh = Client(node, node.netns, VIP[4], 53)
        wait_for("new clients to go to the new one", lambda: fresh.connect() == "new")
        time.sleep(1.5)
        assert {those[name].ask() for name in THROUGH} == {"old"}
        node.put(*slices(new))
        for name in THROUGH:
            wait_for(f"{name} to be told", lambda name=name: those[name].ask() == "OSError", 4)  # type: ignore[misc]
        assert fresh.ask() == "new"
        fresh.close()


def test_a_backend_that_came_for_a_moment_is_missed_by_nobody(
    node: Mesh, pods: tuple[RunningPod, RunningPod, RunningPod]
) -> None:
    """It came and went between two passes of the loop that ends sockets, but its client was quicker."""
    asks, old, new = pods
    node.put(DNS, *slices(new))
    client = Client(node, asks.netns, VIP[4], 53)
    wait_for("the Service", lambda: client.connect() == "new")
    time.sleep(1)  # the loop has nothing left to look at
    for _ in range(2):
        node.put(*slices(old))
        wait_for("the one that comes for a moment", lambda: client.connect() == "old")
        node.put(*slices(new))
        wait_for("its client to be told", lambda: client.ask() == "OSError")
    client.close()
    node.put(*slices())


def test_what_left_while_no_agent_ran_is_found_by_the_next(
    node: Mesh, pods: tuple[RunningPod, RunningPod, RunningPod]
) -> None:
    _, _, new = pods
    with clients(node, pods) as those:
        node.kill("dataplane")
        node.put(*slices(new))
        time.sleep(0.5)
        assert {those[name].ask() for name in THROUGH} == {"old"}, "nobody is there to end them"
        node.start_dataplane()
        for name in THROUGH:
            wait_for(f"{name} to be told", lambda name=name: those[name].ask() == "OSError")  # type: ignore[misc]
        assert {those[name].connect() for name in THROUGH} == {"new"}
        assert {those[name].ask() for name in DIRECT} == {"old"}
