"""What connected sockets leave in the maps: a place each while they live, and nothing afterwards, however they end."""

from __future__ import annotations

import array
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from linux import bpf
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.maps import SLOTS
from services.dataplane.datapath.hooks import SOCKET_HOOKS, Hook
from services.dataplane.datapath.programs import SOCKETS, Datapath
from tests.bpf.rooms import (
    BACKENDS,
    PORT,
    TARGET,
    TCP,
    UDP,
    VIP,
    Room,
    cgroup,
    connect,
    emptied,
    open_room,
    plain,
    running,
)
from tests.bpf.world import run

pytestmark = pytest.mark.privileged

SO_COOKIE = 57
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
BUSY = 2**64 - 1
"""What stands in a slot while its place is written."""


@pytest.fixture(scope="module")
def shared(pins: Path, cache: Path) -> Iterator[Room]:
    with open_room(pins, cache, "place") as room:
        yield room


@pytest.fixture
def room(shared: Room) -> Iterator[Room]:
    yield emptied(shared)
    assert taken(shared.datapath) == set()


def taken(datapath: Datapath) -> set[int]:
    """Cookies of the sockets that have a place."""
    values = b"".join(raw for _, _, raw in bpf.lookup_batch(datapath.tables.slots.fd, 4, 8))
    return set(array.array("Q", values)) - {0}


def occupy(datapath: Datapath, cookie: int) -> None:
    """Gives every place to a socket of this cookie."""
    datapath.tables.slots.apply(dict.fromkeys(map(index, range(SLOTS)), lb.Slot(socket=cookie)))


def index(number: int) -> at.Index:
    return at.Index(index=number)


def client(version: int, protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, KINDS[protocol])
    made.settimeout(20)
    return made


def cookie_of_socket(one: socket.socket) -> int:
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def connected(version: int, protocol: int) -> socket.socket:
    made = client(version, protocol)
    made.connect((VIP[version], PORT))
    return made


@contextmanager
def living(room: Room, make: Callable[[], list[socket.socket]]) -> Iterator[tuple[int, list[int]]]:
    """A child with these sockets, by (pid, cookies); killed with all its sockets open."""
    reading, writing = os.pipe()

    def report() -> list[socket.socket]:
        made = make()
        os.write(writing, array.array("Q", map(cookie_of_socket, made)).tobytes())
        return made

    with running(room, report) as pid:
        os.close(writing)
        with open(reading, "rb", buffering=0) as pipe:
            cookies = array.array("Q", pipe.read(4096))
        assert cookies, "the child could not connect"
        yield pid, list(cookies)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_connected_socket_has_a_slot_while_it_lives(room: Room, version: int, protocol: int) -> None:
    room.serve(version, protocol, backends=BACKENDS[version][:1])
    tables, backend = room.datapath.tables, ip_address(BACKENDS[version][0])
    with living(room, lambda: [connected(version, protocol)]) as (_, cookies):
        assert taken(room.datapath) == set(cookies)
        virtual = lb.Virtual(address=ip_address(VIP[version]), port=PORT)
        assert tables.asked_for(cookies[0], backend, TARGET) == virtual
        assert tables.asked_for(cookies[0], backend, TARGET + 1) is None
        assert tables.asked_for(cookies[0] + SLOTS, backend, TARGET) is None
        assert tables.reverses.items() == {}
    assert taken(room.datapath) == set()
    assert tables.asked_for(cookies[0], backend, TARGET) is None


@pytest.mark.parametrize("version", [4, 6])
def test_many_short_connections_leave_nothing(room: Room, version: int) -> None:
    room.serve(version, TCP, backends=BACKENDS[version])
    room.do(lambda: [connect(VIP[version]) for _ in range(500)])
    assert taken(room.datapath) == set()
    assert room.datapath.tables.reverses.items() == {}


def test_killed_process_leaves_nothing(room: Room) -> None:
    room.serve(4, TCP, backends=BACKENDS[4])
    room.serve(6, UDP, backends=BACKENDS[6])
    many = [(4, TCP), (6, UDP)] * 20
    with living(room, lambda: [connected(*one) for one in many]) as (pid, cookies):
        assert taken(room.datapath) == set(cookies)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert taken(room.datapath) == set()


