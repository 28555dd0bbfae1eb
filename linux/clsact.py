"""cls_bpf filters on a clsact qdisc, by rtnetlink: how programs are attached where the kernel has no tcx (before 6.6).

Filters have a fixed handle and priority of ours, so setting one again *replaces* it in one step (delete and add would
let about a third of the packets of that moment through). A filter holds its program; nothing needs a pin to stay.
All calls act in the caller's network namespace. Sources: net/sched/cls_bpf.c, include/uapi/linux/pkt_cls.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from linux.rtnl import Message

HANDLE = 1
PRIORITY = 0xA17

_RTM_NEWQDISC, _RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 36, 44, 45, 46
_REQUEST, _ACK, _DUMP, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x300, 0x400, 0x200
_DONE, _ERROR = 3, 2
_CLSACT = 0xFFFFFFF1
_ALL_PROTOCOLS = socket.htons(0x0003)
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1


class Parent(IntEnum):
    """Where on the qdisc."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """A program for a place; ``program`` is its descriptor, ``name`` what ``tc filter show`` says."""

    parent: Parent
    program: int
    name: str


def set_filters(ifindex: int, filters: Iterable[Filter]) -> list[Message]:
    """Messages that put programs at an interface's hooks, each in place of ours that may be there."""
    qdisc = _tc(ifindex, 0xFFFF0000, _CLSACT, 0) + _attribute(_KIND, b"clsact\0")
    messages = [Message(_RTM_NEWQDISC, _CREATE | _EXCLUSIVE, qdisc, f"clsact of link {ifindex}", (errno.EEXIST,))]
    for one in filters:
        options = (
            _attribute(_BPF_FD, struct.pack("<I", one.program))
            + _attribute(_BPF_NAME, one.name.encode() + b"\0")
            + _attribute(_BPF_FLAGS, struct.pack("<I", _DIRECT_ACTION))
        )
        body = _filter(ifindex, one.parent) + _attribute(_KIND, b"bpf\0") + _attribute(_OPTIONS, options)
        messages.append(Message(_RTM_NEWTFILTER, _CREATE, body, f"filter {one.name} of link {ifindex}"))
    return messages


def remove_filter(ifindex: int, parent: Parent) -> None:
    """Takes our filter away; that it or the interface is gone already is no error."""
    try:
        _request(_RTM_DELTFILTER, 0, _filter(ifindex, parent))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise


def filter_program(ifindex: int, parent: Parent) -> int:
    """The id of the program that our filter runs, 0 without one."""
    try:
        replies = _request(_RTM_GETTFILTER, _DUMP, _tc(ifindex, 0, parent, PRIORITY << 16 | _ALL_PROTOCOLS))
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL, errno.ENOENT):
            return 0
        raise
    for body in replies:
        found, handle = struct.unpack_from("<iI", body, 4)
        options = dict(_attributes(body[20:])).get(_OPTIONS, b"")
        program = dict(_attributes(options)).get(_BPF_ID)
        if found == ifindex and handle == HANDLE and program is not None:
            return int.from_bytes(program[:4], "little")
    return 0


def _tc(ifindex: int, handle: int, parent: int, info: int) -> bytes:
    """``struct tcmsg``."""
    return struct.pack("<BxxxiIII", socket.AF_UNSPEC, ifindex, handle, parent, info)


def _filter(ifindex: int, parent: Parent) -> bytes:
    return _tc(ifindex, HANDLE, parent, PRIORITY << 16 | _ALL_PROTOCOLS)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while len(raw) >= 4:
        length, kind = struct.unpack_from("<HH", raw)
        if length < 4:
            return
        yield kind & 0x3FFF, raw[4:length]
        raw = raw[(length + 3) & ~3 :]


def _request(kind: int, flags: int, body: bytes) -> list[bytes]:
    """One request; the bodies of its replies. Raises OSError with the kernel's errno."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as rtnetlink:
        rtnetlink.settimeout(5)
        rtnetlink.bind((0, 0))
        rtnetlink.send(struct.pack("<IHHII", 16 + len(body), kind, flags | _REQUEST | _ACK, 1, 0) + body)
        replies: list[bytes] = []
        while True:
            raw = rtnetlink.recv(1 << 16)
            while raw:
                length, reply, _, _, _ = struct.unpack_from("<IHHII", raw)
                message, raw = raw[16:length], raw[(length + 3) & ~3 :]
                if reply == _ERROR:
                    code = -struct.unpack_from("<i", message)[0]
                    if code:
                        raise OSError(code, f"rtnetlink request {kind}: {os.strerror(code)}")
                    return replies
                if reply == _DONE:
                    return replies
                replies.append(message)
