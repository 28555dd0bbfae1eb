"""Every model of routing is changed into every other in a running lab, under traffic: no connection breaks, few packets
are lost, and a kept address moves under each.

The IPPools (and for WireGuard the FelixConfiguration) are edited, nothing else. Traffic is 50 TCP and 50 UDP flows with
knocks that must stay unheard (`traffic.py`), and a stream of 1,000 packets a second between each pair of nodes
(`streams.py`), of which at most ten may be lost in a change. On the flat fabric every ordered pair of models, on the
routed one every ordered pair of those that can serve it. Each fabric has a lab of its own, one after the other;
`AIRMESH_TEST_LAB=<name>` uses one that is up, for the fabric that it has.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from zlib import crc32

import pytest

from lab.cluster import models
from lab.cluster.capture import Capture
from lab.cluster.packets import PLAIN, WIREGUARD
from lab.paths import SOURCE
from lab.topology import Fabric
from lab.tour.move import move
from lab.tour.probes import Move, Pod, parse_pod
from lab.tour.run import EXAMPLE, NAMESPACES
from lab.tour.shell import Hands
from services.dataplane.core.tunnel.encryption import PATIENCE
from tests.drills import streams as drill
from tests.drills.streams import Counted, Streams, streaming
from tests.drills.traffic import Traffic, street
from tests.labkit import Lab, attach, raised

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(3600)]

SERVE = {
    Fabric.FLAT: (models.HOST_GW, models.VXLAN, models.IPIP, models.WIREGUARD),
    Fabric.ROUTED: (models.VXLAN, models.IPIP, models.WIREGUARD),
}
"""Models that serve every pair of nodes."""
LOST = 10
"""Packets of a pair's stream that one change may lose."""
HELD_SECONDS = 3.0
"""Of traffic in a new model before it is judged."""
PAGES = 8080
"""Where each pod shows pages, to anybody; what comes to the flows' own port is counted as a breach."""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)"
LINGER_SECONDS = 150.0
"""Within which the device of a model that nothing asks for is gone."""


def circuit(names: Sequence[str]) -> list[str]:
    """A walk that takes each ordered pair of names once, and ends where it began."""
    left = {one: [other for other in names if other != one] for one in reversed(names)}
    trail, found = [names[0]], list[str]()
    while trail:
        if left[trail[-1]]:
            trail.append(left[trail[-1]].pop())
        else:
            found.append(trail.pop())
    return found[::-1]


@pytest.fixture(scope="module", params=[str(one) for one in SERVE])
def fabric_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of each fabric, up with a model that serves it."""
    fabric = Fabric(request.param)
    if given := os.environ.get("AIRMESH_TEST_LAB"):
        found = attach(given)
        if (found.topology.router_namespace != "") is not (fabric is Fabric.ROUTED):
            pytest.skip(f"lab {given} has the other fabric")
        yield found
        return
    name = f"mod{crc32(os.fsencode(SOURCE)):08x}"
    with raised(name, "--fabric", str(fabric), "--model", SERVE[fabric][0]) as made:
        yield made


def fabric_of(lab: Lab) -> Fabric:
    return Fabric.ROUTED if lab.topology.router_namespace else Fabric.FLAT


@pytest.fixture(scope="module")
def traffic(fabric_lab: Lab) -> Iterator[Traffic]:
    drill.ask(fabric_lab, SERVE[fabric_of(fabric_lab)][0])
    with street(fabric_lab) as made:
        yield made


@pytest.fixture(scope="module")
def streams(fabric_lab: Lab, traffic: Traffic) -> Iterator[Streams]:
    with streaming(traffic.space) as made:
        yield made


def test_a_walk_takes_every_ordered_pair_once() -> None:
    for names in SERVE.values():
        walk = circuit(names)
        steps = list(pairwise(walk))
        assert sorted(steps) == sorted((one, other) for one in names for other in names if one != other)


def changed(lab: Lab, traffic: Traffic, streams: Streams, model: str) -> dict[tuple[str, str], Counted]:
    """The model asked for and taken by all pairs; what each stream lost meanwhile."""
    before = streams.count()
    drill.ask(lab, model)
    drill.changed(lab, streams.addresses, model)
    time.sleep(HELD_SECONDS)
    after = streams.count()
    traffic.unbroken(lossy=True)
    lost = {pair: after[pair].lost - before[pair].lost for pair in after}
    assert max(lost.values()) <= LOST, f"lost in the change to {model}: {lost}"
    return {
        pair: Counted(lost=lost[pair], received=one.received - before[pair].received, silence=one.silence)
        for pair, one in after.items()
    }


def wire(lab: Lab, streams: Streams, model: str) -> None:
    """Packets between pods are in the model's tunnel and in nothing else."""
    pods = {address for found in streams.addresses.values() for address in found}
    with Capture.of_lab(lab.topology, lab.topology.nodes) as seen:
        time.sleep(1.0)
    clear = [packet for _, packet in seen.seen if packet.tunnel == PLAIN and str(packet.source) in pods]
    ours = [packet for _, packet in seen.seen if str(packet.ends[0]) in pods or packet.tunnel == WIREGUARD]
    inside = {packet.tunnel for packet in ours if packet.carries}
    wanted = {drill.expected(model, family) for family in (4, 6)}
    assert bool(clear) is (model == models.HOST_GW), f"in the clear under {model}: {clear[:3]}"
    assert inside - {PLAIN} == wanted - {models.HOST_GW}, f"under {model}"


