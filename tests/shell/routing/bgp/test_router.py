"""The router on loopback, with peers by hand: what each is sent and in which order, what a change costs, what a peer
that does wrong costs the others, and what a restart leaves.
"""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
import pytest_asyncio

from chassis.runtime import garbage
from chassis.telemetry.log import Log
from chassis.telemetry.loop_holds import LoopHolds
from services.routing.bgp.outbox import MOST_WAITING
from services.routing.bgp.router import AT_ONCE, Reports, Router
from services.routing.bgp.session import PeerState, Session
from services.routing.bgp.speaker import Speaker
from services.routing.core.bgp.codec.messages import RefreshKind
from services.routing.core.bgp.codec.updates import UpdateWriter
from services.routing.core.bgp.next_hops import ways_of
from services.routing.core.bgp.peers import Action as RuleAction
from services.routing.core.bgp.peers import FilterRule, Peer, TableSettings
from services.routing.core.bgp.resources import Speaker as Identity
from services.routing.core.bgp.rib.tables import PrefixLimit
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import Attributes, Family, Origin, Prefix, network_of
from services.routing.core.fib import Route, Snapshot, Uplink
from services.routing.core.learnt import Hop
from tests.natsd import free_port
from tests.shell.routing.bgp.by_hand import ByHand, names, settings, until

