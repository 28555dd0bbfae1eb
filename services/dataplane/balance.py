"""Where a Service's connections go: the tables of the socket programs and of packets from outside.

Owns ``am_services``, ``am_backends`` and ``am_members``. Promises: nothing changes before the watches are complete
(an empty bucket is not an empty cluster). A mirror of the maps in memory makes a change cost what changed; a full pass
reads the maps themselves, so that what was deleted by hand returns.
"""

from __future__ import annotations

from proto.objects import EndpointSlice, Service
from services.dataplane.core import services
from services.dataplane.feed import Feed
from services.dataplane.kernel.tables import Tables


class Balancer:
    """Keeps the Service tables."""

    def __init__(self, tables: Tables, feed: Feed) -> None:
        self._tables = tables
        self._feed = feed
        self._actual: services.Tables | None = None

    def apply(self, *, full: bool) -> int:
        """Makes the tables what they should be. Without complete watches it does nothing: Services stay as they
        were.
        """
        if not (self._feed.complete(Service) and self._feed.complete(EndpointSlice)):
            return 0
        if full or self._actual is None:
            self._actual = services.Tables(
                self._tables.services.items(), self._tables.backends.items(), self._tables.members.items()
            )
        actual = self._actual
        wanted = services.tables_of(
            self._feed.all_of(Service), self._feed.all_of(EndpointSlice), self._feed.node, actual
        )
        steps = services.change(actual, wanted)
        self._actual = None  # unknown until every step has succeeded
        self._tables.backends.apply(steps.set_backends)
        self._tables.members.apply(steps.set_members)
        self._tables.services.apply(steps.set_services, steps.remove_services)
        self._tables.backends.apply({}, steps.remove_backends)
        self._tables.members.apply({}, steps.remove_members)
        self._actual = wanted
        return len(steps.set_services) + len(steps.set_backends) + len(steps.remove_services)
