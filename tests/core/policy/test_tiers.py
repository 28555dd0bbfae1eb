"""Tiers, orders, deny and pass: what is compiled against an oracle that asks tier by tier, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import cast

import pytest

from proto.identity import NamedPort
from proto.objects import IPBlock, KubernetesObject, Namespace, PolicyPort, Selector
from proto.policy import Direction, PortMatch, RuleSource, SelectorPeer
from services.policy.core.compile import Denial, Rules, compile_rules
from services.policy.core.dialects import networkpolicy
from services.policy.core.explain import Explainer
from services.policy.core.graph import Graph
from services.policy.core.limits import About, Limits
from services.policy.core.model import Action, Policy, PolicyName, Rule, Tier
from services.policy.core.tiers import MOST_EXPANDED, NOTHING, Clause, RuleList, Unenforceable, intersection, prepend
from tests.core.policy.cluster import Probe, feed, kernel_of, keyed, peers_of, probes
from tests.core.policy.notation import namespace, pod, policies
from tests.core.policy.tiered import ADMIN, BASELINE, KIND, SPOKEN, TieredBuilder, TieredOracle
from tests.core.policy.worlds import World, seeded

Objects = dict[str, KubernetesObject]
ALL = Limits(actions=tuple(Action))
"""As if nodes enforced every action: what is compiled is right before they do."""
WORLDS, PROBES = 3000, 120


@pytest.fixture(autouse=True)
def _every_policy_of_the_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.policy.core.dialects.DIALECTS", SPOKEN)


def tiered_world(seed: int, actions: tuple[Action, ...] = tuple(Action)) -> tuple[World, list[Policy]]:
    """A world with NetworkPolicies, and policies of all tiers beside them."""
    builder = seeded(seed)
    world = builder.world(policies=2)
    more = TieredBuilder(builder, actions)
    return world, [more.policy(index) for index in range(builder.choice(range(7)))]


def as_object(policy: Policy) -> KubernetesObject:
    """A policy of the model, in the place of an object of some dialect."""
    return cast(KubernetesObject, policy)


def objects_of(world: World, tiered: list[Policy]) -> Objects:
    return keyed(world) | {f"tiered.{one.name.namespace}.{one.name.name}": as_object(one) for one in tiered}


def oracle_of(world: World, tiered: list[Policy]) -> TieredOracle:
    return TieredOracle([*map(networkpolicy.parse, world.policies), *tiered], world.namespaces)


def denied_whole(graph: Graph, world: World) -> dict[Direction, set[object]]:
    """Addresses of pods whose direction is denied whole, which is told."""
    found: dict[Direction, set[object]] = {direction: set() for direction in Direction}
    for one in world.pods:
        identity = graph.roster.identity_of(one, graph.relevant)
        for problem in graph.compiled[identity].problems if identity is not None else ():
            assert "denied whole" in problem.fault
            assert problem.about
            found[Direction[problem.fault.split()[0].upper()]].update(one.addresses)
    return found


def disagreements(graph: Graph, oracle: TieredOracle, world: World, asked: Iterator[Probe]) -> list[tuple[Probe, bool]]:
    """Flows that the compiled rules and the oracle answer differently; what is denied whole only has to be denied."""
    kernel, where, whole = kernel_of(graph, world), peers_of(world), denied_whole(graph, world)
    wrong = []
    for probe in asked:
        source, destination, protocol, port = probe
        if source == destination:
            continue
        expected = oracle.allows(where[source], where[destination], protocol, port)
        own_node = where[source].pod is None and where[source].node == where[destination].node
        if source in whole[Direction.EGRESS] or (destination in whole[Direction.INGRESS] and not own_node):
            expected = False
        if kernel.allows(source, destination, protocol, port) != expected:
            wrong.append((probe, expected))
    return wrong


@pytest.mark.parametrize("start", range(0, WORLDS, 500))
def test_random_tiers_are_judged_tier_by_tier(start: int) -> None:
    enforced = directions = 0
    for seed in range(start, start + 500):
        world, tiered = tiered_world(seed)
        graph = feed(Graph(ALL), objects_of(world, tiered))
        wrong = disagreements(graph, oracle_of(world, tiered), world, probes(world, seed, PROBES))
        assert not wrong, f"seed {seed}: {tiered}"
        for one in graph.compiled.values():
            directions += 2
            enforced += 2 - len(one.problems)
            for direction in Direction:
                mine = [(rule.precedence, rule.verdict) for rule in one.policy.rules if rule.direction is direction]
                assert mine == sorted(mine), "nodes put them in this order"
    assert enforced > 0.99 * directions, "very few are denied for what a node cannot ask"


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_several_tiers_of_rules_that_only_allow_need_nothing_of_nodes(start: int) -> None:
    for seed in range(start, start + 100):
        world, tiered = tiered_world(seed, (Action.ALLOW,))
        graph = feed(Graph(), objects_of(world, [one for one in tiered if one.name.namespace]))
        oracle = oracle_of(world, [one for one in tiered if one.name.namespace])
        assert not graph.problems
        assert not disagreements(graph, oracle, world, probes(world, seed, PROBES)), f"seed {seed}"


@pytest.mark.parametrize("seed", range(60))
def test_what_is_explained_is_what_nodes_do(seed: int) -> None:
    world, tiered = tiered_world(seed)
    graph = feed(Graph(ALL), objects_of(world, tiered))
    kernel, explainer = kernel_of(graph, world), Explainer(graph)
    for source, destination, protocol, port in probes(world, seed, 60):
        reported = explainer.explain(str(source), str(destination), protocol, port)
        if source != destination:
            assert reported.allowed == kernel.allows(source, destination, protocol, port), reported.reasons


@pytest.mark.parametrize("seed", range(40))
def test_any_way_from_one_state_to_another(seed: int) -> None:
    states = [objects_of(*tiered_world(seed * 10 + step)) for step in range(3)]
    graph, before_it = Graph(ALL), Objects()
    for state in states:
        for key in sorted(before_it.keys() - state.keys()):
            graph.put(key, None)
        for key, value in reversed(state.items()):
            graph.put(key, value)
        feed(graph, {})
        fresh = feed(Graph(ALL), state)
        assert (graph.compiled, graph.problems) == (fresh.compiled, fresh.problems)
        before_it = state


def reread(change: Callable[[Rule], Rule] = lambda rule: rule, **fields: object) -> Callable[[Policy], Policy]:
    def misread(policy: Policy) -> Policy:
        ingress, egress = (tuple(map(change, rules)) for rules in (policy.ingress, policy.egress))
        return replace(policy, ingress=ingress, egress=egress, **fields)  # type: ignore[arg-type]

    return misread


WRONG = {
    "tiers are one": reread(tier=ADMIN),
    "a policy's order is nothing": reread(order=10),
    "a rule's order is nothing": reread(lambda rule: replace(rule, order=None)),
    "deny is allow": reread(lambda rule: replace(rule, action=Action(rule.action or 1))),
    "pass is allow": reread(lambda rule: replace(rule, action=Action(min(rule.action, 1)))),
    "nothing isolates": reread(isolates_ingress=False, isolates_egress=False),
    "a subject without a namespace is nobody": lambda policy: (
        policy if policy.subject.namespace else replace(policy, subject=SelectorPeer(namespace="nowhere"))
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_oracle_objects_to_a_wrong_reading(mistake: str) -> None:
    def objects(seed: int) -> bool:
        world, tiered = tiered_world(seed)
        graph = feed(Graph(ALL), objects_of(world, list(map(WRONG[mistake], tiered))))
        return bool(disagreements(graph, oracle_of(world, tiered), world, probes(world, seed, PROBES)))

    assert any(objects(seed) for seed in range(300))


A, B = (SelectorPeer(namespace="x", pod_selector=Selector((("pod", name),))) for name in "ab")
IN_ALL = SelectorPeer(namespace_selector=Selector(), pod_selector=Selector((("role", "db"),)))
BOTH = SelectorPeer(namespace="x", namespace_selector=Selector(), pod_selector=Selector((("pod", "a"), ("role", "db"))))
PEERS = {"a": A, "b": B, "db": IN_ALL, "a&db": BOTH}
WORDS = {"allow": Action.ALLOW, "deny": Action.DENY, "pass": Action.PASS}


def clause(text: str) -> Clause:
    """``allow a,b,7 80``: action, peers (``*`` any; a number is a CIDR set), port (``*`` any; else TCP)."""
    action, peers, port = text.split()
    named = [] if peers == "*" else peers.split(",")
    return Clause(
        direction=Direction.INGRESS,
        source=RuleSource("K", "", text, 0),
        ports=(PortMatch(0, 0, 0) if port == "*" else PortMatch(6, int(port), 16),),
        any_peer=peers == "*",
        selectors=tuple(PEERS[name] for name in named if not name.isdecimal()),
        cidr_sets=tuple(int(name) for name in named if name.isdecimal()),
        action=WORDS[action],
    )


def text_of(one: Clause) -> str:
    names = {peer: name for name, peer in PEERS.items()}
    peers = ",".join([*(names[peer] for peer in one.selectors), *map(str, one.cidr_sets)]) or "*"
    return f"{one.action.name.lower()} {peers} {one.ports[0].port if one.ports[0].protocol else '*'}"


TABLE: list[tuple[str, list[tuple[bool, list[str]]], list[str], bool]] = [
    ("no tier", [], [], False),
    ("one tier", [(False, ["deny a *", "allow * *"])], ["deny a *", "allow * *"], False),
    ("what isolates ends all", [(True, ["allow a *"]), (False, ["allow b *"])], ["allow a *"], True),
    ("tiers follow each other", [(False, ["deny a *"]), (True, ["allow b *"])], ["deny a *", "allow b *"], True),
    ("a pass before nothing says nothing", [(False, ["deny a *", "pass b *"])], ["deny a *"], False),
    (
        "a pass before a deny stands for what comes after",
        [(False, ["pass a *", "deny * *"]), (True, ["allow db 80"])],
        ["allow a&db 80", "deny a *", "deny * *", "allow db 80"],
        True,
    ),
    (
        "a pass out of a tier that isolates",
        [(True, ["pass 1,2 *"]), (False, ["deny 2,3 80"])],
        ["deny 2 80", "allow 1,2 *"],
        True,
    ),
    (
        "what a pass cannot match is left out",
        [(True, ["pass * 80"]), (False, ["deny a 81", "allow b *"])],
        ["allow b 80", "allow * 80"],
        True,
    ),
    (
        "a pass to a pass",
        [(True, ["pass * *"]), (True, ["pass a *", "allow b *"]), (False, ["deny * 80"])],
        ["deny a 80", "allow a *", "allow b *", "deny * *"],
        True,
    ),
]


@pytest.mark.parametrize(("tiers", "expected", "isolated"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_tiers_become_one_list(tiers: list[tuple[bool, list[str]]], expected: list[str], isolated: bool) -> None:
    decided = NOTHING
    for isolates, own in reversed(tiers):
        decided = prepend([clause(text) for text in own], decided, isolates=isolates)
    assert [text_of(one) for one in decided.clauses] == expected
    assert decided.isolated is isolated


def test_a_pass_names_the_rule_that_decides_in_its_place() -> None:
    decided = prepend([clause("pass a *")], RuleList((clause("allow db 80"),), True), isolates=True)
    assert [one.source.name for one in decided.clauses] == ["allow db 80", "pass a *"]


def test_ports_of_both_are_the_narrower_prefix() -> None:
    wide, narrow, other = PortMatch(6, 80, 12), PortMatch(6, 84, 15), PortMatch(6, 96, 12)
    one = clause("allow * *")._replace(ports=(wide, other, PortMatch(17, 80, 16)))
    to = clause("pass a *")._replace(ports=(narrow,))
    found = intersection(one, to)
    assert found is not None
    assert found.ports == (narrow,)
    assert intersection(one._replace(ports=(other,)), to) is None


def test_what_no_list_can_say_is_refused() -> None:
    with pytest.raises(Unenforceable, match="a selector and of an ipBlock at once") as found:
        intersection(clause("allow 1 *"), clause("pass a *"))
    assert found.value.reason == "PolicyNotEnforced"
    by_two_names = (
        clause("allow a 80")._replace(selectors=(SelectorPeer(namespace="x", named_port=NamedPort(name, 6, 80)),))
        for name in ("web", "http")
    )
    with pytest.raises(Unenforceable, match="one port by two names"):
        intersection(*by_two_names)
    many = [clause("allow a 80")] * (MOST_EXPANDED // 2)
    with pytest.raises(Unenforceable, match="more than 4096 rules"):
        prepend([clause("pass * *")] * 3, RuleList(tuple(many)), isolates=True)


class Nobody:
    """No CIDR sets, and two container ports of every name."""

    def ports_of(self, refs: object, names: object, home: object, most: int) -> tuple[tuple[()], int]:
        return (), 2

    def numbers_of(self, policy: Policy, direction: Direction, rule_index: int) -> tuple[int, ...]:
        return ()


def written(name: str, *rules: Rule, tier: Tier = ADMIN, isolates: bool = False, space: str = "x") -> Policy:
    """A policy of both directions' equal rules."""
    subject = SelectorPeer(namespace=space) if space else SelectorPeer(namespace_selector=Selector())
    return Policy(
        name=PolicyName(space, name, KIND),
        tier=tier,
        order=1,
        subject=subject,
        ingress=rules,
        egress=rules,
        isolates_ingress=isolates,
        isolates_egress=isolates,
    )


