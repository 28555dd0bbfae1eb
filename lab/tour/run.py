"""The main job of `make lab`: applies `examples/shop` to a lab that is up and shows, in tables, that all of it agrees.

Owns the order of the tour and its verdict. Promises exit code 0 only if every agent is well, every pod has the
addresses that Kubernetes says, every connection did what policy says, every Service led to its own pods, the moved pod
kept its addresses, every denied connection was told by name, and packets between nodes were on the wire what the
nodes' routes say. Behind switches each node also has its sessions, and connections are spread over both and outlive
either. It can be run again and again; the lab stays up.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console

from lab.cluster import switches, up
from lab.cluster.capture import Capture
from lab.cluster.packets import Packet
from lab.cluster.record import Record, read_record
from lab.paths import SOURCE, Paths
from lab.topology import Host, LabError, Topology
from lab.tour import tables as shown
from lab.tour.drops import drops, parse_drop
from lab.tour.move import move
from lab.tour.multipath import FLOWS, Neighbor, Spread, Stage, by_switch, crossing, echoing, neighbors
from lab.tour.outage import outage
from lab.tour.probes import Outcome, Pod, Probe, cells, parse_pod, probes
from lab.tour.services import Answered, Check, answered, checks, parse_service
from lab.tour.shell import Hands
from lab.tour.ways import Way, counted, pairs, ways

EXAMPLE = SOURCE / "examples" / "shop"
NAMESPACES = ("shop", "prod")
MOVED = "prod/db-0"
DOMAIN = "cluster.local"
_PODS_SECONDS = 90.0
_WELL_SECONDS = 20.0
_PROBE_TIMEOUT = "2s"
_REPEATS = 6
"""Connections of each way to a Service: enough to see more than one pod answer."""
_PIPE_COLUMNS = 170


class Tour:
    """One walk through a lab. What does not agree is collected, not raised: a person wants to see all of it."""

    def __init__(self, where: Paths, page: Console, say: Callable[[str], None]) -> None:
        self.hands = Hands(where, page.width, page.is_terminal)
        self.page = page
        self.say = say
        self.wrong: list[str] = []
        self.connections = 0

    async def apply(self) -> list[Pod]:
        """The example applied, and all of its pods ready."""
        await self.hands.kubectl("apply", "-k", str(EXAMPLE))
        self.say("examples/shop applied")
        end = time.monotonic() + _PODS_SECONDS
        last = ""
        while True:
            pods, wanted = await self._pods()
            ready = sum(pod.ready for pod in pods)
            if ready == wanted == len(pods):
                self.say(f"{wanted} pods ready")
                return pods
            if time.monotonic() > end:
                late = (one for one in pods if not one.ready)
                lines = [f"  {one.full_name} on {one.node or 'no node'}: {one.waits_for}" for one in late]
                whole = f"{ready} of {wanted} pods are ready after {_PODS_SECONDS:.0f} s:"
                raise LabError("\n".join([whole, *lines]))
            if (now := f"{ready} of {wanted} pods ready") != last:
                self.say(last := now)
            await asyncio.sleep(0.3)

    async def _pods(self) -> tuple[list[Pod], int]:
        listed = await self.hands.objects("pods,deployments,statefulsets", *NAMESPACES)
        pods = [parse_pod(item) for item in listed if item["kind"] == "Pod"]
        wanted = sum(item["spec"]["replicas"] for item in listed if item["kind"] != "Pod")
        return sorted(pods, key=lambda pod: pod.full_name), wanted

    async def agents(self) -> None:
        """Nodes and agents, by the observer; agents get a moment to acknowledge what was applied last."""
        end = time.monotonic() + _WELL_SECONDS
        code, said = await self.hands.observe("status")
        while code and time.monotonic() < end:
            await asyncio.sleep(0.3)
            code, said = await self.hands.observe("status")
        self._print(said)
        if code:
            self.wrong.append("airmesh status says that not everything is well")

    async def addresses(self, pods: Sequence[Pod]) -> None:
        """Pods with their addresses, by the observer, against what Kubernetes says."""
        (_, said), (_, output) = await asyncio.gather(
            self.hands.observe("pods"), self.hands.observe("pods", "--output", "json")
        )
        self._print(said)
        by_uid = {row["uid"]: row for row in json.loads(output)["pods"]}
        for pod in pods:
            row = by_uid.get(pod.uid)
            if row is None:
                self.wrong.append(f"{pod.full_name} is unknown to the mesh")
            elif set(row["addresses"]) != set(map(str, pod.addresses)) or row["node"] != pod.node:
                theirs = f"{', '.join(map(str, pod.addresses))} on {pod.node}"
                self.wrong.append(
                    f"{pod.full_name}: Kubernetes says {theirs}, the mesh {row['addresses']} on {row['node']}"
                )
            elif {address.version for address in pod.addresses} != {4, 6}:
                self.wrong.append(f"{pod.full_name} has not an address of each family")

    async def matrix(self, pods: Sequence[Pod]) -> list[Outcome]:
        """Every pod to every port of every other: policy's verdict, the connection, and the drops."""
        tried = probes(pods)
        self.connections += len(tried)
        self.say(f"trying {len(tried)} connections")
        async with self.hands.following("flows", "--dropped", "--follow", "--output", "json") as output:
            verdicts, results = await asyncio.gather(self._verdicts(tried), self._connect(tried))
            await asyncio.sleep(0.5)  # the last drops are on their way
            heard = [parse_drop(event) for event in output]
        outcomes = [
            Outcome(
                probe=probe,
                allowed=says["allowed"],
                connected=did["ok"],
                error=did.get("error", ""),
                reasons="\n".join(says["reasons"]),
            )
            for probe, says, did in zip(tried, verdicts, results, strict=True)
        ]
        state = cells(outcomes)
        shown.matrix(self.page, state)
        if bad := sum(len(cell.wrong) for cell in state.values()):
            self.wrong.append(f"{bad} of {len(outcomes)} connections did not do what policy says")
        dropped = drops(heard, outcomes)
        shown.drops(self.page, dropped)
        self.wrong += dropped.contradictions
        return outcomes

    async def _verdicts(self, tried: Sequence[Probe]) -> list[dict[str, Any]]:
        questions = "\n".join(probe.question for probe in tried)
        _, output = await self.hands.observe("policy", "matrix", "--output", "json", stdin=questions)
        return list(json.loads(output)["verdicts"])

    async def _connect(self, tried: Sequence[Probe]) -> list[dict[str, Any]]:
        by_source: dict[str, list[Probe]] = {}
        for probe in tried:
            by_source.setdefault(probe.source.full_name, []).append(probe)
        output = await asyncio.gather(
            *(self.hands.probe(pod, (one.url for one in group), _PROBE_TIMEOUT) for pod, group in by_source.items())
        )
        by_ends = {
            (pod, result["target"]): result for pod, lines in zip(by_source, output, strict=True) for result in lines
        }
        return [by_ends[probe.source.full_name, probe.url] for probe in tried]

    async def routes(
        self, nodes: Sequence[Host], pods: Sequence[Pod], outcomes: Sequence[Outcome], wire: Capture[Packet]
    ) -> None:
        """What each pair of nodes uses: what agents say, the kernel's routes, and what was on the wire meanwhile."""
        _, said = await self.hands.observe("routes")
        self._print(said)
        asked = list(pairs(nodes, pods))
        found = await asyncio.gather(*(self.hands.route(source, str(address)) for source, _, address in asked))
        routes: dict[tuple[str, str, int], dict[str, Any]] = {
            (source.name, there.name, address.version): route
            for (source, there, address), route in zip(asked, found, strict=True)
        }
        crossed = {
            (one.probe.source.node, one.probe.target.node, one.probe.address.version)
            for one in outcomes
            if one.connected
        }
        seen: Sequence[Way] = ways(routes, counted(wire.seen.items(), nodes, pods), crossed, nodes)
        shown.ways(self.page, seen)
        self.wrong += [one.disagreement for one in seen if one.disagreement]
        if wire.missed:
            self.wrong.append(f"{wire.missed} packets passed the capture by: it had no room for them")

    async def sessions(self, where: Paths, topology: Topology) -> None:
        """Each node's BGP sessions with the switches, by the switches' word."""
        names = [switch.name for switch in topology.switches]
        found = await asyncio.gather(*(asyncio.to_thread(switches.sessions, where, name) for name in names))
        seen = neighbors(dict(zip(names, found, strict=True)), [node.name for node in topology.nodes])
        shown.neighbors(self.page, seen)
        self._note(seen)

    async def spread(self, topology: Topology, outcomes: Sequence[Outcome]) -> None:
        """New connections from a pod on each node to another node, by the switch that each took."""
        asked = list(crossing(outcomes).values())
        names = [switch.name for switch in topology.switches]
        with Capture.of_switches(topology, topology.nodes) as wire:
            results = await asyncio.gather(
                *(
                    self.hands.probe(one.probe.source.full_name, [one.probe.url] * FLOWS, _PROBE_TIMEOUT)
                    for one in asked
                )
            )
        seen = [
            Spread(
                source=one.probe.source.node,
                destination=one.probe.target.node,
                family=one.probe.address.version,
                tried=FLOWS,
                connected=sum(result["ok"] for result in lines),
                flows=by_switch(wire.seen, one.probe.source, {(one.probe.address, one.probe.port.number)}, names),
            )
            for one, lines in zip(asked, results, strict=True)
        ]
        self.connections += FLOWS * len(seen)
        shown.spreads(self.page, seen, names)
        self._note(seen)
        if len(seen) < 2 * len(topology.nodes):
            self.wrong.append("a node has no connection to another one of which to see the switch")

    async def outage(self, where: Paths, topology: Topology, outcomes: Sequence[Outcome]) -> None:
        """Connections that are held while one switch after the other is out."""
        ends = echoing(outcomes)
        if ends is None:
            self.wrong.append("no pod is connected to one on another node that echoes")
            return
        self.say(f"{FLOWS} connections from {ends[0].full_name} to {ends[1].full_name}, while switches are out")
        seen = await outage(self.hands, where, topology, ends)
        shown.stages(self.page, seen, [switch.name for switch in topology.switches])
        self._note(seen)

    def _note(self, seen: Iterable[Neighbor | Spread | Stage]) -> None:
        self.wrong += [one.disagreement for one in seen if one.disagreement]

    async def services(self, pods: Sequence[Pod], outcomes: Sequence[Outcome]) -> None:
        """Each Service by name and by cluster IP, from a pod that may and from one that may not."""
        listed = await self.hands.objects("services", *NAMESPACES)
        asked = checks([parse_service(item, pods) for item in listed], outcomes, DOMAIN)
        by_client: dict[str, list[Check]] = {}
        for check in asked:
            by_client.setdefault(check.client.full_name, []).append(check)
        output = await asyncio.gather(*(self._reach(client, group) for client, group in by_client.items()))
        seen = sorted((one for group in output for one in group), key=lambda one: asked.index(one.check))
        self.connections += sum(one.tried for one in seen)
        shown.services(self.page, seen)
        self.wrong += [
            f"{one.check.service.full_name} by {one.check.way} from {one.check.client.full_name}"
            for one in seen
            if not one.agrees
        ]

    async def _reach(self, client: str, group: Sequence[Check]) -> list[Answered]:
        urls = [check.url for check in group for _ in range(_REPEATS)]
        results = await self.hands.probe(client, urls, _PROBE_TIMEOUT)
        return [answered(check, [one for one in results if one["target"] == check.url]) for check in group]

    async def moved(self, pods: Sequence[Pod]) -> None:
        """The StatefulSet's pod on another node, with its address."""
        before = next(pod for pod in pods if pod.full_name == MOVED)
        seen = await move(self.hands, before, pods, self.say)
        shown.move(self.page, seen)
        if not seen.agrees:
            self.wrong.append(f"{MOVED} did not move with its addresses, or its peer did not hear it again")

    def _print(self, said: str) -> None:
        self.page.file.write(said)


