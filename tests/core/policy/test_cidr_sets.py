"""Whose ipBlocks are taken: what one tenant writes costs that tenant, is refused on its object, and stalls nobody."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, ip_address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.objects import IPBlock, KubernetesObject, Namespace, NetworkPolicy, Peer, PolicyRule, Selector
from proto.policy import CidrPartition, Direction, Revision
from services.policy.core import cidr_sets
from services.policy.core.cidr_sets import Budget, CidrSets, Cost
from services.policy.core.cidrs import number_of
from services.policy.core.dialects.networkpolicy import KIND, parse
from services.policy.core.graph import Graph, Held
from services.policy.core.limits import Limits, Problem
from services.policy.core.model import PolicyName
from tests.core.policy.notation import namespace, pod
from tests.cpu_time import least


def naming(name: str, *blocks: IPBlock, created: int = 0) -> NetworkPolicy:
    """A policy of ``namespace/name`` that lets the blocks in, and everyone by a second rule's selector."""
    space, _, short = name.partition("/")
    return NetworkPolicy(
        namespace=space,
        name=short,
        uid=name,
        pod_selector=Selector(),
        applies_ingress=True,
        applies_egress=False,
        ingress=(
            PolicyRule(peers=tuple(Peer(ip_block=block) for block in blocks)),
            PolicyRule(peers=(Peer(pod_selector=Selector()),)),
        ),
        created=created,
    )


def wide(count: int, step: int = 7_155_193) -> IPBlock:
    """All addresses but ``count`` scattered ones."""
    return IPBlock(IPv4Network("0.0.0.0/0"), tuple(IPv4Network(i * step % (1 << 32)) for i in range(1, count + 1)))


def single(number: int) -> IPBlock:
    return IPBlock(IPv4Network((number * 7_155_193 % (1 << 32), 32)))


def graph_of(*objects: KubernetesObject, limits: Limits | None = None) -> Graph:
    made = Graph(limits or Limits())
    made.put("k", Namespace("kube-system", "cluster"))
    for name in ("attacker", "victim"):
        made.put(f"ns.{name}", namespace(name))
        made.put(f"pod.{name}", pod(f"{name}/p", labels={"role": name}))
    for value in objects:
        made.put(f"policy.{getattr(value, 'namespace', '')}.{value.name}", value)
    made.run()
    return made


def lets_in(made: Graph, space: str, address: str) -> bool:
    """Whether a line of the namespace's one pod holds the address."""
    (compiled,) = (one for one in made.compiled.values() if one.policy.namespace == space)
    partition = made.partitions.get(space)
    number = 0 if partition is None else number_of(partition.prefixes, ip_address(address))
    assert compiled.policy.ingress_isolated
    return number != 0 and any(number in rule.cidr_sets for rule in compiled.policy.rules)


def test_a_tenants_600_exceptions_leave_another_tenants_new_block_in_force() -> None:
    made = graph_of(naming("attacker/a", wide(600)))
    before = {identity: one for identity, one in made.compiled.items() if one.policy.namespace == "victim"}
    made.put("policy.victim.v", naming("victim/v", IPBlock(IPv4Network("192.0.2.0/24"))))
    made.run()
    assert lets_in(made, "victim", "192.0.2.9")
    assert not lets_in(made, "victim", "192.0.3.9")
    assert lets_in(made, "attacker", "9.9.9.9"), "601 prefixes are within the bounds: it has what it wrote"
    assert not made.problems
    made.put("policy.attacker.a", naming("attacker/a", *(single(n) for n in range(999))))
    after = {one.policy.identity: one for one in made.compiled.values() if one.policy.namespace == "victim"}
    assert made.run().isdisjoint(after), "what one tenant edits compiles nobody else anew"
    assert before.keys() == after.keys()


