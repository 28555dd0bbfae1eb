"""Reads the clients of Services with session affinity from the node's maps, for ``core.doctor.affinity`` to count.

Only when somebody asks: the maps have up to some hundred thousand entries, which are read in a thread of their own, and
not at all where no Service has affinity. A Service port whose backends are more than ``MAX_BACKENDS``, or one, is left
out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from chassis.runtime.service import Runtime
from proto.findings import AFFINITY, MAX_AFFINITIES, MAX_BACKENDS, AffinityClients, DoctorRequest
from proto.net import Address
from proto.objects import Service, ServicePort
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.wire import Record
from services.dataplane.core.doctor import affinity
from services.dataplane.datapath.maps import Table
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)


class AffinityDoctor:
    """What this node sees of clients that keep their backend."""

    def __init__(self, services: Callable[[], Iterable[Service]], tables: Tables) -> None:
        self._services = services
        self._tables = tables

    async def check(self, asked: DoctorRequest) -> Iterable[AffinityClients]:
        """Of one Service, or of all that have affinity."""
        services = [
            one
            for one in self._services()
            if one.affinity_seconds
            and (asked.kind == "all" or (asked.kind == "service" and asked.name == f"{one.namespace}/{one.name}"))
        ]
        services.sort(key=lambda one: (one.namespace, one.name))
        return await asyncio.to_thread(self._read, services) if services else ()

    def _read(self, services: list[Service]) -> tuple[AffinityClients, ...]:
        asked: dict[int, affinity.Asked] = {}
        for service in services:
            for number, one in self._ports(service):
                if len(asked) < MAX_AFFINITIES:
                    asked.setdefault(number, one)
        if not asked:
            return ()
        tables = self._tables
        return affinity.clients(
            asked,
            _entries(tables.affinities),
            _entries(tables.clients),
            _entries(tables.nats),
            time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        )

    def _ports(self, service: Service) -> Iterator[tuple[int, affinity.Asked]]:
        for port in service.ports:
            for address in service.cluster_ips:
                if (found := self._asked(service, port, address)) is not None:
                    yield found

    def _asked(self, service: Service, port: ServicePort, address: Address) -> tuple[int, affinity.Asked] | None:
        key = lb.ServiceKey(address=address, port=port.port, protocol=port.protocol, scope=lb.Scope.SOCKET)
        frontend = self._tables.services.get(key)
        if frontend is None or not 1 < frontend.backends <= MAX_BACKENDS:
            return None
        found = [
            self._tables.backends.get(lb.BackendKey(service=frontend.number, index=index))
            for index in range(frontend.backends)
        ]
        targets = sorted(((one.address, one.port) for one in found if one is not None), key=str)
        return frontend.number, affinity.Asked(
            service=f"{service.namespace}/{service.name}",
            port=port.port,
            protocol=port.protocol,
            family=address.version,
            seconds=frontend.affinity_seconds,
            backends=tuple(targets),
        )


def _entries(table: Table[K, V]) -> Iterator[tuple[K, V]]:
    for part in table.parts():
        yield from part.items()


def start(runtime: Runtime[Settings], feed: Feed, tables: Tables) -> None:
    """Adds what this agent says of affinity."""
    runtime.checks.add((AFFINITY,), AffinityDoctor(lambda: feed.all_of(Service), tables).check, standing=False)
