"""Which endpoints count, on a real server with the rights that each writer has."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest

from chassis.bus import jetstream
from chassis.bus.client import Bus
from chassis.telemetry.log import Log
from kit.holdings import Rejection
from proto import codec
from proto.addresses import Block, Claim, Endpoint
from proto.identity import Reserved
from proto.objects import Owner
from proto.policy import Revision
from proto.residents import RESIDENTS_SCOPE, Residents, residents_key
from proto.subjects import BLOCKS, CLAIMS, ENDPOINTS, IDENTITIES, Bucket
from proto.sync import Complete, complete_key
from services.dataplane.feed import Feed
from services.dataplane.ipcache import ownership
from services.dataplane.ipcache.ownership import LASTING, REPORTED_OF_A_NODE, Accepted, Reporter, ownership_of
from tests.conftest import BusFor
from tests.natsd import Lines, NatsServer, bus_of, endpoint_at

MINE, THEIRS, KEPT = "10.244.0.1", "10.244.0.65", "10.244.1.7"


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"not so after {seconds} s"
        await asyncio.sleep(0.01)


class World:
    """What ipam and other nodes write, seen by n1."""

    def __init__(self, ipam: Bus, policy: Bus, nodes: dict[str, Bus], feed: Feed, epochs: dict[str, str]) -> None:
        self.ipam, self.policy, self.nodes, self.feed, self.epochs = ipam, policy, nodes, feed, epochs
        self.ownership = ownership_of(feed)

    async def block(self, cidr: str, node: str, epoch: int = 5) -> None:
        network = ip_network(cidr)
        await self.ipam.bucket(BLOCKS).put(codec.block_key(network), Block(network, "p", node, f"u-{node}", epoch, "n"))

    async def claim(self, address: str, node: str, epoch: int = 5) -> None:
        where = ip_address(address)
        held = Claim(where, Owner("shop", "StatefulSet", "db", 0), node, "u", "c", "eth0", epoch, "n")
        await self.ipam.bucket(CLAIMS).put(codec.address_segment(where), held)

    async def whole(self, *buckets: Bucket) -> None:
        for bucket in buckets or (BLOCKS, CLAIMS):
            await self.ipam.bucket(bucket).put(complete_key(), Complete(epoch=self.epochs[bucket.name]))

    async def residents(self, node: str, *identities: int) -> None:
        value = Residents(identities=identities, revision=Revision(epoch="e", sequence=1))
        await self.policy.bucket(IDENTITIES).put(residents_key(codec.encode_segment(node)), value)

    async def residents_complete(self, *scopes: str) -> None:
        for scope in scopes or (RESIDENTS_SCOPE, ""):
            await self.policy.bucket(IDENTITIES).put(complete_key(scope), Complete(epoch=self.epochs["identities"]))

    async def endpoint(
        self, writer: str, address: str, *, name: str = "", epoch: int = 5, under: str = "", identity: int = 1001
    ) -> None:
        where = ip_address(address)
        value = Endpoint(name or writer, where, "shop", f"of-{writer}", "u", identity, b"\2\0\0\0\0\1", epoch, 1)
        key = endpoint_at(writer, ip_address(under or address))
        await self.nodes[writer].bucket(ENDPOINTS).put(key, value)

    @property
    def accepted(self) -> dict[str, str]:
        """Address → node."""
        return {str(one.address): one.node for one in self.ownership.now.endpoints}

    @property
    def rejected(self) -> set[str]:
        return {str(rejection.address) for rejection in self.ownership.now.rejections}


@pytest.fixture
async def world(bus_for: BusFor, buckets: dict[str, str]) -> World:
    n1 = await bus_for("dataplane", "n1")
    others = {name: await bus_for("dataplane", name) for name in ("n2", "n3")}
    world = World(await bus_for("ipam"), await bus_for("policy"), others, Feed(n1, "n1"), buckets)
    await world.residents("n2", 1001)
    await world.residents("n3", 1001)
    await world.residents_complete()
    await world.block("10.244.0.0/26", "n1")
    await world.block("10.244.0.64/26", "n2")
    await world.block("10.244.1.0/26", "_ipam")
    return world


async def test_a_node_speaks_of_what_it_holds(world: World) -> None:
    await world.whole()
    await world.claim(KEPT, "n3")
    await world.endpoint("n2", THEIRS)
    await world.endpoint("n3", KEPT)
    await until(lambda: world.accepted == {THEIRS: "n2", KEPT: "n3"})
    assert not world.ownership.now.rejections


async def test_it_does_not_speak_of_others(world: World) -> None:
    await world.whole()
    await world.claim(KEPT, "n2")
    await world.endpoint("n2", THEIRS)
    await world.endpoint("n3", THEIRS, epoch=1 << 40)  # greater than the true one's
    await world.endpoint("n3", KEPT, epoch=1 << 40)
    await world.endpoint("n3", "10.244.0.66", name="n2")  # in the other's name
    await world.endpoint("n3", "10.244.0.67", name="n" * 1500)
    await world.endpoint("n3", "192.0.2.1", under="10.244.0.68")
    await until(lambda: len(world.ownership.now.rejections) == 5)
    assert world.accepted == {THEIRS: "n2"}
    assert world.ownership.now.whole
    assert not world.ownership.now.undecided


async def test_an_endpoint_that_is_seen_first_counts_as_soon_as_its_block_is(world: World) -> None:
    await world.whole()
    await world.endpoint("n3", "10.244.0.130")
    await until(lambda: world.rejected == {"10.244.0.130"})
    await world.block("10.244.0.128/26", "n3")
    await until(lambda: world.accepted == {"10.244.0.130": "n3"}, 0.5)


async def test_a_kept_address_moves_with_its_claim(world: World) -> None:
    await world.whole()
    await world.claim(KEPT, "n2", epoch=5)
    await world.endpoint("n2", KEPT, epoch=5)
    await until(lambda: world.accepted == {KEPT: "n2"})
    await world.claim(KEPT, "n3", epoch=6)
    await until(lambda: not world.accepted)
    assert world.ownership.now.rejections[0].leftover, "n2 may just be down"
    await world.endpoint("n3", KEPT, epoch=6)
    await until(lambda: world.accepted == {KEPT: "n3"})


async def test_a_block_that_changes_hands_takes_its_endpoints_along(world: World) -> None:
    await world.whole()
    await world.endpoint("n2", THEIRS)
    await until(lambda: world.accepted == {THEIRS: "n2"})
    await world.block("10.244.0.64/26", "n3", epoch=6)
    await until(lambda: world.rejected == {THEIRS})
    await world.endpoint("n3", THEIRS, epoch=6)
    await until(lambda: world.accepted == {THEIRS: "n3"})


@pytest.mark.parametrize("lacking", [BLOCKS, CLAIMS])
async def test_nothing_is_decided_before_both_are_whole(world: World, lacking: Bucket) -> None:
    await world.whole(*({BLOCKS, CLAIMS} - {lacking}))
    await world.endpoint("n3", "10.244.0.130")
    await until(lambda: world.ownership.now.undecided == {ip_address("10.244.0.130")})
    await world.whole(lacking)
    await until(lambda: not world.ownership.now.undecided)
    assert world.rejected == {"10.244.0.130"}


async def test_what_was_known_stays_when_the_buckets_are_made_again(world: World, nats_server: NatsServer) -> None:
    await world.whole()
    await world.claim(KEPT, "n3")
    await world.endpoint("n2", THEIRS)
    await world.endpoint("n3", KEPT)
    before = {THEIRS: "n2", KEPT: "n3"}
    await until(lambda: world.accepted == before)
    first = world.feed.blocks.epoch
    nats_server.kill()
    shutil.rmtree(nats_server.folder / "store")
    nats_server.start()
    async with bus_of(nats_server, "cluster") as cluster:
        world.epochs = await cluster.make_buckets()
    await until(lambda: world.ipam.connected and all(bus.connected for bus in world.nodes.values()), 10)
    await world.endpoint("n2", THEIRS)
    await world.endpoint("n3", KEPT)
    deadline = time.monotonic() + 20
    while world.feed.blocks.epoch in ("", first) or not world.feed.blocks.synced or not world.feed.endpoints.synced:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await until(lambda: world.accepted == before, 20)
    assert not world.ownership.now.whole
    await world.block("10.244.0.64/26", "n3", epoch=9)  # what is written anew counts at once
    await until(lambda: world.accepted == {KEPT: "n3"}, 15)
    assert world.ownership.now.undecided == {ip_address(THEIRS)}
    await world.whole()
    await world.residents("n2", 1001)
    await world.residents("n3", 1001)
    await world.residents_complete()
    await until(lambda: world.ownership.now.whole, 15)
    await until(lambda: not world.accepted, 20)


async def test_a_block_that_cannot_be_read_takes_nothing_away(world: World) -> None:
    await world.whole()
    await world.endpoint("n2", THEIRS)
    await until(lambda: world.accepted == {THEIRS: "n2"})
    stream = BLOCKS.stream
    subject = f"$KV.{BLOCKS.on_server}.{codec.block_key(ip_network('10.244.0.64/26'))}"
    await world.ipam.connection.call(subject, b"\xc1", timeout=2, headers={jetstream.EXPECTED_STREAM: stream})
    await until(lambda: not world.ownership.now.whole)
    assert world.accepted == {THEIRS: "n2"}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long an identity that nobody vouches for stays undecided."""
    monkeypatch.setattr(ownership, "LASTING", 0.3)
    return 0.3


