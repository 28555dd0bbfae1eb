"""The kernel's messages, cut anywhere or made of noise: the readers of ``linux/`` read what is whole and raise nothing
but what they say they raise.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linux import netlink, rtnl
from linux.netlink import Message, attribute, first_attribute, number, pack, parse, parse_attributes, text
from linux.sock_diag import Connected
from linux.sock_diag import parse as parse_socket

ROUTE = rtnl.replace_route(ip_network("fd00:10:244::/64"), via=ip_address("fd00::1"), link=3, metric=64, protocol=186)
LINK = rtnl.ifinfo(7) + text(3, "am0123456789ab") + number(4, 1500) + number(5, 8)
BATCH = bytes(pack([ROUTE, rtnl.set_up(7), rtnl.add_neighbour(7, ip_address("10.9.0.1"), bytes(6))], 41))


@pytest.mark.parametrize("length", range(len(BATCH)))
def test_a_batch_cut_anywhere_is_read_as_far_as_it_is_whole(length: int) -> None:
    whole = list(parse(BATCH))
    found = list(parse(BATCH[:length]))
    assert found == whole[: len(found)]
    ends = [16 + len(body) + (-len(body) % 4) for *_, body in whole]
    assert len(found) == sum(sum(ends[: count + 1]) <= length for count in range(len(ends)))


@pytest.mark.parametrize("length", range(len(ROUTE.body) + 1))
def test_a_route_cut_anywhere_has_what_is_left_of_it(length: int) -> None:
    whole = rtnl.parse_route(ROUTE.body)
    if length < 12:
        with pytest.raises(struct.error):
            rtnl.parse_route(ROUTE.body[:length])
        return
    found = rtnl.parse_route(ROUTE.body[:length])
    assert (found.family, found.length, found.table, found.protocol, found.kind) == (
        whole.family,
        whole.length,
        whole.table,
        whole.protocol,
        whole.kind,
    )
    assert whole.destination.startswith(found.destination)
    assert whole.gateway.startswith(found.gateway)


@pytest.mark.parametrize("length", range(len(LINK) + 1))
def test_a_name_cut_anywhere_is_a_beginning_of_it(length: int) -> None:
    assert "am0123456789ab".startswith(rtnl.link_name(LINK[:length]))


@given(st.binary(max_size=300))
def test_noise_is_read_to_its_end(noise: bytes) -> None:
    assert isinstance(rtnl.link_name(noise), str)
    for kind in (1, 3, 0x3FFF):
        assert first_attribute(noise, kind) in noise
    if len(noise) >= 12:
        assert len(rtnl.parse_route(noise).destination) <= len(noise)


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=24)), max_size=8), st.integers(0, 0x3FFF))
def test_the_first_of_a_kind_and_the_last(pairs: list[tuple[int, bytes]], wanted: int) -> None:
    """Of several of a kind the name of a link is the first, as the kernel means it; others the last."""
    raw = b"".join(attribute(kind, value) for kind, value in pairs)
    assert parse_attributes(raw) == dict(pairs)
    assert first_attribute(raw, wanted) == next((value for kind, value in pairs if kind == wanted), b"")


@pytest.mark.parametrize("flag", [0x8000, 0x4000, 0xC000])
def test_marks_of_nesting_and_byte_order_are_no_part_of_a_kind(flag: int) -> None:
    assert parse_attributes(attribute(7 | flag, b"nest")) == {7: b"nest"}


@pytest.mark.parametrize("length", [0, 1, 3])
def test_an_attribute_shorter_than_its_head_ends_the_reading(length: int) -> None:
    broken = struct.pack("<HH", length, 9) + attribute(3, b"never seen")
    assert parse_attributes(attribute(1, b"seen") + broken) == {1: b"seen"}
    assert first_attribute(attribute(1, b"seen") + broken, 3) == b""


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@given(name=st.binary(min_size=48, max_size=48))
def test_any_socket_that_the_kernel_shows_has_a_peer_and_a_cookie(family: int, name: bytes) -> None:
    found = parse_socket(family, name)
    assert isinstance(found, Connected)
    assert found.name == name
    assert found.cookie.to_bytes(8, "little") == name[-8:]
    assert found.port == int.from_bytes(name[2:4], "big")
    assert found.peer.version == 4 or family == socket.AF_INET6


@pytest.mark.parametrize("length", [*range(48), 49, 56])
def test_a_socket_that_is_not_whole_is_an_error_of_its_bytes(length: int) -> None:
    with pytest.raises(struct.error):
        parse_socket(socket.AF_INET, bytes(length))


class Wire(netlink.Netlink):
    """A socket whose kernel is a list of what it answers: for answers that no kernel here gives."""

    def __init__(self, *answers: bytes) -> None:
        self._left = list(answers)
        self._sequence = 0
        self.sent: list[bytes] = []

    def _send(self, message: bytes | bytearray) -> None:
        self.sent.append(bytes(message))

    def _receive(self, room: int) -> bytes:
        if not self._left:
            raise TimeoutError("the kernel does not answer a netlink message")
        return self._left.pop(0)


def answer(sequence: int, code: int, *, flags: int = 0, more: bytes = b"", kind: int = 2) -> bytes:
    """NLMSG_ERROR (0: an acknowledgement) or, as ``kind`` 3, NLMSG_DONE."""
    body = struct.pack("<i", -code) + more
    return struct.pack("<IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


def notification(sequence: int, body: bytes, *, flags: int = 0) -> bytes:
    return struct.pack("<IHHII", 16 + len(body), 24, flags, sequence, 0) + body + bytes(-len(body) % 4)


ORIGINAL = struct.pack("<IHHII", 16, 24, 0, 1, 0)
WORDS = attribute(1, b"Nexthop has invalid gateway\0")


@pytest.mark.parametrize(
    ("flags", "more", "said"),
    [
        (0x300, ORIGINAL + WORDS, "Invalid argument (Nexthop has invalid gateway)"),  # capped: the header alone
        (
            0x200,
            struct.pack("<IHHII", 28, 24, 0, 1, 0) + bytes(12) + WORDS,
            "Invalid argument (Nexthop has invalid gateway)",
        ),
        (0x100, ORIGINAL, "Invalid argument"),
        (0x300, ORIGINAL, "Invalid argument"),
        (0x300, ORIGINAL + attribute(1, b"\xff\0"), "Invalid argument (\ufffd)"),
        (0x300, ORIGINAL + attribute(2, bytes(4)), "Invalid argument"),
        (0x300, ORIGINAL + b"\x02\x00\x01\x00", "Invalid argument"),
        (0x200, b"", "Invalid argument"),
        (0, b"", "Invalid argument"),
    ],
)
def test_what_the_kernel_says_beside_an_errno(flags: int, more: bytes, said: str) -> None:
    ((index, refused),) = Wire(answer(1, errno.EINVAL, flags=flags, more=more)).attempt([ROUTE])
    assert (index, refused.errno) == (0, errno.EINVAL)
    assert refused.strerror == f"route fd00:10:244::/64: {said}"


def test_an_answer_to_an_earlier_batch_is_passed_over() -> None:
    wire = Wire(answer(1, 0), answer(1, errno.EIO) + answer(2, errno.ENODEV) + answer(3, 0))
    assert wire.attempt([ROUTE]) == []
    assert [(index, one.errno) for index, one in wire.attempt([ROUTE, ROUTE])] == [(0, errno.ENODEV)]


def test_answers_may_come_in_many_reads_and_notifications_between_them() -> None:
    wire = Wire(notification(2, b"somebody else's"), answer(2, errno.EEXIST), notification(0, b""), answer(3, 0))
    wire._sequence = 1
    tolerant = Message(24, 0, b"", ("route", "x"), (errno.EEXIST,))
    assert wire.attempt([tolerant, ROUTE]) == []


def test_a_kernel_that_does_not_answer_ends_in_a_timeout() -> None:
    calls: list[Callable[[Wire], object]] = [
        lambda wire: wire.attempt([ROUTE]),
        lambda wire: wire.ask(18, b""),
        lambda wire: wire.dump(26, b""),
    ]
    for call in calls:
        with pytest.raises(TimeoutError, match="does not answer"):
            call(Wire())


def test_a_dump_is_taken_again_while_what_it_lists_changes() -> None:
    torn = notification(1, b"half", flags=0x10) + answer(1, 0, kind=3)
    late = notification(2, b"half") + answer(2, 0, kind=3, flags=0x10)
    whole = notification(3, b"one") + notification(3, b"two") + answer(3, 0, kind=3)
    wire = Wire(torn, late, whole)
    assert wire.dump(26, b"") == [b"one", b"two"]
    assert len(wire.sent) == 3


def test_a_dump_that_always_changes_ends() -> None:
    wire = Wire(*(notification(count, b"", flags=0x10) + answer(count, 0, kind=3) for count in range(1, 7)))
    with pytest.raises(netlink.NetlinkRefused, match="interrupted five times") as refused:
        wire.dump(26, b"")
    assert refused.value.errno == errno.EAGAIN
    assert len(wire.sent) == 5


@pytest.mark.parametrize("kind", [2, 3], ids=["error", "done"])
@pytest.mark.parametrize("entries", [0, 2])
def test_a_dump_that_fails_half_way_is_no_short_list(kind: int, entries: int) -> None:
    listed = b"".join(notification(1, b"x") for _ in range(entries))
    more = ORIGINAL if kind == 2 else b""
    failed = listed + answer(1, errno.ENOBUFS, kind=kind, flags=0x300, more=more + WORDS)
    with pytest.raises(netlink.NetlinkRefused) as refused:
        Wire(failed).dump(26, b"")
    assert refused.value.errno == errno.ENOBUFS
    assert refused.value.strerror == f"dump: {os.strerror(errno.ENOBUFS)} (Nexthop has invalid gateway)"
    assert Wire(failed).dump(26, b"", (errno.ENOBUFS,)) == []


def test_what_answers_another_request_is_no_answer() -> None:
    wire = Wire(notification(7, b"stale") + answer(7, errno.EIO), notification(1, b"mine"))
    assert wire.ask(18, b"") == b"mine"
    with pytest.raises(netlink.NetlinkRefused, match="request 18: No such device") as refused:
        Wire(answer(1, errno.ENODEV, flags=0x100, more=ORIGINAL)).ask(18, b"")
    assert refused.value.errno == errno.ENODEV