def test_a_policy_beyond_its_bound_isolates_and_lets_no_block_in_and_is_named() -> None:
    made = graph_of(
        naming("attacker/a", wide(1000)),
        naming("attacker/b", IPBlock(IPv4Network("10.0.0.0/8"))),
        naming("victim/v", IPBlock(IPv4Network("192.0.2.0/24"))),
    )
    assert not lets_in(made, "attacker", "9.9.9.9")
    assert lets_in(made, "attacker", "10.1.2.3"), "another policy of the namespace holds"
    assert lets_in(made, "victim", "192.0.2.9")
    (problem,) = made.problems
    assert [(one.namespace, one.name, one.reason) for one in problem.about] == [("attacker", "a", "TooManyCIDRs")]
    assert "names 1001 CIDRs and exceptions, a NetworkPolicy may name 1000" in problem.fault
    made.put("policy.attacker.a", naming("attacker/a", wide(900)))
    made.run()
    assert lets_in(made, "attacker", "9.9.9.9")
    assert not made.problems


def test_a_refused_policy_with_the_words_of_a_taken_one_still_lets_nothing_in() -> None:
    same = IPBlock(IPv4Network("10.0.0.0/8"))
    sets = CidrSets(Limits(policy_prefixes=1))
    one, other = parse(naming("x/one", same)), parse(naming("x/two", same, same))
    sets.put("1", None, one)
    sets.put("2", None, other)
    sets.admit()
    assert sets.cut("x") == {"1", "2"}
    assert sets.numbers_of(one, Direction.INGRESS, 0)
    assert not sets.numbers_of(other, Direction.INGRESS, 0)


def test_the_newest_of_a_namespace_give_first() -> None:
    limits = Limits(namespace_prefixes=1500)
    old, new = naming("attacker/z", wide(900), created=1), naming("attacker/a", wide(900, 5_000_011), created=2)
    made = graph_of(new, old, limits=limits)
    (problem,) = made.problems
    assert problem.about[0].name == "a"
    assert "beside 901 of older policies, namespace attacker may have 1500" in problem.fault
    made.put("policy.attacker.z", None)
    made.run()
    assert not made.problems
    assert lets_in(made, "attacker", "9.9.9.9")


def cost(name: str, created: int, prefixes: int) -> Cost:
    space, _, short = name.partition("/")
    return Cost(created, PolicyName(space, short, KIND), prefixes)


def test_the_largest_namespace_gives_first_when_all_together_are_too_much() -> None:
    limits = Limits(policy_prefixes=10, namespace_prefixes=30, prefixes=35)
    costs = [cost(f"big/{n}", n, 10) for n in range(3)] + [cost(f"small/{n}", 100 + n, 5) for n in range(2)]
    assert {f"{name.namespace}/{name.name}" for name in over_budget(costs, limits)} == {"big/2"}
    costs.append(cost("small/2", 200, 10))
    assert {f"{name.namespace}/{name.name}" for name in over_budget(costs, limits)} == {"big/1", "big/2"}


def over_budget(costs: Iterable[Cost], limits: Limits) -> dict[PolicyName, Problem]:
    """What is refused of these, from scratch."""
    budget = Budget(limits)
    for one in costs:
        budget.put(one)
    return budget.refused()


COSTS = st.lists(
    st.builds(
        lambda space, short, created, prefixes: Cost(created, PolicyName(space, short, KIND), prefixes),
        st.sampled_from("abc"), st.sampled_from("pqrstuvw"), st.integers(0, 3), st.integers(1, 12),
    ),
    unique_by=lambda one: one.name,
    max_size=20,
)  # fmt: skip


@given(COSTS, st.integers())
def test_every_copy_refuses_the_same_and_no_bound_is_passed(costs: list[Cost], order: int) -> None:
    limits = Limits(policy_prefixes=10, namespace_prefixes=25, prefixes=40)
    refused = over_budget(costs, limits)
    shuffled = costs.copy()
    Random(order).shuffle(shuffled)
    assert over_budget(shuffled, limits) == refused
    taken = [one for one in costs if one.name not in refused]
    by_space = {space: sum(one.prefixes for one in taken if one.name.namespace == space) for space in "abc"}
    assert max((one.prefixes for one in taken), default=0) <= 10
    assert max(by_space.values()) <= 25
    assert sum(by_space.values()) <= 40
    if sum(one.prefixes for one in costs if one.prefixes <= 10) <= 25:
        assert all(one.prefixes > 10 for one in costs if one.name in refused)


