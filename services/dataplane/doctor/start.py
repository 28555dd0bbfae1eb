"""Reads sockets, settings and counters of the node, tries node ports of other nodes, and has ``core.doctor`` judge.

Blocking reads are done in a thread of its own, in the process' network namespace. Tries are at most :data:`MOST_TRIED`
connections in one answer, each closed as soon as it is answered.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from chassis.runtime.service import Runtime
from linux.connections import answered
from proto.findings import DoctorRequest, Finding
from proto.flow import DropReason
from proto.net import Address
from proto.objects import EndpointSlice, Node, Pod, Service, ServicePort
from services.dataplane.core.doctor import nodeports
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.datapath.tables import Tables
from services.dataplane.doctor.masquerade import subjects
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings

COUNTED = 1.0
"""Seconds that a counter is watched."""
WAIT = 0.7
MOST_TRIED = 64
_LISTEN, _UNCONNECTED = "0A", "07"
_TABLES = (
    ("tcp", nodeports.TCP, _LISTEN),
    ("tcp6", nodeports.TCP, _LISTEN),
    ("udp", nodeports.UDP, _UNCONNECTED),
    ("udp6", nodeports.UDP, _UNCONNECTED),
)
_LOOPBACKS = ("7F", "0" * 24 + "01000000")
"""How addresses of 127.0.0.0/8 and ::1 end there: words in the machine's order."""
REACHED_BY = (10250, 22, 9)
"""TCP ports by which a node is known to answer: a refusal is an answer."""


