"""BGP's loop with a real NATS: objects in the bucket become sessions, and what is not known whole changes nothing.

Learnt routes are the real ones but for the kernel, which is not asked; netns tests do that.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from chassis.bus.client import Bus
from proto.addresses import Block
from proto.bgp import BgpRoutes, BgpRoutesRequest, BgpSessionsRequest, BgpStatus
from proto.codec import block_key, kind_prefix, object_key
from proto.net import Network
from proto.objects import (
    KIND_OF,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    CalicoNodeStatus,
    EndpointSlice,
    IPPool,
    Node,
    SecretKey,
    Service,
)
from proto.subjects import BGP_STATUS, BLOCKS, CLAIMS, OBJECTS
from proto.sync import Complete, complete_key
from proto.traces import Span, SpansRequest
from services.routing.bgp import answers
from services.routing.bgp.answers import sessions
from services.routing.bgp.metrics import BgpMetrics
from services.routing.bgp.sockets import Opener, tcp_socket
from services.routing.bgp.start import Bgp
from services.routing.core.bgp.communities import GRACEFUL_SHUTDOWN
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import prefix_of
from services.routing.core.fib import Snapshot, Uplink
from services.routing.core.learnt import FIRST_ID, LAST_ID, Hop
from services.routing.kernel import Kernel
from services.routing.learnt import LearntRoutes, Pass
from services.routing.mirror import Mirror
from services.routing.settings import Settings
from tests.conftest import BusFor
from tests.natsd import NatsServer, free_port, runtime_of
from tests.shell.routing.bgp.by_hand import ByHand, until

UPLINK = Uplink(name="up0", index=3, up=True, addresses=(ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")))
KERNEL = Snapshot(uplinks=(UPLINK,))
IP_FREEBIND = 15
KINDS = (BGPConfiguration, BGPFilter, BGPPeer, IPPool, Node)
OF_SERVICES = (Service, EndpointSlice)
POOL = IPPool("pods", ip_network("10.244.0.0/16"), 26)
ME = Node("n1", "u1", addresses=(ip_address("10.0.0.1"), ip_address("fd00::1")))
BLOCK = Block(ip_network("10.244.0.0/26"), "pods", "n1", "u1", 1, "n")


def anywhere(family: int) -> socket.socket:
    """A socket that may be bound to the node's address, which this machine does not have (ip(7), IP_FREEBIND)."""
    opened = tcp_socket(family)
    opened.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    return opened


class Learnt(LearntRoutes):
    """What is wanted of the kernel, which has it at once. ``before``: an earlier agent had learnt routes."""

    def __init__(self, *, before: bool = False) -> None:
        super().__init__(Kernel(("up0",)))
        self.before = before
        self.whole: set[int] = set()
        self.written = 0
        """What a pass says that it has written."""

    @property
    def any_seen(self) -> bool:
        return self.before

    async def apply(self, *, full: bool, occupied: Iterable[Network] = ()) -> Pass:
        for table in self._tables.values():
            table.settle(table.take(1 << 20, range(1 << 32), ()), ())
            if table.is_complete:
                self.whole.add(table.family)
        return Pass(written=self.written, crowded=len(self._crowded))

    def by(self, text: str) -> str:
        """The routers that a prefix is reached by."""
        return " ".join(str(hop.via) for hop in self.hops(*prefix_of(ip_network(text))))


