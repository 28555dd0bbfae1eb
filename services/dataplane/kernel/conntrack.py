"""Conntrack's broom: finds the entries whose time is over and lets a program in the kernel remove them.

The map is a plain hash (an LRU would evict live flows), so somebody has to sweep. Between looking and deleting a packet
may revive a flow; therefore Python only *names* entries with the ``last_seen`` it saw, and ``collect`` (datapath.c)
compares and deletes, and gives the budget back, in one go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator

from services.dataplane.core import conntrack as core
from services.dataplane.core.layout import Budget, EndpointKey
from services.dataplane.kernel import bpf
from services.dataplane.kernel.tables import Tables


class Broom:
    """Sweeps one node's conntrack. Blocking: 100 000 entries take about a third of a second, so call it in a thread."""

    def __init__(self, tables: Tables, program: int) -> None:
        self._tables = tables
        self._program = program
        self.lock = threading.RLock()
        """Held while it sweeps, and while maps or programs are being replaced."""

    def use(self, program: int) -> None:
        """From now on the collecting program is this one."""
        with self.lock:
            self._program = program

    def collect(self, now: int | None = None) -> int:
        """Removes what is idle at ``now`` (CLOCK_MONOTONIC, ns; the present by default). Returns how many."""
        moment = time.monotonic_ns() if now is None else now
        with self.lock:
            return self._remove(core.condemned_batches(core.idle_flows(self._tables.flows.items(), moment)))

    def forget_endpoints(self, endpoints: Collection[int]) -> int:
        """Removes all flows of endpoints and their budgets: when pods are gone, before their addresses are used again.
        The table is read once for all of them.
        """
        with self.lock:
            gone = self._remove(core.condemned_batches(core.flows_of(self._tables.flows.items(), endpoints)))
        for endpoint in endpoints:
            self._tables.budgets.remove(EndpointKey(endpoint=endpoint))
        return gone

    def recount(self) -> int:
        """Sets each budget's count to what the table holds; returns how many were off. After a restart, and hourly."""
        counts = core.count_by_endpoint(self._tables.flows.items())
        wrong = {
            key: Budget(limit=budget.limit, count=counts[key.endpoint])
            for key, budget in self._tables.budgets.items().items()
            if budget.count != counts[key.endpoint]
        }
        self._tables.budgets.apply(wrong)
        return len(wrong)

    def _remove(self, batches: Iterator[bytes]) -> int:
        gone = 0
        for batch in batches:
            gone += bpf.run_on(self._program, batch).value
        return gone
