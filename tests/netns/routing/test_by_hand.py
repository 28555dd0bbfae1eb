"""What somebody takes out of the kernel by hand comes back, and a storm of notifications ends in what there should be.

The short forms are part of each run; the long ones (``make drill-bgp``) delete two hundred times and hold the agent to
its five seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import time
from ipaddress import ip_network
from itertools import cycle
from typing import Any

import pytest

import services.routing.kernel
from linux import netlink, rtnl
from linux.netlink import listen, parse
from services.routing import app
from services.routing.core.bgp.values import Family, prefix_of
from services.routing.kernel import Kernel
from services.routing.learnt import LearntRoutes
from services.routing.rtnetlink import Concern, concerns
from tests.netns.routing.conftest import Netns
from tests.netns.routing.test_learnt import Fabric, fabric, kernel
from tests.netns.routing.test_tunnels import Pair, pair, pods, until

__all__ = ["fabric", "kernel", "pair", "pods"]

pytestmark = pytest.mark.privileged
DEVICE = "am-vxlan6"
WITHIN = 5.0
"""Seconds in which everything is back."""
BUSY = 60.0
"""The same where the machine has other work: what is asked is only that it is back."""
STORM = 50_000


def words(said: str) -> list[str]:
    return [" ".join(line.split()) for line in said.splitlines() if line.strip()]


def routes(netns: Netns) -> list[str]:
    """Commands that delete each of our routes."""
    return [f"{family} route del {one.split(' dev ')[0].split(' via ')[0]} metric 64 proto 186"
            for family in ("-4", "-6")
            for one in words(netns.ip(f"{family} route show proto 186 metric 64"))]  # fmt: skip


def neighbours(netns: Netns) -> list[str]:
    """Commands that delete each entry of the tunnel's device that the agent made."""
    shown = words(netns.ip(f"neigh show dev {DEVICE} nud permanent"))
    return [f"neigh del {one.split()[0]} dev {DEVICE}" for one in shown]


def rules(netns: Netns) -> list[str]:
    """Commands that delete each rule that the agent made."""
    shown = json.loads(netns.ip("-6 -j rule show"))
    return [f"-6 rule del priority {one['priority']}" for one in shown if str(one["table"]).startswith("186")]


def state(netns: Netns) -> set[str]:
    """All that can be deleted."""
    return {*routes(netns), *neighbours(netns), *rules(netns)}


async def back(netns: Netns, whole: set[str], listed: set[str]) -> None:
    """Wait until all is there; the agents have the loop meanwhile."""
    async with asyncio.timeout(BUSY):
        while (await asyncio.to_thread(state, netns), await asyncio.to_thread(netns.routes)) != (whole, listed):
            await asyncio.sleep(0.1)


async def deleted_and_back(netns: Netns, times: int, chance: random.Random) -> float:
    """Delete so many things, of one kind or of each at a time, one or all; the longest time until all was back."""
    whole, listed, longest, deleted = state(netns), netns.routes(), 0.0, 0
    rounds = cycle(((routes,), (neighbours,), (rules,), (routes, neighbours, rules)))
    while deleted < times:
        for kind in next(rounds):
            commands = kind(netns)
            for command in commands if chance.random() < 0.2 else chance.sample(commands, 1):
                await asyncio.to_thread(netns.ip, command)
                deleted += 1
        began = time.monotonic()
        await back(netns, whole, listed)
        longest = max(longest, time.monotonic() - began)
    return longest


async def laid(pair: Pair) -> Netns:
    """Node 1, with both families in a tunnel over IPv6 to node 2."""
    n1, _ = pair.nodes
    for number, netns in enumerate(pair.nodes, start=1):
        netns.ip(f"addr del 172.30.0.1{number}/24 dev fab0")
    await pair.pools(vxlan_mode="Always")
    await pair.start()
    await until(lambda: {step.family for step in pair.steps if step.step == "taken"} == {4, 6}, BUSY)
    await until(lambda: all(kind(n1) for kind in (routes, neighbours, rules)), BUSY)
    return n1


