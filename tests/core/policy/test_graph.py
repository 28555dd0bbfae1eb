"""The graph is a function of the present state: state lists in every order end where a fresh one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proto.identity import IdentitySet
from proto.objects import KubernetesObject, Namespace
from proto.policy import CidrPartition, Revision
from services.policy.core.graph import Graph, Held
from services.policy.core.identities import Roster
from tests.core.policy.cluster import feed, kernel_of, keyed, probes
from tests.core.policy.notation import namespace, pod, policies
from tests.core.policy.worlds import World, seeded

Objects = dict[str, KubernetesObject]
CYCLES = 60


def fresh(objects: Objects) -> Graph:
    return feed(Graph(), objects)


def image(graph: Graph) -> object:
    """All that a graph says, without how it got there."""
    assert not graph.dirty
    return (graph.compiled, dict(graph.partitions), graph.relevant, graph.problems)


def move(graph: Graph, before: Objects, after: Objects, chance: Random) -> None:
    """Changes in any order, some said twice, some deletes of what never was."""
    changes: list[tuple[str, KubernetesObject | None]] = [(key, None) for key in before.keys() - after.keys()]
    changes += [(key, value) for key, value in after.items() if before.get(key) != value or chance.random() < 0.2]
    changes += [(f"policy.x.never{index}", None) for index in range(2)]
    chance.shuffle(changes)
    for key, value in changes:
        graph.put(key, value)
        if chance.random() < 0.1:
            graph.put(key, value)
        if chance.random() < 0.2:
            graph.run()


def flicker(states: list[Objects]) -> list[Objects]:
    return [state for state in states for _ in (0, 1)] + states


EXPANDERS: dict[str, Callable[[list[Objects]], list[Objects]]] = {
    "as told": lambda states: states,
    "backwards": lambda states: states[::-1],
    "with nothing in between": lambda states: [s for state in states for s in (state, {})],
    "twice over": flicker,
    "only the last": lambda states: states[-1:],
}


@pytest.mark.parametrize("expander", EXPANDERS)
@pytest.mark.parametrize("seed", range(CYCLES))
def test_incremental_equals_fresh(expander: str, seed: int) -> None:
    chance = Random(seed)
    states = [keyed(seeded(seed * 100 + index).world(policies=4)) for index in range(4)]
    graph, before = Graph(), dict[str, KubernetesObject]()
    for state in EXPANDERS[expander](states):
        move(graph, before, state, chance)
        settled_with_relevant(graph)
        before = state
        if state:
            assert image(graph) == image(fresh(state)), f"seed {seed}"


def settled_with_relevant(graph: Graph) -> None:
    graph.run()
    graph.hold(Held(relevant=graph.relevant))
    graph.run()


def mutations(world: World, chance: Random) -> Iterator[tuple[str, KubernetesObject | None]]:
    """Single small events, as a cluster lives: one object comes, changes or goes."""
    objects = keyed(world)
    other = keyed(seeded(chance.randrange(10**6)).world())
    while True:
        pool = objects if chance.random() < 0.4 else other
        key = chance.choice(sorted(pool))
        if key == "namespace.kube-system":
            continue
        yield key, None if chance.random() < 0.3 else pool[key]


@pytest.mark.parametrize("seed", range(CYCLES))
def test_a_hundred_single_events_end_where_a_fresh_graph_does(seed: int) -> None:
    chance = Random(seed)
    world = seeded(seed).world()
    now = keyed(world)
    graph = feed(Graph(), now)
    for (key, value), step in zip(mutations(world, chance), range(100), strict=False):
        graph.put(key, value)
        if value is None:
            now.pop(key, None)
        else:
            now[key] = value
        if step % 20 == 19 or chance.random() < 0.1:
            settled_with_relevant(graph)
            assert image(graph) == image(fresh(now)), f"seed {seed}, step {step}"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_any_way_from_one_state_to_another(one: int, other: int, chance: Random) -> None:
    before, after = keyed(seeded(one).world()), keyed(seeded(other).world())
    graph = feed(Graph(), before)
    move(graph, before, after, chance)
    settled_with_relevant(graph)
    assert image(graph) == image(fresh(after))


@pytest.mark.parametrize("seed", range(CYCLES))
def test_while_relevant_keys_change_both_identities_have_their_rules(seed: int) -> None:
    """A node that computes with either set of keys finds rules, and they are the present ones."""
    world = seeded(seed).world()
    graph = Graph()
    for key, value in keyed(world).items():
        graph.put(key, value)
    graph.run()
    for one in world.pods:
        for relevant in (frozenset[str](), graph.relevant):
            found = graph.roster.identities_of(one, relevant)
            assert found is None or found[0] in graph.compiled


def test_only_what_a_change_touches_is_recompiled() -> None:
    spec = "[{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}]"
    (allow,) = policies(spec)
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "p": allow}
    objects |= {name: pod(name) for name in ("x/a", "x/b", "x/c")}
    graph = feed(Graph(), objects)

    def touched(key: str, value: KubernetesObject | None) -> int:
        graph.put(key, value)
        graph.settle()
        count = len(graph.dirty)
        graph.run()
        return count

    assert touched("x/c2", pod("x/c")) == 0, "another pod of a known identity"
    assert touched("x/d", pod("x/d")) == 1, "a new identity that no peer matches: itself"
    assert touched("x/b2", pod("x/b2", labels={"pod": "b", "more": "1"})) == 2, "a new peer: itself and the subject"
    assert touched("p", None) == 1, "a policy that goes: its subjects"
    assert touched("p", allow) == 1


def test_a_pod_on_two_nodes_for_a_moment_has_one_identity() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x")}
    objects |= {"n1": pod("x/a", node="n1"), "n2": pod("x/a", node="n2")}
    graph = feed(Graph(), objects)
    assert len(graph.compiled) == 1
    graph.put("n1", None)
    graph.run()
    assert len(graph.compiled) == 1
    graph.put("n2", None)
    graph.run()
    assert not graph.compiled


def test_lingering_identities_keep_their_rules_and_their_place_as_peers() -> None:
    spec = "[{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}]"
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "p": policies(spec)[0]}
    objects |= {name: pod(name) for name in ("x/a", "x/b")}
    graph = feed(Graph(), objects)
    identity, facts = graph.roster.identities_of(pod("x/b"), frozenset()) or (0, None)
    assert isinstance(facts, IdentitySet)
    before = image(graph)
    graph.put("x/b", None)
    graph.hold(Held(lingering={identity: facts}))
    graph.run()
    assert image(graph) == before
    graph.hold(Held())
    graph.run()
    assert identity not in graph.compiled
    assert all(not compiled.policy.rules for compiled in graph.compiled.values())


def test_two_facts_under_one_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither gets the other's rights, and nobody else lets either of them in."""
    monkeypatch.setattr(
        "services.policy.core.identities.identity_of",
        lambda facts, uid: 999 if ("pod", "c") not in facts.pod_labels else 1000,
    )
    allow_all = "[{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}]"
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "p": policies(allow_all)[0]}
    objects |= {name: pod(name) for name in ("x/a", "x/b", "x/c")}
    graph = feed(Graph(), objects)
    refused = graph.compiled[999].policy
    assert refused.ingress_isolated
    assert refused.egress_isolated
    assert refused.rules == ()
    assert [rule.peer for rule in graph.compiled[1000].policy.rules] == [1000]
    assert "share the identity" in graph.problems[0].fault
    graph.put("x/b", None)
    graph.run()
    assert not graph.problems
    assert {rule.peer for rule in graph.compiled[999].policy.rules} == {999, 1000}


