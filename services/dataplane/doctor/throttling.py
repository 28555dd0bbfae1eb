"""Reads how often cgroups of this node's pods were stopped by their CPU quota, and has ``core.doctor`` judge.

A pod's cgroups are those of the processes in its network namespace, as far as they are visible here (hostPID): which
path a runtime gives them need not be known. Of several the one that was stopped most counts.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from chassis.runtime.service import Runtime
from linux.netns import by_cookie, of_processes
from proto.findings import DoctorRequest, Finding
from proto.objects import EndpointSlice
from services.dataplane.core.doctor import throttling
from services.dataplane.core.doctor.throttling import Periods
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings

BETWEEN = 2.0
"""Seconds between two looks: twenty periods of the usual length."""
NAME_SERVICE = "kube-system/kube-dns"
CGROUPS = Path("/sys/fs/cgroup")


class ThrottlingDoctor:
    """The check of CPU quotas."""

    def __init__(self, feed: Feed, endpoints: LocalEndpoints) -> None:
        self._feed = feed
        self._endpoints = endpoints

    async def check(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Of name service, or of the Service that is asked for."""
        if asked.kind not in ("all", "dns", "service"):
            return ()
        service = asked.name if asked.kind == "service" else NAME_SERVICE
        slices = [one for one in self._feed.all_of(EndpointSlice) if f"{one.namespace}/{one.service}" == service]
        uids = {endpoint.pod_uid for part in slices for endpoint in part.endpoints}
        local = (one for one in self._endpoints.up.values() if one.first.pod_uid in uids)
        pods = {one.cookie: f"{one.first.namespace}/{one.first.pod}" for one in local}
        if not pods:
            return ()
        files = await asyncio.to_thread(quota_files, pods)
        if not files:
            return ()
        before = await asyncio.to_thread(look, files)
        await asyncio.sleep(BETWEEN)
        now = await asyncio.to_thread(look, files)
        return tuple(throttling.check(self._feed.node, service, before, now, dns=service == NAME_SERVICE))


def quota_files(pods: Mapping[int, str]) -> Mapping[str, tuple[Path, ...]]:
    """``cpu.stat`` of each pod's cgroups; pods by the cookies of their namespaces. Blocking; looks into these."""
    processes = processes_of(pods)
    found = {
        pod: tuple(dict.fromkeys(file for path in paths for file in _files(path))) for pod, paths in processes.items()
    }
    return {pod: files for pod, files in found.items() if files}


def processes_of(pods: Mapping[int, str]) -> Mapping[str, list[str]]:
    """``/proc/<pid>/ns/net`` of each pod's processes; pods by the cookies of their namespaces. Blocking."""
    with by_cookie(pods) as namespaces:
        inodes = {os.fstat(descriptor).st_ino: pods[cookie] for cookie, descriptor in namespaces.items()}
        return {inodes[inode]: paths for inode, paths in of_processes().items() if inode in inodes}


def _files(path: str) -> Iterator[Path]:
    """Of a process, named by the path of its network namespace: cgroup v1's controller ``cpu``, and v2."""
    with suppress(OSError):
        for line in Path(path).parents[1].joinpath("cgroup").read_text().splitlines():
            _, controllers, below = line.split(":", 2)
            for root in _roots(controllers):
                file = CGROUPS / root / below.lstrip("/") / "cpu.stat"
                if file.is_file():
                    yield file
                    break


def _roots(controllers: str) -> tuple[str, ...]:
    """Where a hierarchy with these controllers (none: cgroup v2) may be mounted, as far as it counts CPU periods."""
    if not controllers:
        return ".", "unified"
    return ("cpu", "cpu,cpuacct") if "cpu" in controllers.split(",") else ()


def look(files: Mapping[str, Iterable[Path]]) -> Mapping[str, Periods]:
    """Counters of each pod's cgroup that was stopped most."""
    found: dict[str, Periods] = {}
    for pod, paths in files.items():
        read = []
        for path in paths:
            with suppress(OSError):
                read.append(throttling.parse(path.read_text()))
        known = [one for one in read if one is not None]
        if known:
            found[pod] = max(known, key=lambda one: one.throttled)
    return found


def start(runtime: Runtime[Settings], feed: Feed, endpoints: LocalEndpoints) -> None:
    """Adds the check."""
    runtime.checks.add(throttling.CODES, ThrottlingDoctor(feed, endpoints).check)
