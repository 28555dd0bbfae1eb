"""A pool's model is edited while pods live: their links' MTU follows at both ends, and connections in them go on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from proto.objects import FelixConfiguration, IPPool
from tests.bpf.world import inside, run
from tests.netns.dataplane.mesh import Mesh, RunningPod, cluster_objects, wait_for

pytestmark = pytest.mark.privileged

FOUR, SIX = (one for one in cluster_objects() if isinstance(one, IPPool))
PASS_SECONDS = 30.0
"""A full pass comes every five seconds; the rest is a busy machine's."""
HEADERS = {4: 40, 6: 60}
"""Of IP and TCP."""


def mtus(node: Mesh, pod: RunningPod) -> set[int]:
    """Of both ends of a pod's link."""
    shown = run("ip", "-n", node.netns, "-o", "route", "show", pod.four).split()
    host_end = shown[shown.index("dev") + 1]
    ends = ((pod.netns, "eth0"), (node.netns, host_end))
    words = [run("ip", "-n", netns, "-o", "link", "show", link).split() for netns, link in ends]
    return {int(found[found.index("mtu") + 1]) for found in words}


class Connection:
    """A TCP connection from one pod to another, which lives through the test."""

    def __init__(self, source: RunningPod, target: RunningPod, version: int, stack: ExitStack) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        own, there = (pod.four if version == 4 else pod.six for pod in (source, target))
        self.version = version
        with inside(target.netns):
            server = stack.enter_context(socket.create_server((there, 9000), family=family))
        with inside(source.netns):
            address = (own, 0)
            self.near = stack.enter_context(socket.create_connection((there, 9000), 10, source_address=address))
        self.far = stack.enter_context(server.accept()[0])
        self.far.settimeout(10)

    def carry(self) -> None:
        """More than a window of bytes, each way."""
        for writer, reader in ((self.near, self.far), (self.far, self.near)):
            sent = bytes(range(256)) * 4096
            thread = threading.Thread(target=writer.sendall, args=(sent,))
            thread.start()
            got = bytearray()
            while len(got) < len(sent):
                part = reader.recv(1 << 16)
                assert part, "the connection broke"
                got += part
            thread.join(10)
            assert got == sent

    @property
    def longest(self) -> int:
        """Bytes of the longest packet that it sends, both ways."""
        return (
            max(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for end in (self.near, self.far))
            + HEADERS[self.version]
        )


@pytest.fixture
def pods(node: Mesh) -> Iterator[tuple[tuple[RunningPod, RunningPod], list[Connection]]]:
    """Two pods, with a connection in each family; afterwards the pools are as they were."""
    made = node.pod("edited-a"), node.pod("edited-b")
    with ExitStack() as stack:
        yield made, [Connection(*made, version, stack) for version in (4, 6)]
    node.put(FOUR, SIX)


def follow(node: Mesh, pods: tuple[RunningPod, ...], mtu: int) -> None:
    """Waits until every end has the MTU."""
    for pod in pods:
        wait_for(f"an MTU of {mtu}", lambda pod=pod: mtus(node, pod) == {mtu}, PASS_SECONDS)  # type: ignore[misc]


def test_the_mtu_of_living_pods_follows_their_pools_models(
    node: Mesh, pods: tuple[tuple[RunningPod, RunningPod], list[Connection]]
) -> None:
    """Whichever family's pool it is: a link has one MTU. The most that a model adds counts, over IPv4 or IPv6."""
    two, connections = pods
    edits = (
        ((replace(FOUR, ipip_mode="Always"), SIX), 1480),
        ((replace(FOUR, ipip_mode="Always"), replace(SIX, vxlan_mode="CrossSubnet")), 1430),
        ((replace(FOUR, model="auto"), SIX), 1420),
        ((FOUR, replace(SIX, vxlan_mode="Always")), 1430),
        ((FOUR, SIX), 1500),
    )
    for pools, mtu in edits:
        node.put(*pools)
        follow(node, two, mtu)
        for connection in connections:
            connection.carry()
            assert connection.longest <= mtu
        assert mtus(node, node.pod(f"edited-{mtu}", patience=10)) == {mtu}, "one that comes now has the same"


def test_encryption_that_is_asked_for_makes_room_in_living_pods(
    node: Mesh, pods: tuple[tuple[RunningPod, RunningPod], list[Connection]]
) -> None:
    two, connections = pods
    asked = FelixConfiguration(name="default", wireguard_enabled=True, wireguard_enabled_v6=True)
    node.put(asked)
    follow(node, two, 1420)
    for connection in connections:
        connection.carry()
        assert connection.longest <= 1420
    node.put(replace(asked, wireguard_enabled=False, wireguard_enabled_v6=False))
    follow(node, two, 1500)
    for connection in connections:
        connection.carry()


def passed(node: Mesh, pod: RunningPod) -> None:
    """Waits for a full pass that begins now: what is taken away is back."""
    route = run("ip", "-n", node.netns, "route", "show", pod.four).strip()
    run("ip", "-n", node.netns, "route", "del", *route.split())
    wait_for("the route back", lambda: run("ip", "-n", node.netns, "route", "show", pod.four), 20)


def test_it_grows_back_only_when_the_pools_are_known(
    node: Mesh, pods: tuple[tuple[RunningPod, RunningPod], list[Connection]]
) -> None:
    """An agent that starts without the bus does not know that the tunnel is no longer asked for."""
    two, connections = pods
    node.put(replace(FOUR, vxlan_mode="Always"))
    follow(node, two, 1430)
    node.kill("dataplane")
    node.put(FOUR)
    node.nats.kill()
    try:
        started = sum(line["event"] == "endpoints-found" for line in node.log("dataplane"))
        node.start_dataplane()
        wait_for(
            "the agent",
            lambda: sum(line["event"] == "endpoints-found" for line in node.log("dataplane")) > started,
            60,
        )
        passed(node, two[0])
        assert [mtus(node, pod) for pod in two] == [{1430}, {1430}]
        run("ip", "-n", node.netns, "link", "set", "fab0", "mtu", "1400")
        follow(node, two, 1400)
        run("ip", "-n", node.netns, "link", "set", "fab0", "mtu", "1500")
        passed(node, two[0])
        assert [mtus(node, pod) for pod in two] == [{1400}, {1400}], "smaller at once, larger when the pools are known"
        for connection in connections:
            connection.carry()
    finally:
        run("ip", "-n", node.netns, "link", "set", "fab0", "mtu", "1500")
        node.nats.start()
    for pod in two:
        wait_for("as the pools say", lambda pod=pod: mtus(node, pod) == {1500}, 60)  # type: ignore[misc]
    for connection in connections:
        connection.carry()
