"""The Kubernetes suite's NetworkPolicy scenarios as truth tables: compiled lines, ``explain`` and the oracle agree with
each of the 81 cells, and the graph gets there by the same steps as the scenario, not by starting afresh."""

from __future__ import annotations

from fnmatch import fnmatch
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from proto.objects import Namespace, Pod
from services.policy.core.explain import Explainer
from services.policy.core.graph import Graph
from tests.core.policy.cluster import feed, kernel_of, keyed
from tests.core.policy.notation import PROTOCOLS, named, namespace, pod, policy
from tests.core.policy.oracle import Oracle, peer_at
from tests.core.policy.worlds import World

SCENARIOS = yaml.safe_load((Path(__file__).parent / "upstream.yaml").read_text())
SERVED = named(*(f"serve-{port}-{name.lower()}:{name}:{port}" for port in (80, 81) for name in ("TCP", "UDP", "SCTP")))
NAMES = [f"{space}/{short}" for space in "xyz" for short in "abc"]
NODES = ("n1", "n2")


def world(step: dict[str, Any]) -> World:
    added: dict[str, dict[str, str]] = step.get("pods", {})
    pods = [
        pod(
            name,
            ip_address(f"10.244.{1 + index // 3}.{1 + index % 3}"),
            ip_address(f"fd00:10:244:{1 + index // 3}::{1 + index % 3}"),
            node=NODES[index % 2],
            named_ports=SERVED,
            labels={"pod": name[-1], **added.get(name, {})},
        )
        for index, name in enumerate(NAMES)
    ]
    spaces = [namespace(name, **step.get("namespaces", {}).get(name, {})) for name in "xyz"]
    return World(
        (Namespace("kube-system", "cluster"), *spaces),
        (),
        tuple(pods),
        tuple(policy(tree, name=f"p{index}") for index, tree in enumerate(step["policies"])),
    )


def table(lines: list[str]) -> dict[tuple[str, str], bool]:
    cells = {(source, destination): True for source in NAMES for destination in NAMES}
    for line in lines:
        sign, source, arrow, destination = line.split()
        assert arrow == ">"
        assert sign in "+-"
        hits = [cell for cell in cells if fnmatch(cell[0], source) and fnmatch(cell[1], destination)]
        assert hits, line
        cells |= dict.fromkeys(hits, sign == "+")
    return cells | {(name, name): True for name in NAMES}


def test_the_table_holds_the_whole_suite() -> None:
    names = [scenario["name"] for scenario in SCENARIOS]
    assert len(names) == len(set(names)) == 42 + 3 + 3 + 1
    assert [name[:2] for name in names[:42]] == [f"{number:02}" for number in range(1, 43)]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s["name"] for s in SCENARIOS])
def test_upstream(scenario: dict[str, Any]) -> None:
    graph = Graph()
    before: dict[str, Any] = {}
    for step in scenario["steps"]:
        now = world(step)
        objects = keyed(now)
        for gone in before.keys() - objects.keys():
            graph.put(gone, None)
        feed(graph, objects)
        before = objects
        probes = {key: lines for key, lines in step.items() if "/" in key}
        assert probes
        for probe, lines in probes.items():
            protocol, port = probe.split("/")
            check(graph, now, PROTOCOLS[protocol], int(port), table(lines))


def check(graph: Graph, now: World, protocol: int, port: int, cells: dict[tuple[str, str], bool]) -> None:
    kernel, explainer = kernel_of(graph, now), Explainer(graph)
    oracle = Oracle(now.policies, now.namespaces)
    pods: dict[str, Pod] = {f"{p.namespace}/{p.name}": p for p in now.pods}
    for (source, destination), expected in cells.items():
        start, end = pods[source].addresses[0], pods[destination].addresses[0]
        assert kernel.allows(start, end, protocol, port) == expected, f"compiled: {source} > {destination}"
        verdicts = explainer.explain(str(start), str(end), protocol, port)
        assert verdicts.allowed == expected, f"explained: {source} > {destination}: {verdicts.reasons}"
        start_peer, end_peer = peer_at(start, now.pods, ()), peer_at(end, now.pods, ())
        assert oracle.allows(start_peer, end_peer, protocol, port) == expected, f"oracle: {source} > {destination}"


def test_steps_differ_from_each_other() -> None:
    """A scenario of several steps would prove nothing if its steps were the same."""
    for scenario in SCENARIOS:
        for one, other in zip(scenario["steps"], scenario["steps"][1:], strict=False):
            assert one != other
