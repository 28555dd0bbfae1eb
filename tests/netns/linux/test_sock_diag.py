"""Connected UDP sockets on a real kernel: told, chosen, and ended; never one that was not named."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address

import pytest

from linux.netlink import Netlink
from linux.netns import inside, netns_cookie, open_netns
from linux.sock_diag import CHUNK, Connected, Listening, connected, end_sockets, listening_sockets
from tests.netns.linux.conftest import Namespace

pytestmark = pytest.mark.privileged
SOCK_DIAG = 4
SO_COOKIE = 57
PEERS = {
    "IPv4": ("127.0.0.1", socket.AF_INET),
    "IPv6": ("::1", socket.AF_INET6),
    "mapped": ("::ffff:127.0.0.1", socket.AF_INET6),
}
_RESIDENT = "import sys; print('here', flush=True); sys.stdin.read()"


@pytest.fixture
def there(netns: Namespace) -> Iterator[int]:
    """A descriptor of a namespace that a process lives in: sockets are looked for where processes are."""
    netns.ip("link set lo up")
    command = ["nsenter", f"--net={netns.path}", sys.executable, "-c", _RESIDENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as resident:
        descriptor = open_netns(netns.path)
        try:
            assert resident.stdout is not None
            resident.stdout.readline()
            yield descriptor
        finally:
            os.close(descriptor)
            resident.kill()


@contextmanager
def clients(descriptor: int, kind: str, *ports: int) -> Iterator[list[socket.socket]]:
    """UDP sockets of the namespace, connected to ports of its loopback."""
    address, family = PEERS[kind]
    with ExitStack() as opened:
        made = []
        with inside(descriptor):
            for port in ports:
                made.append(opened.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
                made[-1].connect((address, port))
                made[-1].setblocking(False)
        yield made


def cookie_of(one: socket.socket) -> int:
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


def reported(descriptor: int) -> list[Connected]:
    with inside(descriptor), Netlink(protocol=SOCK_DIAG) as netlink:
        return list(connected(netlink))


def cookie_of_namespace(descriptor: int) -> int:
    with inside(descriptor):
        return netns_cookie()


def is_ended(one: socket.socket) -> bool:
    """As its owner learns of it: the receive ends with an error."""
    if not select.select([one], [], [], 0)[0]:
        return False
    with pytest.raises(OSError, match="abort") as error:
        one.recv(1)
    return error.value.errno == errno.ECONNABORTED


@pytest.mark.parametrize("kind", PEERS)
def test_a_socket_is_reported_with_where_it_sends_to(there: int, kind: str) -> None:
    with clients(there, kind, 5353) as (one,):
        (found,) = reported(there)
        expected = ip_address("::1" if kind == "IPv6" else "127.0.0.1")
        assert (found.peer, found.port, found.cookie) == (expected, 5353, cookie_of(one))
        assert found.family == (socket.AF_INET if kind == "IPv4" else socket.AF_INET6)


def test_a_socket_that_is_not_connected_or_no_udp_is_not_reported(there: int) -> None:
    with inside(there), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as bound:
        bound.bind(("127.0.0.1", 0))
        with (
            closing(socket.create_server(("127.0.0.1", 0))) as server,
            closing(socket.create_connection(server.getsockname())),
            Netlink(protocol=SOCK_DIAG) as netlink,
        ):
            assert list(connected(netlink)) == []


@pytest.mark.parametrize("kind", PEERS)
def test_those_that_are_stale_end_and_no_others(there: int, kind: str) -> None:
    with clients(there, kind, 5353, 5354, 5353) as (first, other, second):
        done = end_sockets([cookie_of_namespace(there)], lambda one: one.port == 5353, overdue=lambda: False)
        assert {one.cookie for one in done.sockets} == {cookie_of(first), cookie_of(second)}
        assert done.resume == 0
        assert [is_ended(one) for one in (first, other, second)] == [True, False, True]
        with pytest.raises(OSError, match="estination address required") as error:
            first.send(b"x")
        assert error.value.errno == errno.EDESTADDRREQ
        assert [one.cookie for one in reported(there)] == [cookie_of(other)]


def test_a_namespace_that_nobody_asked_for_is_left_alone(there: int) -> None:
    asked: list[Connected] = []

    def stale(one: Connected) -> bool:
        asked.append(one)
        return True

    with clients(there, "IPv4", 5353) as (one,):
        for cookies in ([], [2**63]):
            assert end_sockets(cookies, stale, overdue=lambda: False).sockets == ()
        assert not is_ended(one)
    assert asked == []


def test_a_round_that_is_overdue_says_where_to_go_on(there: int) -> None:
    """It comes to every namespace, whichever it begins with."""
    ours, inode = cookie_of_namespace(there), os.fstat(there).st_ino
    with clients(there, "IPv4", 5353) as (one,):
        looked, resume = 0, 0
        while not is_ended(one):
            budget = iter([False])
            done = end_sockets([ours], lambda _: True, overdue=lambda: next(budget, True), resume=resume)  # noqa: B023
            resume = done.resume
            looked += 1
            assert looked < 500
        assert end_sockets([ours], lambda _: True, overdue=lambda: True, resume=inode).resume == inode


def test_more_than_one_message_takes(there: int) -> None:
    with clients(there, "IPv4", *[5353] * (CHUNK + 3)) as many:
        done = end_sockets([cookie_of_namespace(there)], lambda _: True, overdue=lambda: False)
        assert {one.cookie for one in done.sockets} == {cookie_of(one) for one in many}
        assert reported(there) == []


def test_a_socket_that_was_closed_meanwhile_is_no_error(there: int) -> None:
    """It is known by its cookie, so its successor at the same ports is not ended in its place."""
    with clients(there, "IPv4", 5353) as (one,):
        port = one.getsockname()[1]

        def closes(_seen: Connected) -> bool:
            one.close()
            return True

        done = end_sockets([cookie_of_namespace(there)], closes, overdue=lambda: False)
        assert len(done.sockets) == 1
        with inside(there), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as successor:
            successor.bind(("127.0.0.1", port))
            successor.connect(("127.0.0.1", 5353))
            successor.setblocking(False)
            assert not is_ended(successor)


def test_a_listener_says_how_many_connections_wait(there: int) -> None:
    with inside(there), ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        assert [one for one in listening_sockets() if one.port == port] == [Listening(port=port, waiting=0, bound=1)]
        for _ in range(2):
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        (full,) = (one for one in listening_sockets() if one.port == port)
        assert full.waiting > full.bound
