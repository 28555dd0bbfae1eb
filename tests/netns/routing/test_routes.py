"""Kernel routes of a real namespace follow the buckets."""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chassis.telemetry.spans import Span, entered
from linux.netns import enter
from proto.addresses import IPAM_HOLDER
from proto.events import RoutesChanged
from proto.routes import NodeRoutes
from proto.subjects import ROUTES
from proto.traces import SpansRequest
from services.routing import kernel as routing_kernel
from services.routing.core.fib import Remove, Replace, Route
from services.routing.kernel import Kernel
from tests.conftest import BusFor
from tests.natsd import Lines
from tests.netns.routing.conftest import Mesh, Netns, Routing

pytestmark = pytest.mark.privileged

N2 = NodeRoutes(
    node="n2",
    underlay=(ip_address("172.30.0.12"), ip_address("fd00:172:30::12")),
    prefixes=(ip_network("10.244.0.64/26"), ip_network("fd00:10:244::40/122")),
)
TO_N2 = {
    "10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64",
    "fd00:10:244::40/122 via fd00:172:30::12 dev fab0 metric 64",
}
OWN = {"unreachable 10.244.0.0/26 metric 4096", "unreachable 10.244.1.0/26 metric 4096"}


async def until(check: Callable[[], object], seconds: float = 10.0) -> float:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds, "did not happen in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def usual(mesh: Mesh) -> None:
    await mesh.block("10.244.0.0/26", "n1")
    await mesh.block("10.244.0.64/26", "n2")
    await mesh.block("fd00:10:244::40/122", "n2")
    await mesh.block("10.244.1.0/26", IPAM_HOLDER)
    await mesh.announce(N2)
    await mesh.complete()


async def test_routes_are_installed_announced_and_repaired(
    nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing, bus_for: BusFor
) -> None:
    n1, _ = nodes
    heard: list[RoutesChanged] = []
    cli = await bus_for("cli")
    await cli.subscribe("airmesh.v1.events.routing.changed.*", RoutesChanged, lambda _, event: heard.append(event))
    await usual(mesh)
    runtime = await routing.start(n1)
    await until(lambda: n1.routes() == TO_N2 | OWN)
    await until(lambda: runtime.health.ready or runtime.health.missing() == {"bus": "not yet known"})

    offer = None
    for _ in range(200):
        entry = await mesh.n2.bucket(ROUTES).get("n1", NodeRoutes)
        offer = entry.value if entry else None
        if offer is not None:
            break
        await asyncio.sleep(0.02)
    assert offer == NodeRoutes(
        node="n1",
        underlay=(ip_address("172.30.0.11"), ip_address("fd00:172:30::11")),
        prefixes=(ip_network("10.244.0.0/26"),),
        mtu=1500,
    )

    n1.ip("route del 10.244.0.64/26")
    n1.ip("-6 route del fd00:10:244::40/122")
    assert await until(lambda: n1.routes() == TO_N2 | OWN) < 5.0
    await until(lambda: any(event.drift for event in heard))


