"""Where endpoints are made in the kernel: pods' links, the thread that makes them, the programs that hang on them."""

from __future__ import annotations

from dataclasses import dataclass

from proto.net import Address
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.endpoint.links import Links


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointKernel:
    """See each one's own module. ``mtu`` is that of pods' links, in bytes."""

    links: Links
    thread: NamespaceThread
    datapath: Datapath
    mtu: int

    async def own_addresses(self) -> frozenset[Address]:
        """Addresses of the node's own interfaces, as the kernel has them now."""
        return await self.thread.run(self.links.own_addresses)
