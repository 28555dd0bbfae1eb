"""A backend that refuses is passed over for a moment: who asks again finds another one, before Kubernetes tells."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from bench.dns.ground import GLIBC, MUSL, compiled
from bench.dns.report import Looked
from linux.netns import command
from proto.objects import EndpointPort, EndpointSlice, Service, ServicePort, SliceEndpoint
from tests.bpf.world import inside
from tests.netns.dataplane.mesh import Mesh, RunningPod, wait_for

pytestmark = pytest.mark.privileged

VIP = {4: "10.96.0.54", 6: "fd00:10:96::54"}
PORT, TARGET = 80, 8080
WEB = Service(
    namespace="shop",
    name="web",
    uid="uid-web",
    cluster_ips=tuple(ip_address(address) for address in VIP.values()),
    ports=(ServicePort(name="tcp", protocol=6, port=PORT), ServicePort(name="udp", protocol=17, port=PORT)),
)
REFUSED = 3.0
"""Seconds for which a backend that refused is passed over (``bpf/refusal.h``)."""
TIMES = 60

_CLIENT = """
import json, os, socket, sys, time
cgroup, address, kind, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with open(cgroup + "/cgroup.procs", "w") as procs: procs.write(str(os.getpid()))
began, said = time.monotonic(), []
for _ in range(times):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as s:
        s.settimeout(5)
        try:
            s.connect((address, 80))
            if kind == socket.SOCK_DGRAM: s.send(b"who")
            said.append(s.recv(100).decode())
        except OSError as error:
            said.append(type(error).__name__)
