"""CIDR partitions in the kernel: each pod is judged by its own namespace's, and each comes into force when it may."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from proto.policy import CidrPartition, CidrSet, Direction, Revision
from services.dataplane.core.policy.cidr_maps import cidrs_of, fitting, namespace_hash
from services.dataplane.policy.partitions import Partitions
from tests.bpf import frames
from tests.bpf.frames import SYN, TCP
from tests.bpf.world import REDIRECT, PeerKind, World

pytestmark = pytest.mark.privileged
PEER = {4: "192.0.2.9", 6: "2001:db8::9"}
WIDE = {4: "192.0.2.0/24", 6: "2001:db8::/64"}


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_is_judged_by_the_cidr_sets_of_its_own_namespace(world: World, version: int) -> None:
    mine, theirs = namespace_hash("mine"), namespace_hash("theirs")
    world.isolate(world.b.identity, ingress=True, namespace=mine)
    world.rule(world.b, Direction.INGRESS, PeerKind.CIDR_SET, 5)
    segment = frames.tcp(20_000, 80, SYN)
    packet = frames.ip(PEER[version], str(world.b.address(version)), TCP, segment)
    world.cidr(WIDE[version], 5, theirs)
    world.cidr(WIDE[version], 5)
    assert world.from_wire(packet).action != REDIRECT, "another namespace's prefix says nothing here"
    world.cidr(WIDE[version], 5, mine)
    assert world.from_wire(packet).action == REDIRECT
    world.cidr(f"{PEER[version]}/{32 if version == 4 else 128}", 0, mine)
    again = frames.ip(PEER[version], str(world.b.address(version)), TCP, frames.tcp(20_001, 80, SYN))
    assert world.from_wire(again).action != REDIRECT, "a hole in the prefix"


def cut(space: str, sequence: int, *entries: str) -> CidrPartition:
    pairs = (text.split("=") for text in entries)
    prefixes = tuple(CidrSet(ip_network(prefix), int(number)) for prefix, number in pairs)
    return CidrPartition(Revision(epoch="e", sequence=sequence), prefixes, space, f"{entries}")


def at(sequence: int) -> Revision:
    return Revision(epoch="e", sequence=sequence)


class Reported:
    """What the feed says, and the keeper that follows it."""

    def __init__(self, world: World, room: int = 100) -> None:
        self.world, self.now = world, dict[str, CidrPartition]()
        self.view = SimpleNamespace(synced=True)
        feed: Any = SimpleNamespace(partitions=lambda: dict(self.now), rules_view=self.view)
        self.reconciler = Partitions(world.tables, feed, self.make_room, room)

    async def make_room(self, asked: Mapping[str, int]) -> None:
        self.asked = dict(asked)

    def put(self, reached: Revision | None, namespaces: Collection[str] | None = None) -> int:
        return asyncio.run(self.reconciler.put(reached, namespaces))

    def says(self, *partitions: CidrPartition) -> bool:
        """Whether the kernel holds exactly these."""
        wanted = {key: number for one in partitions for key, number in cidrs_of(one).items()}
        return self.world.tables.cidrs.items() == wanted


def test_each_comes_into_force_when_its_rules_are_there_and_costs_what_it_has(world: World) -> None:
    reported = Reported(world)
    x, y, more = cut("x", 3, "10.0.0.0/8=1", "10.1.0.0/16=0"), cut("y", 5, "::/0=2"), cut("x", 7, "10.0.0.0/8=1")
    reported.now = {"x": x, "y": y}
    assert reported.put(None) == 0
    assert reported.put(at(3)) == 2
    assert reported.says(x), "y's rules are not there yet"
    assert reported.put(at(6)) == 1
    assert reported.says(x, y)
    reported.now = {"x": more, "y": y}
    assert reported.put(at(6)) == 0
    assert reported.says(x, y), "what is in force stays so"
    assert reported.put(at(7)) == 1
    assert reported.says(more, y)
    reported.now, reported.view.synced = {"y": y}, False
    assert reported.put(at(8)) == 0, "what is missing from a view that is not in sync may be there"
    reported.view.synced = True
    assert reported.put(at(8)) == 1
    assert reported.says(y)
    again = Reported(world)
    again.now = {"y": y}
    assert again.put(at(4)) == 0
    assert again.says(y), "an agent that begins leaves what the kernel holds until it knows better"
    again.now = {}
    assert again.put(None) == 1
    assert again.says()


def test_the_largest_namespace_goes_without_and_comes_back_when_there_is_room(world: World) -> None:
    reported = Reported(world, room=4)
    big, small = cut("big", 1, "10.0.0.0/8=1", "11.0.0.0/8=2", "12.0.0.0/8=3"), cut("small", 1, "10.0.0.0/8=4")
    reported.now = {"big": big, "small": small}
    reported.put(at(1))
    assert reported.says(big, small)
    reported.now["more"] = more = cut("more", 2, "13.0.0.0/8=5")
    reported.put(at(2))
    assert reported.says(small, more)
    assert reported.reconciler.without() == {"big": 3}
    assert reported.asked == {"am_cidrs": 2 * 5}
    del reported.now["small"]
    reported.put(at(2))
    assert reported.says(big, more)


@pytest.mark.parametrize("seed", range(6))
def test_reported_only_what_changed_it_holds_what_a_look_at_all_gives(world: World, seed: int) -> None:
    """Partitions come, change and go, rules get further or are not known, the view is in sync or not: in any order."""
    rng, reported = random.Random(seed), Reported(world, room=7)
    in_force: dict[str, CidrPartition] = {}
    changed: set[str] = set()
    for sequence in range(2, 80):
        name = rng.choice("uvwxyz")
        match rng.randrange(5):
            case 0:
                reported.now.pop(name, None)
                changed.add(name)
            case 1 | 2:
                prefixes = [f"10.{number}.0.0/16={sequence}" for number in range(rng.randint(1, 4))]
                reported.now[name] = cut(name, sequence, *prefixes)
                changed.add(name)
            case 3:
                reported.view.synced = not reported.view.synced
            case _:
                pass
        if rng.random() < 0.3:
            continue  # more is gathered before a pass
        reached = rng.choice([None, at(sequence), at(sequence - 5)])
        in_force = {one: own for one, own in in_force.items() if one in reported.now or not reported.view.synced}
        if reached is not None:
            in_force |= {one: own for one, own in reported.now.items() if reached.covers(own.revision)}
        reported.put(reached, changed)
        changed = set()
        taken = fitting(in_force, 7)
        assert reported.says(*(in_force[one] for one in taken))
        assert reported.reconciler.without().keys() == in_force.keys() - taken
        assert reported.asked == {"am_cidrs": 2 * sum(len(one.prefixes) for one in in_force.values())}
        if rng.random() < 0.1:
            reported.view.synced = True
            reported.put(at(sequence))
            reported = _again(reported)
            reported.put(at(sequence))
            in_force = dict(reported.now)
            assert reported.says(*(in_force[one] for one in fitting(in_force, 7)))


def _again(before: Reported) -> Reported:
    """An agent that has been started again, with the same view."""
    reported = Reported(before.world, room=7)
    reported.now.update(before.now)
    return reported


def test_one_change_looks_at_one_partition_and_a_foreign_key_gives_none(world: World) -> None:
    reported = Reported(world, room=1 << 20)
    reported.now = {f"n{number}": cut(f"n{number}", 1, "10.0.0.0/8=1") for number in range(300)}
    reported.put(at(1))
    before = reported.reconciler.visits
    reported.now["n7"] = cut("n7", 2, "11.0.0.0/8=1")
    assert reported.put(at(1), {"n7"}) == 0
    assert reported.put(at(2), ()) == 2
    assert reported.put(at(2), ()) == 0
    assert reported.reconciler.visits - before == 2
    reported.now["n8"] = cut("n9", 3, "12.0.0.0/8=1")
    assert reported.put(at(3), {"n8"}) == 1, (
        "what stands under a namespace's key and names another is no partition of it"
    )
    reported.now = {}
    reported.put(None)
    assert reported.says()
