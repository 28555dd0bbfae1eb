"""Reads resolv.conf of pods whose measured DNS is odd, and has ``core.doctor.resolvers`` judge.

The file is read as the pod's own processes see it, by ``/proc/<pid>/root`` (hostPID), opened without following links
out of the pod, and only its first :data:`MOST` bytes: what is in it a tenant writes.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from chassis.runtime.checks import NotChecked
from chassis.runtime.service import Runtime
from proto.dns_pods import PodDns, PodDnsRequest
from proto.findings import DoctorRequest, Finding
from proto.net import Address
from proto.objects import EndpointSlice, Service
from services.dataplane.core.doctor import resolvers
from services.dataplane.core.doctor.resolvers import Resolver
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.doctor.throttling import NAME_SERVICE, processes_of
from services.dataplane.feed import Feed
from services.dataplane.monitor.dns import DnsMeasurements
from services.dataplane.settings import Settings

MOST = 4096
READ_PODS = 64
"""Pods whose file is read for one question: those that ask most."""


class ResolverDoctor:
    """The checks of what pods ask of name service."""

    def __init__(self, feed: Feed, endpoints: LocalEndpoints, measured: DnsMeasurements) -> None:
        self._feed = feed
        self._endpoints = endpoints
        self._measured = measured

    async def check(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Resolvers elsewhere always; search lists when names or a Service are asked about. Raises NotChecked."""
        if asked.kind not in ("all", "dns", "service"):
            return ()
        report = self._measured.answer(PodDnsRequest())
        if report is None or not report.measured:
            raise NotChecked("pods' DNS is not measured here: AIRMESH_MEASURE_DNS is off")
        node, service = self._feed.node, asked.name if asked.kind == "service" else ""
        slow = asked.kind != "all" and list(resolvers.check_search_lists(node, report.pods, {}, service=service))
        odd = [one for one in report.pods if resolvers.in_vain(one)]
        if not slow and not odd:
            return ()
        files = await self._files(report.pods if slow else odd)
        found = list(resolvers.check_resolvers(node, odd, files, self._servers())) if not service else []
        if slow:
            found += resolvers.check_search_lists(node, report.pods, files, service=service)
        return found

    async def _files(self, pods: Iterable[PodDns]) -> Mapping[str, Resolver]:
        wanted = {f"{one.namespace}/{one.pod}" for one in list(pods)[:READ_PODS]}
        named = {one.cookie: f"{one.first.namespace}/{one.first.pod}" for one in self._endpoints.up.values()}
        return await asyncio.to_thread(resolvers_of, {cookie: name for cookie, name in named.items() if name in wanted})

    def _servers(self) -> frozenset[Address]:
        """Addresses by which the cluster's name service is asked."""
        services = [one for one in self._feed.all_of(Service) if f"{one.namespace}/{one.name}" == NAME_SERVICE]
        slices = [one for one in self._feed.all_of(EndpointSlice) if f"{one.namespace}/{one.service}" == NAME_SERVICE]
        addresses = {address for one in services for address in one.cluster_ips}
        return frozenset(addresses | {one for part in slices for end in part.endpoints for one in end.addresses})


def resolvers_of(pods: Mapping[int, str]) -> Mapping[str, Resolver]:
    """By pod; ``pods`` by the cookies of their namespaces. Blocking; looks into these."""
    found: dict[str, Resolver] = {}
    for pod, paths in processes_of(pods).items():
        for path in paths:
            with suppress(OSError):
                found[pod] = resolvers.parse(_read(Path(path).parents[1] / "root"))
                break
    return found


def _read(root: Path) -> str:
    """``etc/resolv.conf`` below a process' root. A link could lead out of the pod: it is none of a kubelet's making."""
    folder = os.open(root / "etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        opened = os.open("resolv.conf", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError("resolv.conf is no file")
        return os.read(opened, MOST).decode(errors="replace")
    finally:
        os.close(opened)


def start(runtime: Runtime[Settings], feed: Feed, endpoints: LocalEndpoints, measured: DnsMeasurements) -> None:
    """Adds the checks."""
    runtime.checks.add(resolvers.CODES, ResolverDoctor(feed, endpoints, measured).check)
