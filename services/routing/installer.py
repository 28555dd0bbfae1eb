"""The reconciler of kernel routes: read, plan, apply, read again. Works on what was last known while the bus is away.

A pass that changes routes although nothing was learnt repairs drift (somebody took a route away) and says so in its
event. What the kernel refuses, and every fault of the plan, is told once when it begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from os import strerror
from typing import Any

from chassis.bus.causes import Causes
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from kit.once import Once
from proto.events import RoutesChanged
from proto.net import Network
from services.routing.core.faults import Fault
from services.routing.core.fib import Operation, Replace, Route, Snapshot
from services.routing.core.plan import Mesh, Plan, plan
from services.routing.kernel import Kernel

Changed = Callable[[RoutesChanged], None]
Faulty = Callable[[str, str], None]
RETRY = 1.0
"""Seconds until a refused operation is tried again."""


class Installer:
    """``apply`` is the body of the loop ``routes``."""

    def __init__(
        self,
        node: str,
        kernel: Kernel,
        look: Callable[[], Mesh],
        log: Log,
        changed: Changed,
        faulty: Faulty,
        *,
        telemetry: Telemetry,
        causes: Causes,
    ) -> None:
        """``causes``: of all that ``look`` reads."""
        self._node = node
        self._telemetry = telemetry
        self._causes = causes
        self._kernel = kernel
        self._look = look
        self._log = log
        self._changed = changed
        self._faulty = faulty
        self._once: Once[Fault] = Once()
        self._last: Mapping[tuple[Network, int], Route] = {}
        self._first = True
        self.snapshot = Snapshot()
        """The kernel as of the last pass."""
        self.faults: tuple[Fault, ...] = ()
        """What stands in the way now."""

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass; raises KernelFault."""
        self.snapshot = await self._kernel.snapshot()
        self._causes.gather()
        planned = plan(self._look(), self.snapshot)
        refused: tuple[tuple[Operation, int], ...] = ()
        if planned.operations:
            named: dict[str, Any] = {"k8s__node__name": self._node} if self._node else {}
            changes = len(planned.operations)
            with self._telemetry.together("routing.install", self._causes.traces, airmesh__changes=changes, **named):
                refused = await self._kernel.apply(planned.operations)
                self._report(planned, refused)
        self._causes.done()
        self._last, self._first = planned.desired, False
        self._report_faults((*planned.faults, *(_refusal(operation, number) for operation, number in refused)))
        return Again(RETRY) if refused else Done()

    def _report(self, planned: Plan, refused: tuple[tuple[Operation, int], ...]) -> None:
        failed = {operation for operation, _ in refused}
        done = [operation for operation in planned.operations if operation not in failed]
        if not done:
            return
        added = tuple(str(operation.route) for operation in done if isinstance(operation, Replace))
        removed = tuple(str(operation.route) for operation in done if not isinstance(operation, Replace))
        drift = not self._first and planned.desired == self._last
        self._log.info("routes-changed", added=list(added), removed=list(removed), drift=drift)
        self._changed(RoutesChanged(self._node, added, removed, drift))

    def _report_faults(self, faults: tuple[Fault, ...]) -> None:
        for fault in self._once.take(faults, time.monotonic()):
            self._log.warning("fault", fault=fault.fault, remedy=fault.remedy)
            self._faulty(fault.fault, fault.remedy)
        self.faults = faults


def _refusal(operation: Operation, number: int) -> Fault:
    verb = "set" if isinstance(operation, Replace) else "removed"
    return Fault(
        f"the kernel refused that route {operation.route} is {verb}: {strerror(number)}",
        "look at `ip route` and `ip link` of this node; it is tried again each second",
    )
