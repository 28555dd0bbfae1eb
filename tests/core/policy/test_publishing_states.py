"""Two copies publish a namespace's CIDR partition and two frontiers through every kind of loss, as a model.

Objects change, are lost with their epoch, or are learnt late; the bucket of rules is lost, or seen late; the shards'
leases move. Whatever happened: once all is quiet, the partition is the wanted one, and of a revision that both
frontiers cover, or no node would ever put it in force. What is written, kept or yielded is :mod:`core.plan`'s own word;
the order of writing is that of ``services.policy.shards``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest

from proto.policy import CidrPartition, Frontier, Revision
from services.policy.core import plan
from services.policy.core.plan import Step

SHARDS = 2
QUIET = 8
"""Rounds in which everything is learnt and both copies have their pass."""


@dataclass
class World:
    """What there is: the objects, by what they want; what is published; who holds each shard, in which term."""

    epoch: int = 1
    sequence: int = 1
    digest: str = ""
    partition: CidrPartition | None = None
    frontiers: list[Frontier | None] = field(default_factory=lambda: [None] * SHARDS)
    holder: list[int] = field(default_factory=lambda: [0, 1])
    term: list[int] = field(default_factory=lambda: [1] * SHARDS)

    @property
    def revision(self) -> Revision:
        return Revision(epoch=str(self.epoch), sequence=self.sequence)


class Copy:
    """A copy of ``policy``: what it knows of the objects, what it has seen of the bucket, and its passes."""

    def __init__(self, number: int, world: World) -> None:
        self.number = number
        self.world = world
        self.learn()
        self.look()
        self._terms = [0] * SHARDS

    def learn(self) -> None:
        self.revision, self.digest = self.world.revision, self.world.digest

    def look(self) -> None:
        self.seen = self.world.partition

    def act(self) -> None:
        """A pass. A shard that is behind keeps nothing of the others back."""
        for shard in range(SHARDS):
            if self.world.holder[shard] == self.number:
                again = self._terms[shard] != self.world.term[shard]
                if (shard or self._write_partition(again)) and self._write_frontier(shard, again):
                    self._terms[shard] = self.world.term[shard]

    def _write_partition(self, again: bool) -> bool:
        """False: it is behind."""
        published = {} if self.seen is None else {"x": self.seen}
        wanted = {"x": self.digest} if self.digest else {}
        due = plan.partitions_due(published, wanted, self.revision.epoch)
        revisions = {name: own.revision for name, own in published.items()} if again else {}
        revisions |= dict.fromkeys(due, self.revision)
        if "x" not in revisions or (self.world.partition is None and not self.digest):
            return True
        partition = CidrPartition(revisions["x"], (), "x", self.digest)
        step = plan.deciding(plan.partition_step, partition, again=again)(self.world.partition)
        if step is Step.WRITE:
            self.world.partition = partition
        return step is not Step.YIELD

    def _write_frontier(self, shard: int, again: bool) -> bool:
        frontier = Frontier(shard, SHARDS, self.revision)
        step = plan.deciding(plan.frontier_step, frontier, again=again)(self.world.frontiers[shard])
        if step is Step.WRITE:
            self.world.frontiers[shard] = frontier
        return step is not Step.YIELD


def happens(world: World, copies: list[Copy], chance: Random) -> None:
    """One thing."""
    copy = chance.choice(copies)
    match chance.randrange(9):
        case 0 | 1:
            world.digest, world.sequence = chance.choice("abc"), world.sequence + 1
        case 2:
            world.sequence += 1
        case 3:
            world.epoch, world.sequence = world.epoch + 1, 1
        case 4:
            world.partition, world.frontiers = None, [None] * SHARDS
        case 5:
            shard = chance.randrange(SHARDS)
            world.holder[shard], world.term[shard] = copy.number, world.term[shard] + 1
        case 6:
            copy.learn()
        case 7:
            copy.look()
        case _:
            copy.act()


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happened_nodes_put_the_wanted_partition_in_force(seed: int) -> None:
    chance = Random(seed)
    for _ in range(150):
        world = World()
        copies = [Copy(number, world) for number in range(2)]
        for _ in range(chance.randrange(4, 30)):
            happens(world, copies, chance)
        for copy in copies * QUIET:
            copy.learn()
            copy.look()
            copy.act()
        partition = world.partition
        assert (partition.digest if partition is not None else "") == world.digest
        frontiers = [one.revision for one in world.frontiers if one is not None]
        assert frontiers == [world.revision] * SHARDS
        assert partition is None or all(one.covers(partition.revision) for one in frontiers)
