"""A pod asks a DNS server by its Service's address; `airmesh dns report` says what became of it, as the pod saw it."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bench.dns.ground import GLIBC, MUSL, compiled
from proto.objects import EndpointPort, EndpointSlice, Service, ServicePort, SliceEndpoint
from tests.bpf.world import inside
from tests.netns.dataplane.mesh import REPOSITORY, Mesh, RunningPod, wait_for
from tests.netns.dataplane.monitor.resolvers import coredns, failed, files, looking_up, queries

pytestmark = pytest.mark.privileged

VIP = {4: "10.96.0.10", 6: "fd00:10:96::10"}
DNS = Service(
    namespace="shop",
    name="dns",
    uid="uid-dns",
    cluster_ips=tuple(ip_address(address) for address in VIP.values()),
    ports=(ServicePort(name="dns", protocol=17, port=53), ServicePort(name="dns-tcp", protocol=6, port=53)),
)
NAMES_VIP = "10.96.0.53"
NAMES = Service(
    namespace="shop",
    name="names",
    uid="uid-names",
    cluster_ips=(ip_address(NAMES_VIP),),
    ports=(ServicePort(name="dns", protocol=17, port=53),),
)
RESOLVERS = (GLIBC, MUSL, GLIBC, MUSL)
"""Programs of a pod that look names up at the same time."""
NAME = "www.example.com"
TRIED = [f"{NAME}.{suffix}" for suffix in ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")]

_CLIENT = """
import os, socket, struct, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs: procs.write(str(os.getpid()))
kind = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
for number, line in enumerate(sys.stdin):
    word, name = line.split()
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    query = struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + labels + b"\\0\\0\\1\\0\\1"
    with socket.socket(kind, socket.SOCK_STREAM if word == "tcp" else socket.SOCK_DGRAM) as s:
        s.settimeout({"lost": 0.05, "try": 2}.get(word, 20))
        try:
            s.connect((sys.argv[2], 53))
            s.sendall(struct.pack(">H", len(query)) + query if word == "tcp" else query)
            if word == "lost": s.sendall(query)
            answer = s.recv(2000)[2 if word == "tcp" else 0:]
            print(answer[3] & 15, flush=True)
        except OSError as error:
            print(type(error).__name__, flush=True)
