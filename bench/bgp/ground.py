"""Two network namespaces: the speaker that is measured in one, the peers that send to it and receive from it in the
other, each on a link of its own. Both are gone when the `with` ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

from proto.net import Address
from services.routing.core.bgp.values import Family

NETNS = "/run/netns"
PEERS, SPEAKER = (f"am-bench-bgp-{letter}{os.getpid()}" for letter in "ps")
"""Names of the namespaces, of this process alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link between the speaker and a peer."""

    device: str
    speaker: Address
    peer: Address


def links(family: Family) -> tuple[Link, Link]:
    """The sender's and the receiver's."""
    text = "172.28.{}.{}" if family is Family.IPV4 else "fd00:172:28:{}::{}"
    first, second = (
        Link(device=f"up{n}", speaker=ip_address(text.format(n, 2)), peer=ip_address(text.format(n, 1))) for n in (0, 1)
    )
    return first, second


def path(name: str) -> str:
    """Of a namespace."""
    return f"{NETNS}/{name}"


def _ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], check=False, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise SystemExit(f"ip {words}: {done.stderr.strip()}; run it as root")


def _delete(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=30)


@contextmanager
def namespaces() -> Iterator[None]:
    """Both, with links of both families. Raises `SystemExit` where they cannot be made, and from then on when the
    process is told to end, so that nothing is left.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        for name in (PEERS, SPEAKER):
            _ip(f"netns add {name}")
            stack.callback(_delete, name)
            _ip(f"-n {name} link set lo up")
        for number in (0, 1):
            _ip(f"-n {PEERS} link add up{number} type veth peer name up{number} netns {SPEAKER}")
            for name in (PEERS, SPEAKER):
                _ip(f"-n {name} link set up{number} up")
            for family, length in ((Family.IPV4, 24), (Family.IPV6, 64)):
                link = links(family)[number]
                nodad = "nodad" if family is Family.IPV6 else ""
                _ip(f"-n {PEERS} addr add {link.peer}/{length} dev {link.device} {nodad}")
                _ip(f"-n {SPEAKER} addr add {link.speaker}/{length} dev {link.device} {nodad}")
        yield