def test_a_recreated_cluster_has_other_numbers() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "x/a": pod("x/a")}
    graph = feed(Graph(), objects)
    before = set(graph.compiled)
    graph.put("k", Namespace("kube-system", "other"))
    graph.run()
    assert len(graph.compiled) == 1
    assert not before & set(graph.compiled)
    graph.put("k", None)
    graph.run()
    assert not graph.ready
    assert not graph.compiled


def test_the_roster_forgets_what_is_gone() -> None:
    roster = Roster()
    roster.put_namespace("kube-system", Namespace("kube-system", "u"))
    roster.put_namespace("x", namespace("x"))
    roster.put_pod("a", pod("x/a"))
    assert len(roster.refresh().appeared) == 1
    roster.put_namespace("x", namespace("x", tier="gold"))
    turnover = roster.refresh()
    assert (len(turnover.appeared), len(turnover.gone)) == (1, 1)
    roster.put_namespace("x", None)
    assert len(roster.refresh().gone) == 1
    assert not roster.members
    assert not roster.in_use()


@pytest.mark.parametrize("seed", range(150))
def test_new_lines_on_a_node_with_the_old_partition_never_allow_what_the_new_policies_do_not(seed: int) -> None:
    """A node goes on with its partition until all shards are there: meanwhile nothing opens, and what stays works."""
    before, other = seeded(seed).world(), seeded(seed + 5000).world()
    after = World(before.namespaces, before.nodes, before.pods, before.policies[1:] + other.policies[:2])
    old = feed(Graph(), keyed(before))
    graph = Graph()
    for key, value in keyed(after).items():
        graph.put(key, value)
    graph.run()
    held = {
        name: (CidrPartition(Revision("e", 1), own.prefixes, name, own.digest),)
        for name, own in old.partitions.items()
        if name not in graph.partitions or own.digest != graph.partitions[name].digest
    }
    graph.hold(Held(relevant=graph.relevant, partitions=held))
    graph.run()
    slow, quick = kernel_of(graph, after), kernel_of(graph, after)
    slow.cidrs = kernel_of(old, before).cidrs
    stays = {rule for one in before.policies for rule in (one.ingress, one.egress)}
    unchanged = all(one.ingress in stays and one.egress in stays for one in after.policies)
    for probe in probes(after, seed, 200):
        assert quick.allows(*probe) or not slow.allows(*probe), f"opened: {probe}"
        if unchanged:
            assert quick.allows(*probe) == slow.allows(*probe), f"interrupted: {probe}"