def test_socket_that_outlives_its_cgroup_leaves_nothing(room: Room) -> None:
    room.serve(4, TCP, backends=BACKENDS[4])
    ours, theirs = socket.socketpair()
    group = room.cgroup / "leaves"
    group.mkdir()

    def hand_over() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        with connected(4, TCP) as made:
            socket.send_fds(theirs, [b"x"], [made.fileno()])

    try:
        room.do(hand_over)
    finally:
        group.rmdir()
    with ours, theirs:
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=descriptor) as orphan:
            assert taken(room.datapath) == {cookie_of_socket(orphan)}
            assert plain(orphan.getpeername()) == (VIP[4], PORT)
            room.datapath.attach_sockets(room.cgroup)
        assert taken(room.datapath) == set()


@pytest.mark.parametrize("version", [4, 6])
def test_refused_connect_leaves_nothing(room: Room, version: int) -> None:
    room.serve(version, TCP, backends=({4: "127.0.0.9", 6: "::1"}[version],))

    def refused() -> int:
        with client(version, TCP) as one:
            with pytest.raises(ConnectionRefusedError):
                one.connect((VIP[version], PORT))
            return len(taken(room.datapath))

    assert room.do(refused) == 1
    assert taken(room.datapath) == set()


def test_connect_that_hears_nothing_leaves_nothing(room: Room) -> None:
    run("ip", "-n", room.netns, "route", "replace", "10.9.9.9", "dev", "lo")
    room.serve(4, TCP, backends=("10.9.9.9",))

    def unheard() -> int:
        with client(4, TCP) as one:
            one.settimeout(0.05)
            with pytest.raises(TimeoutError):
                one.connect((VIP[4], PORT))
            return len(taken(room.datapath))

    assert room.do(unheard) == 1
    assert taken(room.datapath) == set()


@pytest.mark.parametrize("version", [4, 6])
def test_connecting_again_keeps_the_slot(room: Room, version: int) -> None:
    room.serve(version, UDP, backends=BACKENDS[version])

    def again() -> set[tuple[tuple[str, int], int]]:
        seen = set()
        with client(version, UDP) as one:
            for _ in range(20):
                one.connect((VIP[version], PORT))
                one.send(b"who")
                assert plain(one.recvfrom(100)[1]) == (VIP[version], PORT)
                seen.add((plain(one.getpeername()), len(taken(room.datapath))))
        return seen

    assert room.do(again) == {((VIP[version], PORT), 1)}
    assert room.datapath.tables.reverses.items() == {}


@pytest.mark.parametrize("version", [4, 6])
def test_each_backend_of_an_unconnected_socket_is_the_service(room: Room, version: int) -> None:
    first, second = BACKENDS[version]

    def both() -> list[tuple[str, tuple[str, int]]]:
        with client(version, UDP) as one:
            for backend, other in ((first, second), (second, first)):
                room.serve(version, UDP, backends=(backend,))
                room.leave(version, UDP, other)
                one.sendto(b"who", (VIP[version], PORT))
            answers = [one.recvfrom(100) for _ in range(2)]
            assert taken(room.datapath) == set(), "it has no one backend to remember"
        return sorted((said.decode(), plain(peer)) for said, peer in answers)

    assert room.do(both) == [(first, (VIP[version], PORT)), (second, (VIP[version], PORT))]
    assert {str(key.address) for key in room.datapath.tables.reverses.items()} == {first, second}


@pytest.mark.parametrize("version", [4, 6])
def test_connected_socket_may_send_elsewhere(room: Room, version: int) -> None:
    """To the other backend through its Service, from a socket that is connected to the first: both bear its address."""
    first, second = BACKENDS[version]
    room.serve(version, UDP, backends=(first,))

    def mixed() -> list[tuple[str, int]]:
        with client(version, UDP) as one:
            one.connect((VIP[version], PORT))
            room.serve(version, UDP, backends=(second,))
            room.leave(version, UDP, first)
            one.sendto(b"who", (VIP[version], PORT))
            return [plain(one.getpeername())]

    assert room.do(mixed) == [(VIP[version], PORT)]
    assert {str(key.address) for key in room.datapath.tables.reverses.items()} == {second}