"""


def ask(node: Mesh, pod: RunningPod, version: int, *lines: str) -> list[str]:
    """The RCODE of each, or how it failed: ``udp NAME``, ``tcp NAME``, ``try NAME`` (for two seconds), ``lost NAME``
    (sent twice, hardly waited for).
    """
    command = [
        "nsenter",
        f"--net=/run/netns/{pod.netns}",
        sys.executable,
        "-c",
        _CLIENT,
        str(node.cgroup),
        VIP[version],
    ]
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout.split()


def answered(query: bytes) -> bytes | None:
    """NXDOMAIN for what ends with ``local``, nothing for what begins with ``lost``, else an address."""
    end = query.index(b"\0", 12) + 5
    name = query[12:end]
    if name.startswith(b"\4lost"):
        return None
    exists = b"\5local\0" not in name
    head = query[:2] + struct.pack(">HHHHH", 0x8180 | (0 if exists else 3), 1, int(exists), 0, 0)
    return head + name + (b"\xc0\x0c\0\1\0\1\0\0\0\x1e\0\4\x0a\0\0\1" if exists else b"")


@contextmanager
def server(pod: RunningPod) -> Iterator[None]:
    """A DNS server in a pod, for both families and transports."""
    with inside(pod.netns):
        datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagrams.bind(("::", 53))
        streams = socket.create_server(("::", 53), family=socket.AF_INET6, dualstack_ipv6=True)

    def serve_datagrams() -> None:
        with suppress(OSError):
            while True:
                query, peer = datagrams.recvfrom(2000)
                reply = answered(query) if query else None
                if reply is not None:
                    datagrams.sendto(reply, peer)

    def serve_streams() -> None:
        with suppress(OSError):
            while True:
                connection, _ = streams.accept()
                with connection:
                    reply = answered(connection.recv(2000)[2:]) or b""
                    connection.sendall(struct.pack(">H", len(reply)) + reply)

    threads = [threading.Thread(target=one, daemon=True) for one in (serve_datagrams, serve_streams)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for one in (datagrams, streams):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def reported(node: Mesh) -> dict[str, Any]:
    """What `airmesh dns report` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "dns", "report", "--output", "json"],
        cwd=REPOSITORY,
        env={**os.environ, **node.nats.environment("cli", AIRMESH_NATS=node.nats.url)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return json.loads(done.stdout) if done.stdout else {"pods": [], "error": done.stderr}


def figures(node: Mesh, pod: RunningPod, queries: int) -> dict[str, Any]:
    """The pod's, once so many queries of it are counted."""

    def found() -> dict[str, Any] | None:
        mine = [one for one in reported(node)["pods"] if one["pod"] == pod.pod.name]
        return next((one for one in mine if one["queries"] >= queries), None)

    return wait_for(f"{queries} queries of {pod.pod.name}", found) or {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", [4, 6])
def test_a_pods_dns_is_reported_as_it_saw_it(node: Mesh, version: int) -> None:
    serving, asking = node.pod(f"dns-{version}", patience=60), node.pod(f"web-{version}", patience=60)
    addresses = serving.four if version == 4 else serving.six
    with server(serving):
        node.put(
            DNS,
            EndpointSlice(
                namespace="shop",
                name=f"dns-{version}",
                service="dns",
                ports=(EndpointPort("dns", 17, 53), EndpointPort("dns-tcp", 6, 53)),
                endpoints=(SliceEndpoint(addresses=(ip_address(addresses),), ready=True, node="n1"),),
            ),
        )
        wait_for("the Service", lambda: ask(node, asking, version, "try here.example.org") == ["0"], 100)
        tried = [f"udp {name}" for name in (*TRIED, NAME)]
        before = figures(node, asking, 1)["queries"]
        assert ask(node, asking, version, *tried, f"tcp {NAME}", "lost lost.example.org") == [
            "3", "3", "3", "0", "0", "TimeoutError",
        ]  # fmt: skip
    found = figures(node, asking, before + 7)
    assert (found["queries"], found["tcp_queries"], found["retries"]) == (before + 7, 1, 1)
    assert dict(found["answers"])["NXDOMAIN"] == 3
    assert found["searched_share"] == 1.0
    assert found["p50_ms"] is not None
    assert found["unread"] == 0
    wait_for("the timeout", lambda: figures(node, asking, before + 7)["timeouts"] >= 1)
    names = {one["name"]: one for one in reported(node)["names"]}  # of all pods, also of the other family's
    assert names["lost.example.org"]["retried"] >= 1
    assert names["lost.example.org"]["asked_most_by"].startswith("shop/web-")
    assert names[TRIED[0]]["nxdomain"] >= 1
    assert node.samples()['airmesh_dns_queries_total{protocol="tcp"}'] >= 1


@pytest.mark.parametrize(
    "pairs", [pytest.param(5_000, id="few"), pytest.param(100_000, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.timeout(1800)
def test_no_query_of_a_pair_is_lost(node: Mesh, tmp_path: Path, pairs: int) -> None:
    """A and AAAA asked at once from one socket are what loses one of them to a race in the kernel's NAT (conntrack,
    insert_failed); then the resolver waits, and asks again, so that the servers count more than two for a lookup. These
    resolvers wait for 30 s, which no busy machine takes.
    """
    servers = [node.pod(f"names-{number}-{pairs}", patience=60) for number in range(2)]
    client = node.pod(f"asks-{pairs}", patience=60)
    programs, each = compiled(tmp_path), pairs // len(RESOLVERS)
    patient, hasty = files(tmp_path / "patient", NAMES_VIP, 30), files(tmp_path / "hasty", NAMES_VIP, 1)
    endpoints = tuple(SliceEndpoint(addresses=(ip_address(one.four),), ready=True, node="n1") for one in servers)
    ports = (EndpointPort("dns", 17, 53),)
    with ExitStack() as stack:
        for one in servers:
            stack.enter_context(coredns(one, tmp_path))
        node.put(NAMES, EndpointSlice("shop", "names", "names", endpoints, ports=ports))
        wait_for("the Service", lambda: not failed(looking_up(node, client, hasty, programs / GLIBC, 1), 1, 60), 100)
        before = [queries(one) or 0 for one in servers]
        running = [looking_up(node, client, patient, programs / one, each) for one in RESOLVERS]
        assert [failed(one, each, 900) for one in running] == [0] * len(RESOLVERS)
        asked = [(queries(one) or 0) - begun for one, begun in zip(servers, before, strict=True)]
    assert sum(asked) == 2 * pairs, "a query that is lost is sent again"
    assert min(asked) > pairs // 2, "both servers are asked"
