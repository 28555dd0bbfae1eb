"""The trace contexts of what changed in some mirrors, until the work that follows from it is done.

Promises: what was there when a mirror first was in sync is no change of now, nor is what is the same after it was
listed anew; of one trace the last context counts, so that work hangs on the hop before it; of more than
``TOGETHER`` traces the latest stay. Belongs to one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from chassis.bus.entry import Entry
from chassis.bus.view import View
from chassis.telemetry.spans import context_of
from chassis.telemetry.traces import TOGETHER

Concerns = Callable[[str, Entry[Any] | None], bool]


class Causes:
    """Of some views, in the order of the hops of a trace. ``concerns``: whether a key (and what it holds now, None when
    it was removed) is about this work; all are unless said otherwise.
    """

    def __init__(self, *views: View, concerns: Concerns | None = None) -> None:
        self._concerns = concerns
        self._views = [(view, view.cursor()) for view in views]
        self._seen = [("", 0, 0)] * len(views)
        """Of each view: its epoch, how often it was listed, and its sequence when its changes were gathered last."""
        self._traces: dict[str, str] = {}

    def gather(self) -> None:
        """Take in what changed; call this in one breath with reading the views."""
        for number, (view, cursor) in enumerate(self._views):
            if not view.synced or not cursor.pending:
                continue
            epoch, lists, sequence = self._seen[number]
            self._seen[number] = view.epoch, view.resyncs, view.sequence
            last = 0 if view.resyncs == lists else sequence  # a new list makes every key dirty
            keys = cursor.take()
            if view.epoch == epoch:
                for _, traceparent in sorted(self._changed(view, keys, last)):
                    self._put(traceparent)

    def _changed(self, view: View, keys: Iterable[str], last: int) -> Iterator[tuple[int, str]]:
        """Sequence and trace context of each change after ``last``; a removal has the latest sequence."""
        for key in keys:
            entry = view.entries.get(key)
            if entry is not None and entry.revision <= last:
                continue
            if self._concerns is None or self._concerns(key, entry):
                found = (view.sequence, view.removed_in(key)) if entry is None else (entry.revision, entry.traceparent)
                if found[1]:
                    yield found

    def _put(self, traceparent: str) -> None:
        trace_id, _ = context_of(traceparent)
        if trace_id:
            self._traces.pop(trace_id, None)
            self._traces[trace_id] = traceparent
            if len(self._traces) > TOGETHER:
                del self._traces[next(iter(self._traces))]

    @property
    def traces(self) -> tuple[str, ...]:
        """Traceparents of what has been gathered and is not done."""
        return tuple(self._traces.values())

    def done(self) -> None:
        """What follows from all that has been gathered is done, if anything did."""
        self._traces.clear()