def compiled(*given: Policy, limits: Limits = ALL) -> Rules:
    return compile_rules((), given, Nobody(), limits)


def test_equal_ports_become_one_only_between_rules_of_another_action() -> None:
    """Of too many: what is united never moves past a rule that says otherwise."""

    def rules(*actions: Action) -> tuple[Rule, ...]:
        peers = (SelectorPeer(namespace=f"n{index}") for index in range(len(actions)))
        return tuple(
            Rule(index=index, action=action, selectors=(peer,))
            for index, (action, peer) in enumerate(zip(actions, peers, strict=True))
        )

    allow, deny = Action.ALLOW, Action.DENY
    made = compiled(written("p", *rules(allow, allow, deny, allow, allow)), limits=replace(ALL, rules=4))
    ingress = [rule for rule in made.rules if rule.direction is Direction.INGRESS]
    assert [(rule.verdict, rule.selectors, rule.precedence) for rule in ingress] == [
        (1, (0, 1), 1000),
        (0, (2,), 1001),
        (1, (3, 4), 1001),
    ]
    refused = compiled(written("p", *rules(allow, deny, allow, deny)), limits=replace(ALL, rules=3))
    assert refused.isolated == (True, True), "not isolated by any policy, but what denied is not there"


REST = Rule(index=1, action=Action.ALLOW, any_peer=True)