class Doctor:
    """The checks of a node's dataplane agent."""

    def __init__(self, feed: Feed, tables: Tables, sysctls: Path, endpoints: LocalEndpoints) -> None:
        self._feed = feed
        self._endpoints = endpoints
        self._tables = tables
        self._sysctls = sysctls / "net" / "ipv4"

    def _services(self, asked: DoctorRequest) -> tuple[Service, ...]:
        everything = asked.kind == "all" or (asked.kind == "node" and asked.name == self._feed.node)
        return tuple(
            service
            for service in self._feed.all_of(Service)
            if everything or (asked.kind == "service" and asked.name == f"{service.namespace}/{service.name}")
        )

    async def check_ports(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Who else has the node ports."""
        services = self._services(asked)
        if not services:
            return ()
        pods = tuple(self._feed.all_of(Pod))
        return await asyncio.to_thread(lambda: tuple(nodeports.check(self._node_ports(services, pods))))

    def _node_ports(self, services: tuple[Service, ...], pods: tuple[Pod, ...]) -> nodeports.NodePorts:
        wanted = {(port.protocol, port.node_port) for _, port in nodeports.claimed(services)}
        wanted |= {(nodeports.TCP, one.health_check_port) for one in services if one.health_check_port}
        low, high = (self._sysctls / "ip_local_port_range").read_text().split()
        return nodeports.NodePorts(
            node=self._feed.node,
            services=services,
            pods=pods,
            listeners=listeners(wanted),
            ephemeral=(int(low), int(high)),
            reserved=nodeports.parse_ports((self._sysctls / "ip_local_reserved_ports").read_text()),
        )

    async def check_local(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Services that are asked for here and have no endpoint here."""
        node = self._feed.node
        lacking = nodeports.without_local_endpoint(node, self._services(asked), self._feed.all_of(EndpointSlice))
        if not lacking:
            return ()
        before = self._dropped()
        await asyncio.sleep(COUNTED)
        return tuple(nodeports.check_local(node, lacking, self._dropped() - before, COUNTED))

    def _dropped(self) -> int:
        found = self._tables.metrics().items()
        return sum(one.packets for (reason, _), one in found if reason is DropReason.SERVICE_NO_LOCAL_BACKEND)

    async def check_tried(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Node ports of other nodes, as they answer from here."""
        nodes = [one for one in self._feed.all_of(Node) if one.name != self._feed.node and one.ready]
        wanted = [
            (service, port, node)
            for service, port in nodeports.claimed(self._services(asked))
            if port.protocol == nodeports.TCP and service.external_policy == "Cluster" and not service.source_ranges
            for node in nodes
        ][:MOST_TRIED]
        found = await asyncio.to_thread(lambda: self._tried(wanted))
        silent = [one for one in found if one.inside_answers and not one.answered]
        if not silent:
            return ()
        slices = tuple(self._feed.all_of(EndpointSlice))
        local = {address: pod for _, pod in subjects(self._feed, self._endpoints) for address in pod.addresses}
        proven = (one for one in silent if nodeports.would_answer(one.service, one.port, one.address, slices, local))
        return tuple(nodeports.check_tried(self._feed.node, proven))

    def _tried(self, wanted: Iterable[tuple[Service, ServicePort, Node]]) -> list[nodeports.Tried]:
        plans = [
            (service, port, node, address, _of_version(service.cluster_ips, address.version))
            for service, port, node in wanted
            for address in node.addresses
            if _of_version(service.cluster_ips, address.version) is not None
        ]
        targets = {(address, port.node_port) for _, port, _, address, _ in plans}
        targets |= {(address, number) for _, _, _, address, _ in plans for number in REACHED_BY}
        targets |= {(inside, port.port) for _, port, _, _, inside in plans if inside is not None}
        heard = answered(targets, WAIT)
        return [
            nodeports.Tried(
                service=service,
                port=port,
                peer=node.name,
                address=address,
                answered=(address, port.node_port) in heard,
                node_answers=any((address, number) in heard for number in REACHED_BY),
                inside_answers=inside is not None and (inside, port.port) in heard,
            )
            for service, port, node, address, inside in plans
        ]


def _of_version(addresses: Iterable[Address], version: int) -> Address | None:
    return next((one for one in addresses if one.version == version), None)


def listeners(wanted: set[nodeports.PortKey], family: int = 0) -> Mapping[nodeports.PortKey, nodeports.Listener]:
    """Sockets of this network namespace that have one of these ports and wait for whoever comes;
    with a ``family``, only those that its packets reach from elsewhere.
    """
    inodes: dict[nodeports.PortKey, int] = {}
    for table, protocol, state in _TABLES:
        if family == 6 and not table.endswith("6"):
            continue
        with suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
                parts = line.split()
                address, _, port = parts[1].rpartition(":")
                key = protocol, int(port, 16)
                if key in wanted and parts[3] == state and not (family and address.endswith(_LOOPBACKS)):
                    inodes.setdefault(key, int(parts[9]))
    owners = _owners(set(inodes.values())) if inodes else {}
    return {
        key: nodeports.Listener(inode=inode, process=owners.get(inode, ("", 0))[0], is_ours=_is_ours(owners, inode))
        for key, inode in inodes.items()
    }


def _is_ours(owners: Mapping[int, tuple[str, int]], inode: int) -> bool:
    return owners.get(inode, ("", 0))[1] == os.getpid()


def _owners(inodes: set[int]) -> dict[int, tuple[str, int]]:
    """Processes by the inodes of their sockets, as far as they are visible here: name with pid, and pid."""
    found: dict[int, tuple[str, int]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                link = os.readlink(descriptor)
                if link.startswith("socket:[") and (inode := int(link[8:-1])) in inodes:
                    name = (process / "comm").read_text().strip()
                    found[inode] = f"{name} (pid {process.name})", int(process.name)
    return found


def start(runtime: Runtime[Settings], feed: Feed, tables: Tables, endpoints: LocalEndpoints) -> None:
    """Adds the checks of this agent."""
    doctor = Doctor(feed, tables, runtime.settings.sysctl_root, endpoints)
    runtime.checks.add(nodeports.CODES, doctor.check_ports)
    runtime.checks.add(nodeports.LOCAL, doctor.check_local)
    runtime.checks.add(nodeports.FILTERED, doctor.check_tried, standing=False)
