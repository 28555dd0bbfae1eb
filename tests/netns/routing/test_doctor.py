"""Faults between two real namespaces: each is made, found by the checks of the routing agent, mended, and gone."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_network

import pytest
import pytest_asyncio

from chassis.runtime.service import Runtime
from kit.models import HOST_GW, VXLAN
from proto.codec import kind_prefix, object_key
from proto.findings import DoctorRequest, Finding
from proto.objects import KIND_OF, FelixConfiguration, IPPool
from proto.subjects import OBJECTS
from proto.sync import Complete, complete_key
from services.routing import prober
from services.routing.core.evidence import LOST
from services.routing.settings import Settings
from tests.conftest import BusFor
from tests.netns.routing.conftest import Mesh, Netns, Routing

pytestmark = pytest.mark.privileged

FOUR = ip_network("10.244.0.0/16")
THEIRS = "10.244.0.64/26"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes, and the agent of the first."""

    one: Netns
    other: Netns
    agent: Runtime[Settings]

    async def found(self, seconds: float = 60.0) -> dict[str, Finding]:
        """Of one question; asked again where a busy machine has not let all checks end in time."""
        end = time.monotonic() + seconds
        while (answer := await self.agent.checks.answer(DoctorRequest())).unchecked:
            assert time.monotonic() < end, answer.unchecked
        return {finding.code: finding for finding in answer.findings}

    async def until(self, wanted: Callable[[dict[str, Finding]], bool], seconds: float = 60.0) -> dict[str, Finding]:
        """What is found once it is as wanted."""
        end = time.monotonic() + seconds
        while not wanted(found := await self.found()):
            assert time.monotonic() < end, found
            await asyncio.sleep(0.1)
        return found

    async def until_found(self, code: str) -> Finding:
        return (await self.until(lambda found: code in found))[code]

    async def until_well(self) -> None:
        await self.until(lambda found: not found)


