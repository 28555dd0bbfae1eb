"""Names and marks of pods' veth links, by which a restarted agent recognises them.

Owns the marks: the host end's name is ``am`` and ten characters of a hash of (container, interface); its alias says the
same in full, with the pod's uid and the cookie of its network namespace; its link group says whether it lives or awaits
removal; its routes carry our protocol number. Promises: names are at most 15 characters (IFNAMSIZ) and the same for the
same attachment for ever; ``parse_alias(alias(…))`` gives back what went in. The MAC addresses are locally administered:
one for all host ends (pods route to it), one per attachment for the pod.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from proto.net import Address
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.cni.request import check_container, check_interface

PREFIX = "am"
PROTOCOL = 187
"""rtm_protocol of a pod's route on its node (``routing`` has 186). A routing suite may use the number too: only routes
over links of ours are ever judged by it."""
GROUP_LIVE = 0x616D
GROUP_DELETING = 0x616E
HOST_MAC = bytes.fromhex("02616d000001")
ALIAS_VERSION = "airmesh/1"
MAX_ALIAS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLink:
    """A veth as it should be: the host's end here, the pod's in its namespace."""

    attachment: Attachment
    uid: str
    addresses: tuple[Address, ...]
    mtu: int

    @property
    def host_name(self) -> str:
        """Name of the host's end."""
        return host_name(self.attachment)

    @property
    def mac(self) -> bytes:
        """MAC address of the pod's end."""
        return pod_mac(self.attachment)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a link's alias says."""

    attachment: Attachment
    uid: str
    cookie: int
    """Of the pod's network namespace; never used again while the machine runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLink:
    """A link of this namespace as the kernel tells it."""

    index: int
    name: str
    alias: str
    group: int
    up: bool
    mtu: int
    mac: bytes
    peer: int = 0
    """Interface index of the other end of a veth, in the namespace that it is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The MTU that a pod's link should have, and where its ends are."""

    name: str
    index: int
    """Of the host's end."""
    peer: int
    """Of the pod's end, in its namespace."""
    cookie: int
    """Of that namespace."""
    before: int
    """The MTU that it has."""
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLinks:
    """The part of the kernel's state that is ours: all links, routes of our protocol, permanent neighbours."""

    links: tuple[SeenLink, ...] = ()
    routes: frozenset[tuple[int, Address]] = frozenset()
    """(interface index, destination)."""
    neighbours: frozenset[tuple[int, Address, bytes]] = frozenset()
    """(interface index, address, MAC)."""

    def ours(self) -> dict[Attachment, tuple[SeenLink, Mark]]:
        """Host ends of pods by attachment, those that await removal left out."""
        found = {}
        for link in self.links:
            mark = parse_alias(link.alias)
            if mark and link.name == host_name(mark.attachment) and link.group != GROUP_DELETING:
                found[mark.attachment] = link, mark
        return found

    def unmarked(self) -> tuple[SeenLink, ...]:
        """Links that were begun and never marked: their maker died in between."""
        return tuple(link for link in self.links if link.group == GROUP_LIVE and not parse_alias(link.alias))


def _digest(attachment: Attachment) -> bytes:
    return blake2b(f"{attachment.container}/{attachment.interface}".encode(), digest_size=5).digest()


def host_name(attachment: Attachment) -> str:
    """Name of the host's end."""
    return PREFIX + _digest(attachment).hex()


def pod_mac(attachment: Attachment) -> bytes:
    """MAC address of the pod's end: locally administered, unicast."""
    return bytes([0x02]) + _digest(attachment)


def alias(mark: Mark) -> str:
    """The mark as text: version, container, interface, pod uid, cookie."""
    attachment = mark.attachment
    return f"{ALIAS_VERSION} {attachment.container} {attachment.interface} {mark.uid or '-'} {mark.cookie}"[:MAX_ALIAS]


def parse_alias(words: str) -> Mark | None:
    """Inverse of :func:`alias`; None when it is not ours."""
    parts = words.split(" ")
    if len(parts) != 5 or parts[0] != ALIAS_VERSION or not parts[4].isdecimal():
        return None
    if not check_container(parts[1]) or not check_interface(parts[2]):
        return None
    return Mark(Attachment(parts[1], parts[2]), "" if parts[3] == "-" else parts[3], int(parts[4]))