UPLINK = Uplink(name="up0", index=3, up=True, addresses=(ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")))
KERNEL = Snapshot(uplinks=(UPLINK,))
ADDRESSES = {4: ip_address("10.0.0.1"), 6: ip_address("fd00::1")}
IGP = Attributes(origin=Origin.IGP)
OWN = {ip_network(text): IGP for text in ("10.9.0.0/26", "10.9.0.64/26", "fd00:9::/122")}
HELD = 0.05
"""Seconds of CPU, an interval of BFD: 8 to 20 ms are seen; 90 to 160 before the log was folded in parts for a peer that
does not read, and 461 before any of the work was.
"""


class Routes:
    """What the kernel's routes are asked to be."""

    def __init__(self) -> None:
        self.hops: dict[tuple[Family, Prefix], tuple[Hop, ...]] = {}
        self.complete_: list[Family] = []
        self.calls = 0

    def replace(self, family: Family, prefixes: Iterable[Prefix], hops: Iterable[Hop]) -> None:
        self.calls += 1
        found = tuple(hops)
        for prefix in prefixes:
            if found:
                self.hops[family, prefix] = found
            else:
                self.hops.pop((family, prefix), None)

    def complete(self, family: Family) -> None:
        self.complete_.append(family)

    def said(self) -> dict[str, str]:
        """``10.1.0.0/24`` → ``10.0.0.8 10.0.0.9``."""
        return {str(network_of(*to)): " ".join(sorted(str(hop.via) for hop in hops)) for to, hops in self.hops.items()}


class Node:
    """A router that works whenever it is poked, as its loop does."""

    def __init__(self, port: int, *, restarting: float = 0.0, most_paths: int = 16) -> None:
        loop = asyncio.get_running_loop()
        self.port = port
        self.routes = Routes()
        self.limits: list[PrefixLimit] = []
        self.states: list[tuple[str, State]] = []
        self.unwritable: list[tuple[str, str]] = []
        self._woken = asyncio.Event()
        until = loop.time() + restarting if restarting else None

        def speaker(owner: Router) -> Speaker:
            return Speaker(owner, restarting_until=until)

        reports = Reports(changed=self._changed, limited=self.limits.append, unwritable=self._unwritable)
        self.router = Router(self.routes, reports, self._woken.set, speaker=speaker, most_paths=most_paths)
        self.router.find_ways(ways_of(KERNEL))
        self.works = 0
        self._task = asyncio.create_task(self._work())

    def _changed(self, name: str, state: PeerState) -> None:
        self.states.append((name, state.state))

    def _unwritable(self, name: str, why: str) -> None:
        self.unwritable.append((name, why))

    async def _work(self) -> None:
        while True:
            deadline = self.router.deadline
            left = None if deadline is None else max(deadline - asyncio.get_running_loop().time(), 0.01)
            try:
                async with asyncio.timeout(left):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            await self.router.work()
            self.works += 1

    def follow(self, *peers: Peer, unprogrammed: Iterable[str] = (), suspended: Iterable[str] = ()) -> None:
        identity = Identity(
            asn=65001,
            router_id=ip_address("10.0.1.1"),  # type: ignore[arg-type]
            listen_port=self.port,
            listen_addresses=(ip_address("127.0.1.1"),),
        )
        ranges = map(ip_network, unprogrammed)
        self.router.follow(identity, peers, ADDRESSES, unprogrammed=ranges, suspended=frozenset(suspended))
        assert self.router.speaker.listener.faults == {}

    def peer(self, number: int, tables: TableSettings | None = None, **more: Any) -> Peer:
        session = settings(1, number, self.port, **({"local": None} | more))  # its next hops are no loopback addresses
        return Peer(name=str(number), session=session, tables=tables or TableSettings())

    def state(self, number: int) -> State:
        return self.router.speaker.states()[str(number)].state

    def close(self) -> None:
        self._task.cancel()
        self.router.close()


Make = Callable[..., Node]
MakePeer = Callable[..., ByHand]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest_asyncio.fixture
async def make(port: int) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def made(**more: Any) -> Node:
            node = Node(port, **more)
            stack.callback(node.close)
            return node

        yield made


@pytest_asyncio.fixture
async def by_hand(port: int) -> AsyncIterator[MakePeer]:
    async with AsyncExitStack() as stack:

        def made(number: int = 9, **more: Any) -> ByHand:
            peer = ByHand(port, number, **more)
            stack.callback(peer.close)
            return peer

        yield made


@contextmanager
def watched(holds: LoopHolds) -> Iterator[None]:
    """Time what is scheduled meanwhile, with garbage collected as in a service."""
    before = gc.get_threshold()
    garbage.freeze_survivors()
    holds.watch(asyncio.get_running_loop())
    try:
        yield
    finally:
        gc.callbacks.clear()
        gc.set_threshold(*before)
        gc.unfreeze()


def ends(peer: ByHand) -> bool:
    return {"EoR IPV4", "EoR IPV6"} <= set(peer.said)


async def test_policy_that_changes_nothing_holds_up_nothing(make: Make, by_hand: MakePeer) -> None:
    """A peer has the whole table when its export policy is edited; what follows is sent at once."""
    node = make()
    node.follow(node.peer(8), node.peer(9))
    eight, nine = await by_hand(8).establish(), await by_hand(9).establish()
    texts = [str(ip_network((0x0B000000 + (n << 8), 24))) for n in range(4 * AT_ONCE)]
    await nine.send(nine.announce(*texts))
    await until(lambda: len(eight.table) == len(texts))
    before = eight.updates
    nothing = FilterRule(action=RuleAction.REJECT, family=Family.IPV4, network=ip_network("12.0.0.0/24"))
    tables = TableSettings(exports=(nothing,))
    node.follow(node.peer(8, tables), node.peer(9, tables))
    await nine.send(nine.announce("10.7.0.0/24"))
    await until(lambda: "10.7.0.0/24" in eight.table)
    assert eight.updates == before + 1


async def test_the_first_table_comes_whole_and_end_of_rib_last(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.router.announce(OWN)
    node.follow(node.peer(9))
    nine = await by_hand().establish()
    await until(lambda: ends(nine))
    four, six = nine.said.index("EoR IPV4"), nine.said.index("EoR IPV6")
    assert {said for said in nine.said[:four] if ":" not in said} >= {"+10.9.0.0/26", "+10.9.0.64/26"}
    assert "+fd00:9::/122" in nine.said[:six]
    assert sorted(nine.said) == sorted([*names([*map(str, OWN)]), "EoR IPV4", "EoR IPV6"]), "each thing once"
    assert {text: str(found.next_hop) for text, found in nine.table.items()} == {
        "10.9.0.0/26": "10.0.0.1",
        "10.9.0.64/26": "10.0.0.1",
        "fd00:9::/122": "fd00::1",
    }


async def test_two_routers_know_of_each_other_what_each_announces(make: Make, by_hand: MakePeer, port: int) -> None:
    """And pass on what a third says: over two hops the path has both."""
    one = make()
    one.router.announce(OWN)
    one.follow(one.peer(2, address=ip_address("127.0.0.1")), one.peer(9))
    other = Node(port)
    try:
        addresses = tuple(map(ip_interface, ("10.0.0.2/24", "fd00::2/64")))
        other.router.find_ways(ways_of(Snapshot(uplinks=(replace(UPLINK, addresses=addresses),))))
        other.router.announce({ip_network("10.8.0.0/26"): IGP})
        identity = Identity(
            asn=65002,
            router_id=ip_address("10.0.1.2"),  # type: ignore[arg-type]
            listen_port=port,
            listen_addresses=(ip_address("127.0.1.2"),),
        )
        session = settings(2, 1, port, passive=False, local=None)
        peer = Peer(name="one", session=session, tables=TableSettings())
        other.router.follow(identity, [peer], {4: ip_address("10.0.0.2"), 6: ip_address("fd00::2")})
        nine = await by_hand().establish()
        await nine.send(nine.announce("10.1.0.0/24"), nine.end_of_rib())
        learnt = other.router.rib.chosen(Family.IPV4)
        await until(lambda: len(learnt) == 1 + 2 + 1)
        found = {str(network_of(Family.IPV4, prefix)): paths[0].attributes for prefix, paths in learnt.items()}
        assert [segment.numbers for segment in found["10.1.0.0/24"].as_path] == [(65001, 65009)]
        assert str(found["10.9.0.0/26"].next_hop) == "10.0.0.1"
        await until(lambda: "+10.8.0.0/26" in nine.said)
        assert str(nine.table["10.8.0.0/26"].next_hop) == "10.0.0.1"
    finally:
        other.close()


async def test_a_change_costs_what_it_changes(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.router.announce({ip_network(f"10.9.{n}.0/24"): IGP for n in range(200)})
    node.follow(node.peer(9))
    nine = await by_hand().establish()
    await until(lambda: ends(nine))
    assert nine.updates == 1 + 2, "prefixes with equal attributes share a message"
    before, calls = len(nine.said), node.routes.calls
    node.router.announce({ip_network(f"10.9.{n}.0/24"): IGP for n in range(1, 201)})
    await until(lambda: len(nine.said) == before + 2)
    assert nine.said[before:] == ["-10.9.0.0/24", "+10.9.200.0/24"]
    assert nine.updates == 3 + 2
    node.router.announce({ip_network(f"10.9.{n}.0/24"): IGP for n in range(1, 201)})
    node.follow(node.peer(9))
    node.router.find_ways(ways_of(KERNEL))
    works = node.works
    await until(lambda: node.works > works)
    await nine.send(nine.announce("10.1.0.0/24"))
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.9"})
    assert (nine.updates, node.routes.calls - calls) == (5, 2), "own prefixes that went and came lead nowhere"


async def test_paths_of_two_peers_are_used_together_and_one_leaves_alone(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.follow(node.peer(8), node.peer(9))
    eight, nine = [await by_hand(number).establish() for number in (8, 9)]
    for peer in (eight, nine):
        await peer.send(peer.announce("10.1.0.0/24", path=(64999,)), peer.end_of_rib())
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.8 10.0.0.9"})
    await until(lambda: sorted(node.routes.complete_) == [Family.IPV4, Family.IPV6])
    eight.close()
    await until(lambda: node.state(8) is not State.ESTABLISHED)
    assert node.routes.said() == {"10.1.0.0/24": "10.0.0.8 10.0.0.9"}, "it may restart (RFC 4724)"
    node.follow(node.peer(9))
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.9"})


# What a peer can do wrong.


async def test_a_peer_that_takes_nothing_is_bounded_and_holds_nobody(make: Make, by_hand: MakePeer) -> None:
    """It is sent table after table, and does not read: what waits for it is a bound, and the other has all."""
    node = make()
    node.follow(node.peer(8), node.peer(9))
    stuck, works = by_hand(8, reads=False), by_hand(9)
    for peer in (stuck, works):
        await peer.establish()
    await until(lambda: node.state(8) is node.state(9) is State.ESTABLISHED)
    prefixes = [ip_network((0x0A000000 + (n << 8), 24)) for n in range(5000)]

    def has(number: int) -> bool:
        return all(text in works.table and works.table[text].med == number for text in map(str, prefixes[::999]))

    waiting = 0
    for number in range(20):
        padding = tuple(range(200))
        wanted = {
            prefix: Attributes(origin=Origin.IGP, med=number, communities=(n, *padding))
            for n, prefix in enumerate(prefixes)
        }
        node.router.announce(wanted)
        await until(partial(has, number))
        waiting = node.router.speaker.states()["8"].waiting_octets
        if waiting >= MOST_WAITING:
            break
    assert MOST_WAITING <= waiting < MOST_WAITING + (1 << 20)
    assert node.state(8) is State.ESTABLISHED
    stuck.read()
    await until(lambda: stuck.table.keys() == works.table.keys())
    await until(lambda: stuck.table == works.table)


async def test_a_flood_of_route_refreshes_costs_one_table_after_the_other(make: Make, by_hand: MakePeer) -> None:
    """5,000 requests of a peer that takes nothing meanwhile: it is sent the table twice or thrice, not 5,000 times."""
    node = make()
    node.router.announce({ip_network((0x0A000000 + (n << 8), 24)): IGP for n in range(3000)})
    node.follow(node.peer(9))
    nine = by_hand(reads=False)
    await nine.establish()
    await until(lambda: node.state(9) is State.ESTABLISHED)
    await nine.send(nine.refresh() * 5000)
    received = node.router.speaker.states
    await until(lambda: sum(received()["9"].received.values()) >= 5000)
    assert received()["9"].waiting_octets < 100_000
    nine.read()
    await until(lambda: ends(nine) and "EoRR IPV4" in nine.said)
    assert nine.said.count("BoRR IPV4") <= 3
    assert nine.said.count("+10.0.0.0/24") <= 4


async def test_route_refresh_sends_all_again_between_its_marks(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.router.announce(OWN)
    node.follow(node.peer(9))
    nine = await by_hand().establish()
    await until(lambda: ends(nine))
    nine.said.clear()
    await nine.send(nine.refresh())
    await until(lambda: "EoRR IPV4" in nine.said)
    assert nine.said[0] == "BoRR IPV4"
    assert set(nine.said[1:-1]) == {"+10.9.0.0/26", "+10.9.0.64/26"}
    assert nine.said[-1] == "EoRR IPV4"


async def test_route_refresh_during_the_first_table_waits_for_its_end(make: Make, by_hand: MakePeer) -> None:
    """No BoRR before End-of-RIB (RFC 7313 4), and none without its EoRR."""
    node = make()
    node.router.announce({ip_network((0x0A000000 + (n << 8), 24)): IGP for n in range(5000)})
    node.follow(node.peer(9))
    nine = by_hand()
    await nine.establish()
    await nine.send(nine.refresh())
    await until(lambda: "EoRR IPV4" in nine.said)
    marks = [said for said in nine.said if said.endswith("IPV4")]
    assert marks == ["EoR IPV4", "BoRR IPV4", "EoRR IPV4"]


async def test_a_refresh_by_the_peer_takes_away_what_it_does_not_send_again(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.follow(node.peer(9))
    nine = await by_hand().establish()
    await nine.send(nine.announce("10.1.0.0/24", "10.2.0.0/24"), nine.end_of_rib())
    await until(lambda: len(node.routes.hops) == 2)
    await nine.send(nine.refresh(RefreshKind.BEGINNING), nine.announce("10.2.0.0/24"))
    await until(lambda: node.router.rib.count("9")[Family.IPV4].stale == 1)
    assert len(node.routes.hops) == 2
    await nine.send(nine.refresh(RefreshKind.END))
    await until(lambda: node.routes.said() == {"10.2.0.0/24": "10.0.0.9"})


async def test_too_many_prefixes_end_the_session_once_with_their_bound(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.follow(node.peer(9, TableSettings(most_prefixes=100), restart_seconds=0), node.peer(8))
    nine, eight = [await by_hand(number).establish() for number in (9, 8)]
    await eight.send(eight.announce("10.1.0.0/24"), eight.end_of_rib())
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.8"})
    texts = [f"10.{2 + n // 256}.{n % 256}.0/24" for n in range(500)]
    await nine.send(*(nine.announce(text) for text in texts))
    await until(lambda: nine.closed)
    assert nine.said[-1] == "closed 6/1"
    assert nine.last_words == bytes((0, 1, 1)) + (100).to_bytes(4), "RFC 4486 4"
    assert [limit.exceeded for limit in node.limits] == [False, True], "a warning, then the end, each once"
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.8"})
    assert node.state(8) is State.ESTABLISHED
    assert await nine.is_refused(), "not before its time"


async def test_what_cannot_be_sent_is_reported_once_and_not_sent(make: Make, by_hand: MakePeer) -> None:
    """Attributes that need an extended message, to a peer that takes none."""
    node = make()
    node.follow(node.peer(9), node.peer(8))
    eight, nine = await by_hand(8).establish(), await by_hand(9, extended_messages=False).establish()
    await until(lambda: ends(nine) and ends(eight))
    many = tuple(range(1, 1100))
    await eight.send(
        *(eight.announce(f"10.1.{n}.0/24", communities=many) for n in range(50)), eight.announce("10.2.0.0/24")
    )
    await until(lambda: "+10.2.0.0/24" in nine.said)
    assert "10.1.0.0/24" not in nine.table
    assert [name for name, _ in node.unwritable] == ["9"]
    assert len(node.routes.hops) == 51


async def test_a_peer_that_never_ends_starves_neither_the_kernel_nor_the_other_family(
    make: Make, by_hand: MakePeer
) -> None:
    """The same IPv4 prefixes by other attributes again and again; a pass of the router ends all the same."""
    node = make()
    node.follow(node.peer(8), node.peer(9))
    eight, nine = [await by_hand(number).establish() for number in (8, 9)]
    texts = [str(ip_network((0x0B000000 + (n << 8), 24))) for n in range(2500)]
    tables = [nine.announce(*texts, path=(64000 + n,)) for n in range(4)]
    stop = asyncio.Event()

    async def flood() -> None:
        while not stop.is_set():
            for table in tables:
                await nine.send(table)

    flooding = asyncio.create_task(flood())
    try:
        await until(lambda: len(node.routes.hops) == len(texts))
        works = node.works
        await eight.send(eight.announce("fd00:1::/64"), eight.announce("10.1.0.0/24"))
        await until(lambda: {"fd00:1::/64", "10.1.0.0/24"} <= node.routes.said().keys())
        await until(lambda: node.works > works + 2)
    finally:
        stop.set()
        await flooding


# What there should be, changed live.


async def test_a_changed_peer_gets_another_session_and_the_others_none(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.router.announce(OWN)
    node.follow(node.peer(8), node.peer(9))
    eight, nine = [await by_hand(number).establish() for number in (8, 9)]
    await until(lambda: ends(eight) and ends(nine))
    node.follow(node.peer(8), node.peer(9, hold_seconds=30))
    await until(lambda: nine.closed)
    assert nine.said[-1] == "closed 6/6"
    await nine.come_back()
    await until(lambda: ends(nine))
    assert nine.table.keys() == eight.table.keys()
    assert not eight.closed
    assert eight.said.count("EoR IPV4") == 1


async def test_another_address_of_the_node_takes_another_session(make: Make, by_hand: MakePeer) -> None:
    """IPv6 routes over a session of IPv4 would keep a next hop that is nobody's."""
    node = make()
    node.router.announce(OWN)
    node.follow(node.peer(9))
    nine = await by_hand().establish()
    await until(lambda: ends(nine))
    node.router.follow(
        Identity(
            asn=65001,
            router_id=ip_address("10.0.1.1"),  # type: ignore[arg-type]
            listen_port=node.port,
            listen_addresses=(ip_address("127.0.1.1"),),
        ),
        [node.peer(9)],
        {**ADDRESSES, 6: ip_address("fd00::77")},
    )
    await until(lambda: nine.closed)
    assert nine.said[-1] == "closed 6/6"
    await nine.come_back()
    await until(lambda: ends(nine))
    assert str(nine.table["fd00:9::/122"].next_hop) == "fd00::77"


async def test_filters_that_change_cost_no_session(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.router.announce(OWN)
    node.follow(node.peer(9))
    nine = await by_hand().establish()
    await nine.send(nine.announce("10.1.0.0/24"))
    await until(lambda: ends(nine) and node.routes.hops)
    node.follow(node.peer(9, TableSettings(default_import=False, default_export=False)))
    await until(lambda: not nine.table and not node.routes.hops)
    node.follow(node.peer(9))
    await until(lambda: nine.table.keys() == set(map(str, OWN)) and node.routes.hops)
    assert not nine.closed


async def test_ranges_for_peers_alone_are_passed_on_and_not_programmed(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.follow(node.peer(8), node.peer(9), unprogrammed=["10.96.0.0/12"])
    eight, nine = [await by_hand(number).establish() for number in (8, 9)]
    await nine.send(nine.announce("10.96.7.0/24", "10.1.0.0/24", "10.0.0.0/8"))
    await until(lambda: {"+10.96.7.0/24", "+10.1.0.0/24", "+10.0.0.0/8"} <= set(eight.said))
    assert node.routes.said().keys() == {"10.1.0.0/24", "10.0.0.0/8"}
    node.follow(node.peer(8), node.peer(9), unprogrammed=["10.1.0.0/16"])
    await until(lambda: node.routes.said().keys() == {"10.96.7.0/24", "10.0.0.0/8"})
    assert not [said for said in eight.said if said.startswith("-")]


async def test_a_next_hop_that_is_reached_by_another_router_moves_its_routes(make: Make, by_hand: MakePeer) -> None:
    """The cost and the interface are the same: nothing is to be decided, and the kernel is told all the same."""
    node = make()

    def by(router: str, link: int = 3) -> Snapshot:
        route = Route(destination=ip_network("10.50.0.0/24"), via=ip_address(router), link=link, protocol=4)
        return Snapshot(uplinks=(replace(UPLINK, index=link),), routes=(route,))

    node.router.find_ways(ways_of(by("10.0.0.20")))
    node.follow(node.peer(9), node.peer(8))
    nine, eight = [await by_hand(number).establish() for number in (9, 8)]
    await nine.send(nine.announce("10.1.0.0/24", hop="10.50.0.9"))
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.20"})
    await until(lambda: "+10.1.0.0/24" in eight.said)
    updates = eight.updates
    node.router.find_ways(ways_of(by("10.0.0.21")))
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.21"})
    node.router.find_ways(ways_of(by("10.0.0.21", link=7)))
    await until(lambda: next(iter(node.routes.hops.values()))[0].link == 7)
    node.router.find_ways(ways_of(Snapshot()))
    await until(lambda: node.routes.said() == {})
    await until(lambda: eight.updates > updates)
    assert eight.said[-1] == "-10.1.0.0/24"


# Restarts, and the end.


async def test_after_a_restart_nothing_is_decided_before_all_tables_are_there(make: Make, by_hand: MakePeer) -> None:
    node = make(restarting=60.0)
    node.router.announce(OWN)
    node.follow(node.peer(8), node.peer(9))
    eight, nine = [await by_hand(number).establish() for number in (8, 9)]
    await until(lambda: node.state(8) is node.state(9) is State.ESTABLISHED)
    await nine.send(nine.announce("10.1.0.0/24", path=(64999,)), nine.end_of_rib())
    await until(lambda: sum(node.router.speaker.states()["9"].received.values()) >= 4)
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert node.routes.hops == {}
        assert node.routes.complete_ == []
        assert not [said for said in (*eight.said, *nine.said) if said.startswith("EoR")]
    await eight.send(eight.announce("10.1.0.0/24", path=(64999,)), eight.end_of_rib())
    await until(lambda: ends(eight) and ends(nine))
    assert node.routes.said() == {"10.1.0.0/24": "10.0.0.8 10.0.0.9"}
    await until(lambda: sorted(node.routes.complete_) == [Family.IPV4, Family.IPV6])
    assert nine.said[0].startswith("+")


async def test_nobody_is_waited_for_longer_than_said(make: Make, by_hand: MakePeer) -> None:
    node = make(restarting=1.0)
    node.follow(node.peer(8), node.peer(9))
    eight, nine = [await by_hand(number).establish() for number in (8, 9)]
    await nine.send(nine.announce("10.1.0.0/24"), nine.end_of_rib())
    await until(lambda: ends(eight) and ends(nine))
    assert node.routes.said() == {"10.1.0.0/24": "10.0.0.9"}
    assert node.routes.complete_ == [], "the kernel's other routes may be the silent peer's"


async def test_a_peer_that_is_removed_is_waited_for_no_longer(make: Make, by_hand: MakePeer) -> None:
    node = make(restarting=60.0)
    node.follow(node.peer(8), node.peer(9))
    _, nine = [await by_hand(number).establish() for number in (8, 9)]
    await until(lambda: node.state(8) is node.state(9) is State.ESTABLISHED)
    await nine.send(nine.announce("10.1.0.0/24"), nine.end_of_rib())
    node.follow(node.peer(9))
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.9"})
    await until(lambda: sorted(node.routes.complete_) == [Family.IPV4, Family.IPV6])


async def test_a_family_that_a_peer_does_not_carry_is_not_waited_for(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.follow(node.peer(9))
    nine = await by_hand(families=frozenset({Family.IPV4})).establish()
    await nine.send(nine.end_of_rib(Family.IPV4))
    await until(lambda: sorted(node.routes.complete_) == [Family.IPV4, Family.IPV6])


async def test_without_peers_the_kernels_routes_are_nobodys(make: Make) -> None:
    node = make()
    node.follow()
    await until(lambda: sorted(node.routes.complete_) == [Family.IPV4, Family.IPV6])


async def test_a_session_that_is_suspended_ends_without_a_word_and_nothing_of_it_stays_here(
    make: Make, by_hand: MakePeer
) -> None:
    node = make()
    node.router.announce(OWN)
    node.follow(node.peer(8), node.peer(9))
    eight, nine = await by_hand(8).establish(), await by_hand().establish()
    for one in (eight, nine):
        await one.send(one.announce("10.1.0.0/24"), one.end_of_rib())
    await nine.send(nine.announce("10.2.0.0/24"))
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.8 10.0.0.9", "10.2.0.0/24": "10.0.0.9"})
    node.follow(node.peer(8), suspended=["9"])
    await until(lambda: nine.closed)
    assert not [said for said in nine.said if said.startswith("closed")], "it keeps the routes for a while"
    await until(lambda: node.routes.said() == {"10.1.0.0/24": "10.0.0.8"})
    assert not eight.closed


async def test_an_end_for_good_ends_sessions_and_takes_the_routes(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.router.announce(OWN)
    node.follow(node.peer(9))
    nine = await by_hand().establish()
    await nine.send(nine.announce("10.1.0.0/24", "10.2.0.0/24"), nine.announce("fd00:1::/64"))
    await until(lambda: len(node.routes.hops) == 3)
    node.router.leave()
    assert node.routes.hops == {}
    await until(lambda: nine.closed)
    assert nine.said[-1] == "closed hard 6/3"


async def test_an_end_for_a_restart_says_nothing_and_leaves_the_routes(make: Make, by_hand: MakePeer) -> None:
    node = make()
    node.follow(node.peer(9))
    nine = await by_hand().establish()
    await nine.send(nine.announce("10.1.0.0/24"))
    await until(lambda: node.routes.hops)
    node.router.close()
    await until(lambda: nine.closed)
    assert not [said for said in nine.said if said.startswith("closed")]
    assert node.routes.said() == {"10.1.0.0/24": "10.0.0.9"}


# Size.


@pytest.mark.timeout(300)
async def test_100_000_prefixes_hold_the_loop_for_no_longer_than_the_others_bear(make: Make, by_hand: MakePeer) -> None:
    """A peer's table comes, is decided, handed to the kernel's routes and sent to another peer, and goes again."""
    node = make()
    node.follow(node.peer(8), node.peer(9))
    eight, nine = by_hand(8, reads=False), by_hand(9)
    await eight.establish()
    await nine.establish()
    eight.drain()
    await until(lambda: ends(nine) and node.state(8) is State.ESTABLISHED)
    texts = [str(ip_network((0x0B000000 + (n << 8), 24))) for n in range(100_000)]
    parts = [texts[n : n + 500] for n in range(0, len(texts), 500)]
    table = [nine.announce(*part, path=(64000 + n,)) for n, part in enumerate(parts)]
    gone = [nine.withdraw(*part) for part in parts]
    holds = LoopHolds(Log("router", "error", stream=io.StringIO()))
    with watched(holds):
        await nine.send(*table)
        await until(lambda: len(node.routes.hops) == len(texts))
        node.follow(node.peer(8), node.peer(9), unprogrammed=["10.96.0.0/12"])
        await nine.send(nine.refresh())
        await until(lambda: not node.router.rib.owes("9"))
        await nine.send(*gone)
        await until(lambda: not node.routes.hops)
    longest = holds.longest()
    print(f"longest hold: {longest.cpu * 1000:.1f} ms of CPU, {longest.seconds * 1000:.1f} ms by {longest.by}")
    assert longest.cpu < HELD


async def test_what_several_peers_are_sent_is_written_once(
    make: Make, by_hand: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[Prefix, ...]] = []
    write = UpdateWriter.write

    def counting(self: UpdateWriter, family: Family, what: Attributes, prefixes: tuple[Prefix, ...], *more: Any) -> Any:
        written.append(prefixes)
        return write(self, family, what, prefixes, *more)

    monkeypatch.setattr(UpdateWriter, "write", counting)
    node = make()
    node.follow(*map(node.peer, (8, 9, 10)))
    peers = [await by_hand(number).establish() for number in (8, 9, 10)]
    await until(lambda: all(peer.said.count("EoR IPV4") for peer in peers))
    written.clear()
    node.router.announce(OWN)
    await until(lambda: all(len(peer.table) == len(OWN) for peer in peers))
    assert len(written) == 2, "a run of each family"


async def test_a_session_that_changes_costs_the_others_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    state = Session.state

    def counting(self: Session) -> PeerState:
        asked.append(self.name)
        return state(self)

    monkeypatch.setattr(Session, "state", counting)
    node = make()
    node.follow(*map(node.peer, range(10, 110)))
    assert 100 <= len(asked) <= 300
    assert len(node.router.speaker.states()) == 100
