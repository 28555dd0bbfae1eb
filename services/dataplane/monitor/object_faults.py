"""Reports why Kubernetes objects are not honoured on this node; ``cluster`` writes it on them.

Owns how often: at once when it is new or comes back (but no more often than each :data:`EVERY` seconds), again every
:data:`AGAIN` while it lasts (events may be lost, and Kubernetes forgets them after an hour), and no more than
:data:`AT_ONCE` in one go, so that this node's allowance with ``cluster`` lasts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from chassis.bus.client import Bus
from chassis.telemetry.log import Log
from kit.once import Once
from proto.codec import encode_segment
from proto.events import ObjectFault
from proto.subjects import object_fault_subject

AGAIN = 600.0
EVERY = 10.0
MOST = 65_536
AT_ONCE = 50


class ObjectFaults:
    """The faults of one part of the agent."""

    def __init__(self, bus: Bus, node: str, log: Log) -> None:
        self._bus = bus
        self._subject = object_fault_subject("dataplane", encode_segment(node))
        self._log = log
        self._once: Once[tuple[str, str, str, str, str]] = Once(every=EVERY, again=AGAIN, most=MOST)

    def report(self, present: Iterable[ObjectFault]) -> int:
        """These are all faults that there are now; returns how many have still to be told."""
        now = time.monotonic()
        faults = {(one.group, one.kind, one.namespace, one.name, one.reason): one for one in present}
        due = self._once.due(faults, now)
        for key in due[:AT_ONCE]:
            one, lasts = faults[key], self._once.lasts(key)
            if not self._once.reported(key, now):
                continue
            if not lasts:
                self._log.warning(
                    "object-refused",
                    kind=one.kind,
                    namespace=one.namespace,
                    name=one.name,
                    reason=one.reason,
                    fault=one.fault,
                    remedy=one.remedy,
                )
            self._bus.publish(self._subject, one)
        return len(due[AT_ONCE:])