@dataclass
class World:
    """An agent's loop, and who writes what it reads."""

    cluster: Bus
    ipam: Bus
    epochs: dict[str, str]
    runtime: Any
    port: int
    learnt: Learnt = field(default_factory=Learnt)
    snapshot: Snapshot = KERNEL
    encrypted: frozenset[int] = frozenset()
    opener: Opener = anywhere
    bgp: Bgp = field(init=False)

    def begin(self) -> None:
        buckets = Mirror(self.runtime.bus, "n1")
        self.bgp = Bgp(
            self.runtime,
            buckets,
            self.learnt,
            lambda: self.snapshot,
            lambda: self.encrypted,
            lambda: None,
            opener=self.opener,
        )

    async def put(self, *objects: Any) -> None:
        for one in objects:
            await self.cluster.bucket(OBJECTS).put(object_key(one), one)

    async def delete(self, *objects: Any) -> None:
        for one in objects:
            await self.cluster.bucket(OBJECTS).delete(object_key(one))

    async def whole(self, *kinds: type) -> None:
        for kind in kinds:
            prefix = kind_prefix(KIND_OF[kind])
            await self.cluster.bucket(OBJECTS).put(complete_key(prefix), Complete(self.epochs["objects"]))

    async def addresses(self, *blocks: Block) -> None:
        """All blocks and claims that there are."""
        for block in blocks:
            await self.ipam.bucket(BLOCKS).put(block_key(block.cidr), block)
        for bucket in (BLOCKS, CLAIMS):
            await self.ipam.bucket(bucket).put(complete_key(), Complete(self.epochs[bucket.name]))

    def set_default(self, **more: Any) -> BGPConfiguration:
        usual: dict[str, Any] = {"asn": 65001, "node_mesh": False, "listen_port": self.port}
        return BGPConfiguration("default", **(usual | more))

    def peer(self, number: int = 9, **more: Any) -> BGPPeer:
        usual: dict[str, Any] = {"peer_ip": ip_address(f"127.0.1.{number}"), "asn": 65000 + number}
        return BGPPeer(f"tor-{number}", **(usual | {"port": self.port, "source_address": "None"} | more))

    def states(self) -> dict[str, State]:
        router = self.bgp.router
        return {name: one.state for name, one in router.speaker.states().items()} if router is not None else {}

    def up(self) -> bool:
        return State.ESTABLISHED in self.states().values()


@pytest_asyncio.fixture
async def world(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str], tmp_path: Path
) -> AsyncIterator[World]:
    user = nats_server.user("routing", "n1")
    settings = Settings(
        nats_url=nats_server.url,
        nats_seed_file=nats_server.seeds / f"{user.name}.seed",
        nats_user=user.name,
        instance="routing-test",
        node="n1",
        uplinks=("up0",),
        bgp_passwords=tmp_path / "passwords",
    )
    async with runtime_of(nats_server, "routing", "n1", settings=settings) as runtime:
        yield World(await bus_for("cluster"), await bus_for("ipam"), buckets, runtime, free_port())


@pytest_asyncio.fixture
async def nine(world: World) -> AsyncIterator[ByHand]:
    peer = ByHand(world.port, listens=True)
    yield peer
    peer.close()


def _has_made(world: World, passes: int) -> bool:
    return world.bgp._loop.passes >= passes


async def settled(world: World) -> None:
    """A few passes of the loop."""
    for _ in range(3):
        wanted = world.bgp._loop.passes + 1
        world.bgp._loop.poke()
        await until(partial(_has_made, world, wanted))


async def usual(world: World, **more: Any) -> None:
    """A cluster with one node, one pool, one block and the peer 9."""
    world.begin()
    await world.put(ME, POOL, world.set_default(**more), world.peer())
    await world.addresses(BLOCK)
    await world.whole(*KINDS)


async def test_objects_become_sessions_and_routes_both_ways(world: World, nine: ByHand) -> None:
    await usual(world)
    await nine.come_back()
    await until(lambda: "EoR IPV4" in nine.said)
    assert nine.table.keys() == {"10.244.0.0/26"}
    await nine.send(nine.announce("10.1.0.0/24"), nine.end_of_rib())
    await until(lambda: world.learnt.by("10.1.0.0/24") == "10.0.0.9")
    leads_to = world.bgp.leads_to()
    assert leads_to is not None
    await until(lambda: leads_to(ip_network("10.1.0.0/24")))  # when it is written
    assert leads_to(ip_network("10.1.0.64/26")), "by the route that covers it"
    assert not leads_to(ip_network("10.1.0.0/16"))
    await until(lambda: len(world.learnt.whole) == 2)


