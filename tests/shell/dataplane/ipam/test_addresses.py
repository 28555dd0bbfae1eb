"""The node's conversation with ipam, on a real bus and a real journal: what a report may take away."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from chassis.faults import Refused, Unavailable
from chassis.runtime.reconcile import Dirty, Done
from chassis.telemetry.health import Health
from chassis.telemetry.log import Log
from kit.pools import judge_pools
from proto.addresses import AcknowledgedEndpoints, Block
from proto.net import Family
from proto.objects import Node as KubernetesNode
from proto.requests import BlockGrant, BlockReportAnswer, BlockReportRequest, BlockRequest
from proto.subjects import IPAM_BLOCK, IPAM_REPORT
from services.dataplane.core.cni.request import CniError
from services.dataplane.core.ipam.addressing import AddressPlan, Supply, supply_of
from services.dataplane.core.ipam.journal import COOLDOWN, Ask, Grant
from services.dataplane.ipam import addresses
from services.dataplane.ipam.addresses import AddressBook
from services.dataplane.ipam.journal import Journal
from services.dataplane.ipam.provision import Provision
from tests.conftest import BusFor
from tests.core.dataplane.notation import pool

NAMED = ("10.244.0.0/26", "10.244.7.0/26", "10.9.0.0/26")


def supply(cidr: str, *named: str) -> Supply:
    """What the node gives from when this is its only pool and its Node object names these blocks."""
    blocks = tuple(ip_network(one) for one in named)
    return supply_of(judge_pools([pool(cidr)]), KubernetesNode(name="n1", uid="u1", blocks=blocks))


SUPPLY = supply("10.244.0.0/16", *NAMED)
PLAN = AddressPlan(families=(4,))
Answer = Callable[[BlockReportRequest], Awaitable[BlockReportAnswer]]


def block(cidr: str, epoch: int = 5) -> Block:
    return Block(ip_network(cidr), "v4", "n1", "u1", epoch, f"nonce-{epoch}")


class Clock:
    """The journal's, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A node's address book; each :meth:`start` is another life of its agent, on the same disk or on an empty one."""

    def __init__(self, bus_for: BusFor, folder: Path) -> None:
        self._bus_for = bus_for
        self.folder = folder
        self.clock = Clock()
        self.answer: Answer
        self.book: AddressBook
        self.granted: Block
        self.silent = False
        self.supply = SUPPLY

    async def start(self) -> AddressBook:
        journal = Journal.open(self.folder, node="n1", boot="b1", clock=self.clock)
        bus, log = await self._bus_for("dataplane", "n1"), Log("dataplane")
        self.book = AddressBook(bus, journal, log, "n1", spare=8, supply=lambda: self.supply)
        return self.book

    def observe(self, supplied: Supply) -> None:
        """The Node object, or a pool, is another from now on."""
        self.supply = supplied
        self.book.observe_node()

    async def ask(self, request: BlockReportRequest, _node: str) -> BlockReportAnswer:
        """What ipam is asked."""
        return await self.answer(request)

    async def grant(self, request: BlockRequest, _node: str) -> BlockGrant:
        """The next block, under the nonce that was asked with."""
        self.granted = Block(ip_network("10.244.7.0/26"), "v4", "n1", "u1", 8, request.nonce)
        if self.silent:
            raise Refused("busy", "the grant was lost on its way", retry=True)
        return BlockGrant(self.granted)

    async def reported(self, *confirmed: Block) -> None:
        """A report that is answered so."""

        async def answer(_: BlockReportRequest) -> BlockReportAnswer:
            return BlockReportAnswer(confirmed)

        self.answer = answer
        await self.book.report("u1")

    async def lose_journal(self) -> None:
        """The agent stops, its disk is lost, it starts again."""
        await self.book.journal.close()
        shutil.rmtree(self.folder)
        await self.start()

    async def first_free(self) -> str:
        """The address that a pod would get from what is held; empty when it would have to wait."""
        ask = Ask(container="c", interface="eth0", namespace="d", pod="p", pod_uid="u", nonce="n")
        given = await self.book.journal.allocate((4,), ask)
        if not isinstance(given, Grant):
            return ""
        await self.book.journal.release(ask.attachment)
        return str(given.leases[0].address)

    def held(self) -> dict[str, int]:
        return {str(cidr): held.epoch for cidr, held in self.book.journal.ledger.blocks.items()}


@pytest_asyncio.fixture
async def node(bus_for: BusFor, tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(bus_for, tmp_path / "state")
    ipam = await bus_for("ipam")
    await ipam.serve_nodes(IPAM_REPORT, BlockReportRequest, made.ask)
    await ipam.serve_nodes(IPAM_BLOCK, BlockRequest, made.grant)
    await made.start()
    yield made
    await made.book.journal.close()


async def test_what_another_holds_is_given_up(node: Node) -> None:
    mine, lost = block("10.244.0.0/26"), block("10.244.0.64/26")
    for one in (mine, lost):
        await node.book.journal.hold_block(one)
    await node.reported(mine)
    assert node.held() == {"10.244.0.0/26": 5}


async def test_a_block_that_comes_while_the_answer_is_on_its_way_stays(node: Node) -> None:
    mine, again, lost = (block(f"10.244.0.{number}/26") for number in (0, 64, 128))
    for one in (mine, again, lost):
        await node.book.journal.hold_block(one)

    async def answer(request: BlockReportRequest) -> BlockReportAnswer:
        assert request.blocks == (mine, again, lost)
        await node.book.journal.hold_block(block("10.244.0.192/26", 7))
        await node.book.journal.hold_block(msgspec.structs.replace(again, epoch=9, nonce="granted anew"))
        return BlockReportAnswer((mine,))

    node.answer = answer
    await node.book.report("u1")
    assert node.held() == {"10.244.0.0/26": 5, "10.244.0.64/26": 9, "10.244.0.192/26": 7}


async def test_at_the_very_first_start_nothing_rests(node: Node) -> None:
    await node.reported()
    await node.book.request_block(4, "u1")
    assert await node.first_free() == "10.244.7.0"


async def test_after_a_lost_journal_its_blocks_rest_and_a_new_one_bridges_the_time(node: Node) -> None:
    mine = block("10.244.0.0/26")
    await node.reported()
    await node.book.journal.hold_block(mine)
    assert await node.first_free() == "10.244.0.0", "and it is freed at once: nobody else may have it now"
    await node.lose_journal()
    await node.reported(mine)
    assert await node.first_free() == ""
    assert node.book.wants_block() == (4,)
    await node.book.request_block(4, "u1")
    assert await node.first_free() == "10.244.7.0"
    await node.book.journal.give_block(node.granted.cidr)
    node.clock.now += COOLDOWN - 0.1
    assert await node.first_free() == ""
    node.clock.now += 0.1
    assert await node.first_free() == "10.244.0.0"


async def test_a_journal_that_is_whole_lets_nothing_rest(node: Node) -> None:
    """The answer tells of a block that it never heard of: its grant was lost on the way, so nobody used it."""
    await node.reported()
    await node.book.journal.close()
    await node.start()
    await node.reported(block("10.244.0.0/26"))
    assert await node.first_free() == "10.244.0.0"


async def test_a_grant_that_was_lost_before_the_first_report_needs_no_rest(node: Node) -> None:
    node.silent = True
    with pytest.raises(Refused):
        await node.book.request_block(4, "u1")
    await node.reported(node.granted)
    assert await node.first_free() == "10.244.7.0"


async def test_a_block_of_a_disabled_pool_gives_nothing_while_another_pool_does(node: Node) -> None:
    await node.reported()
    await node.book.journal.hold_block(block("10.9.0.0/26"))
    old = Ask(container="old", interface="eth0", namespace="d", pod="old", pod_uid="old", nonce="n")
    new = Ask(container="new", interface="eth0", namespace="d", pod="new", pod_uid="new", nonce="n")
    node.observe(supply("10.9.0.0/16", *NAMED))
    (before,) = await node.book.acquire(PLAN, old, "u1")
    assert str(before.address) == "10.9.0.0"
    node.observe(SUPPLY)
    assert not node.book.has_blocks(), "so the node is not ready yet"
    assert node.book.wants_block() == (4,)
    (given,) = await node.book.acquire(PLAN, new, "u1")
    assert str(given.address) == "10.244.7.0"
    assert node.book.has_blocks()
    assert await node.book.acquire(PLAN, old, "u1") == (before,), "it keeps its own"


async def test_a_block_gives_addresses_once_the_node_object_names_it(node: Node) -> None:
    """Until then it counts as one that is on its way: no other is asked for, and an ADD waits for this one."""
    await node.reported()
    node.observe(supply("10.244.0.0/16"))
    one, two = (asyncio.ensure_future(node.book.acquire(PLAN, Withheld.pod(number), "u1")) for number in (1, 2))
    async with asyncio.timeout(10):
        while "10.244.7.0/26" not in node.held():
            await asyncio.sleep(0.01)
    assert (node.book.wants_block(), node.book.is_short(4), node.book.has_blocks()) == ((), False, False)
    node.observe(supply("10.244.0.0/16", "10.244.9.0/26"))
    await asyncio.sleep(0)
    assert not any(add.done() for add in (one, two)), "another block was named"
    node.observe(supply("10.244.0.0/16", "10.244.7.0/26"))
    given = {str(lease.address) for leases in await asyncio.gather(one, two) for lease in leases}
    assert given == {"10.244.7.0", "10.244.7.1"}
    assert node.book.has_blocks()


async def test_while_nobody_names_it_an_add_is_refused_and_holds_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "ASK_SECONDS", 0.2)
    await node.reported()
    await node.book.request_block(4, "u1")
    node.observe(supply("10.244.0.0/16"))
    with pytest.raises(CniError, match=r"10.244.7.0/26 gives addresses once annotation airmesh.io/blocks of Node n1"):
        await node.book.acquire(PLAN, Withheld.pod(1), "u1")
    assert not node.book.journal.ledger.by_address


class Withheld:
    """A node whose block was used whole, and whose pods left while another node followed nothing."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.book = node.book

    async def begin(self, pods: int, left: int) -> None:
        """So many pods came to a block of 64, and so many of them went and have rested."""
        book, clock = self.book, self.node.clock
        await book.journal.hold_block(block("10.244.0.0/26"))
        for number in range(pods):
            await book.journal.allocate((4,), self.pod(number), wait=False)
        book.observe_published(frozenset(book.journal.ledger.by_address), "e", 1, 100)
        for number in range(left):
            await book.journal.release(self.pod(number).attachment)
        book.observe_published(frozenset(book.journal.ledger.by_address), "e", 1, 200)
        clock.now += COOLDOWN

    def acknowledge(self, sequence: int) -> None:
        self.book.departures.acknowledged = AcknowledgedEndpoints("e", sequence)

    @staticmethod
    def pod(number: int) -> Ask:
        return Ask(container=f"c{number}", interface="eth0", namespace="d", pod="p", pod_uid="u", nonce="n")

    async def given(self, number: int = 99) -> str:
        """What an ADD gets."""
        leases = await self.book.acquire(PLAN, self.pod(number), "u1")
        return str(leases[0].address)


