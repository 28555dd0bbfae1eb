"""What is known of one kind, and what must be written for it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.objects import KIND_OF, FelixConfiguration, KubernetesObject, Namespace, NetworkPolicy, Pod, Selector
from services.cluster.core.cache import BREATH, Cache, has_key
from services.cluster.core.diff import diff
from tests.core.cluster.lists import list_into

POLICIES = KIND_OF[NetworkPolicy]
GOOD: dict[str, object] = {"podSelector": {}}
OTHER = {"podSelector": {"matchLabels": {"a": "b"}}}
BROKEN = {"podSelector": 3}


def raw(name: str, spec: object, uid: str = "u") -> bytes:
    return msgspec.json.encode({"metadata": {"name": name, "namespace": "prod", "uid": uid}, "spec": spec})


def test_a_whole_list_says_what_is_gone() -> None:
    cache = Cache(POLICIES)
    before = cache.synced
    list_into(cache, [raw("a", GOOD), raw("b", BROKEN), raw("c", GOOD)])
    assert (before, cache.synced) == (False, True)
    assert cache.take_dirty() == {("prod", "a"), ("prod", "b"), ("prod", "c")}
    list_into(cache, [raw("a", GOOD)])
    assert cache.take_dirty() == {("prod", "b"), ("prod", "c")}
    assert (set(cache.known), cache.faults) == ({("prod", "a")}, {})


def test_a_long_list_is_taken_in_a_few_objects_at_a_time_and_counts_when_it_is_whole() -> None:
    cache = Cache(POLICIES)
    list_into(cache, [raw(f"old-{number}", GOOD) for number in range(200)])
    cache.take_dirty()
    most = 0
    for _ in cache.replacing([raw(f"new-{number}", GOOD) for number in range(200)]):
        assert cache.lists == 1
        most = max(most, len(cache.take_dirty()))
    assert most < 2 * BREATH
    assert cache.lists == 2
    assert set(cache.known) == {("prod", f"new-{number}") for number in range(200)}


def test_the_same_again_is_no_change() -> None:
    cache = Cache(POLICIES)
    cache.upsert(raw("a", GOOD))
    cache.take_dirty()
    cache.upsert(raw("a", GOOD))
    assert cache.take_dirty() == frozenset()


def test_what_cannot_be_understood_keeps_its_last_good_version_while_it_is_the_same_object() -> None:
    cache = Cache(POLICIES)
    cache.upsert(raw("a", GOOD))
    good = cache.known["prod", "a"].value
    cache.upsert(raw("a", BROKEN))
    assert cache.known["prod", "a"].value == good
    assert "podSelector" in str(cache.faults["prod", "a"])
    cache.upsert(raw("a", BROKEN, uid="another"))
    assert (cache.known["prod", "a"].value, cache.known["prod", "a"].uid) == (None, "another")
    cache.upsert(raw("a", OTHER, uid="another"))
    assert not cache.faults


SELECTED = Selector((("role", "db"),))


@pytest.mark.parametrize(
    ("spec", "selector", "ingress", "egress"),
    [
        ({"podSelector": {"matchLabels": {"role": "db"}}, "ingress": [{"from": [{}]}]}, SELECTED, True, False),
        ({"podSelector": {"matchLabels": {"role": "db"}}, "egress": [{"to": [{}]}]}, SELECTED, True, True),
        ({"podSelector": {"matchLabels": {"role": "db"}}, "policyTypes": ["Egress"], "new": 1}, SELECTED, False, True),
        ({"podSelector": {"matchLabels": {"role": "db"}}, "policyTypes": ["Sideways"]}, SELECTED, True, True),
        ({"podSelector": {"matchLabels": 3}, "policyTypes": ["Ingress"]}, Selector(), True, False),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, Selector(), True, False),
        (7, Selector(), True, False),
    ],
)
def test_a_policy_that_was_never_understood_isolates_what_it_selects(
    spec: object, selector: Selector, ingress: bool, egress: bool
) -> None:
    cache = Cache(POLICIES)
    cache.upsert(raw("a", spec))
    known = cache.known["prod", "a"]
    assert known.value is None
    assert known.stand_in == NetworkPolicy("prod", "a", "u", selector, ingress, egress, stand_in=True)
    cache.upsert(raw("a", GOOD))
    assert cache.known["prod", "a"].stand_in is None
    cache.upsert(raw("a", spec))
    assert cache.known["prod", "a"].stand_in is None


def test_a_stand_in_is_written_only_where_there_is_nothing_better() -> None:
    stand_in = NetworkPolicy("prod", "a", "u", Selector(), True, True)
    good = NetworkPolicy("prod", "a", "u", SELECTED, True, False)
    broken = {("prod", "a"): "u"}
    assert diff({"k": stand_in}, {}, broken, ["k"]).upserts == (("k", stand_in),)
    assert not diff({"k": stand_in}, {"k": good}, broken, ["k"])
    replaced = diff({"k": stand_in}, {"k": NetworkPolicy("prod", "a", "old", SELECTED, True, False)}, broken, ["k"])
    assert replaced.upserts == (("k", stand_in),)


def test_bytes_without_a_name_are_nobody() -> None:
    cache = Cache(POLICIES)
    assert [cache.upsert(junk) for junk in (b"", b"{}", b"[", b"[" * 10**5, b'{"metadata":{"name":7}}', b"\xff")] == [
        None
    ] * 6
    cache.remove(b"{}")
    assert cache.known == {}


def test_a_pod_without_a_node_has_no_key() -> None:
    assert has_key(Pod(namespace="prod", name="a", uid="u", node="n1"))
    assert not has_key(Pod(namespace="prod", name="a", uid="u", node=""))
    assert not has_key(None)
    assert has_key(Namespace(name="a", uid="u"))


def pod(name: str, phase: str = "Running", uid: str = "u") -> Pod:
    return Pod(namespace="prod", name=name, uid=uid, node="n1", phase=phase)


def test_difference() -> None:
    held = {"same": pod("same"), "old": pod("old", "Pending"), "gone": pod("gone"), "unasked": pod("unasked")}
    desired = {"same": pod("same"), "old": pod("old"), "new": pod("new")}
    found = diff(desired, held, {}, ["same", "old", "gone", "new", "neither"])
    assert found.upserts == (("new", pod("new")), ("old", pod("old")))
    assert found.deletes == ("gone",)
    assert not diff(held, held, {}, held)


def test_a_broken_object_is_not_deleted_but_another_of_its_name_is() -> None:
    held = {"k": pod("a", uid="u")}
    assert not diff({}, held, {("prod", "a"): "u"}, held)
    assert not diff({}, held, {("prod", "a"): ""}, held)
    assert diff({}, held, {("prod", "a"): "another"}, held).deletes == ("k",)


_SETS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([pod("x"), pod("x", "Pending"), pod("y")]))


@given(_SETS, _SETS)
def test_applying_a_difference_gives_the_desired(
    desired: dict[str, KubernetesObject], held: dict[str, KubernetesObject]
) -> None:
    found = diff(desired, held, {}, desired.keys() | held.keys())
    after = {key: value for key, value in held.items() if key not in found.deletes} | dict(found.upserts)
    assert after == desired
    assert not diff(desired, after, {}, desired.keys() | after.keys())


FELIX = KIND_OF[FelixConfiguration]


def felix(spec: dict[str, Any], uid: str = "u") -> bytes:
    return json.dumps({"metadata": {"name": "default", "uid": uid}, "spec": spec}).encode()


@pytest.mark.parametrize(
    ("before", "mistaken", "counts"),
    [
        ({"vxlanVNI": 7}, {"vxlanVNI": 0}, FelixConfiguration("default", vxlan_vni=7)),
        (
            {"vxlanVNI": 7},
            {"vxlanVNI": 0, "wireguardEnabled": True},
            FelixConfiguration("default", vxlan_vni=7, wireguard_enabled=True),
        ),
        (None, {"vxlanVNI": 0}, None),
        (None, {"vxlanMTU": 5, "wireguardEnabledV6": True}, FelixConfiguration("default", wireguard_enabled_v6=True)),
        (None, {"wireguardEnabled": "true"}, FelixConfiguration("default", wireguard_enabled=True)),
        (None, {"vxlanVNI": 0, "wireguardEnabled": False}, None),
        (
            {"wireguardEnabled": True},
            {"wireguardEnabled": False, "vxlanVNI": 0},
            FelixConfiguration("default", wireguard_enabled=True),
        ),
    ],
)
def test_encryption_is_asked_for_beside_a_mistake_and_never_taken_back_by_one(
    before: dict[str, Any] | None, mistaken: dict[str, Any], counts: FelixConfiguration | None
) -> None:
    cache = Cache(FELIX)
    if before is not None:
        cache.upsert(felix(before))
    cache.upsert(felix(mistaken))
    assert cache.known["", "default"].value == counts
    assert ("", "default") in cache.faults
    cache.upsert(felix({"vxlanVNI": 9}))
    assert cache.known["", "default"].value == FelixConfiguration("default", vxlan_vni=9)