async def test_a_batch_of_updates_is_one_trace_from_the_peer_to_the_kernel_and_to_the_others(
    world: World, nine: ByHand
) -> None:
    eight = ByHand(world.port, 8, listens=True, local_asn=65001)
    try:
        await usual(world)
        await world.put(world.peer(8, asn=65001))
        await nine.come_back()
        await eight.come_back()
        await until(lambda: "EoR IPV4" in nine.said and "EoR IPV4" in eight.said)
        await nine.send(nine.announce("10.244.64.0/26", "10.244.128.0/26"))
        await until(lambda: "10.244.64.0/26" in eight.table)
        asked = BgpRoutesRequest(node="", prefix=ip_network("10.244.64.0/26"))

        def last() -> BgpRoutes:
            found = answers.routes(asked, "n1", world.bgp.router)
            assert found is not None
            return found

        def spans() -> dict[str, Span]:
            found = world.runtime.telemetry.ring.find(SpansRequest(trace_id=last().trace_id)).spans
            return {span.name: span for span in found}

        await until(lambda: {"bgp.receive", "bgp.decide", "bgp.install", "bgp.advertise"} == spans().keys())
        found, first = spans(), last()
        attributes = {name: dict(span.attributes) for name, span in found.items()}
        assert attributes["bgp.receive"] == {
            "airmesh.peers": "tor-9/127.0.1.9", "airmesh.messages": "1", "airmesh.prefixes": "2",
        }  # fmt: skip
        assert attributes["bgp.decide"]["airmesh.changes"] == "2"
        assert attributes["bgp.advertise"] == {"airmesh.peers": "tor-8/127.0.1.8", "airmesh.messages": "1"}
        parents = {span.parent_id for name, span in found.items() if name != "bgp.receive"}
        assert parents == {found["bgp.receive"].span_id}

        await nine.send(nine.withdraw("10.244.64.0/26"))
        await until(lambda: "10.244.64.0/26" not in eight.table and last().trace_id not in ("", first.trace_id))
        assert last().paths == (), "of a prefix that is gone its removal"
        within = answers.routes(BgpRoutesRequest("n1", prefix=ip_network("10.244.128.7/32")), "n1", world.bgp.router)
        assert within is not None
        assert within.trace_id == first.trace_id
    finally:
        eight.close()


async def test_without_updates_nothing_is_traced(world: World, nine: ByHand) -> None:
    await usual(world)
    await nine.come_back()
    await until(lambda: "EoR IPV4" in nine.said)
    await settled(world)
    kept = [span.published().name for spans in world.runtime.telemetry.ring._by_owner.values() for span in spans]
    assert not [name for name in kept if name.startswith("bgp.")]


async def test_without_a_word_of_bgp_there_is_no_speaker(world: World) -> None:
    world.begin()
    await world.put(ME, POOL)
    await world.addresses(BLOCK)
    await world.whole(*KINDS)
    await until(lambda: len(world.learnt.whole) == 2)
    assert world.bgp.router is None
    assert world.bgp.leads_to() is None


@pytest.mark.parametrize("missing", [*KINDS, "blocks", "kernel"])
async def test_while_something_is_not_known_nothing_begins(world: World, missing: type | str) -> None:
    """A session without the node's routes would take them from a peer that kept them over a restart."""
    if missing == "kernel":
        world.snapshot = Snapshot()
    world.begin()
    await world.put(ME, POOL, world.set_default(), world.peer())
    if missing != "blocks":
        await world.addresses(BLOCK)
    await world.whole(*(kind for kind in KINDS if kind is not missing))
    await settled(world)
    assert world.bgp.router is None
    assert not world.learnt.whole, "nor is anything of an earlier agent's taken away"
    if missing == "kernel":
        world.snapshot = Snapshot(uplinks=(UPLINK,))
    elif missing == "blocks":
        await world.addresses(BLOCK)
    else:
        await world.whole(missing)  # type: ignore[arg-type]
    await until(world.states)


async def test_services_are_followed_once_they_are_announced_and_awaited_before_the_first_session(
    world: World, nine: ByHand
) -> None:
    await usual(world, cluster_ips=(ip_network("10.96.0.0/12"),))
    await settled(world)
    assert world.bgp.router is None, "not before the Services are known"
    await world.whole(*OF_SERVICES)
    await nine.come_back()
    await until(lambda: "EoR IPV4" in nine.said)
    assert nine.table.keys() == {"10.244.0.0/26", "10.96.0.0/12"}
    assert nine.said.index("+10.96.0.0/12") < nine.said.index("EoR IPV4")
    await nine.send(nine.announce("10.97.0.0/16", "10.1.0.0/24"))
    await until(lambda: world.learnt.by("10.1.0.0/24"))
    assert not world.learnt.by("10.97.0.0/16"), "Services' addresses are the datapath's own"


