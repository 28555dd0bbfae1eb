"""How long a BGP router holds its event loop, in CPU time, while a peer's table comes, changes and goes.

    python -m bench.bgp.holds [PREFIXES]      (as root; a minute for 100,000)

The router, its routes in the kernel and its sessions are the agent's own, in a network namespace of its own; two peers
are another process and speak over loopback. One has the table, the other is sent it. Of each step the longest time is
reported that one callback had the CPU, and which; the loop's lag is not, since other work of the machine makes it.
"""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from multiprocessing.connection import Connection
from typing import Any

from chassis.runtime import garbage
from chassis.telemetry.log import Log
from chassis.telemetry.loop_holds import Longest, LoopHolds
from linux.netns import enter
from proto.bgp import BgpRoutesRequest, BgpSessionsRequest
from proto.net import Network
from services.routing.bgp import answers
from services.routing.bgp.router import Reports, Router
from services.routing.core.bgp.codec.messages import RouteRefresh, encode_open, encode_route_refresh, keepalive
from services.routing.core.bgp.codec.updates import UpdateWriter
from services.routing.core.bgp.next_hops import Ways, ways_of
from services.routing.core.bgp.peers import Action, FilterRule, Peer, SessionSettings, TableSettings
from services.routing.core.bgp.resources import Speaker as Identity
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.values import Agreed, Attributes, Family, Origin, Segment, SegmentKind, prefix_of
from services.routing.core.fib import Snapshot, Uplink
from services.routing.kernel import Kernel
from services.routing.learnt import LearntRoutes

PORT = 1790
PER_UPDATE = 500
PATIENCE = 300.0
AGREED = Agreed(families=frozenset(Family), four_octets=True, external=True)
UPLINK = Uplink(name="up0", index=2, up=True, addresses=(ip_interface("10.0.0.1/24"),))


def settings(one: int, other: int) -> SessionSettings:
    """Of the speaker 127.0.1.<one>, AS 65000 + one, towards 127.0.1.<other>, which connects."""
    router_id: Any = ip_address(f"10.0.1.{one}")
    return SessionSettings(
        address=ip_address(f"127.0.1.{other}"),
        port=PORT,
        passive=True,
        local_asn=65000 + one,
        peer_asn=65000 + other,
        router_id=router_id,
        restart_seconds=0,
    )


# The other process: a peer that says what it is asked to, and reads what comes.


