"""CIDR partitions come out with a revision that nodes get to, whatever happened before this copy may publish them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest_asyncio

from chassis.bus.client import Bus
from proto.codec import encode_segment
from proto.leases import Lease
from proto.policy import CidrPartition, CidrSet, Revision
from proto.subjects import LEASES, OBJECTS, RULES
from proto.sync import EPOCH_KEY, Epoch
from tests.natsd import NatsServer, bus_of
from tests.shell.policy.town import DB, Town, copy_of, np, town_of

KEY = "_cidrs.x"
UNSTABLE = "statefulset.kubernetes.io/pod-name"
OF_ONE_POD = {"podSelector": {"matchLabels": {UNSTABLE: "db-0"}}, "policyTypes": ["Ingress"]}


def from_block(cidr: str) -> dict[str, Any]:
    return {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}


@pytest_asyncio.fixture
async def town(nats_server: NatsServer) -> AsyncIterator[Town]:
    async with town_of(nats_server) as made:
        yield made


class Shard:
    """Who may write shard 0."""

    def __init__(self, town: Town, bus: Bus) -> None:
        self._town = town
        self.bus = bus
        self._leases = bus.bucket(LEASES)

    async def _write(self, holder: str) -> None:
        there = await self._leases.get("policy.0", Lease)
        assert there is not None
        record = Lease(holder=holder, epoch=there.value.epoch + 1, renewals=0, seconds=3600.0)
        while not isinstance(await self._leases.put("policy.0", record), int):
            pass

    async def take(self) -> None:
        """Another copy has it, which says nothing."""
        await self._write("silent")
        for attempt in range(200):
            last = await self._town.put(msgspec.structs.replace(DB, phase=f"away {attempt}"))
            await self._town.until(lambda last=last: self.reached(1, last), "the other shard goes on")  # type: ignore[misc]
            if not self.reached(0, last):
                return
        raise AssertionError("shard 0 is published all the same")

    async def free(self) -> int:
        """It is nobody's; returns the sequence of an object that was written after that."""
        await self._write("")
        return await self._town.put(msgspec.structs.replace(DB, phase="free"))

    def reached(self, shard: int, sequence: int) -> bool:
        revision = self._town.frontiers().get(shard)
        return revision is not None and revision.covers(Revision(self._town.epochs["objects"], sequence))


@asynccontextmanager
async def shard_of(town: Town) -> AsyncIterator[Shard]:
    async with bus_of(town.server, "policy") as bus:
        yield Shard(town, bus)


async def _in_force(town: Town, cidr: str, last: int) -> None:
    """What a node needs to put the partition of x in force."""
    await town.until(lambda: town.reached(last), "both frontiers")

    def covered() -> bool:
        found = town.rules.marks[KEY].value
        networks = {str(one.prefix) for one in found.prefixes}
        return networks == {cidr} and all(revision.covers(found.revision) for revision in town.frontiers().values())

    await town.until(covered, f"{cidr} is published, of a revision that the frontiers cover")


async def test_what_waited_in_an_earlier_epoch_is_published_in_this_one(town: Town) -> None:
    """It had waited with a revision of the epoch that was over, which no frontier could ever cover."""
    async with copy_of(town.server), shard_of(town) as shard:
        await town.settle(np(from_block("10.1.0.0/16")))
        await town.until(lambda: town.prefixes("x"), "the first partition")
        await shard.take()
        waits = await town.put(np(from_block("10.2.0.0/16")), np(OF_ONE_POD, "one-pod"))
        await town.until(lambda: shard.reached(1, waits), "the other shard goes on")
        await town.bus.bucket(OBJECTS).put(EPOCH_KEY, Epoch("the-next"))
        town.epochs["objects"] = "the-next"
        await town.settle(np(from_block("10.2.0.0/16")), np(OF_ONE_POD, "one-pod"))
        last = await town.put(msgspec.structs.replace(DB, phase="Running"))
        await town.until(lambda: shard.reached(1, last), "the other shard is in the new epoch")
        await _in_force(town, "10.2.0.0/16", await shard.free())

        def relevant() -> bool:
            entry = town.identities.marks.get("_relevant")
            return entry is not None and UNSTABLE in {key for _, keys in entry.value.by_namespace for key in keys}

        await town.until(relevant, "relevant keys are published too")


async def test_what_waited_longer_than_what_it_replaces_is_published(town: Town) -> None:
    """It had counted as older than what the holder before had published meanwhile, and was left for ever."""
    async with copy_of(town.server), shard_of(town) as shard:
        await town.settle(np(from_block("10.1.0.0/16")))
        await town.until(lambda: town.prefixes("x"), "the first partition")
        await shard.take()
        waits = await town.put(np(from_block("10.2.0.0/16")))
        await town.until(lambda: shard.reached(1, waits), "seen by the copy that has no say")
        later = await town.put(msgspec.structs.replace(DB, phase="Running"))
        theirs = CidrPartition(
            Revision(town.epochs["objects"], later), (CidrSet(ip_network("10.3.0.0/16"), 7),), "x", "theirs"
        )
        await shard.bus.bucket(RULES).put(f"_cidrs.{encode_segment('x')}", theirs)
        await _in_force(town, "10.2.0.0/16", await shard.free())


async def test_what_is_published_after_all_was_lost_twice_is_of_the_present_epoch(town: Town) -> None:
    """Mirrors learn of the loss one after the other, so that a pass may come in between; two copies, as they run."""
    async with copy_of(town.server), copy_of(town.server):
        await town.settle(np(from_block("10.1.0.0/16")))
        await town.until(lambda: town.rules.synced and town.prefixes("x"), "the first partition")
        for cidr in ("10.2.0.0/16", "10.3.0.0/16"):
            await town.lose("objects", "rules", "identities")
            await town.settle(np(from_block(cidr)))
            await _in_force(town, cidr, await town.put(msgspec.structs.replace(DB, phase=cidr)))
