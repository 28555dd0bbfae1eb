"""The mission's scenario of a cluster behind two top-of-rack switches: Calico's BGP objects, their file as it is.

Each node has a session with each switch, and leads to every other node's pods by both. Connections are spread over
both by their ports; a switch that is out takes none of them along; policy holds, whichever way packets take.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from zlib import crc32

import pytest

from lab.cluster import switches
from lab.cluster.capture import Capture
from lab.cluster.packets import Flow
from lab.paths import SOURCE
from lab.tour.multipath import CHI_SQUARE, neighbors
from tests.drills.traffic import PORT, Program, pid_in_pod
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab, raised

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(1200)]

SCENARIO = SOURCE / "examples" / "scenarios" / "ai-bgp-ecmp.yaml"
FLOWS = 64
BACK_SECONDS = 60.0

FRIENDS_ALONE = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: friends-alone, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{role: server}}}}
  policyTypes: [Ingress]
  ingress: [{{from: [{{podSelector: {{matchLabels: {{role: friend}}}}}}]}}]
"""
PODS = {"server": "n2", "friend": "n1", "stranger": "n1", "far": "n3"}
OPEN = ("friend", "stranger", "far")
"""Pods that policy selects not."""


@pytest.fixture(scope="module")
def tor() -> Iterator[Lab]:
    """A lab behind switches, to which the scenario is applied as a person would."""
    with raised(f"tor{crc32(os.fsencode(SOURCE)):08x}", "--fabric", "tor") as made:
        made.kubectl("apply", "-f", str(SCENARIO))
        yield made


@pytest.fixture(scope="module")
def space(tor: Lab) -> Iterator[LabNamespace]:
    """Pods on every node, `server` closed to all but `friend`."""
    made = LabNamespace(tor, f"ecmp-{uuid.uuid4().hex[:8]}")
    tor.kubectl("create", "namespace", made.namespace)
    tor.apply(FRIENDS_ALONE.format(namespace=made.namespace))
    for name, node in PODS.items():
        made.pod(name, node, name, wait=False)
    for name in PODS:
        made.ready(name)
    yield made
    tor.kubectl("delete", "namespace", made.namespace, "--wait=false")


def whole(lab: Lab) -> None:
    """Wait until every node has a session with every switch, and routes by all of them."""

    def all_up() -> bool:
        seen = {one.name: switches.sessions(lab.where, one.name) for one in lab.topology.switches}
        every = neighbors(seen, [node.name for node in lab.topology.nodes])
        return all(one.over for one in every) and switches.joined(lab.topology)

    lab.until("all sessions, and routes between all nodes by all switches", all_up, BACK_SECONDS)


def denied_alone(space: LabNamespace) -> None:
    """Pods of all nodes reach each other in both families, but for whom policy denies."""
    for source in OPEN:
        for target in OPEN:
            if source != target:
                assert all(space.connects(source, one) for one in space.addresses(target)), (source, target)
    for address in space.addresses("server"):
        assert space.connects("friend", address)
        assert not space.connects("stranger", address)
        assert not space.connects("far", address)


class Held:
    """TCP connections of `friend` to `server`, both families, each of which must go on."""

    def __init__(self, space: LabNamespace, stack: ExitStack) -> None:
        self.lab = space.lab
        pods = {pod["metadata"]["name"]: pod for pod in self.lab.get("pods", "-n", space.namespace)["items"]}
        self._friend, self._server = space.addresses("friend"), space.addresses("server")
        echo = Program(pid_in_pod(pods["server"]), "serve", str(PORT), *self._friend)
        stack.callback(echo.close)
        echo.report()  # it listens
        self._sender = Program(pid_in_pod(pods["friend"]), "send", str(PORT), str(FLOWS), "0", *self._server)
        stack.callback(self._sender.close)

    def go_on(self, when: str) -> dict[str, set[Flow]]:
        """None of them has ended, and what they sent came back; where each is now, by switch."""

        def level() -> bool:
            self._sender.report()
            time.sleep(0.5)
            said = self._sender.report()
            assert not said["broken"], f"{when}: {said}"
            return not said["lost"]["tcp"] and bool(said["echoed"] >= 0.9 * said["sent"] > 0)

        self.lab.until(f"{when}: all connections go on", level, BACK_SECONDS)
        found: dict[str, set[Flow]] = {}

        def all_seen() -> bool:
            found.clear()
            found.update(seen_at(self.lab, self._friend, self._server, PORT, 1.0))
            return len(set().union(*found.values())) == FLOWS

        self.lab.until(f"{when}: each connection passes a switch", all_seen, BACK_SECONDS)
        return found


