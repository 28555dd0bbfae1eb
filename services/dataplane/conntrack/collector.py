"""The collector of conntrack: finds the entries whose time is over and lets a program in the kernel remove them.

The map is a plain hash (an LRU would evict live flows), so somebody has to sweep. Between looking and deleting a packet
may revive a flow; therefore Python only *names* entries with the ``last_seen`` it saw, and ``collect`` (bpf/gc.c)
compares and deletes, and gives the budget back, in one go. Counts that are off are mended in the same way: Python says
by how much, ``recount`` adds it to what packets count meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from linux import bpf
from services.dataplane.core.conntrack import state as core
from services.dataplane.core.conntrack.state import Census, Mend
from services.dataplane.core.datapath.layout import (
    NODE,
    Budget,
)
from services.dataplane.core.datapath.maps import recent_sets
from services.dataplane.core.datapath.wire import Address, address_from
from services.dataplane.datapath.programs import COLLECT, RECOUNT, Datapath

CHUNK = 4096
BREATH = 0.0002
"""Seconds that a sweep sleeps after each CHUNK entries (of some 2 ms), so that the event loop has its turn."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did and found."""

    collected: int
    mended: int
    """Budgets whose counts were off."""
    census: Census
    """What the table has now."""


class FlowCollector:
    """Sweeps one node's conntrack. Blocking: a million entries take about a second, so call it in a thread."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self._tables = datapath.tables
        self._lock = datapath.flows_lock

    def sweep(self, now: int | None = None) -> Swept:
        """Removes what is idle at ``now`` (CLOCK_MONOTONIC, ns; by default the present), mends counts that are off."""
        moment = time.monotonic_ns() if now is None else now
        with self._lock:
            before = self.budgets()
            collected, census = self._look(moment)
            mends = core.mends(before, self.budgets(), census.counts)
            self.mend(mends)
        return Swept(collected, len(mends), census)

    def collect(self, now: int | None = None) -> int:
        """As :meth:`sweep`; returns how many entries went."""
        return self.sweep(now).collected

    def recount(self) -> int:
        """As :meth:`sweep` at the beginning of time, where nothing is idle; returns how many budgets were off."""
        return self.sweep(0).mended

    def forget_endpoints(self, endpoints: Collection[int]) -> int:
        """Removes all flows of endpoints and their budgets: when pods are gone, before their addresses are used again.
        The table is read once for all of them.
        """
        with self._lock:
            gone, _ = self._look(0, endpoints)
        for endpoint in endpoints:
            self._tables.budgets.remove(core.key_of(endpoint))
        return gone

    def limit(self, endpoints: Iterable[int], limit: int) -> None:
        """Sets what endpoints may have (the node: what its table has room for); what they have stays counted."""
        entries = self._tables.flows.entries
        sets = recent_sets(entries)
        wanted = {one: core.budget_of(one, limit, sets) for one in endpoints if one != NODE}
        wanted[NODE] = core.node_budget(entries)
        self.mend([Mend(endpoint=one, limits=limits) for one, limits in wanted.items()])

    def mend(self, mends: list[Mend]) -> None:
        """Applies differences and limits."""
        with self._lock:
            for batch in core.batches([mend.pack() for mend in mends]):
                bpf.run_on(self._datapath.programs[RECOUNT], batch)

    def largest_peer(self, endpoint: int, side: int) -> tuple[Address, int] | None:
        """The peer that has most of an endpoint's flows in a direction (IPv6: its /64), and how many."""
        held: Counter[bytes] = Counter()
        flows = self._tables.flows
        with self._lock:
            for _, keys, values in bpf.lookup_batch(flows.fd, flows.spec.key_size, flows.spec.value_size, CHUNK):
                held.update(core.peers_of(keys, values, endpoint, side))
                time.sleep(BREATH)
        if not held:
            return None
        raw, count = held.most_common(1)[0]
        return address_from(raw), count

    def budgets(self) -> dict[int, Budget]:
        """Every budget by endpoint number."""
        return {key.endpoint: budget for key, budget in self._tables.budgets.items().items()}

    def _look(self, now: int, endpoints: Collection[int] = ()) -> tuple[int, Census]:
        """Removes what is idle, and all of ``endpoints``. Returns how many went, and what stays."""
        gone, flows = 0, self._tables.flows
        census = Census(Counter(), Counter())
        whose = frozenset(endpoints)
        for _, keys, values in bpf.lookup_batch(flows.fd, flows.spec.key_size, flows.spec.value_size, CHUNK):
            for batch in core.batches(core.look_at(keys, values, now, census, whose)):
                gone += bpf.run_on(self._datapath.programs[COLLECT], batch).value
            time.sleep(BREATH)
        return gone, census