async def test_services_that_are_announced_later_cost_no_session(world: World, nine: ByHand) -> None:
    await usual(world)
    await nine.come_back()
    await until(lambda: "EoR IPV4" in nine.said)
    assert world.bgp._mirror.services is None, "nobody keeps what nobody needs"
    await world.put(world.set_default(load_balancer_ips=(ip_network("192.0.2.0/24"),)))
    await settled(world)
    assert nine.table.keys() == {"10.244.0.0/26"}, "as before, while they are not known whole"
    await world.whole(*OF_SERVICES)
    await until(lambda: nine.table.keys() == {"10.244.0.0/26", "192.0.2.0/24"})
    await world.put(world.set_default())
    await until(lambda: nine.table.keys() == {"10.244.0.0/26"})
    assert not nine.closed


async def test_a_peer_that_is_deleted_hears_of_it_and_its_routes_go(world: World, nine: ByHand) -> None:
    await usual(world)
    await nine.come_back()
    await nine.send(nine.announce("10.1.0.0/24"), nine.end_of_rib())
    await until(lambda: world.learnt.by("10.1.0.0/24"))
    await world.delete(world.peer())
    await until(lambda: nine.closed)
    assert nine.said[-1] == "closed hard 6/3"
    await until(lambda: not world.learnt.by("10.1.0.0/24"))
    assert world.bgp.router is not None, "the configuration still asks for a speaker"
    await world.delete(world.set_default())
    await until(lambda: world.bgp.router is None)
    assert world.bgp.leads_to() is None
    await world.put(world.set_default(), world.peer())
    await nine.come_back()
    await until(lambda: nine.table.keys() == {"10.244.0.0/26"})


async def test_nothing_learnt_leads_where_packets_are_encrypted(world: World, nine: ByHand) -> None:
    """Into the pools, and into a block that lies in none: a learnt route would come before the prohibited range."""
    stray = Block(ip_network("10.250.0.0/26"), "gone", "n2", "u2", 1, "n")
    world.encrypted = frozenset({4})
    await usual(world)
    await world.addresses(stray)
    await nine.come_back()
    texts = ("10.244.7.0/26", "10.250.0.0/26", "10.1.0.0/24", "10.244.0.0/15")
    await nine.send(nine.announce(*texts), nine.end_of_rib())
    await until(lambda: world.learnt.by("10.1.0.0/24"))
    await settled(world)
    assert [text for text in texts if world.learnt.by(text)] == ["10.1.0.0/24", "10.244.0.0/15"]
    world.encrypted = frozenset()
    world.bgp.poke()
    await until(lambda: all(map(world.learnt.by, texts)))
    world.encrypted = frozenset({4})
    world.bgp.poke()
    await until(lambda: not world.learnt.by("10.244.7.0/26") and not world.learnt.by("10.250.0.0/26"))
    assert not nine.closed


async def test_what_cannot_be_honoured_is_a_fault_of_its_object(world: World, nine: ByHand) -> None:
    await usual(world)
    secret = world.peer(8, password=SecretKey("tor", "md5"))
    await world.put(secret)
    await until(lambda: world.bgp.faults)
    (fault,) = world.bgp.faults
    assert fault.about == ("BGPPeer", "tor-8")
    assert "Secret tor, key md5" in fault.fault
    await nine.come_back()
    await until(world.up)
    await world.delete(secret)
    await until(lambda: not world.bgp.faults)
    assert world.runtime.lines.named("fault"), "told once, in the log"


async def test_a_port_that_cannot_be_listened_on_is_a_fault_of_the_node(world: World) -> None:
    world.opener = tcp_socket
    await usual(world)
    await until(lambda: world.bgp.router is not None)
    await settled(world)
    assert {fault.about for fault in world.bgp.faults} == {("Node", "n1")}
    assert any("10.0.0.1" in fault.fault and fault.remedy for fault in world.bgp.faults)


