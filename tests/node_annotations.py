"""Annotated Nodes in tests without Kubernetes: what ``cluster`` and the API server do with ``airmesh.io/blocks``.

A thread of its own writes into each Node of ``objects`` the blocks that ``blocks`` says it holds, while that bucket is
whole. What a Node was annotated with stays, as in the API, when a bus is lost and its objects are put again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from chassis.bus.client import Bus
from chassis.bus.view import View
from chassis.faults import Fault
from proto.addresses import Block
from proto.codec import kind_prefix
from proto.net import Network
from proto.objects import KIND_OF, Node
from proto.subjects import BLOCKS, OBJECTS
from tests.natsd import NatsServer, bus_of

_NODES = kind_prefix(KIND_OF[Node])
_EVERY = 0.5


@dataclass
class _Api:
    """What stands on the Nodes."""

    bus: Bus
    blocks: View
    objects: View
    annotated: dict[str, tuple[Network, ...]] = field(default_factory=dict)

    def observe(self) -> None:
        """Annotates as ``cluster`` does: only while all that is held is known."""
        if not self.blocks.synced:
            return
        held: dict[str, list[Network]] = {}
        for entry in self.blocks.entries.values():
            if isinstance(entry.value, Block) and entry.value.node:
                held.setdefault(entry.value.node, []).append(entry.value.cidr)
        self.annotated = {
            name: tuple(sorted(own, key=lambda cidr: (cidr.version, cidr.network_address)))
            for name, own in held.items()
        }

    async def write(self) -> None:
        """Mirrors the Nodes that show something else."""
        for key, entry in list(self.objects.entries.items()):
            if isinstance(entry.value, Node) and entry.value.name in self.annotated:
                wanted = msgspec.structs.replace(entry.value, blocks=self.annotated[entry.value.name])
                if wanted != entry.value:
                    await self.bus.bucket(OBJECTS).update(key, wanted, entry.revision)


async def _annotate(nats: NatsServer, stopped: threading.Event) -> None:
    async with bus_of(nats, "cluster") as bus:
        api = _Api(
            bus=bus,
            blocks=bus.bucket(BLOCKS).watch({"": Block}, name="blocks"),
            objects=bus.bucket(OBJECTS).watch({_NODES: Node}, prefixes=(_NODES,), markers=(), name="objects"),
        )
        woken = asyncio.Event()
        cursors = [view.cursor() for view in (api.blocks, api.objects)]
        for cursor in cursors:
            cursor.wakes(woken)
        while not stopped.is_set():
            woken.clear()
            for cursor in cursors:
                cursor.take()
            api.observe()
            with suppress(Fault):
                await api.write()
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), _EVERY)


@contextmanager
def annotated_nodes(nats: NatsServer) -> Iterator[None]:
    """Nodes are annotated meanwhile, from the namespace that this thread is in."""
    stopped = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_annotate(nats, stopped)), name="annotations", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(30)
