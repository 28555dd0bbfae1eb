"""cls_bpf filters on a clsact qdisc, by rtnetlink: how programs are attached where the kernel has no tcx (before 6.6).

Filters have a fixed handle and priority of ours, so setting one again *replaces* it in one step (delete and add would
let about a third of the packets of that moment through). A filter holds its program; nothing needs a pin to stay.
All calls act in the caller's network namespace. Sources: net/sched/cls_bpf.c, include/uapi/linux/pkt_cls.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from linux.netlink import CREATE, EXCLUSIVE, Message, Netlink, attribute, number, parse_attributes, text

HANDLE = 1
PRIORITY = 0xA17

_RTM_NEWQDISC, _RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 36, 44, 45, 46
_CLSACT = 0xFFFFFFF1
_ALL_PROTOCOLS = socket.htons(0x0003)
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EINVAL)
"""What the kernel says of a filter, a qdisc or an interface that is not there."""


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
    qdisc = _tc(ifindex, 0xFFFF0000, _CLSACT, 0) + text(_KIND, "clsact")
    messages = [Message(_RTM_NEWQDISC, CREATE | EXCLUSIVE, qdisc, f"clsact of link {ifindex}", (errno.EEXIST,))]
    for one in filters:
        options = number(_BPF_FD, one.program) + text(_BPF_NAME, one.name) + number(_BPF_FLAGS, _DIRECT_ACTION)
        body = _filter(ifindex, one.parent) + text(_KIND, "bpf") + attribute(_OPTIONS, options)
        messages.append(Message(_RTM_NEWTFILTER, CREATE, body, f"filter {one.name} of link {ifindex}"))
    return messages


def remove_filter(ifindex: int, parent: Parent) -> None:
    """Takes our filter away; that it or the interface is gone already is no error."""
    gone = Message(_RTM_DELTFILTER, 0, _filter(ifindex, parent), f"filter of link {ifindex}", _ABSENT)
    with Netlink() as rtnetlink:
        rtnetlink.run([gone])


def filter_program(ifindex: int, parent: Parent) -> int:
    """The id of the program that our filter runs, 0 without one."""
    with Netlink() as rtnetlink:
        query = _tc(ifindex, 0, parent, PRIORITY << 16 | _ALL_PROTOCOLS)
        replies = rtnetlink.dump(_RTM_GETTFILTER, query, _ABSENT)
    for body in replies:
        found, handle = struct.unpack_from("<iI", body, 4)
        options = parse_attributes(body[20:]).get(_OPTIONS, b"")
        program = parse_attributes(options).get(_BPF_ID)
        if found == ifindex and handle == HANDLE and program is not None:
            return int.from_bytes(program[:4], "little")
    return 0


def _tc(ifindex: int, handle: int, parent: int, info: int) -> bytes:
    """``struct tcmsg``."""
    return struct.pack("<BxxxiIII", socket.AF_UNSPEC, ifindex, handle, parent, info)


def _filter(ifindex: int, parent: Parent) -> bytes:
    return _tc(ifindex, HANDLE, parent, PRIORITY << 16 | _ALL_PROTOCOLS)
