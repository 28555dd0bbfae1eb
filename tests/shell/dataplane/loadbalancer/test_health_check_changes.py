"""Which changes of objects are a reason to look for health-check ports: those about Services that have one."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chassis.runtime.reconcile import Dirty
from proto.codec import object_key
from proto.objects import EndpointSlice, KubernetesObject, Service
from services.dataplane.core.loadbalancer.health_checks import Page
from services.dataplane.loadbalancer.health_check import HealthChecks
from tests.core.dataplane.loadbalancer.checks import checks_of
from tests.core.dataplane.notation import service, slice_of

NAMES = ("a", "b", "c")


class Objects:
    """The feed, as far as it is asked: objects that are known, and how often all of them are looked at."""

    node = "n1"

    def __init__(self) -> None:
        self.known: dict[str, KubernetesObject] = {}
        self.looks = 0

    @property
    def objects(self) -> Any:
        return SimpleNamespace(entries={key: SimpleNamespace(value=value) for key, value in self.known.items()})

    def complete(self, _kind: type) -> bool:
        return True

    def all_of(self, kind: type) -> list[Any]:
        self.looks += 1
        return [one for one in self.known.values() if isinstance(one, kind)]


class Ports:
    """The server, which only remembers."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}

    async def apply(self, pages: dict[int, Page]) -> None:
        self.pages = pages


def made() -> tuple[Objects, Ports, HealthChecks]:
    objects, ports = Objects(), Ports()
    checks = HealthChecks(ports, objects, lambda: True, lambda namespace, name: True, 0)  # type: ignore[arg-type]
    return objects, ports, checks


def changed(*keys: str, full: bool = False) -> Dirty:
    return Dirty(full=full, keys=frozenset(keys), by_cursor=(frozenset(keys),))


@pytest.mark.parametrize("seed", range(8))
async def test_reported_only_what_changed_the_answers_are_those_of_all(seed: int) -> None:
    rng, (objects, ports, checks) = Random(seed), made()
    await checks.apply(changed(full=True))
    dirty: set[str] = set()
    for _ in range(80):
        name, space = rng.choice(NAMES), rng.choice(["shop", "depot"])
        one: Service | EndpointSlice
        if rng.random() < 0.5:
            port = rng.choice([0, 32000, 32001])
            one = service(name, "10.96.0.1", type="LoadBalancer", external_policy="Local", health_check_port=port)
            one = msgspec.structs.replace(one, created=rng.choice([1, 2]))
        else:
            one = slice_of(name, *rng.choice([["10.244.0.1"], ["10.244.0.1", "10.244.0.2"], ["10.244.1.1 @n2"]]))
        one = msgspec.structs.replace(one, namespace=space)
        key = object_key(one)
        if rng.random() < 0.3:
            objects.known.pop(key, None)
        else:
            objects.known[key] = one
        dirty.add(key)
        if rng.random() < 0.6:
            await checks.apply(changed(*dirty))
            dirty.clear()
            services, slices = objects.all_of(Service), objects.all_of(EndpointSlice)
            wanted = {port: one.answer(healthy=True) for port, one in checks_of(services, slices, "n1").items()}
            assert {port: page("/") for port, page in ports.pages.items()} == wanted


async def test_a_thousand_services_without_such_a_port_are_looked_at_no_more() -> None:
    objects, _, checks = made()
    asking = service("z", "10.96.9.9", type="LoadBalancer", external_policy="Local", health_check_port=32000)
    elsewhere = msgspec.structs.replace(asking, namespace="depot")
    objects.known[object_key(elsewhere)] = elsewhere
    await checks.apply(changed(full=True))
    before = objects.looks
    for number in range(1000):
        plain, part = service(f"s{number}", "10.96.0.1"), slice_of(f"s{number}", "10.244.0.1")
        dirty = {object_key(one): one for one in (plain, part)}
        objects.known = {object_key(elsewhere): elsewhere, **dirty}
        await checks.apply(changed(*dirty))
    assert objects.looks == before
    objects.known[object_key(asking)] = asking
    await checks.apply(changed(object_key(asking)))
    assert objects.looks > before