async def test_a_kernel_that_answers_late_is_asked_again(
    nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The netlink thread is held for longer than its deadline: the service goes on, and heals by itself."""
    n1, _ = nodes
    released, real = threading.Event(), routing_kernel._set_forwarding

    def late(sysctls: Path) -> tuple[str, ...]:
        released.wait(60)
        return real(sysctls)

    monkeypatch.setattr(routing_kernel, "_set_forwarding", late)
    monkeypatch.setattr(routing_kernel, "DEADLINE", 0.2)
    monkeypatch.setattr("services.routing.app.PERIOD", 0.2)
    await usual(mesh)
    try:
        runtime = await routing.start(n1)
        await until(lambda: runtime.health.missing().get("forwarding") == "netlink: TimeoutError", 60.0)
    finally:
        released.set()
    await until(lambda: "forwarding" not in runtime.health.missing(), 60)
    await until(lambda: n1.routes() == TO_N2 | OWN, 60)


async def test_what_changes_a_kernel_is_part_of_the_trace_of_the_block(
    nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing
) -> None:
    n1, _ = nodes
    await usual(mesh)
    runtime = await routing.start(n1)
    await until(lambda: n1.routes() == TO_N2 | OWN)
    lines: Lines = runtime.lines  # type: ignore[attr-defined]
    await until(lambda: len(lines.named("announced")) == 1)

    def spans(trace_id: str) -> list[tuple[str, str]]:
        found = runtime.telemetry.ring.find(SpansRequest(trace_id=trace_id)).spans
        return sorted((span.name, span.parent_id) for span in found)

    assert spans(lines.named("announced")[0]["trace_id"]) == [("routing.announce", "")], "of its own: nothing changed"
    mine, theirs, kept = (Span(secrets.token_hex(16), secrets.token_hex(8)) for _ in range(3))
    with entered(mine):
        await mesh.block("10.244.2.0/26", "n1")
    await until(lambda: len(spans(mine.trace_id)) == 2)
    announce, install = spans(mine.trace_id)
    assert announce == ("routing.announce", mine.span_id)
    assert install[0] == "routing.install", "below the announcement when that has come back by then, else beside it"
    with entered(theirs):
        await mesh.block("10.244.3.0/26", "n2")
        await mesh.announce(NodeRoutes("n2", N2.underlay, (*N2.prefixes, ip_network("10.244.3.0/26"))))
    await until(lambda: "10.244.3.0/26 via 172.30.0.12 dev fab0 metric 64" in n1.routes())
    await until(lambda: spans(theirs.trace_id) == [("routing.install", theirs.span_id)])
    with entered(kept):
        await mesh.claim(ip_address("10.244.1.7"), "n2")
    await until(lambda: spans(kept.trace_id) == [("routing.install", kept.span_id)])

    def said() -> list[list[str]]:
        found = [line["added"] for line in lines.named("routes-changed") if line.get("trace_id") == kept.trace_id]
        return [list(map(str, added)) for added in found]

    await until(said)
    assert [len(added) for added in said()] == [1]
    before = [spans(span.trace_id) for span in (mine, theirs, kept)]
    n1.ip("route del 10.244.0.64/26")
    await until(lambda: n1.routes() >= TO_N2)
    after = [spans(span.trace_id) for span in (mine, theirs, kept)]
    assert after == before, "a repair is no change of these"


async def test_a_kept_address_is_a_host_route_only_where_it_is_not_held(
    nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing
) -> None:
    n1, _ = nodes
    await usual(mesh)
    address = ip_address("10.244.1.7")
    await mesh.claim(address, "n2")
    await routing.start(n1)
    host = {"10.244.1.7 via 172.30.0.12 dev fab0 metric 64"}
    await until(lambda: n1.routes() == TO_N2 | OWN | host)
    await mesh.claim(address, "n1", epoch=10)
    assert await until(lambda: n1.routes() == TO_N2 | OWN) < 2.0
    await mesh.claim(address, "n2", epoch=11)
    assert await until(lambda: n1.routes() == TO_N2 | OWN | host) < 2.0
    await mesh.claim(address, "", epoch=11)
    await until(lambda: n1.routes() == TO_N2 | OWN)


async def test_a_node_that_speaks_in_anothers_name_draws_no_traffic(
    nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing
) -> None:
    n1, _ = nodes
    await usual(mesh)
    await mesh.block("10.244.0.128/26", "n3")
    runtime = await routing.start(n1)
    await until(lambda: n1.routes() == TO_N2 | OWN)
    lines: Lines = runtime.lines  # type: ignore[attr-defined]
    for count, name in enumerate(("n3", "n" * 4000), 1):
        stolen = NodeRoutes(name, N2.underlay, prefixes=(ip_network("10.244.0.128/26"),))
        await mesh.n2.bucket(ROUTES).put("n2", stolen)
        await until(lambda count=count: len(lines.named("fault")) == count)  # type: ignore[misc]
        assert n1.routes() == TO_N2 | OWN, "neither its own word nor the other's counts"
    assert "in the name of 'n3'" in lines.named("fault")[0]["fault"]
    await mesh.announce(NodeRoutes("n2", N2.underlay, prefixes=N2.prefixes[:1]))
    await until(lambda: n1.routes() == {*OWN, "10.244.0.64/26 via 172.30.0.12 dev fab0 metric 64"})


async def test_nothing_is_removed_before_all_is_known(nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing) -> None:
    n1, _ = nodes
    n1.ip("route add 10.244.0.128/26 via 172.30.0.12 dev fab0 proto 186 metric 64")
    await mesh.block("10.244.0.64/26", "n2")
    await mesh.announce(N2)
    await routing.start(n1)
    await asyncio.sleep(1.5)
    old = "10.244.0.128/26 via 172.30.0.12 dev fab0 metric 64"
    assert old in n1.routes(), "blocks and claims are not complete: hearsay"
    await usual(mesh)
    await until(lambda: n1.routes() == TO_N2 | OWN)


async def test_routes_of_others_are_never_touched(nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing) -> None:
    n1, _ = nodes
    n1.ip("route add 10.244.0.64/26 via 172.30.0.99 dev fab0 metric 64")
    n1.ip("route add 192.0.2.0/24 via 172.30.0.99 dev fab0 proto 186 metric 20")
    await usual(mesh)
    runtime = await routing.start(n1)
    await until(lambda: n1.routes() >= OWN)
    await until(lambda: "routes" in runtime.health.missing() and "not ours" in runtime.health.missing()["routes"])
    assert "via 172.30.0.99" in n1.ip("route show 10.244.0.64/26")
    assert "via 172.30.0.99" in n1.ip("route show 192.0.2.0/24"), "protocol 186 with FRR's metric is not ours"
    n1.ip("route del 10.244.0.64/26 metric 64")
    assert await until(lambda: n1.routes() >= TO_N2) < 5.0


async def test_a_gateway_only_installs(nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing) -> None:
    n1, _ = nodes
    await usual(mesh)
    await routing.start(n1, gateway=True)
    await until(lambda: n1.routes() >= TO_N2)
    assert n1.routes() == TO_N2 | {"unreachable 10.244.1.0/26 metric 4096"}
    assert set(await mesh.n2.bucket(ROUTES).list(NodeRoutes)) == {"n2"}


async def test_two_nodes_reach_each_others_blocks(nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing) -> None:
    n1, n2 = nodes
    await mesh.block("10.244.0.0/26", "n1")
    await mesh.block("10.244.0.64/26", "n2")
    await mesh.complete()
    await routing.start(n1, "n1")
    await routing.start(n2, "n2")
    n1.ip("addr add 10.244.0.1/32 dev lo")
    n2.ip("addr add 10.244.0.65/32 dev lo")
    await until(lambda: "10.244.0.64/26" in str(n1.routes()) and "10.244.0.0/26 via" in str(n2.routes()))
    with ThreadPoolExecutor(1) as there, ThreadPoolExecutor(1) as near:
        server = there.submit(udp_socket, n2.path, "10.244.0.65").result()
        client = near.submit(udp_socket, n1.path, "10.244.0.1").result()
    with server, client:
        client.sendto(b"breath", server.getsockname())
        text, peer = server.recvfrom(64)
        server.sendto(text, peer)
        assert (peer, client.recv(64)) == (client.getsockname(), b"breath")


async def test_the_routes_of_a_pair_follow_the_smaller_mtu_of_both_nodes(
    nodes: tuple[Netns, Netns], mesh: Mesh, routing: Routing
) -> None:
    """Seen by the node with the larger one: the other's uplink shrinks and grows, then its own does."""
    n1, n2 = nodes
    await mesh.block("10.244.0.64/26", "n2")
    await mesh.block("fd00:10:244::40/122", "n2")
    await mesh.complete()
    n2.ip("link set fab0 mtu 1400")
    await routing.start(n1, "n1")
    await routing.start(n2, "n2")
    small = {f"{route} mtu lock 1400" for route in TO_N2}
    await until(lambda: n1.routes() == small)
    n1.ip("route replace 10.244.0.64/26 via 172.30.0.12 dev fab0 proto 186 metric 64 mtu 1300")
    await until(lambda: n1.routes() == small)
    n2.ip("link set fab0 mtu 1500")
    assert await until(lambda: n1.routes() == TO_N2) < 4.0
    n2.ip("link set fab0 mtu 1300")
    assert await until(lambda: n1.routes() == {f"{route} mtu lock 1300" for route in TO_N2}) < 4.0
    n1.ip("link set fab0 mtu 1300")
    await until(lambda: n1.routes() == TO_N2)


def udp_socket(namespace: Path, address: str) -> socket.socket:
    """A socket of that namespace; the calling thread stays in it."""
    enter(str(namespace))
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(20)
    made.bind((address, 0))
    return made


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_the_listener_hears_on_after_a_storm(runner: Callable[[Any], None], nodes: tuple[Netns, Netns]) -> None:
    """60,000 changes while nobody listens overflow the socket's buffer."""
    n1, _ = nodes
    storm = "".join(f"route add 10.{number >> 8}.{number & 255}.0/24 dev lo\n" for number in range(60_000))

    async def listen() -> None:
        kernel = Kernel(("fab0",), n1.path)
        heard = asyncio.Event()
        await kernel.watch(lambda _: heard.set())
        batch = ["ip", "-n", n1.name, "-force", "-batch", "-"]
        subprocess.run(batch, check=False, input=storm.encode(), capture_output=True)
        await asyncio.wait_for(heard.wait(), 20)
        await asyncio.sleep(0.1)
        heard.clear()
        n1.ip("route add 192.0.2.0/24 dev lo")
        await asyncio.wait_for(heard.wait(), 20)
        await kernel.close()

    runner(listen())


async def test_a_thousand_routes_at_once(nodes: tuple[Netns, Netns], routing: Routing, mesh: Mesh) -> None:
    n1, _ = nodes
    kernel = Kernel(("fab0",), n1.path)
    link = (await kernel.snapshot()).uplinks[0].index
    wanted = [
        Route(
            destination=ip_network(f"10.{100 + number // 256}.{number % 256}.0/24"),
            via=ip_address("172.30.0.12"),
            link=link,
        )
        for number in range(5000)
    ]
    took = []
    for _ in range(3):  # what else this process holds is collected in one of them at most
        began = time.process_time()
        assert await kernel.apply([Replace(route) for route in wanted]) == ()
        took.append(time.process_time() - began)
    assert min(took) < 1.0
    assert set(wanted) <= set((await kernel.snapshot()).routes)
    refused = await kernel.apply([Remove(route) for route in wanted + wanted[:1]])
    assert refused == ()
    off = Route(destination=ip_network("10.9.0.0/24"), via=ip_address("203.0.113.1"), link=link)
    assert [(refusal.operation, refusal.number) for refusal in await kernel.apply([Replace(off)])] == [
        (Replace(off), 101)
    ]
    await kernel.close()