@pytest.mark.parametrize(
    ("pods", "left", "acknowledged", "wants"),
    [
        (64, 40, 199, (4,)),
        (64, 40, 200, ()),
        (64, 64, 199, (4,)),
        (50, 40, 199, ()),
    ],
    ids=["withheld", "known to all", "a whole block", "enough that was never used"],
)
async def test_a_block_is_asked_for_in_the_stead_of_what_a_node_may_not_know_of(
    node: Node, pods: int, left: int, acknowledged: int, wants: tuple[int, ...]
) -> None:
    stage = Withheld(node)
    await stage.begin(pods, left)
    stage.acknowledge(acknowledged)
    assert stage.book.wants_block() == wants
    assert not stage.book.is_short(4)


async def test_no_more_than_one_block_lies_idle_for_a_node_that_is_cut_off(node: Node) -> None:
    stage = Withheld(node)
    await stage.begin(64, 64)
    stage.acknowledge(199)
    await node.book.request_block(4, "u1")
    assert await stage.given() == "10.244.7.0", "the new block first"
    for number in range(100, 160):
        await node.book.journal.allocate((4,), stage.pod(number), wait=False)
    assert node.book.wants_block() == (4,), "64 lie idle and 3 were never used"
    for number in range(100, 113):
        await node.book.journal.release(stage.pod(number).attachment)
    node.book.observe_published(frozenset(node.book.journal.ledger.by_address), "e", 1, 200)
    node.clock.now += COOLDOWN
    assert node.book.wants_block() == (), "a block's worth and the spare lie idle: they are given"
    given = [await stage.given(number) for number in range(200, 204)]
    assert given == ["10.244.7.61", "10.244.7.62", "10.244.7.63", "10.244.0.0"]


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "no answer"])
async def test_without_a_block_in_their_stead_they_are_given_and_nobody_is_alarmed(
    node: Node, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Withheld(node)
    await stage.begin(64, 40)
    blocks = Health().require("blocks")
    faults: list[str] = []
    asked: list[Family] = []
    cluster = SimpleNamespace(cluster_uid="c")
    feed: Any = SimpleNamespace(
        node="n1",
        blocks=SimpleNamespace(epoch=""),
        supply=lambda: node.supply,
        node_object=lambda: KubernetesNode(name="n1", uid="u1"),
        knowledge=lambda: cluster,
        acknowledged=lambda: AcknowledgedEndpoints("e", 199),
    )
    bus: Any = SimpleNamespace(report_fault=lambda fault, _: faults.append(fault))

    async def none(family: Family, _uid: str) -> None:
        asked.append(family)
        raise Unavailable("no answer") if silent else Refused("pool-exhausted", "every block is held")

    monkeypatch.setattr(node.book, "request_block", none)
    provision = Provision(bus, Log("test"), feed, node.book, blocks, lambda: None)
    assert await provision.apply(Dirty(full=True)) == Done()
    assert (asked, faults, blocks.ok, await stage.given()) == ([4], [], True, "10.244.0.0")


async def test_what_all_know_is_given_before_what_has_rested_longer(node: Node) -> None:
    stage = Withheld(node)
    await stage.begin(64, 2)
    stage.book.observe_published(frozenset({ip_address("10.244.0.0")}), "e", 1, 200)
    stage.acknowledge(200)
    assert await stage.given() == "10.244.0.1", "the other is still on the bus"
