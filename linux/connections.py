"""TCP connections that are only tried: which addresses and ports answer, with an acceptance or a refusal.

From the network namespace of the calling thread; blocking, for as long as the caller says.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address

Target = tuple[IPv4Address | IPv6Address, int]
_ANSWERS = (0, errno.ECONNREFUSED)


def answered(targets: Collection[Target], seconds: float) -> set[Target]:
    """Those of ``targets`` (address, port) that answer within ``seconds``; what they accept is closed at once."""
    waiting: dict[socket.socket, Target] = {}
    heard: set[Target] = set()
    try:
        for target in targets:
            family = socket.AF_INET if target[0].version == 4 else socket.AF_INET6
            one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            waiting[one] = target
            if one.connect_ex((str(target[0]), target[1])) in _ANSWERS:
                heard.add(target)
        end = time.monotonic() + seconds
        poll = select.poll()  # not select: descriptors may be above its 1,024
        by_number = {one.fileno(): one for one in waiting}
        for number in by_number:
            poll.register(number, select.POLLOUT)
        while waiting and (left := end - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000):
                poll.unregister(number)
                one = by_number[number]
                target = waiting.pop(one)
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in _ANSWERS:
                    heard.add(target)
                one.close()
    finally:
        for one in waiting:
            one.close()
    return heard
