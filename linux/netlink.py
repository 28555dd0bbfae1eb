"""Netlink: requests in batches, dumps and notifications, of whichever family (rtnetlink, sock_diag).

Owns the bytes of messages and attributes (``include/uapi/linux/netlink.h``, RFC 3549), and :class:`Netlink`, a blocking
socket in whatever network namespace its thread was in when it was opened. Promises: a batch is one ``send`` and one
answer; every refusal is heard, with the kernel's own words (extended ACK). Refuses nothing by itself: what the kernel
refuses is raised as :class:`NetlinkRefused`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from linux.netns import cookie_of

REQUEST, ACK = 0x1, 0x4
REPLACE, EXCLUSIVE, CREATE, DUMP = 0x100, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_LAST = (_ERROR, _DONE)
"""One of them ends a dump."""
_INTERRUPTED = 0x10
"""NLM_F_DUMP_INTR: what is listed changed meanwhile, so the list may lack something."""

_SOL_NETLINK, _NO_ENOBUFS, _EXT_ACK, _STRICT_CHECK = 270, 5, 11, 12
_HEADER = struct.Struct("<IHHII")
_ATTRIBUTE = struct.Struct("<HH")
_NUMBER = struct.Struct("<HHI")
_PADDING = (b"", bytes(3), bytes(2), bytes(1))
_IFREQ, _SIOCGIFINDEX = struct.Struct("=16si20x"), 0x8933
_RCVBUFFORCE, _ROOM = 33, 4 << 20
_TIMEVAL = struct.Struct("<qq")
_ATTACH_FILTER, _FPROG, _FILTER = 26, struct.Struct("@HP"), struct.Struct("@HBBI")
"""SO_ATTACH_FILTER, struct sock_fprog, struct sock_filter."""
_ANSWER, _DUMP = 1 << 15, 1 << 17
"""Bytes of one recv: of an acknowledgement or one object, and of a dump."""

Take = Callable[[bytes, int, int], object]
"""Given what one recv gave, and where in it a message's payload begins and ends."""


class NetlinkRefused(OSError):
    """The kernel refused a message; ``strerror`` says which and why."""


class Message(NamedTuple):
    """One request; ``what`` is for the person who reads an error (words that are only put together then);
    ``tolerated`` errnos count as success.
    """

    kind: int
    flags: int
    body: bytes
    what: str | tuple[object, ...]
    tolerated: tuple[int, ...] = ()

    @property
    def named(self) -> str:
        """``what`` as text."""
        return self.what if isinstance(self.what, str) else " ".join(map(str, self.what))


