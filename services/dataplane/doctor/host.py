"""Reads what else is on the node, its pods and its flows, and has ``core.doctor`` judge.

The ruleset is that of the agent's own network namespace, which is the node's, with the rules of iptables-legacy.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from chassis.runtime.checks import NotChecked
from chassis.runtime.service import Runtime
from kit import iptables, netfilter
from linux import nftables
from linux.iptables import saved
from proto.findings import DoctorRequest, Finding
from proto.objects import Pod
from services.dataplane.cni.conf import NAME
from services.dataplane.core.conntrack.fills import fills
from services.dataplane.core.datapath.layout import NODE
from services.dataplane.core.doctor import other_plugins, pods
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings

BETWEEN = 2.0
"""Seconds between two looks at pods that are no endpoint."""
PROXY = "kube-proxy"


class HostDoctor:
    """The checks of what is on a node beside its own programs."""

    def __init__(self, feed: Feed, tables: Tables, endpoints: LocalEndpoints, configurations: Path) -> None:
        self._feed = feed
        self._tables = tables
        self._endpoints = endpoints
        self._configurations = configurations

    def _is_asked(self, asked: DoctorRequest) -> bool:
        return asked.kind in ("all", "policy", "service") or (asked.kind == "node" and asked.name == self._feed.node)

    async def check_others(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Raises :class:`NotChecked` where the ruleset cannot be read."""
        if not self._is_asked(asked):
            return ()
        host = await asyncio.to_thread(self._host)
        return tuple(other_plugins.check(host, asked=asked.name if asked.kind == "service" else ""))

    async def check_pods(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Raises :class:`NotChecked` before this node's pods are known."""
        if not self._is_asked(asked) or asked.kind == "service":
            return ()
        if not self._feed.complete(Pod):
            raise NotChecked(f"this node's pods are not known: {self._feed.objects.why()}")
        first = self._unattached()
        if not first:
            return ()
        await asyncio.sleep(BETWEEN)
        return tuple(pods.check_unattached(self._feed.node, self._feed.all_of(Pod), first & self._unattached()))

    async def check_flows(self, asked: DoctorRequest) -> Iterable[Finding]:
        """How full conntrack and the shares of pods are."""
        return tuple(pods.check_flows(self._flows())) if self._is_asked(asked) else ()

    def _unattached(self) -> frozenset[str]:
        uids = {one.first.pod_uid for one in self._endpoints.up.values()}
        return pods.unattached(self._feed.all_of(Pod), uids)

    def _flows(self) -> pods.Flows:
        budgets = {key.endpoint: budget for key, budget in self._tables.budgets.items().items()}
        entries = self._tables.flows.entries
        present = fills(budgets, entries)
        names = {one.index: f"{one.first.namespace}/{one.first.pod}" for one in self._endpoints.up.values()}
        return pods.Flows(
            node=self._feed.node,
            used=sum(fill.used for fill in present.values()),
            entries=entries,
            pods={
                f"{names[share.endpoint]} {share.direction.name.lower()}": (fill.used, fill.limit)
                for share, fill in present.items()
                if share.endpoint != NODE and share.endpoint in names
            },
        )

    def _host(self) -> other_plugins.Host:
        try:
            legacy = (iptables.parse(saved(version), version) for version in (4, 6))
            ruleset = netfilter.joined(netfilter.parse(nftables.ruleset()), *legacy)
        except (nftables.NoRuleset, ValueError) as why:
            raise NotChecked(str(why)) from why
        return other_plugins.Host(
            node=self._feed.node,
            ruleset=ruleset,
            virtual_servers=tuple(_virtual_servers()),
            processes=tuple(processes(PROXY)),
            configurations=tuple(_files(self._configurations)),
            own_configuration=NAME,
        )


def processes(name: str) -> Iterator[str]:
    """Processes of this name in the calling thread's network namespace, as far as they are visible here."""
    own = os.stat("/proc/thread-self/ns/net").st_ino
    for number in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[:2]
            is_named = any(Path(os.fsdecode(word)).name == name for word in words)
            if is_named and os.stat(f"/proc/{number}/ns/net").st_ino == own:
                yield f"{name} (pid {number})"


def _virtual_servers() -> Iterator[str]:
    with suppress(OSError):
        for line in Path("/proc/thread-self/net/ip_vs").read_text().splitlines():
            if line.startswith(("TCP ", "UDP ", "SCTP ")):
                yield line.strip()


def _files(folder: Path) -> list[str]:
    with suppress(OSError):
        return sorted(one.name for one in folder.iterdir())
    return []


def start(runtime: Runtime[Settings], feed: Feed, tables: Tables, endpoints: LocalEndpoints) -> None:
    """Adds the checks of the host."""
    doctor = HostDoctor(feed, tables, endpoints, runtime.settings.cni_conf_dir)
    runtime.checks.add(other_plugins.CODES, doctor.check_others)
    runtime.checks.add((pods.UNATTACHED,), doctor.check_pods)
    runtime.checks.add((pods.TABLE_FULL, pods.BUDGET), doctor.check_flows)
