"""The socket programs with real sockets: children in a cgroup and a network namespace of ours talk to Services."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import pytest

from services.dataplane.core import layout as at
from services.dataplane.core import service_layout as lb
from services.dataplane.core.service_layout import Scope, ServiceFlag
from services.dataplane.kernel.hooks import SOCKET_HOOKS
from services.dataplane.kernel.programs import SOCKETS, Datapath
from tests.bpf.world import LIBC, empty, inside, namespace, run

pytestmark = pytest.mark.privileged

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
            except OSError as error:
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


@pytest.fixture(scope="module")
def open_room(pins: Path, cache: Path) -> Iterator[Room]:
    pid = os.getpid()
    with ExitStack() as stack:
        netns = stack.enter_context(namespace(f"am-sock-{pid}"))
        foreign = stack.enter_context(namespace(f"am-foreign-{pid}"))
        group = stack.enter_context(cgroup(f"am-sock-{pid}"))
        for address in (*BACKENDS[4], *BACKENDS[6]):
            bits = "32" if "." in address else "128"
            run("ip", "-n", netns, "addr", "add", f"{address}/{bits}", "dev", "lo")
        datapath = Datapath.open(pins / "sockets", cache)
        datapath.attach_sockets(group)
        stack.callback(datapath.close)
        stack.callback(datapath.detach_sockets)
        for protocol in (TCP, UDP):
            for address in (*BACKENDS[4], *BACKENDS[6]):
                stack.enter_context(backend(netns, address, protocol))
        yield Room(datapath, netns, foreign, group)


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


@pytest.fixture
def room(open_room: Room) -> Room:
    tables = open_room.datapath.tables
    empty(tables, ("services", "backends", "members", "affinities", "reverses", "cookies"))
    tables.cookies.put(at.CookieKey(cookie=cookie_of(open_room.netns)), at.CookieMark())
    return open_room


def plain(address: Any) -> tuple[str, int]:
    return str(address[0]), int(address[1])


def connect(host: str, port: int = PORT, family: int | None = None) -> tuple[str, tuple[str, int]]:
    """(what the backend says, whom the socket believes it talks to)."""
    family = family or (socket.AF_INET6 if ":" in host else socket.AF_INET)
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        client.connect((host, port))
        return client.recv(100).decode(), plain(client.getpeername())


def ask(host: str, *, connected: bool, times: int = 1) -> list[tuple[str, tuple[str, int]]]:
    """The same by UDP, with one socket; whom is what recvfrom says."""
    answers = []
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        if connected:
            client.connect((host, PORT))
            assert plain(client.getpeername()) == (host, PORT)
        for _ in range(times):
            if connected:
                client.send(b"who")
            else:
                client.sendto(b"who", (host, PORT))
            said, peer = client.recvfrom(100)
            answers.append((said.decode(), plain(peer)))
    return answers


@pytest.mark.parametrize("version", [4, 6])
class TestService:
    def test_tcp(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version][:1])
        said, peer = room.do(lambda: connect(VIP[version]))
        assert (said, peer) == (BACKENDS[version][0], (VIP[version], PORT))

    @pytest.mark.parametrize("connected", [False, True])
    def test_udp(self, room: Room, version: int, connected: bool) -> None:
        room.serve(version, UDP, backends=BACKENDS[version][:1])
        answers = room.do(lambda: ask(VIP[version], connected=connected))
        assert answers == [(BACKENDS[version][0], (VIP[version], PORT))]

    def test_backends_share_the_work(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version])
        said = Counter(room.do(lambda: [connect(VIP[version])[0] for _ in range(60)]))
        assert set(said) == set(BACKENDS[version])
        assert min(said.values()) > 5

    def test_affinity_keeps_the_backend_until_it_leaves(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version], affinity=60)
        first = room.do(lambda: [connect(VIP[version])[0] for _ in range(20)])
        assert len(set(first)) == 1
        again = room.do(lambda: [connect(VIP[version])[0] for _ in range(5)])
        assert set(again) == set(first)
        other = next(address for address in BACKENDS[version] if address != first[0])
        room.serve(version, TCP, backends=(other,), affinity=60)
        room.leave(version, TCP, first[0])
        assert room.do(lambda: connect(VIP[version]))[0] == other

    def test_affinity_ends_by_time(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version], affinity=1)
        room.do(lambda: connect(VIP[version]))
        ((key, value),) = room.datapath.tables.affinities.items().items()
        room.serve(version, TCP, backends=BACKENDS[version][1:], affinity=1)
        stale = lb.Affinity(last=value.last - 2_000_000_000, address=ip_address(BACKENDS[version][0]), port=TARGET)
        room.datapath.tables.affinities.put(key, stale)
        assert room.do(lambda: connect(VIP[version]))[0] == BACKENDS[version][1]

    def test_udp_socket_keeps_its_backend(self, room: Room, version: int) -> None:
        room.serve(version, UDP, backends=BACKENDS[version])
        answers = room.do(lambda: ask(VIP[version], connected=False, times=20))
        assert len({said for said, _ in answers}) == 1

    def test_no_backends_refuses_at_once(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=())
        room.serve(version, UDP, backends=())
        started = time.monotonic()
        asks: tuple[Callable[[], object], ...] = (
            lambda: connect(VIP[version]),
            lambda: ask(VIP[version], connected=False),
        )
        for question in asks:
            with pytest.raises(OSError) as refusal:
                room.do(question)
            assert refusal.value.errno == errno.ECONNREFUSED
        assert time.monotonic() - started < 1

    def test_foreign_namespace_is_left_alone(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version][:1])
        with pytest.raises(OSError, match="unreachable") as refusal:
            room.do(lambda: connect(VIP[version]), room.foreign)
        assert refusal.value.errno == errno.ENETUNREACH

    def test_entry_for_packets_is_none_for_sockets(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version][:1], scope=Scope.PACKET)
        with pytest.raises(OSError, match="unreachable"):
            room.do(lambda: connect(VIP[version]))

    def test_entry_for_the_node_acts_in_the_nodes_namespace_alone(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version][:1], flags=ServiceFlag.NODE_ONLY)
        room.serve(version, UDP, backends=(), flags=ServiceFlag.NODE_ONLY)
        with pytest.raises(OSError, match="unreachable"):
            room.do(lambda: connect(VIP[version]))
        with pytest.raises(OSError, match="unreachable"):
            room.do(lambda: ask(VIP[version], connected=True))
        key = at.CookieKey(cookie=cookie_of(room.netns))
        room.datapath.tables.cookies.put(key, at.CookieMark(node=True))
        assert room.do(lambda: connect(VIP[version]))[0] == BACKENDS[version][0]
        with pytest.raises(ConnectionRefusedError):
            room.do(lambda: ask(VIP[version], connected=True))

    def test_other_ports_and_protocols_are_left_alone(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version][:1])
        with pytest.raises(OSError, match="unreachable"):
            room.do(lambda: connect(VIP[version], PORT + 1))
        with pytest.raises(OSError, match="unreachable"):
            room.do(lambda: ask(VIP[version], connected=True))

    def test_backend_itself_is_reached_and_named_as_itself(self, room: Room, version: int) -> None:
        room.serve(version, TCP, backends=BACKENDS[version][:1])
        target = BACKENDS[version][0]

        def mixed() -> list[tuple[str, tuple[str, int]]]:
            return [connect(VIP[version]), connect(target, TARGET), connect(VIP[version]), connect(target, TARGET)]

        assert room.do(mixed) == [(target, (VIP[version], PORT)), (target, (target, TARGET))] * 2


class TestMapped:
    MAPPED = f"::ffff:{VIP[4]}"

    def test_tcp_by_an_ipv6_socket(self, room: Room) -> None:
        room.serve(4, TCP, backends=BACKENDS[4][:1])
        said, peer = room.do(lambda: connect(self.MAPPED))
        assert (said, peer) == (BACKENDS[4][0], (self.MAPPED, PORT))

    @pytest.mark.parametrize("connected", [False, True])
    def test_udp_by_an_ipv6_socket(self, room: Room, connected: bool) -> None:
        room.serve(4, UDP, backends=BACKENDS[4][:1])
        answers = room.do(lambda: ask(self.MAPPED, connected=connected))
        assert answers == [(BACKENDS[4][0], (self.MAPPED, PORT))]


def test_links_tell_of_all_hooks(open_room: Room) -> None:
    state = open_room.datapath.links()[SOCKETS]
    assert state.attached
    assert set(state.hooks) == set(SOCKET_HOOKS)
    assert state.ifindex == open_room.cgroup.stat().st_ino


def test_attaching_again_replaces_in_place(open_room: Room) -> None:
    before = open_room.datapath.links()[SOCKETS]
    open_room.datapath.attach_sockets(open_room.cgroup)
    assert open_room.datapath.links()[SOCKETS] == before
