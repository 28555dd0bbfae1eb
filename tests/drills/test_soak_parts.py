"""The parts of the soak that need no lab: the pace of pods, the order of kills, and what counts as more than before."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from tests.drills.pod_churn import BEHIND, Pace
from tests.drills.soak import more, spared, victims

NODES = ("n1", "n2", "n3")
RUNNING = {
    **{f"{service}-{copy}": 1 for service in ("cluster", "ipam", "policy", "dns") for copy in ("7f-a", "7f-b")},
    **{f"{agent}-{node}": 1 for agent in ("routing", "dataplane", "nats") for node in NODES},
}


def test_a_pace_waits_and_makes_good_only_what_was_just_missed() -> None:
    pace = Pace(rate=4.0, due=100.0)
    assert pace.wait(99.5) == pytest.approx(0.5)
    for number in range(4):
        assert pace.wait(100.0) == pytest.approx(number / 4)
        pace.count(100.0)
    assert pace.wait(100.0) == pytest.approx(1.0)
    begun = 0
    while not pace.wait(1000.0):
        pace.count(1000.0)
        begun += 1
    assert begun == BEHIND * pace.rate + 1


def test_one_copy_and_one_node_live_on_and_all_others_are_killed_in_the_same_order() -> None:
    alone = spared(RUNNING, "n3")
    assert alone == {"cluster-7f-a", "ipam-7f-a", "policy-7f-a", "dns-7f-a", "routing-n3", "dataplane-n3", "nats-n3"}
    names = set(RUNNING) - alone
    order = list(islice(victims(names, Random(13)), 3 * len(names)))
    assert set(order[: len(names)]) == names
    assert order == order[: len(names)] * 3
    assert order[: len(names)] == list(islice(victims(names, Random(13)), len(names)))


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ({"consumers": {"KV_a": 4}, "n1": {"links": 3}}, []),
        ({"consumers": {"KV_a": 3}, "n1": {"links": 3}}, []),
        ({"consumers": {"KV_a": 5}, "n1": {"links": 3}}, ["consumers, KV_a: 4, and then 5"]),
        ({"consumers": {"KV_a": 4}, "n1": {"links": 3, "rules": 1}}, ["n1, rules: 0, and then 1"]),
        ({"consumers": {"KV_a": 4, "KV_b": 1}}, ["consumers, KV_b: 0, and then 1"]),
        ({"keys": {"blocks": 2}}, []),
        ({"keys": {"blocks": 3}}, ["keys, blocks: 0, and then 3"]),
    ],
)
def test_more_than_before_is_named(after: dict[str, dict[str, int]], found: list[str]) -> None:
    before = {"consumers": {"KV_a": 4}, "n1": {"links": 3}}
    assert more(before, after, lambda kind, _: 2 if kind == "keys" else 0) == found