async def test_an_identity_counts_where_a_pod_has_it(world: World, brief: float) -> None:
    await world.whole()
    await world.endpoint("n2", THEIRS)
    await world.endpoint("n2", "10.244.0.66", identity=2002)  # of a pod on another node
    await world.endpoint("n2", "10.244.0.67", identity=int(Reserved.HOST))
    await until(lambda: world.rejected == {"10.244.0.66", "10.244.0.67"})
    assert world.accepted == {THEIRS: "n2"}
    await asyncio.sleep(brief)
    assert not world.ownership.now.undecided
    reported = Reported()
    for second in (0.0, LASTING):
        reported.reporter.report(world.ownership.now, second)
    assert sorted(reported.faults) == [
        "node n2 publishes a pod at 10.244.0.66, which is not believed: no pod of n2 has identity 00000000000007d2",
        "node n2 publishes a pod at 10.244.0.67, which is not believed: identity 1 is one that no pod has",
    ]
    await world.residents("n2", 1001, 2002)
    await until(lambda: world.accepted == {THEIRS: "n2", "10.244.0.66": "n2"}, 0.5)


async def test_a_reserved_identity_counts_nowhere_even_if_it_were_a_residents(world: World) -> None:
    await world.whole()
    await world.residents("n2", 1, 2, 1001)
    await world.endpoint("n2", THEIRS, identity=int(Reserved.WORLD))
    await until(lambda: world.rejected == {THEIRS})