def table(number: int, count: int) -> tuple[bytes, bytes]:
    """The messages of a whole table, and those that take it back."""
    writer = UpdateWriter(AGREED)
    come, gone = b"", b""
    networks = [ip_network((0x0B000000 + (n << 8), 24)) for n in range(count)]
    for first in range(0, count, PER_UPDATE):
        prefixes = [prefix_of(one)[1] for one in networks[first : first + PER_UPDATE]]
        path = (Segment(SegmentKind.SEQUENCE, (65000 + number, 64000 + first // PER_UPDATE % 900)),)
        attributes = Attributes(origin=Origin.IGP, as_path=path, next_hop=ip_address(f"10.0.0.{number}"))
        written = writer.write(Family.IPV4, attributes, prefixes)
        come += b"".join(written if isinstance(written, list) else [])
        gone += b"".join(writer.withdraw(Family.IPV4, prefixes))
    return come, gone


def speak(number: int, count: int, asked: Connection) -> None:
    """Hold a session, and say ``come``, ``gone`` or ``again`` when that is asked for; ``end`` ends it."""
    come, gone = table(number, count)
    words = {"come": come, "gone": gone, "again": encode_route_refresh(RouteRefresh(Family.IPV4))}
    with socket.create_connection(("127.0.1.1", PORT), source_address=(f"127.0.1.{number}", 0)) as peer:
        own = settings(number, 1)
        peer.sendall(encode_open(negotiation.opening(own, negotiation.offered(own))) + keepalive())
        peer.settimeout(0.05)
        kept_alive = time.monotonic()
        while True:
            if asked.poll():
                if (word := asked.recv()) == "end":
                    return
                peer.settimeout(None)
                peer.sendall(words[word])
                peer.settimeout(0.05)
            if time.monotonic() - kept_alive > 10:
                peer.sendall(keepalive())
                kept_alive = time.monotonic()
            try:
                if not peer.recv(1 << 20):
                    return
            except TimeoutError:
                continue


class Speaker:
    """A peer in another process."""

    def __init__(self, number: int, count: int) -> None:
        self._ask, theirs = multiprocessing.Pipe()
        self._running = multiprocessing.Process(target=speak, args=(number, count, theirs), daemon=True)
        self._running.start()

    def say(self, word: str) -> None:
        """Say it."""
        self._ask.send(word)

    def end(self) -> None:
        """End the connection without a word."""
        self.say("end")
        self._running.join(PATIENCE)


# This process: the router.


class Node:
    """The router with its routes, driven as the agent's loop ``bgp`` drives it."""

    def __init__(self) -> None:
        self.kernel = Kernel(("up0",))
        self.learnt = LearntRoutes(self.kernel)
        self.woken = asyncio.Event()
        reports = Reports(changed=lambda *_: None, limited=lambda *_: None, unwritable=lambda *_: None)
        self.router = Router(self.learnt, reports, self.woken.set)
        self.router.find_ways(ways_of(Snapshot(uplinks=(UPLINK,))))
        self.written = 0
        self.passes = 0

    def follow(self, *numbers: int, unprogrammed: Iterable[Network] = (), **policy: Any) -> None:
        """Hold sessions with these."""
        router_id: Any = ip_address("10.0.1.1")
        listening = (ip_address("127.0.1.1"),)
        own = {4: ip_address("10.0.0.1"), 6: ip_address("fd00::1")}
        identity = Identity(asn=65001, router_id=router_id, listen_port=PORT, listen_addresses=listening)
        tables = TableSettings(**policy)
        peers = [Peer(name=str(number), session=settings(1, number), tables=tables) for number in numbers]
        self.router.follow(identity, peers, own, unprogrammed=unprogrammed)

    async def work(self) -> None:
        """Passes, a full one each five seconds."""
        due = 0.0
        while True:
            full = time.monotonic() >= due
            if full:
                due = time.monotonic() + 5
            await self.router.work()
            self.written += (await self.learnt.apply(full=full)).written
            self.passes += 1
            try:
                async with asyncio.timeout(max(due - time.monotonic(), 0)):
                    await self.woken.wait()
            except TimeoutError:
                continue
            self.woken.clear()

    @property
    def chosen(self) -> int:
        """Prefixes that a path is chosen for."""
        return len(self.router.rib.chosen(Family.IPV4))

    def idle(self) -> bool:
        """Nothing is left to be decided, sent or written."""
        rib = self.router.rib
        pending = any(map(len, self.learnt._tables.values()))
        return not (rib.undecided or rib.owes("8") or rib.owes("9") or pending or self.woken.is_set())


async def until(holds: Callable[[], object]) -> None:
    """Wait for it."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - what holds is no event
            await asyncio.sleep(0.05)


async def measure(count: int) -> list[tuple[str, Longest]]:
    """Of each step the longest hold."""
    garbage.freeze_survivors()
    holds = LoopHolds(Log("holds", "debug", stream=sys.stderr if os.environ.get("HOLDS") else io.StringIO()))
    holds.watch(asyncio.get_running_loop())
    node = Node()
    node.follow(8, 9)
    working = asyncio.create_task(node.work(), name="loop bgp")
    eight, nine = Speaker(8, 1), Speaker(9, count)
    await until(lambda: all(map(node.router.speaker.is_established, ("8", "9"))))
    found: list[tuple[str, Longest]] = []

    async def step(name: str, act: Callable[[], object], over: Callable[[], object]) -> None:
        holds.forget()
        result = act()
        if isinstance(result, Awaitable):
            await result
        await asyncio.sleep(0)
        await until(lambda: over() and node.idle())
        found.append((name, holds.longest()))
        print(f"{name:44} {found[-1][1].cpu * 1000:7.1f} ms of CPU, {found[-1][1].by}", flush=True)

    passes = 0

    def two_more() -> bool:
        return node.passes >= passes + 2

    await step("a table comes, is written and sent on", partial(nine.say, "come"), lambda: node.chosen == count)
    passes = node.passes
    await step("nothing: full passes", lambda: None, two_more)
    asked = BgpSessionsRequest()
    await step("sessions are asked for", partial(answers.sessions, asked, "n1", node.router), lambda: True)
    routes = BgpRoutesRequest(node="n1", table="sent")
    await step("routes sent are asked for", partial(answers.routes, routes, "n1", node.router), lambda: True)
    await step("the same table comes again", partial(nine.say, "come"), lambda: True)
    passes = node.passes
    await step("a peer asks for all again", partial(eight.say, "again"), two_more)
    hidden = [ip_network("10.96.0.0/12")]
    await step("other prefixes are for peers alone", lambda: node.follow(8, 9, unprogrammed=hidden), two_more)
    passes = node.passes
    reject = FilterRule(action=Action.REJECT, family=Family.IPV4, network=ip_network("12.0.0.0/24"))
    await step("import policy is another one", lambda: node.follow(8, 9, imports=(reject,)), two_more)
    passes = node.passes
    await step("export policy is another one", lambda: node.follow(8, 9, exports=(reject,)), two_more)
    await step("the next hop's link goes", partial(node.router.find_ways, Ways()), lambda: not node.chosen)
    ways = ways_of(Snapshot(uplinks=(UPLINK,)))
    await step("the next hop's link comes", partial(node.router.find_ways, ways), lambda: node.chosen == count)
    await step("the peer's routers are looked for", partial(node.router.hops_of, "9"), lambda: True)
    eight.end()
    await until(lambda: not node.router.speaker.is_established("8"))
    eight = Speaker(8, 1)
    await step("a peer comes and is sent the table", lambda: None, lambda: node.router.speaker.is_established("8"))
    await step("the table goes", partial(nine.say, "gone"), lambda: not node.chosen)
    await step("the table comes back", partial(nine.say, "come"), lambda: node.chosen == count)
    await step("the peer is lost", nine.end, lambda: not node.chosen)
    eight.end()
    working.cancel()
    node.router.close()
    await node.kernel.close()
    return found


@contextmanager
def namespace() -> Iterator[None]:
    """This process in a network namespace of its own, with one link."""
    name = f"am-holds-{os.getpid()}"

    def ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True, timeout=20)

    ip(f"netns add {name}")
    try:
        ip(f"-n {name} link set lo up")
        ip(f"-n {name} link add up0 type veth peer name up1")
        ip(f"-n {name} link set up1 up")
        ip(f"-n {name} addr add 10.0.0.1/24 dev up0")
        ip(f"-n {name} link set up0 up")
        enter(f"/run/netns/{name}")
        yield
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)


def main() -> None:
    """See the module."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with namespace():
        asyncio.run(measure(count))


if __name__ == "__main__":
    main()
