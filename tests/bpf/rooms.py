"""A namespace with backends in it and a cgroup with the socket programs on it, in which children talk to Services."""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.service_layout import Scope
from services.dataplane.datapath.programs import SOCKETS, Datapath
from tests.bpf.world import LIBC, empty, inside, namespace, run

T = TypeVar("T")
SO_NETNS_COOKIE = 71
TCP, UDP = 6, 17
VIP = {4: "10.96.0.10", 6: "fd00:10:96::a"}
BACKENDS = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd00:9::1", "fd00:9::2")}
PORT, TARGET = 80, 8080


@contextmanager
def cgroup(name: str) -> Iterator[Path]:
    """A cgroup2 folder of ours, gone afterwards."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    root = Path(next(parts[1] for parts in mounts if parts[2] == "cgroup2"))
    folder = root / name
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


def cookie_of(netns: str) -> int:
    with inside(netns), socket.socket() as s:
        return int.from_bytes(s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


@dataclass(frozen=True, slots=True)
class Room:
    """A namespace with backends in it, another that is nobody's, a cgroup with the programs on it."""

    datapath: Datapath
    netns: str
    foreign: str
    cgroup: Path

    def do(self, work: Callable[[], T], netns: str = "") -> T:
        """Runs ``work`` in a child in the cgroup and the namespace; what it returns or raises comes back."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
                with inside(netns or self.netns):
                    outcome: Any = (True, work())
            except BaseException as error:
                outcome = (False, error)
            os.write(writing, pickle.dumps(outcome))
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            raw = pipe.read()
        os.waitpid(child, 0)
        worked, result = pickle.loads(raw)
        if not worked:
            raise result
        return result  # type: ignore[no-any-return]

    def serve(
        self, version: int, protocol: int, *, backends: tuple[str, ...], affinity: int = 0, scope: int = Scope.SOCKET,
        flags: int = 0,
    ) -> None:  # fmt: skip
        """A Service with these backends, as the agent would write it."""
        number = 100 * version + protocol
        tables = self.datapath.tables
        targets = [ip_address(address) for address in backends]
        tables.backends.apply(
            {lb.BackendKey(service=number, index=i): lb.Backend(address=a, port=TARGET) for i, a in enumerate(targets)}
        )
        tables.members.apply(
            {lb.MemberKey(service=number, address=a, port=TARGET): lb.Member(index=i) for i, a in enumerate(targets)}
        )
        tables.services.put(
            lb.ServiceKey(address=ip_address(VIP[version]), port=PORT, protocol=protocol, scope=scope),
            lb.Service(number=number, backends=len(targets), affinity_seconds=affinity, flags=flags),
        )

    def leave(self, version: int, protocol: int, backend: str) -> None:
        number = 100 * version + protocol
        self.datapath.tables.members.remove(lb.MemberKey(service=number, address=ip_address(backend), port=TARGET))


@contextmanager
def backend(netns: str, address: str, protocol: int) -> Iterator[None]:
    """A server child: tells its own address to whoever comes. Lives outside the cgroup."""
    with inside(netns):
        kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
        server = socket.socket(socket.AF_INET if "." in address else socket.AF_INET6, kind)
        server.bind((address, TARGET))
    if protocol == TCP:
        server.listen(64)
    child = os.fork()
    if child == 0:
        LIBC.prctl(1, 9)  # PR_SET_PDEATHSIG: goes with the tests, however they end
        while True:
            if protocol == TCP:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(address.encode())
            else:
                _, peer = server.recvfrom(100)
                server.sendto(address.encode(), peer)
    server.close()
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@contextmanager
def open_room(pins: Path, cache: Path, name: str) -> Iterator[Room]:
    """A room whose namespaces and cgroup carry ``name``; gone afterwards."""
    with ExitStack() as stack:
        pid = os.getpid()
        netns = stack.enter_context(namespace(f"am-{name}-{pid}"))
        foreign = stack.enter_context(namespace(f"am-not-{name}-{pid}"))
        group = stack.enter_context(cgroup(f"am-{name}-{pid}"))
        for address in (*BACKENDS[4], *BACKENDS[6]):
            bits = "32" if "." in address else "128"
            run("ip", "-n", netns, "addr", "add", f"{address}/{bits}", "dev", "lo")
        datapath = Datapath.open(pins / name, cache)
        datapath.attach_sockets(group)
        stack.callback(datapath.close)
        stack.callback(datapath.detach, SOCKETS)
        for protocol in (TCP, UDP):
            for address in (*BACKENDS[4], *BACKENDS[6]):
                stack.enter_context(backend(netns, address, protocol))
        yield Room(datapath, netns, foreign, group)


def emptied(room: Room) -> Room:
    """The same room with nothing in its maps but the leave to act in its namespace."""
    tables = room.datapath.tables
    empty(tables, ("services", "backends", "members", "affinities", "reverses", "cookies"))
    tables.cookies.put(at.CookieKey(cookie=cookie_of(room.netns)), at.CookieMark())
    return room


def plain(address: Any) -> tuple[str, int]:
    return str(address[0]), int(address[1])


def connect(host: str, port: int = PORT, family: int | None = None) -> tuple[str, tuple[str, int]]:
    """(what the backend says, whom the socket believes it talks to)."""
    family = family or (socket.AF_INET6 if ":" in host else socket.AF_INET)
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(20)
        client.connect((host, port))
        return client.recv(100).decode(), plain(client.getpeername())


@contextmanager
def running(room: Room, work: Callable[[], object]) -> Iterator[int]:
    """A child (its pid) that does ``work`` in the room and then waits, with all it has opened, until it is killed."""
    child = os.fork()
    if child == 0:
        LIBC.prctl(1, 9)
        try:
            (room.cgroup / "cgroup.procs").write_text(str(os.getpid()))
            with inside(room.netns):
                kept = work()
            while kept is not room:
                signal.pause()
        finally:
            os._exit(1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
