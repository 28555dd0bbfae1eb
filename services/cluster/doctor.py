"""What ``cluster`` looks at when the mesh is asked what is wrong: what the API server says of node ports in Events.

Only when somebody asks, one page of one reason: Events have no cache in the API server.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from chassis.runtime.checks import NotChecked
from proto.findings import DoctorRequest, Finding
from proto.objects import Service
from services.cluster.core import port_range
from services.cluster.core.cache import Cache
from services.cluster.kube import Kube, Refusal


class PortRangeDoctor:
    """``check`` is what the runtime asks. ``services``: the cache of Services."""

    def __init__(self, kube: Kube, services: Cache) -> None:
        self._kube = kube
        self._services = services

    async def check(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Node ports outside the API server's range, of one Service or of all. Raises :class:`NotChecked`."""
        if asked.kind not in ("all", "service"):
            return ()
        wanted = asked.name if asked.kind == "service" else ""
        everyone = {
            name: known.value for name, known in self._services.known.items() if isinstance(known.value, Service)
        }
        taken = [port for one in everyone.values() for port in port_range.ports_of(one)]
        services = {name: one for name, one in everyone.items() if not wanted or "/".join(name) == wanted}
        if not any(map(port_range.ports_of, services.values())):
            return ()
        path, fields = port_range.path_of(wanted.partition("/")[0])
        try:
            page = await self._kube.page(path, limit=port_range.MOST, fields=fields)
        except Refusal as refusal:
            raise NotChecked(f"the API server gives no Events: {refusal}") from None
        return tuple(port_range.check(map(bytes, page.items or ()), services, taken, time.time()))
