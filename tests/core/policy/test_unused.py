"""Which identities linger and which are to be deleted: kept by what changes, as if computed from all there is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import pytest

from proto.identity import IdentityRecord, IdentitySet
from services.policy.core import unused as module
from services.policy.core.graph import Graph, Held
from services.policy.core.identities import Member
from services.policy.core.limits import Limits
from services.policy.core.unused import Unused
from tests.core.policy.notation import namespace, pod

FACTS = IdentitySet("x", (), (("pod", "a"),), "default")
OTHER = msgspec.structs.replace(FACTS, namespace="y")
LIMITS = Limits(identities=200)
GRACE = 60.0


def record(identity: int, facts: IdentitySet = FACTS) -> IdentityRecord:
    return Member.of(identity, facts).record(frozenset(), frozenset())


class Scratch:
    """The oracle: looks at all there is each time, and remembers only since when what is unused is so."""

    def __init__(self) -> None:
        self.since: dict[int, float] = {}

    def unused(
        self,
        now: float,
        published: Collection[int],
        records: Mapping[int, IdentityRecord],
        in_use: Mapping[int, Member],
        limits: Limits,
    ) -> tuple[set[int], set[int]]:
        """What lingers, and what is to be deleted."""
        unused = {identity for identity in published if identity not in in_use}
        for identity, one in records.items():
            member = in_use.get(identity)
            if member is None or member.digest != one.digest:
                unused.add(identity)
        self.since = {identity: self.since.get(identity, now) for identity in unused}
        used = Counter(member.namespace for member in in_use.values())
        waiting: dict[str, list[tuple[float, int]]] = {}
        for identity, since in self.since.items():
            if identity in records and now - since < GRACE:
                waiting.setdefault(records[identity].namespace, []).append((-since, identity))
        kept = set[int]()
        for where, found in waiting.items():
            most = max(min(used[where], limits.identities - used[where]), module.FEW)
            kept |= {identity for _, identity in sorted(found)[:most]}
        over = {identity for identity, since in self.since.items() if now - since >= GRACE}
        return kept, over | {identity for identity in unused if identity in records and identity not in kept}


class World:
    """What is published and used, told to :class:`Unused` by what changes."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.unused, self.scratch, self.limits = Unused(limits, GRACE), Scratch(), limits
        self.rules: set[int] = set()
        self.records: dict[int, IdentityRecord] = {}
        self.in_use: dict[int, Member] = {}
        self.mirror: dict[int, Member] = {}
        """What lingers, by the changes that were told."""

    def look(self, identity: int, now: float) -> None:
        self.unused.look(
            identity,
            now,
            record=self.records.get(identity),
            has_rules=identity in self.rules,
            user=self.in_use.get(identity),
        )

    def settle(self, now: float) -> tuple[set[int], set[int]]:
        changed = self.unused.settle(now)
        for identity in changed:
            self.mirror.pop(identity, None)
            if identity in self.unused.lingering:
                self.mirror[identity] = self.unused.lingering[identity]
        assert self.mirror == self.unused.lingering
        return set(self.unused.lingering), set(self.unused.expired)

    def check(self, now: float) -> None:
        found = self.settle(now)
        assert found == self.scratch.unused(now, self.rules, self.records, self.in_use, self.limits)
        for identity, member in self.unused.lingering.items():
            assert member.matches_record(self.records[identity])


def test_grace() -> None:
    """Identity 1 is used, 2 lingers from second 10 on, 3 has rules but no record, 4 is used with other facts."""
    world = World()
    world.records = {identity: record(identity) for identity in (1, 2, 4)}
    world.rules = {1, 2, 3}
    world.in_use = {1: Member.of(1, FACTS), 4: Member.of(4, OTHER)}
    for identity in (1, 2, 3, 4):
        world.look(identity, 10)
    assert world.settle(69) == ({2, 4}, set())
    assert world.unused.next_expiry(69) == 1
    assert world.settle(70) == (set(), {2, 3, 4})
    assert world.unused.next_expiry(70) is None
    world.in_use[2] = Member.of(2, FACTS)
    world.look(2, 75)
    assert world.settle(75) == (set(), {3, 4}), "in use again"
    del world.in_use[2]
    world.look(2, 80)
    assert world.settle(139) == ({2}, {3, 4}), "the grace begins anew"