def seen_at(lab: Lab, sources: list[str], targets: list[str], port: int, seconds: float) -> dict[str, set[Flow]]:
    """Connections by the switch that node n1 sends them to."""
    with Capture.of_switches(lab.topology, [lab.node("n1")]) as wire:
        time.sleep(seconds)
    return flows_of(wire, sources, targets, port)


def flows_of(wire: Capture[Flow], sources: list[str], targets: list[str], port: int) -> dict[str, set[Flow]]:
    found: dict[str, set[Flow]] = {"tor-a": set(), "tor-b": set()}
    for name, flow in wire.seen:
        if str(flow.source) in sources and str(flow.destination) in targets and flow.port == port:
            found[name].add(flow)
    return found


def test_the_scenario_brings_sessions_and_routes_by_both_switches(tor: Lab) -> None:
    whole(tor)


def test_pods_of_all_nodes_reach_each_other_and_a_denied_one_stays_denied(space: LabNamespace) -> None:
    whole(space.lab)
    denied_alone(space)


def test_new_connections_are_spread_over_both_switches(space: LabNamespace) -> None:
    whole(space.lab)
    friend = space.addresses("friend")
    for target in space.addresses("server"):
        url = f"tcp://[{target}]:8080" if ":" in target else f"tcp://{target}:8080"
        with Capture.of_switches(space.lab.topology, [space.lab.node("n1")]) as wire:
            said = space.lab.exec(space.namespace, "friend", "shop", "probe", "--timeout", "5s", *[url] * FLOWS)
        assert all(json.loads(line)["ok"] for line in said.splitlines())
        one, other = flows_of(wire, friend, [target], 8080).values()
        assert len(one | other) == len(one) + len(other) == FLOWS, "each is at one switch"
        assert (len(one) - len(other)) ** 2 / FLOWS < CHI_SQUARE, (target, len(one), len(other))


def test_a_switch_that_is_out_takes_no_connection_along(space: LabNamespace) -> None:
    lab = space.lab
    whole(lab)
    with ExitStack() as stack:
        held = Held(space, stack)
        stack.callback(mend, lab)
        assert all(held.go_on("at first").values())

        asyncio.run(switches.kill(lab.where, "tor-b"))
        lab.until("its sessions are gone", lambda: not switches.sessions(lab.where, "tor-b"), BACK_SECONDS)
        held.go_on("a daemon is killed")
        denied_alone(space)
        asyncio.run(switches.restart(lab.where, "tor-b"))
        whole(lab)
        assert all(held.go_on("it is started again").values())

        switches.cut(lab.where, "tor-a")
        at = held.go_on("all links of the other are cut")
        assert (len(at["tor-a"]), len(at["tor-b"])) == (0, FLOWS)
        denied_alone(space)
        switches.mend(lab.where, "tor-a")
        whole(lab)
        assert all(held.go_on("they are mended").values())


def mend(lab: Lab) -> None:
    switches.mend(lab.where, "tor-a")
    asyncio.run(switches.restart(lab.where, "tor-b"))


def test_the_tour_agrees_and_shows_the_switches(tor: Lab) -> None:
    whole(tor)
    argv = [sys.executable, "-m", "lab", "tour", "--name", tor.where.lab]
    toured = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, timeout=600, check=False)
    tor.kubectl("delete", "-k", str(SOURCE / "examples" / "shop"), "--wait=false")
    assert toured.returncode == 0, toured.stdout[-12000:] + toured.stderr[-2000:]
    for words in ("BGP sessions", "Connections over both switches", "A switch is out", "Everything agrees"):
        assert words in toured.stdout, words
    assert "disagrees" not in toured.stdout
