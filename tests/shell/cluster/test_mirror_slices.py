"""The mirror's pass in slices: the loop turns between a few objects, however many there are, and what changes meanwhile
is written as it is in the end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chassis.bus.client import Conflict, Entry
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from proto.codec import object_key
from proto.objects import KIND_OF, KubernetesObject, Namespace, NetworkPolicy
from services.cluster import mirror as module
from services.cluster.core.cache import Cache
from services.cluster.mirror import SLICE, Mirror
from tests.core.cluster.lists import list_into
from tests.natsd import Lines

MANY = 5_000
FULL = Dirty(full=True)


class Counted(dict[Any, Any]):
    """Counts what is asked of it."""

    asked = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked += 1
        return super().get(key, default)


class Store:
    """A bucket and the view of it, without a server between them: a write is seen at once."""

    def __init__(self) -> None:
        self.entries = Counted()
        self.marks: dict[str, Any] = {}
        self.epoch, self.resyncs, self.synced, self.sequence = "e", 1, True, 0
        self.deleted: list[str] = []
        self.underway = self.most_underway = 0

    def scope_complete(self, scope: str) -> bool:
        return f"_complete.{scope}" in self.marks

    async def put(self, key: str, value: Any) -> None:
        self.marks[key] = Entry(key, value, 0)

    async def create(self, key: str, value: Any, *, mend: bool, traceparent: str) -> int | Conflict:
        assert mend
        return await self._set(key, value, 0, traceparent)

    async def update(self, key: str, value: Any, revision: int, *, traceparent: str) -> int | Conflict:
        return await self._set(key, value, revision, traceparent)

    async def _set(self, key: str, value: Any, revision: int, traceparent: str) -> int | Conflict:
        await asyncio.sleep(0)
        there = dict.get(self.entries, key)
        assert (0 if there is None else there.revision) == revision
        self.sequence += 1
        self.entries[key] = Entry(key, value, self.sequence, traceparent)
        return self.sequence

    async def delete(self, key: str, revision: int) -> None:
        await asyncio.sleep(0)
        assert self.entries[key].revision == revision
        self.sequence += 1
        self.deleted.append(key)
        del self.entries[key]


class World:
    """A mirror over one store and caches of two kinds; ``steps``: what was asked in each turn of the loop."""

    def __init__(self) -> None:
        self.store = Store()
        self.namespaces, self.policies = Cache(KIND_OF[Namespace]), Cache(KIND_OF[NetworkPolicy])
        self.caches = (self.policies, self.namespaces)
        for cache in self.caches:
            cache.known = Counted()
        store: Any = self.store
        lease: Any = SimpleNamespace(held=True)
        log = Log("cluster", stream=Lines())  # type: ignore[arg-type]
        telemetry = Telemetry("cluster", "one", {})
        self.mirror = Mirror(kv=store, view=store, lease=lease, caches=self.caches, telemetry=telemetry, log=log)
        self.steps: list[int] = []

    async def apply(self, dirty: Dirty = FULL, meanwhile: Callable[[], object] = lambda: None) -> Done | Again:
        """One pass; ``meanwhile`` is called at each turn of the loop."""
        known: list[Any] = [self.store.entries, *(cache.known for cache in self.caches)]
        task = asyncio.create_task(self.mirror.apply(dirty))
        while not task.done():
            before = sum(one.asked for one in known)
            await asyncio.sleep(0)
            self.steps.append(sum(one.asked for one in known) - before)
            meanwhile()
        return task.result()

    def wanted(self) -> dict[str, KubernetesObject]:
        """From scratch: what the bucket has to hold."""
        values = [known.value for cache in self.caches for known in cache.known.values()]
        return {object_key(value): value for value in values if value is not None}

    def there(self) -> dict[str, KubernetesObject]:
        return {key: entry.value for key, entry in self.store.entries.items()}


def namespace(name: str, **labels: str) -> bytes:
    return msgspec.json.encode({"metadata": {"name": name, "uid": name, "labels": labels}})


def policy(name: str, spec: object) -> bytes:
    return msgspec.json.encode({"metadata": {"name": name, "namespace": "a", "uid": name}, "spec": spec})


@pytest.fixture
def world() -> World:
    return World()


async def test_no_turn_of_the_loop_looks_at_more_than_a_slice(world: World) -> None:
    """Writing all, passing over all, and a list that says of all that they are gone."""
    many = [namespace(f"n{number}") for number in range(MANY)]
    list_into(world.namespaces, many)
    assert await world.apply() == Done()
    assert world.there() == world.wanted()
    assert len(world.store.entries) == MANY
    assert await world.apply() == Done()
    list_into(world.namespaces, [])
    assert await world.apply() == Done()
    assert not world.store.entries
    # Of a key the bucket is asked when it is compared and when it is written, the caches when it is taken in.
    assert max(world.steps) <= 2 * SLICE
    assert sum(world.steps) >= 6 * MANY


async def test_what_one_object_changes_is_all_that_is_looked_at(world: World) -> None:
    list_into(world.namespaces, [namespace(f"n{number}") for number in range(MANY)])
    await world.apply()
    world.namespaces.upsert(namespace("n7", changed="yes"))
    world.steps.clear()
    assert await world.apply(Dirty(full=False)) == Done()
    assert world.there() == world.wanted()
    assert sum(world.steps) <= 8


async def test_a_list_that_comes_in_the_midst_of_a_pass_deletes_nothing(world: World) -> None:
    """What it brings was not taken in as the pass began, and would look as if the API had it no more."""
    kept = [policy(f"p{number}", {"podSelector": {}}) for number in range(SLICE)]
    before = World()
    list_into(before.policies, kept)
    await before.apply()
    world.store.entries.update(before.store.entries)
    list_into(world.namespaces, [namespace(f"n{number}") for number in range(3 * SLICE)])

    def listed() -> None:
        if not world.policies.lists:
            list_into(world.policies, kept)

    await world.apply(meanwhile=listed)
    await world.apply()
    assert world.store.deleted == []
    assert world.there() == world.wanted()


async def test_an_object_that_is_mended_in_the_midst_of_a_pass_stays(world: World) -> None:
    good: dict[str, object] = {"podSelector": {}}
    broken: dict[str, object] = {"podSelector": 3}
    before = World()
    list_into(before.policies, [policy("p", good)])
    await before.apply()
    world.store.entries.update(before.store.entries)
    list_into(world.namespaces, [namespace(f"n{number}") for number in range(3 * SLICE)])
    list_into(world.policies, [policy("p", broken)])
    steps = iter(range(1_000_000))
    at_the_third = lambda: next(steps) == 3 and world.policies.upsert(policy("p", good))  # noqa: E731
    await world.apply(meanwhile=at_the_third)
    await world.apply(Dirty(full=False))
    assert world.store.deleted == []
    assert world.there() == world.wanted()


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_changes_between_slices_the_bucket_ends_as_the_api_is(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(module, "SLICE", 4)
    chance = random.Random(seed)
    specs: tuple[object, ...] = ({"podSelector": {}}, {"podSelector": {"matchLabels": {"a": "b"}}})

    def something() -> None:
        name, what = f"x{chance.randrange(30)}", chance.randrange(6)
        if what == 0:
            world.namespaces.upsert(namespace(name, v=str(chance.randrange(3))))
        elif what == 1:
            world.namespaces.remove(namespace(name))
        elif what == 2:
            world.policies.upsert(policy(name, chance.choice(specs)))
        elif what == 3:
            world.policies.remove(policy(name, {}))
        elif what == 4 and chance.random() < 0.1:
            some = chance.sample(range(30), 10)
            list_into(world.policies, [policy(f"x{number}", chance.choice(specs)) for number in some])
        elif chance.random() < 0.05:
            world.store.resyncs += 1

    for cache in world.caches:
        list_into(cache, [])
    for _ in range(40):
        await world.apply(Dirty(full=chance.random() < 0.3), something)
    while await world.apply(Dirty(full=False)) != Done():
        pass
    assert world.there() == world.wanted()
