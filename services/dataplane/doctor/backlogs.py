"""Reads the accept queues of this node's pods, in their network namespaces, and has ``core.doctor.backlogs`` judge.

Namespaces are found by the cookies of the endpoints; one that goes away meanwhile is passed over. A second look is
taken only when the first has found a full queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from chassis.runtime.service import Runtime
from kit.netstat import counter
from linux.netlink import NetlinkRefused
from linux.netns import NotANamespace, by_cookie, inside
from linux.sock_diag import listening_sockets
from proto.findings import DoctorRequest, Finding
from proto.objects import EndpointSlice
from services.dataplane.core.doctor import backlogs
from services.dataplane.core.doctor.backlogs import Backlogs
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings

BETWEEN = 1.0
"""Seconds between two looks."""


class BacklogDoctor:
    """The check of accept queues."""

    def __init__(self, feed: Feed, endpoints: LocalEndpoints) -> None:
        self._feed = feed
        self._endpoints = endpoints

    async def check(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Of all pods of this node, or of the endpoints of the Service that is asked for."""
        pods = self._pods(asked)
        if not pods:
            return ()
        before = await asyncio.to_thread(look, pods)
        full = {pod for pod, seen in before.items() if seen.full}
        if not full:
            return ()
        await asyncio.sleep(BETWEEN)
        now = await asyncio.to_thread(look, {cookie: pod for cookie, pod in pods.items() if pod in full})
        service = asked.name if asked.kind == "service" else ""
        return tuple(backlogs.check(self._feed.node, before, now, service=service))

    def _pods(self, asked: DoctorRequest) -> Mapping[int, str]:
        """``namespace/pod`` by the cookie of its network namespace."""
        them = {one.cookie: one.first for one in self._endpoints.up.values()}
        if asked.kind == "service":
            slices = self._feed.all_of(EndpointSlice)
            parts = [one for one in slices if f"{one.namespace}/{one.service}" == asked.name]
            uids = {endpoint.pod_uid for part in parts for endpoint in part.endpoints}
            them = {cookie: one for cookie, one in them.items() if one.pod_uid in uids}
        elif not (asked.kind == "all" or (asked.kind == "node" and asked.name == self._feed.node)):
            return {}
        return {cookie: f"{one.namespace}/{one.pod}" for cookie, one in them.items()}


def look(pods: Mapping[int, str]) -> Mapping[str, Backlogs]:
    """Accept queues of pods, given by the cookies of their namespaces. Blocking; enters each of them."""
    found: dict[str, Backlogs] = {}
    with by_cookie(pods) as namespaces:
        for cookie, descriptor in namespaces.items():
            with suppress(OSError, NotANamespace, NetlinkRefused), inside(descriptor):
                found[pods[cookie]] = Backlogs(
                    queues={one.port: (one.waiting, one.bound) for one in listening_sockets()},
                    overflows=counter(Path("/proc/thread-self/net/netstat").read_text(), "TcpExt", "ListenOverflows"),
                )
    return found


def start(runtime: Runtime[Settings], feed: Feed, endpoints: LocalEndpoints) -> None:
    """Adds the check."""
    runtime.checks.add((backlogs.BACKLOG_FULL,), BacklogDoctor(feed, endpoints).check)
