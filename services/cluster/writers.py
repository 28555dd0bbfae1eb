"""Reports nodes that write to the shared buckets what no agent of ours does: the shell of ``core.writers``.

``cluster`` looks, since it follows those buckets to clean up after nodes that are gone. It deletes nothing here: the
server keeps what a node has within its bounds. Each node is told of once in :data:`REPORT_EVERY` seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from chassis.bus.client import View
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Dirty, Done
from chassis.telemetry.log import Log
from kit.once import Once
from proto.codec import Malformed, decode_segment
from services.cluster.core.departed import writer_of
from services.cluster.core.writers import accused, levels

REPORT_EVERY = 60.0
REMEDY = "look at that node: its agents do not write so; if it was taken over, take its keys from it"


class Writers:
    """``views`` by bucket; ``report`` takes a fault, its remedy and whom it is about; ``clock`` is monotonic
    seconds.
    """

    def __init__(
        self,
        views: Mapping[str, View],
        lease: Election,
        report: Callable[[str, str, str], None],
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._views = views
        self._lease = lease
        self._report = report
        self._log = log
        self._clock = clock
        self._writes: Counter[str] = Counter()
        self._levels: dict[str, float] = {}
        self._looked = clock()
        self._once: Once[str] = Once(every=REPORT_EVERY)
        for name, view in views.items():
            view.heard = partial(self._hear, name, view)

    def _hear(self, bucket: str, view: View, key: str) -> None:
        if view.synced:  # a list brings each key once more
            self._writes[writer_of(bucket, key)] += 1

    async def apply(self, _dirty: Dirty) -> Done:
        """One look."""
        now = self._clock()
        writes, self._writes = self._writes, Counter()
        del writes[""]
        self._levels = levels(self._levels, writes, now - self._looked)
        self._looked = now
        unreadable = Counter(writer_of(name, key) for name, view in self._views.items() for key in view.unreadable)
        del unreadable[""]
        if self._lease.held:
            for node, what in accused(self._levels, unreadable).items():
                if self._once.happens(node, now):
                    self._say(_decoded(node), what)
        return Done()

    def _say(self, node: str, what: str) -> None:
        self._log.error("writes-what-no-agent-does", node=node, what=what, remedy=REMEDY)
        self._report(f"node {node} {what}", REMEDY, node)


def _decoded(segment: str) -> str:
    try:
        return decode_segment(segment)
    except Malformed:
        return segment
