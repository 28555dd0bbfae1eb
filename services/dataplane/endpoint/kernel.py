"""Where endpoints are made in the kernel: pods' links, the thread that makes them, the programs that hang on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kit.model_settings import ModelSettings
from kit.models import Model
from proto.net import Address
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.endpoint.links import Links


@dataclass(slots=True, kw_only=True)
class EndpointKernel:
    """See each one's own module."""

    links: Links
    thread: NamespaceThread
    datapath: Datapath
    mtu: int
    """Of pods' links, in bytes; the reconciler keeps it true."""
    models: Callable[[], tuple[Model, ...] | None]
    """Those that pods' packets may take; None while the pools are not known."""
    sizes: Callable[[], ModelSettings]
    """What a person allows of each."""

    async def own_addresses(self) -> frozenset[Address]:
        """Addresses of the node's own interfaces, as the kernel has them now."""
        return await self.thread.run(self.links.own_addresses)