print(json.dumps([said, time.monotonic() - began]))
"""


def ask(node: Mesh, pod: RunningPod, address: str, kind: int, times: int = TIMES) -> tuple[Counter[str], float]:
    """Who answered new sockets of a pod, one after the other, and the seconds that all took."""
    command = ["nsenter", f"--net=/run/netns/{pod.netns}", sys.executable, "-c", _CLIENT, str(node.cgroup), address]
    done = subprocess.run([*command, str(kind), str(times)], capture_output=True, text=True, timeout=60, check=True)
    said, seconds = json.loads(done.stdout)
    return Counter(said), seconds


@contextmanager
def serving(pod: RunningPod) -> Iterator[None]:
    """Answers with the pod's name at the port of both protocols and families."""
    over = threading.Event()
    with ExitStack() as stack:
        with inside(pod.netns):
            listening = {kind: socket.socket(socket.AF_INET6, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)}
        for kind, one in listening.items():
            stack.enter_context(one)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("::", TARGET))
            one.settimeout(0.1)
            if kind == socket.SOCK_STREAM:
                one.listen(64)

        def accept() -> None:
            while not over.is_set():
                with suppress(TimeoutError), listening[socket.SOCK_STREAM].accept()[0] as connection:
                    connection.sendall(pod.pod.name.encode())

        def answer() -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    _, peer = listening[socket.SOCK_DGRAM].recvfrom(100)
                    listening[socket.SOCK_DGRAM].sendto(pod.pod.name.encode(), peer)

        threads = [threading.Thread(target=one) for one in (accept, answer)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


def slices(*pods: RunningPod, hinted: dict[str, str] | None = None) -> list[EndpointSlice]:
    """Both families' slices of the Service, all ready; ``hinted``: for which node each is, by the pod's name."""
    ports = tuple(EndpointPort(name=name, protocol=number, port=TARGET) for name, number in (("tcp", 6), ("udp", 17)))
    return [
        EndpointSlice(
            namespace="shop",
            name=f"web-{family}",
            service="web",
            endpoints=tuple(
                SliceEndpoint(
                    addresses=(ip_address(pod.four if family == 4 else pod.six),),
                    ready=True,
                    node="n1",
                    for_nodes=(hinted[pod.pod.name],) if hinted else (),
                )
                for pod in pods
            ),
            ports=ports,
        )
        for family in (4, 6)
    ]


def test_who_is_refused_finds_another_backend_the_next_time(node: Mesh) -> None:
    client, lives, dead = node.pod("seeks"), node.pod("lives"), node.pod("dead")
    with serving(lives):
        node.put(WEB, *slices(lives, dead))
        for family, address in VIP.items():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                wait_for("the Service", lambda a=address, k=kind: ask(node, client, a, k, 1)[0]["lives"])  # type: ignore[misc]
                said, seconds = ask(node, client, address, kind)
                assert said["lives"] + said["ConnectionRefusedError"] == TIMES, (family, kind, said)
                assert said["ConnectionRefusedError"] <= 1 + seconds / REFUSED, (family, kind, said, seconds)
        with serving(dead):
            for address in VIP.values():
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    wait_for("it serves again", lambda a=address, k=kind: ask(node, client, a, k, 8)[0]["dead"])  # type: ignore[misc]


def test_where_all_refuse_so_is_the_client(node: Mesh) -> None:
    client, one, other = node.pod("asks-in-vain"), node.pod("shut"), node.pod("shut-too")
    for pod in (one, other):
        with inside(pod.netns):  # a kernel tells a peer that a port is closed six times at once, then once a second
            Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
    node.put(WEB, *slices(one, other))
    began = time.monotonic()
    wait_for("the Service", lambda: ask(node, client, VIP[4], socket.SOCK_STREAM, 1)[0]["ConnectionRefusedError"])
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        said, _ = ask(node, client, VIP[4], kind, 10)
        assert said == {"ConnectionRefusedError": 10}, (said, time.monotonic() - began)


def test_where_hints_leave_one_that_refuses_another_stands_in(node: Mesh) -> None:
    client, local, remote = node.pod("prefers"), node.pod("local"), node.pod("remote")
    with serving(remote):
        node.put(WEB, *slices(local, remote, hinted={"local": "n1", "remote": "n2"}))
        for address in VIP.values():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                wait_for("the Service", lambda a=address, k=kind: ask(node, client, a, k, 2)[0]["remote"])  # type: ignore[misc]
                said, seconds = ask(node, client, address, kind)
                assert said["remote"] + said["ConnectionRefusedError"] == TIMES, (address, kind, said)
                assert said["ConnectionRefusedError"] <= 1 + seconds / REFUSED, (address, kind, said, seconds)
        with serving(local):
            for address in VIP.values():
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    wait_for("it serves again", lambda a=address, k=kind: ask(node, client, a, k, 8)[0] == {"local": 8})  # type: ignore[misc]


RESOLVER = ip_address("10.96.0.53")
_LOOK_UP = 'echo $$ > "$1/cgroup.procs" && mount --bind "$2" /etc && shift 2 && exec "$@"'


def look_up(node: Mesh, pod: RunningPod, etc: Path, program: Path) -> Looked:
    """Five names, one after the other, by a pod's C library."""
    argv = ["unshare", "-m", "sh", "-c", _LOOK_UP, "sh", str(node.cgroup), str(etc), str(program)]
    inside_pod = command(f"/run/netns/{pod.netns}", *argv, "5", "0", "20", "0", "1")
    done = subprocess.run(inside_pod, capture_output=True, timeout=100, check=True)
    return msgspec.json.decode(done.stdout, type=Looked)


@pytest.mark.parametrize("library", [GLIBC, MUSL])
def test_a_resolver_loses_no_name_when_the_server_of_its_node_is_gone(node: Mesh, tmp_path: Path, library: str) -> None:
    """By the C library's defaults, before Kubernetes tells: glibc asks again when it is refused, musl after 2.5 s."""
    client, gone, away = (node.pod(f"{name}-{library}") for name in ("looks-up", "gone", "names"))
    numbers = {"udp": (17, 53), "tcp": (6, PORT)}
    service = Service(
        namespace="shop",
        name=library,
        uid=library,
        cluster_ips=(RESOLVER,),
        ports=tuple(ServicePort(name=name, protocol=number, port=port) for name, (number, port) in numbers.items()),
    )
    part = EndpointSlice(
        namespace="shop",
        name=library,
        service=library,
        endpoints=tuple(
            SliceEndpoint(addresses=(ip_address(pod.four),), ready=True, node="n1", for_nodes=(whose,))
            for pod, whose in ((gone, "n1"), (away, "n2"))
        ),
        ports=tuple(EndpointPort(name=name, protocol=number, port=53) for name, (number, _) in numbers.items()),
    )
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
    (etc / "nsswitch.conf").write_text("hosts: dns\n")
    programs = compiled(tmp_path)
    names = command(f"/run/netns/{away.netns}", str(programs / "upstream"), away.four, "53", "0", "5")
    upstream = subprocess.Popen(names)
    try:
        node.put(service, part)
        refused = "ConnectionRefusedError"  # of TCP: the resolver is to meet the first refusal of UDP itself
        wait_for("the Service", lambda: ask(node, client, str(RESOLVER), socket.SOCK_STREAM, 1)[0][refused])
        looked = look_up(node, client, etc, programs / library)
        assert (looked.failed, len(looked.us)) == (0, 5)
    finally:
        upstream.kill()
        upstream.wait(20)
        node.delete(service, part)
