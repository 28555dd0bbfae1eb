"""Trace contexts of Services' changes, from the change until the pass that writes it into the tables.

Owns what traces cost: a pass has spans in so many of them that an agent makes :data:`PER_SECOND` a second on average,
however many objects change. Of more, namespaces with few changes come first, so that one which makes many misses its
own alone. What is not chosen has its span in the mirror's trace and none of this node. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from itertools import chain, islice, zip_longest

from services.dataplane.core.loadbalancer.service_objects import Name

PER_SECOND = 64
"""Spans: some 0.15 % of a processor while they are kept in memory, 0.7 % while they are exported, too."""
AT_ONCE = 64
"""Spans of one pass; also how many may be made at once after a time of few."""
OF_ONE = 8
"""Changes of one Service that wait; of more the latest."""


class ChangeTraces:
    """What waits; ``now`` are seconds of one clock."""

    def __init__(self) -> None:
        self._waiting: dict[Name, dict[str, None]] = {}
        self._allowed = float(AT_ONCE)
        self._at = 0.0

    def put(self, name: Name, traceparent: str) -> None:
        """The Service, or a slice of it, has changed in this trace."""
        if not traceparent:
            return
        traces = self._waiting.setdefault(name, {})
        traces.pop(traceparent, None)
        traces[traceparent] = None
        if len(traces) > OF_ONE:
            del traces[next(iter(traces))]

    def choose(self, names: Container[Name], now: float) -> dict[str, Name]:
        """Traces that a pass over these Services has spans in, each with the Service that it is about."""
        self._allowed = min(AT_ONCE, self._allowed + max(0.0, now - self._at) * PER_SECOND)
        self._at = now
        by_namespace: dict[str, list[tuple[str, Name]]] = defaultdict(list)
        for name, traces in self._waiting.items():
            if name in names:
                by_namespace[name[0]] += [(traceparent, name) for traceparent in traces]
        rounds = zip_longest(*sorted(by_namespace.values(), key=len))
        found = dict(islice(filter(None, chain.from_iterable(rounds)), int(self._allowed)))
        self._allowed -= len(found)
        return found

    def keep(self, names: Container[Name]) -> None:
        """Only these Services wait still: what belongs to others is written."""
        self._waiting = {name: traces for name, traces in self._waiting.items() if name in names}
