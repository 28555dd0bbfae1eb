"""Which addresses a pod is to have, by its owner, its annotations and the pools."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from kit.pools import judge_pools
from proto.annotations import FIXED_ADDRESSES as STATIC
from proto.annotations import KEEP_ADDRESS as KEEP
from proto.annotations import REFUSED
from proto.net import Network
from proto.objects import IPPool, Namespace, Node, Owner, Pod
from services.dataplane.core.ipam.addressing import AddressPlan, BadWish, Supply, plan_addresses, supply_of
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
    return plan_addresses(pod, Namespace(name="shop", uid="n", annotations=tuple((space or {}).items())), given(pools))


def given(pools: list[IPPool], labels: dict[str, str] | None = None, blocks: tuple[Network, ...] = ()) -> Supply:
    node = Node(name="n1", uid="u1", labels=tuple((labels or {}).items()), blocks=blocks)
    return supply_of(judge_pools(pools), node)


EAST4 = pool("10.0.0.0/16", node_selector="zone == 'east'")
EAST6 = pool("fd00:1::/56", node_selector="zone == 'east'")
MANUAL = pool("fd00:9::/56", assignment_mode="Manual")


@pytest.mark.parametrize(
    ("pools", "labels", "families"),
    [
        (BOTH, {}, (4, 6)),
        ([BOTH[1], BOTH[0]], {}, (4, 6)),
        (BOTH[:1], {}, (4,)),
        (BOTH[1:], {}, (6,)),
        ([pool("10.244.0.0/16", disabled=True), BOTH[1]], {}, (6,)),
        ([pool("10.244.0.0/16", namespace_selector="has(team)"), BOTH[1]], {}, (6,)),
        ([BOTH[0], pool("fd00::/56", allowed_uses=("LoadBalancer",))], {}, (4,)),
        ([BOTH[0], MANUAL], {}, (4,)),
        ([EAST4, BOTH[1]], {"zone": "west"}, (6,)),
        ([EAST4, BOTH[1]], {"zone": "east"}, (4, 6)),
        ([EAST4, EAST6], {"zone": "west"}, ()),
        ([EAST4, BOTH[0], EAST6], {}, (4,)),
        ([], {}, ()),
    ],
)
def test_families_are_those_with_a_pool_that_gives_to_the_node(
    pools: list[IPPool], labels: dict[str, str], families: tuple[int, ...]
) -> None:
    assert given(pools, labels).families == families


@pytest.mark.parametrize(
    ("pools", "block", "gives"),
    [
        (BOTH, "10.244.3.0/26", True),
        (BOTH, "fd00:10:244::40/122", True),
        (BOTH, "10.9.0.0/26", False),
        ([pool("10.9.0.0/16", disabled=True), *BOTH], "10.9.0.0/26", False),
        ([pool("10.9.0.0/16", namespace_selector="has(team)"), *BOTH], "10.9.0.0/26", False),
        ([EAST4, *BOTH], "10.0.0.0/26", False),
    ],
)
def test_which_blocks_new_addresses_are_taken_from(pools: list[IPPool], block: str, gives: bool) -> None:
    network = ip_network(block)
    assert given(pools).will_give(network) is gives
    assert not given(pools).gives(network), "the Node does not name it"
    assert given(pools, blocks=(network,)).gives(network) is gives


def test_a_pool_for_those_who_ask_gives_to_nobody_else() -> None:
    plain, asking = plan(pools=[BOTH[0], MANUAL]), plan({STATIC: '["fd00:9::7"]'}, pools=[BOTH[0], MANUAL])
    assert isinstance(plain, AddressPlan)
    assert isinstance(asking, AddressPlan)
    assert plain.families == (4,)
    assert (asking.families, str(asking.fixed[6])) == ((4, 6), "fd00:9::7")


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
        ({}, [pool("10.0.0.0/8", namespace_selector="has(team)")], "IPPool"),
        *(({key: '["x"]'}, BOTH, key) for key in REFUSED["Pod"]),
    ],
)
def test_a_wish_that_cannot_be_had_is_refused_by_name(notes: dict[str, str], pools: list[IPPool], names: str) -> None:
    refused = plan(notes, pools=pools)
    assert isinstance(refused, BadWish)
    assert names in refused.why


@pytest.mark.parametrize("key", REFUSED["Namespace"])
def test_what_a_namespace_wishes_for_its_pods_is_refused_by_name(key: str) -> None:
    refused = plan(space={key: '["x"]'})
    assert isinstance(refused, BadWish)
    assert f"annotation {key} of namespace shop" in refused.why