@pytest.mark.parametrize("action", [Action.DENY, Action.PASS])
def test_an_action_that_no_node_enforces_is_denied_whole_and_reported(action: Action) -> None:
    peer = SelectorPeer(namespace="y")
    barred = replace(
        written("p", REST), ingress=(Rule(index=0, action=action, selectors=(peer,)), REST), isolates_ingress=False
    )
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "y": namespace("y")}
    objects |= {name: pod(name) for name in ("x/a", "y/b")} | {"p": as_object(barred)}
    graph = feed(Graph(), objects)
    found = {one.policy.namespace: one.policy for one in graph.compiled.values()}
    assert (found["x"].ingress_isolated, found["x"].egress_isolated) == (True, False)
    assert {rule.direction for rule in found["x"].rules} == {Direction.EGRESS}
    assert not found["y"].ingress_isolated
    (problem,) = graph.problems
    assert f"would take a rule that says {action.name.lower()}, which no node enforces: denied whole" in problem.fault
    assert problem.remedy.endswith("in Tiered x/p")
    assert problem.about == (About("test", "Tiered", "x", "p", "PolicyNotEnforced"),)
    graph.put("p", policies("[{podSelector: {}, ingress: [{}]}]")[0])
    graph.run()
    assert not graph.problems


def test_ip_blocks_of_a_policy_without_a_namespace_are_denied_whole_and_reported() -> None:
    block = IPBlock(ip_network("10.0.0.0/8"))
    made = compiled(written("p", Rule(index=0, action=Action.ALLOW, blocks=(block,)), space=""))
    assert made.denied == tuple(
        Denial(direction, "ipBlocks of a policy without a namespace, which no node enforces", "PolicyNotEnforced")
        for direction in Direction
    )
    assert made.isolated == (True, True)


def test_a_named_port_with_too_many_numbers_may_be_left_out_of_what_allows_alone() -> None:
    web = (PolicyPort(6, port_name="web"),)
    for action, denied in ((Action.ALLOW, []), (Action.DENY, [Direction.EGRESS]), (Action.PASS, [Direction.EGRESS])):
        made = compiled(written("p", Rule(index=0, action=action, any_peer=True, ports=web), isolates=True))
        assert [one.direction for one in made.denied] == denied
        assert made.isolated[Direction.EGRESS]


def test_policies_of_the_baseline_are_asked_where_nothing_isolates() -> None:
    last = written("last", Rule(index=0, action=Action.DENY, any_peer=True), tier=BASELINE)
    assert compiled(last).isolated == (False, False)
    assert [rule.verdict for rule in compiled(last).rules] == [0, 0]
    (isolating,) = map(networkpolicy.parse, policies("[{podSelector: {}}]"))
    made = compiled(last, isolating)
    assert made.isolated == (True, False)
    assert [rule.direction for rule in made.rules] == [Direction.EGRESS]