async def tour(where: Paths, record: Record, say: Callable[[str], None]) -> int:
    """Walk through the lab at `where`; 0 if everything agrees, else 1. Raises `LabError` when it cannot go on."""
    topology = record.topology
    began = time.monotonic()
    page = Console(highlight=False)
    if not page.is_terminal:
        page = Console(highlight=False, width=_PIPE_COLUMNS)
    walk = Tour(where, page, say)
    pods = await walk.apply()
    await walk.agents()
    await walk.addresses(pods)
    with Capture.of_lab(topology, topology.nodes) as wire:
        outcomes = await walk.matrix(pods)
    await walk.routes(topology.nodes, pods, outcomes, wire)
    if topology.switches:
        await walk.sessions(where, topology)
    if topology.switches and len(topology.nodes) > 1:
        await walk.spread(topology, outcomes)
        await walk.outage(where, topology, outcomes)
    await walk.services(pods, outcomes)
    await walk.moved(pods)
    shown.summary(page, walk.wrong, walk.connections, time.monotonic() - began)
    return 1 if walk.wrong else 0


def run(where: Paths) -> int:
    """`python -m lab tour`: walk, with a line for each step; the exit code. Raises `LabError`."""
    record = read_record(where)
    if record is None or not record.finished or not record.mesh:
        raise LabError(f"lab {where.lab} is not up with its mesh: python -m lab up --name {where.lab}")
    return asyncio.run(tour(where, record, up.Progress(lambda text: print(text, flush=True))))