def attribute(kind: int, value: bytes) -> bytes:
    """``struct rtattr`` with its value, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + _PADDING[len(value) & 3]


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """A 32-bit attribute."""
    return _NUMBER.pack(8, kind, value)


def parse_attributes(raw: bytes) -> dict[int, bytes]:
    """Attributes of a message by kind (nested and byte-order flags removed); the last of a kind wins."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def each_attribute(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each attribute in order, where one kind comes many times (nested arrays)."""
    offset = 0
    while offset + 4 <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, raw[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def first_attribute(raw: bytes, wanted: int) -> bytes:
    """The first attribute of a kind, without a look at what follows it; empty when there is none."""
    offset = 0
    while offset + 4 <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if kind == wanted:
            return raw[offset + 4 : offset + length]
        if length < 4:
            break
        offset += (length + 3) & ~3
    return b""


def pack(messages: Sequence[Message], first: int) -> bytearray:
    """A batch as it is sent, numbered from ``first`` on."""
    batch = bytearray()
    last = first + len(messages) - 1
    for sequence, message in enumerate(messages, first):
        length = _HEADER.size + len(message.body)
        # A refusal is always answered, success only where it is asked for: the last one's says that all are done.
        asked = ACK if sequence == last else 0
        batch += _HEADER.pack(length, message.kind, message.flags | REQUEST | asked, sequence, 0)
        batch += message.body + bytes(-length % 4)
    return batch


def parse(received: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence and body of each message in what one recv gave; ends at bytes that are none."""
    offset = 0
    while offset + _HEADER.size <= len(received):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(received, offset)
        if length < _HEADER.size or offset + length > len(received):
            return
        yield kind, flags, sequence, received[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


class Netlink:
    """A blocking netlink socket; belongs to the namespace that its thread was in when it was opened."""

    def __init__(self, timeout: int = 5, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        # Not settimeout: with that the interpreter polls before each send and each recv.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(timeout, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(timeout, 0))
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        try:  # more than the machine's bound for all (net.core.rmem_max), which 256 refusals may pass
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _ROOM)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        self._sequence = 0

    @property
    def port(self) -> int:
        """Its port identifier, which notifications of what it did carry (``nlmsg_pid``)."""
        identifier: int = self._socket.getsockname()[0]
        return identifier

    @property
    def cookie(self) -> int:
        """Cookie of the namespace that it belongs to."""
        return cookie_of(self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the socket back."""
        self._socket.close()

    def index_of(self, name: str) -> int:
        """Index of an interface of its namespace; ``if_nametoindex`` makes a socket for it. Raises OSError ENODEV."""
        answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, _IFREQ.pack(name.encode(), 0))
        return int(_IFREQ.unpack(answer)[1])

    def run(self, messages: Sequence[Message]) -> None:
        """Sends a batch and reads its answers. Raises NetlinkRefused for the first message that was refused.

        The kernel takes the messages one by one, so those before and after a refused one have taken effect.
        """
        if refused := self.attempt(messages):
            raise refused[0][1]

    def attempt(self, messages: Sequence[Message]) -> list[tuple[int, NetlinkRefused]]:
        """Like :meth:`run`; returns the places (0 … count - 1) of those that were refused, each with what was said."""
        if not messages:
            return []
        refused: list[tuple[int, NetlinkRefused]] = []
        for index, code, words in self._exchange(lambda first: pack(messages, first), len(messages)):
            message = messages[index]
            if code not in message.tolerated:
                refused.append((index, NetlinkRefused(code, f"{message.named}: {os.strerror(code)}{words}")))
        return refused

    def send_packed(self, packed: Callable[[int], bytearray], count: int) -> list[tuple[int, int]]:
        """Sends ``count`` messages that ``packed`` makes, given the number of the first, the last of which asks for an
        acknowledgement; returns the places of those that were refused, each with its errno.
        """
        return [(index, code) for index, code, _ in self._exchange(packed, count)] if count else []

    def _exchange(self, packed: Callable[[int], bytearray], count: int) -> list[tuple[int, int, str]]:
        """Sends a batch; index, errno and the kernel's words of each refusal."""
        first, last = self._sequence + 1, self._sequence + count
        self._sequence = last
        self._send(packed(first))
        refused: list[tuple[int, int, str]] = []
        done = 0
        while done != last:
            for kind, flags, sequence, payload in parse(self._receive(_ANSWER)):
                if kind != _ERROR or sequence < first:
                    continue
                done = sequence
                if code := -int.from_bytes(payload[:4], "little", signed=True):
                    refused.append((sequence - first, code, _extended(flags, payload)))
        return refused

    def ask(self, kind: int, body: bytes) -> bytes:
        """Payload of the one answer to a request that is no dump. Raises NetlinkRefused."""
        self._sequence += 1
        self._send(_HEADER.pack(_HEADER.size + len(body), kind, REQUEST, self._sequence, 0) + body)
        while True:
            for answer, flags, sequence, payload in parse(self._receive(_ANSWER)):
                if sequence != self._sequence:
                    continue
                if answer == _ERROR:
                    code = -int.from_bytes(payload[:4], "little", signed=True)
                    raise NetlinkRefused(code, f"request {kind}: {os.strerror(code)}{_extended(flags, payload)}")
                return payload

    def dump(
        self,
        kind: int,
        body: bytes,
        tolerated: tuple[int, ...] = (),
        keep: Callable[[bytes, int], bool] = lambda _received, _start: True,
    ) -> list[bytes]:
        """Payloads of a dump, those that are to be kept by what ``keep`` says, given a buffer and where in it one
        begins; empty for a ``tolerated`` errno. Raises NetlinkRefused, also when it failed half way; an interrupted
        dump (NLM_F_DUMP_INTR) is taken again.
        """
        found: list[bytes] = []

        def take(received: bytes, start: int, end: int) -> None:
            if keep(received, start):
                found.append(received[start:end])

        for _ in range(5):
            found.clear()
            try:
                if self.dump_each(kind, body, take):
                    return found
            except NetlinkRefused as error:
                if error.errno not in tolerated:
                    raise
                return []
        raise NetlinkRefused(errno.EAGAIN, "a dump was interrupted five times by changes")

    def dump_each(self, kind: int, body: bytes, take: Take, tolerated: tuple[int, ...] = ()) -> bool:
        """Gives each payload of a dump to ``take``, so that none needs to be kept or cut out; returns whether nothing
        changed meanwhile: otherwise some may be missing. Raises NetlinkRefused as :meth:`dump` does.
        """
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | DUMP, self._sequence, 0)
        self._send(header + body)
        whole = True
        while True:
            received = self._receive(_DUMP)
            seen, end = self._take(received, take)
            whole = whole and not seen & _INTERRUPTED
            if end is not None:
                refused = _dump_refused(end)
                if refused is not None and refused.errno not in tolerated:
                    raise refused
                return whole

    def _take(self, received: bytes, take: Take) -> tuple[int, tuple[int, int, bytes] | None]:
        """All flags of what one recv of a dump gave, and its last message (kind, flags, payload) if that was there."""
        seen, offset, size, unpack = 0, 0, len(received), _HEADER.unpack_from
        while offset + _HEADER.size <= size:
            length, kind, flags, sequence, _ = unpack(received, offset)
            if length < _HEADER.size or offset + length > size:
                break
            if sequence == self._sequence:
                seen |= flags
                if kind in _LAST:
                    return seen, (kind, flags, received[offset + _HEADER.size : offset + length])
                take(received, offset + _HEADER.size, offset + length)
            offset += (length + 3) & ~3
        return seen, None

    def _send(self, message: bytes | bytearray) -> None:
        try:
            self._socket.send(message)
        except BlockingIOError as error:
            raise TimeoutError("the kernel does not take a netlink message") from error

    def _receive(self, room: int) -> bytes:
        try:
            return self._socket.recv(room)
        except BlockingIOError as error:
            raise TimeoutError("the kernel does not answer a netlink message") from error


