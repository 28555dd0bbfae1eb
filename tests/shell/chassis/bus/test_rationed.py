"""Requests of strangers: so many reach the process that answers, whoever floods; who asks wrongly learns why."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import nats
import pytest

from chassis.bus.rationed import serve_some
from chassis.faults import Refused, Unavailable
from proto import codec
from proto.admission import Admission, AdmissionRequest
from proto.requests import Reply
from proto.subjects import CLUSTER_ADMIT
from tests.conftest import BusFor
from tests.natsd import NatsServer

MOST = 4
ASKS = AdmissionRequest("n1", "dataplane", "U", "token")


class Answers:
    """What is answered, and to how many."""

    def __init__(self) -> None:
        self.asked = 0
        self.goes_on = True

    async def answer(self, asks: AdmissionRequest) -> msgspec.Struct:
        self.asked += 1
        if asks.node == "refused":
            raise Refused("wrong-node", "another\nnode")
        if asks.node == "later":
            raise Unavailable("not now")
        if asks.node == "bug":
            raise KeyError("secret")
        return Admission(asks.public)

    def serving(self, bus: Any, most: int = MOST) -> asyncio.Task[int]:
        return asyncio.create_task(
            serve_some(
                bus.connection,
                CLUSTER_ADMIT,
                AdmissionRequest,
                self.answer,
                most=most,
                goes_on=lambda: self.goes_on,
                log=bus._log,
            )
        )


async def test_of_a_flood_so_many_come_in_as_are_asked_for(nats_server: NatsServer, bus_for: BusFor) -> None:
    """The server ends the subscription: what stands behind the last of them never reaches us."""
    bus, answers = await bus_for("cluster"), Answers()
    thief = await nats.connect(nats_server.url, **nats_server.sign_in("bootstrap"))
    try:
        serving = answers.serving(bus)
        while not serving.done():
            for number in range(500):
                await thief.publish(CLUSTER_ADMIT, codec.encode(ASKS), reply=f"_INBOX.bootstrap.{number}")
            await thief.flush()
        assert (await serving, answers.asked) == (MOST, MOST)
    finally:
        await thief.close()


@pytest.mark.parametrize(
    ("node", "code", "retry"),
    [("refused", "wrong-node", False), ("later", "unavailable", True), ("bug", "internal", True), ("n1", "", False)],
)
async def test_each_is_answered_in_one_line(
    nats_server: NatsServer, bus_for: BusFor, node: str, code: str, retry: bool
) -> None:
    bus, answers = await bus_for("cluster"), Answers()
    asker = await nats.connect(nats_server.url, **nats_server.sign_in("bootstrap"))
    try:
        serving = answers.serving(bus, 1)
        said: Any = None
        while said is None:
            try:
                asks = codec.encode(msgspec.structs.replace(ASKS, node=node))
                said = await asker.request(CLUSTER_ADMIT, asks, timeout=1)
            except (nats.errors.NoRespondersError, TimeoutError):
                continue
        reply = codec.decode(Reply, said.data)
        assert (reply.ok, reply.code, reply.retry) == (not code, code, retry)
        assert "\n" not in reply.message
        assert "secret" not in reply.message
        assert await serving == 1
    finally:
        await asker.close()


async def test_it_ends_when_it_is_another_copys_task(nats_server: NatsServer, bus_for: BusFor) -> None:
    bus, answers = await bus_for("cluster"), Answers()
    serving = answers.serving(bus)
    await asyncio.sleep(0)
    answers.goes_on = False
    assert await serving == 0
    assert nats_server.pid
