"""What a copy of ``policy`` takes for published: its own write only until the mirror has got there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from proto.codec import identity_key
from proto.policy import CompiledPolicy, Revision
from proto.subjects import RULES
from services.policy.core.plan import Step
from services.policy.publish import Fence, Writer
from tests.natsd import NatsServer, bus_of
from tests.shell.policy.town import Town, town_of

KEY = identity_key(5)


class _Open(Fence):
    """Lets everything through."""

    def __init__(self) -> None:
        pass

    async def check(self, epoch: str) -> None:
        pass


@pytest_asyncio.fixture
async def town(nats_server: NatsServer) -> AsyncIterator[Town]:
    async with town_of(nats_server) as made:
        yield made


async def test_what_another_copy_deleted_is_not_what_was_written_here_before(town: Town) -> None:
    """It would have been kept for ever as what is published already."""
    async with bus_of(town.server, "policy") as mine, bus_of(town.server, "policy") as theirs:
        view = mine.bucket(RULES).watch({"": CompiledPolicy}, markers=(), name="rules")
        await view.wait_synced(20)
        writer, wanted = Writer(mine.bucket(RULES), view), CompiledPolicy(5, Revision("e", 1), True, True)
        written = await writer.write(KEY, wanted, lambda _: Step.WRITE, _Open())
        assert await theirs.bucket(RULES).delete(KEY, written) is None
        await town.until(lambda: view.sequence > written, "the mirror has both")
        assert writer.latest(KEY) is None
        decided = await writer.write(KEY, wanted, lambda there: Step.WRITE if there is None else Step.KEEP, _Open())
        assert decided > written