@pytest.mark.parametrize(
    ("used", "unused", "kept"),
    [(1, 50, 50), (1, 2048, 64), (90, 150, 90), (100, 150, 100), (150, 150, 64), (300, 150, 64)],
)
def test_no_more_linger_than_a_namespace_has_or_a_few(used: int, unused: int, kept: int) -> None:
    """The attack: a pod relabelled every few milliseconds leaves an identity behind each time."""
    world = World()
    world.records = {at: record(at) for at in range(unused)} | {5000: record(5000, OTHER)}
    world.in_use = {10_000 + at: Member.of(10_000 + at, FACTS) for at in range(used)}
    for identity in (*world.in_use, *range(unused), 5000):
        world.look(identity, 1 + identity / 10_000)
    found, gone = world.settle(5)
    assert found == {*range(unused - kept, unused), 5000}, "the latest, and another namespace's as before"
    assert gone == set(range(unused - kept)), "the others go at once"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_changes_it_is_as_if_computed_from_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW", 3)
    chance = random.Random(seed)
    world, now = World(Limits(identities=40)), 0.0
    facts = [msgspec.structs.replace(FACTS, namespace=name, pod_labels=(("v", v),)) for name in "xy" for v in "ab"]
    many = 60
    for _ in range(150):
        now += chance.choice((0, 0, 0.5, 3, 20))
        for identity in chance.sample(range(many), chance.choice((1, 2, 20))):
            match chance.randrange(6):
                case 0:
                    world.records[identity] = record(identity, chance.choice(facts))
                case 1:
                    world.records.pop(identity, None)
                case 2:
                    world.rules ^= {identity}
                case 3 | 4:
                    world.in_use[identity] = Member.of(identity, chance.choice(facts))
                case _:
                    world.in_use.pop(identity, None)
            world.look(identity, now)
        world.check(now)
    for identity in range(many):
        world.records.pop(identity, None)
        world.rules.discard(identity)
        world.in_use.pop(identity, None)
        world.look(identity, now)
    world.check(now)
    left = {name: held for name, held in vars(world.unused).items() if isinstance(held, dict | set) and held}
    assert left == {}, "of what is gone nothing stays"


class Counted(dict[Any, Any]):
    """Counts what is asked of it."""

    asked = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked += 1
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self.asked += 1
        return super().__getitem__(key)

    def __iter__(self) -> Any:
        self.asked += len(self)
        return super().__iter__()


def test_one_change_among_5000_records_looks_at_its_namespace_alone() -> None:
    world = World()
    counted = [Counted() for _ in range(4)]
    unused: Any = world.unused
    unused._records, unused._used_in, unused._waiting_in, unused._lingering = counted
    for identity in range(5_000):
        one = msgspec.structs.replace(FACTS, namespace=f"n{identity % 100}")
        world.records[identity] = record(identity, one)
        if identity % 2:
            world.in_use[identity] = Member.of(identity, one)
        world.look(identity, 10)
    lingering, gone = world.settle(11)
    assert (len(lingering), gone) == (2_500, set())
    for one_map in counted:
        one_map.asked = 0
    del world.in_use[7]
    world.look(7, 12)
    assert unused.settle(12) == {7}
    # Its namespace has 50 identities that linger or are used: each is asked for a few times.
    assert sum(one_map.asked for one_map in counted) <= 5 * 50


def test_one_pods_change_is_all_that_a_graph_says_of_who_has_what() -> None:
    graph = Graph()
    graph.put("namespace.kube-system", namespace("kube-system"))
    graph.put("namespace.x", namespace("x"))
    for number in range(500):
        graph.put(f"pod.{number}", pod(f"x/p{number}", labels={"app": str(number)}))
    graph.settle()
    assert graph.take_used() == graph.in_use().keys()
    assert graph.take_used() == set()
    graph.put("pod.7", pod("x/p7", labels={"app": "other"}))
    before = graph.in_use()
    graph.settle()
    after = graph.in_use()
    assert graph.take_used() == before.keys() ^ after.keys()
    assert len(before.keys() ^ after.keys()) == 2


@pytest.mark.parametrize("seed", range(20))
def test_who_has_an_identity_is_known_by_what_changed(seed: int) -> None:
    """Pods come, go and are relabelled; namespaces pass their budget and come back under it; some linger."""
    chance = random.Random(seed)
    graph, known = Graph(Limits(identities=6)), dict[int, Member]()
    graph.put("namespace.kube-system", namespace("kube-system"))
    for _ in range(120):
        for _ in range(chance.choice((1, 1, 8))):
            where, number = chance.choice("xyz"), chance.randrange(12)
            if chance.random() < 0.1:
                graph.put(f"namespace.{where}", chance.choice((None, namespace(where), namespace(where, tier="gold"))))
            elif chance.random() < 0.3:
                graph.put(f"pod.{where}.{number}", None)
            else:
                labels = {"app": str(chance.randrange(10))}
                graph.put(f"pod.{where}.{number}", pod(f"{where}/p{number}", labels=labels))
        if chance.random() < 0.2:
            members = chance.sample(sorted(known), min(len(known), 3))
            graph.hold(Held(lingering={identity: known[identity] for identity in members}, recorded=known.keys()))
        graph.settle()
        for identity in graph.take_used():
            known.pop(identity, None)
            member = graph.user(identity)
            if member is not None:
                known[identity] = member
        assert known == graph.in_use()
