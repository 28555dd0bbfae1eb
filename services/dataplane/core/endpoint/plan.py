"""What of this node's pod links differs from what the endpoints ask for, and how it is put right.

Owns the comparison of the registry with the kernel. Promises: it repairs what is ours (a link set down, a route, a
neighbour, an MTU), finds endpoints whose link is gone (their pod is gone: the runtime never told us, or the node has
booted) and links nobody answers for; it judges by present state only, and touches no link without our mark. A link
younger than the look it is judged by is never reported: callers pass only endpoints that are up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proto.net import Address
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint.links import KernelLinks, SeenLink, Size, pod_mac


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An endpoint that is up, as its link should be."""

    attachment: Attachment
    index: int
    addresses: tuple[Address, ...]
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairs:
    """What is to be done."""

    down: tuple[Attachment, ...] = ()
    """Bring up again (with all that belongs to it)."""
    routes: tuple[tuple[int, Address], ...] = ()
    neighbours: tuple[tuple[int, Address, bytes], ...] = ()
    stale_routes: tuple[tuple[int, Address], ...] = ()
    """Ours, over a link of ours, and no endpoint has the address there."""
    gone: tuple[Attachment, ...] = ()
    """The link does not exist any more."""
    sizes: tuple[Size, ...] = ()
    """Links that are up and should have another MTU."""
    orphans: tuple[SeenLink, ...] = ()
    """Marked as ours, with no endpoint."""

    @property
    def drift(self) -> bool:
        """True when something that should be there was missing."""
        return bool(self.down or self.routes or self.neighbours)


def repairs(standing: Iterable[Standing], opening: Iterable[Attachment], kernel: KernelLinks) -> Repairs:
    """Repairs for ``standing``; attachments in ``opening`` are being made or undone and are left alone."""
    ours = kernel.ours()
    left_alone = set(opening)
    wanted = {one.attachment: one for one in standing if one.attachment not in left_alone}
    present = {key: one for key, one in wanted.items() if key in ours and ours[key][0].index == one.index}
    down = tuple(key for key in present if not ours[key][0].up)
    up = [one for key, one in present.items() if key not in down]
    routes = {(one.index, address) for one in up for address in one.addresses}
    neighbours = {(one.index, address, pod_mac(one.attachment)) for one in up for address in one.addresses}
    judged = {link.index for key, (link, _) in ours.items() if key not in left_alone}
    return Repairs(
        down=down,
        routes=tuple(sorted(routes - kernel.routes, key=str)),
        neighbours=tuple(sorted(neighbours - kernel.neighbours, key=str)),
        stale_routes=tuple(
            sorted((route for route in kernel.routes if route[0] in judged and route not in routes), key=str)
        )
        if not down
        else (),
        gone=tuple(key for key in wanted if key not in present),
        sizes=tuple(
            Size(
                name=link.name,
                index=link.index,
                peer=link.peer,
                cookie=mark.cookie,
                before=link.mtu,
                mtu=one.mtu,
            )
            for one in up
            for link, mark in (ours[one.attachment],)
            if link.mtu != one.mtu
        ),
        orphans=tuple(link for key, (link, _) in ours.items() if key not in wanted and key not in left_alone),
    )