def reached_by_servers(lab: Lab, traffic: Traffic, model: str) -> None:
    """Pods answer the API server's machine, which is no node: webhooks and aggregated APIs are pods. Under WireGuard
    they do so still when nothing is taken in in the clear any more.
    """
    time.sleep(PATIENCE + 2 if model == models.WIREGUARD else 0)
    for address in traffic.addresses["friend"]:
        lab.inside("cp", "python3", "-I", "-c", CONNECT, address, str(PAGES))


def test_every_model_changes_into_every_other_under_traffic(
    fabric_lab: Lab, traffic: Traffic, streams: Streams
) -> None:
    lab, walk = fabric_lab, circuit(SERVE[fabric_of(fabric_lab)])
    drill.changed(lab, streams.addresses, walk[0])
    traffic.flowing()
    print(f"\n{fabric_of(lab)} fabric, {len(streams.pairs)} pairs of nodes, {drill.RATE} packets a second each")
    for before, model in pairwise(walk):
        born = time.monotonic()
        found = changed(lab, traffic, streams, model)
        wire(lab, streams, model)
        reached_by_servers(lab, traffic, model)
        lost = ", ".join(f"{one} → {other} {said.lost}" for (one, other), said in found.items())
        silence = max(said.silence for said in found.values())
        taken = time.monotonic() - born
        print(f"{before} → {model}: lost {lost}; longest silence {silence * 1000:.0f} ms; {taken:.1f} s with a look")
    traffic.flowing()
    print(f"echoes {traffic.totals['echoed']}, knocks {traffic.totals['tries']}")


def test_devices_of_models_that_nothing_asks_for_go_and_nobody_feels_it(
    fabric_lab: Lab, traffic: Traffic, streams: Streams
) -> None:
    lab = fabric_lab
    drill.ask(lab, models.VXLAN)
    drill.changed(lab, streams.addresses, models.VXLAN)
    before = streams.count()

    def gone() -> bool:
        links = [lab.inside(host.name, "ip", "-o", "link") for host in lab.topology.nodes]
        traffic.unbroken()
        return not any(word in one for one in links for word in ("am-ipip", "am-wg"))

    lab.until("devices of other models are gone", gone, LINGER_SECONDS)
    after = streams.count()
    assert {pair: after[pair].lost - before[pair].lost for pair in after} == dict.fromkeys(after, 0)


def shop(lab: Lab) -> list[Pod]:
    """The pods of examples/shop, all ready."""
    lab.kubectl("apply", "-k", str(EXAMPLE))
    found: list[Pod] = []

    def ready() -> bool:
        listed = [item for name in NAMESPACES for item in lab.get("pods,deployments,statefulsets", "-n", name)["items"]]
        found[:] = [parse_pod(item) for item in listed if item["kind"] == "Pod"]
        wanted = sum(item["spec"]["replicas"] for item in listed if item["kind"] != "Pod")
        return bool(sum(pod.ready for pod in found) == wanted == len(found))

    lab.until("the shop's pods are ready", ready, 180)
    return list(found)


@pytest.fixture(scope="module")
def pods(fabric_lab: Lab) -> Iterator[None]:
    shop(fabric_lab)
    yield
    fabric_lab.kubectl("delete", "-k", str(EXAMPLE), "--wait=false")


def test_a_kept_address_moves_under_every_model(fabric_lab: Lab, streams: Streams, pods: None) -> None:
    lab = fabric_lab
    for model in SERVE[fabric_of(lab)]:
        drill.ask(lab, model)
        drill.changed(lab, streams.addresses, model)
        found = shop(lab)
        before = next(pod for pod in found if pod.full_name == "prod/db-0")
        seen: Move = asyncio.run(move(Hands(lab.where, 120, False), before, found, lambda _: None))
        assert seen.agrees, f"under {model}: {seen}"
        gaps = ", ".join(f"{family} {gap:.0f} ms" for family, gap in seen.gaps_ms)
        print(f"\n{model}: {before.node} → {seen.after.node}, longest silence {gaps}, ready after {seen.seconds:.1f} s")