def _dump_refused(end: tuple[int, int, bytes]) -> NetlinkRefused | None:
    """What the last message of a dump says."""
    kind, flags, payload = end
    # A dump that fails, even at its first entry, ends with NLMSG_DONE and the errno (af_netlink.c).
    code = -int.from_bytes(payload[:4], "little", signed=True)
    if kind == _DONE and code <= 0:
        return None
    said = _extended(flags, payload) if kind == _ERROR else _words(flags, payload[4:])
    return NetlinkRefused(code, f"dump: {os.strerror(code)}{said}")


def _extended(flags: int, payload: bytes) -> str:
    original = int.from_bytes(payload[4:8], "little")
    return _words(flags, payload[4 + (_HEADER.size if flags & 0x100 else original) :])  # NLM_F_CAPPED


def _words(flags: int, attributes: bytes) -> str:
    """What the kernel says beside an errno (NLMSGERR_ATTR_MSG), empty when it says nothing."""
    if not flags & 0x200:  # NLM_F_ACK_TLVS
        return ""
    words = parse_attributes(attributes).get(1, b"")
    return f" ({words.rstrip(bytes(1)).decode(errors='replace')})" if words else ""


def listen(groups: int, silent: int = 0, own: int = 0) -> socket.socket:
    """A socket that hears what rtnetlink tells these groups (RTMGRP_…), not blocking; :func:`parse` reads it.

    With a protocol ``silent`` it hears less, and the kernel leaves the rest out: of routes of that protocol, and of
    next hop objects, that some process took one away, unless by the socket whose :attr:`Netlink.port` is ``own``; of
    neighbours that one is gone.

    An overflow is not reported as an error: libuv, which uvloop stands on, gives up polling a socket once it shows one
    (POLLERR). Whoever listens must therefore look at all from time to time.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    listener = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    listener.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
    if silent:
        program = _removals_of(silent, own)
        kept = ctypes.create_string_buffer(b"".join(_FILTER.pack(*one) for one in program))
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, _FPROG.pack(len(program), ctypes.addressof(kept)))
    listener.bind((0, groups))
    return listener


def _removals_of(protocol: int, own: int) -> tuple[tuple[int, int, int, int], ...]:
    """The socket filter of :func:`listen` (classic BPF: code, jump if true, jump if not, operand)."""
    load_word, load_half, load_byte, jump_if_equal, give = 0x20, 0x28, 0x30, 0x15, 0x06
    # It loads numbers as on the wire, and those of netlink are not: RTM_NEWROUTE and so on.
    new_route, del_route, new_neighbour, new_next_hop, del_next_hop = map(socket.htons, (24, 25, 28, 104, 105))
    return (
        (load_half, 0, 0, 4),  # nlmsg_type
        (jump_if_equal, 12, 0, new_neighbour),
        (jump_if_equal, 11, 0, new_next_hop),
        (jump_if_equal, 6, 0, del_next_hop),
        (jump_if_equal, 1, 0, new_route),
        (jump_if_equal, 2, 7, del_route),
        (load_byte, 0, 0, _HEADER.size + 5),  # rtm_protocol
        (jump_if_equal, 6, 5, protocol),
        (load_byte, 0, 0, _HEADER.size + 5),
        (jump_if_equal, 0, 3, protocol),
        (load_word, 0, 0, 12),  # nlmsg_pid: 0 where the kernel did it
        (jump_if_equal, 2, 0, 0),
        (jump_if_equal, 1, 0, socket.htonl(own)),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    )