async def test_what_is_deleted_by_hand_comes_back(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """No full pass is due for an hour: the kernel's word wakes one."""
    monkeypatch.setattr(app, "PERIOD", 3600.0)
    await deleted_and_back(await laid(pair), 10, random.Random(1))


async def test_a_tunnels_entry_that_is_deleted_wakes_a_pass_by_itself(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes come of much else, and would mend it some time: what counts is that the kernel's word of it is heard."""
    n1, heard = await laid(pair), list[Concern]()

    def noted(received: bytes, *more: Any) -> Concern:
        found = concerns(received, *more)
        if {kind for kind, _, _, _ in parse(received)} == {rtnl.DELNEIGH}:
            heard.append(found)
        return found

    monkeypatch.setattr(services.routing.kernel, "concerns", noted)
    await asyncio.to_thread(n1.ip, neighbours(n1)[0])
    await until(lambda: Concern.PLAN in heard, BUSY)


@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_two_hundred_times_within_five_seconds(pair: Pair) -> None:
    longest = await deleted_and_back(await laid(pair), 200, random.Random(2))
    print(f"the longest of 200: {longest:.2f} s")
    assert longest < WITHIN


async def learnt_and_back(fabric: Fabric, kernel: Kernel, times: int, chance: random.Random) -> None:
    """Delete next hop objects and routes that were learnt: one full pass makes all of it again."""
    learnt = LearntRoutes(kernel)
    for version, family, text in ((4, Family.IPV4, "10.{}.0.0/16"), (6, Family.IPV6, "fd00:{}::/64")):
        both = fabric.both(version)
        for hops, numbers in ((both, range(1, 20)), (both[:1], range(20, 30)), (both[1:], range(30, 40))):
            learnt.replace(family, [prefix_of(ip_network(text.format(number)))[1] for number in numbers], hops)
    await learnt.apply(full=True)

    def seen() -> tuple[dict[str, set[str]], dict[str, set[str]], set[str]]:
        return fabric.routes(4), fabric.routes(6), set(words(fabric.objects()))

    whole = seen()
    assert (len(whole[0]), len(whole[1]), len(whole[2])) == (39, 39, 6)
    for _ in range(times):
        number = chance.choice(sorted(whole[2])).split()[1]
        fabric.node.ip(f"nexthop del id {number}")  # with all routes that name it
        for version, prefixes in zip((4, 6), whole, strict=False):
            there = set(fabric.routes(version)) & set(prefixes)
            for text in chance.sample(sorted(there), min(3, len(there))):
                fabric.node.ip(f"-{version} route del {text} proto 185")
        assert seen() != whole
        await learnt.apply(full=True)
        assert seen() == whole


async def test_learnt_routes_and_next_hops_come_back_by_one_pass(fabric: Fabric, kernel: Kernel) -> None:
    await learnt_and_back(fabric, kernel, 10, random.Random(3))


async def test_learnt_ones_that_somebody_deletes_are_heard_of(fabric: Fabric, kernel: Kernel) -> None:
    """And what this agent deletes itself is not."""
    heard: list[Concern] = []
    await kernel.watch(heard.append)
    learnt = LearntRoutes(kernel)
    prefixes = [prefix_of(ip_network(f"10.{number}.0.0/16"))[1] for number in range(20)]
    learnt.replace(Family.IPV4, prefixes, fabric.both(4))
    await learnt.apply(full=True)

    async def reported(*commands: str) -> set[Concern]:
        """What is heard of these, and of a route of others that comes after them."""
        heard.clear()
        for command in (*commands, "route add 192.0.2.0/24 dev lo"):
            fabric.node.ip(command)
        await until(lambda: any(Concern.PLAN in one for one in heard), BUSY)
        fabric.node.ip("route del 192.0.2.0/24 dev lo")
        return {one for one in Concern if any(one in said for said in heard)}

    assert await reported() == {Concern.PLAN}
    assert await reported("route del 10.3.0.0/16 proto 185") == {Concern.PLAN, Concern.LEARNT}
    one = min(words(fabric.objects())).split()[1]
    assert await reported(f"nexthop del id {one}") == {Concern.PLAN, Concern.LEARNT}
    await learnt.apply(full=True)
    assert await reported("nexthop add id 7 via 172.31.0.1 dev tor0", "nexthop del id 7") == {Concern.PLAN}
    learnt.replace(Family.IPV4, prefixes, ())
    await learnt.apply(full=True)
    assert await reported() == {Concern.PLAN}
    assert fabric.routes(4) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_two_hundred_times_learnt_ones(fabric: Fabric, kernel: Kernel) -> None:
    await learnt_and_back(fabric, kernel, 200, random.Random(4))


def drops(netns: Netns) -> int:
    """Notifications that found no room in the sockets of this process in the namespace."""
    shown = subprocess.run(
        ["ip", "netns", "exec", netns.name, "cat", "/proc/net/netlink"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    columns = shown[0].split()
    rows = [dict(zip(columns, line.split(), strict=False)) for line in shown[1:]]
    return sum(int(row["Drops"]) for row in rows if row["Eth"] == "0")


def narrow(groups: int, silent: int = 0, own: int = 0) -> socket.socket:
    """A listener with room for few notifications."""
    made = listen(groups, silent, own)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return made


async def test_a_storm_of_notifications_ends_in_what_there_should_be(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others make 50,000 changes, more than the agent has room for, and take some of its own routes among them."""
    monkeypatch.setattr(netlink, "listen", narrow)
    n1 = await laid(pair)
    whole, listed, before = state(n1), n1.routes(), drops(n1)
    lines = [f"route add 10.{64 + (n >> 8)}.{n & 255}.0/24 dev lo proto 99" for n in range(STORM // 2)]
    lines += [line.replace("route add", "route del") for line in lines]
    mine = [command.removeprefix("-4 ") for command in routes(n1) if command.startswith("-4")]
    lines[STORM // 3 : STORM // 3] = mine
    lines.append("route add 192.0.2.0/24 dev lo proto 99")
    lines.append("route add 198.51.100.0/24 dev fab0 metric 64 proto 186")  # as ours, and not wanted
    batch = ["ip", "-n", n1.name, "-force", "-batch", "-"]
    text = "".join(f"{line}\n" for line in lines)
    await asyncio.to_thread(subprocess.run, batch, check=False, input=text.encode(), capture_output=True)
    assert drops(n1) > before, "the socket's buffer has overflowed"
    await back(n1, whole, listed)
    assert words(n1.ip("route show proto 99")) == ["192.0.2.0/24 dev lo scope link"], "another's is left alone"
