"""Reports on IPPools and FelixConfiguration what of them this node cannot do; ``cluster`` writes it there as an Event.

Owns how often: when it begins, and every :data:`AGAIN` seconds while it lasts, since an event may be lost, and
Kubernetes forgets it after an hour. ``core.object_faults`` makes one of all that is wrong with an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kit.once import Once
from proto.events import ObjectFault
from services.routing.core.faults import Fault
from services.routing.core.object_faults import of_objects

AGAIN = 600.0
EVERY = 10.0


class ObjectFaults:
    """``publish`` sends one; ``node``: whose key it is sent with, empty for a gateway that has none."""

    def __init__(self, node: str, publish: Callable[[ObjectFault], None]) -> None:
        self._node = node
        self._publish = publish
        self._once: Once[tuple[str, str]] = Once(every=EVERY, again=AGAIN)

    def report(self, faults: Iterable[Fault], now: float) -> None:
        """These are all faults that there are now; ``now`` in seconds of a clock that does not go back."""
        found = {(one.kind, one.name): one for one in of_objects(faults, self._node)} if self._node else {}
        for which in self._once.take(found, now):
            self._publish(found[which])
