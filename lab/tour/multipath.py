"""How flows take two top-of-rack switches: sessions of each node, flows spread over both, and flows while one is out.

Pure. What is judged: each node has an established BGP session with each switch; new connections are spread over all
switches as by a fair coin, each of them by one alone; connections that are held go on while a switch is out, none of
them is lost, none is sent to a switch without links, and all switches have flows again afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.cluster.packets import Flow
from lab.tour.probes import Address, Outcome, Pod, Port
from proto.net import host_port

FLOWS = 64
"""Connections of one pod to one other."""
CHI_SQUARE = 19.5
"""Of two ways, one degree of freedom: a fair spread is above it once in 100,000 times."""
ECHO = "postgres"
"""Name of a port that echoes what a connection sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbor:
    """A node as a switch sees it."""

    node: str
    switch: str
    over: tuple[str, ...]
    """Families that an established session runs over: `IPv4`, `IPv6`."""

    @property
    def disagreement(self) -> str:
        """What is wrong, a sentence; empty: nothing."""
        return "" if self.over else f"{self.node} has no session with {self.switch}"


def neighbors(seen: Mapping[str, Mapping[str, bool]], nodes: Collection[str]) -> tuple[Neighbor, ...]:
    """Every node with every switch; ``seen``: by switch, sessions by name (`n1_v4`) and whether each is established."""
    return tuple(
        Neighbor(
            node=node,
            switch=switch,
            over=tuple(f"IPv{family}" for family in (4, 6) if sessions.get(f"{node}_v{family}")),
        )
        for node in nodes
        for switch, sessions in seen.items()
    )


def by_switch(
    seen: Iterable[tuple[str, Flow]], source: Pod, targets: Collection[tuple[Address, int]], switches: Sequence[str]
) -> dict[str, frozenset[Flow]]:
    """Flows of a pod to these addresses and ports, by the switch that its node has sent them to."""
    found: dict[str, set[Flow]] = {name: set() for name in switches}
    for name, flow in seen:
        if flow.source in source.addresses and (flow.destination, flow.port) in targets:
            found[name].add(flow)
    return {name: frozenset(flows) for name, flows in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Connections from one pod to one address, by the switch that each took."""

    source: str
    destination: str
    """Nodes."""
    family: int
    tried: int
    connected: int
    flows: Mapping[str, frozenset[Flow]]
    """By switch, all of the fabric's."""

    @property
    def counts(self) -> dict[str, int]:
        """Flows by switch."""
        return {name: len(flows) for name, flows in self.flows.items()}

    @property
    def chi_square(self) -> float:
        """How far from an even spread (Pearson); 0: even."""
        even = sum(self.counts.values()) / len(self.counts)
        return sum((count - even) ** 2 / even for count in self.counts.values()) if even else 0.0

    @property
    def disagreement(self) -> str:
        """What is wrong, a sentence; empty: nothing."""
        name = f"{self.source} → {self.destination} IPv{self.family}"
        every = frozenset[Flow]().union(*self.flows.values())
        if self.connected < self.tried:
            return f"{name}: {self.tried - self.connected} of {self.tried} connections failed"
        if len(every) != self.tried:
            return f"{name}: {len(every)} connections passed the switches, and {self.tried} were made"
        if sum(self.counts.values()) > len(every):
            return f"{name}: connections changed their switch"
        if self.chi_square > CHI_SQUARE:
            shown = ", ".join(f"{count} by {switch}" for switch, count in self.counts.items())
            return f"{name}: connections are not spread evenly ({shown})"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Connections that are held, from something that happened to a switch until they all go on."""

    what: str
    """That happened."""
    flows: int
    broken: tuple[str, ...]
    """Why connections have ended, one each."""
    longest_ms: float
    """That any of them has waited for an echo meanwhile."""
    seconds: float
    """From what happened until all went on, and routes and sessions were as expected; negative: they never were."""
    seen: Mapping[str, int]
    """Connections at each switch afterwards."""
    used: Collection[str]
    """Switches that carry some of them."""
    unused: Collection[str] = ()
    """Switches that may carry none."""

    @property
    def disagreement(self) -> str:
        """What is wrong, a sentence; empty: nothing."""
        if self.broken:
            return f"{self.what}: {len(self.broken)} of {self.flows} connections were lost ({self.broken[0]})"
        if self.seconds < 0:
            return f"{self.what}: not all connections went on, or routes and sessions are not as they should be"
        if (passed := sum(self.seen.values())) < self.flows:
            return f"{self.what}: {self.flows - passed} of {self.flows} connections pass no switch"
        if idle := [name for name in self.used if not self.seen.get(name)]:
            return f"{self.what}: no connection goes by {' or '.join(idle)}"
        if lost := [name for name in self.unused if self.seen.get(name)]:
            return f"{self.what}: {self.seen[lost[0]]} connections go by {lost[0]}"
        return ""


def go_on(line: Mapping[str, Any], since_ms: float) -> bool:
    """Whether a line of `shop talk` says that all connections had an echo, all of its time after ``since_ms``."""
    return bool(line["began_unix_ms"] >= since_ms and not line["silent"])


def crossing(outcomes: Iterable[Outcome]) -> dict[tuple[str, int], Outcome]:
    """A TCP connection from a pod on each node to another node, by (node, family), of those that were made."""
    found: dict[tuple[str, int], Outcome] = {}
    for one in outcomes:
        if one.connected and one.probe.port.protocol == "tcp" and one.probe.source.node != one.probe.target.node:
            found.setdefault((one.probe.source.node, one.probe.address.version), one)
    return dict(sorted(found.items()))


def echoing(outcomes: Iterable[Outcome]) -> tuple[Pod, Pod, Port] | None:
    """A pod, one on another node to which connections were made in every family of it, and its port that echoes."""
    made: dict[tuple[str, str], set[Address]] = {}
    for one in outcomes:
        probe = one.probe
        if one.connected and probe.port.name == ECHO and probe.source.node != probe.target.node:
            reached = made.setdefault((probe.source.uid, probe.target.uid), set())
            reached.add(probe.address)
            if reached == set(probe.target.addresses):
                return probe.source, probe.target, probe.port
    return None


def targets_of(pod: Pod, port: Port) -> tuple[str, ...]:
    """A pod's addresses with a port, as `shop` takes them."""
    return tuple(host_port(address, port.number) for address in pod.addresses)
