"""The socket programs with real sockets: children in a cgroup and a network namespace of ours talk to Services."""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.service_layout import Scope, ServiceFlag
from services.dataplane.datapath.hooks import SOCKET_HOOKS
from services.dataplane.datapath.programs import SOCKETS
from tests.bpf.rooms import BACKENDS, PORT, TARGET, TCP, UDP, VIP, Room, connect, cookie_of, emptied, open_room, plain

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def shared(pins: Path, cache: Path) -> Iterator[Room]:
    with open_room(pins, cache, "sock") as room:
        yield room


@pytest.fixture
def room(shared: Room) -> Room:
    return emptied(shared)


def ask(host: str, *, connected: bool, times: int = 1) -> list[tuple[str, tuple[str, int]]]:
    """The same by UDP, with one socket; whom is what recvfrom says."""
    answers = []
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
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
        assert time.monotonic() - started < 10

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


def test_links_show_all_hooks(shared: Room) -> None:
    state = shared.datapath.links()[SOCKETS]
    assert state.attached
    assert set(state.hooks) == set(SOCKET_HOOKS)
    assert state.ifindex == shared.cgroup.stat().st_ino


def test_attaching_again_replaces_in_place(shared: Room) -> None:
    before = shared.datapath.links()[SOCKETS]
    shared.datapath.attach_sockets(shared.cgroup)
    assert shared.datapath.links()[SOCKETS] == before
