"""Sweeps conntrack, and says whose share of it is nearly spent: on the pod, with the peer that holds most of it.

Owns how often: a sweep takes a twentieth of a processor at most, so a larger table is swept less often. Times of flows
do not depend on it: those that are not established make room by themselves (bpf/recent.h).
"""

from __future__ import annotations

import asyncio
import time

from chassis.runtime.service import Runtime
from kit.once import Once
from proto.events import ObjectFault
from proto.policy import Direction
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.core.conntrack import fills as core
from services.dataplane.core.conntrack.fills import Fill, Share
from services.dataplane.core.datapath.layout import NODE
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint, LocalEndpoints
from services.dataplane.datapath.tables import Tables
from services.dataplane.monitor.object_faults import ObjectFaults
from services.dataplane.settings import Settings

SWEEP_EVERY = 2.0
RESTS = 19
"""Times as long as a sweep took that nothing is swept after it."""
REASON = "ConntrackBudget"
FLOOD = "ConntrackUnanswered"
ANSWER = "stop whoever begins them, by policy or at the network's edge; established flows are not touched"


class FlowShares:
    """The flows of one node."""

    def __init__(
        self, runtime: Runtime[Settings], tables: Tables, collector: FlowCollector, endpoints: LocalEndpoints
    ) -> None:
        self._node = runtime.settings.node
        self._bus = runtime.bus
        self._log = runtime.log
        self._tables = tables
        self._collector = collector
        self._local = endpoints
        self._faults = ObjectFaults(self._bus, self._node, self._log)
        self._spent: frozenset[Share] = frozenset()
        self._once: Once[Share] = Once()

    async def keep(self) -> None:
        """Sweeps and tells; for ever."""
        while True:
            began = time.monotonic()
            await self.look()
            took = time.monotonic() - began
            await asyncio.sleep(max(SWEEP_EVERY, RESTS * took))

    async def look(self) -> None:
        """One sweep, and what it found."""
        swept = await asyncio.to_thread(self._collector.sweep)
        if swept.mended:
            self._log.warning("flow-counts-mended", budgets=swept.mended)
        budgets = await asyncio.to_thread(self._collector.budgets)
        present = core.fills(budgets, self._tables.flows.entries, swept.census.pending)
        self._spent = core.nearly_spent(present, self._spent)
        await self._report(present)

    async def _report(self, present: dict[Share, Fill]) -> None:
        pods = {one.index: one for one in self._local.up.values()}
        spent = sorted(self._spent, key=lambda share: (share.endpoint, share.direction, share.is_pending))
        faults = [await self._fault(pods[one.endpoint], one, present[one]) for one in spent if one.endpoint in pods]
        for share in self._once.take((one for one in spent if one.endpoint == NODE), time.monotonic()):
            self._report_node(present[share])
        self._faults.report(faults)

    async def _fault(self, pod: LocalEndpoint, share: Share, fill: Fill) -> ObjectFault:
        own = share.direction == Direction.EGRESS
        fault = (
            f"pod {pod.first.namespace}/{pod.first.pod} has {fill.used} of {fill.limit} flows that "
            f"{'it' if own else 'others'} may begin {'unanswered ' if share.is_pending else ''}on node "
            f"{self._node}"
        )
        peer = await asyncio.to_thread(self._collector.largest_peer, share.endpoint, share.direction)
        if peer is not None and peer[1] >= fill.used * core.MOST_OF:
            fault += f"; {peer[1]} of them with {peer[0]}"
        return ObjectFault(
            service="dataplane",
            node=self._node,
            group="",
            kind="Pod",
            namespace=pod.first.namespace,
            name=pod.first.pod,
            reason=(FLOOD if share.is_pending else REASON) + ("Egress" if own else "Ingress"),
            fault=fault,
            remedy=ANSWER if share.is_pending else "keep connections open longer, or raise AIRMESH_FLOW_BUDGET",
        )

    def _report_node(self, fill: Fill) -> None:
        fault = f"conntrack of node {self._node} holds {fill.used} of {fill.limit} flows"
        self._log.warning("conntrack-nearly-full", flows=fill.used, entries=fill.limit)
        self._bus.report_fault(
            fault, "find the pods with most in airmesh_conntrack_budget_fill; raise AIRMESH_CONNTRACK_ENTRIES"
        )
