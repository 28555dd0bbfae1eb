"""Tells the other nodes what lives here: this node's addresses on the shared links, their MTU, its blocks, and
the models by which it receives packets now.

A gateway tells its addresses and models once it has a tunnel: by them nodes know whose packets come in, and answer.
Nothing is told before ``blocks`` is in sync: what was told last stays. The marker ``_complete.<node>`` follows the
record, once in each epoch of ``routes``. A record is written in the trace of the block that it is about, so routes of
other nodes' kernels are part of that one; else in a trace of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from chassis.bus.causes import Causes
from chassis.bus.kv import KV
from chassis.bus.view import View
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from kit.models import HOST_GW
from proto.codec import encode_segment
from proto.sync import Complete, complete_key
from services.routing.core.fib import Snapshot
from services.routing.core.mesh import Mesh
from services.routing.core.plan import offered

WAIT = 1.0


class Announcer:
    """``apply`` is the body of the loop ``announce``."""

    def __init__(
        self,
        node: str,
        store: KV,
        view: View,
        look: Callable[[], Mesh],
        found: Callable[[], tuple[Snapshot, tuple[str, ...]]],
        log: Log,
        *,
        telemetry: Telemetry,
        causes: Causes,
    ) -> None:
        """``found``: the kernel, and the models by which this node receives packets now; ``causes``: of this node's
        blocks.
        """
        self._telemetry = telemetry
        self._causes = causes
        self._node = node
        self._key = encode_segment(node)
        self._store = store
        self._view = view
        self._look = look
        self._found = found
        self._log = log

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass; raises Unavailable."""
        mesh, (kernel, received) = self._look(), self._found()
        if not mesh.blocks_complete or not self._view.synced or not kernel.uplinks:
            return Again(WAIT)
        self._causes.gather()
        offer = offered(self._node, mesh.blocks, kernel.uplinks, received, kernel.wireguard.mine, kernel.loopback)
        entry = self._view.entries.get(self._key)
        if not mesh.me:
            if entry is None and received == (HOST_GW.name,):
                return Done()
            offer = replace(offer, gateway=True)
        if entry is None or entry.value != offer:
            prefixes, traces = len(offer.prefixes), self._causes.traces
            with self._telemetry.together(
                "routing.announce", traces, alone=True, k8s__node__name=self._node, airmesh__prefixes=prefixes
            ):
                await self._store.put(self._key, offer)
                self._log.info(
                    "announced",
                    underlay=list(offer.underlay),
                    prefixes=list(offer.prefixes),
                    mtu=offer.mtu,
                    models=list(offer.models),
                )
        self._causes.done()
        if not self._view.scope_complete(self._key):
            await self._store.put(complete_key(self._key), Complete(self._view.epoch))
        return Done()
