"""Learnt routes in a real kernel: two routers on two links, spread, loss, restart, refusals, and packets meanwhile."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import pytest_asyncio

from linux.netns import inside, open_netns
from services.routing.core.bgp.values import Family, Prefix, prefix_of
from services.routing.core.learnt import METRIC, PROTOCOL, Hop
from services.routing.kernel import Kernel
from services.routing.learnt import LearntRoutes, Pass, remove
from services.routing.rtnetlink import Concern
from tests.netns.routing.conftest import Netns, ip

pytestmark = pytest.mark.privileged
FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


class Fabric:
    """A node with the links ``tor0`` and ``tor1``, each to a router with the address 172.31.<n>.1."""

    def __init__(self, node: Netns, routers: tuple[Netns, Netns]) -> None:
        self.node, self.routers = node, routers
        self.links = [int(node.ip(f"-o link show tor{number}").split(":")[0]) for number in (0, 1)]

    def hop(self, number: int, version: int) -> Hop:
        return Hop(ip_address(f"172.31.{number}.1" if version == 4 else f"fd00:31:{number}::1"), self.links[number])

    def both(self, version: int) -> tuple[Hop, Hop]:
        return self.hop(0, version), self.hop(1, version)

    def routes(self, version: int) -> dict[str, set[str]]:
        """Devices by destination, of routes that are ours."""
        shown = json.loads(self.node.ip(f"-j -{version} route show proto {PROTOCOL}"))
        return {
            one["dst"]: {hop["dev"] for hop in one["nexthops"]} if "nexthops" in one else {one["dev"]} for one in shown
        }

    def objects(self) -> str:
        return self.node.ip("nexthop show")


@contextmanager
def links(tag: str) -> Iterator[Fabric]:
    made = [Netns(f"am-l{tag}-{name}") for name in ("n", "a", "b")]
    node, *routers = made
    try:
        for netns in made:
            ip("netns", "add", netns.name)
            netns.ip("link set lo up")
        for number, router in enumerate(routers):
            node.ip(f"link add tor{number} type veth peer name node netns {router.name}")
            for netns, name, last in ((node, f"tor{number}", 2), (router, "node", 1)):
                netns.ip(f"link set {name} up")
                netns.ip(f"addr add 172.31.{number}.{last}/24 dev {name}")
                netns.ip(f"addr add fd00:31:{number}::{last}/64 dev {name} nodad")
            router.ip("addr add 192.0.2.1/32 dev lo")
            router.ip("addr add 2001:db8::1/128 dev lo nodad")
        node.ip("addr add 10.9.9.9/32 dev lo")
        node.ip("addr add fd00:9::9/128 dev lo nodad")
        yield Fabric(node, (routers[0], routers[1]))
    finally:
        for netns in made:
            subprocess.run(["ip", "netns", "del", netns.name], check=False, capture_output=True)


@pytest.fixture
def fabric() -> Iterator[Fabric]:
    with links(uuid.uuid4().hex[:6]) as made:
        yield made


@pytest_asyncio.fixture
async def kernel(fabric: Fabric) -> AsyncIterator[Kernel]:
    made = Kernel(("tor0", "tor1"), fabric.node.path)
    await made.forward()
    yield made
    await made.close()


def prefix(text: str) -> tuple[Family, Prefix]:
    return prefix_of(ip_network(text))


def route(text: str) -> tuple[Family, list[Prefix]]:
    family, found = prefix(text)
    return family, [found]


TEXT = {4: "192.0.2.0/24", 6: "2001:db8::/32"}


@FAMILIES
async def test_a_route_of_two_next_hops_is_there_and_known_after_a_restart(
    fabric: Fabric, kernel: Kernel, version: int
) -> None:
    family, net = prefix(TEXT[version])
    first = LearntRoutes(kernel)
    first.replace(family, [net], fabric.both(version))
    assert await first.apply(full=True) == Pass(written=1)
    assert fabric.routes(version) == {TEXT[version]: {"tor0", "tor1"}}
    assert f"metric {METRIC}" in fabric.node.ip(f"-{version} route show proto {PROTOCOL}")
    before = fabric.objects()

    second = LearntRoutes(kernel)
    assert (await second.apply(full=True)).written == 0, "nothing is known yet: nothing goes"
    second.replace(family, [net], reversed(fabric.both(version)))
    assert (await second.apply(full=True)).written <= 1
    assert fabric.objects() == before, "the same next hops are the same objects"
    for one in Family:
        second.complete(one)
    assert (await second.apply(full=True)).written == 0
    assert fabric.routes(version) == {TEXT[version]: {"tor0", "tor1"}}


async def test_what_is_not_learnt_again_goes_when_all_has_been(fabric: Fabric, kernel: Kernel) -> None:
    first = LearntRoutes(kernel)
    for version in (4, 6):
        first.replace(*route(TEXT[version]), fabric.both(version))
    await first.apply(full=True)
    second = LearntRoutes(kernel)
    second.complete(Family.IPV4)
    await second.apply(full=True)
    assert (fabric.routes(4), set(fabric.routes(6))) == ({}, {TEXT[6]}), "of IPv6 not all has been learnt"
    second.complete(Family.IPV6)
    for _ in range(2):  # the objects go when a comparison has shown that no route names them
        await second.apply(full=True)
    assert (fabric.routes(6), fabric.objects()) == ({}, "")


async def test_ipv4_over_an_ipv6_router(fabric: Fabric, kernel: Kernel) -> None:
    """RFC 8950, also with a router of each family in one group, and by a link-local address."""
    learnt = LearntRoutes(kernel)
    link_local = fabric.routers[0].ip("-6 -o addr show dev node scope link").split()[3].split("/")[0]
    learnt.replace(*route("192.0.2.0/24"), (Hop(ip_address(link_local), fabric.links[0]), fabric.hop(1, 6)))
    learnt.replace(*route("198.51.100.0/24"), (fabric.hop(0, 4), fabric.hop(1, 6)))
    assert (await learnt.apply(full=True)).refused == 0
    shown = fabric.node.ip("route show 192.0.2.0/24")
    assert f"via inet6 {link_local} dev tor0" in shown
    assert "via inet6 fd00:31:1::1 dev tor1" in fabric.node.ip("route show 198.51.100.0/24")
    assert len(fabric.routes(4)) == 2


async def test_ipv6_by_an_ipv4_router_is_refused_and_said(fabric: Fabric, kernel: Kernel) -> None:
    learnt = LearntRoutes(kernel)
    learnt.replace(*route("2001:db8::/32"), fabric.both(4))
    learnt.replace(*route("2001:db9::/32"), fabric.both(6))
    assert (await learnt.apply(full=True)).refused == 1
    assert learnt.refused(Family.IPV6) == {prefix("2001:db8::/32")[1]: errno.EINVAL}
    assert set(fabric.routes(6)) == {"2001:db9::/32"}, "of one batch the others are written"


@FAMILIES
async def test_each_refusal_of_a_full_slice_is_heard(fabric: Fabric, kernel: Kernel, version: int) -> None:
    learnt = LearntRoutes(kernel)
    learnt.replace(*route(TEXT[version]), fabric.both(version))
    await learnt.apply(full=True)
    bits = 24 if version == 4 else 64
    family = Family.IPV4 if version == 4 else Family.IPV6
    prefixes = [bytes((bits,)) + (0x140000 << bits - 24 | number).to_bytes(bits // 8) for number in range(5000)]
    learnt.replace(family, prefixes, fabric.both(version))
    fabric.node.ip("nexthop flush")
    await learnt.apply(full=False)
    assert set(learnt.refused(family).values()) == {errno.EINVAL}
    assert len(learnt.refused(family)) == 5000
    assert (await learnt.apply(full=True)).refused == 0
    assert len(fabric.routes(version)) == 5001


@FAMILIES
async def test_packets_of_the_node_itself_have_its_own_address(fabric: Fabric, kernel: Kernel, version: int) -> None:
    destination, own = ("10.1.0.0/24", "10.9.9.9") if version == 4 else ("fd00:1::/64", "fd00:9::9")
    family, prefix = prefix_of(ip_network(destination))
    learnt = LearntRoutes(kernel)
    learnt.replace(family, [prefix], fabric.both(version))
    await learnt.apply(full=True)
    assert own not in fabric.node.ip(f"-{version} route show {destination}")
    learnt.prefer({version: ip_address(own)})
    assert (await learnt.apply(full=True)).written == 1
    assert f"src {own}" in fabric.node.ip(f"-{version} route show {destination}")
    assert (await learnt.apply(full=True)).written == 0
    fabric.node.ip(f"-{version} route del {destination}")
    again = LearntRoutes(kernel)
    again.prefer({version: ip_address(own)})
    again.replace(family, [prefix], fabric.both(version))
    assert (await again.apply(full=True)).written == 1
    assert (await again.apply(full=True)).written == 0


@FAMILIES
async def test_what_somebody_takes_away_or_changes_comes_back(fabric: Fabric, kernel: Kernel, version: int) -> None:
    learnt = LearntRoutes(kernel)
    texts = [f"10.{number}.0.0/16" if version == 4 else f"2001:db8:{number:x}::/48" for number in range(200)]
    for text in texts:
        learnt.replace(*route(text), fabric.both(version))
    await learnt.apply(full=True)
    whole = fabric.routes(version)
    assert len(whole) == 200
    for text in texts[:50]:
        fabric.node.ip(f"-{version} route del {text} proto {PROTOCOL}")
    via, link = fabric.hop(0, version).via, "tor0"
    for text in texts[50:60]:
        fabric.node.ip(f"-{version} route replace {text} via {via} dev {link} proto {PROTOCOL} metric {METRIC}")
    assert (await learnt.apply(full=True)).drift == 60
    assert fabric.routes(version) == whole
    fabric.node.ip("nexthop flush")
    assert fabric.routes(version) == {}, "with an object the kernel takes its routes"
    assert (await learnt.apply(full=True)).drift == 200
    assert fabric.routes(version) == whole


async def test_routes_of_others_are_not_touched(fabric: Fabric, kernel: Kernel) -> None:
    for version in (4, 6):
        via = fabric.hop(1, version).via
        fabric.node.ip(f"-{version} route add {TEXT[version]} via {via} dev tor1 metric {METRIC} proto static")
    learnt = LearntRoutes(kernel)
    occupied = [seen.destination for seen in (await kernel.snapshot()).routes if seen.metric == METRIC]
    for version in (4, 6):
        learnt.replace(*route(TEXT[version]), fabric.both(version))
    await learnt.apply(full=True, occupied=occupied)
    assert [learnt.refused(family) for family in Family] == [
        {prefix(TEXT[version])[1]: errno.EEXIST} for version in (4, 6)
    ]
    for version in (4, 6):
        assert "proto static" in fabric.node.ip(f"-{version} route show {TEXT[version]}")
        learnt.replace(*route(TEXT[version]), ())
    await learnt.apply(full=True, occupied=occupied)
    for version in (4, 6):
        assert "proto static" in fabric.node.ip(f"-{version} route show {TEXT[version]}")


@FAMILIES
async def test_a_lost_link_leaves_the_other_and_comes_back(fabric: Fabric, kernel: Kernel, version: int) -> None:
    learnt = LearntRoutes(kernel)
    learnt.replace(*route(TEXT[version]), fabric.both(version))
    single = "203.0.113.0/24" if version == 4 else "2001:db9::/32"
    learnt.replace(*route(single), (fabric.hop(0, version),))
    await learnt.apply(full=True)
    fabric.routers[0].ip("link set node down")  # the node sees its carrier go
    await _until(lambda: fabric.routes(version) == {TEXT[version]: {"tor1"}})
    done = await learnt.apply(full=True)
    assert done.lacking == {fabric.hop(0, version)}
    assert learnt.refused(prefix(single)[0]) == {prefix(single)[1]: errno.ENETDOWN}
    fabric.routers[0].ip("link set node up")
    fabric.routers[0].ip("addr replace fd00:31:0::1/64 dev node nodad")
    await _until(lambda: "LOWER_UP" in fabric.node.ip("link show tor0"))
    done = await learnt.apply(full=True)
    assert (done.refused, done.lacking) == (0, frozenset())
    assert fabric.routes(version) == {TEXT[version]: {"tor0", "tor1"}, single: {"tor0"}}


@FAMILIES
async def test_a_router_that_is_lost_is_left_by_one_object_and_not_by_each_route(
    fabric: Fabric, kernel: Kernel, version: int
) -> None:
    learnt = LearntRoutes(kernel)
    for number in range(1000):
        text = f"10.{number >> 8}.{number & 255}.0/24" if version == 4 else f"2001:db8:{number:x}::/48"
        learnt.replace(*route(text), fabric.both(version))
    await learnt.apply(full=True)
    _set_compat(fabric.node, 0)  # otherwise the kernel tells of each route as if it had changed
    with subprocess.Popen(
        ["ip", "-n", fabric.node.name, "-ts", "monitor", "route", "nexthop"], stdout=subprocess.PIPE, text=True
    ) as monitor:
        await asyncio.sleep(0.3)
        assert learnt.lose([fabric.hop(0, version)])
        assert not learnt.lose([fabric.hop(0, version)])
        assert await learnt.apply(full=False) == Pass()
        await asyncio.sleep(0.3)
        monitor.terminate()
        assert monitor.stdout is not None
        notified = [
            line for line in monitor.stdout.read().splitlines() if "group" in line or f"metric {METRIC}" in line
        ]
    assert len(notified) == 1, "one group, no route"
    _set_compat(fabric.node, 1)  # otherwise it does not say where a route leads
    assert {frozenset(devices) for devices in fabric.routes(version).values()} == {frozenset({"tor1"})}


def _set_compat(node: Netns, value: int) -> None:
    ip("netns", "exec", node.name, "sysctl", "-qw", f"net.ipv4.nexthop_compat_mode={value}")


async def test_no_packet_finds_a_route_missing(fabric: Fabric, kernel: Kernel) -> None:
    """400 datagrams and more are sent without a pause while a route is moved between next hops 400 times and more."""
    learnt = LearntRoutes(kernel)
    ways = [(fabric.hop(0, 4),), fabric.both(4), (fabric.hop(1, 4),), (fabric.hop(1, 6),), fabric.both(6)]
    learnt.replace(*route(TEXT[4]), ways[0])
    await learnt.apply(full=True)
    with _sender(fabric.node.path) as sender:
        loop, failures, sent, ends = asyncio.get_running_loop(), [], 0, False

        def send() -> None:
            nonlocal sent
            while not ends:
                try:
                    sender.sendto(b"x", ("192.0.2.1", 9))
                    sent += 1
                except OSError as error:
                    if error.errno != errno.ECONNREFUSED:
                        failures.append(error)

        work = loop.run_in_executor(None, send)
        number = 0
        while number < 400 or sent < 400:
            learnt.replace(*route(TEXT[4]), ways[number % len(ways)])
            await learnt.apply(full=number % 20 == 0)
            number += 1
        ends = True
        await work
    assert failures == []


@contextmanager
def _sender(path: Path) -> Iterator[socket.socket]:
    descriptor = open_netns(str(path))
    try:
        with inside(descriptor):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        os.close(descriptor)
    with made:
        yield made


@FAMILIES
async def test_flows_spread_over_both_and_each_keeps_to_one(fabric: Fabric, kernel: Kernel, version: int) -> None:
    learnt = LearntRoutes(kernel)
    learnt.replace(*route(TEXT[version]), fabric.both(version))
    await learnt.apply(full=True)
    to = "192.0.2.1" if version == 4 else "2001:db8::1"
    taken: list[str] = []
    for port in range(20000, 20064):
        asked = f"-j -{version} route get {to} ipproto tcp sport {port} dport 443"
        ways = {json.loads(fabric.node.ip(asked))[0]["dev"] for _ in range(2)}
        assert len(ways) == 1
        taken += ways
    on_first = taken.count("tor0")
    assert (on_first - 32) ** 2 / 32 * 2 < 10.83, f"chi-square, one degree of freedom, p = 0.001: {on_first} of 64"


async def test_a_hundred_thousand_routes_are_written_in_slices(fabric: Fabric, kernel: Kernel) -> None:
    """The loop is not held meanwhile, the general listing does not show them, and nobody is woken for each."""
    learnt = LearntRoutes(kernel)
    woken: list[Concern] = []
    await kernel.watch(woken.append)
    prefixes = (bytes((24,)) + (0x140000 + number).to_bytes(3) for number in range(100_000))
    learnt.replace(Family.IPV4, prefixes, fabric.both(4))
    started, slices = time.process_time(), 0
    work = asyncio.create_task(learnt.apply(full=True))
    while not work.done():
        await asyncio.sleep(0.001)
        slices += 1
    spent = time.process_time() - started
    assert (await work).written == 100_000
    assert slices >= 50
    assert len(woken) < 5, "links that have just come up may say so yet"
    assert spent < 10, "of processor time; alone it takes some 0.5 s"
    assert all(seen.protocol != PROTOCOL for seen in (await kernel.snapshot()).routes)
    assert (await learnt.apply(full=True)).written == 0
    assert await remove(kernel) == 3
    assert fabric.node.ip(f"route show proto {PROTOCOL}") == ""


async def _until(holds: object) -> None:
    assert callable(holds)
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)


@FAMILIES
async def test_a_static_route_comes_before_what_is_learnt_and_leaves_that_behind(
    fabric: Fabric, kernel: Kernel, version: int
) -> None:
    learnt = LearntRoutes(kernel)
    other = {4: "203.0.113.9/32", 6: "2001:db8:9::9/128"}[version]
    (family, one), (_, two) = prefix(TEXT[version]), prefix(other)
    learnt.replace(family, [one, two], fabric.both(version))
    await learnt.apply(full=True)
    learnt.set_static({(family, two): fabric.hop(0, version)})
    await learnt.apply(full=False)
    host = other.partition("/")[0]
    assert fabric.routes(version) == {TEXT[version]: {"tor0", "tor1"}, host: {"tor0"}}
    learnt.replace(family, [one, two], [fabric.hop(1, version)])
    await learnt.apply(full=True)
    assert fabric.routes(version) == {TEXT[version]: {"tor1"}, host: {"tor0"}}
    learnt.set_static({})
    await learnt.apply(full=False)
    assert fabric.routes(version) == {TEXT[version]: {"tor1"}, host: {"tor1"}}
    learnt.set_static({(family, two): fabric.hop(0, version)})
    learnt.replace(family, [two], ())
    learnt.set_static({})
    await learnt.apply(full=False)
    assert fabric.routes(version) == {TEXT[version]: {"tor1"}}
