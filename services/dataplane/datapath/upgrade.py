"""Finishes an upgrade: waits until new maps have been filled, then has the programs switched.

Owns the moment of the switch and the readiness condition ``upgrade`` until then. Promises: a packet meets the new
programs only when the maps that they judge by say what is known; until then the old programs run on with the old maps,
as when no agent is there, however long the bus is away; no pod starts meanwhile. What is lost is told once switched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.health import Condition
from chassis.telemetry.log import Log
from services.dataplane.core.datapath.pins import Source
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.thread import NamespaceThread

LOOK_EVERY = 0.1
REMEDY = "nothing is to be done, unless something that was connected hangs: restart that"


class Upgrade:
    """One start's upgrade; nothing to do where :attr:`Datapath.unfilled` is empty."""

    def __init__(
        self,
        datapath: Datapath,
        thread: NamespaceThread,
        log: Log,
        condition: Condition,
        *,
        filled: Mapping[Source, Callable[[], bool]],
        report: Callable[[str, str], None],
        switched: Callable[[], None],
        sizes: Mapping[str, int],
    ) -> None:
        """``filled`` says whether all maps of a source hold what is known; ``report`` gets a fault and its remedy;
        ``sizes`` are the entries that tables of flows are to take.
        """
        self._datapath = datapath
        self._thread = thread
        self._log = log
        self._condition = condition
        self._filled = filled
        self._report = report
        self._switched = switched
        self._sizes = sizes
        self._is_reported = False

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """Switches once nothing is missing."""
        missing = sorted(source.value for source in self._datapath.unfilled if not self._filled[source]())
        if missing:
            self._condition.set(False, f"the programs of the version before run until {', '.join(missing)} are known")
            return Again(after=LOOK_EVERY)
        if self._datapath.unfilled:
            await self._thread.run(self._datapath.switch)
            self._log.info("programs-switched")
            await self._grow()
            self._switched()
        self._condition.set(True)
        self._report_losses()
        return Done()

    async def _grow(self) -> None:
        """Tables that could not while the old programs used them too."""
        try:
            await self._thread.run(lambda: self._datapath.grow(self._sizes))
        except (OSError, TimeoutError) as error:
            self._log.warning("tables-not-grown", sizes=self._sizes, error=error)

    def _report_losses(self) -> None:
        if self._is_reported:
            return
        self._is_reported = True
        for table, loss in self._datapath.losses.items():
            self._log.warning("map-begins-empty", map=table, loss=loss)
        for loss in dict.fromkeys(self._datapath.losses.values()):
            self._report(f"by an upgrade, {loss}", REMEDY)
