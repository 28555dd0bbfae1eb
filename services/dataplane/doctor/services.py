"""Tries the endpoints of a Service that somebody asks for, and has ``core.doctor.endpoints`` judge.

One node tries for all: the first by name that is ready, so that one fault is found once; of zones the first node of
each answers. It connects by TCP from its own network, each endpoint :data:`TIMES` times, and says nothing: a connection
is closed as soon as it stands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from chassis.runtime.checks import NotChecked
from chassis.runtime.service import Runtime
from proto.findings import DoctorRequest, Finding
from proto.objects import EndpointSlice, Node, Service
from services.dataplane.core.doctor import endpoints
from services.dataplane.feed import Feed
from services.dataplane.loadbalancer.balance import ZONE
from services.dataplane.settings import Settings

TIMES = 3
PATIENCE = 1.2
"""Seconds that one handshake may take: more than a lost SYN that is sent again after one."""
MOST = 32
"""Endpoints that are tried: the first by their addresses."""


class ServiceDoctor:
    """The checks of a Service, on one node."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def check(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Raises :class:`NotChecked` for a Service that is not there."""
        if asked.kind != "service":
            return ()
        found = self._asked(asked.name)
        nodes = sorted((one for one in self._feed.all_of(Node) if one.ready), key=lambda one: one.name)
        if found.node not in [one.name for one in nodes[:1]]:
            of_zone = [one.name for one in nodes if dict(one.labels).get(ZONE, "") == found.zone]
            own = endpoints.check(found) if found.node in of_zone[:1] else ()
            return [one for one in own if one.code == endpoints.ELSEWHERE]
        targets = endpoints.targets(found)[:MOST]
        times = await asyncio.gather(*(connected(target) for target in targets))
        return (*endpoints.check(found), *endpoints.check_times(found, dict(zip(targets, times, strict=True))))

    def _asked(self, name: str) -> endpoints.Asked:
        service = next((one for one in self._feed.all_of(Service) if f"{one.namespace}/{one.name}" == name), None)
        if service is None:
            raise NotChecked(f"there is no Service {name}: give namespace/name as kubectl lists it")
        zones = {one.name: dict(one.labels).get(ZONE, "") for one in self._feed.all_of(Node)}
        return endpoints.Asked(
            service=service,
            slices=tuple(
                one
                for one in self._feed.all_of(EndpointSlice)
                if (one.namespace, one.service) == (service.namespace, service.name)
            ),
            node=self._feed.node,
            zone=zones.get(self._feed.node, ""),
            zones=frozenset(zones.values()) - {""},
        )


async def connected(target: endpoints.Target) -> list[float]:
    """Milliseconds of each handshake that was answered."""
    times: list[float] = []
    for _ in range(TIMES):
        begun = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                _, writer = await asyncio.open_connection(str(target[0]), target[1])
        except (OSError, TimeoutError):
            continue
        times.append((time.monotonic() - begun) * 1000)
        writer.transport.abort()
    return times


def start(runtime: Runtime[Settings], feed: Feed) -> None:
    """Adds the checks of a Service."""
    runtime.checks.add(endpoints.CODES, ServiceDoctor(feed).check)