async def test_an_agent_that_starts_again_awaits_its_peers(world: World, nine: ByHand) -> None:
    world.learnt.before = True
    await usual(world)
    await nine.come_back()
    await until(world.up)
    await nine.send(nine.announce("10.1.0.0/24"))
    await settled(world)
    assert not world.learnt.by("10.1.0.0/24")
    assert not world.learnt.whole
    assert "EoR IPV4" not in nine.said
    await nine.send(nine.end_of_rib())
    await until(lambda: world.learnt.by("10.1.0.0/24") and len(world.learnt.whole) == 2)
    await until(lambda: "EoR IPV4" in nine.said)
    assert nine.said.index("+10.244.0.0/26") < nine.said.index("EoR IPV4")


async def test_a_session_says_how_it_is(world: World, nine: ByHand) -> None:
    await usual(world)
    await nine.come_back()
    await until(world.up)
    await nine.send(b"\x00" * 19)
    await until(lambda: nine.closed)
    said = world.runtime.lines.named("bgp-session")
    assert "Established" in [line["state"] for line in said]
    assert said[-1]["peer"] == "tor-9/127.0.1.9"
    assert said[-1]["why"]


@pytest.mark.parametrize(
    ("severity", "levels"),
    [
        (None, {"debug", "info"}),  # as the agent says, here all
        ("Debug", {"debug", "info"}),
        ("Warning", set()),
    ],
)
async def test_what_is_logged_of_sessions_and_routes_follows_the_object(
    world: World, nine: ByHand, severity: str | None, levels: set[str]
) -> None:
    world.learnt.written = 1
    await usual(world, log_severity=severity)
    await nine.come_back()
    await until(world.up)
    await settled(world)
    ours = ("bgp-begun", "bgp-session", "bgp-routes")
    assert {line["level"] for line in world.runtime.lines.events() if line["event"] in ours} == levels
    world.runtime.log.info("else")
    assert world.runtime.lines.named("else"), "of nothing else"


async def test_what_is_logged_follows_the_object_of_the_node_while_it_runs(world: World, nine: ByHand) -> None:
    world.learnt.written = 1
    await usual(world, log_severity="Fatal")
    await nine.come_back()
    await until(world.up)
    assert not world.runtime.lines.named("bgp-session")
    own = BGPConfiguration("node.n1", log_severity="Debug")
    await world.put(own)
    await until(lambda: world.runtime.lines.named("bgp-routes"))
    assert not nine.closed
    await world.delete(own)
    await settled(world)
    heard = len(world.runtime.lines.named("bgp-routes"))
    await settled(world)
    assert len(world.runtime.lines.named("bgp-routes")) == heard


async def test_routes_that_find_no_number_are_a_fault_of_the_node(world: World, nine: ByHand) -> None:
    await usual(world)
    await nine.come_back()
    await until(world.up)
    for number in range(LAST_ID - FIRST_ID + 1):
        world.learnt._next_hops.identifier((Hop(ip_address(0x0B000000 + number), 3),))
    await nine.send(nine.announce("10.1.0.0/24", "10.2.0.0/24"), nine.end_of_rib())
    await until(lambda: world.bgp.passed.crowded == 2)
    await until(lambda: world.bgp.faults)
    (fault,) = world.bgp.faults
    assert fault.about == ("Node", "n1")
    assert "65,536" in fault.fault
    absent = next(one for one in BgpMetrics(lambda: None, lambda: world.bgp.passed).collect() if "absent" in one.name)
    assert {one.labels["reason"]: one.value for one in absent.samples} == {"refused": 0, "no_number": 2}
    await nine.send(nine.withdraw("10.1.0.0/24", "10.2.0.0/24"))
    await until(lambda: not world.bgp.faults)


