"""The node's conversation with ipam, on a real bus and a real journal: what a report may take away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest_asyncio

from chassis.log import Log
from proto.addresses import Block
from proto.requests import BlockReportAnswer, BlockReportRequest
from proto.subjects import IPAM_REPORT
from services.dataplane.addresses import AddressBook
from services.dataplane.journal import Journal
from tests.conftest import BusFor

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

    async def start(self) -> AddressBook:
        journal = Journal.open(self.folder, node="n1", boot="b1", clock=self.clock)
        self.book = AddressBook(await self._bus_for("dataplane", "n1"), journal, Log("dataplane"), "n1", spare=8)
        return self.book

    async def ask(self, request: BlockReportRequest) -> BlockReportAnswer:
        """What ipam is asked."""
        return await self.answer(request)

    async def reported(self, *confirmed: Block) -> None:
        """A report that is answered so."""

        async def answer(_: BlockReportRequest) -> BlockReportAnswer:
            return BlockReportAnswer(confirmed)

        self.answer = answer
        await self.book.report("u1")

    def held(self) -> dict[str, int]:
        return {str(cidr): held.epoch for cidr, held in self.book.journal.ledger.blocks.items()}


@pytest_asyncio.fixture
async def node(bus_for: BusFor, tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(bus_for, tmp_path / "state")
    ipam = await bus_for("ipam")
    await ipam.serve(IPAM_REPORT, BlockReportRequest, made.ask)
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