async def test_an_identity_that_is_seen_first_is_undecided_for_a_moment(world: World) -> None:
    """A pod is relabelled, and its new identity overtakes the residents: what was believed is not taken back."""
    await world.whole()
    await world.endpoint("n2", THEIRS)
    await until(lambda: world.accepted == {THEIRS: "n2"})
    await world.endpoint("n2", THEIRS, identity=3003)
    await until(lambda: not world.accepted)
    assert world.ownership.now.undecided == {ip_address(THEIRS)}
    await world.residents("n2", 1001, 3003)
    await until(lambda: world.accepted == {THEIRS: "n2"}, 0.5)
    assert not world.ownership.now.undecided


async def test_before_residents_are_whole_nothing_new_is_accepted(bus_for: BusFor, buckets: dict[str, str]) -> None:
    n1 = await bus_for("dataplane", "n1")
    others = {name: await bus_for("dataplane", name) for name in ("n2", "n3")}
    world = World(await bus_for("ipam"), await bus_for("policy"), others, Feed(n1, "n1"), buckets)
    await world.block("10.244.0.64/26", "n2")
    await world.whole()
    await world.residents("n2", 1001)
    await world.endpoint("n2", THEIRS)
    await world.endpoint("n2", "10.244.0.66", identity=2002)
    await until(lambda: world.ownership.now.undecided == {ip_address("10.244.0.66")})
    assert world.accepted == {THEIRS: "n2"}
    assert not world.ownership.now.whole
    await world.residents_complete()
    await until(lambda: world.ownership.now.whole)
    assert world.accepted == {THEIRS: "n2"}


