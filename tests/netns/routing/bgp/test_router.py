"""The router with a real BIRD: what the peer announces is in the kernel, what this node announces is with the peer."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from services.routing.bgp.router import Reports, Router
from services.routing.bgp.speaker import Speaker
from services.routing.core.bgp.next_hops import ways_of
from services.routing.core.bgp.peers import Peer, TableSettings
from services.routing.core.bgp.resources import Speaker as Identity
from services.routing.core.bgp.values import Attributes, Origin
from services.routing.kernel import Kernel
from services.routing.learnt import LearntRoutes
from tests.netns.routing.bgp.speakers import OURS, OURS6, PATIENCE, Bird, Inside, Pair, peer

pytestmark = pytest.mark.privileged
SESSION = f"local as 65001; neighbor {OURS} as 64512; direct; connect delay time 1; connect retry time 2;"
IDENTITY = Identity(asn=64512, router_id=ip_address(OURS))  # type: ignore[arg-type]
OWN = {
    ip_network("10.9.0.0/26"): Attributes(origin=Origin.IGP),
    ip_network("fd00:9::/122"): Attributes(origin=Origin.IGP),
}
MAKE = Callable[..., Inside]


class Node:
    """A router over the kernel of its namespace, driven by hand."""

    def __init__(self, inside: Inside, namespace: str, **more: Any) -> None:
        self._inside = inside
        self.namespace = namespace
        self.kernel = Kernel(("up0",), Path(f"/run/netns/{namespace}"))
        self.learnt = LearntRoutes(self.kernel)
        reports = Reports(changed=lambda *_: None, limited=lambda *_: None, unwritable=lambda *_: None)

        def make() -> Router:
            return Router(self.learnt, reports, lambda: None, speaker=lambda owner: Speaker(owner, **more))

        self.router = inside.call(make)

    def follow(self, *peers: Peer) -> None:
        addresses = {4: ip_address(OURS), 6: ip_address(OURS6)}
        self._inside.call(self.router.follow, IDENTITY, peers, addresses)

    def step(self) -> None:
        async def work() -> None:
            self.router.find_ways(ways_of(await self.kernel.snapshot()))
            await self.router.work()
            await self.learnt.apply(full=True)

        self._inside.wait(work())

    def routes(self) -> set[str]:
        """Learnt ones, in the words of iproute2."""
        found: set[str] = set()
        for family in ("-4", "-6"):
            words = ["ip", "-n", self.namespace, family, "route", "show", "proto", "185"]
            said = subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout
            found |= {line.split()[0] for line in said.splitlines() if line and not line.startswith((" ", "\t"))}
        return found

    def until(self, *wanted: str) -> None:
        """Step until these are all learnt routes of the kernel."""
        deadline = time.monotonic() + PATIENCE
        while self.routes() != set(wanted):
            assert time.monotonic() < deadline, (self.routes(), self._inside.call(self.router.speaker.states))
            self.step()
            time.sleep(0.05)

    def close(self) -> None:
        self._inside.call(self.router.close)
        self._inside.wait(self.kernel.close())


@contextmanager
def node(inside: Inside, pair: Pair, **more: Any) -> Iterator[Node]:
    made = Node(inside, pair.ours, **more)
    try:
        yield made
    finally:
        made.close()


def test_routes_go_both_ways(speaker: MAKE, pair: Pair, bird: Bird) -> None:
    bird.configure(SESSION)
    bird.start()
    with node(speaker(), pair) as one:
        one.router.announce(OWN)
        one.follow(peer())
        one.until("10.1.0.0/24", "10.2.0.0/16", "fd00:1::/64")
        said = bird.until("show route all protocol node", "10.9.0.0/26", "fd00:9::/122")
        assert OURS in said
        assert OURS6 in said
        bird.configure(SESSION, routes="route 10.1.0.0/24 blackhole;")
        one.until("10.1.0.0/24", "fd00:1::/64")
        one.follow()
        one.until()


def test_a_peer_that_dies_and_comes_back_leaves_the_routes_as_they_are(speaker: MAKE, pair: Pair, bird: Bird) -> None:
    bird.configure(SESSION + "graceful restart on;")
    bird.start()
    with node(speaker(), pair) as one:
        one.follow(peer())
        wanted = "10.1.0.0/24", "10.2.0.0/16", "fd00:1::/64"
        one.until(*wanted)
        bird.kill()
        for _ in range(20):
            one.step()
            assert one.routes() == set(wanted)
            time.sleep(0.05)
        bird.start("-R")
        one.until(*wanted)


def test_a_router_that_starts_again_takes_over_what_the_kernel_has(speaker: MAKE, pair: Pair, bird: Bird) -> None:
    bird.configure(SESSION + "graceful restart on;")
    bird.start()
    wanted = "10.1.0.0/24", "10.2.0.0/16", "fd00:1::/64"
    with node(speaker(), pair) as first:
        first.follow(peer())
        first.until(*wanted)
    inside = speaker()
    until = inside.call(inside.loop.time) + PATIENCE
    with node(inside, pair, restarting_until=until, preserved=True) as second:
        bird.configure(SESSION + "graceful restart on;", routes="route 10.1.0.0/24 blackhole;")
        second.follow(peer())
        second.step()
        assert second.routes() == set(wanted), "nothing is taken away before the peer has spoken"
        second.until("10.1.0.0/24", "fd00:1::/64")


@pytest.mark.parametrize("asn", [65001, 64512], ids=["external", "internal"])
def test_bird_sees_that_the_routes_of_a_node_that_leaves_ask_to_be_passed_over(
    speaker: MAKE, pair: Pair, bird: Bird, asn: int
) -> None:
    bird.configure(SESSION.replace("65001", str(asn)))
    bird.start()
    with node(speaker(), pair) as one:
        one.router.announce(OWN)
        stays = peer(peer_asn=asn)
        one.follow(stays)
        one.until("10.1.0.0/24", "10.2.0.0/16", "fd00:1::/64")
        bird.until("show route all protocol node", "10.9.0.0/26", "fd00:9::/122")
        one.follow(replace(stays, tables=TableSettings(leaving=True)))
        one.step()
        wanted = "(65535,0)", "BGP.local_pref: 0" if asn == 64512 else "BGP.as_path: 64512"
        for network in OWN:
            said = bird.until(f"show route all for {network}", *wanted)
            assert said.count("unicast") == 1, "it is still a route"
        assert "Established" in bird.ctl("show protocols node")
