"""The endpoints of this node, in memory: which are up, which are being made or undone.

Owns nothing durable: the address journal and the kernel's links hold the truth, and :func:`rebuild` makes the registry
of both after a restart. Promises: one lock for each attachment, so that calls about it are served one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from proto.net import Address
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.endpoint.links import KernelLinks, Mark, SeenLink
from services.dataplane.core.ipam.journal_state import Ledger
from services.dataplane.signals import Signal


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a restart finds."""

    alive: tuple[LocalEndpoint, ...]
    dead: tuple[Attachment, ...]
    """In the journal, without a link: their pods are gone."""


def rebuild(ledger: Ledger, kernel: KernelLinks) -> Rebuilt:
    """Endpoints of which both the addresses and the link are there."""
    ours = kernel.ours()
    alive, dead = [], []
    for key in ledger.leases:
        attachment = Attachment(*key)
        leases = ledger.held_by(key)
        if attachment in ours and leases:
            link, mark = ours[attachment]
            alive.append(LocalEndpoint(attachment=attachment, leases=leases, index=link.index, cookie=mark.cookie))
        else:
            dead.append(attachment)
    return Rebuilt(tuple(alive), tuple(dead))


def orphans(ledger: Ledger, kernel: KernelLinks) -> dict[Mark, tuple[SeenLink, tuple[Address, ...]]]:
    """Links of ours that no record speaks of, with the addresses that are routed to them: a journal was lost."""
    found = {}
    for attachment, (link, mark) in kernel.ours().items():
        addresses = sorted((a for index, a in kernel.routes if index == link.index), key=lambda a: a.version)
        if attachment not in ledger.leases and addresses:
            found[mark] = link, tuple(addresses)
    return found


class _Alone:
    """The lock of one attachment, and how many hold it or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


class Registry:
    """Endpoints by attachment."""

    def __init__(self, signal: Signal | None = None) -> None:
        self.signal = signal or Signal()
        self._up: dict[Attachment, LocalEndpoint] = {}
        self._of_container: dict[str, dict[Attachment, None]] = {}
        self._locks: dict[Attachment, _Alone] = {}

    @property
    def up(self) -> Mapping[Attachment, LocalEndpoint]:
        """Endpoints that the maps know (or should); the link of one that is not busy is up."""
        return self._up

    def of_container(self, container: str) -> tuple[LocalEndpoint, ...]:
        """Its endpoints: what a key of :attr:`signal` is about."""
        return tuple(self._up[attachment] for attachment in self._of_container.get(container, ()))

    @property
    def busy(self) -> frozenset[Attachment]:
        """Attachments that are being made or undone at this moment."""
        return frozenset(self._locks)

    def put(self, endpoint: LocalEndpoint) -> None:
        """An endpoint is about to come up, or has changed."""
        self._up[endpoint.attachment] = endpoint
        self._of_container.setdefault(endpoint.attachment.container, {})[endpoint.attachment] = None
        self.signal.notify(endpoint.attachment.container)

    def remove(self, attachment: Attachment) -> LocalEndpoint | None:
        """Forgets an endpoint."""
        endpoint = self._up.pop(attachment, None)
        if endpoint is not None:
            mine = self._of_container[attachment.container]
            del mine[attachment]
            if not mine:
                del self._of_container[attachment.container]
            self.signal.notify(attachment.container)
        return endpoint

    def fill(self, endpoints: Iterable[LocalEndpoint]) -> None:
        """After a restart."""
        for endpoint in endpoints:
            self.put(endpoint)

    @asynccontextmanager
    async def alone(self, attachment: Attachment) -> AsyncIterator[None]:
        """Nobody else makes or undoes this attachment meanwhile."""
        alone = self._locks.setdefault(attachment, _Alone())
        alone.wanted += 1
        try:
            async with alone.lock:
                yield
        finally:
            alone.wanted -= 1
            if not alone.wanted:
                self._locks.pop(attachment, None)
