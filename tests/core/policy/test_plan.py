"""What is written, kept or yielded, and what lingers, as tables."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from proto.policy import CidrPartition, CidrSet, CompiledPolicy, Frontier, Revision
from services.policy.core import plan
from services.policy.core.named import NamedKey
from services.policy.core.plan import Grace, Step


def at(text: str) -> Revision:
    """``e5``: epoch e, sequence 5."""
    return Revision(epoch=text[0], sequence=int(text[1:]))


def rules(text: str, isolated: bool = True) -> CompiledPolicy:
    return CompiledPolicy(identity=1, revision=at(text), ingress_isolated=isolated, egress_isolated=False)


@pytest.mark.parametrize(
    ("mine", "present", "same", "step"),
    [
        ("e5", "", False, Step.WRITE),
        ("e5", "e4", False, Step.WRITE),
        ("e5", "e5", False, Step.WRITE),
        ("e5", "e6", False, Step.YIELD),
        ("e5", "e6", True, Step.KEEP),
        ("e5", "e4", True, Step.KEEP),
        ("e5", "f9", False, Step.WRITE),
        ("e5", "f9", True, Step.KEEP),
    ],
)
def test_rules(mine: str, present: str, same: bool, step: Step) -> None:
    there = rules(present, isolated=same) if present else None
    assert plan.rule_step(rules(mine), there) is step
    if there is not None and not same:
        assert plan.may_delete(at(mine), there) == (step is Step.WRITE)


@pytest.mark.parametrize(
    ("mine", "present", "step"),
    [
        ("e5", "", Step.WRITE),
        ("e5", "e4", Step.WRITE),
        ("e5", "e5", Step.KEEP),
        ("e5", "e6", Step.YIELD),
        ("e5", "f1", Step.WRITE),
    ],
)
def test_frontier(mine: str, present: str, step: Step) -> None:
    there = Frontier(0, 2, at(present)) if present else None
    assert plan.frontier_step(Frontier(0, 2, at(mine)), there) is step


def test_a_frontier_of_another_number_of_shards_is_written_again() -> None:
    assert plan.frontier_step(Frontier(0, 2, at("e5")), Frontier(0, 3, at("e5"))) is Step.WRITE


@pytest.mark.parametrize(
    ("present", "same", "step"),
    [("e4", True, Step.KEEP), ("e4", False, Step.WRITE), ("e6", False, Step.YIELD), ("f4", True, Step.WRITE)],
)
def test_partition(present: str, same: bool, step: Step) -> None:
    one, other = (CidrSet(ip_network(text), 7) for text in ("10.0.0.0/8", "11.0.0.0/8"))
    wanted = CidrPartition(at("e5"), (one,), "x", "one")
    there = CidrPartition(at(present), (one,), "x", "one") if same else CidrPartition(at(present), (other,), "x", "two")
    assert plan.partition_step(wanted, there) is step
    assert plan.partition_step(wanted, None) is Step.WRITE


@pytest.mark.parametrize(
    ("frontiers", "covered"),
    [
        ("0/2:e5 1/2:e5", True),
        ("0/2:e5 1/2:e4", False),
        ("0/2:e9 1/2:e6", True),
        ("0/2:e5", False),
        ("0/2:e5 1/2:f5", False),
        ("0/2:e5 0/2:e6", False),
        ("0/2:e5 1/3:e5", False),
        ("", False),
    ],
)
def test_all_cover(frontiers: str, covered: bool) -> None:
    parsed = []
    for text in frontiers.split():
        part, _, revision = text.partition(":")
        shard, shards = map(int, part.split("/"))
        parsed.append(Frontier(shard, shards, at(revision)))
    assert plan.all_cover([*parsed, None], 2, at("e5")) == covered
    assert not plan.all_begun(parsed, 3, "e")


@pytest.mark.parametrize(
    ("epochs", "recorded"),
    [("i i", True), ("i", False), ("i old", False), ("old old", False), ("", False)],
)
def test_records_are_all_there_when_every_frontier_names_their_bucket(epochs: str, recorded: bool) -> None:
    frontiers = [
        Frontier(shard, 2, at("e5"), identities=Revision(epoch=epoch, sequence=7))
        for shard, epoch in enumerate(epochs.split())
    ]
    assert plan.all_recorded([*frontiers, None], 2, "i") == recorded


def test_label_keys_are_shown_for_a_while_after_nobody_names_them() -> None:
    app, tier = NamedKey("pod", "", "app"), NamedKey("pod", "x", "tier")

    def aged(grace: Grace, now: float, *named: NamedKey) -> Grace:
        return plan.age(grace, now, 60, named=named)

    grace = aged(aged(Grace(), 0, app, tier), 10, app)
    assert grace.named_at == {app: 10, tier: 0}
    assert plan.next_expiry(grace, 20, 60) == 40
    assert aged(grace, 60, app).named_at == {app: 60}
    many = [NamedKey("pod", "", f"k{at}") for at in range(3000)]
    assert len(aged(aged(Grace(), 0, *many), 1).named_at) == plan.MOST_NAMED


def cut(n: int, space: str = "x") -> CidrPartition:
    return CidrPartition(at("e1"), (CidrSet(ip_network(f"{n}.0.0.0/8"), n),), space, f"digest {n}")


def test_partitions_are_kept_for_a_while() -> None:
    a, b, c, y = cut(1), cut(2), cut(3), cut(4, "y")
    grace = plan.retire(plan.retire(Grace(), a, 0), b, 30)
    assert plan.kept_partitions(grace, {"x": c}, {"x": c.digest}) == {"x": (a, b)}
    assert plan.kept_partitions(grace, {"x": b}, {"x": c.digest}) == {"x": (a, b)}
    assert plan.kept_partitions(grace, {"y": y}, {"x": a.digest}) == {"x": (b,), "y": (y,)}
    empty = CidrPartition(at("e1"), (), "x", "")
    assert plan.kept_partitions(Grace(), {"x": empty}, {"x": c.digest}) == {}, "an empty partition needs no lines"
    aged = plan.age(grace, 60, 60)
    assert [partition for partition, _ in aged.retired] == [b]
    assert [since for _, since in plan.retire(grace, a, 50).retired] == [30, 50]


def test_who_edits_without_pause_has_few_partitions_kept() -> None:
    grace = plan.retire(Grace(), cut(1, "y"), 0)
    for n in range(1, 50):
        grace = plan.retire(grace, cut(n), n)
    kept = [(partition.namespace, since) for partition, since in grace.retired]
    assert kept == [("y", 0), *(("x", n) for n in range(50 - plan.MOST_RETIRED, 50))]


def test_which_partitions_are_to_be_published() -> None:
    published = {"x": cut(1), "y": cut(2, "y"), "z": cut(3, "z")}
    wanted = {"x": "digest 1", "y": "digest 9", "w": "digest 7"}
    assert plan.partitions_due(published, wanted, "e") == {"y", "z", "w"}
    assert plan.partitions_due({"x": cut(1)}, {"x": "digest 1"}, "e") == frozenset()
    assert plan.partitions_due({"x": cut(1)}, {"x": "digest 1"}, "f") == {"x"}, "another epoch"
    empty = CidrPartition(at("e3"), (), "x", "")
    assert plan.partitions_due({"x": empty}, {}, "e") == frozenset()
    assert plan.may_delete_empty(empty, empty)
    assert not plan.may_delete_empty(empty, CidrPartition(at("e4"), (), "x", ""))
    assert not plan.may_delete_empty(cut(1), cut(1))
