"""A stream of packets between each pair of nodes, counted at its end; and the edits of a model, waited for.

Each node has a pod that sends 1,000 datagrams a second to the next node's pod, half of them over each family. A packet
is lost when a later one of its flow has come and it has not. A change of model is done when every node's kernel has the
route of each pair in that model; what happens to packets meanwhile is what the drill is about.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from lab.cluster import models
from lab.topology import Host
from lab.tour.ways import NONE, addresses_of, model_of
from tests.drills.traffic import Program, pid_in_pod
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

PORT = 9555
RATE = 1000
CHANGE_SECONDS = 60.0
CAUGHT_UP_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Both families of one stream, so far."""

    lost: int
    received: int
    silence: float
    """The longest since the last look, in seconds: the receiving program's own pauses among it."""


class Streams:
    """All streams of one lab. Made by :func:`streaming`."""

    def __init__(self, space: LabNamespace, stack: ExitStack) -> None:
        self.lab = lab = space.lab
        pods = {pod["metadata"]["name"]: pod for pod in lab.get("pods", "-n", space.namespace)["items"]}
        nodes = [host.name for host in lab.topology.nodes]
        self.addresses = {node: [ip["ip"] for ip in pods[f"stream-{node}"]["status"]["podIPs"]] for node in nodes}
        pids = {node: pid_in_pod(pods[f"stream-{node}"]) for node in nodes}

        def start(node: str, *arguments: str) -> Program:
            program = Program(pids[node], *arguments)
            stack.callback(program.close)
            return program

        self.sinks = {node: start(node, "sink", str(PORT)) for node in nodes}
        for sink in self.sinks.values():
            sink.report()  # it listens
        following = zip(nodes, nodes[1:] + nodes[:1], strict=True)
        self.pairs = [(one, other) for one, other in following if one != other]
        if len(nodes) == 2:  # one pair
            self.pairs = self.pairs[:1]
        self.sources = {
            (one, other): start(one, "stream", str(PORT), str(RATE), *self.addresses[other])
            for one, other in self.pairs
        }

    def count(self) -> dict[tuple[str, str], Counted]:
        """Every stream, once all that had been sent when this was asked was overtaken. Raises `AssertionError`."""
        sent = {pair: source.report()["sent"] for pair, source in self.sources.items()}
        found: dict[tuple[str, str], Counted] = {}
        silences: dict[tuple[str, str], float] = {}

        def caught_up() -> bool:
            for pair, numbers in sent.items():
                if pair in found:
                    continue
                flows = self._flows(pair)
                silences[pair] = max([silences.get(pair, 0.0), *(one["silence"] for one in flows.values())])
                if all(flow in flows and flows[flow]["due"] >= number for flow, number in enumerate(numbers)):
                    received = sum(int(one["received"]) for one in flows.values())
                    due = sum(int(one["due"]) for one in flows.values())
                    found[pair] = Counted(lost=due - received, received=received, silence=silences[pair])
            return len(found) == len(sent)

        self.lab.until("what was sent came, or what was sent later", caught_up, CAUGHT_UP_SECONDS)
        return found

    def _flows(self, pair: tuple[str, str]) -> dict[int, dict[str, Any]]:
        own = set(self.addresses[pair[0]])
        return {one["flow"]: one for one in self.sinks[pair[1]].report()["streams"] if one["source"] in own}


@contextmanager
def streaming(space: LabNamespace) -> Iterator[Streams]:
    """A pod on each node, and the programs; gone afterwards with the namespace."""
    for host in space.lab.topology.nodes:
        space.pod(f"stream-{host.name}", host.name, "stream", wait=False)
    for host in space.lab.topology.nodes:
        space.ready(f"stream-{host.name}")
    with ExitStack() as stack:
        yield Streams(space, stack)


def route(lab: Lab, source: Host, address: str) -> Mapping[str, Any]:
    """The kernel's route of a node to an address; `error` alone when it refuses."""
    try:
        said: Mapping[str, Any] = json.loads(lab.inside(source.name, "ip", "--json", "route", "get", address))[0]
    except AssertionError as refused:
        return {"error": str(refused)}
    return said


def taken(lab: Lab, addresses: Mapping[str, list[str]]) -> dict[tuple[str, str, int], str]:
    """(Node, other node, family) → the model of the kernel's route to that node's pod; ``addresses``: pods' by node."""
    return {
        (source.name, there.name, ip_address(address).version): model_of(
            route(lab, source, address), addresses_of(there)
        )
        for source in lab.topology.nodes
        for there in lab.topology.nodes
        if source.name != there.name
        for address in addresses[there.name]
    }


def expected(model: str, family: int) -> str:
    """What a pair's route is when all pools ask for a model: IP in IP carries IPv4 alone (`lab.cluster.models`)."""
    return models.VXLAN if model == models.IPIP and family == 6 else model


def ask(lab: Lab, model: str, mode: str = "Always") -> None:
    """Edit the lab's objects as a person would."""
    asyncio.run(models.ask(lab.where, model, mode))


def changed(lab: Lab, addresses: Mapping[str, list[str]], model: str) -> None:
    """Wait until every pair's route is of the model. Raises `AssertionError` with those that are not."""
    last: dict[tuple[str, str, int], str] = {}

    def all_taken() -> bool:
        last.clear()
        last.update(taken(lab, addresses))
        return all(found == expected(model, family) for (_, _, family), found in last.items())

    try:
        lab.until(f"every pair takes {model}", all_taken, CHANGE_SECONDS)
    except AssertionError as late:
        others = {pair: found for pair, found in last.items() if found != expected(model, pair[2])}
        raise AssertionError(f"{late}; {NONE} is no route: {others}") from late