@pytest.mark.parametrize("version", [4, 6])
def test_younger_takes_the_slot_and_the_elder_is_still_known(room: Room, version: int) -> None:
    room.serve(version, TCP, backends=BACKENDS[version][:1])
    room.serve(version, UDP, backends=BACKENDS[version][:1])
    tables, backend = room.datapath.tables, ip_address(BACKENDS[version][0])
    virtual = lb.Virtual(address=ip_address(VIP[version]), port=PORT)

    def elder() -> None:
        with connected(version, UDP) as one:
            own = cookie_of_socket(one)
            sent = tables.sent.get(index(own % SLOTS))
            assert sent is not None
            tables.sent.apply(dict.fromkeys(map(index, range(SLOTS)), sent))
            occupy(room.datapath, own)  # whatever comes next falls on its place
            try:
                assert room.do(lambda: connect(VIP[version])) == (BACKENDS[version][0], (VIP[version], PORT))
            finally:
                occupy(room.datapath, 0)
            assert tables.asked_for(own, backend, TARGET) == virtual
            assert plain(one.getpeername()) == (VIP[version], PORT)
            one.send(b"who")
            assert plain(one.recvfrom(100)[1]) == (VIP[version], PORT)

    room.do(elder)
    assert len(tables.reverses.items()) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_slot_that_is_being_written_is_let_alone(room: Room, version: int) -> None:
    room.serve(version, TCP, backends=BACKENDS[version][:1])
    occupy(room.datapath, BUSY)
    try:
        assert room.do(lambda: connect(VIP[version])) == (BACKENDS[version][0], (VIP[version], PORT))
        assert taken(room.datapath) == {BUSY}
    finally:
        occupy(room.datapath, 0)
    assert len(room.datapath.tables.reverses.items()) == 1


@pytest.mark.parametrize("way", ["detached", "unpinned"])
def test_hook_that_went_is_noticed_and_put_back(room: Room, pins: Path, way: str) -> None:
    room.serve(4, TCP, backends=BACKENDS[4])
    pin = next((pins / "place").glob(f"v*/links/{SOCKETS}/{Hook.SOCK_RELEASE.value}"))
    if way == "detached":
        link = bpf.pinned(pin)
        bpf.link_detach(link)
        os.close(link)
    else:
        pin.unlink()
    state = room.datapath.links()[SOCKETS]
    assert not state.attached or Hook.SOCK_RELEASE not in state.hooks
    room.do(lambda: connect(VIP[4]))
    assert len(taken(room.datapath)) == 1, "nobody gives the place back"
    room.datapath.attach_sockets(room.cgroup)
    assert set(room.datapath.links()[SOCKETS].hooks) == set(SOCKET_HOOKS)
    assert room.datapath.links()[SOCKETS].attached
    occupy(room.datapath, 0)
    room.do(lambda: [connect(VIP[4]) for _ in range(20)])


def test_upgrade_from_before_there_were_slots(room: Room, pins: Path, cache: Path) -> None:
    """The pins of an older version know nothing of closing sockets: attaching once more adds the hook."""
    folder = pins / "older"
    with ExitStack() as stack:
        group = stack.enter_context(cgroup(f"am-older-{os.getpid()}"))
        old = Datapath.open(folder, cache)
        old.attach_sockets(group)
        old.close()
        next(folder.glob(f"v*/links/{SOCKETS}/{Hook.SOCK_RELEASE.value}")).unlink()
        new = Datapath.open(folder, cache)
        stack.callback(new.close)
        stack.callback(new.detach, SOCKETS)
        new.attach_sockets(group)
        assert set(new.links()[SOCKETS].hooks) == set(SOCKET_HOOKS)
        other = emptied(Room(new, room.netns, room.foreign, group))
        other.serve(4, TCP, backends=BACKENDS[4][:1])
        with living(other, lambda: [connected(4, TCP)]) as (_, cookies):
            assert taken(new) == set(cookies)
        assert taken(new) == set()