@given(COSTS, COSTS, st.randoms(use_true_random=False))
def test_a_budget_that_is_kept_up_says_what_one_from_scratch_does(
    before: list[Cost], after: list[Cost], chance: Random
) -> None:
    limits = Limits(policy_prefixes=10, namespace_prefixes=25, prefixes=40)
    budget, now = Budget(limits), dict[PolicyName, Cost]()
    for wanted in ({one.name: one for one in costs} for costs in (before, after, [], before)):
        names = sorted(now.keys() | wanted.keys())
        chance.shuffle(names)
        for name in names:
            if name in wanted:
                budget.put(wanted[name])
            else:
                budget.remove(name)
            if chance.random() < 0.3:
                budget.refused()
        assert budget.refused() == over_budget(wanted.values(), limits)
        now = wanted


def test_a_change_costs_its_own_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' policies are not looked at again: with as many as a cluster has, each edit would wait for them."""
    looked_at: list[int] = []
    judge = cidr_sets._namespace_budget

    def judging(costs: Collection[Cost], limits: Limits) -> object:
        looked_at.append(len(costs))
        return judge(costs, limits)

    monkeypatch.setattr(cidr_sets, "_namespace_budget", judging)
    budget = Budget(Limits())
    for number in range(50):
        budget.put(cost(f"n{number}/p", 1, 3))
    budget.refused()
    looked_at.clear()
    budget.put(cost("n7/q", 2, 3))
    budget.refused()
    assert looked_at == [2]


def test_rules_that_all_overlap_are_bounded_the_newest_refused() -> None:
    sets = CidrSets(Limits(policy_prefixes=10, memberships=1000))
    policies = [parse(naming(f"x/p{n:03}", wide(1, 100_003 + n), created=n)) for n in range(100)]
    for policy in reversed(policies):
        sets.put(policy.name.name, None, policy)
    sets.admit()
    sets.cut("x")
    refused = {problem.about[0].name for problem in sets.problems}
    assert refused == {policy.name.name for policy in policies if not sets.numbers_of(policy, Direction.INGRESS, 0)}
    assert 0 < len(refused) < 90
    assert min(refused) > max(policy.name.name for policy in policies if policy.name.name not in refused)
    assert sets.partitions["x"].memberships <= 1000
    for policy in policies[5:]:
        sets.put(policy.name.name, policy, None)
    sets.admit()
    assert {"p000", "p004"} <= sets.cut("x")
    assert not sets.problems


def test_a_change_is_cut_in_its_namespace_alone() -> None:
    made = graph_of(naming("attacker/a", single(1)), naming("victim/v", single(2)))
    kept = made.partitions["victim"]
    made.put("policy.attacker.a", naming("attacker/a", single(3)))
    made.settle()
    assert made.uncut == {"attacker"}
    made.cut("attacker")
    assert made.partitions["victim"] is kept
    held = CidrPartition(Revision("e", 1), kept.prefixes, "victim", "another")
    made.hold(Held(partitions={"victim": (held,)}))
    assert made.uncut == {"victim"}


@pytest.mark.parametrize("shape", ["rules", "blocks", "huge"])
def test_a_large_policy_is_settled_well_within_a_lease(shape: str) -> None:
    blocks = {"rules": [single(n) for n in range(1000)], "blocks": [single(n) for n in range(1000)]}.get(shape, [])
    policy = naming("attacker/a", *(blocks or [wide(50_000)]))
    if shape == "rules":
        rules = tuple(PolicyRule(peers=(Peer(ip_block=block),)) for block in blocks)
        policy = NetworkPolicy("attacker", "a", "u", Selector(), True, False, rules)
    assert least(3, lambda: graph_of(policy)) < 1.0
