"""Which addresses a pod is to have, by its owner, its annotations and the pools."""

from __future__ import annotations

import pytest

from proto.objects import IPPool, Namespace, Owner, Pod
from services.dataplane.core.addressing import KEEP, STATIC, AddressPlan, BadWish, families_of, plan_addresses
from tests.core.dataplane.notation import pool

BOTH = [pool("10.244.0.0/16"), pool("fd00:10:244::/56")]
STATEFUL = Owner(namespace="shop", kind="StatefulSet", name="db", ordinal=0)
REPLICA = Owner(namespace="shop", kind="Deployment", name="web")


def plan(
    notes: dict[str, str] | None = None,
    owner: Owner | None = None,
    pools: list[IPPool] = BOTH,
    space: dict[str, str] | None = None,
) -> AddressPlan | BadWish:
    pod = Pod(namespace="shop", name="p", uid="u", node="n1", annotations=tuple((notes or {}).items()), owner=owner)
    return plan_addresses(pod, Namespace(name="shop", uid="n", annotations=tuple((space or {}).items())), pools)


@pytest.mark.parametrize(
    ("pools", "families"),
    [
        (BOTH, (4, 6)),
        ([BOTH[1], BOTH[0]], (4, 6)),
        (BOTH[:1], (4,)),
        (BOTH[1:], (6,)),
        ([pool("10.244.0.0/16", disabled=True), BOTH[1]], (6,)),
        ([], ()),
    ],
)
def test_families_are_those_with_an_enabled_pool(pools: list[IPPool], families: tuple[int, ...]) -> None:
    assert families_of(pools) == families


@pytest.mark.parametrize(
    ("notes", "owner", "space", "kept_by"),
    [
        ({}, None, {}, None),
        ({}, REPLICA, {}, None),
        ({}, STATEFUL, {}, "StatefulSet/db/0"),
        ({KEEP: "false"}, STATEFUL, {}, None),
        ({KEEP: "true"}, None, {}, "Pod/p/-1"),
        ({KEEP: "true"}, REPLICA, {}, "Deployment/web/-1"),
        ({}, REPLICA, {KEEP: "true"}, "Deployment/web/-1"),
        ({KEEP: "false"}, REPLICA, {KEEP: "true"}, None),
        ({STATIC: '["10.244.1.2"]'}, None, {}, "Pod/p/-1"),
        ({STATIC: '["10.244.1.2"]', KEEP: "false"}, STATEFUL, {}, "StatefulSet/db/0"),
    ],
)
def test_who_keeps_an_address(
    notes: dict[str, str], owner: Owner | None, space: dict[str, str], kept_by: str | None
) -> None:
    made = plan(notes, owner, space=space)
    assert isinstance(made, AddressPlan)
    found = f"{made.owner.kind}/{made.owner.name}/{made.owner.ordinal}" if made.owner else None
    assert found == kept_by


def test_fixed_addresses_by_family() -> None:
    made = plan({STATIC: '["10.244.1.2", "fd00:10:244::77"]'})
    assert isinstance(made, AddressPlan)
    assert {family: str(address) for family, address in made.fixed.items()} == {4: "10.244.1.2", 6: "fd00:10:244::77"}


@pytest.mark.parametrize(
    ("notes", "pools", "names"),
    [
        ({}, [], "IPPool"),
        ({KEEP: "yes"}, BOTH, KEEP),
        ({STATIC: "10.244.1.2"}, BOTH, STATIC),
        ({STATIC: "[1]"}, BOTH, STATIC),
        ({STATIC: '["nonsense"]'}, BOTH, STATIC),
        ({STATIC: '["10.244.1.2/24"]'}, BOTH, STATIC),
        ({STATIC: '["10.244.1.2","10.244.1.3"]'}, BOTH, STATIC),
        ({STATIC: '["fd00::1"]'}, BOTH[:1], STATIC),
        ({STATIC: "[" * 5000}, BOTH, STATIC),
    ],
)
def test_a_wish_that_cannot_be_had_is_refused_by_name(notes: dict[str, str], pools: list[IPPool], names: str) -> None:
    refused = plan(notes, pools=pools)
    assert isinstance(refused, BadWish)
    assert names in refused.why