async def test_a_node_that_is_cordoned_asks_to_be_passed_over_until_it_is_not(world: World, nine: ByHand) -> None:
    await usual(world)
    await nine.come_back()
    await until(lambda: nine.table.keys() == {"10.244.0.0/26"})
    cordoned = msgspec.structs.replace(ME, unschedulable=True)
    await world.put(cordoned)
    await until(lambda: nine.table["10.244.0.0/26"].communities == (GRACEFUL_SHUTDOWN,))
    answer = sessions(BgpSessionsRequest(), "n1", world.bgp.router)
    assert answer is not None
    assert answer.leaving
    await world.put(ME)
    await until(lambda: nine.table["10.244.0.0/26"].communities == ())
    assert "-10.244.0.0/26" not in nine.said, "it is never withdrawn"
    assert not nine.closed
    assert [len(world.runtime.lines.named(event)) for event in ("bgp-leaving", "bgp-stays")] == [1, 1]


async def test_an_agent_that_ends_leaves_its_routes_with_its_peers_but_one_whose_node_is_deleted_takes_them_back(
    world: World, nine: ByHand
) -> None:
    """Nobody can tell the end of an agent that is removed from the end of one that is replaced: so peers keep the
    routes for the time of a restart. That a node is gone the API says.
    """
    await usual(world)
    await nine.come_back()
    await until(lambda: nine.table.keys() == {"10.244.0.0/26"})
    await world.delete(ME)
    await until(lambda: nine.closed)
    assert nine.said[-1] == "closed hard 6/3"
    await world.put(ME)
    await nine.come_back()
    await until(lambda: nine.table.keys() == {"10.244.0.0/26"})
    await world.bgp._close()
    await until(lambda: nine.closed)
    assert not [said for said in nine.said if said.startswith("closed")], "no word that would end the restart"


async def test_a_peer_behind_a_gateway_has_a_host_route_as_long_as_it_is_a_peer(world: World, nine: ByHand) -> None:
    behind = world.peer(reachable_by=ip_address("10.0.0.77"))
    await usual(world)
    await nine.come_back()
    await until(world.up)
    assert not world.learnt.by("127.0.1.9/32")
    await world.put(behind)
    await until(lambda: world.learnt.by("127.0.1.9/32") == "10.0.0.77")
    assert not nine.closed
    await world.put(msgspec.structs.replace(behind, reachable_by=ip_address("10.99.0.1")))
    await until(lambda: world.bgp.faults)
    assert [fault.about for fault in world.bgp.faults] == [("BGPPeer", "tor-9")]
    assert not world.learnt.by("127.0.1.9/32")
    await world.put(behind)
    await until(lambda: world.learnt.by("127.0.1.9/32"))
    await world.delete(behind)
    await until(lambda: not world.learnt.by("127.0.1.9/32"))


async def test_a_node_reports_how_its_speaker_is_as_long_as_an_object_asks(world: World, nine: ByHand) -> None:
    heard: list[BgpStatus] = []
    subjects: set[str] = set()

    def hear(subject: str, status: BgpStatus) -> None:
        subjects.add(subject)
        heard.append(status)

    await world.cluster.subscribe(BGP_STATUS, BgpStatus, hear)
    await usual(world)
    await nine.come_back()
    await nine.send(nine.announce("10.1.0.0/24"), nine.end_of_rib())
    await until(lambda: world.learnt.by("10.1.0.0/24"))
    assert not heard, "nobody asks"
    await world.put(CalicoNodeStatus("other", "n2", ("BGP",), 1))
    mine = CalicoNodeStatus("mine", "n1", ("Agent", "BGP", "Routes"), 1)
    await world.put(mine)
    await until(lambda: len(heard) > 1)
    assert subjects == {"airmesh.v1.events.routing.bgp-status.n1"}
    status = heard[-1]
    assert (status.speaks, status.families, status.established, status.router_id) == (True, (4, 6), (1, 0), "10.0.0.1")
    assert [(str(one.address), one.kind, one.state) for one in status.peers] == [
        ("127.0.1.9", "GlobalPeer", "Established")
    ]
    routes = {str(one.destination): (one.forwarding, one.kind) for one in status.routes}
    assert routes == {"10.244.0.0/26": (False, None), "10.1.0.0/24": (True, "GlobalPeer")}
    assert status.booted <= status.configured
