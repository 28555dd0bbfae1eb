"""Several copies, lost buckets, new epochs: the published state only ever goes forward, and always comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest_asyncio

from proto.policy import CompiledPolicy, Frontier, Revision
from tests.core.policy.notation import pod
from tests.natsd import NatsServer
from tests.shell.policy.town import API_TO_DB, DB, Town, copy_of, np, town_of

REPO = Path(__file__).parents[3]
DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest_asyncio.fixture
async def town(nats_server: NatsServer) -> AsyncIterator[Town]:
    async with town_of(nats_server) as made:
        yield made


@contextmanager
def process_of(server: NatsServer, name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A copy as it really runs: ``python -m services.policy``."""
    environment = {
        **os.environ,
        **server.environment("policy", AIRMESH_INSTANCE=name, AIRMESH_POLICY_LEASE_SECONDS="1.5"),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.policy"], cwd=REPO, env=environment, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait(10)


class Ratchet:
    """Notes every published revision as it is seen; they must never go back within an epoch."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.seen: dict[str, Revision] = {}
        self.faults: list[str] = []
        self.task = asyncio.create_task(self.follow())

    async def follow(self) -> None:
        cursor = self.town.rules.cursor()
        while True:
            for key in await cursor.changed():
                entry = (self.town.rules.marks if key.startswith("_") else self.town.rules.entries).get(key)
                if entry is None or not isinstance(entry.value, CompiledPolicy | Frontier):
                    continue
                now, before = entry.value.revision, self.seen.get(key)
                if before is not None and before.epoch == now.epoch and now.sequence < before.sequence:
                    self.faults.append(f"{key} went from {before.sequence} to {now.sequence}")
                self.seen[key] = now

    def stop(self) -> None:
        self.task.cancel()
        assert not self.faults


async def test_a_stopped_copy_is_replaced_by_the_other(town: Town) -> None:
    async with copy_of(town.server) as second:
        async with copy_of(town.server):
            await town.settle()
            await town.until(lambda: town.rules.synced, "synced")
        last = await town.put(np(API_TO_DB))
        await town.until(lambda: town.reached(last), "the other copy published it", 10)
        assert second.health.ready


async def test_a_killed_copy_is_replaced_within_the_lease(town: Town, tmp_path: Path) -> None:
    await town.settle()
    with process_of(town.server, "first", tmp_path / "first") as first:
        await town.until(lambda: town.rules.synced, "first has published")
        with process_of(town.server, "second", tmp_path / "second"):
            await asyncio.sleep(1.5)
            first.kill()
            last = await town.put(np(API_TO_DB))
            await town.until(lambda: town.reached(last), "taken over", 12)


async def test_a_copy_that_slept_never_puts_old_over_new(town: Town, tmp_path: Path) -> None:
    await town.settle(*(pod(f"x/p{index}", labels={"role": f"r{index}"}) for index in range(40)))
    ratchet = Ratchet(town)
    with process_of(town.server, "sleeper", tmp_path / "sleeper") as sleeper:
        await town.until(lambda: town.rules.synced, "the sleeper has published")
        with process_of(town.server, "awake", tmp_path / "awake"):
            await asyncio.sleep(1.5)
            # It learns of a policy on everything and is put to sleep in the midst of publishing it.
            await town.put(np(DENY))
            await asyncio.sleep(0.008)
            sleeper.send_signal(signal.SIGSTOP)
            await town.drop(np(DENY))
            last = await town.put(np(API_TO_DB))
            await town.until(lambda: town.reached(last), "the other took over", 12)
            after = town.policies()
            sleeper.send_signal(signal.SIGCONT)
            await asyncio.sleep(3)
            assert town.policies() == after
            assert town.reached(last)
            assert sleeper.poll() is None, (tmp_path / "sleeper").read_text()[-2000:]
    ratchet.stop()
    database = town.of("x/db")
    assert database is not None
    assert database.ingress_isolated
    assert not database.egress_isolated


async def test_lost_rules_and_identities_are_rebuilt_the_same(town: Town) -> None:
    async with copy_of(town.server):
        await town.settle(np(API_TO_DB))
        await town.until(lambda: town.rules.synced and town.identities.synced, "synced")
        before, records = town.policies(), {key: entry.value for key, entry in town.identities.entries.items()}
        old = town.rules.epoch
        await town.lose("rules", "identities")
        await town.until(lambda: town.rules.synced and town.rules.epoch != old, "rebuilt", 40)
        await town.until(lambda: town.policies() == before, "both shards' policies", 40)
        await town.until(lambda: town.identities.synced, "records rebuilt", 40)
        assert {key: entry.value for key, entry in town.identities.entries.items()} == records


async def test_another_epoch_of_objects_keeps_the_old_rules_until_the_new_are_in(town: Town) -> None:
    async with copy_of(town.server) as policy:
        await town.settle(np(API_TO_DB))
        await town.until(lambda: town.rules.synced, "synced")
        before, old = town.policies(), town.epochs["objects"]
        await town.lose("objects")
        assert town.epochs["objects"] != old
        await town.until(lambda: "objects" in policy.health.missing(), "out of sync", 40)
        await asyncio.sleep(1)
        assert town.policies() == before, "an empty bucket is no reason to open anything"
        await town.settle(np(DENY))
        last = await town.put(msgspec.structs.replace(DB, phase="Running"))
        await town.until(lambda: town.reached(last), "the new epoch is published", 30)
        database = town.of("x/db")
        assert database is not None
        assert database.egress_isolated


async def test_the_bus_restarts_and_publishing_goes_on(town: Town) -> None:
    async with copy_of(town.server):
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced")
        town.server.restart()
        await town.connected_again()
        last = await town.put(np(API_TO_DB))
        await town.until(lambda: town.reached(last), "published", 30)


async def test_a_surplus_of_copies_does_no_harm(town: Town) -> None:
    async with copy_of(town.server), copy_of(town.server), copy_of(town.server):
        await town.settle()
        await town.until(lambda: town.rules.synced, "synced", 20)
        ratchet = Ratchet(town)
        last = 0
        for index in range(30):
            last = await town.put(np(API_TO_DB if index % 2 else DENY))
        await town.until(lambda: town.reached(last), "all published", 20)
        ratchet.stop()
        database = town.of("x/db")
        assert database is not None
        assert len(database.rules) == 1
