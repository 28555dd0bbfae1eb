"""Makes room in the tables before it is needed: asks ``core.datapath.sizes`` what is to grow, and has it replaced.

Promises: a node without memory for a larger table goes on with the one it has, says so once, and tries again after
:data:`PATIENCE`; nothing waits for it meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from chassis.telemetry.log import Log
from services.dataplane.core.datapath.maps import BACKENDS, IPCACHE, MEMBERS, SERVICES
from services.dataplane.core.datapath.sizes import Limits, limits
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.settings import Settings

PATIENCE = 60.0


def limits_of(settings: Settings) -> Limits:
    """The limits of this node's tables."""
    fixed = {
        SERVICES.name: settings.service_entries,
        BACKENDS.name: settings.backend_entries,
        MEMBERS.name: settings.backend_entries,
        IPCACHE.name: settings.ipcache_entries,
    }
    return limits(node_memory(), settings.table_memory, fixed)


def node_memory() -> int:
    """Bytes of memory that the node has."""
    line = Path("/proc/meminfo").read_text().splitlines()[0]
    return int(line.split()[1]) << 10


class Growth:
    """See the module. Maps are replaced on the thread that makes links: links and programs are its own."""

    def __init__(self, datapath: Datapath, thread: NamespaceThread, allowed: Limits, log: Log) -> None:
        self._datapath = datapath
        self._thread = thread
        self._allowed = allowed
        self._log = log
        self._not_before = 0.0

    async def make_room(self, asked: Mapping[str, int]) -> None:
        """Lets the tables grow (by name) that are asked for so many entries, where that is possible."""
        tables = self._datapath.tables.by_name
        sizes = self._allowed.next(asked, {name: tables[name].entries for name in asked})
        if not sizes or time.monotonic() < self._not_before:
            return
        began = time.monotonic()
        try:
            grown = await self._thread.run(lambda: self._datapath.grow(sizes))
        except (OSError, TimeoutError) as error:
            self._not_before = time.monotonic() + PATIENCE
            self._log.warning("tables-not-grown", sizes=sizes, error=error, again_after=PATIENCE)
            return
        if grown:  # none while an upgrade waits
            sizes = {name: sizes[name] for name in grown}
            self._log.info("tables-grown", sizes=sizes, milliseconds=round((time.monotonic() - began) * 1000, 1))