def run(netns: Netns, *command: str) -> str:
    argv = ["nsenter", f"--net={netns.path}", "--", *command]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def dropping(table: str, hook: str, verdict: str) -> str:
    """Commands of nft that drop what VXLAN sends."""
    chain = f"add chain {table} in {{ type filter hook {hook} priority 0; }}"
    return f"add table {table}; {chain}; add rule {table} in udp dport 4789 {verdict}"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure often: what takes a minute on a node takes seconds here."""
    for name in ("SOON", "LATER"):
        monkeypatch.setattr(prober, name, 0.1)
    monkeypatch.setattr(prober, "ANSWERED_WITHIN", 0.3)
    monkeypatch.setattr(prober, "NOW", 0.2)


@pytest_asyncio.fixture
async def pair(
    nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing, bus_for: BusFor, buckets: dict[str, str]
) -> AsyncIterator[Pair]:
    """Two agents that reach each other by VXLAN."""
    objects = (await bus_for("cluster")).bucket(OBJECTS)
    pool = IPPool(name="pods4", cidr=FOUR, block_size=26, vxlan_mode="Always")
    await objects.put(object_key(pool), pool)
    for kind in (IPPool, FelixConfiguration):
        await objects.put(complete_key(kind_prefix(KIND_OF[kind])), Complete(buckets["objects"]))
    await mesh.block("10.244.0.0/26", "n1")
    await mesh.block(THEIRS, "n2")
    await mesh.complete()
    served = {HOST_GW.name: HOST_GW, VXLAN.name: VXLAN}
    agents = [
        await routing.start(netns, f"n{number}", served=served, programs=False) for number, netns in enumerate(nodes, 1)
    ]
    for netns in nodes:
        netns.ip("link add am-test type veth peer name am-peer")
        netns.ip("link set am-test up")
    made = Pair(*nodes, agents[0])
    await made.until(lambda _: "am-vxlan" in nodes[0].ip("route show proto 186"))
    await made.until_well()
    yield made


async def test_a_route_of_another_daemon_that_shadows_ours(pair: Pair) -> None:
    pair.one.ip("route add 10.244.0.64/28 dev am-test proto bird")
    finding = await pair.until_found("route-shadowed")
    assert finding.about == "Pair n1 n2"
    assert "10.244.0.64/28" in finding.observed[0].text
    assert "bird" in finding.cause
    assert finding.fixes[0].automatic
    run(pair.one, "sh", "-c", finding.fixes[0].command)
    await pair.until_well()
    pair.one.ip(f"route add {THEIRS} dev am-test proto zebra metric 20")
    assert "zebra" in (await pair.until_found("route-shadowed")).cause
    pair.one.ip(f"route del {THEIRS} dev am-test proto zebra metric 20")
    await pair.until_well()


async def test_a_rule_that_sends_packets_to_another_table(pair: Pair) -> None:
    pair.one.ip(f"route add {THEIRS} dev am-test table 77")
    pair.one.ip(f"rule add to {THEIRS} lookup 77 pref 100")
    finding = await pair.until_found("route-other-table")
    assert "table 77" in finding.observed[0].text
    pair.one.ip("rule del pref 100")
    await pair.until_well()


async def test_a_route_that_is_removed_again_and_again(pair: Pair) -> None:
    for _ in range(3):
        pair.one.ip(f"route del {THEIRS} proto 186 metric 64")
        await pair.until(lambda _: THEIRS in pair.one.ip("route show proto 186"))
    finding = await pair.until_found("route-removed")
    assert "3 times" in finding.cause or "4 times" in finding.cause


async def test_forwarding_that_is_off(pair: Pair) -> None:
    run(pair.one, "sysctl", "-qw", "net.ipv4.conf.fab0.forwarding=0")
    finding = await pair.until_found("forwarding-off")
    assert finding.observed[0].text == "net.ipv4.conf.fab0.forwarding = 0"
    run(pair.one, "sh", "-c", finding.fixes[0].command)
    await pair.until_well()


async def test_a_strict_filter_on_the_way_that_a_tunnels_packets_come(pair: Pair) -> None:
    pair.one.ip("route add 172.30.0.12/32 dev am-test")
    await pair.until_found("node-unreachable")
    run(pair.one, "sysctl", "-qw", "net.ipv4.conf.fab0.rp_filter=1")
    finding = await pair.until_found("reverse-path-filter")
    assert finding.about == "Pair n1 n2"
    assert "leave by am-test" in finding.observed[1].text
    run(pair.one, "sh", "-c", finding.fixes[0].command)
    assert "reverse-path-filter" not in await pair.found()
    pair.one.ip("route del 172.30.0.12/32 dev am-test")
    await pair.until_well()


async def test_a_firewall_of_this_host_that_drops_the_tunnel(pair: Pair) -> None:
    rules = dropping("inet hers", "input", "counter drop")
    run(pair.one, "nft", rules)
    finding = await pair.until_found("firewall-drops")
    assert "inet hers in" in finding.observed[0].text
    run(pair.one, "sh", "-c", finding.fixes[0].command)
    await pair.until_well()


async def test_a_rule_of_iptables_legacy(pair: Pair) -> None:
    run(pair.one, "iptables-legacy", "-A", "OUTPUT", "-p", "udp", "--dport", "4789", "-j", "DROP")
    finding = await pair.until_found("firewall-drops")
    assert "iptables-legacy -t filter -A OUTPUT" in finding.observed[0].text
    run(pair.one, "sh", "-c", finding.fixes[0].command)
    await pair.until_well()


async def test_a_network_that_filters_the_tunnel(pair: Pair) -> None:
    """The other node's ingress stands for the network between: this agent sees nothing of it."""
    rules = dropping("netdev net", "ingress device fab0", "drop")
    run(pair.other, "nft", rules)
    finding = await pair.until_found("fabric-filters-vxlan")
    assert "UDP port 4789" in finding.cause
    run(pair.other, "nft", "delete table netdev net")
    await pair.until_well()


async def test_a_network_that_filters_is_found_by_the_first_question(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prober itself sends nothing meanwhile: what it knows is that the way works."""
    for name in ("SOON", "LATER", "LARGE"):
        monkeypatch.setattr(prober, name, 3600.0)
    run(pair.other, "nft", dropping("netdev net", "ingress device fab0", "drop"))
    finding = (await pair.found())["fabric-filters-vxlan"]
    assert f"{LOST} packets in a row" in finding.observed[0].text
    run(pair.other, "nft", "delete table netdev net")
    assert not await pair.found(), "and the first question after it"


async def test_a_node_that_cannot_be_reached(pair: Pair) -> None:
    pair.other.ip("link set fab0 down")
    finding = await pair.until_found("node-unreachable")
    assert "172.30.0.12" in finding.cause


async def test_a_stale_neighbour(pair: Pair) -> None:
    pair.one.ip("neigh replace 172.30.0.12 lladdr 02:00:00:00:00:99 dev fab0 nud permanent")
    finding = await pair.until_found("neighbour-stale")
    assert "02:00:00:00:00:99" in finding.observed[0].text
    run(pair.one, "sh", "-c", finding.fixes[0].command)
    await pair.until(lambda found: "neighbour-stale" not in found)


async def test_an_address_that_two_machines_have(pair: Pair) -> None:
    pair.other.ip("addr add 172.30.0.11/32 dev fab0")
    finding = await pair.until_found("address-duplicate")
    assert "172.30.0.11" in finding.cause
    pair.other.ip("addr del 172.30.0.11/32 dev fab0")
    await pair.until_well()