async def test_a_policy_of_before_residents_is_not_asked_for_them(bus_for: BusFor, buckets: dict[str, str]) -> None:
    n1 = await bus_for("dataplane", "n1")
    world = World(
        await bus_for("ipam"),
        await bus_for("policy"),
        {"n2": await bus_for("dataplane", "n2")},
        Feed(n1, "n1"),
        buckets,
    )
    await world.block("10.244.0.64/26", "n2")
    await world.whole()
    await world.residents_complete("")
    await world.endpoint("n2", THEIRS)
    await until(lambda: world.accepted == {THEIRS: "n2"})
    await world.residents_complete(RESIDENTS_SCOPE)
    await until(lambda: not world.accepted)


async def test_residents_that_cannot_be_read_take_nothing_away(world: World) -> None:
    await world.whole()
    await world.endpoint("n2", THEIRS)
    await until(lambda: world.accepted == {THEIRS: "n2"})
    stream = IDENTITIES.stream
    subject = f"$KV.{IDENTITIES.on_server}.{residents_key('n2')}"
    await world.policy.connection.call(subject, b"\xc1", timeout=2, headers={jetstream.EXPECTED_STREAM: stream})
    await until(lambda: residents_key("n2") in world.feed.identities.unreadable)
    assert world.accepted == {THEIRS: "n2"}


def rejection(address: str, writer: str = "n3", *, leftover: bool = False) -> Rejection:
    return Rejection(writer, ip_address(address), "why", leftover)


class Reported:
    def __init__(self) -> None:
        self.lines, self.faults = Lines(), list[str]()
        self.reporter = Reporter(Log("dataplane", stream=self.lines), self._publish)  # type: ignore[arg-type]

    def _publish(self, fault: str, _remedy: str) -> None:
        self.faults.append(fault)

    def look(self, at: float, *rejections: Rejection, whole: bool = True) -> int:
        self.reporter.report(Accepted(rejections=rejections, whole=whole), at)
        return len(self.faults)


def test_a_lie_is_reported_once_when_it_has_lasted() -> None:
    reported = Reported()
    assert reported.look(0, rejection(MINE)) == 0
    assert reported.look(LASTING - 0.1, rejection(MINE)) == 0
    assert reported.look(LASTING, rejection(MINE)) == 1
    assert reported.look(LASTING * 9, rejection(MINE)) == 1
    assert f"node n3 publishes a pod at {MINE}" in reported.faults[0]
    (line,) = reported.lines.named("endpoint-refused")
    assert (line["writer"], line["address"], line["why"]) == ("n3", MINE, "why")
    assert reported.look(100) == 1
    assert reported.look(101, rejection(MINE)) == 1
    assert reported.look(101 + LASTING, rejection(MINE)) == 2


def test_what_is_no_lie_is_not_reported() -> None:
    reported = Reported()
    for second in range(60):
        assert reported.look(second, rejection(MINE, leftover=True)) == 0
        assert reported.look(second, rejection(THEIRS), whole=False) == 0
    for second in range(0, 120, 2):  # each lasts a moment: a block is seen after its first pod
        assert reported.look(second, rejection(f"10.244.0.{second}")) == 0


def test_who_lies_a_lot_is_reported_a_few_times() -> None:
    reported = Reported()
    many = [rejection(f"10.244.0.{number}") for number in range(200)]
    reported.look(0, *many)
    assert reported.look(LASTING, *many, rejection(THEIRS, "n2")) == REPORTED_OF_A_NODE
    assert reported.look(LASTING * 2, *many, rejection(THEIRS, "n2")) == REPORTED_OF_A_NODE + 1
